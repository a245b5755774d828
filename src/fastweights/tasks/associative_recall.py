"""Multi-query associative recall (MQAR): key-value pairs of integer tokens, then the keys again.

Arora et al. 2023, "Zoology: Measuring and Improving Recall in Efficient Language Models"; the construction is that of
`multiquery_ar` in HazyResearch/zoology. Its forgetting variant, where a key is given a second value, tests whether a
memory overwrites.

One row of 16 tokens with 2 pairs, vocabulary 12, without random fillers::

    ids:      2  8  4  7  0  0  4  0  0  0  0  0  2  0  0  0
    labels:   .  .  .  .  .  .  7  .  .  .  .  .  8  .  .  .

Shapes: B rows, L tokens, D pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastweights.errors import UserError

IGNORE = -100
"""Label of positions where nothing is asked."""


@dataclass(frozen=True)
class MQARSpec:
    """What a row looks like.

    Attributes:
        length: L, even.
        pairs: D, with 4·D <= L, or 6·D <= L where keys are given twice.
        vocab_size: V > L, even; keys are 1 to V/2 - 1, values V/2 to V - 1, and 0 is the filler.
        power: Exponent a of the queries' places: slot i (from 1) has weight a·i^(a-1). 0.01 asks soon after the
            pairs, 1 anywhere.
        random_fillers: Whether fillers become random tokens, as in the paper's later setting.
        rewrites: Whether every pair is followed, after all pairs, by a second one with the same key and another value,
            in another order; the second value is the answer.
    """

    length: int = 64
    pairs: int = 4
    vocab_size: int = 8192
    power: float = 0.01
    random_fillers: bool = True
    rewrites: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        written = self.pairs * (2 if self.rewrites else 1)
        if self.pairs < 1 or self.length % 2 or 2 * (written + self.pairs) > self.length:
            raise UserError(f"{self.pairs} pairs and their queries do not fit into an even length of {self.length}.")
        if self.vocab_size % 2 or self.vocab_size <= self.length:
            raise UserError(f"vocab_size must be even and more than the length, not {self.vocab_size}.")
        if self.power <= 0:
            raise UserError(f"power must be positive, not {self.power}.")


class MQARBatch(NamedTuple):
    """Rows of tokens and what is asked of them.

    Attributes:
        ids: int64 `[B, L]`.
        labels: int64 `[B, L]`: at a query's position the value to predict there, `IGNORE` elsewhere; D of them a row.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]


def make_mqar(rng: np.random.Generator, rows: int, spec: MQARSpec) -> MQARBatch:
    """Draw `rows` rows.

    Args:
        rng: All randomness; equal generators give equal rows.
        rows: B.
        spec: What they look like.
    """
    half = spec.vocab_size // 2
    keys = 1 + _distinct(rng, rows, half - 1, spec.pairs)
    count = spec.pairs * (2 if spec.rewrites else 1)
    values = half + _distinct(rng, rows, half, count)
    written = 2 * count
    ids = np.zeros((rows, spec.length), np.int64)
    if spec.rewrites:
        order = _distinct(rng, rows, spec.pairs, spec.pairs)
        ids[:, 0:written:2] = np.concatenate([keys, np.take_along_axis(keys, order, 1)], 1)
        ids[:, 1:written:2] = values
        answers = np.empty_like(keys)
        np.put_along_axis(answers, order, values[:, spec.pairs :], 1)
    else:
        ids[:, 0:written:2], ids[:, 1:written:2] = keys, values
        answers = values
    slots = (spec.length - written) // 2
    weights = spec.power * np.arange(1, slots + 1, dtype=np.float64) ** (spec.power - 1)
    places = written + 2 * _distinct(rng, rows, slots, spec.pairs, weights)
    np.put_along_axis(ids, places, keys, 1)
    labels = np.full_like(ids, IGNORE)
    np.put_along_axis(labels, places, answers, 1)
    if spec.random_fillers:
        ids = np.where(ids == 0, rng.integers(spec.vocab_size, size=ids.shape), ids)
    return MQARBatch(ids, labels)


def accuracy(predictions: NDArray[np.integer], labels: NDArray[np.integer]) -> float:
    """Return the share of labelled positions that are predicted right: 0.0 to 1.0."""
    asked = labels != IGNORE
    return float((predictions[asked] == labels[asked]).mean())


def _distinct(
    rng: np.random.Generator, rows: int, choices: int, count: int, weights: NDArray[np.floating] | None = None
) -> NDArray[np.int64]:
    """Draw `count` of `range(choices)` without replacement for every row, in random order: `[rows, count]`."""
    # The `count` smallest of independent exponential variables of rate w are a weighted draw without replacement.
    times = rng.exponential(size=(rows, choices)) / (1.0 if weights is None else weights)
    return np.argsort(times, axis=1)[:, :count]
