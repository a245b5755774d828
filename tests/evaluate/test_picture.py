"""The picture is drawn where its package is installed, and missed in one sentence where it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastweights.errors import UserError
from fastweights.evaluate import picture
from fastweights.evaluate.needle import Found, NeedleResult
from fastweights.inference.surprise import SurpriseCurve

CURVE = SurpriseCurve(4, np.linspace(0, 1, 25), np.linspace(0, 2, 25))
ANSWERS = (
    Found(0, 0.0, 3, "quiet-harbor", "1234567", "1234567", True),
    Found(1, 50.0, 51, "loud-anchor", "7654321", "no", False),
)
RESULT = NeedleResult(100, 2, 1, ANSWERS, 1.0, 200.0, 64, 64, 10**8, 1.5, 0, 0, (CURVE, CURVE))


def test_a_picture_is_written(tmp_path: Path) -> None:
    picture.draw_surprise(RESULT, tmp_path / "p.png", "two documents")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["p.unknown", "nowhere/p.png"])
def test_a_picture_that_cannot_be_written_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="the picture cannot be written"):
        picture.draw_surprise(RESULT, tmp_path / name, "two documents")


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "find_spec", lambda name: None)
    assert not picture.can_draw()
    with pytest.raises(UserError, match=r"fastweights\[plot\]"):
        picture.draw_surprise(RESULT, tmp_path / "p.png", "two documents")


def test_curves_are_drawn_in_panels(tmp_path: Path) -> None:
    curves = {"a": [(64.0, 1.0), (128.0, 0.5)], "b": [(64.0, 0.0)]}
    picture.draw_curves({"one": curves, "none": {}}, tmp_path / "p.png", "tokens", "right", logarithmic=True)
    picture.draw_curves({}, tmp_path / "empty.png", "tokens", "right")
    for name in ("p.png", "empty.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
