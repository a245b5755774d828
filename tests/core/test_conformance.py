"""The suite certifies every preset and every choice, and it sees what is broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastweights.core import (
    conformance,
    decay,
    delta,
    dual,
    engine,
    gradient,
    layout,
    materialised,
    opening,
    presets,
    reference,
)
from fastweights.core.algorithm import (
    DeltaGradientDescent,
    GradientDescent,
    Hierarchy,
    ImplicitStep,
    Momentum,
    Nesterov,
    Steps,
)
from fastweights.core.architecture import MLP, Back, GatedMLP, Matrix, Record, Residual, Vector
from fastweights.core.bias import KL, L2, LP, DotProduct, Huber, Omega, RobustL2
from fastweights.core.conformance import FULL, QUICK, Report, check_presets, check_rule
from fastweights.core.features import Polynomial
from fastweights.core.retention import (
    Bounded,
    ElasticNet,
    FDivergence,
    KLDivergence,
    LQNorm,
    NoRetention,
    Reset,
    RowNorm,
    SoftThreshold,
    WeightDecay,
)
from fastweights.core.rule import Rule
from fastweights.errors import UserError

SHORT = ((1, 3), (7, 16))

COMPILED = ("titans", "titans_linear", "memora", "lact", "rwkv7", "deltaproduct", "mesa", "omega_net", "tnt")

RULES = {
    "mlp of depth 1": Rule(MLP(1)),
    "mlp of depth 2, relu, no clip": Rule(MLP(2, 1.5, "relu"), lr_max=0.1, clip=None),
    "mlp of depth 3, silu, read before": Rule(MLP(3, 1.5, "silu"), read="before"),
    "mlp, tanh, read at the chunk's start": Rule(MLP(2, 2.0, "tanh"), read="chunk"),
    "mlp, dot product": Rule(MLP(2, 2.0), DotProduct()),
    "mlp, gates per map": Rule(MLP(2, 2.0), L2(), WeightDecay("map"), Momentum("head"), lr_scope="map"),
    "mlp, retain per key": Rule(MLP(2, 1.5), L2(), WeightDecay("key"), Momentum("map")),
    "mlp, retain per value, read before": Rule(MLP(2, 1.5), L2(), WeightDecay("value"), read="before"),
    "matrix, all gates per channel": Rule(Matrix(), L2(False), WeightDecay("value"), Momentum("key"), lr_scope="value"),
    "matrix, lr per key, read at the chunk's start": Rule(Matrix(), lr_scope="key", read="chunk"),
    "swiglu, gelu, no momentum": Rule(GatedMLP(1.5, "gelu"), L2(False), WeightDecay(), GradientDescent()),
    "swiglu, nothing forgotten": Rule(GatedMLP(1.5), L2(), NoRetention()),
    "residual matrix": Rule(Residual(Matrix()), L2(), NoRetention(), GradientDescent(), clip=None),
    "residual swiglu": Rule(Residual(GatedMLP(1.5)), L2()),
    "delta, no half, momentum, read before": Rule(Matrix(), L2(False), clip=None, read="before"),
    "delta, decay first, momentum": Rule(Matrix(), L2(False), clip=None, chunk_size=1, decay_before_grad=True),
    "delta, decay first, read before": Rule(
        Matrix(), L2(), WeightDecay(), GradientDescent(), clip=None, chunk_size=1, decay_before_grad=True, read="before"
    ),
    "hebbian, momentum and decay": Rule(Matrix(), DotProduct(), clip=None),
    "mlp, decay first": Rule(MLP(2, 1.5), chunk_size=1, decay_before_grad=True),
    "mlp, decay first, per map": Rule(
        MLP(2, 1.5), L2(), WeightDecay("map"), Nesterov(), chunk_size=1, decay_before_grad=True, clip=0.5
    ),
    "vector, decay first": Rule(Vector(), chunk_size=1, decay_before_grad=True),
    "mlp, decay first, per channel (on the reference)": Rule(
        MLP(2, 1.5), L2(), WeightDecay("key"), chunk_size=1, decay_before_grad=True
    ),
    "hierarchy of three": Rule(
        MLP(2, 1.5), L2(), WeightDecay(), Hierarchy((2, 4), 8), chunk_size=8, read="chunk", lr_max=0.1
    ),
    "vector": Rule(Vector()),
    "vector, gates per key": Rule(Vector(), L2(), WeightDecay("key"), Nesterov(), lr_scope="key"),
    "biases, gelu by tanh": Rule(Residual(MLP(2, 1.5, "gelu_tanh", bias=True), affine=True), lr_max=0.005),
    "polynomial of degree 3": Rule(Polynomial(Matrix(), 3), clip=None),
    "errors of power 1": Rule(MLP(2, 1.5), LP(1.0, 1e-2)),
    "errors of power 2, online": Rule(Matrix(), LP(2.0), clip=None, chunk_size=1),
    "huber by coordinate": Rule(MLP(2, 1.5), Huber("coordinate")),
    "robust": Rule(MLP(2, 1.5), RobustL2(eps=1e-3)),
    "distributions": Rule(MLP(2, 1.5), KL()),
    "a window over clipped errors, per channel": Rule(MLP(2, 1.5), Omega(Huber("norm"), 3), WeightDecay("value")),
    "links at every token": Rule(MLP(2, 1.5), L2(), KLDivergence(link_at="token"), read="before"),
    "printed L_q": Rule(MLP(2, 1.5), L2(), LQNorm(form="printed", eps=1e-3), read="chunk"),
    "proximal": Rule(MLP(2, 1.5), L2(), ElasticNet(0.02)),
    "hidden below a threshold": Rule(MLP(2, 1.5), L2(), SoftThreshold(0.02), read="chunk"),
    "divergence chi2": Rule(MLP(2, 1.5), L2(), FDivergence()),
    "bounded at every token": Rule(MLP(2, 1.5), L2(), Bounded(link_at="token")),
    "unit slots": Rule(Matrix(), L2(), RowNorm(unit=True, scope="head")),
    "reset": Rule(MLP(2, 1.5), L2(), Reset(WeightDecay(), 32)),
    "nesterov": Rule(MLP(2, 1.5), L2(), WeightDecay(), Nesterov()),
    "erasing, momentum": Rule(MLP(2, 1.5), L2(), WeightDecay("value"), DeltaGradientDescent("head"), lr_max=0.3),
    "hope": replace(presets.hope(4, 1.5), lr_max=0.3),
    "hope, a matrix": presets.hope(4),
    "erasing": Rule(MLP(2, 1.5), L2(), WeightDecay(), DeltaGradientDescent(), lr_max=0.3),
    "implicit, decay": Rule(
        Matrix(), L2(), WeightDecay(), ImplicitStep(), chunk_size=1, clip=None, decay_before_grad=True
    ),
    "steps of a deep memory": Rule(MLP(2, 1.5), L2(), WeightDecay(), Steps(2), chunk_size=1),
    "decay per key first": Rule(
        Matrix(), L2(), WeightDecay("key"), GradientDescent(), chunk_size=1, clip=None, decay_before_grad=True
    ),
    "lr per key, read before": Rule(
        Matrix(), L2(), WeightDecay(), GradientDescent(), chunk_size=1, clip=None, lr_scope="key", read="before"
    ),
}


@pytest.mark.parametrize("name", presets.PRESETS)
def test_presets_conform(name: str) -> None:
    """Compilation, which takes the most time, is tested where a preset brings code of its own to it."""
    without = () if name in COMPILED else (10,)
    report = check_rule(presets.PRESETS[name](), grid=QUICK, seeds=9, without=without, title=name)
    assert report.ok, report.table()


@pytest.mark.parametrize("name", RULES)
def test_every_choice_conforms(name: str) -> None:
    """Compilation (property 10) depends on the tier alone and is tested with the presets."""
    grid = ((8, 19),) if name == "hierarchy of three" else SHORT
    report = check_rule(RULES[name], grid=grid, seeds=9, without=(10,), title=name)
    assert report.ok, report.table()


def test_materialised_compiles() -> None:
    """No preset runs on this tier."""
    report = check_rule(RULES["mlp, retain per key"], grid=[(4, 3)], seeds=5, without=range(1, 10))
    assert report.ok, report.table()
    assert [f.ok for f in report.findings if f.property == "10 one graph"] == [True]


def test_check_presets_goes_through_all(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fake(rule: Rule, *, grid: Any, title: str) -> Report:
        asked.append((rule, grid))
        return Report(title, ())

    monkeypatch.setattr(conformance, "check_rule", fake)
    assert [report.title for report in check_presets("quick")] == list(presets.PRESETS)
    assert asked[0] == (presets.titans(), QUICK)
    assert len(list(check_presets())) == len(presets.PRESETS)
    assert asked[-1][1] == FULL


def test_what_does_not_apply_is_reported_with_the_reason() -> None:
    report = check_rule(presets.gated_deltanet(), grid=[(4, 3), (1, 3)], seeds=3, without=range(2, 12))
    assert report.ok
    assert [f.ok for f in report.findings if f.chunk == 4] == [None]
    assert "only defined online" in report.table()
    assert "left out" in report.table()


def test_value_size_must_suit_the_rule() -> None:
    with pytest.raises(UserError, match="one size"):
        check_rule(presets.titans(), value_dim=5)


# What follows breaks one thing at a time; each test says which properties must see it.


def failed(rule: Rule, *numbers: int, chunk: int = 4, time: int = 10) -> set[int]:
    """Of the properties with these numbers, those that fail."""
    report = check_rule(rule, grid=[(chunk, time)], seeds=3, without=set(range(1, 12)) - set(numbers))
    assert ("FAILED" in report.table()) is not report.ok
    return {int(f.property.split()[0]) for f in report.failures}


@dataclass(frozen=True)
class Upside(L2):
    """Its gradient has the wrong sign."""

    def gradient(self, prediction: Tensor, target: Tensor, threshold: Tensor | None = None) -> Tensor:
        return target - prediction


@dataclass(frozen=True)
class Straight(MLP):
    """Its backward forgets the activation."""

    def backward(self, record: Record, back: Back, tape: Any, grad: Tensor) -> None:
        for i in range(self.depth, 0, -1):
            record(f"layer{i}", grad)
            grad = back(f"layer{i}", grad)


@dataclass(frozen=True)
class TooSteep(L2):
    """It declares a slope that its gradient does not have."""

    def affine(self) -> Any:
        return L2(half=False).affine()


SMALL = Rule(MLP(2, 1.0), L2(), chunk_size=4)
ONLINE = Rule(Matrix(), L2(), clip=None, chunk_size=1)


def test_a_wrong_sign_is_seen() -> None:
    assert failed(Rule(MLP(2, 1.0), Upside()), 1, 2, 6) == {1, 2, 6}


def test_a_wrong_inner_gradient_is_seen() -> None:
    assert failed(Rule(Straight(2, 1.0), L2()), 1, 2) == {1, 2}


def test_a_wrong_affine_is_seen() -> None:
    assert failed(Rule(Matrix(), TooSteep(), clip=None), 1, 2, chunk=1) == {1, 2}


def replaced(function: Callable[..., Any], **fields: Callable[[Any], Any]) -> Callable[..., Any]:
    """The function with some fields of its result (a NamedTuple) changed."""

    def broken(*given: Any) -> Any:
        result = function(*given)
        return result._replace(**{name: change(getattr(result, name)) for name, change in fields.items()})

    return broken


def test_a_momentum_that_does_not_fade_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dual, "coefficients", replaced(decay.coefficients, fade=torch.ones_like))
    assert failed(SMALL, 1, 3) == {1, 3}


def test_a_read_that_is_off_by_one_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dual, "before", lambda c: c)
    assert failed(Rule(MLP(2, 1.0), read="before"), 1) == {1}


def test_errors_of_the_wrong_token_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "before", lambda c: c)
    assert failed(ONLINE, 1, chunk=1) == {1}


@pytest.mark.parametrize("tier", [dual, materialised])
def test_a_clip_that_is_missing_on_one_tier_is_seen(monkeypatch: pytest.MonkeyPatch, tier: Any) -> None:
    def unclipped(rule: Rule, *given: Any) -> Any:
        return gradient.chunk_gradients(replace(rule, clip=None), *given)

    monkeypatch.setattr(tier, "chunk_gradients", unclipped)
    assert failed(SMALL, 1) == {1}


def test_an_anchor_taken_anew_in_every_call_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def eager(rule: Rule, memory: Any, slow: Any, opens: Any) -> Any:
        return opening.open_chunk(rule, memory, slow, opens._replace(fresh=None))

    monkeypatch.setattr(dual, "open_chunk", eager)
    assert failed(SMALL, 1, 3) == {1, 3}


def test_an_anchor_never_taken_anew_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(rule: Rule, memory: Any, slow: Any, opens: Any) -> Any:
        never = torch.zeros(len(next(iter(memory.dual.values()))), dtype=torch.bool)
        return opening.open_chunk(rule, memory, slow, opens._replace(fresh=never))

    monkeypatch.setattr(dual, "open_chunk", stale)
    assert failed(SMALL, 1) == {1}


def test_padding_that_decays_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dual, "coefficients", lambda lr, m, r, real, how: decay.coefficients(lr, m, r, None, how))
    assert failed(SMALL, 1, 3, 5) == {1, 3, 5}


def test_chunks_counted_in_slots_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        engine, "make_grid", lambda where, size, blocks=False: layout.make_grid(where, size, blocks=True)
    )
    assert failed(SMALL, 1, 3) == {1, 3}


def test_documents_that_run_on_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        dual,
        "open_chunk",
        lambda rule, memory, slow, opens: opening.open_chunk(rule, memory, slow, opens._replace(reset=None)),
    )
    assert failed(SMALL, 1, 5) == {1, 5}


def test_heads_that_mix_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def mixed(call: Any, grid: Any) -> Any:
        return original(call._replace(k=call.k + 1e-6 * call.k.roll(1, 1)), grid)

    original = engine._chunks
    monkeypatch.setattr(engine, "_chunks", mixed)
    assert failed(SMALL, 1, 5) == {1, 5}


def test_a_look_ahead_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same change in the reference hides it from property 1."""

    def ahead(run: Callable[..., Any]) -> Callable[..., Any]:
        def peeking(rule: Rule, initial: Any, q: Tensor, *given: Any, **named: Any) -> Any:
            return run(rule, initial, q + 1e-9 * q.roll(-1, 2), *given, **named)

        return peeking

    monkeypatch.setattr("fastweights.core.conformance_trial.run", ahead(engine.run))
    assert failed(SMALL, 4) == {4}


