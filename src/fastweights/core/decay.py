"""Momentum and decay inside one chunk, as coefficients on scalars.

The recurrence ``S_t = e_t S_{t-1} - lr_t u_t``, ``A_t = a_t A_{t-1} + S_t`` (Titans eqs. 10 and 13, with ``u_t`` the
inner gradient, ``e`` momentum and ``a`` retention) is linear, so with A_s and S_s where the piece starts

    A_t = carry_t A_s + inertia_t S_s - sum_{i<=t} write_{t,i} u_i,     write = D diag(real) E diag(lr)
    S_t = fade_t S_s                 - sum_{i<=t} push_{t,i} u_i,       push = E diag(lr)

where ``D_{t,s} = a_{s+1} ... a_t`` and ``E_{s,i} = e_{i+1} ... e_s``. Nesterov's step puts ``diag(e) E + I`` in the
place of E in ``write``, a deferred momentum 0. Products are built by multiplications alone, so
gates of exactly 0 and 1 are exact, nothing is divided and nothing overflows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastweights.core.algorithm import Coupling
from fastweights.core.compiled import compilable
from fastweights.core.second_order import by_expressions

NEGLIGIBLE = 1e-20
"""Products of gates below this are taken for 0."""


class Coefficients(NamedTuple):
    """Scalars of a piece; leading dimensions ``[...]``, W slots.

    Attributes:
        carry: ``[..., W, 1]`` coefficient of the dual at the piece's start in the weights after each slot.
        inertia: ``[..., W, 1]`` coefficient of the momentum at the piece's start, or ``None`` without momentum.
        write: ``[..., W, W]`` lower triangular, coefficient of minus the gradient of slot i in the weights after t.
        kept: ``[..., 1, 1]``, gained ``[..., 1, 1]`` (or ``None``) and weight ``[..., W, 1]``: the last rows of carry,
            inertia and write, which give the weights at the end.
        gained: see ``kept``.
        weight: see ``kept``.
        fade: ``[..., 1, 1]`` coefficient of the old momentum in the momentum at the end, or ``None``.
        push: ``[..., W, 1]`` coefficient of minus each gradient in the momentum at the end, or ``None``.
    """

    carry: Tensor
    inertia: Tensor | None
    write: Tensor
    kept: Tensor
    gained: Tensor | None
    weight: Tensor
    fade: Tensor | None
    push: Tensor | None


def products(gate: Tensor) -> Tensor:
    """``P[..., t, s] = gate_{s+1} ... gate_t`` for t >= s, else 0; from ``gate [..., W]``. Cost O(W^2).

    Its outer gradient costs one product of W x W matrices.
    """
    if not by_expressions():
        return _Products.apply(gate)
    result = _products(gate)
    return torch.where(result.abs() < NEGLIGIBLE, 0.0, result)


def _products(gate: Tensor) -> Tensor:
    width = gate.shape[-1]
    later = torch.ones(width, width, dtype=torch.bool, device=gate.device).tril(-1)
    return torch.where(later, gate.unsqueeze(-1), 1.0).cumprod(-2).tril()


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor) -> Tensor:
        result = _products(gate)
        # Products this small change nothing, but as subnormal numbers they would slow every later product tenfold.
        result = torch.where(result.abs() < NEGLIGIBLE, 0.0, result)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """``P[t, s]`` moves with ``gate_r`` by ``P[t, r] P[r-1, s]``, for s < r <= t: nothing is divided by a gate."""
        (result,) = ctx.saved_tensors
        # Above the diagonal P is 0 whatever the gates, and what reaches it may be infinite.
        through = result.transpose(-1, -2) @ grad.tril()
        return F.pad((through[..., 1:, :] * result[..., :-1, :]).sum(-1), (1, 0))


@compilable
def coefficients(
    lr: Tensor, momentum: Tensor | None, retain: Tensor | None, real: Tensor | None, coupling: Coupling
) -> Coefficients:
    """Coefficients of every piece at once from gates ``[..., W]``; ``real`` is True where a slot holds a token.

    In an empty slot the step is the identity (no gate value does that). Cost O(W^2), O(W^3) with momentum.
    """
    if real is not None:
        lr = torch.where(real, lr, 0.0)
        momentum = None if momentum is None else torch.where(real, momentum, 1.0)
        retain = None if retain is None else torch.where(real, retain, 1.0)
    width = lr.shape[-1]
    if retain is None:
        decay = torch.ones(width, width, dtype=lr.dtype, device=lr.device).tril().expand(*lr.shape, width)
        carry = torch.ones_like(lr)
    else:
        decay = products(retain)
        carry = decay[..., :, 0] * retain[..., :1]
    carry = carry.unsqueeze(-1)
    if momentum is None:
        write = decay * lr.unsqueeze(-2)
        return Coefficients(carry, None, write, carry[..., -1:, :], None, write[..., -1, :, None], None, None)
    past = products(momentum)
    # What is left, at slot s, of the momentum at the start is past[s, 0] times the first gate.
    first = momentum[..., :1].unsqueeze(-1)
    taken = decay if real is None else decay * real.unsqueeze(-2).to(decay.dtype)
    if coupling == "nesterov":
        taken = taken * momentum.unsqueeze(-2)
    weighed = torch.zeros_like(taken) if coupling == "deferred" else taken @ past
    inertia = weighed[..., :, :1] * first
    if coupling == "nesterov":
        weighed = weighed + decay
    write = weighed * lr.unsqueeze(-2)
    push = (past[..., -1, :] * lr).unsqueeze(-1)
    fade = past[..., -1:, :1] * first
    end = carry[..., -1:, :], inertia[..., -1:, :], write[..., -1, :, None]
    return Coefficients(carry, inertia, write, *end, fade, push)


def widened(c: Coefficients, band: Tensor) -> Coefficients:
    """The coefficients of S source tokens instead of W steps: a step writes ``band [..., W, S]`` of each source."""
    push = None if c.push is None else band.transpose(-1, -2) @ c.push
    return c._replace(write=c.write @ band, weight=band.transpose(-1, -2) @ c.weight, push=push)


def first_slot(c: Coefficients) -> Coefficients:
    """The coefficients of the piece's first slot alone, as far as the dual needs them."""
    gained = None if c.inertia is None else c.inertia[..., :1, :]
    start = c.carry[..., :1, :], gained, c.write[..., :1, :1]
    return Coefficients(*start, *start, None, None)


def before(c: Coefficients) -> Coefficients:
    """The coefficients of the weights *before* each slot: the same rows, one later (first row: the start itself)."""
    carry = torch.cat([torch.ones_like(c.carry[..., :1, :]), c.carry[..., :-1, :]], -2)
    inertia = c.inertia
    if inertia is not None:
        inertia = torch.cat([torch.zeros_like(inertia[..., :1, :]), inertia[..., :-1, :]], -2)
    write = torch.cat([torch.zeros_like(c.write[..., :1, :]), c.write[..., :-1, :]], -2)
    return c._replace(carry=carry, inertia=inertia, write=write)
