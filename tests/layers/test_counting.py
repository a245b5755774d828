"""What a memory of its own targets adds up and turns round, exactly, where its values are bounded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.layers.wirings import floats
from torch import Tensor

from fastweights.core import presets
from fastweights.core.architecture import Architecture, Matrix, Residual, Skip
from fastweights.core.bias import L2, DotProduct
from fastweights.errors import UserError
from fastweights.layers.gates import held
from fastweights.layers.norm import unit
from fastweights.layers.self_modifying import SelfModifyingTitans, Values, bounded_value
from fastweights.models.config import ModelConfig
from fastweights.models.language_model import LanguageModel

RULE = replace(presets.hope(1, bias=DotProduct()), architecture=Matrix(), lr_max=1.1)


def made_layer(values: Values = "bounded") -> SelfModifyingTitans:
    torch.manual_seed(0)
    return SelfModifyingTitans(32, 2, RULE, 1, values=values).double()


def memories(layer: SelfModifyingTitans, x: Tensor) -> Tensor:
    """``[memories, heads, d, d]`` of one row at its end."""
    return layer(x).state.memory.dual[0][0].unflatten(0, (-1, layer.heads))


def test_parts_of_a_bounded_value_are_no_longer_than_one_and_reach_it() -> None:
    key, other = (unit(torch.randn(100, 8, dtype=torch.float64)) for _ in range(2))
    for share in (0.0, 0.3, 0.8, 1.0, -0.8):
        value = bounded_value(key, unit(share * key + (1 - abs(share)) * other))
        along = (value * key).sum(-1, keepdim=True)
        across = (value - along * key).norm(dim=-1)
        assert along.abs().max() <= 1 + 1e-12
        assert across.max() <= 1 + 1e-12
        assert (value[along[:, 0] <= 0].norm(dim=-1) <= 1 + 1e-9).all()
        if abs(share) == 0.8:
            torch.testing.assert_close(along, torch.full_like(along, share).sign())
        if share == 0.3:
            assert (across > 1 - 1e-12).double().mean() > 0.8


def test_what_is_held_goes_on_learning() -> None:
    x = torch.tensor([-3.0, -1.0, 0.5, 1.0, 7.0], requires_grad=True)
    y = held(x, -1.0, 1.0)
    y.sum().backward()
    assert y.tolist() == [-1.0, -1.0, 0.5, 1.0, 1.0]
    assert x.grad is not None
    assert x.grad.tolist() == [1.0] * 5


def test_counters_add_the_same_for_every_token_and_leave_their_generators() -> None:
    """Of one token that comes again and again, once the convolution is full; with values of length 1 they do not."""
    x = floats(1, 1, 32).expand(1, 60, 32)
    for values in ("bounded", "unit"):
        layer = made_layer("bounded")
        layer.start_counting()
        layer.values = values
        with torch.no_grad():
            layer.initial["matrix"][-1, :, 8:].normal_()
        first, second, later = (memories(layer, x[:, :n]) for n in (10, 11, 60))
        step, through = (second - first)[-1, 1], (later - first)[-1, 1] / 50
        assert step.norm() > 0.01
        assert torch.allclose(through, step, rtol=1e-9, atol=1e-12) == (values == "bounded")
        u = torch.cat([torch.zeros(8), torch.randn(8)]).double()
        torch.testing.assert_close(later[:-1, 1] @ u, first[:-1, 1] @ u)


def test_counters_take_away_what_they_added() -> None:
    """A token whose value differs from its key by the opposite, under the same key, brings the memory back."""
    key, across = unit(torch.randn(2, 8, dtype=torch.float64))
    across = unit(across - (across @ key) * key)
    up, down = (bounded_value(key, unit(key + sign * across)) for sign in (1, -1))
    memory = start = torch.randn(8, 8, dtype=torch.float64)
    for value in (up, up, up, down, down, down):
        memory = memory + 0.3 * torch.outer(memory @ (value - key), key)
    torch.testing.assert_close(memory, start)


def test_a_token_that_turns_undoes_itself_with_the_largest_step() -> None:
    """The lr gate reaches it before it is wide open, where lr_max is above 1; otherwise what is turned fades."""
    x = floats(1, 1, 32).expand(1, 60, 32)
    for most in (1.1, 1.0):
        torch.manual_seed(0)
        layer = SelfModifyingTitans(32, 2, replace(RULE, lr_max=most), 1, values="bounded").double()
        with torch.no_grad():
            own = layer.initial["matrix"].unflatten(0, (-1, 2))
            layer.start_counting()
            # Values are about the opposite of keys.
            own[1], own[-1] = 0.1 * torch.randn(2, 16, 16) - own[0], torch.randn(2, 16, 16)
            for name, start in (("lr", 3.5), ("retain", -20.0)):
                layer.readouts[name].zero_()
                layer.biases[name].fill_(start)
        even, odd, later = (memories(layer, x[:, :n])[-1, 1] for n in (10, 11, 60))
        assert (odd - even).norm() > 0.1
        assert torch.allclose(later, even, rtol=1e-9, atol=1e-12) == (most > 1)


def test_tokens_that_turn_make_no_memory_longer() -> None:
    key = unit(torch.randn(1000, 16, dtype=torch.float64))
    value = bounded_value(key, unit(0.1 * torch.randn(1000, 16, dtype=torch.float64) - key))
    memory = start = torch.randn(16, 16, dtype=torch.float64)
    for k, v in zip(key, value, strict=True):
        memory = memory + torch.outer(memory @ (v - k), k)
    torch.testing.assert_close(memory.norm(), start.norm(), rtol=1e-4, atol=0.0)


def test_no_step_is_longer_than_the_largest() -> None:
    layer = made_layer()
    with torch.no_grad():
        layer.biases["lr"].fill_(20.0)
    felt = layer(torch.randn(2, 9, 32).double(), surprise=True).surprise[0]
    most = RULE.stable_lr(felt.retain.unsqueeze(-1), own_targets=True)
    torch.testing.assert_close(felt.lr, torch.as_tensor(most).squeeze(-1).expand_as(felt.lr))
    config = ModelConfig(wiring="self_modifying", rule=RULE, generator_chunk=1)
    assert config.largest_lr == (1.0,) * 4


def test_gates_start_where_the_configuration_says_also_where_they_reach_further() -> None:
    rule = replace(RULE, lr_max=2.0)
    config = ModelConfig(vocab_size=9, dim=32, wiring="self_modifying", rule=rule, generator_chunk=1)
    config = replace(config, memory_heads=3, memory_head_dim=8, lr_start=0.9, lr_last=0.01)
    felt = LanguageModel(config)(torch.randint(9, (2, 20)), surprise=True).surprise[0]
    torch.testing.assert_close(felt.lr.mean((0, 2)), torch.tensor([0.9, 0.09, 0.009]), rtol=0.02, atol=0.0)
    assert config.largest_lr == pytest.approx((1.0, 0.1, 0.01))


COUNTING = ModelConfig(
    dim=32, wiring="self_modifying", rule=RULE, generator_chunk=1, memory_heads=2, values="bounded", start="counting"
)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"wiring": "lmm"}, "start='counting' is for wiring='self_modifying', not 'lmm'"),
        ({"wiring": "lmm", "start": "plain"}, "values='bounded' is for wiring='self_modifying', not 'lmm'"),
        ({"values": "unit"}, "needs values='bounded', not 'unit'"),
        ({"memory_heads": 1}, "needs 2 memory heads or more, not 1"),
        ({"rule": presets.hope(1)}, "needs a rule whose architecture is Matrix"),
        ({"rule": replace(RULE, bias=L2())}, "needs a rule whose bias is DotProduct"),
        ({"rule": replace(RULE, chunk_size=16)}, "needs a rule whose chunk_size is 1, not 16"),
        ({"lr_last": -1.0}, "lr_last must lie in"),
        ({"adaptive": "key,query"}, "needs static queries: leave query out of adaptive"),
    ],
)
def test_what_cannot_count_is_refused_with_what_it_needs(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        replace(COUNTING, **change)


@pytest.mark.parametrize("architecture", [Matrix(), Skip(Matrix()), Residual(Matrix())])
def test_what_a_memory_passes_on_is_taken_out_of_the_query_that_it_makes(architecture: Architecture) -> None:
    """A memory that answers with nothing of its own leaves the query as it is."""
    layer = SelfModifyingTitans(8, 1, replace(RULE, architecture=architecture), 1, ("query",))
    q, u = torch.randn(2, 1, 1, 1, 8)
    passed_on = 0.0 * u if architecture == Matrix() else u
    made = layer.make(q, u, passed_on.unsqueeze(1).expand(-1, 5, -1, -1, -1))
    torch.testing.assert_close(made.q, unit(q))
