"""The continuum memory system's layer: a chain of networks whose weights are state (Nested Learning eqs. 70-74).

How the weights change is none of the layer's business: `fastweights.models.hope` learns them from the next tokens. Here
they are *offsets* from what training learned, one set for every row, zero where a document begins; with offsets of zero
the chain is, bit for bit, networks that never change.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastweights.layers.feedforward import SwiGLU, opened
from fastweights.layers.norm import RMSNorm
from fastweights.layers.stream import Plan, Reading, StreamLayer, checked

Form = Literal["sequential", "nested", "headwise"]
Offsets = tuple[Tensor, ...]


class ContinuumState(NamedTuple):
    """The mixer's state, and the offsets of every level's two matrices, ``[B, outputs, inputs]`` each."""

    mixer: Any
    offsets: Offsets


class Continuum(nn.Module):
    """Networks of different frequencies, the fastest first, each with a norm and a residual around it.

    ``sequential`` and ``nested``: ``x + N_1(x)`` goes into the second, and so on (eqs. 70, 73); the two differ in how
    they learn. ``headwise``: ``x + sum_l a_l N_l(x)`` with learned ``a`` (eq. 74).

    Args:
        dim: D.
        hidden: width of each network.
        levels: how many.
        form: how they are put together.
    """

    def __init__(self, dim: int, hidden: int, levels: int, form: Form = "sequential") -> None:
        super().__init__()
        checked(levels >= 1, f"a continuum has at least 1 level, not {levels}")
        self.networks = nn.ModuleList([SwiGLU(dim, hidden) for _ in range(levels)])
        self.norms = nn.ModuleList([RMSNorm(dim) for _ in range(levels)])
        self.shares = nn.Parameter(torch.full((levels,), 1.0 / levels)) if form == "headwise" else None

    def weights(self) -> tuple[nn.Parameter, ...]:
        """What the offsets belong to: two matrices of each level, fastest first."""
        return tuple(linear.weight for net in self.networks for linear in (net.gate_up, net.down))  # type: ignore[union-attr,misc]

    def init_offsets(self, batch: int) -> Offsets:
        """Zeros ``[B, outputs, inputs]``, in float32 or wider."""
        wide = [torch.promote_types(w.dtype, torch.float32) for w in self.weights()]
        return tuple(w.new_zeros(batch, *w.shape, dtype=d) for w, d in zip(self.weights(), wide, strict=True))

    def forward(self, x: Tensor, offsets: Offsets) -> Tensor:
        """``[B, W, dim] -> [B, W, dim]``, with the offsets of each row."""
        total = x
        for i, (norm, net) in enumerate(zip(self.norms, self.networks, strict=True)):
            given = x if self.shares is not None else total
            answer = _apply(net, norm(given), offsets[2 * i : 2 * i + 2])  # type: ignore[arg-type]
            total = total + (answer if self.shares is None else answer * self.shares[i].to(answer.dtype))
        return total


def _apply(net: SwiGLU, x: Tensor, offsets: Offsets) -> Tensor:
    """The network with its weights moved: what moves them is added, so that zeros change no bit."""
    gate_up, down = (offset.to(x.dtype).transpose(1, 2) for offset in offsets)
    gate, up = (net.gate_up(x) + x @ gate_up).chunk(2, -1)
    hidden = opened(gate, up)
    return F.linear(hidden, net.down.weight) + hidden @ down


class ContinuumBlock(StreamLayer[ContinuumState]):
    """Pre-norm residual block: a mixer, then a continuum in the place of one network."""

    def __init__(self, mixer: StreamLayer[Any], hidden: int, levels: int, form: Form) -> None:
        super().__init__()
        self.dim = mixer.dim
        self.mixer_norm, self.mixer = RMSNorm(self.dim), mixer
        self.continuum = Continuum(self.dim, hidden, levels, form)

    def init_state(self, batch: int) -> ContinuumState:
        return ContinuumState(self.mixer.init_state(batch), self.continuum.init_offsets(batch))

    def position(self, state: ContinuumState) -> Tensor:
        return self.mixer.position(state.mixer)

    def prepare(self, plan: Plan) -> None:
        self.mixer.prepare(plan)

    def mix(self, x: Tensor, state: ContinuumState, plan: Plan, surprise: bool) -> Reading[ContinuumState]:
        mixed = self.mixer.mix(self.mixer_norm(x), state.mixer, plan, surprise)
        y = self.continuum(x + mixed.y, state.offsets)
        return Reading(y, ContinuumState(mixed.state, state.offsets), mixed.surprise)
