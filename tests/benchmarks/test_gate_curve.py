"""The curve of gates: models are trained before they are asked, cells survive, tables and curves say what they hold."""

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
from benchmarks.gate_curve import (
    FACTS,
    GATES,
    LENGTHS,
    MEMORIES,
    Cell,
    Results,
    draw,
    folder_of,
    render,
    rule_of,
    settings,
    training_config,
)

from fastweights.errors import UserError
from fastweights.models.budget import parameter_count

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gate_curve.py"


def options(**other: Any) -> argparse.Namespace:
    return argparse.Namespace(**({"effort": 1.0, "runs": Path("runs"), "device": "cpu", "threads": 1} | other))


def made(
    memory: str, gates: str, facts: str, tokens: int, right: int = 0, seed: int = 0, **other: Any
) -> dict[str, Any]:
    """A cell as the command writes it."""
    cell = {"memory": memory, "gates": gates, "facts": facts, "seed": seed, "tokens": tokens}
    cell |= {"rule": rule_of(memory), "fingerprint": "abc", "seconds": 90.0, "date": "2026-11-26"}
    cell |= {"machine": {"processor": "x", "cores": 2}, "versions": {"torch": "2.13.0"}}
    if not tokens:
        return cell | {"stopped": "", "steps": 1800, "asked": 0.98, "parameters": 160_000} | other
    changed = facts == "changing"
    cell |= {"right": {"unchanged": right, "changed": right // 2 if changed else 0}, "tokens_per_second": 50_000}
    cell |= {"asked": {"unchanged": 16, "changed": 16 if changed else 0}, "norm_before": 1.0, "norm": 12.345}
    return cell | {"shut": [0.99, 1.0], "kept": [1.0, 0.5], "write": [0.1, 0.0], "forget": [0.0, 0.2]} | other


def rows(table: str, contender: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith(f"| `{contender}`")]
    return [[entry.strip() for entry in line.strip("|").split("|")][1:] for line in lines]


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("gates", GATES)
def test_trainings_differ_in_what_their_names_say_and_in_nothing_else(memory: str, gates: str) -> None:
    config = training_config(Cell(memory, gates, "kept", 3, 2048), options())
    threshold, price = GATES[gates]
    assert (config.model.gate_threshold, config.price, config.seed) == (threshold, price, 3)
    assert parameter_count(config.model) == pytest.approx(160_000, rel=0.02)
    assert max(stage.length for stage in config.stages) == 2048
    lengths = [stage.length for stage in config.stages]
    assert lengths == sorted(lengths)
    assert config.stages == training_config(Cell("matrix", "plain", "kept", 0, 0), options()).stages


def test_runs_of_different_settings_do_not_meet() -> None:
    folders = {
        folder_of(Cell(memory, gates, facts, seed, 0), options(effort=effort))
        for memory in MEMORIES
        for gates in GATES
        for facts in FACTS
        for seed in (0, 1)
        for effort in (0.5, 1.0)
    }
    assert len(folders) == 48
    assert folder_of(Cell("mlp", "hard", "kept", 0, 0), options()) == folder_of(
        Cell("mlp", "hard", "kept", 0, 2048), options()
    )


def test_killed_between_two_cells_the_command_goes_on_without_training_again(tmp_path: Path) -> None:
    out, table = tmp_path / "gates.json", tmp_path / "gates.md"
    given = ("--memories", "matrix", "--gates", "priced", "--facts", "changing", "--lengths", "64", "128")
    words = [sys.executable, str(SCRIPT), "--out", str(out), "--runs", str(tmp_path / "runs"), "--effort", "0.001"]
    words += ["--streams", "3", "--least", "2", "--budget", "256", "--forgotten", "-1", *given]

    def cells() -> list[dict[str, Any]]:
        return json.loads(out.read_text(encoding="utf-8"))["cells"] if out.is_file() else []

    with subprocess.Popen(words, stderr=subprocess.PIPE, start_new_session=True) as process:
        while not cells() and process.poll() is None:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    first = cells()
    assert [(cell["tokens"], cell["steps"], cell["stopped"]) for cell in first] == [(0, 5, "")]
    done = subprocess.run([*words, "--render", str(table)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "training" not in done.stderr
    found = cells()
    assert found[0] == first[0]
    assert [(cell["tokens"], cell["streams"]) for cell in found[1:]] == [(64, 3), (128, 2)]
    assert [sum(cell["asked"].values()) for cell in found[1:]] == [12, 8]
    assert [cell["asked"]["changed"] for cell in found[1:]] == [6, 4]
    assert {cell["fingerprint"] for cell in found} == {first[0]["fingerprint"]}
    assert "Facts that changed" in table.read_text(encoding="utf-8")
    assert (tmp_path / "gates.png").is_file()
    again = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert (again.returncode, again.stderr) == (0, "")


def test_points_follow_the_training_that_was_done_last(tmp_path: Path) -> None:
    results, point = Results(tmp_path / "gates.json", 1.0), Cell("mlp", "hard", "kept", 0, 2048)
    assert results.lacks(point)
    assert results.lacks(point.training)
    results.add(point, made("mlp", "hard", "kept", 2048))
    assert results.lacks(point)
    results.add(point.training, made("mlp", "hard", "kept", 0))
    results = Results(results.path, 1.0)
    assert not results.lacks(point)
    assert not results.lacks(point.training)
    assert results.lacks(point._replace(tokens=8192))
    results.add(point.training, made("mlp", "hard", "kept", 0, fingerprint="def"))
    assert results.lacks(point)
    results.add(point.training, made("mlp", "hard", "kept", 0, rule=rule_of("matrix")))
    assert results.lacks(point.training)
    results.add(point.training, made("mlp", "hard", "kept", 0, stopped="20 steps in a row had to be skipped"))
    assert not results.lacks(point._replace(tokens=8192))
    with pytest.raises(UserError, match=r"effort was 1\.0 and is now 0\.5"):
        Results(results.path, 0.5)


def test_what_is_forgotten_is_not_asked_for_at_greater_lengths(tmp_path: Path) -> None:
    results, point = Results(tmp_path / "gates.json", 1.0), Cell("mlp", "hard", "kept", 0, 8192)
    results.add(point.training, made("mlp", "hard", "kept", 0))
    assert not results.forgotten(point, 0.1)
    results.add(point._replace(tokens=2048), made("mlp", "hard", "kept", 2048, 1))
    assert results.forgotten(point, 0.1)
    assert not results.forgotten(point, 0.0)
    assert not results.forgotten(point._replace(tokens=2048), 0.1)
    assert not results.forgotten(point._replace(seed=1), 0.1)
    results.add(point.training, made("mlp", "hard", "kept", 0, fingerprint="def"))
    assert not results.forgotten(point, 0.1)


def test_the_tables_and_the_curves(tmp_path: Path) -> None:
    cells = [
        made("matrix", "priced", "kept", 0),
        made("matrix", "priced", "kept", 0, seed=1, seconds=30.0),
        made("matrix", "priced", "kept", 2048, 16),
        made("matrix", "priced", "kept", 2048, 12, seed=1),
        made("matrix", "priced", "kept", 8192, 8, tokens_per_second=61_000),
        made("mlp", "plain", "kept", 0),
        made("mlp", "plain", "kept", 2048, 4),
        made("mlp", "priced", "changing", 0),
        made("mlp", "priced", "changing", 2048, 8),
        made("mlp", "hard", "kept", 0, stopped="20 steps in a row had to be skipped"),
    ]
    table = render(cells)
    assert "| 2,048 | 8,192 |" in table
    assert rows(table, "matrix, priced") == [
        ["88 (32)", "50 (16)"],
        ["8,192", "99 / 100", "100 / 50", "1", "12.3", "61,000", "1.0"],
    ]
    assert rows(table, "mlp, plain")[0] == ["25 (16)", ""]
    changed, unchanged, _ = rows(table, "mlp, priced")
    assert (changed[0], unchanged[0]) == ("25 (16)", "50 (16)")
    assert "`mlp, hard`, facts kept: training gave up, 20 steps in a row" in table
    titles = [line for line in table.splitlines() if line.startswith("## ")]
    assert titles == [
        "## Facts that are kept",
        "## Facts that changed",
        "## Facts that did not change, beside those",
        "## Gates, facts kept",
        "## Gates, facts changing",
    ]
    draw(cells, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_settings_are_json_values_and_streams_reach_two_million_tokens() -> None:
    assert json.loads(json.dumps(settings(1.0))) == settings(1.0)
    assert max(LENGTHS) == 2**21


def test_the_documentation_shows_what_the_results_hold() -> None:
    root = Path(__file__).resolve().parents[2]
    cells = json.loads((root / "results" / "gate_curve.json").read_text(encoding="utf-8"))["cells"]
    table = render(cells)
    assert (root / "results" / "gate_curve.md").read_text(encoding="utf-8") == table
    page = (root / "docs" / "how_to_choose.md").read_text(encoding="utf-8")
    section = page.split("## Gates that shut")[1].split("\n## ")[0]
    shown = [line for line in section.splitlines() if line.startswith("|")]
    assert len(shown) == 2 * (len(MEMORIES) * len(GATES) + 2)
    assert set(shown) <= set(table.splitlines())
