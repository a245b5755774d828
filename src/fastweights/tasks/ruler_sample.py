"""What every task of RULER has in common: a sample, what it is drawn from, and documents made of lines."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from fastweights.data.text import Source
from fastweights.data.tokenizer import Tokenizer
from fastweights.errors import UserError


@dataclass(frozen=True)
class Passages:
    """A text in passages that are made anew whenever it is iterated over, so that nobody has to hold it.

    Attributes:
        make: Returns the passages from the first one on, always the same ones.
    """

    make: Callable[[], Iterator[str]]

    def __iter__(self) -> Iterator[str]:
        return self.make()


@dataclass(frozen=True)
class Sample:
    """One prompt and what is right.

    The prompt is the context, the question and the answer prefix, joined without anything between them; the model
    continues the answer prefix.

    Attributes:
        task: Name of the task.
        index: Which sample of the task it is.
        context: Everything before the question, in passages; may be iterated over again and again.
        question: What is asked, its line end in front included.
        answer_prefix: How the answer begins: the end of the prompt.
        references: What the answer must contain, for `string_match_all`.
        max_new_tokens: How many tokens of answer RULER allows.
        depths: Of the sentence that gives each reference: the share of the haystack in front of it, in percent. Empty
            where there is no such sentence.
    """

    task: str
    index: int
    context: Passages
    question: str
    answer_prefix: str
    references: tuple[str, ...]
    max_new_tokens: int
    depths: tuple[float, ...] = ()

    def passages(self) -> Iterator[str]:
        """Yield the whole prompt, question and answer prefix as its last passage."""
        yield from self.context
        yield self.question + self.answer_prefix

    def prompt(self) -> str:
        """Return the whole prompt as one string; for a long one, prefer `passages`."""
        return "".join(self.passages())

    def length(self, tokenizer: Tokenizer) -> int:
        """Return what RULER calls a sample's length: tokens of the prompt and of the longest answer allowed."""
        return sum(len(ids) for ids in tokenizer.encode_stream(self.passages())) + self.max_new_tokens


@dataclass(frozen=True)
class Request:
    """What a sample is drawn for.

    Attributes:
        name: Name of the task.
        tokenizer: Counts the tokens.
        tokens: Most tokens of prompt and answer.
        seed: Of the set of samples.
        index: Of the sample in it.
        sources: Text to hide needles in; none for the shipped novels.
    """

    name: str
    tokenizer: Tokenizer
    tokens: int
    seed: int
    index: int
    sources: Sequence[Source] = ()

    def rng(self, purpose: str) -> random.Random:
        """Return randomness of its own for one purpose, so that drawing more for one changes no other."""
        return random.Random(f"ruler {self.name} {self.seed}/{self.index} {purpose}")

    def count(self, *texts: str) -> int:
        """Return the tokens of some texts, each on its own."""
        return sum(len(ids) for ids in self.tokenizer.encode_many(texts))

    def room(self, used: int, least: int) -> int:
        """Return the tokens that are left for what has no fixed length.

        Args:
            used: Tokens that are spoken for.
            least: How many must be left.

        Raises:
            UserError: Fewer are left.
        """
        if self.tokens < used + least:
            raise self.refusal(used + least)
        return self.tokens - used

    def refusal(self, least: int) -> UserError:
        """Return the error that says that `tokens` are too few and `least` would do."""
        return UserError(f"{self.tokens} tokens are too few for sample {self.index} of {self.name}: give it {least}.")


class RulerTask(ABC):
    """A task with its parameters; the concrete ones are frozen dataclasses."""

    max_new_tokens: ClassVar[int]
    """RULER's `tokens_to_generate`."""

    @abstractmethod
    def draw(self, request: Request) -> Sample:
        """Draw a sample of at most `request.tokens` tokens; equal requests give equal samples.

        Raises:
            UserError: Not even the smallest sample fits.
        """


class Line(NamedTuple):
    """A line that is put between the lines of a haystack.

    Attributes:
        place: How many of the haystack's lines stand in front of it.
        text: Without a line end.
    """

    place: int
    text: str


def draw_places(rng: random.Random, lines: int, count: int) -> list[int]:
    """Draw RULER's places for `count` lines among `lines` of a haystack: distinct, sorted, never after the last."""
    return sorted(rng.sample(range(lines), count))


def with_lines(haystack: Iterable[str], inserted: Iterable[Line]) -> Iterator[str]:
    """Yield a haystack's lines and, each in front of its own, the inserted ones; line ends stand between all of them.

    Args:
        haystack: Lines.
        inserted: Sorted by place; each place is smaller than the number of lines.
    """
    waiting = iter(inserted)
    due = next(waiting, None)
    end = ""
    for number, line in enumerate(haystack):
        while due is not None and due.place == number:
            yield end + due.text
            end = "\n"
            due = next(waiting, None)
        yield end + line
        end = "\n"
