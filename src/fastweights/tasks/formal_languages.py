"""Six formal languages, classified at every step of a word.

The languages of the Hope paper, after Irie et al. 2023, "Practical Computational Power of Linear Transformers and Their
Recurrent and Self-Referential Extensions", and Bhattamishra et al. 2020, "On the Ability and Limitations of
Transformers to Recognize Formal Languages". A row is right only if all its steps are (`rows_right`); the papers train
on lengths of 2 to 50 and test on 51 to 100 as well (`BINS`).

========  ==========================  =======  ==========  ====================================
name      words                       symbols  lengths     label of a prefix
========  ==========================  =======  ==========  ====================================
parity    an even number of ones      0 1      all         1 if it is a word, 0 otherwise
aa        (aa)*                       a        2, 4, 6...  the same
abab      (abab)*                     a b      4, 8...     the same
anbn      a^n b^n, n >= 1             a b      2, 4, 6...  the set of what may come next
anbncn    a^n b^n c^n, n >= 1         a b c    3, 6, 9...  the same
shuffle2  brackets of two kinds,      ( ) [ ]  2, 4, 6...  the same
          each balanced if the other
          kind is left out
========  ==========================  =======  ==========  ====================================

**Tokens.** The symbols are 1, 2, ... in the order of the table; 0 is padding.

**Sets.** A symbol may come next if the prefix with it begins some word, of any length; the *end* may come next if the
prefix is a word. A set is one class: the sum of 2^(i-1) over its tokens i, the end counting as the token after the last
symbol. So after a's alone the label of anbn is {a, b} = 3, after some b's {b} = 2, after as many b's {end} = 4; anbncn
knows {a, b} = 3, {b} = 2, {c} = 4 and {end} = 8, {c} from the last b on. In shuffle2 both opening brackets may always
come: {( [ end} = 21 where nothing is open, {( ) [} = 7, {( [ ]} = 13, {( ) [ ]} = 15. The papers leave the end out
there; the same four classes remain, because it may come exactly where no bracket may be closed.

**Which words.** As in the papers all rows are words of the language, whole ones, so of (aa)*, (abab)*, a^n b^n and
a^n b^n c^n there is one row a length, and what is learned is to count. The papers' distributions are spread over their
code and partly unstated, so these are decided here: lengths are drawn evenly from those in the range that the language
has; the bits of parity are drawn evenly except the last, which makes the number of ones even. In shuffle2 a bracket is
closed with probability 1/2 where one is open, and always when the rest of the row is needed for closing; the kind is
the toss of a coin where both kinds may be taken.

One row of anbn, one of parity (bits 0 1 1 0) and one of shuffle2, ``( [ ) ( ] )``::

    ids:      1  1  1  2  2  2       ids:      1  2  2  1  0  0       ids:      1  3  2  1  4  2
    labels:   3  3  3  2  2  4       labels:   1  0  1  1  .  .       labels:   7 15 13 15  7 21

Shapes: B rows, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fastweights.errors import UserError
from fastweights.tasks.labelled import IGNORE, Labelled

Language = Literal["parity", "aa", "abab", "anbn", "anbncn", "shuffle2"]

BINS = ((2, 50), (51, 100))
"""Shortest and longest rows of training and the first test, and of the test on longer rows."""

_STEP: dict[Language, int] = {"parity": 1, "aa": 2, "abab": 4, "anbn": 2, "anbncn": 3, "shuffle2": 2}
_SYMBOLS: dict[Language, int] = {"parity": 2, "aa": 1, "abab": 2, "anbn": 2, "anbncn": 3, "shuffle2": 4}


@dataclass(frozen=True)
class LanguageSpec:
    """What a row looks like.

    Attributes:
        language: Whose words.
        length: L, and the length that no word exceeds.
        shortest: Smallest length of a word.
    """

    language: Language = "parity"
    length: int = 50
    shortest: int = 2

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.language not in get_args(Language):
            raise UserError(f"language must be one of {', '.join(get_args(Language))}, not {self.language}.")
        if not 1 <= self.shortest <= self.length:
            raise UserError(f"shortest must lie in 1 to the length of {self.length}, not be {self.shortest}.")
        if not self.lengths:
            raise UserError(
                f"words of {self.language} have lengths that {_STEP[self.language]} divides, "
                f"and none lies in {self.shortest} to {self.length}."
            )

    @property
    def lengths(self) -> range:
        """The lengths of words in the range."""
        step = _STEP[self.language]
        return range(-(-self.shortest // step) * step, self.length + 1, step)

    @property
    def vocab_size(self) -> int:
        """Ids lie below: padding and the symbols."""
        return 1 + _SYMBOLS[self.language]

    @property
    def classes(self) -> int:
        """Labels lie below: 2, or the number of all sets of symbols and the end."""
        return 2 if self.language in ("parity", "aa", "abab") else 2 ** (_SYMBOLS[self.language] + 1)


def make_language(rng: np.random.Generator, rows: int, spec: LanguageSpec) -> Labelled:
    """Draw `rows` words.

    Args:
        rng: All randomness; equal generators give equal rows.
        rows: B.
        spec: What they look like.
    """
    sizes = rng.choice(np.array(spec.lengths), size=(rows, 1))
    places = np.arange(spec.length)
    if spec.language == "parity":
        ids, labels = _parity(rng, sizes, spec.length)
    elif spec.language == "shuffle2":
        ids, labels = _shuffle(rng, sizes[:, 0], spec.length)
    elif spec.language in ("anbn", "anbncn"):
        ids, labels = _blocks(sizes, spec.length, _SYMBOLS[spec.language])
    else:
        ids, labels = 1 + places % _SYMBOLS[spec.language], (places + 1) % _STEP[spec.language] == 0
    real = places < sizes
    return Labelled(np.where(real, ids, 0), np.where(real, labels, IGNORE))


def rows_right(predictions: NDArray[np.integer], labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Whether every step of a row is predicted right: bool `[B]`; its mean is the papers' accuracy.

    Args:
        predictions: `[B, L]`.
        labels: `[B, L]`; what is predicted where they are `IGNORE` does not count.
    """
    return ((predictions == labels) | (labels == IGNORE)).all(1)


