"""Cells: kept whatever happens, measured apart, told about."""

from __future__ import annotations

import argparse
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from fastweights.errors import UserError
from fastweights.evaluate.cells import (
    CellFile,
    all_circumstances,
    answer,
    arguments_of,
    chosen,
    circumstances,
    measure_all,
    now_and_then,
)

PROGRAM = """
import json, sys
name, number = sys.argv[sys.argv.index("--cell") + 1:]
if name == "bad":
    sys.exit(3)
print(json.dumps({"name": name, "number": int(number), "words": sys.argv[1:]}))
"""


def options(*words: str) -> argparse.Namespace:
    found = argparse.Namespace(command="python x.py", jobs=1, threads=1, device="cpu")
    for word in words:
        name, value = word.split("=")
        setattr(found, name, int(value))
    return found


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("jobs", [1, 3])
def test_cells_are_measured_apart_and_a_crash_costs_one_cell(
    tmp_path: Path, program: str, jobs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    results = CellFile(tmp_path / "new" / "cells.json", {"a": 1}, ("name", "number"))
    wanted = [("good", 2), ("bad", 0), ("good", 10)]
    given = options(f"jobs={jobs}")
    crashed = measure_all(results, wanted, [program, "--x=1"], lambda found: f"{found['number']}!", given)
    assert crashed == 1
    assert [found["number"] for found in results.cells.values()] in ([2, 10], [10, 2])
    cell = results.cells["good", 2]
    assert cell["words"] == ["--x=1", "--threads=1", "--device=cpu", "--cell", "good", "2"]
    assert cell["command"] == "python x.py"
    again = CellFile(results.path, {"a": 1}, ("name", "number"))
    assert again.cells == results.cells
    assert [found["number"] for found in json.loads(results.path.read_text(encoding="utf-8"))["cells"]] == [2, 10]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 6
    assert said[0] == "[1/3] ('good', 2)"
    assert any("('bad', 0): its process ended with status 3" in line for line in said)
    assert any("('good', 2): 2!; about " in line for line in said)


def test_what_runs_is_ended_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "slow.py"
    program.write_text(f"open({str(tmp_path / 'on')!r}, 'w'); import time; time.sleep(60)", encoding="utf-8")
    results = CellFile(tmp_path / "cells.json", {}, ("name",))

    def tell(line: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastweights.evaluate.cells.tell", tell)

    def outcome(found: dict[str, Any]) -> str:
        raise AssertionError

    with pytest.raises(KeyboardInterrupt):
        measure_all(results, [("x",), ("y",)], [str(program)], outcome, options())
    assert not results.path.exists()


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    CellFile(tmp_path / "c.json", {"steps": 2, "same": [1]}, ("name",)).add(("x",), {"name": "x"})
    assert CellFile(tmp_path / "c.json", {"same": [1], "steps": 2}, ("name",)).cells == {("x",): {"name": "x"}}
    with pytest.raises(UserError, match="steps was 2 and is now 3; choose another --out"):
        CellFile(tmp_path / "c.json", {"steps": 3, "same": [1]}, ("name",))
    with pytest.raises(UserError, match="more was null and is now 1"):
        CellFile(tmp_path / "c.json", {"steps": 2, "same": [1], "more": 1}, ("name",))


def test_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["x.py", "--seeds", "2", "--cell", "a b", "3"])
    found = arguments_of(argparse.ArgumentParser(), "results/x.json", ("name", "number"))
    assert (found.out, found.seeds, found.cell) == (Path("results/x.json"), 2, ["a b", "3"])
    assert found.command == "python x.py --seeds 2 --cell 'a b' 3"


def test_circumstances_of_all_cells_are_told_once() -> None:
    here = circumstances("cpu", 1)
    assert set(here) == {"date", "machine", "versions"}
    told = all_circumstances([here, here, here | {"date": "2020-01-01"}])
    assert told[0] == f"Date: 2020-01-01; {here['date']}.\n".replace('"', "")
    assert "threads: 1" in told[1]
    assert "torch: " in told[2]


def test_a_text_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    perhaps = now_and_then(30.0)
    for now[0] in (1.0, 29.0, 31.0, 40.0, 62.0):
        perhaps(f"{now[0]:g}")
    assert capsys.readouterr().err == "31\n62\n"


def test_a_process_of_one_cell_prints_what_it_finds(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        assert answer(lambda: {"right": 3}) == 0
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert json.loads(capsys.readouterr().out) == {"right": 3}


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    assert chosen("", ["a", "b"], "task") == ["a", "b"]
    with pytest.raises(UserError, match="there is no preset 'deltanot'; there is deltanet"):
        chosen("titans,deltanot", ["titans", "deltanet"], "preset")
