"""Published matrix memories, typed from their papers in NumPy, one token after the other.

States are laid out as in each paper; numbers in brackets are its equations. Streams are longer than two of the blocks
that the fast tier solves at once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tests.core.papers import Stream, Want, agree, answer, close, softmax, stream

from fastweights.core import presets

KEY, VALUE, TIME = 4, 3, 2 * 64 + 3


def linear_attention(s: Stream) -> Want:
    """2006.16236 (18), (20), without feature map and normaliser; lr is a scale of the value."""
    state, y = s.initial[0].T, []
    for q, k, v, lr in zip(s.q, s.k, s.v, s.lr, strict=True):
        state = state + np.outer(k, lr * v)
        y.append(q @ state)
    return Want(y, [state.T])


def retnet(s: Stream) -> Want:
    """2307.08621 (6): S_n = gamma S_{n-1} + K_n^T V_n, answers Q_n S_n; gamma is the head's."""
    gamma, scale = s.retain[0, 0], s.lr[0, 0]
    state, y = s.initial[0].T, []
    for q, k, v in zip(s.q, s.k, s.v, strict=True):
        state = gamma * state + scale * np.outer(k, v)
        y.append(q @ state)
    return Want(y, [state.T])


def gla(s: Stream) -> Want:
    """2312.06635 (3): S_t = (alpha_t^T 1) * S_{t-1} + k_t^T v_t, o_t = q_t S_t."""
    state, y = s.initial[0].T, []
    for q, k, v, lr, alpha in zip(s.q, s.k, s.v, s.lr, s.retain, strict=True):
        state = np.outer(alpha, np.ones(VALUE)) * state + np.outer(k, lr * v)
        y.append(q @ state)
    return Want(y, [state.T])


def mamba2(s: Stream) -> Want:
    """2405.21060 (1), with A_t = a_t I and (Delta_t B_t) x_t: h_t = A_t h_{t-1} + B_t x_t^T, y_t = C_t^T h_t."""
    h, y = s.initial[0].T, []
    for c, b, x, delta, a in zip(s.q, s.k, s.v, s.lr, s.retain, strict=True):
        h = a * np.eye(KEY) @ h + np.outer(delta * b, x)
        y.append(c @ h)
    return Want(y, [h.T])


def hgrn2(s: Stream) -> Want:
    """2404.07904 section 3: h_t = h_{t-1} Diag(f_t) + i_t (1 - f_t)^T, y_t = h_t o_t."""
    h, y = s.initial[0], []
    for o, i, f in zip(s.q, s.v, s.retain, strict=True):
        h = h @ np.diag(f) + np.outer(i, 1.0 - f)
        y.append(h @ o)
    return Want(y, [h])


def deltanet(s: Stream) -> Want:
    """2406.06484 section 2.2: S_t = S_{t-1} - beta_t (S_{t-1} k_t - v_t) k_t^T, o_t = S_t q_t."""
    state, y = s.initial[0], []
    for q, k, v, beta in zip(s.q, s.k, s.v, s.lr, strict=True):
        state = state - beta * np.outer(state @ k - v, k)
        y.append(state @ q)
    return Want(y, [state])


def gated_deltanet(s: Stream) -> Want:
    """2412.06464 (10): S_t = S_{t-1} (alpha_t (I - beta_t k_t k_t^T)) + beta_t v_t k_t^T."""
    state, y = s.initial[0], []
    for q, k, v, beta, alpha in zip(s.q, s.k, s.v, s.lr, s.retain, strict=True):
        state = state @ (alpha * (np.eye(KEY) - beta * np.outer(k, k))) + beta * np.outer(v, k)
        y.append(state @ q)
    return Want(y, [state])


def longhorn(s: Stream) -> Want:
    """2407.14207 theorem 3.1: S_t = S_{t-1} (I - Delta_t k_t k_t^T) + Delta_t x_t k_t^T, Delta = b / (1 + b k^T k)."""
    state, y = s.initial[0], []
    for q, k, x, beta in zip(s.q, s.k, s.v, s.lr, strict=True):
        delta = beta / (1.0 + beta * k @ k)
        state = state @ (np.eye(KEY) - delta * np.outer(k, k)) + delta * np.outer(x, k)
        y.append(state @ q)
    return Want(y, [state])


def rwkv7(s: Stream) -> Want:
    """2503.14456 section 4: S_t = S_{t-1} (diag(w_t) - kappa_t^T (a_t * kappa_t)) + v_t^T k_t, read S_t r_t."""
    state, y = s.initial[0], []
    for r, both, v, a, w in zip(s.q, s.k, s.v, s.lr, s.retain, strict=True):
        k, kappa = both[:KEY], both[KEY:]
        state = state @ (np.diag(w) - np.outer(kappa, a * kappa)) + np.outer(v, k)
        y.append(state @ r)
    return Want(y, [state])


