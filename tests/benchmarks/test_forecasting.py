"""The table of forecasts: cells survive whatever ends the command, controls are rows, and it says what cells hold."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from benchmarks.forecasting import Cell, learner, numbers, render, settings
from tests.made_series import waves, write_series

from fastweights.data.series import read_series, scale
from fastweights.errors import UserError
from fastweights.evaluate.cells import CellFile
from fastweights.tasks.forecasting import CONTROLS, WindowSpec, control, measure

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "forecasting.py"
DAYS = (6, 5, 5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A series of 16 days."""
    return write_series(tmp_path / "made.csv", waves(24 * sum(DAYS)))


def command(path: Path, *words: str) -> list[str]:
    given = ("--days", *map(str, DAYS), "--epochs", "1", "--out", str(path.parent / "table.json"))
    return [sys.executable, str(SCRIPT), str(path), *given, *words]


def cells(path: Path) -> list[dict[str, Any]]:
    file = path.parent / "table.json"
    return json.loads(file.read_text(encoding="utf-8"))["cells"] if file.is_file() else []


def made(contender: str, horizon: int, mse: float, seed: int = 0, **other: Any) -> dict[str, Any]:
    """A cell as the command writes it."""
    cell = {"series": "ETTh1", "contender": contender, "horizon": horizon, "seed": seed, "rule": learner(contender)}
    cell |= {"minutes": 15.0, "sha256": "abc", "mse": mse, "mae": mse / 2, "capped": False, "stopped": ""}
    cell |= {"parameters": 0 if contender in CONTROLS else 1000 * horizon, "date": "2026-11-26"}
    return cell | {"machine": {"cores": 2}, "versions": {"torch": "2.13.0"}} | other


def row(table: str, name: str) -> list[str]:
    """The first row of a name."""
    line = next(line for line in table.splitlines() if line.startswith(f"| `{name}`"))
    return [entry.strip() for entry in line.strip("|").split("|")][1:]


def test_killed_after_some_cells_the_command_goes_on_with_the_others(path: Path) -> None:
    words = command(path, "--horizons", "8", "--rules", "gated_deltanet")
    with subprocess.Popen(words, stderr=subprocess.PIPE, start_new_session=True) as process:
        while not cells(path) and process.poll() is None:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    first = cells(path)
    assert first[0]["contender"] == "last value"
    table = path.parent / "table.md"
    done = subprocess.run([*words, "--render", str(table)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "last value" not in done.stderr
    found = {cell["contender"]: cell for cell in cells(path)}
    assert found["last value"] == first[0]
    assert set(found) == {*CONTROLS, "gated_deltanet"}
    spec = WindowSpec(96, 8)
    scaled = scale(read_series(path), DAYS)
    for name in CONTROLS:
        want = measure(control(name, spec, 24), scaled, "test", spec)
        assert (found[name]["mse"], found[name]["mae"], found[name]["windows"]) == want
    learned = found["gated_deltanet"]
    # 144 rows hold 41 windows, 2 batches of 32 and fewer.
    assert (learned["steps"], learned["windows"], learned["capped"], learned["best"]) == (2, 113, False, 1)
    assert f"{found['day before']['mse']:.3f}" in row(table.read_text(encoding="utf-8"), "day before")[1]
    again = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert (again.returncode, again.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--rules", "titan"), "there is no rule 'titan'; there is titans"),
        (("--days", "6", "5", "6"), "'made' has 384 rows, too few for parts of 6, 5, 6 days"),
        (("--horizons", "96,x"), "invalid numbers value: '96,x'"),
        (("--horizons", "9000"), "too few to read 96 and tell 9000"),
    ],
)
def test_what_cannot_be_is_one_sentence(words: tuple[str, ...], says: str, path: Path) -> None:
    done = subprocess.run(command(path, *words), capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert cells(path) == []


def test_a_cell_is_measured_again_for_other_numbers_another_rule_or_more_minutes(tmp_path: Path) -> None:
    results, cell = opened(tmp_path), Cell("ETTh1", "titans", 96, 0)

    def missing(held: str = "abc", minutes: float = 15.0, **other: Any) -> bool:
        results.add(cell, made("titans", 96, 0.5, **other))
        return opened(tmp_path).is_missing(cell, minutes, {"rule": learner("titans"), "sha256": held})

    assert results.is_missing(cell, 15.0, {})
    assert not missing()
    assert missing(held="def")
    assert not missing(minutes=30.0)
    assert missing(minutes=30.0, capped=True)
    assert not missing(capped=True)
    assert missing(rule=learner("deltanet"))
    assert missing(refused="no such model")
    assert not missing()
    assert results.is_missing(cell._replace(seed=1), 15.0, {})
    for days, epochs in ((DAYS, 11), ((6, 5, 4), 10)):
        with pytest.raises(UserError, match="were measured with other settings"):
            opened(tmp_path, days, epochs)


def opened(folder: Path, days: tuple[int, ...] = DAYS, epochs: int = 10) -> CellFile:
    return CellFile(folder / "table.json", settings(days, epochs), Cell._fields)


def test_controls_and_rules_are_rows_and_the_mean_is_over_all_horizons() -> None:
    table = render(
        [
            made("titans", 96, 0.4),
            made("titans", 192, 0.6, capped=True),
            made("day before", 96, 0.5),
            made("day before", 192, 0.58),
            made("gated_deltanet", 96, 0.38),
            made("mean", 96, 0.7, series="ETTh2"),
        ]
    )
    assert "|  | parameters | 96 | 192 | mean |" in table
    assert row(table, "day before") == ["", "0.500", "**0.580**", "0.540"]
    assert row(table, "titans") == ["96,000 to 192,000", "0.400", "0.600 †", "**0.500 †**"]
    assert row(table, "gated_deltanet") == ["96,000", "**0.380**", "", ""]
    assert row(table.split("absolute errors")[1], "day before") == ["", "0.250", "**0.290**", "0.270"]
    assert [line for line in table.splitlines() if line.startswith("## ")] == [
        "## ETTh1, squared errors",
        "## ETTh1, absolute errors",
        "## ETTh2, squared errors",
        "## ETTh2, absolute errors",
    ]
    names = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert names[:3] == ["day before", "titans", "gated_deltanet"]


def test_seeds_are_shown_by_their_spread_and_a_wide_one_makes_a_tie() -> None:
    wide = [made("titans", 96, mse, seed) for seed, mse in enumerate((0.4, 0.6, 0.45))]
    narrow = [made("deltanet", 96, mse, seed) for seed, mse in enumerate((0.50, 0.51, 0.52))]
    refused = made("memora", 96, 0.0, refused="no network is so wide")
    table = render([*wide, *narrow, made("mean", 96, 0.7), refused])
    assert row(table, "titans")[1:] == ["**0.400 / 0.450 / 0.600**"] * 2
    assert row(table, "deltanet")[1:] == ["**0.500 / 0.510 / 0.520**"] * 2
    assert row(table, "mean")[1:] == ["0.700"] * 2
    assert "`memora` could not be built: no network is so wide." in table


def test_what_is_given() -> None:
    assert numbers("96,720") == [96, 720]
    assert json.loads(json.dumps(settings(DAYS, 3))) == settings(DAYS, 3)
    with pytest.raises((ValueError, argparse.ArgumentTypeError)):
        numbers("96,")
