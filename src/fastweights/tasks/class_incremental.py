"""Classes that come one group after the other: class-incremental classification, learned in context.

The setting of class-incremental learning on CLINC150 and Banking77 in Behrouz et al. 2025, "Nested Learning" (arXiv
2512.24695), with what they adapt a model to read into its memory instead: a stream of labelled texts, one a line, in
which classes come in groups, and after every group texts that were not shown, of the classes of each group so far. No
class returns, and the class of a text is asked among all classes: nothing says which group it belongs to::

    how do i reset my pin -> maple
    move 20 dollars to savings -> tower
    i forgot the code of my card -> maple

What comes of it is a matrix; average accuracy and forgetting are in `fastweights.tasks.continual`. Saying always the
same class gives 1/k where that class belongs and 0 elsewhere; guessing among all classes so far gives 1/(k·n) after n
groups of k classes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastweights.data.tokenizer import Tokenizer
from fastweights.data.words import nouns
from fastweights.errors import UserError
from fastweights.tasks.continual import Course, Ids, Lesson, Question

Texts = Mapping[str, Sequence[str]]
"""Texts of one line by the name of their class, as `data.intents.Intents.by_label` gives them."""


@dataclass(frozen=True)
class ClassesSpec:
    """What a stream of classes looks like.

    Attributes:
        groups: Groups of classes, one after the other.
        classes: Of a group; no class is in two.
        examples: Labelled texts of a class. They come in rounds: one of each class of the group, in random order.
        questions: Texts of a class that are asked, and not shown.
    """

    groups: int = 5
    classes: int = 4
    examples: int = 8
    questions: int = 4

    def __post_init__(self) -> None:
        """Refuse what holds nothing."""
        if min(self.groups, self.classes, self.examples, self.questions) < 1:
            raise UserError("a stream of classes needs at least one group, class, example and question.")


class Line(NamedTuple):
    """A text and what its class is called in this stream."""

    text: str
    word: str

    @property
    def asked(self) -> str:
        """The line up to where the class is to be said."""
        return f"{self.text} ->"

    @property
    def said(self) -> str:
        """The rest of the line, with its end."""
        return f" {self.word}\n"


class Group(NamedTuple):
    """The classes that come together.

    Attributes:
        labels: Their own names, in the order of ``words``.
        words: What they are called here.
        lines: What is read, in order.
        questions: What is asked, class by class.
    """

    labels: tuple[str, ...]
    words: tuple[str, ...]
    lines: tuple[Line, ...]
    questions: tuple[Line, ...]


def make_stream(
    rng: random.Random, shown: Texts, asked: Texts, spec: ClassesSpec, words: Sequence[str] | None = None
) -> tuple[Group, ...]:
    """Draw a stream.

    Args:
        rng: All randomness; equal generators give equal streams.
        shown: Where examples come from.
        asked: Where questions come from; may be `shown`. What a class shows is never asked of it.
        spec: What the stream looks like.
        words: What classes may be called, one of them each, drawn anew: then nothing but the examples tells a class.
            None calls classes by their own names, with spaces for underscores.

    Raises:
        UserError: Too few classes with enough texts, or too few words.
    """
    count = spec.groups * spec.classes
    able = [label for label in sorted(shown.keys() & asked.keys()) if _suffices(shown[label], asked[label], spec)]
    if len(able) < count:
        raise UserError(
            f"a stream needs {count} classes with {spec.examples} texts to show and {spec.questions} others to ask, "
            f"but there are {len(able)}: give more texts or ask for less."
        )
    if words is not None and len(set(words)) < count:
        raise UserError(f"{count} classes need as many different words, but there are {len(set(words))}.")
    labels = rng.sample(able, count)
    names = [label.replace("_", " ") for label in labels] if words is None else rng.sample(_distinct(words), count)
    called = dict(zip(labels, names, strict=True))
    return tuple(
        _group(rng, shown, asked, spec, {label: called[label] for label in labels[start : start + spec.classes]})
        for start in range(0, count, spec.classes)
    )


def _suffices(shown: Sequence[str], asked: Sequence[str], spec: ClassesSpec) -> bool:
    """Whether questions are left whichever examples are drawn."""
    left = len(set(asked)) - min(spec.examples, len(set(asked) & set(shown)))
    return len(set(shown)) >= spec.examples and left >= spec.questions


def _group(rng: random.Random, shown: Texts, asked: Texts, spec: ClassesSpec, called: Mapping[str, str]) -> Group:
    """Draw the texts of the classes in `called`, which says what they are called."""
    examples: dict[str, list[str]] = {}
    questions: list[Line] = []
    for label, word in called.items():
        examples[label] = rng.sample(_distinct(shown[label]), spec.examples)
        others = [text for text in _distinct(asked[label]) if text not in examples[label]]
        questions += [Line(text, word) for text in rng.sample(others, spec.questions)]
    lines = [
        Line(examples[label][turn], called[label])
        for turn in range(spec.examples)
        for label in rng.sample(list(called), len(called))
    ]
    return Group(tuple(called), tuple(called.values()), tuple(lines), tuple(questions))


def _distinct(texts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def label_words(tokenizer: Tokenizer, count: int) -> tuple[str, ...]:
    """Return `count` nouns to call classes by, sorted: of as few tokens as so many have, spread over the alphabet.

    With the shipped BPE up to 722 are of one token, so that a wrong class is wrong at once.

    Raises:
        UserError: There are not so many nouns.
    """
    sizes = _noun_sizes(tokenizer)
    if not 1 <= count <= len(sizes):
        raise UserError(f"classes can be called by 1 to {len(sizes)} different nouns, not by {count}.")
    most = sorted(sizes.values())[count - 1]
    short = [noun for noun, size in sizes.items() if size <= most]
    return tuple(short[place * len(short) // count] for place in range(count))


@lru_cache(maxsize=4)
def _noun_sizes(tokenizer: Tokenizer) -> dict[str, int]:
    """Tokens of each noun with the space in front of it."""
    encoded = tokenizer.encode_many([f" {noun}" for noun in nouns()])
    return {noun: len(ids) for noun, ids in zip(nouns(), encoded, strict=True)}


def as_course(stream: Sequence[Group], tokenizer: Tokenizer) -> Course:
    """Write a stream in tokens: a lesson for each group, whose answers are a word and the line end.

    Args:
        stream: Of `make_stream`.
        tokenizer: Makes the ids.
    """
    return tuple(
        Lesson(
            np.concatenate([_ids(tokenizer, line.asked + line.said) for line in group.lines]),
            tuple(Question(_ids(tokenizer, line.asked), _ids(tokenizer, line.said)) for line in group.questions),
        )
        for group in stream
    )


def _ids(tokenizer: Tokenizer, text: str) -> Ids:
    return tokenizer.encode_array(text).astype(np.int64)
