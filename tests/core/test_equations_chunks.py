"""Published memories that act between tokens or chunks: windows, Muon steps, several memories; typed in NumPy.

Two chunks and some tokens, token by token; numbers in brackets are the papers' equations.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.core.papers import (
    Array,
    Stream,
    Want,
    Weights,
    agree,
    all_close,
    answer,
    clipped,
    close,
    monomials,
    newton_schulz,
    residual_mlp,
    residual_mlp_slopes,
    stream,
    swiglu,
    swiglu_slopes,
)
from tests.core.test_equations_deep import EQUATIONS as DEEP
from tests.core.test_equations_matrix import EQUATIONS as MATRIX

from fastweights.core import presets
from fastweights.core.algorithm import Hierarchy, NewtonSchulz
from fastweights.core.rule import Rule

CHUNK, TIME = 4, 2 * 4 + 3


def lact(s: Stream, floor: float) -> Want:
    """2505.23884 section 3: a chunk is answered by W; then g = sum_i eta_i grad of -<f(k_i), v_i>, M = beta M + g.

    W <- W - Muon(M), and every row of W gets the length it had in W_0. The chunk's beta is its first token's; a chunk
    that is not full has moved M alone.
    """
    w, m, y = s.initial, [np.zeros_like(part) for part in s.initial], []
    lengths = [np.linalg.norm(part, axis=1, keepdims=True) for part in w]
    for start in range(0, len(s.q), CHUNK):
        tokens = range(start, min(start + CHUNK, len(s.q)))
        y += [swiglu(w, s.q[t]) for t in tokens]
        m = [s.momentum[start] * part for part in m]
        for t in tokens:
            m = [a + s.lr[t] * g for a, g in zip(m, swiglu_slopes(w, s.k[t], -s.v[t]), strict=True)]
        if len(tokens) == CHUNK:
            w = [a - newton_schulz(b, floor) for a, b in zip(w, m, strict=True)]
            w = [a / np.linalg.norm(a, axis=1, keepdims=True) * n for a, n in zip(w, lengths, strict=True)]
    return Want(y, momentum=[-part for part in m], force=w)


def per_chunk(s: Stream) -> Stream:
    """Momentum once a chunk, at its first token."""
    opens = np.arange(len(s.q))[:, None] % CHUNK == 0
    return s._replace(momentum=np.where(opens, s.momentum, 1.0))


def window_slopes(s: Stream, at: Weights, t: int, window: int, bound: float) -> Weights:
    """2505.23735 (9): the gradient of the sum over t - c < i <= t of gamma_i ||M(phi(k_i)) - v_i||^2, with a half."""
    total = [np.zeros_like(w) for w in at]
    for i in range(max(0, t - window + 1), t + 1):
        features = monomials(s.k[i], s.initial[2][0])
        e = residual_mlp(at, s.k[i], features) - s.v[i]
        grads = clipped(residual_mlp_slopes(at, features, e), bound)
        total = [a + s.importance[i] * g for a, g in zip(total, grads, strict=True)]
    return total


def omega_net(s: Stream, window: int = 4, bound: float = 1.0) -> Want:
    """2505.23735 (10): M_t = alpha_t M_{t-1} - eta_t grad of the window's loss, at the chunk's start (16)."""
    memory, y = s.initial[:2], []
    for t, q in enumerate(s.q):
        if t % CHUNK == 0:
            anchor = memory
        u = window_slopes(s, anchor, t, window, bound)
        memory = [s.retain[t] * w - s.lr[t] * g for w, g in zip(memory, u, strict=True)]
        y.append(residual_mlp(memory, q, monomials(q, s.initial[2][0])))
    return Want(y, memory)


def atlas(s: Stream, floor: float, window: int, bound: float) -> Want:
    """2505.23735 (32, 33): S_t = theta_t S_{t-1} + grad, M_t = alpha_t M_{t-1} - eta NewtonSchulz(S_t).

    The step is taken once a chunk, behind its last token.
    """
    memory, momentum, y = s.initial[:2], [np.zeros_like(w) for w in s.initial[:2]], []
    for t, q in enumerate(s.q):
        if t % CHUNK == 0:
            anchor = memory
        y.append(residual_mlp(anchor, q, monomials(q, s.initial[2][0])))
        u = window_slopes(s, anchor, t, window, bound)
        momentum = [s.momentum[t] * a + s.lr[t] * g for a, g in zip(momentum, u, strict=True)]
        memory = [s.retain[t] * w for w in memory]
        if t % CHUNK == CHUNK - 1:
            memory = [w - 0.05 * newton_schulz(a, floor) for w, a in zip(memory, momentum, strict=True)]
    return Want(y, momentum=[-a for a in momentum], force=anchor if len(y) % CHUNK else memory)


def atlas_token_by_token(s: Stream, floor: float, window: int = 4) -> Want:
    """(32, 33) as printed, a step at every token; the memory before a token answers it."""
    memory, momentum, y = s.initial[:2], [np.zeros_like(w) for w in s.initial[:2]], []
    for t, q in enumerate(s.q):
        y.append(residual_mlp(memory, q, monomials(q, s.initial[2][0])))
        u = window_slopes(s, memory, t, window, 1.0)
        momentum = [s.momentum[t] * a + s.lr[t] * g for a, g in zip(momentum, u, strict=True)]
        memory = [s.retain[t] * w - 0.05 * newton_schulz(a, floor) for w, a in zip(memory, momentum, strict=True)]
    return Want(y, momentum=[-a for a in momentum], force=memory)


class TitansMemory:
    """Titans (12, 13, 14) with one gate for all maps, its gradient at the chunk's start and at most ``bound`` long."""

    def __init__(self, weights: Weights, bound: float) -> None:
        self.now = self.anchor = weights
        self.momentum = [np.zeros_like(w) for w in weights]
        self.bound = bound

    def write(self, s: Stream, t: int) -> None:
        e = residual_mlp(self.anchor, s.k[t]) - s.v[t]
        u = clipped(residual_mlp_slopes(self.anchor, s.k[t], 2.0 * e), self.bound)
        self.momentum = [s.momentum[t] * a - s.lr[t] * g for a, g in zip(self.momentum, u, strict=True)]
        self.now = [s.retain[t] * w + a for w, a in zip(self.now, self.momentum, strict=True)]


