"""Known models, typed from their papers in NumPy, and identities between rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from fastweights.core import presets
from fastweights.core.algorithm import GradientDescent, Momentum
from fastweights.core.architecture import MLP, GatedMLP, Matrix, Residual
from fastweights.core.bias import L2
from fastweights.core.engine import init_state, run
from fastweights.core.retention import NoRetention, WeightDecay
from fastweights.core.rule import Rule
from fastweights.core.types import Gates

Array = npt.NDArray[np.float64]
TIME, KEY, VALUE = 11, 4, 3


def close(got: npt.ArrayLike, want: npt.ArrayLike) -> None:
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=1e-11, atol=1e-12)


class Stream(NamedTuple):
    """One row, one head: q, k ``[T, K]``, v ``[T, V]``, lr, momentum, retain ``[T]``."""

    q: Array
    k: Array
    v: Array
    lr: Array
    momentum: Array
    retain: Array


def stream(seed: int = 0, key: int = KEY, value: int = VALUE) -> Stream:
    rng = np.random.default_rng(seed)
    q, k = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.standard_normal((2, TIME, key)))
    gates = rng.random((3, TIME)) * [[0.5], [0.9], [0.3]] + [[0.05], [0.05], [0.7]]
    return Stream(q, k, rng.standard_normal((TIME, value)), *gates)


def weights(rule: Rule, seed: int = 1, key: int = KEY, value: int = VALUE) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((m.outputs, m.inputs)) / math.sqrt(m.inputs) for m in rule.maps(key, value)]


def answers(rule: Rule, s: Stream, initial: list[Array]) -> tuple[Array, list[Array]]:
    """What the engine reads, and the memory at the end."""

    def row(x: Array) -> Tensor:
        return torch.from_numpy(x)[None, None]

    scopes = zip((s.lr, s.momentum, s.retain), rule.scopes[:3], strict=True)
    given = [None if scope is None else row(gate) for gate, scope in scopes]
    start = tuple(torch.from_numpy(w)[None] for w in initial)
    gates = Gates(*given)
    result = run(rule, start, row(s.q), row(s.k), row(s.v), gates, init_state(rule, start, 1))
    return result.y[0, 0].numpy(), [w[0, 0].numpy() for w in result.state.dual]


def test_linear_attention() -> None:
    """Katharopoulos et al. 2006.16236 eqs. 18-20 without the normaliser: S_t = S_{t-1} + v_t k_t^T, y_t = S_t q_t."""
    s = stream()._replace(lr=np.ones(TIME))
    memory, want = np.zeros((VALUE, KEY)), []
    for q, k, v in zip(s.q, s.k, s.v, strict=True):
        memory = memory + np.outer(v, k)
        want.append(memory @ q)
    y, end = answers(presets.linear_attention(), s, [np.zeros((VALUE, KEY))])
    close(y, want)
    close(end[0], memory)
    attention = np.tril(s.q @ s.k.T) @ s.v
    close(y, attention)


def delta_rule(s: Stream, memory: Array, retain: Array) -> tuple[Array, Array]:
    """Gated DeltaNet, 2412.06464 eq. 10: S_t = S_{t-1} (alpha_t (I - beta_t k_t k_t^T)) + beta_t v_t k_t^T."""
    want = []
    for q, k, v, beta, alpha in zip(s.q, s.k, s.v, s.lr, retain, strict=True):
        memory = memory @ (alpha * (np.eye(KEY) - beta * np.outer(k, k))) + beta * np.outer(v, k)
        want.append(memory @ q)
    return np.stack(want), memory


def test_deltanet() -> None:
    """2406.06484 section 2.2, which is the gated rule with alpha = 1."""
    rule, s = presets.deltanet(), stream()
    initial = weights(rule)
    want, memory = delta_rule(s, initial[0], np.ones(TIME))
    y, end = answers(rule, s, initial)
    close(y, want)
    close(end[0], memory)


def test_gated_deltanet_and_that_titans_differs() -> None:
    rule, s = presets.gated_deltanet(), stream()
    initial = weights(rule)
    want, memory = delta_rule(s, initial[0], s.retain)
    y, end = answers(rule, s, initial)
    close(y, want)
    close(end[0], memory)
    # Titans takes the gradient at the memory before it decays; the two are not the same model.
    other, _ = answers(replace(rule, decay_before_grad=False), s, initial)
    assert np.abs(other - want).max() > 1e-2


@pytest.mark.parametrize("half", [True, False])
def test_titans_with_a_matrix(half: bool) -> None:
    """Titans eqs. 13-14: S_t = eta_t S_{t-1} - theta_t grad, M_t = (1 - alpha_t) M_{t-1} + S_t.

    The gradient of ||M k - v||^2 is 2 (M k - v) k^T; appendix C has it without the 2.
    """
    rule, s = replace(presets.titans_linear(), bias=L2(half)), stream()
    initial = weights(rule)
    memory, surprise, want = initial[0], np.zeros((VALUE, KEY)), []
    for q, k, v, theta, eta, kept in zip(*s, strict=True):
        gradient = np.outer(memory @ k - v, k) * (1.0 if half else 2.0)
        surprise = eta * surprise - theta * gradient
        memory = kept * memory + surprise
        want.append(memory @ q)
    y, end = answers(rule, s, initial)
    close(y, want)
    close(end[0], memory)


def titans_loop(
    s: Stream,
    memory: list[Array],
    chunk: int,
    network: Callable[[list[Array], Array], Array],
    slope: Callable[..., list[Array]],
) -> tuple[Array, list[Array]]:
    """Titans eqs. 10, 13 and 16 for any network: gradients at the chunk's start, gates token by token."""
    surprise, anchor, want = [np.zeros_like(w) for w in memory], memory, []
    for t, (q, k, v, theta, eta, kept) in enumerate(zip(*s, strict=True)):
        if t % chunk == 0:
            anchor = memory
        gradient = slope(anchor, k, v)
        surprise = [eta * past - theta * g for past, g in zip(surprise, gradient, strict=True)]
        memory = [kept * w + step for w, step in zip(memory, surprise, strict=True)]
        want.append(network(memory, q))
    return np.stack(want), memory


