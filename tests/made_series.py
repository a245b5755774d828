"""Tables of time series in the layout of ETT, made up."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np


def waves(rows: int, per_day: int = 24, columns: int = 3, noise: float = 0.1) -> np.ndarray:
    """Columns that repeat every day, on levels of their own; `[R, C]`."""
    rng = np.random.default_rng(0)
    time = 2 * np.pi * np.arange(rows)[:, None] / per_day
    return np.sin(time + np.arange(columns)) + 5.0 * np.arange(columns) + noise * rng.normal(size=(rows, columns))


def write_series(path: Path, values: np.ndarray, per_day: int = 24) -> Path:
    """Write a table from midnight on; returns the path."""
    begin, step = datetime(2016, 7, 1), timedelta(days=1) / per_day
    lines = [",".join(["date", *(f"V{column}" for column in range(values.shape[1]))])]
    lines += [",".join([str(begin + row * step), *map(repr, numbers)]) for row, numbers in enumerate(values.tolist())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
