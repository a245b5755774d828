"""Rules refuse what contradicts itself, describe themselves, and know their tiers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, replace
from typing import Any

import pytest

from fastweights.core import presets
from fastweights.core.algorithm import GradientDescent, Momentum
from fastweights.core.architecture import MLP, GatedMLP, Matrix, Residual
from fastweights.core.bias import L2, DotProduct
from fastweights.core.retention import NoRetention, WeightDecay
from fastweights.core.rule import Rule, rule_from_dict
from fastweights.core.types import Map, gate_width
from fastweights.errors import UserError


@dataclass(frozen=True)
class Lagging(WeightDecay):
    """Weight decay whose chunks have a lag token."""

    lag: bool = True


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "chunk size 0": (lambda: Rule(chunk_size=0), "chunk_size must be a whole number of at least 1, not 0"),
    "unknown read": (lambda: Rule(read="later"), "read must be one of after, before, chunk, not 'later'"),  # type: ignore[arg-type]
    "clip of 0": (lambda: Rule(clip=0.0), "clip must be above 0"),
    "clip of nan": (lambda: Rule(clip=float("nan")), "clip must be above 0"),
    "endless clip": (lambda: Rule(clip=float("inf")), "None for no bound"),
    "lr_max of 0": (lambda: Rule(lr_max=0.0), "lr_max must be above 0"),
    "endless lr_max": (lambda: Rule(lr_max=float("inf")), "lr_max must be above 0 and finite"),
    "decay first in chunks": (lambda: Rule(decay_before_grad=True), "set chunk_size=1"),
    "decay first, lag token": (lambda: Rule(chunk_size=1, retention=Lagging(), decay_before_grad=True), "lag token"),
    "unknown scope": (lambda: Rule(retention=WeightDecay("row")), "the scope of retain must be one of"),  # type: ignore[arg-type]
    "no lr": (lambda: Rule(lr_scope=None), "the scope of lr must be one of"),  # type: ignore[arg-type]
    "wrong kind": (lambda: Rule(bias=Matrix()), "bias must be a Bias, not Matrix"),  # type: ignore[arg-type]
    "mlp without layers": (lambda: MLP(0), "at least 1 layer"),
    "mlp without width": (lambda: MLP(2, 0.0), "expansion of a memory must be above 0"),
    "mlp of endless width": (lambda: MLP(2, float("inf")), "expansion of a memory must be above 0"),
    "unknown activation": (lambda: MLP(activation="swish"), "activation must be one of gelu"),  # type: ignore[arg-type]
    "gated, unknown activation": (lambda: GatedMLP(activation="swish"), "activation must be one of"),  # type: ignore[arg-type]
    "gated without width": (lambda: GatedMLP(-1.0), "expansion"),
    "residual without eps": (lambda: Residual(eps=0.0), "eps must be above 0"),
    "residual of two sizes": (lambda: Rule(Residual()).maps(4, 5), "one size, not 4 and 5"),
    "unknown field": (lambda: rule_from_dict({"chunksize": 4}), "Rule has no field 'chunksize'; it has algorithm"),
    "unknown kind": (lambda: rule_from_dict({"bias": {"kind": "L3"}}), "bias is of unknown kind 'L3'; known are"),
    "no kind": (lambda: rule_from_dict({"bias": {"half": True}}), "bias is of unknown kind None"),
    "field of a part": (lambda: rule_from_dict({"bias": {"kind": "L2", "third": True}}), "L2 has no field 'third'"),
    "part of another choice": (lambda: rule_from_dict({"bias": {"kind": "MLP"}}), "bias must be a Bias"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_contradictions_are_refused_in_one_sentence(case: str) -> None:
    attempt, words = REFUSED[case]
    with pytest.raises(UserError) as refusal:
        attempt()
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


RULES = {name: preset() for name, preset in presets.PRESETS.items()} | {
    "default": Rule(),
    "nested": Rule(Residual(Residual(GatedMLP(1.5, "gelu"), 0.01)), DotProduct(), NoRetention(), GradientDescent()),
    "scopes": Rule(
        MLP(3, 1.25, "tanh"), L2(False), WeightDecay("key"), Momentum("value"), 7, "chunk", None, 0.5, "map"
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_survives_json(name: str) -> None:
    rule = RULES[name]
    assert rule_from_dict(json.loads(json.dumps(rule.to_dict()))) == rule


def test_a_description_may_leave_fields_at_their_defaults() -> None:
    assert rule_from_dict({}) == Rule()
    assert rule_from_dict({"architecture": {"kind": "MLP", "depth": 3}}) == Rule(MLP(3))


def test_rules_are_values() -> None:
    rule = Rule()
    assert {rule: 1}[Rule()] == 1
    with pytest.raises(FrozenInstanceError):
        rule.chunk_size = 4  # type: ignore[misc]


DELTA = Rule(Matrix(), chunk_size=1, clip=None)
TIERS = {
    "mlp": (Rule(), ("dual", "materialised", "reference")),
    "gates per map": (Rule(lr_scope="map"), ("dual", "materialised", "reference")),
    "gates per channel": (Rule(algorithm=Momentum("value")), ("materialised", "reference")),
    "matrix online": (DELTA, ("delta", "dual", "materialised", "reference")),
    "matrix in chunks": (replace(DELTA, chunk_size=2), ("dual", "materialised", "reference")),
    "clip is not linear": (replace(DELTA, clip=1.0), ("dual", "materialised", "reference")),
    "a residual matrix is not linear": (
        replace(DELTA, architecture=Residual(Matrix())),
        ("dual", "materialised", "reference"),
    ),
    "decay first": (replace(DELTA, decay_before_grad=True), ("delta", "dual", "reference")),
    "decay first, mlp": (Rule(chunk_size=1, decay_before_grad=True), ("dual", "reference")),
    "decay first, channels": (
        Rule(MLP(2), L2(), WeightDecay("key"), chunk_size=1, decay_before_grad=True),
        ("reference",),
    ),
    "matrix online, channels": (replace(DELTA, lr_scope="key"), ("materialised", "reference")),
}


@pytest.mark.parametrize("name", TIERS)
def test_tiers(name: str) -> None:
    rule, tiers = TIERS[name]
    assert rule.tiers == tiers
    assert rule.tier == tiers[0]


def test_presets_run_on_the_tier_they_were_made_for() -> None:
    tiers: dict[str, list[str]] = {}
    for name, preset in presets.PRESETS.items():
        tiers.setdefault(preset().tier, []).append(name)
    assert tiers == {
        "dual": [
            "titans",
            "titans_swiglu",
            "moneta",
            "yaad",
            "memora",
            "ttt_linear",
            "ttt_mlp",
            "lact",
            "dla",
            "omega_net",
            "atlas",
            "tnt",
        ],
        "delta": [
            "titans_linear",
            "linear_attention",
            "retnet",
            "gla",
            "mamba2",
            "hgrn2",
            "deltanet",
            "gated_deltanet",
            "longhorn",
            "rwkv7",
            "deltaproduct",
        ],
        "least squares": ["mesa"],
        "attention": ["softmax_attention"],
    }


def test_maps_and_gate_widths() -> None:
    maps = Rule(MLP(3, 2.0)).maps(4, 5)
    assert maps == (Map("layer1", 4, 8), Map("layer2", 8, 8), Map("layer3", 8, 5))
    assert [gate_width(scope, maps) for scope in ("head", "map", "key", "value")] == [1, 3, 20, 21]
    assert Rule(GatedMLP(0.1)).maps(4, 5) == (Map("gate", 4, 1), Map("up", 4, 1), Map("down", 1, 5))
    assert Rule(MLP(1)).maps(4, 5) == (Map("layer1", 4, 5),)


def test_scopes_name_the_gates_a_rule_has() -> None:
    assert presets.deltanet().scopes == ("head", None, None, None, None)
    assert presets.titans().scopes == ("map", "map", "map", None, None)
    assert presets.yaad().scopes == ("map", None, "map", "head", None)
    assert presets.softmax_attention().scopes == (None,) * 5
    assert not presets.deltanet().has_momentum
    assert presets.titans().has_momentum


def test_a_normed_memory_does_not_start_at_zero() -> None:
    assert Matrix().initial_gain("matrix") == 0.0
    assert Residual(Matrix()).initial_gain("matrix") == 1.0
    assert Residual(MLP()).initial_gain("layer1") == 1.0
