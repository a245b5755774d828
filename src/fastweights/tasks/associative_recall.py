"""Multi-query associative recall (MQAR): key-value pairs of integer tokens, then the keys again.

Arora et al. 2023, "Zoology: Measuring and Improving Recall in Efficient Language Models"; the construction is that of
`multiquery_ar` in HazyResearch/zoology. Its forgetting variant, where a key is given a second value, tests whether a
memory overwrites. The variant with outliers, where every pair is written several times and some of the writings carry a
wrong value, tests whether one surprise destroys what a memory holds.

One row of 16 tokens with 2 pairs, vocabulary 12, without random fillers::

    ids:      2  8  4  7  0  0  4  0  0  0  0  0  2  0  0  0
    labels:   .  .  .  .  .  .  7  .  .  .  .  .  8  .  .  .

Shapes: B rows, L tokens, D pairs, R writings of each key.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastweights.errors import UserError
from fastweights.tasks.labelled import IGNORE, Labelled


@dataclass(frozen=True)
class MQARSpec:
    """What a row looks like.

    Attributes:
        length: L, even.
        pairs: D, with 2·(R + 1)·D <= L (see `room`). R is ``repeats``, or twice that where keys are given twice.
        vocab_size: V > L, even; keys are 1 to V/2 - 1, values V/2 to V - 1, and 0 is the filler.
        power: Exponent a of the queries' places: slot i (from 1) has weight a·i^(a-1). 0.01 asks soon after the
            pairs, 1 anywhere.
        random_fillers: Whether fillers become random tokens, as in the paper's later setting.
        rewrites: Whether every pair is followed, after all pairs, by a second one with the same key and another value,
            in another order; the second value is the answer.
        repeats: How often every pair is written: rounds of all pairs, each in an order of its own. With ``rewrites``
            all rounds of the first values come before those of the second.
        outliers: Share of all R·D writings, to the nearest whole number, that carry a wrong value, one that no other
            writing of the row has. Of the ``repeats`` writings of one value fewer than half are wrong, so that the
            answer is what most of them say. They are drawn at random otherwise: the last writing may be wrong.
    """

    length: int = 64
    pairs: int = 4
    vocab_size: int = 8192
    power: float = 0.01
    random_fillers: bool = True
    rewrites: bool = False
    repeats: int = 1
    outliers: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.repeats < 1:
            raise UserError(f"every pair must be written at least once: repeats must not be {self.repeats}.")
        if self.pairs < 1 or self.length % 2 or self.pairs > self.room:
            raise UserError(f"{self.pairs} pairs and their queries do not fit into an even length of {self.length}.")
        if self.vocab_size % 2 or self.vocab_size <= self.length:
            raise UserError(f"vocab_size must be even and more than the length, not {self.vocab_size}.")
        if self.power <= 0:
            raise UserError(f"power must be positive, not {self.power}.")
        most = (self.repeats - 1) // 2 / self.repeats
        if not 0 <= self.outliers <= most:
            raise UserError(
                f"most of {self.repeats} writings of a pair must be right, "
                f"so outliers must lie in [0, {most:.3g}], not {self.outliers}."
            )

    @property
    def values(self) -> int:
        """Right values of each key: 1, or 2 with ``rewrites``."""
        return 2 if self.rewrites else 1

    @property
    def written(self) -> int:
        """R·D, the writings in front of the questions, two tokens each."""
        return self.values * self.repeats * self.pairs

    @property
    def wrong(self) -> int:
        """How many of them carry a wrong value."""
        return round(self.outliers * self.written)

    @property
    def room(self) -> int:
        """The largest D for this length."""
        return self.length // (2 * (self.values * self.repeats + 1))


def make_mqar(rng: np.random.Generator, rows: int, spec: MQARSpec) -> Labelled:
    """Draw `rows` rows.

    Args:
        rng: All randomness; equal generators give equal rows.
        rows: B.
        spec: What they look like.
    """
    half, pairs = spec.vocab_size // 2, spec.pairs
    keys = 1 + _distinct(rng, rows, half - 1, pairs)
    values = half + _distinct(rng, rows, half, spec.values * pairs + spec.wrong)
    first = np.broadcast_to(np.arange(pairs), (rows, pairs))
    order = np.stack([first] + [_distinct(rng, rows, pairs, pairs) for _ in range(spec.written // pairs - 1)], 1)
    answers = values[:, :pairs]
    stored = [answers] * spec.repeats
    if spec.rewrites:
        answers = np.empty_like(keys)
        np.put_along_axis(answers, order[:, spec.repeats], values[:, pairs : 2 * pairs], 1)
        stored += [answers] * spec.repeats
    said = np.concatenate(stored, 1)
    if spec.wrong:
        np.put_along_axis(said, _wrong(rng, rows, spec), values[:, spec.values * pairs :], 1)
    written = 2 * spec.written
    ids = np.zeros((rows, spec.length), np.int64)
    ids[:, 0:written:2] = np.take_along_axis(keys[:, None], order, 2).reshape(rows, -1)
    ids[:, 1:written:2] = np.take_along_axis(said.reshape(order.shape), order, 2).reshape(rows, -1)
    slots = (spec.length - written) // 2
    weights = spec.power * np.arange(1, slots + 1, dtype=np.float64) ** (spec.power - 1)
    places = written + 2 * _distinct(rng, rows, slots, spec.pairs, weights)
    np.put_along_axis(ids, places, keys, 1)
    labels = np.full_like(ids, IGNORE)
    np.put_along_axis(labels, places, answers, 1)
    if spec.random_fillers:
        ids = np.where(ids == 0, rng.integers(spec.vocab_size, size=ids.shape), ids)
    return Labelled(ids, labels)


def disputed(batch: Labelled, spec: MQARSpec) -> NDArray[np.bool_]:
    """The questions about values that some writing got wrong: bool `[B, L]`.

    A memory that believes the last writing is right on all others, and on those wherever the last writing is.

    Args:
        batch: Of `make_mqar`.
        spec: What it was made with.
    """
    last = spec.repeats * spec.pairs
    written = batch.ids[:, 2 * (spec.written - last) : 2 * spec.written].reshape(-1, last, 2)
    rows, places = np.nonzero(batch.labels != IGNORE)
    same = written[rows, :, 0] == batch.ids[rows, places, None]
    wrong = written[rows, :, 1] != batch.labels[rows, places, None]
    found = np.zeros(batch.labels.shape, np.bool_)
    found[rows, places] = (same & wrong).any(1)
    return found


def _distinct(
    rng: np.random.Generator, rows: int, choices: int, count: int, weights: NDArray[np.floating] | None = None
) -> NDArray[np.int64]:
    """Draw `count` of `range(choices)` without replacement for every row, in random order: `[rows, count]`."""
    # The `count` smallest of independent exponential variables of rate w are a weighted draw without replacement.
    times = rng.exponential(size=(rows, choices)) / (1.0 if weights is None else weights)
    return np.argsort(times, axis=1)[:, :count]


def _wrong(rng: np.random.Generator, rows: int, spec: MQARSpec) -> NDArray[np.int64]:
    """Draw which writings are wrong, as indices into (value, repeat, pair): `[rows, spec.wrong]`."""
    drawn = rng.random((rows, spec.values, spec.repeats, spec.pairs))
    # Only the first few of a value's writings, in a random order, may be wrong: fewer than half of them.
    barred = drawn.argsort(2).argsort(2) >= (spec.repeats - 1) // 2
    return np.argsort((drawn + barred).reshape(rows, -1), axis=1)[:, : spec.wrong]
