"""Time series: read as they stand, cut as everybody cuts them, scaled by what training may know."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from tests.made_series import waves, write_series

from fastweights.data.series import ETT_DAYS, PARTS, Series, read_series, scale
from fastweights.errors import UserError

HEAD = "date,HUFL,OT\n"
ROWS = "2016-07-01 00:00:00,1.5,-2\n2016-07-01 01:00:00,2.5,3e1\n"


def test_a_table_is_read_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "ETTh9.csv").write_text(HEAD + ROWS)
    series = read_series(tmp_path / "ETTh9.csv")
    assert (series.name, series.columns, series.per_day) == ("ETTh9", ("HUFL", "OT"), 24)
    assert series.values.tolist() == [[1.5, -2.0], [2.5, 30.0]]
    (tmp_path / "ETTh9.csv.gz").write_bytes(gzip.compress((HEAD + ROWS).replace("\n", "\r\n").encode()))
    again = read_series(tmp_path / "ETTh9.csv.gz")
    assert again.name == "ETTh9"
    assert np.array_equal(again.values, series.values)


@pytest.mark.parametrize("per_day", [24, 96])
def test_numbers_survive_and_the_step_is_found(per_day: int, tmp_path: Path) -> None:
    values = waves(200, per_day)
    series = read_series(write_series(tmp_path / "made.csv", values, per_day))
    assert np.array_equal(series.values, values)
    assert series.per_day == per_day


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a,b\n1,2\n", "first line must be 'date'"),
        ("date\n2016-07-01\n", "first line must be 'date'"),
        (HEAD + ROWS + "2016-07-01 02:00:00,1\n", "row 3 of .* must be a date without a time zone and 2 finite"),
        (HEAD + ROWS + "2016-07-01 02:00:00,1,\n", "row 3 of .* 2 finite numbers"),
        (HEAD + ROWS + "2016-07-01 02:00:00,1,nan\n", "row 3 of .* 2 finite numbers"),
        (HEAD + ROWS + "tomorrow,1,2\n", "row 3 of .* must be a date"),
        (HEAD + ROWS + "2016-07-01 02:00:00+02:00,1,2\n", "without a time zone"),
        (HEAD + ROWS + "2016-07-01 03:00:00,1,2\n", "row 3 of .* is of 2016-07-01 03:00:00, not 1:00:00 after"),
        (HEAD + "2016-07-01 00:00:00,1,2\n", "needs rows at even steps"),
        (HEAD + "2016-07-01 00:00:00,1,2\n2016-07-01 07:00:00,1,2\n", "its first step is 7:00:00"),
        (HEAD + "2016-07-01 01:00:00,1,2\n2016-07-01 00:00:00,1,2\n", "needs rows at even steps"),
        (HEAD, "holds no rows"),
    ],
)
def test_other_tables_are_refused(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(UserError, match=says):
        read_series(tmp_path / "a.csv")


@pytest.mark.parametrize(("per_day", "ends"), [(24, (8640, 11_520, 14_400)), (96, (34_560, 46_080, 57_600))])
def test_parts_of_ett_are_those_of_the_papers(per_day: int, ends: tuple[int, int, int]) -> None:
    """8,640, 2,880 and 2,880 hours of 17,420; of quarters of an hour four times as many."""
    rows = 17_420 * per_day // 24
    scaled = scale(Series("ETT", ("OT",), np.arange(rows, dtype=np.float64)[:, None], per_day))
    assert ETT_DAYS == (360, 120, 120)
    assert scaled.ends == ends
    assert [(part.start, part.stop) for part in map(scaled.rows, PARTS)] == [
        (0, ends[0]),
        (ends[0], ends[1]),
        (ends[1], ends[2]),
    ]
    assert scaled.values.shape == (ends[2], 1)


def test_scales_are_of_the_part_for_training_alone() -> None:
    values = waves(24 * 10)
    scaled = scale(Series("made", ("a", "b", "c"), values, 24), (5, 2, 3))
    train = values[: 24 * 5]
    np.testing.assert_allclose(scaled.mean, np.mean(train, axis=0))
    np.testing.assert_allclose(scaled.deviation, np.sqrt(np.mean((train - train.mean(0)) ** 2, axis=0)))
    np.testing.assert_allclose(scaled.values, (values - scaled.mean) / scaled.deviation, rtol=1e-5, atol=1e-6)
    other = values.copy()
    other[24 * 5 :] *= 1000.0
    again = scale(Series("made", ("a", "b", "c"), other, 24), (5, 2, 3))
    assert np.array_equal(again.values[: 24 * 5], scaled.values[: 24 * 5])
    assert np.array_equal(again.mean, scaled.mean)


def test_a_column_that_never_changes_is_moved_and_not_stretched() -> None:
    # The mean of 48 times 0.1 is rounded, so that the deviation from it is not 0.
    values = np.full((96, 2), (7.0, 0.1))
    values[72:] += 1.0
    scaled = scale(Series("made", ("a", "b"), values, 24), (2, 1, 1))
    assert scaled.deviation.tolist() == [1.0, 1.0]
    np.testing.assert_allclose(scaled.values, values - (7.0, 0.1), atol=1e-6)


def test_parts_that_cannot_be_are_refused() -> None:
    series = Series("made", ("a",), np.zeros((95, 1)), 24)
    with pytest.raises(UserError, match="'made' has 95 rows, too few for parts of 2, 1, 1 days: it must have 96"):
        scale(series, (2, 1, 1))
    with pytest.raises(UserError, match="must have a day at least"):
        scale(series, (2, 0, 1))
