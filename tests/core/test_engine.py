"""What the engine promises beside the properties: states, dtypes, surprise, and refusals in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastweights.core import dual, presets
from fastweights.core.algorithm import Momentum
from fastweights.core.architecture import MLP, Matrix
from fastweights.core.bias import L2
from fastweights.core.compiled import compiler
from fastweights.core.conformance_trial import Trial, make_trial
from fastweights.core.engine import grid_for, init_state, read, run, step, weights_in_force
from fastweights.core.layout import make_layout
from fastweights.core.retention import WeightDecay
from fastweights.core.rule import Rule
from fastweights.core.types import Gates
from fastweights.errors import UserError

RULE = Rule(MLP(2, 1.5), L2(), WeightDecay("map"), Momentum(), chunk_size=4)
ONLINE = presets.titans_linear()


def trial(rule: Rule = RULE) -> Trial:
    return make_trial(rule, 4, 3)


def test_a_fresh_state_is_the_initial_weights() -> None:
    on = trial()
    state = init_state(RULE, on.initial, 3)
    for w, dual_weights, anchor, momentum in zip(on.initial, state.dual, state.anchor, state.momentum, strict=True):
        assert torch.equal(dual_weights, w.expand(3, -1, -1, -1))
        assert torch.equal(anchor, dual_weights)
        assert not bool(momentum.any())
    assert state.position.tolist() == [0, 0, 0]
    assert state.position.dtype == torch.int64
    assert state.extra == ()


def test_the_state_holds_no_more_than_the_rule_needs() -> None:
    assert init_state(ONLINE, trial(ONLINE).initial, 1).anchor == ()
    assert init_state(presets.deltanet(), trial(presets.deltanet()).initial, 1).momentum == ()


@pytest.mark.parametrize("rule", [RULE, ONLINE], ids=["dual", "delta"])
def test_steps_are_a_run_of_one_token_each(rule: Rule) -> None:
    on = trial(rule)
    x, state = on.draw(2, 6, 0), on.midway(2, 0)
    want, ended = on(x, state)
    for t in range(6):
        q, k, v, gates = on.inputs(x[:, t : t + 1])
        now = Gates(*[None if g is None else g[:, :, 0] for g in gates])
        y, state = step(rule, on.initial, q[:, :, 0], k[:, :, 0], v[:, :, 0], now, state)
        torch.testing.assert_close(y, want[:, t], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(state.dual, ended.dual, rtol=1e-11, atol=1e-12)
    assert torch.equal(state.position, ended.position)


def test_a_gate_per_head_may_come_without_its_last_axis() -> None:
    on = trial(ONLINE)
    q, k, v, gates = on.inputs(on.draw(2, 5, 0))
    flat = Gates(*[None if g is None else g[..., 0] for g in gates])
    want = run(ONLINE, on.initial, q, k, v, gates, on.fresh(2))
    assert torch.equal(run(ONLINE, on.initial, q, k, v, flat, on.fresh(2)).y, want.y)


def test_a_grid_made_outside_changes_nothing() -> None:
    for rule in (RULE, ONLINE):
        on = trial(rule)
        q, k, v, gates = on.inputs(on.draw(2, 9, 0))
        state = on.midway(2, 0)
        layout = make_layout(state.position, 9)
        given = run(rule, on.initial, q, k, v, gates, state, layout, grid_for(rule, layout))
        assert torch.equal(given.y, run(rule, on.initial, q, k, v, gates, state).y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_answers_have_the_dtype_of_the_query_and_memories_are_float32_or_wider(dtype: torch.dtype) -> None:
    on = trial()
    low = on.to(dtype)
    result = low.read(on.draw(1, 5, 0).to(dtype), low.fresh(1), surprise=True)
    wide = torch.promote_types(dtype, torch.float32)
    assert result.y.dtype == dtype
    assert {w.dtype for part in result.state[:3] for w in part} == {wide}
    assert result.surprise is not None
    assert result.surprise.loss.dtype == wide


def test_surprise_is_what_was_felt() -> None:
    """The loss is the inner loss at the anchor; gates are averaged over maps; without a gate everything is kept."""
    on = trial()
    x = on.draw(1, 4, 0)
    felt = on.read(x, on.fresh(1), surprise=True).surprise
    assert felt is not None
    _, k, v, gates = on.inputs(x)
    prediction = read(RULE, on.initial, tuple(w[None] for w in on.initial), k)
    torch.testing.assert_close(felt.loss.transpose(1, 2), 0.5 * (prediction - v).square().sum(-1))
    assert gates.retain is not None
    torch.testing.assert_close(felt.retain.transpose(1, 2), gates.retain.mean(-1))
    assert gates.lr is not None
    torch.testing.assert_close(felt.lr.transpose(1, 2), gates.lr[..., 0])
    assert bool((felt.gradient_norm > 0).all())
    assert not bool(felt.rejected.any())
    plain = trial(presets.deltanet())
    felt = plain.read(plain.draw(1, 4, 0), plain.fresh(1), surprise=True).surprise
    assert felt is not None
    assert bool((felt.retain == 1).all())
    assert not bool(felt.momentum.any())


def test_surprise_is_only_given_when_asked_for() -> None:
    on = trial()
    assert on.read(on.draw(1, 4, 0), on.fresh(1)).surprise is None


def test_reading_is_not_learning() -> None:
    """`read` answers from fixed weights as a run that writes nothing does."""
    on = trial()
    state = on.midway(2, 0)
    x = on.draw(2, 5, 0)
    gates = on.split(x)
    gates["lr"].zero_()
    gates["retain"].fill_(1.0)
    gates["momentum"].zero_()
    still = state._replace(momentum=tuple(torch.zeros_like(w) for w in state.momentum))
    y, ended = on(x, still)
    in_force = weights_in_force(RULE, on.initial, state)
    want = read(RULE, on.initial, in_force, on.inputs(x).q).transpose(1, 2)
    torch.testing.assert_close(want, y, rtol=1e-12, atol=1e-13)
    assert all(torch.equal(a, b) for a, b in zip(ended.dual, state.dual, strict=True))


def test_a_chunk_without_surprise_costs_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """At inference, lr = 0 everywhere: memory and momentum still fade, with the same result as with gradients."""
    on = trial()
    x, state = on.draw(2, 9, 0), on.midway(2, 0)
    on.split(x)["lr"].zero_()
    want = on(x, state)

    def refuse(*given: object) -> None:
        raise AssertionError("a gradient was taken")

    monkeypatch.setattr(dual, "chunk_gradients", refuse)
    with torch.no_grad():
        y, ended = on(x, state)
    torch.testing.assert_close(y, want[0], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(ended.dual, want[1].dual, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_chunks_without_surprise_among_others_change_nothing(backend: str | None) -> None:
    """Chunks are taken one by one as soon as one of them writes nothing, and otherwise several at once."""
    on = trial()
    width = on.rule.chunk_size
    x, state = on.draw(2, 11 * width, 0), on.midway(2, 0)
    lr = on.split(x)["lr"]
    for silent in (4, 9):
        lr[:, silent * width : (silent + 1) * width] = 0.0
    want = on(x, state)
    with torch.no_grad(), compiler(backend):
        y, ended = on(x, state)
    torch.testing.assert_close(y, want[0], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(ended.dual, want[1].dual, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("first", [False, True], ids=["decay after", "decay first"])
def test_an_overflow_on_the_delta_tier_is_left_to_a_slower_one(first: bool) -> None:
    """One solve for many tokens cannot leave a single one out; the token is counted and the others are unharmed."""
    rule = Rule(Matrix(), L2(), clip=None, chunk_size=1, decay_before_grad=first)
    on = trial(rule)
    x, state = on.draw(1, 6, 0), on.midway(1, 0)
    on.split(x)["k"][0, 2, 0] *= 1e120
    got, same, want = (on.on(tier).read(x, state, surprise=True) for tier in ("delta", "dual", "reference"))
    assert got.surprise is not None
    assert got.surprise.rejected[0, :, 0].tolist() == [False, False, True, False, False, False]
    assert torch.equal(got.y, same.y)
    torch.testing.assert_close(got.y, want.y, rtol=1e-10, atol=1e-12)


def test_outer_gradients_do_not_care_about_an_overflow() -> None:
    """The inner gradient overflows, and only it: key and value still have a finite length."""
    on = trial()
    x = on.draw(1, 6, 0)
    on.split(x)["k"][0, 2, 0] *= 1e120
    x.requires_grad_()
    answer = on.read(x, on.fresh(1), surprise=True)
    assert answer.surprise is not None
    assert bool(answer.surprise.rejected[0, 2, 0])
    answer.y.sum().backward()
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())


Inputs = tuple[Tensor, Tensor, Tensor, Gates]


def inputs() -> Inputs:
    on = trial()
    return on.inputs(on.draw(1, 5, 0))


def longer_keys(q: Tensor, k: Tensor, v: Tensor, gates: Gates) -> Inputs:
    return q, torch.cat([k, k], 2), v, gates


def fewer_values(q: Tensor, k: Tensor, v: Tensor, gates: Gates) -> Inputs:
    return q, k, v[:, :, :3], gates


def no_tokens(q: Tensor, k: Tensor, v: Tensor, gates: Gates) -> Inputs:
    return q[:, :, :0], k[:, :, :0], v[:, :, :0], gates


def no_momentum(q: Tensor, k: Tensor, v: Tensor, gates: Gates) -> Inputs:
    return q, k, v, gates._replace(momentum=None)


def gate_of_another_scope(q: Tensor, k: Tensor, v: Tensor, gates: Gates) -> Inputs:
    assert gates.retain is not None
    return q, k, v, gates._replace(retain=gates.retain[..., :1])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (longer_keys, "keys [B, H, T, K]"),
        (fewer_values, "values [B, H, T, V]"),
        (no_tokens, "at least one token"),
        (no_momentum, "needs a gate 'momentum'"),
        (gate_of_another_scope, "gate 'retain' of scope 'map' must have shape [1, 2, 5, 2], not [1, 2, 5, 1]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(spoil: Callable[..., Inputs], words: str) -> None:
    with pytest.raises(UserError) as refusal:
        run(RULE, trial().initial, *spoil(*inputs()), state=trial().fresh(1))
    assert words in str(refusal.value)


def test_a_gate_that_the_rule_does_not_have_is_refused() -> None:
    on = trial(presets.deltanet())
    q, k, v, gates = on.inputs(on.draw(1, 5, 0))
    with pytest.raises(UserError, match="has no gate 'retain'"):
        run(on.rule, on.initial, q, k, v, gates._replace(retain=gates.lr), on.fresh(1))


def test_a_tier_that_would_not_be_exact_is_refused() -> None:
    on = trial(replace(ONLINE, decay_before_grad=True))
    with pytest.raises(UserError, match="runs on the tiers delta, dual, reference, not on 'materialised'"):
        on.on("materialised")(on.draw(1, 5, 0), on.fresh(1))


def test_a_grid_cut_for_another_tier_changes_no_rule() -> None:
    rule = presets.titans_linear()
    q, k, v = (torch.randn(1, 2, 20, 4, dtype=torch.float64) for _ in range(3))
    gates = Gates(*(torch.rand(1, 2, 20, dtype=torch.float64) for _ in range(3)))
    initial = (torch.randn(2, 4, 4, dtype=torch.float64),)
    state = init_state(rule, initial, 1)
    layout = make_layout(state.position, 20)
    want = run(rule, initial, q, k, v, gates, state, layout).y
    for tier in rule.tiers:
        got = run(rule, initial, q, k, v, gates, state, layout, grid_for(rule, layout), tier=tier).y
        torch.testing.assert_close(got, want)
