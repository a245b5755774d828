"""The least-squares tier (MesaNet): two matrices collect, every query is solved for.

    H_kk,t = retain_t H_kk,t-1 + lr_t k_t k_t^T,   H_kv likewise with v,   y_t = H_kv,t (H_kk,t + ridge)^-1 q_t

No H of a single token is formed: a conjugate gradient step applies all of a block's matrices as linear attention
does. Cost per block of W tokens and head: iterations x O(W K^2 + W^2 K).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastweights.core.algorithm import ConjugateGradient
from fastweights.core.decay import Coefficients, before, coefficients
from fastweights.core.gradient import Chunks, Felt, Memory, Outcome, Slow
from fastweights.core.network import Weights
from fastweights.core.opening import choose
from fastweights.core.rule import Rule


def run_least_squares(rule: Rule, chunks: Chunks, memory: Memory, slow: Slow, surprise: bool) -> Outcome:
    """Runs a rule over its blocks; see :func:`fastweights.core.engine.run`.

    The surprise is that of a prediction by the memory before the token.
    """
    retain = None if chunks.retain is None else chunks.retain[..., 0]
    plan = coefficients(chunks.lr[..., 0], None, retain, chunks.real, "none")
    starts, memory = _walk(plan, chunks, memory, slow)
    ridge = positive_ridge(rule, slow.constants["ridge"])
    symmetric = _symmetric(starts["keys"])

    def answer(c: Coefficients, q: Tensor) -> Tensor:
        solved = conjugate_gradient(
            lambda p: _apply(c, p, symmetric, chunks.k, chunks.k) + ridge * p, q, _iterations(rule)
        )
        return _apply(c, solved, starts["matrix"], chunks.k, chunks.v)

    y = answer(plan, chunks.q)
    if not surprise:
        return Outcome(y, memory, None)
    prediction = answer(before(plan), chunks.k)
    error = rule.bias.gradient(prediction, chunks.v)
    norm = torch.linalg.vector_norm(error, dim=-1) * torch.linalg.vector_norm(chunks.k, dim=-1)
    loss = rule.bias.loss(prediction, chunks.v)
    return Outcome(y, memory, Felt(loss, norm, torch.zeros_like(loss, dtype=torch.bool)))


def positive_ridge(rule: Rule, ridge: Tensor) -> Tensor:
    """The ridge from its learned number: ``softplus + smallest``."""
    return F.softplus(ridge) + cast(ConjugateGradient, rule.algorithm).ridge


def solve_query(rule: Rule, keys: Tensor, ridge: Tensor, q: Tensor) -> Tensor:
    """``(H_kk + ridge)^-1 q`` for a fixed ``keys [B, H, K, K]``, ``q [B, H, T, K]``."""
    fixed = positive_ridge(rule, ridge)
    symmetric = _symmetric(keys)
    return conjugate_gradient(lambda p: p @ symmetric + fixed * p, q, _iterations(rule))


def _symmetric(keys: Tensor) -> Tensor:
    """The symmetric part of ``H_kk``, which is all of it: gradients of a solve would not know."""
    return 0.5 * (keys + keys.transpose(-1, -2))


def conjugate_gradient(apply: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """Solves ``apply(x) = b`` along the last dimension, for a symmetric positive operator per leading index.

    The gradient of a solution is itself a solve (implicit differentiation), so no iteration is kept for it.
    """
    if torch.compiler.is_compiling():
        return _iterate(apply, b, iterations)
    with torch.no_grad():
        x = _iterate(apply, b, iterations)
    if not torch.is_grad_enabled():
        return x
    return x + _Correction.apply(b - apply(x), lambda grad: _iterate(apply, grad, iterations))


class _Correction(torch.autograd.Function):
    """``A^-1`` of a residual that is 0 up to rounding: its value is dropped, its gradient is not."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.solve = solve
        return torch.zeros_like(residual)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.solve(grad), None


def _iterate(apply: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """Conjugate gradients from 0; a row that has arrived stands still."""
    x, r = torch.zeros_like(b), b
    p, length = r, torch.linalg.vecdot(r, r).unsqueeze(-1)
    small = length.detach() * torch.finfo(b.dtype).eps ** 2
    for _ in range(iterations):
        arrived = length.detach() <= small
        image = apply(p)
        curvature = torch.linalg.vecdot(p, image).unsqueeze(-1)
        step = torch.where(arrived, 0.0, length / torch.where(arrived, 1.0, curvature))
        x, r = x + step * p, r - step * image
        shorter = torch.linalg.vecdot(r, r).unsqueeze(-1)
        p = r + torch.where(arrived, 0.0, shorter / torch.where(arrived, 1.0, length)) * p
        length = shorter
    return x


def _iterations(rule: Rule) -> int:
    return cast(ConjugateGradient, rule.algorithm).iterations


def _apply(c: Coefficients, h: Tensor, start: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every token's matrix applied to ``h [N, G, W, K]``; ``start [N, G, V, K]`` are those at each block's start."""
    return (h * c.carry) @ start.transpose(-1, -2) + ((h @ k.transpose(-1, -2)) * c.write) @ v


def _walk(plan: Coefficients, chunks: Chunks, memory: Memory, slow: Slow) -> tuple[Weights, Memory]:
    """Both matrices at the start of every block ``[N, G, ., K]``, and at the end."""
    weighed = (chunks.k * plan.weight).unbind(0)
    kept = plan.kept.unbind(0)
    written = {"matrix": chunks.v.unbind(0), "keys": chunks.k.unbind(0)}
    now, starts = memory.dual, []
    for n, keys in enumerate(weighed):
        if chunks.reset is not None:
            now = choose(chunks.reset[n], slow.initial, now)
        starts.append(now)
        now = {name: torch.baddbmm(w * kept[n], written[name][n].transpose(1, 2), keys) for name, w in now.items()}
    return {name: torch.stack([w[name] for w in starts]) for name in now}, Memory(now, {}, {})