@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_titans_with_two_layers_and_momentum(chunk: int) -> None:
    """A two-layer memory W2 tanh(W1 k) with its gradient by hand, and no clip."""

    def network(w: list[Array], x: Array) -> Array:
        return w[1] @ np.tanh(w[0] @ x)

    def slope(w: list[Array], k: Array, v: Array) -> list[Array]:
        hidden = np.tanh(w[0] @ k)
        error = w[1] @ hidden - v
        return [np.outer((w[1].T @ error) * (1.0 - hidden**2), k), np.outer(error, hidden)]

    rule = Rule(MLP(2, 1.5, "tanh"), L2(), WeightDecay(), Momentum(), chunk_size=chunk, clip=None)
    s, initial = stream(), weights(rule)
    want, memory = titans_loop(s, initial, chunk, network, slope)
    y, end = answers(rule, s, initial)
    close(y, want)
    for got, expected in zip(end, memory, strict=True):
        close(got, expected)


def gelu(x: Array) -> Array:
    return 0.5 * x * (1.0 + np.array([math.erf(value / math.sqrt(2.0)) for value in x]))


def silu(x: Array) -> Array:
    return x / (1.0 + np.exp(-x))


def titans_network(w: list[Array], x: Array) -> Array:
    """Titans, camera-ready section 3.3: x + LayerNorm(W2 gelu(W1 x)); eps 1e-3."""
    y = w[1] @ gelu(w[0] @ x)
    return x + (y - y.mean()) / np.sqrt(y.var() + 1e-3)


def swiglu_network(w: list[Array], x: Array) -> Array:
    gate, up, down = w
    return down @ (silu(gate @ x) * (up @ x))


