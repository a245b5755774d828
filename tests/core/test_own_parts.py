"""What is refused of a user's own parts and inputs, each in one sentence that says what would be right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fastweights.core import bias, presets
from fastweights.core.algorithm import GradientDescent, Hierarchy
from fastweights.core.architecture import MLP, Matrix
from fastweights.core.bias import L2, Bias
from fastweights.core.conformance import check_rule
from fastweights.core.conformance_trial import make_trial
from fastweights.core.engine import init_state, run
from fastweights.core.retention import Retention, WeightDecay
from fastweights.core.rule import Rule, rule_from_dict
from fastweights.errors import UserError
from fastweights.layers.memory import MemoryLayer


@dataclass(frozen=True)
class Vanish(Retention):
    """Its projection is not declared, so nothing would call it."""

    scope = None

    def project(self, dual: Tensor, anchor: Tensor, initial: Tensor) -> Tensor:
        return 0.0 * dual


class Loose(L2):
    """No dataclass of its own."""


@dataclass
class Soft(Bias):
    """Not frozen."""

    def loss(self, prediction: Tensor, target: Tensor, threshold: Tensor | None = None) -> Tensor:
        return (prediction - target).abs().sum(-1)

    def gradient(self, prediction: Tensor, target: Tensor, threshold: Tensor | None = None) -> Tensor:
        return torch.sign(prediction - target)


@dataclass(frozen=True)
class KL(Bias):
    """Its name is taken."""

    def loss(self, prediction: Tensor, target: Tensor, threshold: Tensor | None = None) -> Tensor:
        return (prediction - target).square().sum(-1)

    def gradient(self, prediction: Tensor, target: Tensor, threshold: Tensor | None = None) -> Tensor:
        return 2.0 * (prediction - target)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Rule(MLP(), L2(), Vanish()), "has a project of its own that nothing would call: declare projects"),
        (lambda: Rule(MLP(), Loose()), "Loose must be a frozen dataclass"),
        (lambda: Rule(MLP(), Soft()), "Soft must be a frozen dataclass"),
        (lambda: Rule(MLP(), KL()), "there is another choice called KL"),
        (lambda: Rule(L2()), "architecture must be an Architecture"),  # type: ignore[arg-type]
        (lambda: Rule(chunk_size=True), "a whole number"),
        (lambda: Rule(clip="1"), "clip must be above 0"),  # type: ignore[arg-type]
        (lambda: Rule(fixed="lr"), "a tuple of names"),  # type: ignore[arg-type]
        (lambda: Hierarchy(Hierarchy()), "a tuple of local chunk sizes"),  # type: ignore[arg-type]
        (lambda: MemoryLayer(8, 2, presets.titans), "call the preset, titans()"),  # type: ignore[arg-type]
        (lambda: check_rule(presets.yaad), "call the preset, yaad()"),  # type: ignore[arg-type]
    ],
)
def test_parts_are_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(UserError) as refusal:
        make()
    assert words in str(refusal.value)


def test_a_class_defined_again_counts_as_it_is_now() -> None:
    """As in a notebook, where a cell is run twice."""

    def define(scale: float) -> type[L2]:
        class Twice(L2):
            size = scale

        Twice.__qualname__ = "Twice"
        return dataclass(frozen=True)(Twice)

    old, new = define(1.0), define(2.0)
    assert type(rule_from_dict(Rule(MLP(), new()).to_dict()).bias) is new
    with pytest.raises(UserError, match="make the part again from its newest definition"):
        Rule(MLP(), old())


def test_a_grid_without_a_defined_chunk_size_is_replaced_by_the_rules_own() -> None:
    rule = Rule(Matrix(), L2(), WeightDecay(), GradientDescent(), chunk_size=1, clip=None, decay_before_grad=True)
    report = check_rule(rule, grid=[(4, 7)], seeds=3, without=(10,))
    assert {(f.chunk, f.length) for f in report.findings if f.property.startswith("3")} == {(1, 7), (1, 130)}


@pytest.mark.parametrize("other", ["deltanet", "titans_linear", "titans", "mesa"])
def test_a_state_of_another_rule_is_refused(other: str) -> None:
    rule = presets.yaad()
    trial, foreign = make_trial(rule, 4, 4), make_trial(presets.PRESETS[other](), 4, 4)
    q, k, v, gates = trial.inputs(trial.draw(2, 5, 0))
    with pytest.raises(UserError, match="the state was not made for this rule"):
        run(rule, trial.initial, q, k, v, gates, foreign.fresh(2))
    with pytest.raises(UserError, match="the state was not made for this rule"):
        run(rule, trial.initial, q, k, v, gates, trial.fresh(3))
    if other != "titans":
        with pytest.raises(UserError, match="initial weights and constants of this rule have the shapes"):
            run(rule, foreign.initial, q, k, v, gates, trial.fresh(2))
    with pytest.raises(UserError, match="a MemoryState from init_state"):
        run(rule, trial.initial, q, k, v, gates, None)  # type: ignore[arg-type]


def test_rules_that_keep_tokens_ask_for_sizes() -> None:
    for name in ("omega_net", "softmax_attention"):
        trial = make_trial(presets.PRESETS[name](), 4, 4)
        with pytest.raises(UserError, match=r"init_state needs sizes=\(K, V\)"):
            init_state(trial.rule, trial.initial, 1)


def test_layers_refuse_what_is_no_state_of_theirs() -> None:
    layer = MemoryLayer(8, 2, presets.deltanet())
    reading = layer(torch.randn(1, 3, 8))
    with pytest.raises(UserError, match=r"pass its \.state"):
        layer(torch.randn(1, 3, 8), reading)
    with pytest.raises(UserError, match="it is a MemoryState"):
        layer(torch.randn(1, 3, 8), reading.state.memory)


def test_the_shipped_names_stay_theirs() -> None:
    assert type(rule_from_dict(Rule(MLP(), bias.KL()).to_dict()).bias) is bias.KL
