"""Choices of MIRAS and Nested Learning that no preset makes, typed from their papers in NumPy, token by token.

A matrix memory ``W k`` with the gradient at the current weights, unless a test says otherwise; numbers in brackets are
equations of 2504.13173.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.core.papers import (
    Array,
    Stream,
    Want,
    agree,
    clipped,
    residual_mlp,
    residual_mlp_slopes,
    sigmoid,
    softmax,
    stream,
)
from tests.core.test_equations_deep import mirror

from fastweights.core import presets
from fastweights.core.algorithm import DeltaGradientDescent, GradientDescent, Nesterov
from fastweights.core.architecture import MLP, Matrix
from fastweights.core.bias import L2, Huber, Reach, RobustL2
from fastweights.core.retention import (
    Bounded,
    ElasticNet,
    FDivergence,
    KLDivergence,
    LQNorm,
    NoRetention,
    SoftThreshold,
    WeightDecay,
)
from fastweights.core.rule import Rule

KEY, VALUE, TIME = 4, 3, 11
PLAIN = Rule(Matrix(), L2(), NoRetention(), GradientDescent(), chunk_size=1, clip=None)
Write = Callable[[Array, Array, float], Array]


def walk(s: Stream, w: Array, write: Write, before: bool = False) -> Want:
    """``W_t = write(W_{t-1}, grad of 1/2 ||W k - v||^2, lr_t)``, read after the write or before it."""
    y = []
    for q, k, v, lr in zip(s.q, s.k, s.v, s.lr, strict=True):
        later = write(w, np.outer(w @ k - v, k), lr[0])
        y.append((w if before else later) @ q)
        w = later
    return Want(y, force=[w])


@pytest.mark.parametrize("reach", ["coordinate", "norm"])
def test_huber(reach: Reach) -> None:
    """(14): e k^T where |e| <= d, else d sign(e) k^T, per coordinate; (15): where ||e|| <= d, else d e / ||e|| k^T."""
    rule = replace(PLAIN, bias=Huber(reach, eps=1e-14))
    s = stream(rule, TIME, KEY, VALUE, threshold=(0.3, 1.0) if reach == "coordinate" else (1.0, 3.0))
    w, y, sides = s.initial[0], [], []
    for q, k, v, lr, d in zip(s.q, s.k, s.v, s.lr, s.threshold[:, 0], strict=True):
        e = w @ k - v
        size = np.abs(e) if reach == "coordinate" else np.full(VALUE, np.linalg.norm(e))
        w = w - lr * np.outer(np.where(size <= d, e, d * e / size), k)
        y.append(w @ q)
        sides.append(size <= d)
    assert 0.2 < np.mean(sides) < 0.8
    agree(rule, s, Want(y, [w]))


def test_robust_to_value_shifts() -> None:
    """(17): W_t = W_{t-1} - eta (e k^T + Delta e / ||e|| k^T)."""
    rule = replace(PLAIN, bias=RobustL2(0.7, eps=1e-14))
    s = stream(rule, TIME, KEY, VALUE)
    w, y = s.initial[0], []
    for q, k, v, lr in zip(s.q, s.k, s.v, s.lr, strict=True):
        e = w @ k - v
        w = w - lr * np.outer(e + 0.7 * e / np.linalg.norm(e), k)
        y.append(w @ q)
    agree(rule, s, Want(y, [w]))


def threshold(z: Array, gamma: float) -> Array:
    return np.sign(z) * np.maximum(0.0, np.abs(z) - gamma)


def test_elastic_net_by_its_proximal_step() -> None:
    """(22): W_t = S_gamma(lambda_t W_{t-1} - zeta_t grad)."""
    rule = replace(PLAIN, retention=ElasticNet(0.05), read="before")
    s = stream(rule, TIME, KEY, VALUE)
    w, y = s.initial[0], []
    for q, k, v, zeta, kept in zip(s.q, s.k, s.v, s.lr, s.retain, strict=True):
        y.append(w @ q)
        w = threshold(kept * w - zeta * np.outer(w @ k - v, k), 0.05)
    assert (w == 0.0).any()
    agree(rule, s, Want(y, force=[w]))


def test_elastic_net_by_follow_the_regularised_leader() -> None:
    """(23): A_t = A_{t-1} - eta grad(W_{t-1}), W_t = S(A_t)."""
    rule = replace(PLAIN, retention=SoftThreshold(0.05, link_at="token"))
    s = stream(rule, TIME, KEY, VALUE, retain=(1.0, 1.0))
    a, y = s.initial[0], []
    for q, k, v, eta in zip(s.q, s.k, s.v, s.lr, strict=True):
        a = a - eta * np.outer(threshold(a, 0.05) @ k - v, k)
        y.append(threshold(a, 0.05) @ q)
    agree(rule, s, Want(y, [a], force=[threshold(a, 0.05)]))


def test_bregman_s_bounded_weights() -> None:
    """Section 5.2: W_t = sigmoid(logit(W_{t-1}) - eta grad(W_{t-1})); learned initial weights are logits."""
    rule = replace(PLAIN, retention=Bounded(0.0, 1.0, link_at="token"))
    s = stream(rule, TIME, KEY, VALUE, retain=(1.0, 1.0))
    want = walk(s, sigmoid(s.initial[0]), lambda w, g, lr: sigmoid(np.log(w / (1.0 - w)) - lr * g))
    agree(rule, s, want)


def scaled_to(total: float, weigh: Callable[[Array], Array]) -> Array:
    """``weigh(zeta)`` with the zeta of every row at which it sums to the total, by bisection."""
    low, high = (np.full((VALUE, 1), end) for end in (-50.0, 50.0))
    for _ in range(100):
        middle = 0.5 * (low + high)
        heavy = weigh(middle).sum(1, keepdims=True) > total
        low, high = np.where(heavy, middle, low), np.where(heavy, high, middle)
    return weigh(0.5 * (low + high))


@pytest.mark.parametrize("name", ["kl", "chi2"])
def test_f_divergence(name: str) -> None:
    """(18): W_t = W_{t-1} * g(-zeta_t - eta_t grad), zeta such that the row sums to c.

    g is the inverse of f': exp for u log u, up to a constant; max(0, 1 + y) for (u - 1)^2 / 2.
    """
    inverse: Callable[[Array], Array] = np.exp if name == "kl" else lambda y: np.maximum(0.0, 1.0 + y)
    rule = replace(PLAIN, retention=FDivergence(name, 2.0), read="before")  # type: ignore[arg-type]
    s = stream(rule, TIME, KEY, VALUE, lr=(0.3, 1.0))

    def write(w: Array, g: Array, lr: float) -> Array:
        return scaled_to(2.0, lambda zeta: w * inverse(-zeta - lr * g))

    want = walk(s, 2.0 * softmax(s.initial[0]), write, before=True)
    assert want.force is not None
    assert (want.force[0] == 0.0).any() == (name == "chi2")
    agree(rule, s, want)


def test_memora_at_every_token() -> None:
    """(27) as printed: W_t = softmax(alpha_t log W_{t-1} - eta_t grad(W_{t-1})), read after the write."""
    rule = replace(presets.memora(chunk_size=1), retention=KLDivergence("map", link_at="token"), read="after")
    s = stream(rule, TIME)
    w, y = [softmax(logits) for logits in s.initial], []
    for t, q in enumerate(s.q):
        u = clipped(residual_mlp_slopes(w, s.k[t], residual_mlp(w, s.k[t]) - s.v[t]))
        w = [softmax(s.retain[t, i] * np.log(w[i]) - s.lr[t, i] * u[i]) for i in (0, 1)]
        y.append(residual_mlp(w, q))
    agree(rule, s, Want(y, force=w))


def test_moneta_at_every_token() -> None:
    """(24) as printed, with the mirror map of 1/2 ||W||_4^2 as its link."""
    rule = replace(presets.moneta(chunk_size=1), retention=LQNorm(scope="map", link_at="token"), read="after")
    s = stream(rule, TIME)
    a, y = [mirror(w, 4.0) for w in s.initial], []
    for t, q in enumerate(s.q):
        w = [mirror(part, 4 / 3) for part in a]
        e = residual_mlp(w, s.k[t]) - s.v[t]
        u = clipped(residual_mlp_slopes(w, s.k[t], 3.0 * e * np.sqrt(e * e + 1e-6)))
        a = [s.retain[t, i] * a[i] - s.lr[t, i] * u[i] for i in (0, 1)]
        y.append(residual_mlp([mirror(part, 4 / 3) for part in a], q))
    agree(rule, s, Want(y, a))


def test_nesterov_is_torch_s() -> None:
    """Sutskever et al. 2013 as optimisers write it, here by ``torch.optim.SGD``: one lr and one momentum for all."""
    rule = replace(PLAIN, algorithm=Nesterov())
    s = stream(rule, TIME, KEY, VALUE, lr=(0.3, 0.3), momentum=(0.8, 0.8))
    w = torch.from_numpy(s.initial[0].copy()).requires_grad_()
    sgd = torch.optim.SGD([w], lr=0.3, momentum=0.8, nesterov=True)
    y = []
    for q, k, v in zip(*(torch.from_numpy(x) for x in (s.q, s.k, s.v)), strict=True):
        sgd.zero_grad()
        (0.5 * (w @ k - v).square().sum()).backward()
        sgd.step()
        y.append((w.detach() @ q).numpy())
    agree(rule, s, Want(y, [w.detach().numpy()], [-0.3 * sgd.state[w]["momentum_buffer"].numpy()]))


@pytest.mark.parametrize("chunk", [1, 4])
def test_nesterov_with_gates(chunk: int) -> None:
    """``v_t = m_t v_{t-1} - lr_t g_t``, ``W_t = W_{t-1} + m_t v_t - lr_t g_t`` with gates of every token's own."""
    rule = replace(PLAIN, retention=WeightDecay(), algorithm=Nesterov(), chunk_size=chunk)
    s = stream(rule, TIME, KEY, VALUE)
    w, past, y = s.initial[0], np.zeros((VALUE, KEY)), []
    for t, (q, k, v, lr, m, kept) in enumerate(zip(s.q, s.k, s.v, s.lr, s.momentum, s.retain, strict=True)):
        if t % chunk == 0:
            anchor = w
        g = np.outer(anchor @ k - v, k)
        past = m * past - lr * g
        w = kept * w + m * past - lr * g
        y.append(w @ q)
    agree(rule, s, Want(y, [w], [past]))


