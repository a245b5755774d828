"""The two products of the dual tier, and the slope of GELU, with their outer gradients derived by hand.

They compute what a line of tensor expressions would, in place and with fewer passes over memory: on a CPU, passes are
what the dual tier spends its time on. Shapes: G = batch x heads, W slots; ``h``, ``x`` ``[G, W, in]``, ``delta``
``[G, W, out]``, weights ``[G, out, in]``, ``write`` ``[G, W, W]``, other coefficients ``[G, W, 1]`` or ``[G, 1, 1]``.
A gradient of these gradients is refused, but inside :func:`~fastweights.core.second_order.second_order`, where the
expressions are used.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastweights.core.second_order import by_expressions


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        dual: Tensor,
        momentum: Tensor | None,
        x: Tensor,
        delta: Tensor,
        carry: Tensor,
        inertia: Tensor | None,
        write: Tensor,
    ) -> Tensor:
        out = torch.bmm(h, dual.transpose(1, 2)).mul_(carry)
        if momentum is not None and inertia is not None:
            out.addcmul_(torch.bmm(h, momentum.transpose(1, 2)), inertia)
        scores = torch.bmm(h, x.transpose(1, 2))
        weighted = scores * write
        ctx.save_for_backward(h, dual, momentum, x, delta, carry, inertia, write, scores, weighted)
        return out.baddbmm_(weighted, delta, alpha=-1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, dual, momentum, x, delta, carry, inertia, write, scores, weighted = ctx.saved_tensors
        spread = torch.bmm(grad, delta.transpose(1, 2)).neg_()
        d_delta = torch.bmm(weighted.transpose(1, 2), grad).neg_()
        d_scores = spread * write
        d_write = spread.mul_(scores)
        through = torch.bmm(grad, dual)
        d_carry = (through * h).sum(-1, keepdim=True)
        d_dual = torch.bmm(grad.transpose(1, 2), h * carry)
        d_h = through.mul_(carry)
        d_momentum = d_inertia = None
        if momentum is not None:
            through = torch.bmm(grad, momentum)
            d_inertia = (through * h).sum(-1, keepdim=True)
            d_momentum = torch.bmm(grad.transpose(1, 2), h * inertia)
            d_h.addcmul_(through, inertia)
        d_h.baddbmm_(d_scores, x)
        d_x = torch.bmm(d_scores.transpose(1, 2), h)
        return d_h, d_dual, d_momentum, d_x, d_delta, d_carry, d_inertia, d_write


class _Write(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        old: Tensor,
        kept: Tensor,
        other: Tensor | None,
        gained: Tensor | None,
        x: Tensor,
        delta: Tensor,
        weight: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(old, kept, other, gained, x, delta, weight)
        new = old * kept
        if other is not None and gained is not None:
            new.addcmul_(other, gained)
        return new.baddbmm_(delta.transpose(1, 2), x * weight, alpha=-1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        old, kept, other, gained, x, delta, weight = ctx.saved_tensors
        d_delta = torch.bmm(x * weight, grad.transpose(1, 2)).neg_()
        d_x = torch.bmm(delta, grad).neg_()
        d_weight = (d_x * x).sum(-1, keepdim=True)
        d_other = d_gained = None
        if other is not None:
            d_other, d_gained = grad * gained, _inner(other, grad)
        return grad * kept, _inner(old, grad), d_other, d_gained, d_x.mul_(weight), d_delta, d_weight


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1))[:, None, None]


class _GeluSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(grad, x)
        return torch.ops.aten.gelu_backward(grad, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor]:
        grad, x = ctx.saved_tensors
        square = x.square()
        curve = torch.exp(square * -0.5).mul_((2.0 - square) * (2.0 * math.pi) ** -0.5)
        return torch.ops.aten.gelu_backward(outer, x), curve.mul_(outer).mul_(grad)


def gelu_slope(grad: Tensor, x: Tensor) -> Tensor:
    """``grad * gelu'(x)``; GELU's second derivative is ``(2 - x^2) exp(-x^2 / 2) / sqrt(2 pi)``."""
    if not by_expressions():
        return _GeluSlope.apply(grad, x)
    density = torch.exp(x.square() * -0.5) * (2.0 * math.pi) ** -0.5
    return grad * (0.5 * (1.0 + torch.erf(x * 0.5**0.5)) + x * density)


def read_product(
    h: Tensor,
    dual: Tensor,
    momentum: Tensor | None,
    x: Tensor,
    delta: Tensor,
    carry: Tensor,
    inertia: Tensor | None,
    write: Tensor,
) -> Tensor:
    """``carry_t A h_t + inertia_t S h_t - sum_i write_{t,i} <h_t, x_i> delta_i``, ``[G, W, out]``."""
    if not by_expressions():
        return _Read.apply(h, dual, momentum, x, delta, carry, inertia, write)
    out = torch.bmm(h, dual.transpose(1, 2)) * carry
    if momentum is not None and inertia is not None:
        out = out + torch.bmm(h, momentum.transpose(1, 2)) * inertia
    return out - torch.bmm(torch.bmm(h, x.transpose(1, 2)) * write, delta)


def write_product(
    old: Tensor, kept: Tensor, other: Tensor | None, gained: Tensor | None, x: Tensor, delta: Tensor, weight: Tensor
) -> Tensor:
    """``kept old + gained other - sum_i weight_i delta_i x_i^T``, ``[G, out, in]``; ``weight [G, W, 1]``."""
    if not by_expressions():
        return _Write.apply(old, kept, other, gained, x, delta, weight)
    new = old * kept
    if other is not None and gained is not None:
        new = new + other * gained
    return new - torch.bmm(delta.transpose(1, 2), x * weight)