NETWORKS = {
    "titans": (Rule(Residual(MLP(2, 1.5)), L2(False), chunk_size=4, clip=None), titans_network),
    "swiglu": (Rule(GatedMLP(1.5), L2(False), chunk_size=4, clip=None), swiglu_network),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_deep_memories_by_finite_differences(name: str) -> None:
    """Nothing is derived here: the inner gradient is a central difference of the printed loss ||M(k) - v||^2."""
    rule, network = NETWORKS[name]

    def slope(w: list[Array], k: Array, v: Array) -> list[Array]:
        found = [np.zeros_like(part) for part in w]
        for part, target in zip(w, found, strict=True):
            for i in np.ndindex(part.shape):
                kept, losses = part[i], []
                for step in (1e-5, -1e-5):
                    part[i] = kept + step
                    losses.append(np.sum((network(w, k) - v) ** 2))
                part[i] = kept
                target[i] = (losses[0] - losses[1]) / 2e-5
        return found

    s = stream(key=KEY, value=KEY)._replace(lr=np.full(TIME, 0.05))
    initial = weights(rule, key=KEY, value=KEY)
    want, memory = titans_loop(s, [w.copy() for w in initial], rule.chunk_size, network, slope)
    y, end = answers(rule, s, initial)
    # A central difference with a step of 1e-5 is good to about 1e-9; a dozen steps build on one another.
    np.testing.assert_allclose(y, want, rtol=1e-6, atol=1e-7)
    for got, expected in zip(end, memory, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


BASE = Rule(MLP(2, 1.5), L2(), WeightDecay(), Momentum(), chunk_size=4)


@pytest.mark.parametrize("base", [BASE, presets.titans_linear()], ids=["deep", "matrix"])
def test_momentum_of_0_is_gradient_descent(base: Rule) -> None:
    s, initial = stream()._replace(momentum=np.zeros(TIME)), weights(base)
    y, end = answers(base, s, initial)
    plain, plain_end = answers(replace(base, algorithm=GradientDescent()), s, initial)
    close(y, plain)
    close(end[0], plain_end[0])


@pytest.mark.parametrize("base", [BASE, presets.titans_linear()], ids=["deep", "matrix"])
def test_retain_of_1_is_no_retention(base: Rule) -> None:
    s, initial = stream()._replace(retain=np.ones(TIME)), weights(base)
    y, _ = answers(base, s, initial)
    plain, _ = answers(replace(base, retention=NoRetention()), s, initial)
    close(y, plain)


@pytest.mark.parametrize("base", [BASE, presets.titans_linear()], ids=["deep", "matrix"])
def test_a_shut_gate_leaves_the_memory_alone(base: Rule) -> None:
    s = stream()._replace(lr=np.zeros(TIME), retain=np.ones(TIME))
    initial = weights(base)
    for start, end in zip(initial, answers(base, s, initial)[1], strict=True):
        np.testing.assert_array_equal(start, end)


def test_a_retain_of_0_clears_the_memory() -> None:
    s = stream()._replace(lr=np.zeros(TIME), retain=np.zeros(TIME))
    y, end = answers(BASE, s, weights(BASE))
    assert not any(w.any() for w in end)
    assert not y.any()


def test_one_layer_is_a_matrix() -> None:
    s, initial = stream(), weights(BASE_MATRIX := replace(BASE, architecture=Matrix()))
    y, _ = answers(BASE_MATRIX, s, initial)
    other, _ = answers(replace(BASE, architecture=MLP(1)), s, initial)
    np.testing.assert_array_equal(y, other)


def test_a_chunk_is_one_batch_of_gradients() -> None:
    """Titans eq. 16 with alpha = 0: M_t = M_0 - sum_i theta_i grad(M_0; x_i) while the first chunk lasts."""
    rule = Rule(Matrix(), L2(), NoRetention(), GradientDescent(), chunk_size=16, clip=None)
    s, initial = stream(), weights(rule)
    memory = initial[0] - (s.lr[:, None] * (s.k @ initial[0].T - s.v)).T @ s.k
    close(answers(rule, s, initial)[1][0], memory)


@pytest.mark.parametrize("base", [BASE, presets.titans_linear()], ids=["deep", "matrix"])
def test_before_is_after_one_token_earlier(base: Rule) -> None:
    s, initial = stream(), weights(base)
    same = s._replace(q=np.tile(s.q[:1], (TIME, 1)))
    after, _ = answers(base, same, initial)
    earlier, _ = answers(replace(base, read="before"), same, initial)
    close(earlier[1:], after[:-1])


def test_chunk_reads_the_memory_at_the_chunk_s_start() -> None:
    s, initial = stream(), weights(BASE)
    same = s._replace(q=np.tile(s.q[:1], (TIME, 1)))
    before, _ = answers(replace(BASE, read="before"), same, initial)
    held, _ = answers(replace(BASE, read="chunk"), same, initial)
    close(held, before[[4 * (t // 4) for t in range(TIME)]])


@pytest.mark.parametrize(("half", "factor"), [(True, 0.0), (False, -1.0)])
def test_the_half_decides_which_eigenvalues_a_write_reaches(half: bool, factor: float) -> None:
    """With v = 0, unit k and lr = 1 a write multiplies what is stored under k by 1 - slope: by 0, or by -1 (parity)."""
    rule = replace(presets.deltanet(), bias=L2(half))
    k = np.array([0.6, 0.8])
    s = Stream(k[None], k[None], np.zeros((1, 2)), np.ones(1), np.zeros(1), np.ones(1))
    y, _ = answers(rule, s, [np.eye(2)])
    np.testing.assert_allclose(y[0], factor * k, atol=1e-15)


@pytest.mark.parametrize("bits", ["1", "11", "10110", "111111"])
def test_parity_is_kept_without_the_half(bits: str) -> None:
    """Every 1 flips the sign of what is stored (arXiv 2411.12537); with the half it would be lost at once."""
    key = np.tile([[1.0, 0.0]], (len(bits), 1))
    lr = np.array([float(bit) for bit in bits])
    s = Stream(key, key, np.zeros((len(bits), 2)), lr, np.zeros(len(bits)), np.ones(len(bits)))
    y, _ = answers(replace(presets.deltanet(), bias=L2(False)), s, [np.eye(2)])
    assert y[-1].tolist() == [(-1.0) ** bits.count("1"), 0.0]


def test_the_clip_bounds_the_whole_gradient() -> None:
    """One token, two maps: the step has length lr x clip, along the unclipped gradient."""
    rule = replace(BASE, algorithm=GradientDescent(), retention=NoRetention(), clip=0.25)
    initial = weights(rule)
    s = Stream(*[x[:1] for x in stream()])
    steps = [
        np.concatenate([(a - b).ravel() for a, b in zip(answers(r, s, initial)[1], initial, strict=True)])
        for r in (rule, replace(rule, clip=None))
    ]
    assert np.linalg.norm(steps[0]) == pytest.approx(0.25 * s.lr[0], rel=1e-12)
    close(steps[0] / np.linalg.norm(steps[0]), steps[1] / np.linalg.norm(steps[1]))


def test_a_clip_that_is_not_reached_changes_nothing() -> None:
    s, initial = stream(), weights(BASE)
    y, _ = answers(replace(BASE, clip=1e6), s, initial)
    free, _ = answers(replace(BASE, clip=None), s, initial)
    close(y, free)


def test_gates_per_channel_act_on_their_own_channels_of_every_map() -> None:
    """Titans' eqs. 10 and 13 with a decay for each input and a momentum for each output of a memory of two maps."""
    hidden = 6
    draw = np.random.default_rng(5)
    q, k = 0.3 * draw.normal(size=(2, TIME, KEY))
    v, lr = draw.normal(size=(TIME, VALUE)), draw.uniform(0, 0.3, TIME)
    keep, fade = draw.uniform(0.5, 1, (TIME, KEY + hidden)), draw.uniform(0, 0.9, (TIME, hidden + VALUE))
    first, second = draw.normal(size=(hidden, KEY)), draw.normal(size=(VALUE, hidden))
    initial = tuple(torch.from_numpy(w.copy())[None] for w in (first, second))
    s_first, s_second, want = np.zeros_like(first), np.zeros_like(second), []
    for t in range(TIME):
        h = first @ k[t]
        a = np.maximum(h, 0)
        e = second @ a - v[t]
        s_first = fade[t, :hidden, None] * s_first - lr[t] * np.outer((second.T @ e) * (h > 0), k[t])
        s_second = fade[t, hidden:, None] * s_second - lr[t] * np.outer(e, a)
        first, second = keep[t, :KEY] * first + s_first, keep[t, KEY:] * second + s_second
        want.append(second @ np.maximum(first @ q[t], 0))
    rule = Rule(MLP(2, hidden / KEY, "relu"), L2(), WeightDecay("key"), Momentum("value"), chunk_size=1, clip=None)
    q_BHTK, k_BHTK, v_BHTV = (torch.from_numpy(x)[None, None] for x in (q, k, v))
    gates = Gates(*[torch.from_numpy(x)[None, None] for x in (lr, fade, keep)])
    for tier in rule.tiers:
        result = run(rule, initial, q_BHTK, k_BHTK, v_BHTV, gates, init_state(rule, initial, 1), tier=tier)
        close(result.y[0, 0].detach(), want)
        close(result.state.dual[1][0, 0].detach(), second)
