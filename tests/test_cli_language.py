"""The commands `evaluate perplexity` and `evaluate surprise`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests import small_model
from tests.command_line import assert_refused, call


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_model.save(tmp_path_factory.mktemp("models") / "small")


def test_perplexity_of_files_and_of_wikitext(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt"):
        Path(name).write_text(f"This is {name}. " * 30)
    words = ("perplexity", "--model", model, "--json", "out.json", "--text", "a.txt", "b.txt", "--max-tokens", "300")
    assert call(monkeypatch, "evaluate", *words) == 0
    out, _ = capsys.readouterr()
    found = json.loads(Path("out.json").read_bytes())
    assert f"{found['bits_per_byte']:.3f} bits per byte (" in out
    assert [result["tokens"] for result in found["results"]] == [300, 300]
    assert found["runs"][0]["command"] == "fastweights evaluate " + " ".join(words)
    Path("wiki.raw").write_text(" = A = \n\n one , two . \n")
    assert (
        call(monkeypatch, "evaluate", "perplexity", "--model", model, "--json", "w.json", "--wikitext", "wiki.raw") == 0
    )
    assert json.loads(Path("w.json").read_bytes())["documents"] == ["0 A"]


def test_surprise_of_two_files(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt"):
        Path(name).write_text(f"This is {name}, line by line. " * 200)
    words = ("surprise", "--model", model, "--json", "s.json", "--text", "a.txt", "b.txt", "--tokens", "4096")
    assert call(monkeypatch, "evaluate", *words) == 0
    assert "rank correlation with bits" in capsys.readouterr().out
    found = json.loads(Path("s.json").read_bytes())
    assert (found["kind"], found["tokens"], found["texts"]) == ("surprise", 4096, ["a.txt", "b.txt"])
    assert {"command", "date", "machine", "versions"} <= found.keys()
    assert len(found["correlation"]) == len(found["switches"]) == len(found["repetitions"]) == 1
    assert call(monkeypatch, "report", ".", "--out", "report") == 0
    page = Path("report/report.md").read_text()
    for picture in ("surprise.png", "surprise-along-s.png"):
        assert f"({picture})" in page
        assert Path("report", picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("perplexity", "--json", "x", "--text", "none.txt"), "none.txt"),
        (("perplexity", "--json", "x", "--wikitext", "none.raw"), "cannot read 'none.raw'"),
        (("perplexity", "--json", "x", "--text", "a", "--wikitext", "b"), "not both"),
        (("perplexity", "--json", "x", "--max-tokens", "-1"), "must be 0 or more"),
        (("surprise", "--json", "x", "--text", "only.txt"), "on two texts, not on 1"),
        (("surprise", "--json", "none/x"), "a folder that exists"),
        (("surprise", "--json", "."), "name a file"),
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
    Path("only.txt").write_text("text")
    assert_refused(("evaluate", *words), says, monkeypatch, capsys)