def _parity(
    rng: np.random.Generator, sizes: NDArray[np.int64], length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw bits, the last of which makes the ones even, and label their prefixes: two of `[B, L]`."""
    last = np.arange(length) == sizes - 1
    bits = rng.integers(2, size=(len(sizes), length))
    odd = bits.cumsum(1) % 2
    bits = np.where(last, bits ^ odd, bits)
    return 1 + bits, np.where(last, 1, 1 - odd)


def _blocks(sizes: NDArray[np.int64], length: int, symbols: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Write each of the symbols equally often, a's first, and label the prefixes: two of `[B, L]`."""
    each = sizes // symbols
    places = np.arange(length)
    block = places // each
    # The last symbol of a block is followed by the next block's or by the end, that of the a's by another a as well.
    following = np.minimum((places + 1) // each, symbols)
    return 1 + block, np.where(block == 0, 3, 2**following)


def _shuffle(
    rng: np.random.Generator, sizes: NDArray[np.int64], length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw two kinds of brackets, each balanced, and label their prefixes: two of `[B, L]`."""
    coins = rng.random((2, len(sizes), length))
    ids, labels = np.empty((2, len(sizes), length), np.int64)
    rows = np.arange(len(sizes))
    depth = np.zeros((len(sizes), 2), np.int64)
    for place in range(length):
        open_ = depth.sum(1)
        closes = (open_ > 0) & ((coins[0, :, place] < 1 / 2) | (sizes - place <= open_))
        kind = (coins[1, :, place] < 1 / 2).astype(np.int64)
        kind = np.where(closes & (depth[rows, kind] == 0), 1 - kind, kind)
        depth[rows, kind] += np.where(closes, -1, 1)
        ids[:, place] = 1 + 2 * kind + closes
        can_close = depth > 0
        labels[:, place] = 1 + 4 + can_close @ np.array([2, 8]) + 16 * ~can_close.any(1)
    return ids, labels
