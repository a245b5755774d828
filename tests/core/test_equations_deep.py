"""Published deep memories, typed from their papers in NumPy; inner gradients are derived by hand, at the chunk's start.

Two chunks and some tokens, token by token; numbers in brackets are the papers' equations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from tests.core.papers import (
    Array,
    Stream,
    Want,
    Weights,
    agree,
    clipped,
    close,
    layer_norm,
    layer_norm_slope,
    residual_mlp,
    residual_mlp_slopes,
    softmax,
    stream,
    swiglu,
    swiglu_slopes,
)

from fastweights.core import presets
from fastweights.core.retention import KLDivergence, LQNorm
from fastweights.core.rule import Rule

CHUNK = 4


def titans(s: Stream) -> Want:
    """2501.00663 (12) ||M(k) - v||^2; (14, 18) S_t = eta_t S_{t-1} - theta_t grad(M_t'; x_t).

    (13) M_t = (1 - alpha_t) M_{t-1} + S_t; (15) y_t = M_t(q_t). Gates per layer, as the camera-ready has them.
    """
    memory, surprise, y = s.initial, [np.zeros_like(w) for w in s.initial], []
    for t, (q, k, v) in enumerate(zip(s.q, s.k, s.v, strict=True)):
        if t % CHUNK == 0:
            anchor = memory
        u = residual_mlp_slopes(anchor, k, 2.0 * (residual_mlp(anchor, k) - v))
        surprise = [s.momentum[t, i] * surprise[i] - s.lr[t, i] * u[i] for i in (0, 1)]
        memory = [s.retain[t, i] * memory[i] + surprise[i] for i in (0, 1)]
        y.append(residual_mlp(memory, q))
    return Want(y, memory, surprise)


def titans_swiglu(s: Stream, bound: float = 1.0) -> Want:
    """The same (13, 14, 18) for the memory of LaCT, half the squared error, the whole gradient at most 1 long."""
    memory, surprise, y = s.initial, [np.zeros_like(w) for w in s.initial], []
    for t, (q, k, v) in enumerate(zip(s.q, s.k, s.v, strict=True)):
        if t % CHUNK == 0:
            anchor = memory
        u = clipped(swiglu_slopes(anchor, k, swiglu(anchor, k) - v), bound)
        surprise = [s.momentum[t] * old - s.lr[t] * new for old, new in zip(surprise, u, strict=True)]
        memory = [s.retain[t] * w + step for w, step in zip(memory, surprise, strict=True)]
        y.append(swiglu(memory, q))
    return Want(y, memory, surprise)


def rounded(x: Array, eps: float) -> Array:
    """MIRAS, remark after (11): |x| = sqrt(x^2 + eps)."""
    return np.sqrt(x * x + eps)


def mirror(w: Array, p: float) -> Array:
    """The gradient of 1/2 ||w||_p^2 (2504.13173, below (17)): sign(w) |w|^(p-1) / ||w||_p^(p-2)."""
    size = rounded(w, 1e-14 * (w * w).max())
    return w * size ** (p - 2.0) / (size**p).sum() ** ((p - 2.0) / p)


def printed(w: Array, q: float) -> Array:
    """(24): W_t = A_t / ||A_t||_q^(q-2)."""
    return w / (rounded(w, 1e-14 * (w * w).max()) ** q).sum() ** ((q - 2.0) / q)


def moneta(s: Stream, bound: float = 1.0, as_printed: bool = False) -> Want:
    """2504.13173 (24): A_t = alpha_t A_{t-1} - eta_t grad l_p(W), W = link(A), p = 3, q = 4.

    (11) the gradient is p sign(e) |e|^(p-1); section 5.4: the link acts at chunk ends. W_0 is learned: A_0 is its
    mirror.
    """

    def link(x: Array) -> Array:
        return printed(x, 4.0) if as_printed else mirror(x, 4 / 3)

    a, y = s.initial if as_printed else [mirror(w, 4.0) for w in s.initial], []
    for t, (q, k, v) in enumerate(zip(s.q, s.k, s.v, strict=True)):
        if t % CHUNK == 0:
            w = [link(part) for part in a]
        e = residual_mlp(w, k) - v
        u = clipped(residual_mlp_slopes(w, k, 3.0 * e * rounded(e, 1e-6)), bound)
        a = [s.retain[t, i] * a[i] - s.lr[t, i] * u[i] for i in (0, 1)]
        y.append(residual_mlp(w, q))
    return Want(y, a, force=w if len(y) % CHUNK else [link(part) for part in a])


def yaad(s: Stream) -> Want:
    """2504.13173 (26): alpha_t W_{t-1} - eta_t grad l_2 where ||M(k) - v|| <= delta_t, else - eta_t delta_t grad l_1.

    l_2 is half the squared error as in (13), and |x| in l_1 is rounded as in the remark after (11).
    """
    w, y, branches = s.initial, [], set()
    for t, (q, k, v) in enumerate(zip(s.q, s.k, s.v, strict=True)):
        if t % CHUNK == 0:
            anchor = w
        e, delta = residual_mlp(anchor, k) - v, s.threshold[t]
        small = math.sqrt(e @ e) <= delta[0]
        u = residual_mlp_slopes(anchor, k, e if small else delta * e / rounded(e, 1e-6))
        w = [s.retain[t, i] * w[i] - s.lr[t, i] * u[i] for i in (0, 1)]
        y.append(residual_mlp(w, q))
        branches.add(small)
    assert branches == {True, False}
    return Want(y, w)


def memora(s: Stream, bound: float = 1.0, total: float = 1.0) -> Want:
    """2504.13173 (21, 27): W_t = c softmax(alpha_t log W_{t-1} - eta_t grad l_2(W)), row by row.

    (30): the gradients of a chunk are taken at W after its first token, that of the first one at W before it. All of
    the chunk's reads are of W after its first token.
    """

    def write(w: Weights, at: Weights, t: int) -> Weights:
        u = clipped(residual_mlp_slopes(at, s.k[t], residual_mlp(at, s.k[t]) - s.v[t]), bound)
        return [total * softmax(s.retain[t, i] * np.log(w[i]) - s.lr[t, i] * u[i]) for i in (0, 1)]

    w, y = [total * softmax(logits) for logits in s.initial], []
    for t, q in enumerate(s.q):
        if t % CHUNK == 0:
            w = lag = write(w, w, t)
        else:
            w = write(w, lag, t)
        y.append(residual_mlp(lag, q))
    return Want(y, force=lag if len(y) % CHUNK else w)


def ttt_linear(s: Stream) -> Want:
    """2407.04620 section 2.7: f(x) = x + LN(W x + b), LN with gain and shift; (6) W_t = W_t' - sum eta grad(W_t').

    As in its code: f(k) - k learns v - k under half the squared error, eps is 1e-6, the output is f(q; W_t).
    """
    memory, gain, shift = s.initial
    y = []
    for t, (q, k, v, eta) in enumerate(zip(s.q, s.k, s.v, s.lr, strict=True)):
        if t % CHUNK == 0:
            anchor = memory
        k1, q1 = np.append(k, 1.0), np.append(q, 1.0)
        e = gain[0] * layer_norm(anchor @ k1, 1e-6) + shift[0] - (v - k)
        memory = memory - eta * np.outer(layer_norm_slope(anchor @ k1, gain[0] * e, 1e-6), k1)
        y.append(q + gain[0] * layer_norm(memory @ q1, 1e-6) + shift[0])
    return Want(y, [memory])


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def gelu_tanh_slope(x: Array) -> Array:
    root = math.sqrt(2.0 / math.pi)
    u = root * (x + 0.044715 * x**3)
    return 0.5 * (1.0 + np.tanh(u)) + 0.5 * x / np.cosh(u) ** 2 * root * (1.0 + 3.0 * 0.044715 * x**2)


def ttt_mlp(s: Stream) -> Want:
    """2407.04620 section 2.7: as TTT-Linear with W2 gelu(W1 x + b1) + b2, the tanh form of GELU as in its code."""
    w1, w2, gain, shift = s.initial
    y = []
    for t, (q, k, v, eta) in enumerate(zip(s.q, s.k, s.v, s.lr, strict=True)):
        if t % CHUNK == 0:
            at1, at2 = w1, w2
        k1 = np.append(k, 1.0)
        h = at1 @ k1
        a1 = np.append(gelu_tanh(h), 1.0)
        e = gain[0] * layer_norm(at2 @ a1, 1e-6) + shift[0] - (v - k)
        g = layer_norm_slope(at2 @ a1, gain[0] * e, 1e-6)
        w1 = w1 - eta * np.outer((at2[:, :-1].T @ g) * gelu_tanh_slope(h), k1)
        w2 = w2 - eta * np.outer(g, a1)
        z = w2 @ np.append(gelu_tanh(w1 @ np.append(q, 1.0)), 1.0)
        y.append(q + gain[0] * layer_norm(z, 1e-6) + shift[0])
    return Want(y, [w1, w2])


def dla(s: Stream, bound: float = 1.0) -> Want:
    """2505.23735 section 3: M_t = alpha_t M_{t-1} - eta_t grad of -<M(k_t), v_t>, clipped; Titans' memory."""
    memory, y = s.initial, []
    for t, (q, k, v) in enumerate(zip(s.q, s.k, s.v, strict=True)):
        if t % CHUNK == 0:
            anchor = memory
        u = clipped(residual_mlp_slopes(anchor, k, -v), bound)
        memory = [s.retain[t] * w - s.lr[t] * g for w, g in zip(memory, u, strict=True)]
        y.append(residual_mlp(memory, q))
    return Want(y, memory)


