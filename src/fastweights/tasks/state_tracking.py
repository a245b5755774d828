"""State tracking: tasks whose answer depends on every token read, in order.

Word problems of finite groups (Merrill et al. 2024, "The Illusion of State in State-Space Models", after
jopetty/word-problem; S3, S4, A5 and S5 as in DeltaProduct), parity, and arithmetic modulo 5 with and without brackets
(as in xLSTM and Grazzi et al. 2024, "Unlocking State-Tracking in Linear RNNs").

**Word problems.** A row holds group elements, each drawn evenly from all of them. The label at every position is the
product of all elements so far: acc starts as the identity and becomes acc · x, x standing on the *right*. Elements are
numbered from 0, the identity:

* S_n: permutations p of 0 to n-1 in lexicographic order of (p(0), ..., p(n-1)). In a · b, a acts first:
  (a · b)(i) = b(a(i)). The original's side may differ; the task is the same, as every group equals its mirror image.
* A_n: the even ones of these, in the same order.
* Z_n: residues; a · b = a + b mod n.
* A4xZ5: (a, r) is 5·a + r.

Every prefix of a row is itself a row of the task, so training on all lengths up to k, as the original does, needs no
shorter rows. One row of S3, 5 long::

    ids:      1  2  0  4  5
    labels:   1  3  3  0  5

**Parity.** Bits 0 and 1 are the tokens 1 and 2; 0 is padding. The label is the token of the parity of all bits so far,
2 where the number of ones is odd, asked at every position or (xLSTM) at the last bit alone::

    ids:      2  1  2  2  0  0
    every:    2  2  1  2  .  .
    last:     .  .  .  2  .  .

**Arithmetic.** An expression and ``=``, where its value modulo 5 is asked. Tokens: 0 is padding, 1 to 4 are
``+ - * =``, 5 to 9 the digits 0 to 4, 10 and 11 the brackets. Grammar, with ``*`` before ``+`` and ``-``::

    E -> F | - F | E op F        op -> + | - | *        F -> digit | ( E )

where F is only a digit in rows without brackets; there a row has a sign in front if and only if its length, ``=``
included, is odd. The row of ``-3+2*4=``, whose value is 0::

    ids:      2  8  1  7  3  9  4  0
    labels:   .  .  .  .  .  .  5  .

Shapes: B rows, L tokens, G elements of a group, n things permuted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations, permutations
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fastweights.errors import UserError
from fastweights.tasks.labelled import IGNORE, Labelled

Group = Literal["S3", "S4", "A5", "S5", "Z60", "A4xZ5"]
"""Of order 6, 24, 60, 120, 60, 60. A5 and S5 are not solvable."""

SYMBOLS = " +-*=01234()"
"""The arithmetic tokens in the order of their numbers; the blank is padding."""

_PLUS, _MINUS, _TIMES, _EQUALS, _ZERO, _OPEN, _CLOSE = (SYMBOLS.index(symbol) for symbol in "+-*=0()")
_MODULUS = 5


@dataclass(frozen=True)
class WordProblemSpec:
    """What a row of group elements looks like.

    Attributes:
        group: Whose elements.
        length: L.
    """

    group: Group = "S5"
    length: int = 64

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.group not in get_args(Group):
            raise UserError(f"group must be one of {', '.join(get_args(Group))}, not {self.group}.")
        if self.length < 1:
            raise UserError(f"a word has at least one element: length must not be {self.length}.")

    @property
    def vocab_size(self) -> int:
        """G, the order of the group: ids and labels lie below."""
        return len(group_table(self.group))


@dataclass(frozen=True)
class ParitySpec:
    """What a row of bits looks like.

    Attributes:
        length: L, and the largest number of bits.
        shortest: Smallest number of bits. Each row's is drawn evenly from those between.
        asked: At every bit, or at a row's last bit.
    """

    length: int = 40
    shortest: int = 3
    asked: Literal["every", "last"] = "every"

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if not 1 <= self.shortest <= self.length:
            raise UserError(f"shortest must lie in 1 to the length of {self.length}, not be {self.shortest}.")
        if self.asked not in ("every", "last"):
            raise UserError(f"parity can be asked at every bit or at the last, not at {self.asked}.")

    @property
    def vocab_size(self) -> int:
        """3: padding and two bits."""
        return 3


@dataclass(frozen=True)
class ArithmeticSpec:
    """What a row of arithmetic looks like.

    Where several kinds of token can go on to an expression of the row's length, a sign is written with probability 1/4
    at the start of an (inner) expression, an operand is otherwise one in brackets with probability 1/3, and behind an
    operand a bracket is closed with probability 1/3. Digits and operators are drawn evenly.

    Attributes:
        length: L, and the largest length of expression and ``=`` together.
        shortest: Smallest such length, >= 2. Each row's is drawn evenly from those between.
        brackets: Whether operands may be expressions in brackets.
    """

    length: int = 40
    shortest: int = 3
    brackets: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if not 2 <= self.shortest <= self.length:
            raise UserError(f"shortest must lie in 2 to the length of {self.length}, not be {self.shortest}.")

    @property
    def vocab_size(self) -> int:
        """10, or 12 with brackets."""
        return len(SYMBOLS) if self.brackets else SYMBOLS.index("(")


def make_word_problem(rng: np.random.Generator, rows: int, spec: WordProblemSpec) -> Labelled:
    """Draw `rows` words and their running products.

    Args:
        rng: All randomness; equal generators give equal rows.
        rows: B.
        spec: What they look like.
    """
    table = group_table(spec.group)
    ids = rng.integers(len(table), size=(rows, spec.length))
    labels = np.empty_like(ids)
    product = np.zeros(rows, np.int64)
    for place in range(spec.length):
        product = table[product, ids[:, place]]
        labels[:, place] = product
    return Labelled(ids, labels)


def make_parity(rng: np.random.Generator, rows: int, spec: ParitySpec) -> Labelled:
    """Draw `rows` rows of even bits and their parities; the arguments are those of `make_word_problem`."""
    sizes = rng.integers(spec.shortest, spec.length + 1, size=(rows, 1))
    bits = rng.integers(2, size=(rows, spec.length))
    places = np.arange(spec.length)
    asked = places < sizes if spec.asked == "every" else places == sizes - 1
    ids = np.where(places < sizes, 1 + bits, 0)
    return Labelled(ids, np.where(asked, 1 + bits.cumsum(1) % 2, IGNORE))


def make_arithmetic(rng: np.random.Generator, rows: int, spec: ArithmeticSpec) -> Labelled:
    """Draw `rows` expressions and their values; the arguments are those of `make_word_problem`."""
    sizes = rng.integers(spec.shortest, spec.length + 1, size=rows) - 1
    ids = _expressions(rng, sizes, spec)
    answers = _ZERO + _values(ids)
    ids[np.arange(rows), sizes] = _EQUALS
    return Labelled(ids, np.where(ids == _EQUALS, answers[:, None], IGNORE))


def scaled_accuracy(accuracy: float, classes: int) -> float:
    """Return an accuracy on a scale where 0 is an even guess among `classes` and 1 is all right."""
    return (accuracy - 1 / classes) / (1 - 1 / classes)


@cache
def group_table(group: Group) -> NDArray[np.int64]:
    """The products of a group: int64 `[G, G]`, read-only; ``table[a, b]`` is a · b.

    Args:
        group: Its elements are numbered as the module says.
    """
    table = np.zeros((1, 1), np.int64)
    for factor in group.split("x"):
        right = _cyclic(int(factor[1:])) if factor[0] == "Z" else _permutations(int(factor[1:]), factor[0] == "A")
        size = len(table) * len(right)
        # [a, 1, b, 1] with [1, r, 1, s]: the pair (a, r) times the pair (b, s).
        table = (table[:, None, :, None] * len(right) + right[:, None, :]).reshape(size, size)
    table.flags.writeable = False
    return table


def _cyclic(order: int) -> NDArray[np.int64]:
    """Sums of residues: `[G, G]`."""
    residues = np.arange(order)
    return (residues[:, None] + residues) % order


def _permutations(n: int, even: bool) -> NDArray[np.int64]:
    """Products of the permutations of n things, or of the even ones: `[G, G]`."""
    chosen = [p for p in permutations(range(n)) if not (even and _inversions(p) % 2)]
    images = np.array(chosen, np.int64)
    # Read as numbers of base n, permutations in lexicographic order ascend.
    weights = n ** np.arange(n - 1, -1, -1)
    products = images[:, images]  # [b, a, i] = b(a(i))
    return np.searchsorted(images @ weights, products @ weights).T.astype(np.int64)


def _inversions(p: tuple[int, ...]) -> int:
    """How many pairs of things a permutation puts out of order."""
    return sum(first > second for first, second in combinations(p, 2))


def _expressions(rng: np.random.Generator, sizes: NDArray[np.int64], spec: ArithmeticSpec) -> NDArray[np.int64]:
    """Draw an expression of exactly `sizes[b]` tokens for every row, padded: `[B, L]`."""
    shape = (len(sizes), spec.length)
    chance = rng.random((2, *shape))
    digits = _ZERO + rng.integers(_MODULUS, size=shape)
    operators = rng.choice([_PLUS, _MINUS, _TIMES], size=shape)
    # By how many tokens are left when those that close the open brackets are set aside: what may come as an operand.
    # An operand leaves an operator and another operand, or nothing; an operand is 1, 3 or more tokens long.
    spare = np.arange(spec.length + 1)
    if spec.brackets:
        digit_fits, open_fits, sign_fits = (spare != 2) & (spare != 4), spare >= 3, (spare >= 2) & (spare != 3)
    else:
        digit_fits, open_fits, sign_fits = spare % 2 == 1, spare < 0, spare % 2 == 0
    ids = np.zeros(shape, np.int64)
    depth = np.zeros(len(sizes), np.int64)
    starts = np.ones(len(sizes), np.bool_)
    operand = starts.copy()
    for place in range(int(sizes.max(initial=0))):
        written = place < sizes
        left = np.where(written, sizes - place - depth, 0)
        sign = starts & sign_fits[left] & ((chance[0, :, place] < 1 / 4) | ~(digit_fits[left] | open_fits[left]))
        opens = operand & ~sign & open_fits[left] & ((chance[1, :, place] < 1 / 3) | ~digit_fits[left])
        closes = ~operand & (depth > 0) & ((chance[0, :, place] < 1 / 3) | (left == 0))
        token = np.where(operand, digits[:, place], operators[:, place])
        for which, bracket_or_sign in ((sign, _MINUS), (opens, _OPEN), (closes, _CLOSE)):
            token = np.where(which, bracket_or_sign, token)
        ids[:, place] = np.where(written, token, 0)
        depth += np.where(written, opens.astype(np.int64) - closes, 0)
        starts = opens
        operand = sign | opens | (~operand & ~closes)
    return ids


def _values(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Values of expressions modulo 5: `[B]`.

    Every open bracket has a sum of finished terms and the term at hand, which carries its own sign.
    """
    rows = np.arange(len(ids))
    deepest = int((ids == _OPEN).sum(1).max(initial=0)) + 1
    total, term = np.zeros((len(ids), deepest), np.int64), np.ones((len(ids), deepest), np.int64)
    depth = np.zeros(len(ids), np.int64)
    starts = np.ones(len(ids), np.bool_)
    for token in ids.T:
        adds = (token == _PLUS) | (token == _MINUS)
        # A sign at the start of an expression ends no term.
        total[rows, depth] += np.where(adds & ~starts, term[rows, depth], 0)
        term[rows, depth] = np.where(adds, np.where(token == _MINUS, -1, 1), term[rows, depth])
        opens, closes = token == _OPEN, token == _CLOSE
        inner = total[rows, depth] + term[rows, depth]
        depth = depth + opens - closes
        total[rows, depth] = np.where(opens, 0, total[rows, depth])
        term[rows, depth] = np.where(opens, 1, term[rows, depth])
        digit = (token >= _ZERO) & (token < _ZERO + _MODULUS)
        factor = np.where(digit, token - _ZERO, np.where(closes, inner, 1))
        term[rows, depth] = term[rows, depth] * factor % _MODULUS
        starts = opens
    return (total[:, 0] + term[:, 0]) % _MODULUS
