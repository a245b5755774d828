from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import pytest
from tests.train.runs import TINY

from fastweights.errors import UserError
from fastweights.train.overrides import OverrideError, apply_overrides, flatten, keys


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    steps: int = 3


@dataclass(frozen=True)
class Outer:
    flag: bool = False
    name: str = "x"
    limit: int | None = None
    mixed: int | str = 1
    pair: tuple[float, float] = (0.0, 1.0)
    names: tuple[str, ...] = ()
    mode: Literal["fast", "slow"] = "fast"
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    parts: tuple[Inner, ...] = (Inner(), Inner(steps=4))


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("flag=true", "flag", True),
        ("flag=False", "flag", False),
        ("name=a=b", "name", "a=b"),
        ("name=", "name", ""),
        ("limit=12", "limit", 12),
        ("limit=none", "limit", None),
        ("mixed=7", "mixed", 7),
        ("mixed=seven", "mixed", "seven"),
        ("pair=0.5,1", "pair", (0.5, 1.0)),
        ("pair=[0.5, 2]", "pair", (0.5, 2.0)),
        ("names=a,b", "names", ("a", "b")),
        ("names=", "names", ()),
        ('names=["a,b"]', "names", ("a,b",)),
        ("mode=slow", "mode", "slow"),
        ("inner.rate=3e-4", "inner.rate", 3e-4),
        ("inner.rate=2", "inner.rate", 2.0),
        ("inner.rate=inf", "inner.rate", math.inf),
        (" inner.steps = 1_000 ", "inner.steps", 1000),
        ("maybe=none", "maybe", None),
        ("parts.1.steps=9", "parts.1.steps", 9),
    ],
)
def test_a_value_is_read_by_the_type_of_its_field(override: str, path: str, value: object) -> None:
    changed: object = apply_overrides(Outer(), [override])
    for name in path.split("."):
        changed = changed[int(name)] if isinstance(changed, tuple) else getattr(changed, name)
    assert changed == value
    assert type(changed) is type(value)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("flag=1", "flag must be true or false, not '1'"),
        ("inner.steps=1.5", "inner.steps must be a whole number, not '1.5'"),
        ("inner.rate=fast", "inner.rate must be a number, not 'fast'"),
        ("inner.rate=nan", "must be a number"),
        ("limit=x", "limit must be a whole number or none"),
        ("pair=1", "pair must be 2 values separated by commas"),
        ("pair=[1,", "pair must be 2 values"),
        ("mode=medium", "mode must be one of fast, slow"),
        ("inner=3", "inner is a group of settings; set one of its fields such as inner.rate"),
        ("maybe=3", "maybe is a group of settings"),
        ("parts=1", "parts is a group of settings"),
        ("parts.0=1", "parts.0 is a group of settings"),
        ("flag", "must read key=value"),
        ("=3", "must read key=value"),
        ("inner.rat=3", "did you mean 'inner.rate'?"),
        ("iner.rate=3", "did you mean 'inner.rate'?"),
        ("rate=3", "did you mean 'inner.rate'?"),
        ("flag.x=3", "'flag' has no settings inside it"),
        ("parts.2.steps=3", "unknown setting 'parts.2.steps'"),
        ("qqqqqq=3", "there are flag, name"),
    ],
)
def test_what_cannot_be_set_is_refused_in_one_sentence(override: str, says: str) -> None:
    with pytest.raises(OverrideError) as caught:
        apply_overrides(Outer(), [override])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_apply_in_order_and_leave_the_original_alone() -> None:
    before = Outer()
    assert apply_overrides(before, ["inner.steps=1", "inner.steps=2"]).inner.steps == 2
    assert before == Outer()


def test_every_key_of_a_run_can_be_named_and_most_have_a_value_as_text() -> None:
    found = list(keys(TINY))
    assert "model.rule.chunk_size" in found
    assert "stages.1.segments" in found
    assert "task.pairs" in found
    assert apply_overrides(TINY, ["model.rule.chunk_size=4", "task.pairs=1"]).model.rule.chunk_size == 4


def test_the_american_spelling_is_understood_as_a_slip() -> None:
    with pytest.raises(OverrideError, match=r"did you mean 'optimiser\.lr'"):
        apply_overrides(TINY, ["optimizer.lr=1"])


def test_the_configuration_refuses_impossible_values_itself() -> None:
    with pytest.raises(UserError, match=r"optimiser\.lr must be above 0"):
        apply_overrides(TINY, ["optimiser.lr=-1"])


def test_flatten_names_every_leaf() -> None:
    assert flatten({"a": {"b": [1, {"c": 2}]}, "d": None, "e": []}) == {"a.b.0": 1, "a.b.1.c": 2, "d": None, "e": []}
