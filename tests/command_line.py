"""The command line in this process, for tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fastweights.cli import main


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run a command; returns the exit status."""
    monkeypatch.setattr(sys, "argv", ["fastweights", *words])
    return main()


def assert_refused(
    words: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command in the present folder is refused with a sentence, and leaves the folder as it was."""
    before = sorted(path.name for path in Path().iterdir())
    assert call(monkeypatch, *words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert sorted(path.name for path in Path().iterdir()) == before
