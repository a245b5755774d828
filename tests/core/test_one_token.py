"""Chunks of one token: the short way is the dual tier's in answers, states and gradients, whatever the rule is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastweights.core import presets, self_modifying
from fastweights.core.algorithm import GradientDescent
from fastweights.core.bias import DotProduct
from fastweights.core.one_token import one_token_applies, write_token
from fastweights.core.retention import NoRetention
from fastweights.core.rule import Rule
from fastweights.layers.conformance import stirred
from fastweights.layers.self_modifying import GENERATORS, SelfModifyingTitans
from fastweights.models.language_model import flatten_state

RULES: dict[str, tuple[Rule, tuple[str, ...]]] = {
    "momentum": (presets.hope(1, momentum=True), GENERATORS),
    "a network": (replace(presets.hope(1, 2.0), clip=None), GENERATORS),
    "a network with momentum, clipped": (replace(presets.hope(1, 2.0, momentum=True), clip=0.1), GENERATORS),
    "nothing is forgotten": (replace(presets.hope(1), retention=NoRetention()), GENERATORS),
    "nothing is erased": (replace(presets.hope(1), algorithm=GradientDescent()), GENERATORS),
    "dot product, queries too": (presets.hope(1, bias=DotProduct()), (*GENERATORS, "query")),
    "only keys move": (presets.hope(1), ("key",)),
}

ROWS: dict[str, dict[str, Tensor]] = {
    "plain": {},
    "padded": {"mask": torch.tensor([[0, 1, 1, 0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0, 0, 0, 0]]).bool()},
}


def both_ways(
    monkeypatch: pytest.MonkeyPatch, layer: SelfModifyingTitans, call: Callable[[], Any]
) -> tuple[list[Tensor], list[Tensor], int]:
    """Answers, states and gradients of the short way and of the dual tier, and how often the short way was gone."""
    gone = 0

    def counted(*arguments: Any) -> Any:
        nonlocal gone
        found = write_token(*arguments)
        gone += found is not None
        return found

    def everything() -> list[Tensor]:
        reading = call()
        state = list(flatten_state(reading.state).values())
        parts = [reading.y, *(x for x in state if x.is_floating_point())]
        loss = sum((x * torch.linspace(1, 2, x.numel(), dtype=x.dtype).view_as(x)).sum() for x in parts)
        return [*parts, *torch.autograd.grad(loss, list(layer.parameters()), materialize_grads=True)]

    monkeypatch.setattr(self_modifying, "write_token", counted)
    short = everything()
    monkeypatch.setattr(self_modifying, "one_token_applies", lambda rule: False)
    return short, everything(), gone


def layer_of(name: str) -> SelfModifyingTitans:
    torch.manual_seed(0)
    rule, adaptive = RULES[name]
    return stirred(SelfModifyingTitans(8, 2, rule, 1, adaptive).double())


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", RULES)
def test_the_short_way_is_the_dual_tiers(name: str, rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of(name)
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    short, dual, gone = both_ways(monkeypatch, layer, lambda: layer(x, **ROWS[rows]))
    assert gone > 0
    for a, b in zip(short, dual, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_documents_in_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of("momentum")
    x, ends = torch.randn(1, 12, 8, dtype=torch.float64), torch.tensor([0, 5, 6, 12])
    short, dual, gone = both_ways(monkeypatch, layer, lambda: layer(x, cu_seqlens=ends))
    assert gone > 0
    for a, b in zip(short, dual, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("bad", [float("nan"), 1e200])
def test_a_token_that_is_not_finite_or_overflows_writes_nothing(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of("a network")
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    x[0, 3] = bad
    with torch.no_grad():
        short = layer(x).state.memory.dual
        monkeypatch.setattr(self_modifying, "one_token_applies", lambda rule: False)
        for a, b in zip(short, layer(x).state.memory.dual, strict=True):
            assert a.isfinite().all()
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", ["momentum", "a network"])
def test_shut_gates_need_no_gradients_and_change_nothing_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of(name)
    x, y = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    with torch.no_grad():
        state = layer(x).state
        layer.readouts["lr"].zero_()
        layer.biases["lr"].fill_(-10.0)
        short = layer(y, state).state.memory
    recorded = layer(y, state).state.memory
    for a, b in zip((*short.dual, *short.momentum), (*recorded.dual, *recorded.momentum), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_what_it_is_for() -> None:
    assert one_token_applies(presets.hope(1))
    assert not one_token_applies(presets.hope(2))
    assert not one_token_applies(presets.memora(chunk_size=1))
    assert not one_token_applies(replace(presets.hope(1), read="before"))
