"""What `check` runs, and that it can be told what to run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fastweights.core.conformance import FULL, QUICK, Report
from fastweights.core.presets import PRESETS
from fastweights.errors import UserError
from fastweights.evaluate import check

NOTHING = Report("any", ())


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UserError, match="did you mean deltanet"):
        next(check.check_everything(["deltanett"]))
    with pytest.raises(UserError, match=r"titans_linear, .*, lmm, mac, "):
        next(check.check_everything(["?"]))


def test_checks_side_by_side_find_the_same() -> None:
    """In other processes, and with an unknown name refused before any is started."""
    names = ["softmax_attention", "linear_attention"]
    assert dict(check.check_everything(names, quick=True, jobs=2)) == dict(check.check_everything(names, quick=True))
    with pytest.raises(UserError, match="did you mean deltanet"):
        next(check.check_everything(["deltanett"], jobs=2))
    with pytest.raises(UserError, match="at least one job, not 0"):
        next(check.check_everything(jobs=0))


@pytest.mark.parametrize(("quick", "grid"), [(True, QUICK), (False, FULL)])
def test_all_rules_blocks_and_a_model_are_checked_as_asked_for(
    monkeypatch: pytest.MonkeyPatch, quick: bool, grid: object
) -> None:
    asked: list[object] = []

    def rule(rule: object, *, grid: object, title: str) -> Report:
        asked.append(grid)
        return NOTHING

    def blocks(quick: bool) -> dict[str, Callable[[], Report]]:
        asked.append(quick)
        return {"lmm": lambda: NOTHING, "model": lambda: NOTHING}

    monkeypatch.setattr(check, "check_rule", rule)
    monkeypatch.setattr(check, "wirings", blocks)
    monkeypatch.setattr(check, "check_combinations", lambda cover, without: NOTHING)
    names = [name for name, _ in check.check_everything(quick=quick)]
    assert names == [*PRESETS, "combinations", "lmm", "model"]
    assert asked == [quick] + [grid] * len(PRESETS)


def test_the_blocks_that_ship_are_among_them() -> None:
    checks: Any = check._checks(quick=True)
    assert {"lmm", "mac", "mag", "mal", "model"} <= set(checks)
