from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.layers.wirings import RULES, WIRINGS, floats, mixer
from torch import Tensor

from fastweights.core import presets
from fastweights.core.architecture import MLP, Matrix, Residual
from fastweights.core.bias import L2, DotProduct
from fastweights.core.engine import init_state, read, run
from fastweights.core.layout import make_layout
from fastweights.core.rule import Rule
from fastweights.errors import UserError
from fastweights.layers.conformance import stirred
from fastweights.layers.convolution import OWN
from fastweights.layers.memory import GateStart, MemoryLayer
from fastweights.layers.self_modifying import SelfModifyingTitans


def plain(layer: MemoryLayer, x: Tensor) -> Tensor:
    """The layer as its docstring says, with PyTorch's own convolution and the autograd loop for the rule."""
    kernel = layer.convolution.weight.flip(0).T.unsqueeze(1)
    before = F.pad(layer.qkv(x).transpose(1, 2), (layer.convolution.size - 1, 0))
    mixed = F.silu(F.conv1d(before, kernel, groups=kernel.shape[0]).transpose(1, 2))
    q, k, v = (part.unflatten(-1, (layer.heads, layer.head_dim)).transpose(1, 2) for part in mixed.chunk(3, -1))
    if layer.rule.normalise_qk:
        q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
    initial = layer.initial_weights()
    state = init_state(layer.rule, initial, x.shape[0])
    y = run(layer.rule, initial, q, k, v, layer.open_gates(x), state, tier="reference").y
    y = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.norm.weight
    return layer.out(y.transpose(1, 2).flatten(2) * F.silu(layer.out_gate(x)))


@pytest.mark.parametrize("rule", [*RULES.values(), presets.linear_attention(), presets.gated_deltanet()])
def test_the_layer_is_what_it_says(rule: Rule) -> None:
    layer = stirred(MemoryLayer(12, 2, rule).double())
    x = floats(2, 11, 12)
    torch.testing.assert_close(layer(x).y, plain(layer, x), rtol=1e-9, atol=1e-9)


def test_gates_lie_in_their_ranges_and_have_the_shapes_of_their_scopes() -> None:
    for rule in RULES.values():
        layer = MemoryLayer(8, 2, rule)
        assert layer.gates is not None
        layer.gates.weight.data.normal_(std=3.0)
        gates = layer.open_gates(torch.randn(3, 50, 8))
        width = 2 if rule.lr_scope == "map" else 1
        assert gates.momentum is not None
        assert gates.retain is not None
        for gate, top in zip(gates[:3], (rule.lr_max, 1.0, 1.0), strict=True):
            assert gate is not None
            assert gate.shape == (3, 2, 50, width)
            assert 0.0 <= gate.min() < 0.01 * top
            assert 0.99 * top < gate.max() <= top


@pytest.mark.parametrize("wiring", WIRINGS)
def test_initial_gates_forget_nothing_and_initial_lr_is_half_its_range(wiring: str) -> None:
    rule = RULES["titans"]
    (felt,) = MemoryLayer(16, 2, rule)(torch.randn(2, 40, 16), surprise=True).surprise
    assert torch.equal(felt.retain, torch.ones(2, 2, 40))
    assert felt.lr.mean().item() == pytest.approx(0.5 * rule.lr_max, rel=0.02)
    assert felt.momentum.mean().item() == pytest.approx(0.1, rel=0.1)


