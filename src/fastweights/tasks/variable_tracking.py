"""Variable tracking of RULER: a chain of assignments, scattered in noise, has to be followed to its end.

Strings and parameters are those of `variable_tracking.py` and `constants.py` of NVIDIA/RULER. Three things differ: the
worked example is drawn anew for every sample where RULER puts new names into one, values of chains are distinct, and of
several chains every one is spread over the whole noise.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise, repeat
from typing import ClassVar, NamedTuple

from fastweights.errors import UserError
from fastweights.tasks.haystack import NOISE_LINE
from fastweights.tasks.ruler_sample import Line, Passages, Request, RulerTask, Sample, draw_places, with_lines

_INTRO = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
_QUESTION = "\nQuestion: Find all variables that are assigned the value {value} in the text above."
_ANSWER_PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {count} variables are assigned the "
    "value {value}, they are: "
)
_LETTERS = 5
_EXAMPLE_LETTERS = 3
_EXAMPLE_HOPS = 10  # at most
_MOST_NAMES = 10_000  # three letters make 17,576


class _Puzzle(NamedTuple):
    """Chains of assignments and the question about the first of them."""

    chains: Sequence[Sequence[str]]
    names: tuple[str, ...]
    question: str
    answer_prefix: str

    @property
    def lines(self) -> list[str]:
        return list(chain.from_iterable(self.chains))


@dataclass(frozen=True)
class VariableTracking(RulerTask):
    """RULER's `vt`: which variables have been assigned this value, directly or through others?

    Attributes:
        chains: Chains hidden; the first one is asked for.
        hops: Assignments of a chain after the first, so that `hops + 1` variables have its value.
        example_tokens: The prompt begins with a worked example of at most this many tokens, though never of fewer
            lines than a chain has; 0 for none.
    """

    chains: int = 1
    hops: int = 4
    example_tokens: int = 500

    max_new_tokens: ClassVar[int] = 30

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.chains < 1 or self.hops < 1 or self.example_tokens < 0:
            raise UserError(
                "variable tracking needs at least one chain of one hop and an example of no negative length, "
                f"not {self.chains} chains of {self.hops} hops and {self.example_tokens} tokens."
            )
        if self.chains * (self.hops + 1) > _MOST_NAMES:
            raise UserError(f"{self.chains} chains of {self.hops} hops need more than {_MOST_NAMES} names.")

    def draw(self, request: Request) -> Sample:
        """See the base class; the noise is never held."""
        rng = request.rng("chains")
        puzzle = _puzzle(rng, self.chains, self.hops, _LETTERS)
        head = self._example(request, puzzle) + _INTRO
        used = _fixed_tokens(request, head, puzzle) + self.max_new_tokens
        noise = request.count("\n" + NOISE_LINE)
        count = request.room(used, (self.hops + 1) * noise) // noise
        inserted = _placed(rng, puzzle.chains, count)
        places = {line.text: line.place for line in inserted}
        return Sample(
            task=request.name,
            index=request.index,
            context=Passages(partial(_context, head, count, inserted)),
            question=puzzle.question,
            answer_prefix=puzzle.answer_prefix,
            references=puzzle.names,
            max_new_tokens=self.max_new_tokens,
            depths=tuple(100 * places[text] / count for text in puzzle.chains[0]),
        )

    def _example(self, request: Request, asked: _Puzzle) -> str:
        if not self.example_tokens:
            return ""
        rng = request.rng("example")
        hops = min(self.hops, _EXAMPLE_HOPS)
        puzzle = _puzzle(rng, self.chains, hops, _EXAMPLE_LETTERS)
        while puzzle.question == asked.question:
            puzzle = _puzzle(rng, self.chains, hops, _EXAMPLE_LETTERS)
        room = self.example_tokens - _fixed_tokens(request, _INTRO, puzzle)
        count = max(hops + 1, room // request.count("\n" + NOISE_LINE))
        text = "".join(_context(_INTRO, count, _placed(rng, puzzle.chains, count)))
        return f"{text}{puzzle.question}{puzzle.answer_prefix} {' '.join(puzzle.names)}\n\n"


def _puzzle(rng: random.Random, chains: int, hops: int, letters: int) -> _Puzzle:
    each = hops + 1
    names: dict[str, None] = {}
    while len(names) < chains * each:
        names["".join(rng.choice(string.ascii_uppercase) for _ in range(letters))] = None
    values = rng.sample(range(10_000, 99_999), chains)
    ordered = list(names)
    written = []
    for number, value in enumerate(values):
        own = ordered[number * each : (number + 1) * each]
        # The space at the end of every assignment but the first is RULER's.
        written.append([f"VAR {own[0]} = {value}", *(f"VAR {b} = VAR {a} " for a, b in pairwise(own))])
    return _Puzzle(
        chains=written,
        names=tuple(ordered[:each]),
        question=_QUESTION.format(value=values[0]),
        answer_prefix=_ANSWER_PREFIX.format(count=each, value=values[0]),
    )


def _placed(rng: random.Random, chains: Sequence[Sequence[str]], count: int) -> list[Line]:
    """Give every line of every chain its place among `count` lines of noise, each chain in its order."""
    placed = [
        Line(place, text)
        for texts in chains
        for place, text in zip(draw_places(rng, count, len(texts)), texts, strict=True)
    ]
    return sorted(placed, key=lambda line: line.place)


def _context(head: str, count: int, inserted: Sequence[Line]) -> Iterator[str]:
    yield head
    yield from with_lines(repeat(NOISE_LINE, count), inserted)


def _fixed_tokens(request: Request, head: str, puzzle: _Puzzle) -> int:
    """Tokens of everything but the noise, each of whose lines counts with a line end."""
    # One line, the first, has no line end of its own.
    lines = request.count(*("\n" + text for text in puzzle.lines)) - request.count("\n")
    return request.count(head, puzzle.question + puzzle.answer_prefix) + lines
