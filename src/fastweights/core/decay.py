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
from fastweights.core.second_order import by_expressions

NEGLIGIBLE = 1e-20
"""Products of gates, and coefficients made of them, below this are taken for 0."""


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
    """``P[..., t, s] = gate_{s+1} ... gate_t`` for t >= s, else 0; from ``gate [..., W]``. Cost O(W^2)."""
    if by_expressions():
        return _products(gate)
    width = gate.shape[-1]
    return scan(gate, torch.eye(width, dtype=gate.dtype, device=gate.device).expand(*gate.shape, width))[0]


def _products(gate: Tensor) -> Tensor:
    width = gate.shape[-1]
    later = torch.ones(width, width, dtype=torch.bool, device=gate.device).tril(-1)
    result = torch.where(later, gate.unsqueeze(-1), 1.0).cumprod(-2).tril()
    # Out of the gradient's sight: where a gate is exactly 0, the derivative is the product of the others.
    return result - torch.where(result.abs() < NEGLIGIBLE, result, 0.0).detach()


def scan(gate: Tensor, given: Tensor, start: int | None = None) -> tuple[Tensor, Tensor]:
    """Rows ``x_t = gate_t x_{t-1} + given_t``, from x_{-1} = 0 or the unit vector of column ``start``.

    Args:
        gate: ``[..., W]``.
        given: ``[..., W, n + W]``, lower triangular behind its first n columns.
        start: one of the first n columns.

    Returns:
        All rows ``[..., W, n + W]``, and the last one ``[..., n + W]`` on its own: what is taken from it has a gradient
        of its own size. Cost O(W (n + W)) in W calls, which suits a CPU; by expressions O(W^3) in a few.
    """
    if not by_expressions():
        return _Scan.apply(gate, given, start)
    past = _products(gate)
    rows = past @ given
    if start is not None:
        first = torch.zeros_like(rows[..., :1, :])
        first[..., start] = 1.0
        rows = rows + past[..., :1] * gate[..., :1, None] * first
    # What reaches the zeros above the diagonal may be infinite, and infinity times zero is no number.
    rows = rows.tril(given.shape[-1] - given.shape[-2])
    return rows, rows[..., -1, :]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, given: Tensor, start: int | None) -> tuple[Tensor, Tensor]:
        rows = given.clone(memory_format=torch.contiguous_format)
        if start is not None:
            rows[..., 0, start] += gate[..., 0]
        gates, each = gate.unsqueeze(-1).unbind(-2), rows.unbind(-2)
        for t in range(1, len(each)):
            each[t].addcmul_(each[t - 1], gates[t])
        # Products this small change nothing, but as subnormal numbers they would slow every later product tenfold.
        rows = F.hardshrink(rows, NEGLIGIBLE)
        ctx.save_for_backward(gate, rows)
        ctx.start = start
        return rows, rows[..., -1, :].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, last: Tensor) -> tuple[Tensor | None, Tensor, None]:
        """``gate_t`` moves x_t by x_{t-1}: nothing is divided by a gate."""
        gate, rows = ctx.saved_tensors
        # Above the diagonal rows are 0 whatever the gates, and what reaches them may be infinite.
        through = grad.tril(rows.shape[-1] - rows.shape[-2])
        through[..., -1, :] += last
        gates, each = gate.unsqueeze(-1).unbind(-2), through.unbind(-2)
        for t in range(len(each) - 1, 0, -1):
            each[t - 1].addcmul_(each[t], gates[t])
        if not ctx.needs_input_grad[0]:
            return None, through, None
        first = through[..., 0, ctx.start] if ctx.start is not None else torch.zeros_like(gate[..., 0])
        later = torch.linalg.vecdot(through[..., 1:, :], rows[..., :-1, :])
        return torch.cat([first.unsqueeze(-1), later], -1), through, None


def coefficients(
    lr: Tensor, momentum: Tensor | None, retain: Tensor | None, real: Tensor | None, coupling: Coupling
) -> Coefficients:
    """Coefficients of every piece at once from gates ``[..., W]``; ``real`` is True where a slot holds a token.

    In an empty slot the step is the identity (no gate value does that). A_t and S_t are held as rows of coefficients of
    (A_s, S_s, -u_1, ..., -u_W), and the recurrence runs over these rows; without momentum there is no S_s. Cost as of
    :func:`scan`.
    """
    if real is not None:
        lr = torch.where(real, lr, 0.0)
        momentum = None if momentum is None else torch.where(real, momentum, 1.0)
        retain = None if retain is None else torch.where(real, retain, 1.0)
    width = lr.shape[-1]
    if momentum is None and retain is None:
        carry, write = torch.ones_like(lr).unsqueeze(-1), lr.unsqueeze(-2).expand(*lr.shape, width).tril()
        return Coefficients(carry, None, write, carry[..., -1:, :], None, lr.unsqueeze(-1), None, None)
    retain = torch.ones_like(lr) if retain is None else retain
    if momentum is None:
        rows, last = scan(retain, F.pad(torch.diag_embed(lr), (1, 0)), 0)
        carry, write = rows.split([1, width], -1)
        kept, weight = last.split([1, width], -1)
        return Coefficients(carry, None, write, kept.unsqueeze(-1), None, weight.unsqueeze(-1), None, None)
    own = F.pad(torch.diag_embed(lr), (2, 0))
    moved, pushed = scan(momentum, own, 1)
    rows, last = scan(retain, _added(own, moved, momentum, real, coupling), 0)
    carry, inertia, write = rows.split([1, 1, width], -1)
    kept, gained, weight = (part.unsqueeze(-1) for part in last.split([1, 1, width], -1))
    _, fade, push = (part.unsqueeze(-1) for part in pushed.split([1, 1, width], -1))
    return Coefficients(carry, inertia, write, kept, gained, weight, fade, push)


def _added(own: Tensor, moved: Tensor, momentum: Tensor, real: Tensor | None, coupling: Coupling) -> Tensor:
    """What each step adds to the dual, from ``own``, its own write, and ``moved``, the momentum after it."""
    if coupling == "deferred":
        return torch.zeros_like(moved)
    if coupling == "nesterov":
        moved = moved * momentum.unsqueeze(-1) + own
    return moved if real is None else torch.where(real.unsqueeze(-1), moved, 0.0)


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
