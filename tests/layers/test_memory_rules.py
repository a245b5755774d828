"""What rules ask of the memory layer beside a query, a key and a value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fastweights.core import presets
from fastweights.core.engine import run
from fastweights.core.types import Gates
from fastweights.layers.memory import MemoryLayer
from fastweights.models.config import ModelConfig
from fastweights.models.language_model import LanguageModel

WIRINGS = ("lmm", "mac", "mag", "mal")


@pytest.mark.parametrize("name", presets.PRESETS)
@pytest.mark.parametrize("wiring", WIRINGS)
def test_every_preset_is_the_memory_of_every_wiring(name: str, wiring: Any) -> None:
    """Streams in pieces as in one call, and gives every parameter a gradient."""
    rule = presets.PRESETS[name]()
    config = ModelConfig(vocab_size=11, dim=8, depth=1, heads=2, rule=rule, wiring=wiring, window=4)
    model = LanguageModel(config).double()
    ids = torch.randint(0, 11, (2, 70), generator=torch.Generator().manual_seed(0))
    whole = model(ids)
    first = model(ids[:, :30])
    second = model(ids[:, 30:], first.state)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole.logits, rtol=1e-9, atol=1e-10)
    whole.logits.square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_fixed_gates_are_the_same_for_all_tokens() -> None:
    layer = MemoryLayer(8, 4, presets.retnet())
    assert layer.gates is None
    gates = layer.open_gates(torch.randn(2, 5, 8))
    assert gates.retain is not None
    assert torch.equal(gates.retain, gates.retain[:1, :, :1].expand(2, 4, 5, 1))
    torch.testing.assert_close(gates.retain[0, :, 0, 0], 1 - 2.0 ** -torch.arange(5.0, 9.0))


def test_a_gate_may_be_fixed_beside_others_that_move() -> None:
    layer = MemoryLayer(8, 2, presets.gla())
    layer.gates.weight.data.normal_(std=9.0)  # type: ignore[union-attr]
    gates = layer.open_gates(torch.randn(2, 5, 8))
    assert gates.lr is not None
    assert gates.retain is not None
    assert gates.lr.min() == gates.lr.max()
    assert gates.retain.shape == (2, 2, 5, 4)
    assert gates.retain.std(2).min() > 0


def test_gates_keep_their_ranges() -> None:
    layer = MemoryLayer(8, 2, presets.yaad())
    layer.gates.weight.data.normal_(std=9.0)  # type: ignore[union-attr]
    gates: Gates = layer.open_gates(torch.randn(3, 50, 8))
    assert gates.threshold is not None
    assert 0 <= gates.threshold.min() < 0.1
    assert 7.8 < gates.threshold.max() <= 8.0


def test_several_keys_come_from_projections_of_their_own() -> None:
    layer, single = MemoryLayer(8, 2, presets.deltaproduct(3)), MemoryLayer(8, 2, presets.gated_deltanet())
    assert layer.qkv.out_features == 7 * 8
    assert single.qkv.out_features == 3 * 8
    assert layer.open_gates(torch.randn(1, 4, 8)).lr.shape == (1, 2, 4, 3)  # type: ignore[union-attr]


def test_a_tied_key_is_what_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = MemoryLayer(8, 2, presets.hgrn2())
    assert layer.qkv.out_features == 2 * 8
    seen: list[Any] = []

    def watched(*given: Any) -> Any:
        seen.append(given)
        return run(*given)

    monkeypatch.setattr("fastweights.layers.memory.run", watched)
    layer(torch.randn(1, 6, 8))
    k, gates = seen[0][3], seen[0][5]
    assert torch.equal(k, 1.0 - gates.retain)


def test_constants_start_as_the_rule_says_and_are_learned() -> None:
    layer = MemoryLayer(8, 2, presets.ttt_linear())
    assert torch.equal(layer.initial["gain"], torch.ones(2, 1, 4))
    assert torch.equal(layer.initial["shift"], torch.zeros(2, 1, 4))
    assert layer.initial["matrix"].shape == (2, 4, 5)


def test_matrices_that_only_collect_start_at_zero_and_are_not_learned() -> None:
    layer = MemoryLayer(8, 2, presets.mesa())
    assert set(layer.initial) == {"matrix", "ridge"}
    assert not layer.initial_weights()[1].any()


@pytest.mark.parametrize("name", ["memora", "lact", "moneta"])
def test_memories_start_with_weights_that_can_be_told_apart(name: str) -> None:
    """A link or a row norm must not make all rows alike, nor leave them without length."""
    rule = replace(presets.PRESETS[name](), chunk_size=16)
    layer = MemoryLayer(32, 2, rule)
    memory = layer.init_state(1).memory
    for w in memory.anchor:
        assert w.std(-2).mean() > 0.1 * w.abs().mean()
