"""Forecasting: what follows a window of a time series.

A window is so many rows that are read and, right after them, the rows of the horizon that are to be told. Errors are
means over all windows of a part, all steps of the horizon and all variables, on scaled values. As everybody does it
(Zhou et al. 2021), what is told lies inside the part, while what the first windows of a part read reaches back into
the part before: a part of R rows has R - H + 1 windows. The part for training has nothing before it, and I fewer.

Shapes: B windows, I rows read, H rows of the horizon, C variables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fastweights.data.series import Part, Scaled
from fastweights.errors import UserError

Values = NDArray[np.float32]

Forecast = Callable[[Values], Values]
"""Tells `[B, H, C]` after `[B, I, C]`."""

HORIZONS = (96, 192, 336, 720)
"""Those that papers report."""

CONTROLS = ("last value", "day before", "mean")
"""Forecasts that learn nothing; see `control`."""


@dataclass(frozen=True)
class WindowSpec:
    """Sizes of a window.

    Attributes:
        inputs: I, rows that are read.
        horizon: H, rows that are told.

    Raises:
        UserError: Sizes below 1.
    """

    inputs: int = 96
    horizon: int = 96

    def __post_init__(self) -> None:
        if self.inputs < 1 or self.horizon < 1:
            raise UserError(f"a window must read and tell a row at least, not {self.inputs} and {self.horizon}")


class Windows(NamedTuple):
    """Windows side by side.

    Attributes:
        inputs: float32 `[B, I, C]`.
        targets: float32 `[B, H, C]`, the rows right after.
    """

    inputs: Values
    targets: Values


class Errors(NamedTuple):
    """How far a forecast is from what came.

    Attributes:
        mse: Mean of the squared errors.
        mae: Mean of the absolute errors.
        windows: That were counted.
    """

    mse: float
    mae: float
    windows: int


def count_windows(scaled: Scaled, part: Part, spec: WindowSpec) -> int:
    """The number of windows of a part, one for every row from which one can begin.

    Raises:
        UserError: The part has none.
    """
    return len(_all_windows(scaled, part, spec))


def windows_at(scaled: Scaled, part: Part, spec: WindowSpec, places: NDArray[np.integer]) -> Windows:
    """The windows of given numbers, from 0, in the order of time.

    Raises:
        UserError: The part has none.
    """
    return _cut(_all_windows(scaled, part, spec)[places], spec)


def stream_windows(scaled: Scaled, part: Part, spec: WindowSpec, rows: int = 256) -> Iterator[Windows]:
    """Yield every window of a part once, in the order of time, up to ``rows`` at a time.

    Raises:
        UserError: The part has none.
    """
    views = _all_windows(scaled, part, spec)
    for start in range(0, len(views), rows):
        yield _cut(views[start : start + rows], spec)


def measure(forecast: Forecast, scaled: Scaled, part: Part, spec: WindowSpec, rows: int = 256) -> Errors:
    """Ask for a forecast of every window of a part.

    Args:
        forecast: Sees what a window reads and nothing else.
        scaled: The series.
        part: Whose windows.
        spec: Their sizes.
        rows: Windows that are asked for at a time.

    Raises:
        UserError: The part has no window, or the forecast has another shape than what came.
    """
    squared = absolute = 0.0
    windows = numbers = 0
    for inputs, targets in stream_windows(scaled, part, spec, rows):
        told = forecast(inputs)
        if told.shape != targets.shape:
            raise UserError(f"a forecast must have the shape {list(targets.shape)}; this one has {list(told.shape)}")
        error = told.astype(np.float64) - targets
        squared += float((error**2).sum())
        absolute += float(np.abs(error).sum())
        windows, numbers = windows + len(targets), numbers + targets.size
    return Errors(squared / numbers, absolute / numbers, windows)


def control(name: str, spec: WindowSpec, per_day: int) -> Forecast:
    """A forecast that learns nothing.

    Args:
        name: Of `CONTROLS`: the last row read, again and again; the last day read, again and again; the mean of all
            rows read.
        spec: Sizes of the windows.
        per_day: Rows of a day.

    Raises:
        UserError: No such control, or the windows do not read a day.
    """
    if name == "last value":
        return partial(repeat_last, rows=1, horizon=spec.horizon)
    if name == "day before":
        if spec.inputs < per_day:
            raise UserError(
                f"windows that read {spec.inputs} rows do not hold the {per_day} of a day: they must read more"
            )
        return partial(repeat_last, rows=per_day, horizon=spec.horizon)
    if name == "mean":
        return partial(repeat_mean, horizon=spec.horizon)
    raise UserError(f"the controls are {', '.join(CONTROLS)}, not {name!r}")


def repeat_last(inputs: Values, rows: int, horizon: int) -> Values:
    """The last rows that were read, again and again; as many were read at least."""
    return inputs[:, -rows:][:, np.arange(horizon) % rows]


def repeat_mean(inputs: Values, horizon: int) -> Values:
    """The mean of the rows that were read, again and again."""
    return inputs.mean(1, keepdims=True).repeat(horizon, 1)


def _all_windows(scaled: Scaled, part: Part, spec: WindowSpec) -> Values:
    """All windows of a part as one view, `[number, C, I + H]`."""
    rows = scaled.rows(part)
    start = max(0, rows.start - spec.inputs)
    length = spec.inputs + spec.horizon
    if rows.stop - start < length:
        raise UserError(
            f"the part {part} has {len(rows):,} rows, too few to read {spec.inputs} and tell {spec.horizon}: "
            f"shorten the windows or give a longer series"
        )
    return sliding_window_view(scaled.values[start : rows.stop], length, axis=0)


def _cut(views: Values, spec: WindowSpec) -> Windows:
    whole = views.swapaxes(1, 2).copy()
    return Windows(whole[:, : spec.inputs], whole[:, spec.inputs :])
