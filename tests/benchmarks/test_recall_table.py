"""The table of recall: cells survive whatever ends the command, and the table says what they hold."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from benchmarks.recall_table import BEGIN, END, Cell, into_page, overview, render

from fastweights.errors import UserError
from fastweights.evaluate.cells import CellFile, rule_of
from fastweights.train.trial import trial_settings

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "recall_table.py"
POINTS = ("64x4", "128x8", "256x16", "256x32")


def command(folder: Path, *words: str) -> list[str]:
    given = ("--out", str(folder / "table.json"), "--tasks", "mqar", "--steps", "2")
    return [sys.executable, str(SCRIPT), *given, *words]


def cells(folder: Path) -> list[dict[str, Any]]:
    file = folder / "table.json"
    return json.loads(file.read_text(encoding="utf-8"))["cells"] if file.is_file() else []


def made(preset: str, seed: int = 0, right: float = 0.9, training: float = 0.9, **other: Any) -> dict[str, Any]:
    """A cell as the command writes it."""
    cell = {"preset": preset, "task": "mqar", "seed": seed, "equal_state": 0, "rule": rule_of("deltanet")}
    cell |= {"minutes": 3.0, "capped": False, "stopped": "", "tier": "delta", "parameters": 160_000}
    cell |= {"state_bytes": 6416, "training": training, "accuracy": dict.fromkeys(POINTS, right), "disputed": {}}
    cell |= {"asked": {"accuracy": 4096, "disputed": 0}, "date": "2026-11-26"}
    return cell | {"machine": {"processor": "x", "cores": 2}, "versions": {"torch": "2.13.0"}} | other


def row(table: str, preset: str) -> str:
    """The first row of a preset."""
    return next(line for line in table.splitlines() if line.startswith(f"| `{preset}`"))


def test_killed_after_the_first_cell_the_command_goes_on_with_the_second(tmp_path: Path) -> None:
    words = command(tmp_path, "--presets", "deltanet,linear_attention")
    with subprocess.Popen(words, stderr=subprocess.PIPE, start_new_session=True) as process:
        while not cells(tmp_path) and process.poll() is None:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    first = cells(tmp_path)
    assert [cell["preset"] for cell in first] == ["deltanet"]
    table = tmp_path / "table.md"
    done = subprocess.run([*words, "--render", str(table)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "[1/1] linear_attention, mqar, seed 0" in done.stderr
    both = cells(tmp_path)
    assert both[0] == first[0]
    assert [(cell["preset"], cell["steps"], cell["capped"]) for cell in both] == [
        ("deltanet", 2, False),
        ("linear_attention", 2, False),
    ]
    assert abs(both[0]["parameters"] - both[1]["parameters"]) <= 0.02 * 160_000
    assert "did not learn" in row(table.read_text(encoding="utf-8"), "deltanet")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["table.json", "table.md"]


def test_interrupted_the_command_ends_at_once_and_without_a_traceback(tmp_path: Path) -> None:
    words = command(tmp_path, "--presets", "deltanet")
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        assert said == "[1/1] deltanet, mqar, seed 0\n"
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stderr.read()
    assert (process.returncode, rest) == (1, "stopped; every cell that was done is kept\n")
    assert cells(tmp_path) == []


def test_a_rule_that_fits_into_no_model_is_a_cell_with_the_reason(tmp_path: Path) -> None:
    words = command(tmp_path, "--presets", "titans", "--equal-state", "100", "--render", str(tmp_path / "table.md"))
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (cell,) = cells(tmp_path)
    assert "has a state of 100 bytes" in cell["refused"]
    assert opened(tmp_path / "table.json").is_missing(Cell("titans", "mqar", 0, 100), 3.0, {})
    assert "`titans` could not be built: no model of" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_a_cell_is_measured_again_for_another_rule_or_for_more_minutes(tmp_path: Path) -> None:
    results = opened(tmp_path / "new" / "table.json")
    cell, facts = Cell("deltanet", "mqar", 0, 0), {"rule": rule_of("deltanet")}
    assert results.is_missing(cell, 3.0, facts)
    results.add(cell, made("deltanet"))
    again = opened(results.path)
    assert not again.is_missing(cell, 30.0, facts)
    assert again.is_missing(Cell("deltanet", "mqar", 1, 0), 3.0, facts)
    again.add(cell, made("deltanet", capped=True))
    assert not again.is_missing(cell, 3.0, facts)
    assert again.is_missing(cell, 4.0, facts)
    again.add(cell, made("deltanet", rule=rule_of("titans")))
    assert again.is_missing(cell, 3.0, facts)
    assert len(json.loads(results.path.read_text(encoding="utf-8"))["cells"]) == 1


def test_cells_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    opened(tmp_path / "table.json").add(Cell("deltanet", "mqar", 0, 0), made("deltanet"))
    with pytest.raises(UserError, match="steps was 2 and is now 3"):
        opened(tmp_path / "table.json", 3)


def opened(path: Path, steps: int = 2) -> CellFile:
    return CellFile(path, trial_settings(steps), Cell._fields)


def test_what_ties_with_the_best_is_bold() -> None:
    table = render([made("titans", right=0.912), made("deltanet", right=0.905), made("gated_deltanet", right=0.88)])
    assert row(table, "titans") == "| `titans` | delta | 160,000 | 6,416 | **91.2** |"
    assert row(table, "deltanet").endswith("| **90.5** |")
    assert row(table, "gated_deltanet").endswith("| 88.0 |")
    assert [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")][:3] == [
        "titans",
        "deltanet",
        "gated_deltanet",
    ]


def test_seeds_are_shown_by_their_spread_and_a_wide_one_makes_a_tie() -> None:
    wide = [made("titans", seed, right) for seed, right in enumerate((0.70, 0.95, 0.90))]
    narrow = [made("deltanet", seed, right) for seed, right in enumerate((0.80, 0.81, 0.82))]
    table = render([*wide, *narrow])
    assert row(table, "titans").endswith("| **70.0 / 90.0 / 95.0** |")
    assert row(table, "deltanet").endswith("| **80.0 / 81.0 / 82.0** |")


def test_what_did_not_learn_is_marked_and_out_of_the_comparison() -> None:
    seeds = [made("deltanet", seed, 0.99, training) for seed, training in enumerate((0.4, 0.49, 0.9))]
    table = render([*seeds, made("titans", right=0.7, capped=True)])
    assert row(table, "deltanet").endswith("| did not learn (99.0 / 99.0 / 99.0) |")
    assert row(table, "titans").endswith("| **70.0 †** |")


def test_each_size_of_memory_has_tables_of_its_own() -> None:
    table = render([made("titans"), made("deltanet", equal_state=50_000), made("mine", equal_state=50_000)])
    usual, _, equal = table.partition("## With a memory of 50,000 bytes\n")
    assert "`titans`" in usual
    assert "`deltanet`" not in usual
    assert "`titans`" not in equal
    assert equal.index("`deltanet`") < equal.index("`mine`")


def test_the_overview_has_the_means_of_every_size_and_nothing_by_length() -> None:
    found = [made("titans"), made("deltanet", equal_state=50_000)]
    assert "64x4 | 128x8" in render(found)
    assert "64x4 | 128x8" not in overview(found)
    assert [line.split("`")[1] for line in overview(found).splitlines() if line.startswith("| `")] == [
        "titans",
        "deltanet",
    ]
    assert "## With a memory of 50,000 bytes" in overview(found)


def test_a_page_holds_the_newest_table_and_loses_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n", encoding="utf-8")
    into_page(page, "new\n")
    into_page(page, "newer\n")
    assert page.read_text(encoding="utf-8") == f"above\n{BEGIN}\n\nnewer\n\n{END}\nbelow\n"
    page.write_text("no place", encoding="utf-8")
    with pytest.raises(UserError, match="has no place for the table"):
        into_page(page, "new\n")
    assert page.read_text(encoding="utf-8") == "no place"
    with pytest.raises(UserError, match="cannot read the page"):
        into_page(tmp_path / "absent.md", "new\n")


def test_the_documentation_shows_what_the_results_hold() -> None:
    root = SCRIPT.parents[1]
    kept = json.loads((root / "results" / "recall_table.json").read_text(encoding="utf-8"))["cells"]
    page = (root / "docs" / "how_to_choose.md").read_text(encoding="utf-8")
    assert page.partition(BEGIN)[2].partition(END)[0].strip() == overview(kept).strip()