UNCLIPPED = {equation.__name__: equation for equation in (titans, yaad, ttt_linear, ttt_mlp)}
CLIPPED = {equation.__name__: equation for equation in (titans_swiglu, moneta, memora, dla)}
EQUATIONS = UNCLIPPED | CLIPPED


def rule_of(name: str) -> Rule:
    return replace(presets.PRESETS[name](), chunk_size=CHUNK)


@pytest.mark.parametrize("time", [2 * CHUNK + 3, 3 * CHUNK])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", EQUATIONS)
def test_a_deep_memory_is_its_paper_s(name: str, seed: int, time: int) -> None:
    rule = rule_of(name)
    s = stream(rule, time, seed=seed)
    agree(rule, s, EQUATIONS[name](s))


@pytest.mark.parametrize("bound", [10.0, 1e6])
@pytest.mark.parametrize("name", CLIPPED)
def test_gradients_below_the_clip_count_in_full(name: str, bound: float) -> None:
    """Under the presets' own bound of 1 a wrong factor would go unseen."""
    rule = replace(rule_of(name), clip=bound)
    s = stream(rule, 3 * CHUNK, lr=(0.005, 0.02))
    agree(rule, s, CLIPPED[name](s, bound))


@pytest.mark.parametrize("bound", [1.0, 1e6])
def test_moneta_as_printed(bound: float) -> None:
    rule = replace(rule_of("moneta"), retention=LQNorm(4.0, form="printed", scope="map"), clip=bound)
    s = stream(rule, 3 * CHUNK, lr=(0.005, 0.02))
    agree(rule, s, moneta(s, bound, as_printed=True))


def test_memora_on_a_larger_simplex() -> None:
    rule = replace(rule_of("memora"), retention=KLDivergence("map", total=3.0))
    s = stream(rule, 3 * CHUNK)
    agree(rule, s, memora(s, total=3.0))


@pytest.mark.parametrize("network", [(residual_mlp, residual_mlp_slopes, 2), (swiglu, swiglu_slopes, 3)])
def test_the_slopes_typed_here_are_slopes(network: tuple[Callable[..., Array], Callable[..., Weights], int]) -> None:
    """Central differences of <g, f(W, x)> along a random direction of all weights."""
    forward, slopes, count = network
    draw = np.random.default_rng(3)
    shapes = {2: [(6, 4), (4, 6)], 3: [(6, 4), (6, 4), (4, 6)]}[count]
    w, towards = ([draw.normal(size=shape) for shape in shapes] for _ in range(2))
    x, g = draw.normal(size=(2, 4))
    ahead, behind = (g @ forward([a + h * b for a, b in zip(w, towards, strict=True)], x) for h in (1e-5, -1e-5))
    along = sum(float((a * b).sum()) for a, b in zip(slopes(w, x, g), towards, strict=True))
    close(along, (ahead - behind) / 2e-5, 1e-8)