@pytest.mark.parametrize("chunk", [1, 4])
def test_delta_gradient_descent(chunk: int) -> None:
    """Nested Learning, 2512.24695 (88, 90, 92): M_t = M_{t-1} (alpha_t I - eta_t k k^T) - eta_t grad ||M k - v||^2.

    The gradient is that at the chunk's start.
    """
    rule = replace(PLAIN, bias=L2(half=False), retention=WeightDecay(), algorithm=DeltaGradientDescent())
    rule = replace(rule, chunk_size=chunk)
    s = stream(rule, TIME, KEY, VALUE)
    memory, y = s.initial[0], []
    for t, (q, k, v, eta, alpha) in enumerate(zip(s.q, s.k, s.v, s.lr, s.retain, strict=True)):
        if t % chunk == 0:
            anchor = memory
        erased = memory @ (alpha * np.eye(KEY) - eta * np.outer(k, k))
        memory = erased - eta * np.outer(2.0 * (anchor @ k - v), k)
        y.append(memory @ q)
    agree(rule, s, Want(y, [memory]))


@pytest.mark.parametrize("chunk", [1, 4])
def test_delta_gradient_descent_of_two_layers(chunk: int) -> None:
    """(56, 57) for each layer with its own input x.

    The erasing factor takes x / max(1, ||x||): the paper's x has length 1.
    """
    rule = Rule(MLP(2, 2.0, "tanh"), L2(), WeightDecay(), DeltaGradientDescent(), chunk_size=chunk, clip=None)
    s = stream(rule, TIME, KEY, VALUE)
    w, y, lengths = s.initial, [], []
    for t, (q, k, v, eta, alpha) in enumerate(zip(s.q, s.k, s.v, s.lr, s.retain, strict=True)):
        if t % chunk == 0:
            anchor = w
        hidden = np.tanh(anchor[0] @ k)
        e = anchor[1] @ hidden - v
        moved = []
        for part, delta, x in zip(w, [(anchor[1].T @ e) * (1.0 - hidden**2), e], [k, hidden], strict=True):
            unit = x / max(1.0, float(np.linalg.norm(x)))
            moved.append(part @ (alpha * np.eye(len(x)) - eta * np.outer(unit, unit)) - eta * np.outer(delta, x))
            lengths.append(float(np.linalg.norm(x)))
        w = moved
        y.append(w[1] @ np.tanh(w[0] @ q))
    assert min(lengths) < 1.0 < max(lengths)
    agree(rule, s, Want(y, w))
