"""MQAR rows are built as the paper says; every label is the value stored last, or most often where some are wrong."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastweights.errors import UserError
from fastweights.tasks.associative_recall import MQARSpec, disputed, make_mqar
from fastweights.tasks.labelled import IGNORE, Labelled, accuracy


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


@given(
    pairs=st.integers(1, 6),
    spare=st.integers(0, 20),
    rewrites=st.booleans(),
    repeats=st.integers(1, 6),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_a_reader_who_counts_finds_every_answer_among_outliers(
    pairs: int, spare: int, rewrites: bool, repeats: int, share: float, seed: int
) -> None:
    """Values of a key are counted over its last rounds; the one that most writings carry is the answer."""
    few = (repeats - 1) // 2
    rounds = repeats * (2 if rewrites else 1)
    length = 2 * pairs * (rounds + 1) + 2 * spare
    spec = MQARSpec(length, pairs, 256, rewrites=rewrites, repeats=repeats, outliers=share * few / repeats)
    batch = make_mqar(np.random.default_rng(seed), 3, spec)
    doubted = disputed(batch, spec)
    assert spec.room >= pairs > spec.room - 1 - spare
    assert 0 <= spec.wrong <= pairs * few * rounds // repeats
    for row, label, doubt in zip(batch.ids.tolist(), batch.labels.tolist(), doubted.tolist(), strict=True):
        written = list(zip(row[0 : 2 * spec.written : 2], row[1 : 2 * spec.written : 2], strict=True))
        assert len(written) == rounds * pairs
        keys = {key for key, _ in written}
        assert all({key for key, _ in written[r * pairs : (r + 1) * pairs]} == keys for r in range(rounds))
        assert all(0 < key < 128 <= value < 256 for key, value in written)
        wrong = 0
        for key in keys:
            said = [value for name, value in written if name == key]
            for first in range(0, rounds, repeats):
                counts = Counter(said[first : first + repeats])
                truth, times = counts.most_common(1)[0]
                assert 2 * times > repeats
                assert all(number == 1 for value, number in counts.items() if value != truth)
                wrong += repeats - times
            places = [
                place for place in range(2 * spec.written, length) if label[place] != IGNORE and row[place] == key
            ]
            assert [label[place] for place in places] == [truth]
            assert [doubt[place] for place in places] == [times < repeats]
        assert wrong == spec.wrong == round(spec.outliers * len(written))
        everything = Counter(value for _, value in written)
        assert sum(everything.values()) == len(written)
        assert len(everything) == pairs * (2 if rewrites else 1) + wrong
        assert sum(doubt) <= sum(place != IGNORE for place in label) == pairs


def test_any_writing_may_be_wrong_the_last_too() -> None:
    spec = MQARSpec(128, 4, 512, repeats=5, outliers=0.2)
    ids, labels = make_mqar(np.random.default_rng(0), 2000, spec)
    answer = {
        (row, ids[row, place]): labels[row, place] for row, place in zip(*np.nonzero(labels != IGNORE), strict=True)
    }
    wrong = np.array(
        [[ids[row, place + 1] != answer[row, ids[row, place]] for place in range(0, 40, 2)] for row in range(2000)]
    )
    assert wrong.sum(1).tolist() == [4] * 2000
    np.testing.assert_allclose(wrong.reshape(2000, 5, 4).mean((0, 2)), 0.2, atol=0.02)


@pytest.mark.parametrize(
    ("spec", "digest"),
    [
        (MQARSpec(64, 4, 512), "233a933332b7c6f0"),
        (MQARSpec(64, 4, 512, rewrites=True), "cb968878186ceee5"),
        (MQARSpec(64, 4, 512, repeats=3, outliers=0.1), "0bdd232256738fdb"),
        (MQARSpec(64, 2, 512, rewrites=True, repeats=5, outliers=0.3), "269f8a8a688a670d"),
    ],
)
def test_rows_stay_what_they_were(spec: MQARSpec, digest: str) -> None:
    """Results of different versions may only be compared if they were asked the same."""
    ids, labels = make_mqar(np.random.default_rng(7), 3, spec)
    assert hashlib.sha256(ids.tobytes() + labels.tobytes()).hexdigest()[:16] == digest


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
    def batch(seed: int) -> Labelled:
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


@pytest.mark.parametrize(
    ("repeats", "outliers", "says"),
    [
        (0, 0.0, "repeats must not be 0"),
        (1, 0.1, r"most of 1 writings .* in \[0, 0\], not 0.1"),
        (2, 0.1, r"in \[0, 0\]"),
        (3, 0.34, r"in \[0, 0.333\], not 0.34"),
        (3, -0.1, "not -0.1"),
        (3, float("nan"), "not nan"),
        (4, 0.0, "5 pairs and their queries do not fit"),
    ],
)
def test_outliers_that_would_hide_the_answer_are_refused(repeats: int, outliers: float, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        MQARSpec(40, 5, 512, repeats=repeats, outliers=outliers)
    assert "\n" not in str(caught.value)


def test_accuracy_counts_labelled_positions_only() -> None:
    labels = np.array([[IGNORE, 5, 6, IGNORE]])
    assert accuracy(np.array([[5, 5, 0, 0]]), labels) == 0.5