def deltaproduct(s: Stream) -> Want:
    """2502.10297 section 3, gated: H_i = g_i A(x_i) H_{i-1} + B(x_i).

    A = prod_j F_j, the last j first, F_j = I - beta_j k_j k_j^T; B = sum_j (prod_{l > j} F_l) beta_j k_j v_j^T.
    """
    h, y = s.initial[0].T, []
    for q, keys, values, betas, g in zip(s.q, s.k, s.v, s.lr, s.retain, strict=True):
        k, v = keys.reshape(-1, KEY), values.reshape(-1, VALUE)
        factors = [np.eye(KEY) - beta * np.outer(x, x) for beta, x in zip(betas, k, strict=True)]
        later, total = np.eye(KEY), np.zeros((KEY, VALUE))
        for j in reversed(range(len(k))):
            total = total + later @ np.outer(betas[j] * k[j], v[j])
            later = later @ factors[j]
        h = g * later @ h + total
        y.append(q @ h)
    return Want(y, [h.T])


def titans_linear(s: Stream) -> Want:
    """2501.00663 appendix C: M_t = (1 - alpha_t) M_{t-1} + S_t, S_t = eta_t S_{t-1} - theta_t (M k k^T - v k^T)."""
    memory, surprise, y = s.initial[0], np.zeros((VALUE, KEY)), []
    for q, k, v, theta, eta, kept in zip(s.q, s.k, s.v, s.lr, s.momentum, s.retain, strict=True):
        surprise = eta * surprise - theta * (memory @ np.outer(k, k) - np.outer(v, k))
        memory = kept * memory + surprise
        y.append(memory @ q)
    return Want(y, [memory], [surprise])


def mesa(s: Stream) -> Want:
    """2506.05233: G_t = gamma G_{t-1} + beta v k^T, H_t = gamma H_{t-1} + beta k k^T, o_t = G_t (H_t + Lambda)^-1 q_t.

    Lambda = softplus + 1/4, as its code has it.
    """
    g, h, ridge = s.initial
    bound, y = np.diag(np.log1p(np.exp(ridge[0])) + 0.25), []
    for q, k, v, beta, gamma in zip(s.q, s.k, s.v, s.lr, s.retain, strict=True):
        g = gamma * g + beta * np.outer(v, k)
        h = gamma * h + beta * np.outer(k, k)
        y.append(g @ np.linalg.solve(h + bound, q))
    return Want(y, [g, h])


def softmax_attention(s: Stream) -> Want:
    """1706.03762 (1), causal; the learned scale multiplies 1 / sqrt(K)."""
    scale, y = s.initial[0][0, 0] / np.sqrt(KEY), []
    for t, q in enumerate(s.q):
        y.append(softmax(scale * s.k[: t + 1] @ q) @ s.v[: t + 1])
    return Want(y, [])


EQUATIONS: dict[str, Callable[[Stream], Want]] = {
    equation.__name__: equation
    for equation in (
        linear_attention,
        retnet,
        gla,
        mamba2,
        hgrn2,
        deltanet,
        gated_deltanet,
        longhorn,
        rwkv7,
        deltaproduct,
        titans_linear,
        mesa,
        softmax_attention,
    )
}


def given(name: str, time: int = TIME) -> Stream:
    """A stream with what the paper fixes: one number for all tokens, or a key that is what is forgotten."""
    rule = presets.PRESETS[name]()
    s = stream(rule, time, KEY, VALUE, lr=(0.1, rule.lr_max))
    if name == "linear_attention":
        return s._replace(lr=np.ones_like(s.lr))
    if name == "retnet":
        return s._replace(lr=np.ones_like(s.lr), retain=np.full_like(s.retain, 0.97))
    if name == "hgrn2":
        return s._replace(k=1.0 - s.retain, lr=np.ones_like(s.lr))
    return s


@pytest.mark.parametrize("name", EQUATIONS)
def test_a_matrix_memory_is_its_paper_s(name: str) -> None:
    agree(presets.PRESETS[name](), s := given(name), EQUATIONS[name](s))


def test_deltaproduct_with_three_steps() -> None:
    rule = presets.deltaproduct(3)
    s = stream(rule, TIME, KEY, VALUE, lr=(0.1, 2.0))
    agree(rule, s, deltaproduct(s))


def test_gated_deltanet_with_negative_eigenvalues() -> None:
    rule = presets.gated_deltanet(negative=True)
    s = stream(rule, TIME, KEY, VALUE, lr=(1.0, 2.0))
    agree(rule, s, gated_deltanet(s))


def test_softmax_attention_keeps_every_pair() -> None:
    s = given("softmax_attention", 9)
    keys, values, counted = answer(presets.softmax_attention(), s).extra
    close(keys, s.k)
    close(values, s.v)
    close(counted, np.ones((9, 1)))
