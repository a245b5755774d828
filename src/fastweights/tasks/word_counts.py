"""Aggregation tasks of RULER: which words of a long list come most often (`cwe`), and which of a coded text (`fwe`).

Strings and parameters are those of `common_words_extraction.py`, `freq_words_extraction.py` and `constants.py` of
NVIDIA/RULER. What differs:

- RULER's list is made of nouns, adjectives and verbs of the package wonderwords (and of a longer list of English words
  where those are too few). Ours is made of the nouns and adjectives of `data.words`, which are wonderwords' single
  words, and of `adjective-noun` pairs where those are too few.
- RULER shuffles every sample of a set in the same order; ours are shuffled each on its own.
- A coded text always has a clear answer: the third of the words asked for comes more often than every later one.

Both lists are held in memory.
"""

from __future__ import annotations

import math
import random
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastweights.data.words import adjectives, nouns
from fastweights.errors import UserError
from fastweights.tasks.ruler_sample import Passages, Request, RulerTask, Sample

_LIST_INTRO = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n"
)
_LIST_QUESTION = "\nQuestion: What are the 10 most common words in the above list?"
_LIST_PREFIX = " Answer: The top 10 words that appear most often in the list are:"
_COMMON = 10
_FEWEST_WORDS = 11  # different ones in a list: the common ones and another
_ATTEMPTS = 16  # as in RULER, other words are drawn where the first ones are too long
_ENTRY_TOKENS = 3  # at least: number, dot and word
_SHORT = 4096  # below it, lists and examples are smaller ones

_CODED_INTRO = (
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words."
)
_CODED_QUESTION = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text?"
)
_CODED_PREFIX = " Answer: According to the coded text above, the three most frequently appeared words are:"
_DOTS = "..."
_LETTERS = 6
_ASKED = 3
_LARGEST_ALPHA = 10  # the smallest text has a million words then

_PASSAGE = 64  # words in a passage


class _Times(NamedTuple):
    """How often the common words and all others stand in a list."""

    common: int
    other: int

    def entries(self, words: int) -> int:
        return self.common * _COMMON + self.other * (words - _COMMON)


class _Draft(NamedTuple):
    """All of a sample but the length of its list; a list of the first 11, 12, ... words takes `costs` tokens."""

    rng: random.Random
    head: str
    used: int
    words: Sequence[str]
    times: _Times
    costs: NDArray[np.int64]


