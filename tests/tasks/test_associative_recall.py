"""MQAR rows are built as the paper says, and every label is the value that was stored last."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastweights.errors import UserError
from fastweights.tasks.associative_recall import IGNORE, MQARBatch, MQARSpec, accuracy, make_mqar


@given(
    pairs=st.integers(1, 6),
    spare=st.integers(0, 20),
    power=st.sampled_from([0.01, 1.0]),
    fillers=st.booleans(),
    rewrites=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_an_independent_reader_finds_every_answer(
    pairs: int, spare: int, power: float, fillers: bool, rewrites: bool, seed: int
) -> None:
    written = 2 * pairs * (2 if rewrites else 1)
    length = written + 2 * pairs + 2 * spare
    spec = MQARSpec(length, pairs, 128, power, fillers, rewrites)
    ids, labels = make_mqar(np.random.default_rng(seed), 3, spec)
    assert ids.shape == labels.shape == (3, length)
    assert ids.dtype == labels.dtype == np.int64
    for row, label in zip(ids.tolist(), labels.tolist(), strict=True):
        stored = dict(zip(row[0:written:2], row[1:written:2], strict=True))
        places = [place for place in range(length) if label[place] != IGNORE]
        assert len(places) == len(stored) == pairs
        assert all(0 < key < 64 for key in stored)
        assert len(set(row[1:written:2])) == written // 2
        assert all(64 <= value < 128 for value in row[1:written:2])
        assert all(place >= written and place % 2 == 0 for place in places)
        assert [label[place] for place in places] == [stored[row[place]] for place in places]
        assert {row[place] for place in places} == set(stored)
        rest = [row[place] for place in range(written, length) if place not in places]
        assert fillers or set(rest) <= {0}


def test_a_small_power_asks_soon_and_a_power_of_one_anywhere() -> None:
    def mean_place(power: float) -> float:
        batch = make_mqar(np.random.default_rng(0), 400, MQARSpec(256, 4, 512, power))
        return float(np.nonzero(batch.labels != IGNORE)[1].mean())

    assert mean_place(1.0) == pytest.approx(8 + 2 * 61.5, abs=6)
    assert mean_place(0.01) < 60


def test_query_places_are_drawn_as_numpy_draws_them() -> None:
    """The published code draws slots with `choice(p=..., replace=False)`: the same distribution, slot by slot."""
    spec = MQARSpec(24, 2, 64)
    batch = make_mqar(np.random.default_rng(0), 20_000, spec)
    slots = (np.nonzero(batch.labels != IGNORE)[1] - 4) // 2
    weights = np.arange(1, 11) ** (0.01 - 1)
    rng = np.random.default_rng(1)
    drawn = [rng.choice(10, 2, replace=False, p=weights / weights.sum()) for _ in range(10_000)]
    expected = np.bincount(np.concatenate(drawn), minlength=10) / 20_000
    np.testing.assert_allclose(np.bincount(slots, minlength=10) / 40_000, expected, atol=0.012)


def test_equal_generators_give_equal_rows() -> None:
    def batch(seed: int) -> MQARBatch:
        return make_mqar(np.random.default_rng(seed), 2, MQARSpec())

    assert batch(1).ids.tolist() == batch(1).ids.tolist() != batch(2).ids.tolist()


@pytest.mark.parametrize(
    ("length", "pairs", "vocab_size", "power", "rewrites"),
    [
        (15, 3, 512, 1.0, False),
        (14, 4, 512, 1.0, False),
        (64, 0, 512, 1.0, False),
        (64, 4, 64, 1.0, False),
        (64, 4, 513, 1.0, False),
        (64, 4, 512, 0.0, False),
        (64, 11, 512, 1.0, True),
    ],
)
def test_what_cannot_be_built_is_refused(
    length: int, pairs: int, vocab_size: int, power: float, rewrites: bool
) -> None:
    with pytest.raises(UserError, match=r"\.$"):
        MQARSpec(length, pairs, vocab_size, power, rewrites=rewrites)


def test_accuracy_counts_labelled_positions_only() -> None:
    labels = np.array([[IGNORE, 5, 6, IGNORE]])
    assert accuracy(np.array([[5, 5, 0, 0]]), labels) == 0.5
