"""The short causal convolution: what lets a memory bind neighbouring tokens."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastweights.core.compiled import compilable
from fastweights.core.layout import Layout
from fastweights.core.second_order import by_expressions

PIECE = 256
"""Tokens that a CPU takes at a time: they stay in its cache until every tap has used them."""


class _Depthwise(torch.autograd.Function):
    """``y_t = sum_j weight_j whole_{t + size - 1 - j}``, piece by piece, with a backward that makes no large copy.

    ``inside`` is bool ``[B, T, 1]`` for each tap but the first, False where it must not reach; empty where all may.
    """

    @staticmethod
    def forward(ctx: Any, whole: Tensor, weight: Tensor, *inside: Tensor) -> Tensor:
        ctx.save_for_backward(whole, weight, *inside)
        reach = len(weight) - 1
        y = torch.empty_like(whole[:, reach:])
        piece = _piece(y)
        for start in range(0, y.shape[1], piece):
            part = torch.mul(whole[:, reach + start :][:, :piece], weight[0], out=y[:, start : start + piece])
            for back in range(1, reach + 1):
                shifted = whole[:, reach + start - back :][:, : part.shape[1]]
                part.addcmul_(_masked(shifted, inside, back, start), weight[back])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        whole, weight, *inside = ctx.saved_tensors
        reach = len(weight) - 1
        d_whole = torch.empty_like(whole)
        d_whole[:, :reach] = 0.0
        # Sums of pieces are added up in float32 or wider: in bfloat16 they would be rounded once for each piece.
        wide, piece = torch.promote_types(weight.dtype, torch.float32), _piece(grad)
        d_weight = torch.zeros_like(weight, dtype=wide)
        for start in range(0, grad.shape[1], piece):
            part = grad[:, start : start + piece]
            torch.mul(part, weight[0], out=d_whole[:, reach + start :][:, : part.shape[1]])
            for back in range(reach + 1):
                place = slice(reach + start - back, reach + start - back + part.shape[1])
                taken = _masked(part, inside, back, start)
                if back:
                    d_whole[:, place].addcmul_(taken, weight[back])
                d_weight[back] += (taken * whole[:, place]).sum((0, 1), dtype=wide)
        return d_whole, d_weight.to(weight.dtype), *[None] * len(inside)


def _piece(x: Tensor) -> int:
    return PIECE if x.device.type == "cpu" else max(1, x.shape[1])


def _masked(x: Tensor, inside: Sequence[Tensor], back: int, start: int) -> Tensor:
    """``x``, some tokens from ``start`` on as a tap finds them, and 0 where it does not reach."""
    return torch.where(inside[back - 1][:, start : start + x.shape[1]], x, 0.0) if inside and back else x


@compilable
def depthwise(whole: Tensor, weight: Tensor, inside: list[Tensor]) -> Tensor:
    """:class:`_Depthwise`."""
    if not by_expressions():
        return _Depthwise.apply(whole, weight, *inside)
    reach, time = len(weight) - 1, whole.shape[1] - len(weight) + 1
    taps = [whole[:, reach - back : reach - back + time] for back in range(reach + 1)]
    reached = [torch.where(inside[back - 1], tap, 0.0) if inside and back else tap for back, tap in enumerate(taps)]
    return functools.reduce(torch.add, [tap * w for tap, w in zip(reached, weight, strict=True)])


OWN = 0.03
"""Weight of a token itself where channels that are brought to unit length start as the token before."""


def one_token_back(taps: Tensor, own: float) -> None:
    """Makes ``taps [size, ...]``, a part of a convolution's weight, those of the token before, and ``own`` of its own.

    Without `OWN` a first token's key would be nothing, and its direction, of unit length, have a gradient of one over
    its length: thousands of times all that the rest of a text tells. With one tap it is the token itself.
    """
    with torch.no_grad():
        taps.zero_()
        taps[0] = own
        taps[min(1, len(taps) - 1)] = 1.0


class ShortConvolution(nn.Module):
    """Depthwise causal convolution over the last ``size`` real tokens of a document.

    Keys and values come from the same token; without this a memory can learn nothing but W_K -> W_V (Titans section
    4.4; perplexity 27.0 to 28.7 when removed, table 5). Starts as the identity. Cost O(T dim size).
    """

    def __init__(self, dim: int, size: int = 4) -> None:
        super().__init__()
        self.size = size
        weight = torch.zeros(size, dim)
        weight[0] = 1.0
        self.weight = nn.Parameter(weight)

    def init_state(self, batch: int) -> Tensor:
        """The tail of a stream that has not begun: zeros ``[B, size - 1, dim]``."""
        return self.weight.new_zeros(batch, self.size - 1, self.weight.shape[1])

    def forward(self, x: Tensor, tail: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """``x [B, T, dim]`` packed, ``tail [B, size - 1, dim]`` the tokens before it; returns both anew."""
        reach = self.size - 1
        whole = torch.cat([tail.to(x.dtype), x], 1)
        weight = self.weight.to(x.dtype)
        time = x.shape[1]
        y = depthwise(whole, weight, self._inside(whole, layout))
        if layout.real is None and layout.reset is None:
            return y, whole[:, time:].clone().to(tail.dtype)
        ages = torch.arange(reach, 0, -1, device=x.device)
        index = layout.length[:, None] + torch.arange(reach, device=x.device)
        last = whole.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[2]))
        return y, torch.where((ages <= layout.end[:, None]).unsqueeze(-1), last, 0.0).to(tail.dtype)

    def _inside(self, whole: Tensor, layout: Layout) -> list[Tensor]:
        """Where each tap but the first may reach: not into the document before, nor to a token that is not finite."""
        time = layout.position.shape[1]
        sound = torch.isfinite(whole.detach().sum(-1, keepdim=True))
        unsound = torch.compiler.is_compiling() or not bool(sound.all())
        if layout.reset is None and not unsound:
            return []
        taps = []
        for back in range(1, self.size):
            near = layout.position.unsqueeze(-1) >= back if layout.reset is not None else None
            place = slice(self.size - 1 - back, self.size - 1 - back + time)
            there = sound[:, place] if unsound else None
            taps.append(there if near is None else near if there is None else near & there)
        return [tap for tap in taps if tap is not None]
