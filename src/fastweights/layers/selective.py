"""A selective state space, the mixer of Mamba (Gu and Dao, 2023, arXiv 2312.00752): decay and step chosen by the token.

Shapes: B rows, T tokens, D width, I = 2 D channels, N states of a channel.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastweights.core.second_order import second_order_wanted
from fastweights.layers.convolution import ShortConvolution
from fastweights.layers.stream import Plan, Reading, StreamLayer

_FASTEST, _SLOWEST = 0.1, 0.001  # steps of a channel at the start, drawn evenly on a logarithmic scale
_EXPANSION = 2


class SelectiveState(NamedTuple):
    """The states ``[B, I, N]`` after the last token, float32 or wider; the convolution's tail; the position."""

    states: Tensor
    tail: Tensor
    position: Tensor


class _Scan(torch.autograd.Function):
    """``S_t = decay_t S_{t-1} + update_t``; the backward is the same recurrence from the end, and saves only ``S``."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, update: Tensor, start: Tensor) -> Tensor:
        states, last = torch.empty_like(update), start
        for t in range(update.shape[1]):
            last = torch.addcmul(update[:, t], decay[:, t], last)
            states[:, t] = last
        ctx.save_for_backward(decay, states, start)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decay, states, start = ctx.saved_tensors
        d_update = grad.clone()
        for t in range(grad.shape[1] - 2, -1, -1):
            d_update[:, t].addcmul_(decay[:, t + 1], d_update[:, t + 1])
        before = torch.cat([start.unsqueeze(1), states[:, :-1]], 1)
        return d_update * before, d_update, decay[:, 0] * d_update[:, 0]


def scan(decay: Tensor, update: Tensor, start: Tensor) -> Tensor:
    """All states ``[B, T, I, N]`` of ``S_t = decay_t S_{t-1} + update_t`` elementwise, from ``start [B, I, N]``."""
    if not second_order_wanted():
        return _Scan.apply(decay, update, start)
    states = [start]
    for t in range(update.shape[1]):
        states.append(torch.addcmul(update[:, t], decay[:, t], states[-1]))
    return torch.stack(states[1:], 1)


class SelectiveSSM(StreamLayer[SelectiveState]):
    """Mamba's mixer: projection, short convolution, selective scan, gate. It corrects nothing, so it feels no surprise.

    ``S_t = exp(-exp(A) dt_t) S_{t-1} + dt_t B_t u_t`` and ``y_t = C_t S_t + D u_t``, where ``dt``, ``B`` and ``C`` are
    functions of the token. Starting values are the paper's, but for the convolution, which begins as the identity. A
    token that is not finite is read as zeros, and one too large for the square of what it writes to be finite writes
    nothing there. Cost O(T I N) in time, and in memory for a call.

    Args:
        dim: D.
        states: N.
        convolution: tokens under the short convolution.
    """

    def __init__(self, dim: int, states: int = 16, convolution: int = 4) -> None:
        super().__init__()
        self.dim, self.inner, self.states, self.rank = dim, _EXPANSION * dim, states, math.ceil(dim / 16)
        self.into = nn.Linear(dim, 2 * self.inner, bias=False)
        self.convolution = ShortConvolution(self.inner, convolution)
        self.shift = nn.Parameter(torch.zeros(self.inner))
        self.select = nn.Linear(self.inner, self.rank + 2 * states, bias=False)
        self.step = nn.Linear(self.rank, self.inner)
        self.log_decay = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(self.inner, 1))
        self.skip = nn.Parameter(torch.ones(self.inner))
        self.out = nn.Linear(self.inner, dim, bias=False)
        low, high = math.log(_SLOWEST), math.log(_FASTEST)
        first = torch.exp(low + (high - low) * torch.rand(self.inner))
        with torch.no_grad():
            self.step.bias.copy_(first + torch.log(-torch.expm1(-first)))  # the inverse of softplus
            nn.init.uniform_(self.step.weight, -(self.rank**-0.5), self.rank**-0.5)

    def init_state(self, batch: int) -> SelectiveState:
        wide = torch.promote_types(self.log_decay.dtype, torch.float32)
        states = self.log_decay.new_zeros(batch, self.inner, self.states, dtype=wide)
        position = torch.zeros(batch, dtype=torch.int64, device=states.device)
        return SelectiveState(states, self.convolution.init_state(batch), position)

    def position(self, state: SelectiveState) -> Tensor:
        return state.position

    def mix(self, x: Tensor, state: SelectiveState, plan: Plan, surprise: bool) -> Reading[SelectiveState]:
        layout, wide = plan.layout, state.states.dtype
        x = torch.where(torch.isfinite(x).all(-1, keepdim=True), x, 0.0)
        u, gate = self.into(x).chunk(2, -1)
        u, tail = self.convolution(u, state.tail, layout)
        u = F.silu(u + self.shift)
        low, write, read = self.select(u).split([self.rank, self.states, self.states], -1)
        dt = F.softplus(self.step(low)).to(wide)
        if layout.real is not None:
            dt = torch.where(layout.real.unsqueeze(-1), dt, 0.0)  # padding keeps the state and writes nothing
        decay = torch.exp(-self.log_decay.to(wide).exp() * dt.unsqueeze(-1))
        if layout.reset is not None:
            decay = torch.where(layout.reset[..., None, None], 0.0, decay)
        update = (dt * u).unsqueeze(-1) * write.to(wide).unsqueeze(2)
        update = torch.where(update.square().isfinite(), update, 0.0)
        states = scan(decay, update, state.states)
        found = torch.einsum("btin,btn->bti", states, read.to(wide)).to(x.dtype) + self.skip * u
        return Reading(self.out(found * F.silu(gate)), SelectiveState(states[:, -1].clone(), tail, layout.end.clone()))
