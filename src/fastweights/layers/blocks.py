"""The four Titans as blocks: memory alone (LMM), as gate (MAG), as layer (MAL), as context (MAC)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from fastweights.layers.attention import AttentionState, SlidingWindowAttention
from fastweights.layers.feedforward import SwiGLU
from fastweights.layers.memory import MemoryLayer, MemoryLayerState
from fastweights.layers.norm import RMSNorm
from fastweights.layers.stream import Plan, Reading, StreamLayer


class MixerState(NamedTuple):
    """State of a memory and of the attention beside it."""

    memory: MemoryLayerState
    attention: AttentionState


class _MemoryAndAttention(StreamLayer[MixerState]):
    """A memory and a sliding window over the same stream."""

    def __init__(self, memory: MemoryLayer, attention: SlidingWindowAttention) -> None:
        super().__init__()
        self.dim = memory.dim
        self.memory, self.attention = memory, attention

    def init_state(self, batch: int) -> MixerState:
        return MixerState(self.memory.init_state(batch), self.attention.init_state(batch))

    def position(self, state: MixerState) -> Tensor:
        return state.attention.position

    def prepare(self, plan: Plan) -> None:
        self.memory.prepare(plan)


class MAG(_MemoryAndAttention):
    """Memory as gate (Titans eqs. 26-28): ``o = silu(norm(attention(x))) * norm(memory(x))``, then a projection.

    The paper leaves the gating open ("normalise the outputs using learnable vector-valued weights, followed by a
    non-linearity"); see :class:`NormalisedGate`.
    """

    def __init__(self, memory: MemoryLayer, attention: SlidingWindowAttention) -> None:
        super().__init__(memory, attention)
        self.gate = NormalisedGate(self.dim)

    def mix(self, x: Tensor, state: MixerState, plan: Plan, surprise: bool) -> Reading[MixerState]:
        attended = self.attention.mix(x, state.attention, plan, surprise)
        recalled = self.memory.mix(x, state.memory, plan, surprise)
        y = self.gate(attended.y, recalled.y)
        return Reading(y, MixerState(recalled.state, attended.state), recalled.surprise)


class MAL(_MemoryAndAttention):
    """Memory as layer (Titans eqs. 29-31): the memory, then attention over what it answered.

    The attention sees the layer's (normalised) input plus the memory's answer, normalised again; both are added up.
    """

    def __init__(self, memory: MemoryLayer, attention: SlidingWindowAttention) -> None:
        super().__init__(memory, attention)
        self.norm = RMSNorm(self.dim)

    def mix(self, x: Tensor, state: MixerState, plan: Plan, surprise: bool) -> Reading[MixerState]:
        recalled = self.memory.mix(x, state.memory, plan, surprise)
        attended = self.attention.mix(self.norm(x + recalled.y), state.attention, plan, surprise)
        return Reading(recalled.y + attended.y, MixerState(recalled.state, attended.state), recalled.surprise)


class NormalisedGate(nn.Module):
    """Titans' gating of attention and memory (eq. 28): both normalised with learned vectors, then one gates the other.

    ``W (silu(norm_1(a)) * norm_2(m))``.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm_gate, self.norm_value = RMSNorm(dim), RMSNorm(dim)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, gate: Tensor, value: Tensor) -> Tensor:
        """``[..., dim], [..., dim] -> [..., dim]``."""
        return self.out(F.silu(self.norm_gate(gate)) * self.norm_value(value))


class Block(StreamLayer[Any]):
    """Pre-norm residual block: a mixer (memory layer, MAC, MAG or MAL), then a SwiGLU network."""

    def __init__(self, mixer: StreamLayer[Any], hidden: int) -> None:
        super().__init__()
        self.dim = mixer.dim
        self.mixer_norm, self.mixer = RMSNorm(self.dim), mixer
        self.feedforward_norm, self.feedforward = RMSNorm(self.dim), SwiGLU(self.dim, hidden)

    def init_state(self, batch: int) -> Any:
        return self.mixer.init_state(batch)

    def position(self, state: Any) -> Tensor:
        return self.mixer.position(state)

    def prepare(self, plan: Plan) -> None:
        self.mixer.prepare(plan)

    def mix(self, x: Tensor, state: Any, plan: Plan, surprise: bool) -> Reading[Any]:
        mixed = self.mixer.mix(self.mixer_norm(x), state, plan, surprise)
        x = x + mixed.y
        return mixed._replace(y=x + self.feedforward(self.feedforward_norm(x)))
