"""BABILong's fine-tuning: facts hidden in a book, a question, and a loss on the answer alone.

Rows are those of `fastweights.tasks.babilong.training_row`: context, question, ``GEN``, answer, end, in a number of
segments, padded to the stage's length. The published curriculum trains on 2, 3, 5, 8, 16 and 32 segments of 512 tokens
in turn, each stage on rows of any number of segments up to its own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, cycle, islice
from typing import Literal

import numpy as np

from fastweights.data.documents import novels, open_novel
from fastweights.data.sentences import sentences
from fastweights.data.text import find_sources, read_pieces
from fastweights.data.tokenizer import load_tokenizer
from fastweights.errors import UserError
from fastweights.tasks import babi
from fastweights.tasks.babilong import TrainingRow, training_row
from fastweights.train.config import Stage
from fastweights.train.task import Batch, Task

_STORIES = 2000  # as published; five questions each in most tasks
_TESTED = 10  # one sentence in so many
_MOST_FACTS = 8  # One fact in so many tokens of a row, as BABILong allows.


@dataclass(frozen=True, kw_only=True)
class BABILongTask(Task):
    """Questions of one of bAbI's tasks whose facts are hidden in books.

    ``GEN``, the answer and the end have a weight, as published; `exact` counts those that are right as a whole, with
    the true tokens before each given. Rows end at different places: what follows is padding.

    Attributes:
        tokenizer: name or path of the tokenizer.
        question: ``qa1`` to ``qa10``.
        paths: the books; the shipped novels by default.
        part: ``train`` or ``test``: stories and stretches of the books of the two are different ones, the last tenth of
            all sentences being the latter's.
        size: tokens of a segment; the stage's length is a multiple of it.
        vary: rows of 1 up to as many segments as fit, each number as likely; otherwise all are as long as fits.
    """

    tokenizer: str = "bpe4096"
    question: babi.Task = "qa1"
    paths: tuple[str, ...] = ()
    part: Literal["train", "test"] = "train"
    size: int = 512
    vary: bool = False

    def __post_init__(self) -> None:
        if self.question not in babi.TASKS:
            raise UserError(f"BABILong's questions are {', '.join(babi.TASKS)}, not {self.question!r}")
        if self.part not in ("train", "test"):
            raise UserError(f"part must be train or test, not {self.part!r}")
        if self.size < 1:
            raise UserError(f"a segment has at least one token, not {self.size}")

    def batch(self, seed: int, index: int, batch_size: int, length: int) -> Batch:
        if length % self.size:
            raise UserError(f"rows of {length} tokens are no multiple of a segment of {self.size}")
        rng = random.Random(f"{self.part} {seed}/{index}")
        rows = [self._row(rng, length // self.size) for _ in range(batch_size)]
        shape = batch_size, length + 1
        tokens, weights, real = np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape, np.bool_)
        for at, row in enumerate(rows):
            tokens[at, : len(row.ids)] = row.ids
            weights[at, : len(row.ids)] = row.answers
            real[at, : len(row.ids)] = True
        return Batch.from_tokens(tokens, weights, real=real)

    def _row(self, rng: random.Random, most: int) -> TrainingRow:
        segments = rng.randint(1, most) if self.vary else most
        asked = _questions(self.question, self.part)
        fitting = [one for one in asked if len(one.facts) + 1 <= segments * self.size // _MOST_FACTS]
        if not fitting:
            raise UserError(f"no question of {self.question} has few enough facts for {segments} x {self.size} tokens")
        book = _book(self.paths, self.part)
        start = rng.randrange(len(book))

        def place() -> Iterator[str]:
            return chain(islice(book, start, None), cycle(book))

        return training_row(rng, load_tokenizer(self.tokenizer), rng.choice(fitting), place, segments, self.size)


def babilong_stages(task: BABILongTask, segments: Sequence[int], steps: int, tokens: int) -> tuple[Stage, ...]:
    """A curriculum over numbers of segments.

    Args:
        task: what is trained on.
        segments: of the stages, in order; `fastweights.tasks.babilong.SEGMENTS` are the published ones.
        steps: of each stage.
        tokens: of a step, as far as whole rows allow, but at least one row.
    """
    lengths = [number * task.size for number in segments]
    return tuple(Stage(steps=steps, length=length, batch_size=max(1, tokens // length)) for length in lengths)


@lru_cache(maxsize=8)
def _questions(task: babi.Task, part: str) -> tuple[babi.Question, ...]:
    stories = islice(babi.make_stories(0 if part == "train" else 1, task), _STORIES)
    return tuple(chain.from_iterable(map(babi.questions, stories)))


@lru_cache(maxsize=4)
def _book(paths: tuple[str, ...], part: str) -> tuple[str, ...]:
    """The sentences of all books that belong to a part, in memory: a row is made in milliseconds."""
    texts = _files(paths) if paths else (open_novel(novel.name) for novel in novels())
    found = tuple(chain.from_iterable(map(sentences, texts)))
    border = len(found) - len(found) // _TESTED
    chosen = found[:border] if part == "train" else found[border:]
    if not chosen:
        raise UserError("the books to hide facts in hold too few sentences: name more text in task.paths")
    return chosen


def _files(paths: tuple[str, ...]) -> Iterator[Iterator[str]]:
    for source in find_sources(paths):
        with read_pieces(source) as pieces:
            yield (piece.text for piece in pieces)