def tnt(s: Stream, rule: Rule) -> Want:
    """2511.07343: o_t = f(V_xi, q_t) + sum_i f(W_t^i, P_t^i q_t), V at its chunk's start.

    (6) W^i starts again from its learned W_init every shard; (7) P_t = sum of k k^T / ||k||^2 since the local chunk
    began.
    """
    assert isinstance(rule.algorithm, Hierarchy)
    chunks, shard, bound = rule.algorithm.local_chunks, rule.algorithm.shard, rule.clip or np.inf
    groups = [s.initial[2 * i : 2 * i + 2] for i in range(1 + len(chunks))]
    whole, *local = (TitansMemory(group, bound) for group in groups)
    spans = [np.zeros((4, 4)) for _ in chunks]
    y = []
    for t, (q, k) in enumerate(zip(s.q, s.k, strict=True)):
        if t % rule.chunk_size == 0:
            whole.anchor = whole.now
        answered = residual_mlp(whole.anchor, q)
        whole.write(s, t)
        for i, c in enumerate(chunks):
            if t % shard == 0:
                local[i] = TitansMemory(groups[1 + i], bound)
            if t % c == 0:
                local[i].anchor, spans[i] = local[i].now, np.zeros((4, 4))
            local[i].write(s, t)
            spans[i] = spans[i] + np.outer(k, k) / (k @ k)
            answered = answered + residual_mlp(local[i].now, spans[i] @ q)
        y.append(answered)
    memories = [whole, *local]
    return Want(y, [w for m in memories for w in m.now] + spans, [w for m in memories for w in m.momentum])


