"""State tracking and formal languages as something to train on.

Rows are asked at every position, and a row counts as one answer in a probe's ``exact``, as in the papers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastweights.tasks.formal_languages import Language, LanguageSpec, make_language
from fastweights.tasks.state_tracking import (
    ArithmeticSpec,
    Group,
    ParitySpec,
    WordProblemSpec,
    make_arithmetic,
    make_parity,
    make_word_problem,
)
from fastweights.train.task import Batch, Task, rng


@dataclass(frozen=True, kw_only=True)
class WordProblemTask(Task):
    """Running products in a group; every row is as long as the stage says.

    Attributes:
        group: whose elements.
    """

    group: Group = "S3"

    @property
    def vocab_size(self) -> int:
        """What a model's vocabulary must hold at least."""
        return WordProblemSpec(self.group).vocab_size

    def batch(self, seed: int, index: int, batch_size: int, length: int) -> Batch:
        return Batch.from_labels(*make_word_problem(rng(seed, index), batch_size, WordProblemSpec(self.group, length)))


@dataclass(frozen=True, kw_only=True)
class ParityTask(Task):
    """The parity of bits.

    Attributes:
        shortest: smallest number of bits; the largest is the stage's length. 0 for rows of full length.
        asked: at every bit, or only at the last.
    """

    shortest: int = 0
    asked: Literal["every", "last"] = "every"

    @property
    def vocab_size(self) -> int:
        """What a model's vocabulary must hold at least."""
        return 3

    def batch(self, seed: int, index: int, batch_size: int, length: int) -> Batch:
        spec = ParitySpec(length, self.shortest or length, self.asked)
        return Batch.from_labels(*make_parity(rng(seed, index), batch_size, spec))


@dataclass(frozen=True, kw_only=True)
class ArithmeticTask(Task):
    """The value of an expression modulo 5.

    Attributes:
        shortest: smallest length of an expression and its ``=``; the largest is the stage's. 0 for rows of full length.
        brackets: whether operands may be expressions in brackets.
    """

    shortest: int = 0
    brackets: bool = False

    @property
    def vocab_size(self) -> int:
        """What a model's vocabulary must hold at least."""
        return ArithmeticSpec(brackets=self.brackets).vocab_size

    def batch(self, seed: int, index: int, batch_size: int, length: int) -> Batch:
        spec = ArithmeticSpec(length, self.shortest or length, self.brackets)
        return Batch.from_labels(*make_arithmetic(rng(seed, index), batch_size, spec))


@dataclass(frozen=True, kw_only=True)
class LanguageTask(Task):
    """Whether a prefix is a word of a formal language, or what may follow it.

    Attributes:
        language: whose words.
        shortest: smallest length of a word; the largest is the stage's.
    """

    language: Language = "parity"
    shortest: int = 2

    @property
    def vocab_size(self) -> int:
        """What a model's vocabulary must hold at least: the symbols, and a token for every class."""
        spec = LanguageSpec(self.language)
        return max(spec.vocab_size, spec.classes)

    def batch(self, seed: int, index: int, batch_size: int, length: int) -> Batch:
        spec = LanguageSpec(self.language, length, self.shortest)
        return Batch.from_labels(*make_language(rng(seed, index), batch_size, spec))
