"""What the tests of published equations share: random streams, what the engine makes of them, and networks in NumPy.

Nothing here is taken from the package: layers, their gradients and Newton-Schulz are derived from their definitions.
"""

from __future__ import annotations

import math
from itertools import combinations_with_replacement, permutations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastweights.core.engine import init_state, run, weights_in_force
from fastweights.core.rule import Rule, Tier
from fastweights.core.types import Gates, MemoryState

Array = npt.NDArray[np.float64]
Weights = list[Array]


class Stream(NamedTuple):
    """One row, one head: q, k, v and gates ``[T, n]``; the initial maps, then the constants."""

    q: Array
    k: Array
    v: Array
    lr: Array
    momentum: Array
    retain: Array
    threshold: Array
    importance: Array
    initial: Weights


class Answer(NamedTuple):
    """Answers ``[T, V]``; dual and momentum at the end; the weights that would answer next; kept tokens."""

    y: Array
    dual: Weights
    momentum: Weights
    force: Weights
    extra: Weights


class Want(NamedTuple):
    """What a paper says: answers, and where it says so the memory, the momentum and the weights in force at the end."""

    y: list[Array]
    dual: Weights | None = None
    momentum: Weights | None = None
    force: Weights | None = None


RANGES = {
    "lr": (0.05, 0.6),
    "momentum": (0.1, 0.9),
    "retain": (0.7, 1.0),
    "threshold": (1.0, 4.0),
    "importance": (0.1, 1.0),
}


def stream(rule: Rule, time: int, key: int = 4, value: int = 4, seed: int = 0, **ranges: tuple[float, float]) -> Stream:
    """Keys and queries of lengths in (1/2, 1), normal values, gates within ``RANGES`` unless told otherwise."""
    draw = np.random.default_rng(seed)

    def directions(count: int) -> Array:
        x = draw.normal(size=(time, count, key))
        return (x / np.linalg.norm(x, axis=2, keepdims=True) * draw.uniform(0.5, 1, (time, count, 1))).reshape(time, -1)

    q, k = directions(1), directions(rule.keys)
    v = draw.normal(size=(time, rule.values * value))
    widths = zip(Gates._fields, rule.gate_widths(key, value), strict=True)
    gates = {name: draw.uniform(*(RANGES | ranges)[name], (time, width)) for name, width in widths}
    maps = [
        draw.normal(size=(m.outputs, m.inputs)) / math.sqrt(m.inputs) * float(m.learned) for m in rule.maps(key, value)
    ]
    constants = [1.0 + 0.3 * draw.normal(size=(1, m.inputs)) for m in rule.constants(key, value)]
    return Stream(q, k, v, **gates, initial=[*maps, *constants])


def initial(s: Stream) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(w)[None] for w in s.initial)


