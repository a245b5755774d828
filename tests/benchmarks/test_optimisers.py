"""Optimisers side by side: a cell trains with the optimiser it names, and the table compares with AdamW at its best."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks import optimisers
from benchmarks.optimisers import OPTIMISERS, Cell, curve_of, draw, first_below, measure, render, settings, training

from fastweights.evaluate.contest import Contest
from fastweights.evaluate.contests import books

ARGUMENTS = argparse.Namespace(steps=70, minutes=5.0, device="cpu", threads=1)


def made(optimiser: str, rate: float, bits: float, curve: list[float], seed: int = 0, **other: Any) -> dict[str, Any]:
    """A cell as the command writes it, with a point of its curve every 10 steps."""
    points = [[10 * (i + 1), value] for i, value in enumerate(curve)]
    cell = {"optimiser": optimiser, "rate": rate, "seed": seed, "bits": bits, "error": 0.01, "curve": points}
    cell |= {"steps": 30, "capped": False, "stopped": "", "seconds": 9.0, "minutes": 10.0, "date": "2026-11-26"}
    return cell | {"machine": {"cores": 2}, "versions": {"torch": "2.13.0"}} | other


def row(table: str, name: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(f"| `{name}`"))
    return [entry.strip() for entry in line.strip("|").split("|")][1:]


def small(steps: int) -> Contest:
    """The contest with short rows and few questions."""
    contest = books(steps)
    stages = tuple(replace(stage, length=32, batch_size=2) for stage in contest.stages)
    return replace(contest, stages=stages, questions=(replace(contest.questions[0], length=64, batches=4),))


@pytest.mark.parametrize("optimiser", ["adamw", "m3"])
def test_a_cell_trains_and_is_asked(optimiser: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimisers, "books", small)
    found = measure(Cell(optimiser, 0.01, 0), ARGUMENTS)
    assert [step for step, _ in found["curve"]] == [30, 60]
    assert found["curve"][1][1] < found["curve"][0][1] < 8.5
    assert (found["steps"], found["capped"], found["stopped"]) == (70, False, "")
    assert 0 < found["error"] < found["bits"] < 8


def test_cells_differ_in_the_optimiser_alone() -> None:
    configs = {name: training(Cell(name, 0.003, 1), 50) for name in OPTIMISERS}
    assert {config.optimiser.kind for config in configs.values()} == set(OPTIMISERS)
    same = {replace(config, optimiser=configs["adamw"].optimiser).to_json() for config in configs.values()}
    assert len(same) == 1
    assert json.loads(json.dumps(settings(50))) == settings(50) != settings(51)


def test_a_curve_has_a_mean_for_every_window() -> None:
    assert curve_of([float(i) for i in range(65)]) == [[30, 14.5], [60, 44.5]]
    assert curve_of([1.0] * 29) == []


def test_how_far_a_curve_comes() -> None:
    curve = [[10, 4.0], [20, 3.0], [30, 2.0]]
    assert first_below(curve, 5.0) == 10
    assert first_below(curve, 2.5) == 25
    assert first_below(curve, 2.0) == 30
    assert first_below(curve, 1.9) == math.inf


def test_every_optimiser_is_judged_at_its_best_rate_by_adamw_at_its_best(tmp_path: Path) -> None:
    cells = [
        made("adamw", 0.001, 3.0, [5.0, 4.0, 3.0]),
        made("adamw", 0.003, 2.5, [4.0, 3.0, 2.0]),
        made("muon", 0.001, 2.2, [3.0, 2.5, 1.5]),
        made("muon", 0.003, 2.7, [4.0, 3.0, 2.6], capped=True),
        made("deep", 0.003, 2.6, [4.0, 3.0, 2.1]),
    ]
    table = render(cells)
    assert row(table, "adamw") == ["0.003", "30", "3.000", "**2.500**", "2.500"]
    assert row(table, "muon") == ["0.001", "25", "**2.200**", "2.700 †", "**2.200**"]
    assert row(table, "deep") == ["0.003", "--", "", "2.600", "2.600"]
    draw(cells, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_seeds_are_compared_with_the_same_seeds() -> None:
    base = [made("adamw", 0.001, 2.5, [3.0, goal], seed) for seed, goal in enumerate((2.0, 1.0, 2.0))]
    others = [made("m3", 0.001, 2.5, [2.0, 1.0], seed) for seed in range(3)]
    assert row(render([*base, *others]), "m3")[1] == "10"
    assert row(render([*base, *others[1:2]]), "m3")[1] == "20"
