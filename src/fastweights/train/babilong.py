"""BABILong's fine-tuning: facts hidden in a book, a question, and a loss on the answer alone.

Rows are those of `fastweights.tasks.babilong.training_row`: context, question, ``GEN``, answer, end, in a number of
segments, padded to the stage's length. The published curriculum trains on 2, 3, 5, 8, 16 and 32 segments of 512 tokens
in turn, each stage on rows of any number of segments up to its own. It is that of Rodkin et al. 2024, "Associative
Recurrent Memory Transformer", and of their code.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, count, islice
from typing import Literal

import numpy as np

from fastweights.data.documents import novels, open_novel
from fastweights.data.sentences import sentences
from fastweights.data.text import find_sources, read_text
from fastweights.data.tokenizer import Tokenizer, load_tokenizer
from fastweights.errors import UserError
from fastweights.tasks import babi
from fastweights.tasks.babilong import GEN, TAIL_TOKENS, TrainingRow, fits, measured_by, training_row
from fastweights.train.config import Stage
from fastweights.train.task import Batch, Task

_QUESTIONS = 10_000  # as in the published files
_TESTED = 10  # one sentence in so many


@dataclass(frozen=True, kw_only=True)
class BABILongTask(Task):
    """Questions of one of bAbI's tasks whose facts are hidden in books.

    ``GEN``, the answer and the end have a weight, as published. A probe's ``exact`` is the published exact match, but
    teacher-forced: all that follows ``GEN`` is right, the end too. Rows end at different places: what follows is
    padding.

    A row asks only what fits into it: at most one fact in eight tokens, as BABILong has it, and facts, question and
    answer no longer than the row. So short rows ask about short stories alone.

    Attributes:
        tokenizer: name or path of the tokenizer.
        question: ``qa1`` to ``qa10``.
        paths: the books; the shipped novels by default.
        part: ``train`` or ``test``. The last tenth of all sentences of the books is the latter's alone. Stories are
            drawn from seeds of their own, and of the shortest some occur in both: 73 % of qa4's questions (there are
            few of it), 2 % of qa1's, under 1 % of the others'.
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
        most = length // self.size
        least = 1 if self.vary else most
        if not self._asked(least):  # refused by the first batch, not by the first row that is drawn so short
            raise UserError(
                f"no question of {self.question} fits into {least} x {self.size} tokens: take larger segments"
            )
        rng = random.Random(f"{self.part} {seed}/{index}")
        rows = [self._row(rng, rng.randint(least, most)) for _ in range(batch_size)]
        shape = batch_size, length + 1
        tokens, weights, real = np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape, np.bool_)
        for at, row in enumerate(rows):
            tokens[at, : len(row.ids)] = row.ids
            weights[at, : len(row.ids)] = row.answers
            real[at, : len(row.ids)] = True
        return Batch.from_tokens(tokens, weights, real=real, answers=(weights > 0) & (tokens != GEN))

    def _row(self, rng: random.Random, segments: int) -> TrainingRow:
        book = _book(self.paths, self.part)
        start = rng.randrange(len(book))

        def place() -> Iterator[str]:
            return (book[at % len(book)] for at in count(start))

        question = rng.choice(self._asked(segments))
        return training_row(rng, _tokenizer(self.tokenizer), question, place, segments, self.size)

    def _asked(self, segments: int) -> tuple[babi.Question, ...]:
        return _fitting(self.question, self.part, self.tokenizer, segments * self.size)


def babilong_stages(task: BABILongTask, segments: Sequence[int], steps: int, tokens: int) -> tuple[Stage, ...]:
    """A curriculum over numbers of segments.

    Args:
        task: what is trained on.
        segments: of the stages, in order; `fastweights.tasks.babilong.SEGMENTS` are the published ones.
        steps: of each stage.
        tokens: of a step, padding included, as far as whole rows allow, but at least one row.

    Raises:
        UserError: numbers of segments or steps below 1.
    """
    lengths = [number * task.size for number in segments]
    return tuple(Stage(steps=steps, length=length, batch_size=max(1, tokens // length)) for length in lengths)


@lru_cache(maxsize=2)
def _tokenizer(name: str) -> Tokenizer:
    return load_tokenizer(name)


@lru_cache(maxsize=64)
def _fitting(task: babi.Task, part: str, tokenizer: str, tokens: int) -> tuple[babi.Question, ...]:
    """The questions that a row of so many tokens may ask."""
    sized = _questions(task, part, tokenizer)
    return tuple(question for question, needed in sized if needed <= tokens and fits(question, tokens))


@lru_cache(maxsize=8)
def _questions(task: babi.Task, part: str, tokenizer: str) -> tuple[tuple[babi.Question, int], ...]:
    """All questions of a part, and how long the shortest row that `training_row` makes of each is."""
    stories = babi.make_stories(0 if part == "train" else 1, task)
    asked = tuple(islice(chain.from_iterable(map(babi.questions, stories)), _QUESTIONS))
    measure = measured_by(_tokenizer(tokenizer))
    # A few hundred sentences make all of the stories: each is measured once, at a row's start and behind a space.
    texts = sorted({text for one in asked for text in (*one.facts, one.text, one.answer)})
    bare = dict(zip(texts, measure(texts), strict=True))
    spaced = dict(zip(texts, measure([f" {text}" for text in texts]), strict=True))

    def needed(one: babi.Question) -> int:
        first, *others = one.facts
        facts = max(bare[first], spaced[first]) + sum(spaced[fact] for fact in others)
        return facts + max(TAIL_TOKENS, bare[one.text] + bare[one.answer] + 2)

    return tuple((one, needed(one)) for one in asked)


@lru_cache(maxsize=4)
def _book(paths: tuple[str, ...], part: str) -> tuple[str, ...]:
    """The sentences of all books that belong to a part, in memory: a row is made in milliseconds."""
    texts = map(read_text, find_sources(paths)) if paths else (open_novel(novel.name) for novel in novels())
    found = tuple(chain.from_iterable(map(sentences, texts)))
    border = len(found) - len(found) // _TESTED
    chosen = found[:border] if part == "train" else found[border:]
    if not chosen:
        raise UserError("the books to hide facts in hold too few sentences: name more text in task.paths")
    return chosen