def test_a_token_that_is_not_rejected_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "rejecting", lambda call: call)
    assert failed(SMALL, 1, 3, 8) == {8}


def test_a_state_that_grows_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def growing(*given: Any) -> Any:
        outcome = original(*given)
        state = outcome.state
        return outcome._replace(state=state._replace(extra=(*state.extra, torch.zeros(2, 1))))

    original = engine._run_chunks
    monkeypatch.setattr(engine, "_run_chunks", growing)
    assert failed(SMALL, 9) == {9}


def test_an_aliased_state_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    original = engine._unflatten
    monkeypatch.setattr(engine, "_unflatten", lambda *given: (s := original(*given))._replace(anchor=s.dual))
    assert failed(SMALL, 9) == {9}


def test_a_state_changed_in_place_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(*given: Any) -> Any:
        memory = original(*given)
        with torch.no_grad():
            memory.dual["layer1"].mul_(0.5)
        return memory

    original = engine._flatten
    monkeypatch.setattr(engine, "_flatten", careless)
    assert failed(SMALL, 11) == {11}


def test_a_gate_without_gradient_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(lr: Tensor, momentum: Tensor | None, retain: Tensor | None, real: Tensor | None, how: Any) -> Any:
        return decay.coefficients(lr.detach(), momentum, retain, real, how)

    monkeypatch.setattr(dual, "coefficients", cut_off)
    assert failed(SMALL, 1, 7) == {1, 7}


def test_a_loop_that_differs_is_seen_wherever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison has two sides: a wrong reference fails as well."""
    original = reference.inner_gradient

    def doubled(*given: Any) -> Any:
        loss, grads, norm, overflown = original(*given)
        return loss, tuple(2.0 * g for g in grads), norm, overflown

    monkeypatch.setattr(reference, "inner_gradient", doubled)
    assert failed(SMALL, 1) == {1}