def test_a_matrix_memory_starts_empty_and_a_deep_one_does_not() -> None:
    assert not any(w.any() for w in MemoryLayer(8, 2, presets.titans_linear()).initial_weights())
    assert all(w.any() for w in MemoryLayer(8, 2, RULES["titans"]).initial_weights())
    assert all(w.any() for w in MemoryLayer(8, 2, Rule(Residual(Matrix()))).initial_weights())


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_gradients_flow_to_the_initial_weights_through_a_long_stream(rule: Rule) -> None:
    layer = stirred(MemoryLayer(8, 2, rule).double())
    layer(floats(2, 30, 8)).y[:, -1].square().sum().backward()
    for weight in layer.initial.values():
        assert weight.grad is not None
        assert weight.grad.flatten(1).any(1).all()


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("rule", RULES)
def test_surprise_has_a_number_for_each_token_and_head(wiring: str, rule: str) -> None:
    reading = mixer(wiring, rule)(floats(2, 13, 16), surprise=True)
    (felt,) = reading.surprise
    for name, field in felt._asdict().items():
        assert field.shape == (2, 2, 13), name
        assert field.isfinite().all()
    assert (felt.loss >= 0).all()
    assert (felt.gradient_norm > 0).all()
    assert not felt.rejected.any()
    assert (felt.retain <= 1).all()


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("rule", RULES)
def test_surprise_costs_nothing_when_not_asked_for(wiring: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = mixer(wiring, rule), floats(2, 13, 16)
    asked = layer(x, surprise=True)
    calls: list[str] = []
    loss = L2.loss

    def counted(self: L2, prediction: Tensor, target: Tensor, threshold: Tensor | None = None) -> Tensor:
        calls.append("loss")
        return loss(self, prediction, target, threshold)

    monkeypatch.setattr(L2, "loss", counted)
    reading = layer(x)
    assert (reading.surprise, calls) == ((), [])
    assert torch.equal(reading.y, asked.y)
    layer(x, surprise=True)
    assert calls


def test_surprise_is_the_loss_at_the_weights_the_chunk_began_with() -> None:
    rule = replace(RULES["titans_linear"], chunk_size=4, clip=None, architecture=MLP(2, 1.0))
    layer = stirred(MemoryLayer(6, 1, rule).double())
    x = floats(1, 8, 6)
    (felt,) = layer(x, surprise=True).surprise
    half = layer(x[:, :4]).state
    mixed, _ = layer.convolution(layer.qkv(x), layer.convolution.init_state(1), make_layout(torch.zeros(1).long(), 8))
    _, k, v = F.silu(mixed[:, 4:]).unsqueeze(1).chunk(3, -1)
    prediction = read(rule, layer.initial_weights(), half.memory.dual, F.normalize(k, dim=-1))
    torch.testing.assert_close(felt.loss[:, :, 4:], 0.5 * (prediction - v).square().sum(-1))


def test_a_token_that_is_not_finite_writes_nothing_and_is_reported() -> None:
    layer = stirred(MemoryLayer(8, 2, RULES["titans"], convolution=1))
    x = torch.randn(1, 9, 8)
    broken = x.clone()
    broken[0, 5, 2] = float("nan")
    got, want = layer(broken, surprise=True), layer(x[:, [0, 1, 2, 3, 4, 6, 7, 8]])
    assert got.surprise[0].rejected[0].any(0).tolist() == [False] * 5 + [True] + [False] * 3
    assert all(w.isfinite().all() for w in got.state.memory.dual)
    assert torch.equal(got.y[:, :5], want.y[:, :5])
    assert got.y[:, 6:].isfinite().all()


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_bfloat16_layer_answers_about_what_a_float32_one_does(wiring: str) -> None:
    layer = mixer(wiring, "titans_swiglu").bfloat16()
    x = torch.randn(2, 20, 16).bfloat16()
    reading: Any = layer(x)
    want = copy.deepcopy(layer).float()(x.float()).y
    assert reading.y.dtype == torch.bfloat16
    assert (reading.y.float() - want).norm() < 0.1 * want.norm()


@pytest.mark.parametrize("build", [MemoryLayer, SelfModifyingTitans])
@torch.no_grad()
def test_heads_may_reach_less_far_than_the_first(build: type[MemoryLayer | SelfModifyingTitans]) -> None:
    rule = presets.deltanet() if build is MemoryLayer else presets.hope(bias=DotProduct())
    layer = build(12, 3, rule, gates=GateStart(lr=0.9, lr_last=0.01))
    for name, parameter in layer.named_parameters():
        if name.startswith(("gates.weight", "readouts")):
            parameter.zero_()  # What is left are the biases.
    felt = layer(torch.randn(1, 5, 12), surprise=True).surprise[0]
    torch.testing.assert_close(felt.lr[0, :, -1], torch.tensor([0.9, 0.09, 0.009]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "share"), [("threshold", 1.0), ("lr", 1.0), ("lr_last", 1.1), ("momentum", 1.0)])
def test_gates_that_would_start_outside_their_range_are_refused(name: str, share: float) -> None:
    with pytest.raises(UserError, match=name):
        GateStart(**{name: share})


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(UserError, match="dim 10 is not divisible by 3 heads"):
        MemoryLayer(10, 3, RULES["titans"])


@pytest.mark.parametrize(("name", "own"), [("titans_linear", OWN), ("ttt_mlp", 0.0)])
def test_starting_by_induction_binds_each_value_to_the_query_of_the_token_before(name: str, own: float) -> None:
    """A first key of nothing has no direction; where keys keep their length it needs none."""
    layer = MemoryLayer(8, 2, presets.PRESETS[name]())
    layer.start_induction()
    x = torch.randn(1, 6, 8)
    mixed, _ = layer.convolution(layer.qkv(x), layer.convolution.init_state(1), make_layout(torch.zeros(1).long(), 6))
    q, k, _ = mixed.chunk(3, -1)
    torch.testing.assert_close(k[:, 1:], q[:, :-1] + own * q[:, 1:])
    torch.testing.assert_close(k[:, :1], own * q[:, :1])


def test_autocast_leaves_the_memory_in_float32() -> None:
    x = torch.randn(2, 9, 8)
    for rule in RULES.values():
        layer = stirred(MemoryLayer(8, 2, rule))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            reading = layer(x)
        assert {w.dtype for w in reading.state.memory.dual} == {torch.float32}
        torch.testing.assert_close(reading.y.float(), layer(x).y, rtol=0.1, atol=0.1)


def test_keys_of_a_bfloat16_layer_have_unit_length() -> None:
    """A write without the half and with lr 1 multiplies by 1 - 2 |k|^2: with keys rounded to bfloat16 it grew."""
    rule = replace(presets.deltanet(), bias=L2(half=False))
    layer = stirred(MemoryLayer(64, 1, rule)).bfloat16()
    assert layer.gates is not None
    layer.gates.bias.data.fill_(50.0)
    state = layer(torch.randn(1, 1, 64).bfloat16().expand(1, 1500, 64)).state
    assert state.memory.dual[0].norm() < 100
