"""BABILong: bAbI's facts hidden in a book, and a question after it (Kuratov et al. 2024).

Sampling, prompt and score are those of booydar/babilong. Three things differ: the book is the shipped novels or a text
of yours instead of PG19, its sentences end where `data.sentences` says, and the last one is cut at a word, so that a
context of any length can be streamed. Lengths are counted by whatever tokenizer is given.

Two protocols: a prompt with instruction and examples for a model that can follow them (`prompt`), and rows to train a
small model on, a few segments first and then more (`training_row`). What comes out is scored by `babilong_score`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from typing import NamedTuple

import numpy as np

from fastweights.data.text import Source, find_sources
from fastweights.data.tokenizer import Ids, Tokenizer
from fastweights.errors import UserError
from fastweights.tasks.babi import Question, Story, Task, check_task, questions
from fastweights.tasks.babilong_prompts import PROMPTS
from fastweights.tasks.haystack import novel_haystack, text_haystack

PROMPT_TOKENS = 300
"""Tokens of a length that are kept for the prompt; the context gets the others."""
ANSWER_TOKENS = 20
"""Tokens that a model may answer with."""
MIN_SENTENCE = 10
"""Tokens that a sentence of the background must have."""

SEGMENTS = (2, 3, 5, 8, 16, 32)
"""The curriculum of fine-tuning: segments of a training row, stage by stage."""
SEGMENT_TOKENS = 512
"""Tokens of a segment."""
TAIL_TOKENS = 20
"""Tokens of a training row that are kept for question and answer; more where they need more."""
GEN = 3
"""Id that ends the question and asks for the answer: a reserved one, so that no text holds it."""

Background = Callable[[], Iterable[str]]
"""Gives the sentences to hide facts in, from the same first one on every call."""
Measure = Callable[[Sequence[str]], Sequence[int]]
"""Gives the number of tokens of each of several texts."""

_BLOCK = 64  # sentences measured together
_MAX_SHORT = 100_000  # sentences in a row that may be too short


class Passage(NamedTuple):
    """A stretch of a context.

    Attributes:
        text: Its text, the space in front included; the texts of all passages joined are the context.
        fact: Index of the fact that this passage is, or -1.
    """

    text: str
    fact: int = -1


@dataclass(frozen=True)
class Document:
    """A context: facts, and where they stand in the background. Small, however long the text is.

    Attributes:
        facts: What is hidden, in order.
        positions: For each fact the number of the background sentence that it stands before, not decreasing; the last
            possible one is the end.
        kept: One byte for each sentence of the background: 1 if it is long enough to be used.
        last: What is used of the last sentence.
        background: The sentences.
    """

    facts: tuple[str, ...]
    positions: tuple[int, ...]
    kept: bytes
    last: str
    background: Background

    @property
    def sentences(self) -> int:
        """Sentences of the background that are used."""
        return sum(self.kept)

    def passages(self) -> Iterator[Passage]:
        """Stream the context; each call begins anew, and a few sentences are in memory."""
        joint = ""
        number, fact = 0, 0
        final = self.sentences - 1
        for used, sentence in zip(self.kept, self.background(), strict=False):
            if not used:
                continue
            while fact < len(self.facts) and self.positions[fact] <= number:
                yield Passage(joint + self.facts[fact], fact)
                fact, joint = fact + 1, " "
            yield Passage(joint + (self.last if number == final else sentence))
            number, joint = number + 1, " "
        for rest in range(fact, len(self.facts)):
            yield Passage(joint + self.facts[rest], rest)
            joint = " "


class Sample(NamedTuple):
    """A question and the context that it is asked about."""

    question: Question
    document: Document


def background(seed: int | str, paths: Sequence[str] = ()) -> Background:
    """Return a text to hide facts in, without end: the shipped novels, or files, from a random place on.

    Args:
        seed: Chooses the place, and the order of the novels.
        paths: Files, folders or patterns, as `data.text.find_sources` takes them.

    Raises:
        UserError: The files cannot be read, or cannot be read twice.
    """
    return _background(seed, find_sources(paths) if paths else [])


def _background(seed: int | str, sources: Sequence[Source]) -> Background:
    def sentences() -> Iterable[str]:
        rng = random.Random(seed)
        return (text_haystack(sources, rng) if sources else novel_haystack(rng)).sentences

    sentences()
    return sentences


def measured_by(tokenizer: Tokenizer) -> Measure:
    """Return what counts tokens of a tokenizer of this package; any other counter is a function like it."""

    def measure(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer.encode_many(texts)]

    return measure


def hide_facts(
    rng: random.Random, facts: Sequence[str], background: Background, tokens: int | None, measure: Measure
) -> Document:
    """Hide facts in a background: each before a sentence drawn uniformly, several before one if it falls so.

    Args:
        rng: Draws the positions.
        facts: What to hide; their order is kept.
        background: What to hide them in; it is read as far as it is needed, here and by `Document.passages`.
        tokens: Length of the context: never more, and less by under two words. None for the facts alone ("0k").
        measure: Counts tokens, of a sentence with the space before it.

    Raises:
        UserError: The facts alone are longer, or the background ends too soon or has no sentence that is long enough.

    Cost: one tokenisation of the context.
    """
    kept, last = bytearray(), ""
    if tokens is not None:
        room = tokens - sum(measure([" " + fact for fact in facts]))
        if facts:  # the very first passage has no space before it, which may take more tokens
            room -= _surplus(measure, facts[0])
        if room < 0:
            raise UserError(f"{len(facts)} facts do not fit into {tokens} tokens: ask for a longer context.")
        kept, last = _fill(background, room, measure)
    positions = sorted(rng.randrange(sum(kept) + 1) for _ in facts)
    return Document(tuple(facts), tuple(positions), bytes(kept), last, background)


def _surplus(measure: Measure, text: str) -> int:
    bare, spaced = measure([text, " " + text])
    return max(0, bare - spaced)


def _fill(background: Background, room: int, measure: Measure) -> tuple[bytearray, str]:
    """Return which sentences of the background fill `room` tokens, and what of the last one does."""
    kept = bytearray()
    last, short = "", 0
    stream = iter(background())
    while room:
        block = list(islice(stream, _BLOCK))
        if not block:
            raise UserError(f"the background ends {room} tokens too soon: give more text or ask for a shorter context.")
        for sentence, size in zip(block, measure([" " + sentence for sentence in block]), strict=True):
            if size < MIN_SENTENCE:
                kept.append(0)
                short += 1
                continue
            if not last:
                room = max(0, room - _surplus(measure, sentence))
            if size > room:
                words = _words_that_fit(measure, sentence, room)
                if words:
                    kept.append(1)
                    last = words
                return kept, last
            kept.append(1)
            last, short = sentence, 0
            room -= size
            if not room:
                break
        if short > _MAX_SHORT:
            raise UserError(f"the background has no sentences of {MIN_SENTENCE} tokens to hide facts between.")
    return kept, last


def _words_that_fit(measure: Measure, sentence: str, room: int) -> str:
    words = re.findall(r"\s*\S+", " " + sentence)
    ends = accumulate(measure(words))
    return "".join(word for word, end in zip(words, ends, strict=True) if end <= room).strip()


def fits(question: Question, tokens: int) -> bool:
    """Whether BABILong asks a question in `tokens` tokens of context: facts and question at most an eighth as many."""
    return len(question.facts) + 1 <= tokens // 8


def make_samples(
    seed: int, stories: Iterable[Story], tokens: int | None, measure: Measure, paths: Sequence[str] = ()
) -> Iterator[Sample]:
    """Yield one sample for every question of the stories, each in another stretch of the background.

    Args:
        seed: Chooses positions and stretches.
        stories: Of `babi.make_stories` or `babi.read_stories`.
        tokens: Length of a context, see `hide_facts`; questions with more facts than that allows are left out.
        measure: Counts tokens.
        paths: The background; the shipped novels by default.

    Raises:
        UserError: As `background` and `hide_facts`.
    """
    sources = find_sources(paths) if paths else []
    asked = chain.from_iterable(map(questions, stories))
    for index, question in enumerate(asked):
        if tokens is None or fits(question, tokens):
            rng = random.Random(f"{seed} {index}")
            place = _background(f"{seed} {index} background", sources)
            yield Sample(question, hide_facts(rng, question.facts, place, tokens, measure))


def prompt(task: Task, question: str) -> tuple[str, str]:
    """Return BABILong's prompt: what stands before the context and what stands after it.

    Raises:
        UserError: No such task.
    """
    check_task(task)
    instruction, examples, post_prompt = PROMPTS[task]
    before = f"{instruction}\n\n{examples}\n\n{post_prompt}\n\n<context>\n"
    return before.lstrip(), f"\n</context>\n\nQuestion: {question}".rstrip()


def context_tokens(task: Task, question: str, tokens: int, measure: Measure) -> int:
    """Return what a length of `tokens` leaves to the context: all but 300, or but the prompt's own where that is more.

    Raises:
        UserError: It leaves nothing.
    """
    room = tokens - max(PROMPT_TOKENS, sum(measure(prompt(task, question))))
    if room <= 0:
        raise UserError(f"a prompt of {task} leaves no room for a context in {tokens} tokens: ask for a longer one.")
    return room


def prompted(task: Task, sample: Sample) -> Iterator[str]:
    """Stream the whole prompt; the answer follows it, after a line end or whatever the model was taught."""
    before, after = prompt(task, sample.question.text)
    yield before
    for passage in sample.document.passages():
        yield passage.text
    yield after


class TrainingRow(NamedTuple):
    """A row to fine-tune on: context, question, `GEN`, answer, `eos`.

    Attributes:
        ids: int32 `[T]`, the tokens.
        answers: int32 `[T]`: 1 on `GEN`, the answer and `eos`, the tokens that the loss is taken of, 0 elsewhere. It
            speaks of tokens, not of predictions: shift both by one.
    """

    ids: Ids
    answers: Ids


def training_row(
    rng: random.Random,
    tokenizer: Tokenizer,
    question: Question,
    background: Background,
    segments: int,
    size: int = SEGMENT_TOKENS,
) -> TrainingRow:
    """Make a training row that fills `segments` segments of `size` tokens but for a few.

    The context has `segments · size - TAIL_TOKENS` tokens as published, or as many fewer as question and answer need.

    Args:
        rng: Draws the facts' positions.
        tokenizer: Makes the ids and counts them.
        question: The facts, the question and its answer.
        background: What the facts are hidden in.
        segments: How many; `SEGMENTS` are the published stages.
        size: Tokens of each.

    Raises:
        UserError: The facts do not fit, or the background ends too soon.
    """
    if segments < 1 or size < 1:
        raise UserError(f"a row has at least one segment of one token, not {segments} of {size}.")
    asked = tokenizer.encode_array(question.text)
    answer = np.concatenate([[GEN], tokenizer.encode_array(question.answer), [tokenizer.eos]]).astype(np.int32)
    room = max(0, segments * size - max(TAIL_TOKENS, len(asked) + len(answer)))
    document = hide_facts(rng, question.facts, background, room, measured_by(tokenizer))
    context = tokenizer.encode_array("".join(passage.text for passage in document.passages()))
    ids = np.concatenate([context, asked, answer])
    answers = np.zeros(len(ids), np.int32)
    answers[-len(answer) :] = 1
    return TrainingRow(ids, answers)
