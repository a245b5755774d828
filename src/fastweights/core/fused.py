"""The two products of the dual tier, and the slope of GELU, with their outer gradients derived by hand.

They compute what a line of tensor expressions would, in place and with fewer passes over memory: on a CPU, passes are
what the dual tier spends its time on. A compiler takes them as they stand. Shapes: G = batch x heads, W slots; ``h``,
``x`` ``[G, W, in]``, ``delta`` ``[G, W, out]``, weights ``[G, out, in]``, ``write`` ``[G, W, W]``, other coefficients
``[G, W, 1]`` or ``[G, 1, 1]``. A gradient of these gradients is refused, but inside
:func:`~fastweights.core.second_order.second_order`, where the expressions are used.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastweights.core.second_order import second_order_wanted


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
        return _plus_product(out, weighted, delta, -1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, dual, momentum, x, delta, carry, inertia, write, scores, weighted = ctx.saved_tensors
        spread = torch.bmm(grad, delta.transpose(1, 2)).neg_()
        d_delta = torch.bmm(weighted.transpose(1, 2), grad).neg_()
        d_scores = spread * write
        d_write = spread.mul_(scores)
        through = torch.bmm(grad, dual)
        d_carry = _rows(through, h)
        d_dual = torch.bmm(grad.transpose(1, 2), h * carry)
        d_h = through.mul_(carry)
        d_momentum = d_inertia = None
        if momentum is not None:
            through = torch.bmm(grad, momentum)
            d_inertia = _rows(through, h)
            d_momentum = torch.bmm(grad.transpose(1, 2), h * inertia)
            d_h.addcmul_(through, inertia)
        d_x = torch.bmm(d_scores.transpose(1, 2), h)
        return _plus_product(d_h, d_scores, x), d_dual, d_momentum, d_x, d_delta, d_carry, d_inertia, d_write


class _Write(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*given)
        dual, momentum, x, delta, kept, gained, weight, fade, push = given
        turned = delta.transpose(1, 2)
        new = _plus_product((dual * kept).addcmul_(momentum, gained), turned, x * weight, -1.0)
        return new, _plus_product(momentum * fade, turned, x * push, -1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, pushed: Tensor) -> tuple[Tensor | None, ...]:
        dual, momentum, x, delta, kept, gained, weight, fade, push = ctx.saved_tensors
        through, behind = torch.bmm(delta, grad), torch.bmm(delta, pushed)
        d_weight, d_push = _rows(through, x).neg_(), _rows(behind, x).neg_()
        weight, push = -weight, -push
        d_delta = torch.bmm(x * weight, grad.transpose(1, 2))
        d_delta = _plus_product(d_delta, x * push, pushed.transpose(1, 2))
        d_x = through.mul_(weight).addcmul_(behind, push)
        d_momentum = (grad * gained).addcmul_(pushed, fade)
        scalars = _inner(dual, grad), _inner(momentum, grad), d_weight, _inner(momentum, pushed), d_push
        return grad * kept, d_momentum, d_x, d_delta, *scalars


def _plus_product(total: Tensor, a: Tensor, b: Tensor, sign: float = 1.0) -> Tensor:
    """``total + sign a b``, in the place of ``total``; a compiler would copy it first, but fuses a plain sum."""
    if torch.compiler.is_compiling():
        return total + sign * torch.bmm(a, b)
    return total.baddbmm_(a, b, alpha=sign)


def _rows(a: Tensor, b: Tensor) -> Tensor:
    """Products of rows, ``[G, W, 1]``."""
    return torch.linalg.vecdot(a, b).unsqueeze(-1)


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
    if not second_order_wanted():
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
    if not second_order_wanted():
        return _Read.apply(h, dual, momentum, x, delta, carry, inertia, write)
    out = torch.bmm(h, dual.transpose(1, 2)) * carry
    if momentum is not None and inertia is not None:
        out = out + torch.bmm(h, momentum.transpose(1, 2)) * inertia
    return out - torch.bmm(torch.bmm(h, x.transpose(1, 2)) * write, delta)


def write_product(
    dual: Tensor,
    momentum: Tensor,
    x: Tensor,
    delta: Tensor,
    kept: Tensor,
    gained: Tensor,
    weight: Tensor,
    fade: Tensor,
    push: Tensor,
) -> tuple[Tensor, Tensor]:
    """Dual and momentum at the end of a piece, ``[G, out, in]`` each.

    ``kept A + gained S - sum_i weight_i delta_i x_i^T`` and ``fade S - sum_i push_i delta_i x_i^T``.
    """
    if not second_order_wanted():
        return _Write.apply(dual, momentum, x, delta, kept, gained, weight, fade, push)
    turned = delta.transpose(1, 2)
    new = dual * kept + momentum * gained - torch.bmm(turned, x * weight)
    return new, momentum * fade - torch.bmm(turned, x * push)