@dataclass(frozen=True)
class CommonWords(RulerTask):
    """RULER's `cwe`: the ten most common words of a numbered list, after a worked example of a shorter one.

    Attributes:
        common_times: How often each of the ten stands in the list, from 4,096 tokens on; below that, RULER has 6.
        other_times: The same for every other word; below 4,096 tokens, RULER has 1.
    """

    common_times: int = 30
    other_times: int = 3

    max_new_tokens: ClassVar[int] = 120

    def __post_init__(self) -> None:
        """Refuse what has no answer."""
        if not 0 < self.other_times < self.common_times:
            raise UserError(
                "common words must stand in the list more often than others, and those at least once, "
                f"not {self.common_times} and {self.other_times} times."
            )

    def draw(self, request: Request) -> Sample:
        """See the base class."""
        least = []
        for attempt in range(_ATTEMPTS):
            draft = self._draft(request, attempt)
            room = request.tokens - draft.used
            if room >= draft.costs[0]:
                words = draft.words[: _FEWEST_WORDS - 1 + int(np.searchsorted(draft.costs, room, "right"))]
                items = _numbered(_shuffled(draft.rng, words, draft.times))
                return Sample(
                    task=request.name,
                    index=request.index,
                    context=Passages(partial(_passages, draft.head, items)),
                    question=_LIST_QUESTION,
                    answer_prefix=_LIST_PREFIX,
                    references=tuple(words[:_COMMON]),
                    max_new_tokens=self.max_new_tokens,
                )
            least.append(draft.used + int(draft.costs[0]))
        raise request.refusal(min(least))

    def _draft(self, request: Request, attempt: int) -> _Draft:
        rng, for_example = (request.rng(f"{purpose} {attempt}") for purpose in ("words", "example"))
        if request.tokens < _SHORT:
            example = _example(for_example, 20, _Times(3, 1))
            times = _Times(6, 1)
        else:
            example = _example(for_example, 40, _Times(10, 3))
            times = _Times(self.common_times, self.other_times)
        head = example + _LIST_INTRO
        used = request.count(head, _LIST_QUESTION + _LIST_PREFIX) + self.max_new_tokens
        words = [*_single_words()]
        rng.shuffle(words)
        most = max(_FEWEST_WORDS, request.tokens // (_ENTRY_TOKENS * times.other))
        costs = _list_costs(request, words[:most], times)
        if most > len(words) and request.tokens - used >= costs[-1]:
            words = _pairs(rng, most)
            costs = _list_costs(request, words, times)
        return _Draft(rng, head, used, words, times, costs)


@cache
def _single_words() -> tuple[str, ...]:
    return tuple(sorted({*nouns(), *adjectives()}))


def _pairs(rng: random.Random, count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[f"{rng.choice(adjectives())}-{rng.choice(nouns())}"] = None
    return list(found)


def _example(rng: random.Random, count: int, times: _Times) -> str:
    words = rng.sample(_single_words(), count)
    items = _numbered(_shuffled(rng, words, times))
    answer = " ".join(_numbered(words[:_COMMON]))
    return f"{_LIST_INTRO}{' '.join(items)}{_LIST_QUESTION}{_LIST_PREFIX} {answer}\n"


def _shuffled(rng: random.Random, words: Sequence[str], times: _Times) -> list[str]:
    """Write the first ten words and all others as often as `times` says, in random order."""
    written = [*words[:_COMMON]] * times.common + [*words[_COMMON:]] * times.other
    rng.shuffle(written)
    return written


def _numbered(words: Sequence[str]) -> list[str]:
    return [f"{number}. {word}" for number, word in enumerate(words, start=1)]


def _list_costs(request: Request, words: Sequence[str], times: _Times) -> NDArray[np.int64]:
    """Tokens of a list of the first 11, 12, ... of ``words``: no token reaches over white space, so lengths add up."""
    size = np.array([len(ids) for ids in request.tokenizer.encode_many([f" {word}" for word in words])])
    longest = times.entries(len(words))
    numbers = request.tokenizer.encode_many([f" {number}." for number in range(1, longest + 1)])
    of_numbers = np.cumsum([len(ids) for ids in numbers])
    of_words = times.common * size[:_COMMON].sum() + times.other * np.cumsum(size[_COMMON:])
    entries = times.entries(_COMMON + 1) + times.other * np.arange(len(words) - _COMMON)
    return (of_words + of_numbers[entries - 1])[_FEWEST_WORDS - _COMMON - 1 :]


@dataclass(frozen=True)
class FrequentWords(RulerTask):
    """RULER's `fwe`: the three most frequent words of a text in code, whose most frequent one, dots, is to be ignored.

    Attributes:
        alpha: Of the zeta distribution: the word of rank r, from 1, has a share proportional to r to the power -alpha.
    """

    alpha: float = 2.0

    max_new_tokens: ClassVar[int] = 50

    def __post_init__(self) -> None:
        """Refuse what is no distribution."""
        if not 1 < self.alpha <= _LARGEST_ALPHA:
            raise UserError(f"alpha must be above 1 and at most {_LARGEST_ALPHA}, not {self.alpha}.")

    def draw(self, request: Request) -> Sample:
        """See the base class."""
        used = request.count(_CODED_INTRO, _CODED_QUESTION + _CODED_PREFIX) + self.max_new_tokens
        vocabulary = max(_ASKED + 1, (request.tokens - self.max_new_tokens) // 50)
        rng = request.rng("words")
        words = [_DOTS, *islice(_coded(rng), vocabulary - 1)]
        size = np.array([len(ids) for ids in request.tokenizer.encode_many([f" {word}" for word in words])])
        ranks = range(1, vocabulary + 1)
        total = _zeta(self.alpha)
        shares = np.array([1 / (rank**self.alpha * total) for rank in ranks])

        def cost(text: int) -> int:
            return int((size * _times(shares, text)).sum())

        # In the smallest text the third of the words stands once, and no later one does.
        least = math.ceil((_ASKED + 1) ** self.alpha * total)
        room = request.room(used, cost(least))
        low, high = least, least + 1
        while cost(high) <= room:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if cost(middle) <= room else (low, middle)
        times = next(found for text in range(low, least - 1, -1) if _is_clear(found := _times(shares, text)))
        written = [word for word, count in zip(words, times.tolist(), strict=True) for _ in range(count)]
        rng.shuffle(written)
        return Sample(
            task=request.name,
            index=request.index,
            context=Passages(partial(_passages, _CODED_INTRO + " ", written)),
            question=_CODED_QUESTION,
            answer_prefix=_CODED_PREFIX,
            references=tuple(words[1 : _ASKED + 1]),
            max_new_tokens=self.max_new_tokens,
        )


def _coded(rng: random.Random) -> Iterator[str]:
    """Yield distinct words of six random letters, without end."""
    seen: set[str] = set()
    while True:
        word = "".join(rng.choice(string.ascii_lowercase) for _ in range(_LETTERS))
        if word not in seen:
            seen.add(word)
            yield word


def _times(shares: NDArray[np.float64], text: int) -> NDArray[np.int64]:
    """How often each word stands in a text of a nominal number of words; the rare ones' fractions are cut off."""
    return (text * shares).astype(np.int64)


def _is_clear(times: NDArray[np.int64]) -> bool:
    later = times[_ASKED + 1 :]
    return not later.size or bool(times[_ASKED] > later[0])


def _zeta(alpha: float) -> float:
    """Riemann's zeta function above 1: a thousand terms and the integral of the rest (Euler and Maclaurin)."""
    last = 1000.0
    rest = last ** (1 - alpha) * (1 / (alpha - 1) - 1 / (2 * last) + alpha / (12 * last**2))
    return math.fsum(rank**-alpha for rank in range(1, 1001)) + rest


def _passages(head: str, words: Sequence[str]) -> Iterator[str]:
    """Yield the words with spaces between them, a handful at a time, after what stands in front of them."""
    yield head
    for start in range(0, len(words), _PASSAGE):
        yield (" " if start else "") + " ".join(words[start : start + _PASSAGE])
