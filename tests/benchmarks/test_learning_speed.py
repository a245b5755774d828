"""Speed of learning: contenders are what their names say, cells survive, and the table compares with the delta rule."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.learning_speed import FACTORS, SWEEP, Cell, Results, ScaledMLP, description, draw, model_of, render

from fastweights.core import presets
from fastweights.core.algorithm import GradientDescent, Momentum
from fastweights.core.architecture import MLP, Residual
from fastweights.core.retention import WeightDecay
from fastweights.errors import UserError
from fastweights.layers.memory import MemoryLayer
from fastweights.models.language_model import LanguageModel
from fastweights.train.learning import MODEL

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "learning_speed.py"


def made(contender: str, known: int | None, length: int = 64, seed: int = 0, **other: Any) -> dict[str, Any]:
    """A cell as the command writes it."""
    cell = {"contender": contender, "task": "needles", "length": length, "seed": seed, "minutes": 10.0, "limit": 800}
    cell |= {"model": description(model_of(contender)), "known": known, "steps": (known or 775) + 25, "capped": False}
    cell |= {"curve": [[25, 0.1], [50, 0.4]], "stopped": "", "skipped": 0, "seconds": 9.0, "parameters": 160_000}
    cell |= {"date": "2026-11-26", "machine": {"processor": "x", "cores": 2}, "versions": {"torch": "2.13.0"}}
    return cell | other


def row(table: str, contender: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(f"| `{contender}`"))
    return [entry.strip() for entry in line.strip("|").split("|")][2:]


def rule_after(change: str) -> Any:
    return model_of(f"titans+{change}").rule


def test_a_contender_is_its_rule_with_the_changes_named() -> None:
    assert model_of("deltanet") == replace(MODEL, rule=presets.deltanet())
    assert model_of("titans").rule == presets.titans()
    assert model_of("titans+rule.clip=1.0+lr_start=0.9") == replace(
        MODEL, rule=replace(presets.titans(), clip=1.0), lr_start=0.9
    )
    assert rule_after("residual=none").architecture == MLP(2, 4.0)
    assert rule_after("momentum=none").algorithm == GradientDescent()
    head = rule_after("gates=head")
    assert (head.lr_scope, head.retention, head.algorithm) == ("head", WeightDecay(), Momentum())
    assert rule_after("momentum=none+gates=head").algorithm == GradientDescent()
    assert rule_after("first_map=4.0").architecture == Residual(ScaledMLP(first=4.0))
    assert rule_after("residual=none+first_map=4.0").architecture == ScaledMLP(first=4.0)


def test_every_contender_of_the_sweep_can_be_built_and_differs_from_the_others() -> None:
    models = [json.dumps(description(model_of(name))) for name in SWEEP]
    assert len(set(models)) == len(SWEEP) == 3 + sum(map(len, FACTORS.values()))


def test_the_first_map_starts_larger_and_nothing_else_changes() -> None:
    def initial(contender: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        return dict(LanguageModel(model_of(contender)).named_parameters())

    usual, scaled = initial("titans"), initial("titans+first_map=4.0")
    for name, value in usual.items():
        factor = 4.0 if name.endswith("initial.layer1") else 1.0
        assert torch.allclose(scaled[name], factor * value), name


def test_momentum_starts_where_it_is_told() -> None:
    for share in (0.1, 0.5, 0.9):
        layer = LanguageModel(model_of(f"titans+momentum_start={share}")).blocks[0].mixer
        assert isinstance(layer, MemoryLayer)
        opened = layer.open_gates(torch.zeros(1, 1, 64)).momentum
        assert opened is not None
        assert torch.allclose(opened, torch.full_like(opened, share), atol=1e-5)


@pytest.mark.parametrize(
    ("contender", "words"),
    [
        ("titan", "there is no rule 'titan'; there is titans"),
        ("titans+lr_begin=0.1", "unknown setting 'lr_begin'"),
        ("titans+clip", "must read key=value"),
        ("deltanet+first_map=2.0", "one of an MLP memory, not of Matrix"),
    ],
)
def test_an_unknown_contender_is_refused(contender: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        model_of(contender)


def test_killed_after_the_first_cell_the_command_goes_on_with_the_second(tmp_path: Path) -> None:
    out, table = tmp_path / "speed.json", tmp_path / "speed.md"
    given = ("--contenders", "deltanet,titans+rule.chunk_size=64", "--tasks", "needles", "--lengths", "64", "256")
    words = [sys.executable, str(SCRIPT), "--out", str(out), "--steps", "1", *given]

    def cells() -> list[dict[str, Any]]:
        return json.loads(out.read_text(encoding="utf-8"))["cells"] if out.is_file() else []

    with subprocess.Popen(words, stderr=subprocess.PIPE, start_new_session=True) as process:
        while not cells() and process.poll() is None:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    first = cells()
    assert [(cell["contender"], cell["length"]) for cell in first] == [("deltanet", 64)]
    done = subprocess.run([*words, "--render", str(table)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "[1/2] deltanet, needles in 256, seed 0" in done.stderr
    found = cells()
    assert found[0] == first[0]
    # Rows of 64 hold a single chunk of 64, so that cell is not measured.
    assert [(cell["contender"], cell["length"], cell["known"], cell["steps"]) for cell in found] == [
        ("deltanet", 64, None, 1),
        ("deltanet", 256, None, 1),
        ("titans+rule.chunk_size=64", 256, None, 1),
    ]
    assert row(table.read_text(encoding="utf-8"), "deltanet") == ["> 1 (0%)", "> 1 (0%)", ""]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["speed.json", "speed.md", "speed.png"]


def test_a_cell_is_measured_again_when_it_may_go_further_or_its_model_changed(tmp_path: Path) -> None:
    results, cell = Results(tmp_path / "speed.json"), Cell("titans", "needles", 64, 0)

    def lacks(steps: int = 800, minutes: float = 10.0, **other: Any) -> bool:
        results.add(cell, made("titans", **({"known": None} | other)))
        return Results(results.path).lacks(cell, steps, minutes)

    assert results.lacks(cell, 1, 1.0)
    assert not lacks()
    assert not lacks(minutes=20.0)
    assert lacks(steps=801)
    assert not lacks(steps=900, known=100)
    assert not lacks(steps=900, stopped="it gave up")
    assert not lacks(steps=900, capped=True)
    assert lacks(minutes=11.0, capped=True)
    assert lacks(known=100, model=description(model_of("deltanet")))
    results.add(cell, {"refused": "no", **cell._asdict()})
    assert results.lacks(cell, 1, 1.0)


def test_the_table_compares_with_the_delta_rule_on_the_same_rows(tmp_path: Path) -> None:
    slow = "titans+rule.clip=1.0"
    cells = [
        made("deltanet", 50),
        made("deltanet", 100, seed=1),
        made("deltanet", 200, length=256),
        made("titans", 75),
        made("titans", 150, seed=1),
        made("titans", None, length=256, capped=True),
        made(slow, 100),
        made("titans+lr_start=0.9", 100, length=512),
        made("titans+momentum=none", None),
    ]
    table = render(cells)
    assert "| needles, 64 | needles, 256 | needles, 512 | largest ratio |" in table
    assert row(table, "deltanet") == ["**75 (1.00)**", "**200 (1.00)**", "", "1.00"]
    assert row(table, "titans") == ["**112.5 (1.50)**", "> 800 (40%) †", "", "inf"]
    assert row(table, slow) == ["100 (2.00)", "", "", "2.00"]
    assert row(table, "titans+lr_start=0.9") == ["", "", "100", ""]
    assert row(table, "titans+momentum=none") == ["> 800 (40%)", "", "", "inf"]
    order = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert order == [name for name in SWEEP if name in order]
    draw(cells, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_of_several_seeds_it_says_how_many_knew() -> None:
    cells = [made("deltanet", 50, seed=seed) for seed in range(3)]
    cells += [made("titans", known, seed=seed) for seed, known in enumerate((50, 75, None))]
    table = render(cells)
    assert row(table, "titans") == ["**62.5, 2 of 3 seeds (1.50)**", "1.50"]
    refused = made("titans+rule.clip=1.0", 1, refused="no such model")
    assert "`titans+rule.clip=1.0` could not be built: no such model." in render([*cells, refused])
