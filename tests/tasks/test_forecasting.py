"""Windows: as many as in the papers, none sees what it is to tell, and errors are what NumPy says they are."""

from __future__ import annotations

import numpy as np
import pytest
from tests.made_series import waves

from fastweights.data.series import PARTS, Scaled, Series, scale
from fastweights.errors import UserError
from fastweights.tasks.forecasting import (
    CONTROLS,
    HORIZONS,
    Values,
    WindowSpec,
    control,
    count_windows,
    measure,
    stream_windows,
    windows_at,
)

SMALL = WindowSpec(inputs=30, horizon=10)


def made(days: tuple[int, int, int] = (6, 4, 3), noise: float = 0.1) -> Scaled:
    return scale(Series("made", ("a", "b", "c"), waves(24 * sum(days), noise=noise), 24), days)


def test_windows_of_ett_are_as_many_as_in_the_papers() -> None:
    """8,640 hours for training, 2,880 for validation and tests each: 2,880 + 96 - 96 - H + 1 windows in these."""
    scaled = scale(Series("ETTh", ("OT",), np.zeros((17_420, 1)), 24))
    counts = {h: [count_windows(scaled, part, WindowSpec(96, h)) for part in PARTS] for h in HORIZONS}
    assert counts == {
        96: [8449, 2785, 2785],
        192: [8353, 2689, 2689],
        336: [8209, 2545, 2545],
        720: [7825, 2161, 2161],
    }


@pytest.mark.parametrize("part", PARTS)
def test_every_window_comes_once_and_in_order(part: str) -> None:
    """Checked against slices; what is told lies inside the part, what is read may begin before it."""
    scaled = made()
    rows = scaled.rows(part)  # type: ignore[arg-type]
    first = max(rows.start, SMALL.inputs)
    want = [scaled.values[at - 30 : at + 10] for at in range(first, rows.stop - 10 + 1)]
    assert len(want) == count_windows(scaled, part, SMALL)  # type: ignore[arg-type]
    for size in (7, 1000):
        found = list(stream_windows(scaled, part, SMALL, size))  # type: ignore[arg-type]
        assert max(len(windows.inputs) for windows in found) <= size
        inputs, targets = (np.concatenate(parts) for parts in zip(*found, strict=True))
        assert np.array_equal(np.concatenate([inputs, targets], 1), np.stack(want))
    drawn = windows_at(scaled, part, SMALL, np.array([3, 0]))  # type: ignore[arg-type]
    assert np.array_equal(drawn.inputs, np.stack([want[3][:30], want[0][:30]]))
    assert np.array_equal(drawn.targets, np.stack([want[3][30:], want[0][30:]]))


def test_no_part_tells_what_another_one_tells() -> None:
    days = (6, 4, 3)
    order = np.arange(24.0 * sum(days))[:, None]
    scaled = scale(Series("order", ("row",), order, 24), days)
    told = []
    for part in PARTS:
        targets = np.concatenate([w.targets for w in stream_windows(scaled, part, SMALL)])
        told.append({round(row) for row in (targets * scaled.deviation + scaled.mean).flatten().tolist()})
    assert told == [set(range(30, 144)), set(range(144, 240)), set(range(240, 312))]


def test_an_oracle_makes_no_error_and_one_that_is_off_makes_that_one() -> None:
    scaled = made()
    known = {
        inputs.tobytes(): targets
        for windows in stream_windows(scaled, "test", SMALL)
        for inputs, targets in zip(*windows, strict=True)
    }

    def oracle(inputs: Values) -> Values:
        return np.stack([known[one.tobytes()] for one in inputs])

    assert measure(oracle, scaled, "test", SMALL) == (0.0, 0.0, 63)
    off = measure(lambda inputs: oracle(inputs) - np.float32(2.0), scaled, "test", SMALL, rows=8)
    assert off == pytest.approx((4.0, 2.0, 63), rel=1e-5)


def test_errors_are_means_over_all_numbers_whatever_is_asked_at_a_time() -> None:
    scaled = made()
    found = [measure(lambda x: np.tanh(x[:, :10]), scaled, "test", SMALL, rows) for rows in (1, 10, 4096)]
    (whole,) = stream_windows(scaled, "test", SMALL, 4096)
    error = np.tanh(whole.inputs[:, :10]).astype(np.float64) - whole.targets
    for one in found:
        assert one == pytest.approx((np.mean(error**2), np.mean(np.abs(error)), 63), rel=1e-9)


@pytest.mark.parametrize("horizon", [1, 10, 24, 50])
def test_controls_are_what_numpy_says(horizon: int) -> None:
    spec = WindowSpec(30, horizon)
    inputs = np.random.default_rng(0).normal(size=(4, 30, 3)).astype(np.float32)
    want = {
        "last value": np.tile(inputs[:, -1:], (1, horizon, 1)),
        "day before": np.tile(inputs[:, -24:], (1, 3, 1))[:, :horizon],
        "mean": np.tile(np.mean(inputs, axis=1, keepdims=True), (1, horizon, 1)),
    }
    assert set(want) == set(CONTROLS)
    for name, values in want.items():
        np.testing.assert_allclose(control(name, spec, 24)(inputs), values, rtol=1e-6)


def test_who_repeats_the_day_before_knows_a_series_of_equal_days() -> None:
    scaled = made(noise=0.0)
    found = {name: measure(control(name, SMALL, 24), scaled, "test", SMALL).mse for name in CONTROLS}
    assert found["day before"] < 1e-10
    assert min(found["last value"], found["mean"]) > 0.5


def test_what_does_not_fit_is_refused() -> None:
    scaled = made()
    with pytest.raises(UserError, match="the part test has 72 rows, too few to read 30 and tell 73"):
        count_windows(scaled, "test", WindowSpec(30, 73))
    with pytest.raises(UserError, match="too few to read 140 and tell 10"):
        count_windows(scaled, "train", WindowSpec(140, 10))
    with pytest.raises(UserError, match=r"must have the shape \[63, 10, 3\]; this one has \[63, 1, 3\]"):
        measure(lambda inputs: inputs[:, :1], scaled, "test", SMALL)
    with pytest.raises(UserError, match="do not hold the 24 of a day"):
        control("day before", WindowSpec(23, 10), 24)
    with pytest.raises(UserError, match="the controls are last value, day before, mean"):
        control("median", SMALL, 24)
    with pytest.raises(UserError, match="must read and tell a row"):
        WindowSpec(0, 10)
