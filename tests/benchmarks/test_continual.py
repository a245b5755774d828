"""Levels on courses: a cell is the model that its name says, takes its course, and the tables say what came of it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks import continual
from benchmarks.continual import COURSES, LEVELS, MIXERS, Cell, facts, measure, outcome, render, settings, training

from fastweights.data.documents import novels
from fastweights.evaluate.contests import HELD_BACK
from fastweights.models.budget import parameter_count

ARGUMENTS = argparse.Namespace(effort=0.0, minutes=5.0, device="cpu", threads=1)


def made(mixer: str, levels: int, course: str, found: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """A cell as the command writes it."""
    cell: dict[str, Any] = {
        "mixer": mixer,
        "levels": levels,
        "course": course,
        "seed": seed,
        "minutes": 20.0,
        "seconds": 9.0,
    }
    cell |= {"steps": 30, "capped": False, "stopped": "", "date": "2026-11-26"}
    return cell | {"machine": {"cores": 2}, "versions": {"torch": "2.13.0"}} | found


def marks(at_once: float, at_last: float, average: float) -> dict[str, Any]:
    return {"asked": [100, 100], "exact": {"first_lesson": [at_once, at_last], "average_accuracy": average}}


def row(table: str, name: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(f"| `{name}`"))
    return [entry.strip() for entry in line.strip("|").split("|")][1:]


@pytest.mark.parametrize("course", COURSES)
def test_models_of_a_course_have_their_levels_and_equally_many_parameters(course: str) -> None:
    chunks, counts = [32, 64, 128] if course == "books" else [16, 32, 64], []
    for mixer in MIXERS:
        for levels in range(LEVELS + 1):
            config = training(Cell(mixer, levels, course, 0)).model
            assert list(config.level_chunks) == chunks[:levels]
            assert config.wiring == {"hope": "self_modifying", "window": "window"}[mixer]
            counts.append(parameter_count(config))
    assert max(counts) <= 1.04 * min(counts)
    assert facts(Cell("hope", 1, course, 0), 1.0) != facts(Cell("hope", 2, course, 0), 1.0)


@pytest.mark.parametrize("course", ["languages3", "books"])
def test_a_cell_trains_and_takes_its_course(course: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continual, "TAKEN", 2)
    monkeypatch.setattr(continual, "READ", 200)
    found = measure(Cell("window", 2, course, 0), ARGUMENTS)
    assert (found["steps"], found["capped"], found["stopped"]) == (1, False, "")
    json.dumps(found)
    if course == "books":
        assert found["saved"] == pytest.approx(found["a_after_b"] - found["a_after_a_b"])
        assert 5 < found["a"] < 12
        # 200 characters are read with levels of 32 and 64: they have changed what is said of the same text.
        assert found["a"] != found["a_after_a"]
    else:
        assert found["asked"] == [12, 12, 12]
        assert len(found["exact"]["matrix"]) == 3
    assert f"{found['seconds']:.0f} s" in outcome(found)


def test_the_tables_say_what_the_cells_hold() -> None:
    book = {"a": 3.0, "a_after_a": 2.9, "a_after_b": 2.8, "a_after_a_b": 2.5, "saved": 0.3, "forgotten": -0.4}
    table = render(
        [
            made("window", 2, "languages2", marks(90.0, 40.0, 65.0) | {"capped": True}),
            made("hope", 1, "languages2", marks(95.0, 80.0, 88.0)),
            made("hope", 1, "languages2", marks(97.0, 82.0, 90.0), 1),
            made("hope", 0, "books", book),
        ]
    )
    assert row(table, "hope, 1 level") == ["**95.0 / 96.0 / 97.0**", "**80.0 / 81.0 / 82.0**", "**88.0 / 89.0 / 90.0**"]
    assert row(table, "window, 2 levels") == ["**90.0 †**", "40.0 †", "65.0 †"]
    assert row(table, "hope, 0 levels") == ["**3.000**", "**2.900**", "**2.800**", "**2.500**", "**0.300**"]
    assert [line for line in table.splitlines() if line.startswith("## ")] == ["## languages2", "## books"]


def test_the_books_are_not_those_of_training() -> None:
    trained = training(Cell("hope", 0, "books", 0)).task
    names = {novel.name for novel in novels()[-HELD_BACK:]}
    assert names.isdisjoint(trained.novels)  # type: ignore[attr-defined]


def test_the_command_draws_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cells.json"
    path.write_text(
        json.dumps({"settings": settings(), "cells": [made("hope", 1, "languages2", marks(95.0, 80.0, 88.0))]})
    )
    words = ["continual.py", "--seeds", "0", "--out", str(path), "--render", str(tmp_path / "table.md")]
    monkeypatch.setattr("sys.argv", words)
    assert continual.main() == 0
    assert "hope, 1 level" in (tmp_path / "table.md").read_text(encoding="utf-8")