def fresh(rule: Rule, s: Stream) -> MemoryState:
    return init_state(rule, initial(s), 1, (s.q.shape[1], s.v.shape[1] // rule.values))


def rows(s: Stream, part: slice) -> Stream:
    """Some of the tokens; the initial weights stay."""
    tokens = {name: x[part] for name, x in s._asdict().items() if name != "initial"}
    return Stream(**tokens, initial=s.initial)


def told(rule: Rule, s: Stream, state: MemoryState, tier: Tier | None = None) -> tuple[Tensor, MemoryState]:
    """The engine's answers ``[1, 1, T, V]`` and its state."""
    q, k, v, *given = (torch.from_numpy(x)[None, None] for x in s[:8])
    gates = Gates(*[None if scope is None else gate for gate, scope in zip(given, rule.scopes, strict=True)])
    result = run(rule, initial(s), q, k, v, gates, state, tier=tier)
    return result.y, result.state


def arrays(tensors: tuple[Tensor, ...]) -> Weights:
    return [w[0, 0].detach().numpy() for w in tensors]


def answer(rule: Rule, s: Stream, tier: Tier | None = None) -> Answer:
    """What the engine says, on its best tier or another."""
    y, state = told(rule, s, fresh(rule, s), tier)
    force = () if rule.grows else weights_in_force(rule, initial(s), state)
    return Answer(y[0, 0].detach().numpy(), *(arrays(x) for x in (state.dual, state.momentum, force, state.extra)))


def states(rule: Rule, s: Stream) -> list[Weights]:
    """The weights in force before the first token and after every one."""
    state = fresh(rule, s)
    found = [arrays(weights_in_force(rule, initial(s), state))]
    for t in range(len(s.q)):
        _, state = told(rule, rows(s, slice(t, t + 1)), state)
        found.append(arrays(weights_in_force(rule, initial(s), state)))
    return found


def close(got: npt.ArrayLike, want: npt.ArrayLike, tolerance: float = 1e-10) -> None:
    got, want = np.asarray(got), np.asarray(want)
    assert np.isfinite(want).all()
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def all_close(got: Weights, want: Weights) -> None:
    for a, b in zip(got, want, strict=True):
        close(a, b)


def agree(rule: Rule, s: Stream, want: Want) -> None:
    """Compares every tier of a rule with what its paper says."""
    for tier in rule.tiers:
        got = answer(rule, s, tier)
        close(got.y, np.stack(want.y))
        assert bool(got.momentum) == (want.momentum is not None)
        for part in ("dual", "momentum", "force"):
            expected = getattr(want, part)
            if expected is not None:
                all_close(getattr(got, part), expected)


def same(rule: Rule, other: Rule, s: Stream, other_s: Stream | None = None) -> None:
    """Two rules answer alike and would answer alike after the stream."""
    got, want = answer(rule, s), answer(other, other_s or s)
    close(got.y, want.y)
    all_close(got.force, want.force)


def erf(x: Array) -> Array:
    return np.array([math.erf(value) for value in x])


def gelu(x: Array) -> Array:
    """``x Phi(x)``, with the normal distribution's Phi."""
    return x * 0.5 * (1.0 + erf(x / math.sqrt(2.0)))


def gelu_slope(x: Array) -> Array:
    """``Phi(x) + x phi(x)``."""
    return 0.5 * (1.0 + erf(x / math.sqrt(2.0))) + x * np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)


def sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def layer_norm(z: Array, eps: float = 1e-3) -> Array:
    return (z - z.mean()) / np.sqrt(z.var() + eps)


def layer_norm_slope(z: Array, g: Array, eps: float = 1e-3) -> Array:
    """``g J``, J = (I - 1 1^T / n - u u^T / n) / s: the mean depends on every z, and so does the deviation s."""
    n, s = len(z), np.sqrt(z.var() + eps)
    unit = (z - z.mean()) / s
    return g @ (np.eye(n) - 1.0 / n - np.outer(unit, unit) / n) / s


def residual_mlp(w: Weights, x: Array, features: Array | None = None) -> Array:
    """Titans, camera-ready section 3.3: ``x + LN(W1 gelu(W2 x))``, first the map applied first."""
    return x + layer_norm(w[1] @ gelu(w[0] @ (x if features is None else features)))


def residual_mlp_slopes(w: Weights, x: Array, g: Array) -> Weights:
    """Gradients of both maps, from the gradient g at the output; x is what the first map takes."""
    h = w[0] @ x
    a = gelu(h)
    at_last = layer_norm_slope(w[1] @ a, g)
    return [np.outer((w[1].T @ at_last) * gelu_slope(h), x), np.outer(at_last, a)]


def swiglu(w: Weights, x: Array) -> Array:
    """``W_down (silu(W_gate x) * (W_up x))``."""
    gate, up, down = w
    return down @ (gate @ x * sigmoid(gate @ x) * (up @ x))


def swiglu_slopes(w: Weights, x: Array, g: Array) -> Weights:
    gate, up, down = w
    z, u = gate @ x, up @ x
    s = sigmoid(z)
    back = down.T @ g
    return [np.outer(back * u * (s + z * s * (1.0 - s)), x), np.outer(back * z * s, x), np.outer(g, z * s * u)]


def clipped(grads: Weights, bound: float = 1.0) -> Weights:
    """The whole gradient, all maps together, shortened to ``bound`` where it is longer."""
    length = math.sqrt(sum(float((g * g).sum()) for g in grads))
    return [g * min(1.0, bound / length) for g in grads]


def newton_schulz(x: Array, floor: float, iterations: int = 5) -> Array:
    """Muon (Jordan et al. 2024): ``X <- a X + b X X^T X + c (X X^T)^2 X`` from ``S / |S|``, on the singular values.

    The length of S is rounded up to ``sqrt(|S|^2 + floor^2)``.
    """
    left, values, right = np.linalg.svd(x, full_matrices=False)
    values = values / np.sqrt((values**2).sum() + floor**2)
    for _ in range(iterations):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ (values[:, None] * right)


def monomials(x: Array, coefficients: Array) -> Array:
    """Atlas section 3.1: all monomials up to a degree, so that ``<phi(q), phi(k)> = sum_i a_i^2 <q, k>^i``."""
    return np.array(
        [
            a * math.sqrt(len(set(permutations(factors)))) * np.prod(x[list(factors)])
            for degree, a in enumerate(coefficients)
            for factors in combinations_with_replacement(range(len(x)), degree)
        ]
    )
