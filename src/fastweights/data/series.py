"""Time series as tables: a column of dates, then columns of numbers, at even steps.

ETT (Zhou et al. 2021, "Informer", arXiv 2012.07436; CC BY-ND 4.0) is the files ``ETTh1.csv``, ``ETTh2.csv`` (17,420
hours), ``ETTm1.csv`` and ``ETTm2.csv`` (69,680 quarters of an hour) of zhouhaoyi/ETDataset: six loads of a transformer
and the temperature of its oil. They are not shipped with the package.

Shapes: R rows, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from fastweights.data.lines import read_rows
from fastweights.errors import UserError

Part = Literal["train", "valid", "test"]

PARTS: tuple[Part, ...] = get_args(Part)
"""In the order of time."""

ETT_DAYS = (360, 120, 120)
"""Days of the parts of ETT as everybody cuts it: 12, 4 and 4 months of 30 days; what comes after is never used."""


class Series(NamedTuple):
    """A time series.

    Attributes:
        name: Of the file, without what comes after the first dot.
        columns: Names of the variables.
        values: float64 `[R, C]`, finite.
        per_day: Rows of a day: 24 of hours, 96 of quarters of an hour.
    """

    name: str
    columns: tuple[str, ...]
    values: NDArray[np.float64]
    per_day: int


class Scaled(NamedTuple):
    """A series in parts that follow one another, every column scaled by what the part for training holds of it.

    Attributes:
        values: float32 `[R, C]`, all parts: less the mean, over the deviation.
        ends: Row behind the last one of each of `PARTS`.
        mean: float64 `[C]`.
        deviation: float64 `[C]`, over R; 1 where a column never changes.
        per_day: Rows of a day.
    """

    values: NDArray[np.float32]
    ends: tuple[int, int, int]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    per_day: int

    def rows(self, part: Part) -> range:
        """The rows of a part."""
        number = PARTS.index(part)
        return range(self.ends[number - 1] if number else 0, self.ends[number])


def read_series(path: str | Path) -> Series:
    """Read a table whose first column is ``date``, as those of ETT; all of it is held in memory.

    Args:
        path: A CSV file, plain or compressed.

    Raises:
        UserError: It cannot be read, is another table, has a gap, or a row that is not a date and finite numbers.
    """
    rows = read_rows(path)
    titles = next(rows, [])
    if len(titles) < 2 or titles[0] != "date":
        raise UserError(f"'{path}' is not a time series: its first line must be 'date' and the names of its columns")
    dates: list[datetime] = []
    values: list[NDArray[np.float64]] = []
    for number, row in enumerate(rows, start=1):
        date, numbers = _parsed(row, len(titles), f"row {number} of '{path}'")
        dates.append(date)
        values.append(numbers)
    if not values:
        raise UserError(f"'{path}' holds no rows below its titles")
    return Series(Path(path).name.split(".")[0], tuple(titles[1:]), np.stack(values), _per_day(dates, path))


def scale(series: Series, days: tuple[int, int, int] = ETT_DAYS) -> Scaled:
    """Cut a series into parts and scale it by the first one.

    Args:
        series: Of `read_series`.
        days: Of each of `PARTS`, from the first row on.

    Raises:
        UserError: A part would have no day, or the series is too short.
    """
    if min(days) < 1:
        raise UserError(f"every part of a series must have a day at least; days cannot be {days}")
    train, valid, test = np.cumsum([count * series.per_day for count in days]).tolist()
    if len(series.values) < test:
        raise UserError(
            f"'{series.name}' has {len(series.values):,} rows, too few for parts of {', '.join(map(str, days))} days: "
            f"it must have {test:,}"
        )
    seen = series.values[:train]
    mean, deviation = seen.mean(0), seen.std(0)
    deviation[seen.max(0) == seen.min(0)] = 1.0
    values = ((series.values[:test] - mean) / deviation).astype(np.float32)
    return Scaled(values, (train, valid, test), mean, deviation, series.per_day)


def _parsed(row: Sequence[str], cells: int, where: str) -> tuple[datetime, NDArray[np.float64]]:
    try:
        date, numbers = datetime.fromisoformat(row[0]), [float(cell) for cell in row[1:]]
    except ValueError:
        date, numbers = datetime.min, []
    if len(numbers) != cells - 1 or date.tzinfo is not None or not all(map(math.isfinite, numbers)):
        raise UserError(f"{where} must be a date without a time zone and {cells - 1} finite numbers")
    return date, np.array(numbers)


def _per_day(dates: Sequence[datetime], path: str | Path) -> int:
    step = dates[1] - dates[0] if len(dates) > 1 else timedelta()
    if step <= timedelta() or timedelta(days=1) % step:
        raise UserError(f"'{path}' needs rows at even steps that fill a day, such as hours; its first step is {step}")
    for number, date in enumerate(dates):
        if date != dates[0] + number * step:
            raise UserError(f"row {number + 1} of '{path}' is of {date}, not {step} after the one before")
    return timedelta(days=1) // step