CHUNKED = {"lact", "omega_net", "atlas", "tnt"}


def test_every_preset_is_typed_from_its_paper() -> None:
    assert {*MATRIX, *DEEP, *CHUNKED} == set(presets.PRESETS)


def floored(rule: Rule, floor: float) -> Rule:
    assert isinstance(rule.algorithm, NewtonSchulz)
    return replace(rule, algorithm=replace(rule.algorithm, floor=floor))


# The papers have no floor.
floors = pytest.mark.parametrize("floor", [1e-12, NewtonSchulz().floor])


@floors
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("time", [TIME, 3 * CHUNK])
def test_lact(time: int, seed: int, floor: float) -> None:
    # The paper's step; the preset takes half.
    rule = replace(presets.lact(chunk_size=CHUNK), algorithm=NewtonSchulz(step=1.0, floor=floor))
    s = per_chunk(stream(rule, time, seed=seed))
    agree(rule, s, lact(s, floor))


@pytest.mark.parametrize("bound", [1.0, 5.0, 1e6])
@pytest.mark.parametrize("window", [1, 3, 4, 7])
def test_omega_net(window: int, bound: float) -> None:
    """Windows shorter than, as long as and longer than a chunk; those before the chunk are taken at its anchor."""
    rule = replace(presets.omega_net(window, degree=2, expansion=0.5, chunk_size=CHUNK), clip=bound)
    s = stream(rule, TIME, key=3, value=3, lr=(0.01, 0.1))
    agree(rule, s, omega_net(s, window, bound))


def test_omega_net_with_cubes() -> None:
    rule = presets.omega_net(degree=3, expansion=0.3, chunk_size=CHUNK)
    s = stream(rule, TIME, key=3, value=3)
    agree(rule, s, omega_net(s))


@floors
@pytest.mark.parametrize("bound", [1.0, 1e6])
@pytest.mark.parametrize("window", [1, 4, 7])
@pytest.mark.parametrize("time", [TIME, 3 * CHUNK])
def test_atlas(time: int, window: int, bound: float, floor: float) -> None:
    rule = floored(presets.atlas(window, degree=2, expansion=0.5, chunk_size=CHUNK), floor)
    s = stream(rule, time, key=3, value=3)
    agree(replace(rule, clip=bound), s, atlas(s, floor, window, bound))


@floors
def test_atlas_with_a_step_at_every_token(floor: float) -> None:
    rule = floored(presets.atlas(expansion=0.5, chunk_size=1), floor)
    s = stream(rule, TIME, key=3, value=3)
    agree(rule, s, atlas_token_by_token(s, floor))


@pytest.mark.parametrize("bound", [1.0, 10.0, 1e6])
@pytest.mark.parametrize("local", [(2,), (1, 4), (2, 4, 8)])
def test_tnt(local: tuple[int, ...], bound: float) -> None:
    """Two shards and some tokens."""
    rule = replace(presets.tnt(local, chunk_size=CHUNK, shard=8), clip=bound)
    s = stream(rule, 2 * 8 + 3, lr=(0.01, 0.1))
    agree(rule, s, tnt(s, rule))


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_polynomial_features_are_a_series_of_the_inner_product(degree: int) -> None:
    """2505.23735 section 3.1: with a_i = 1 / sqrt(i!) the exponential's, up to the degree."""
    draw = np.random.default_rng(0)
    q, k = draw.normal(size=(2, 4))
    a: Array = draw.normal(size=degree + 1)
    close(monomials(q, a) @ monomials(k, a), sum(a[i] ** 2 * (q @ k) ** i for i in range(degree + 1)))
    assert len(monomials(q, a)) == presets.omega_net(degree=degree).maps(4, 4)[0].inputs


def test_a_lact_chunk_that_is_still_open_has_written_nothing() -> None:
    rule = presets.lact(chunk_size=16)
    s = stream(rule, TIME)
    got = answer(rule, s)
    all_close(got.dual, s.initial)
    close(got.y, [swiglu(s.initial, q) for q in s.q])
