"""The commands `compare` and `report`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.command_line import assert_refused, call

RECIPE = """
from tests.evaluate.small_grid import grid


def comparison():
    return grid()
"""


def test_compare_trains_asks_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(RECIPE)
    words = ("compare", "mine.py", "--out", "found", "--models", "lstm", "--contests", "recall")
    assert call(monkeypatch, *words) == 0
    out, err = capsys.readouterr()
    assert out.strip() == "found/report.md"
    assert "[1/1] recall, lstm, seed 0" in err
    cell = json.loads(Path("found/recall/lstm-0.json").read_bytes())
    assert cell["command"] == "fastweights " + " ".join(words)
    assert Path("runs/found/recall/lstm-0/model").is_dir()
    assert call(monkeypatch, *words, "--json") == 0
    assert json.loads(capsys.readouterr().out) == [cell]
    assert call(monkeypatch, "report", "found", "-o", "page") == 0
    assert Path("page/report.md").read_text() == Path("found/report.md").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("compare", "compare_quik", "--out", "x"), "did you mean compare_quick?"),
        (("compare", "compare_quick", "--out", "x", "--models", "lmn"), "there is no model 'lmn'; there is lmm"),
        (("compare", "compare_quick", "--out", "x", "--contests", "mqa"), "there is no contest 'mqa'; there is mqar"),
        (("report", "nowhere", "-o", "x"), "there is no folder 'nowhere' with results"),
    ],
)
def test_bad_input_gets_a_sentence(
    words: tuple[str, ...],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(words, says, monkeypatch, capsys)
