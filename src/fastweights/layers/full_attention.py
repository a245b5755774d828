"""Causal attention over the whole document, with rotary positions: the mixer of a Transformer++."""

from __future__ import annotations

from torch import Tensor

from fastweights.core.engine import init_state, run
from fastweights.core.presets import softmax_attention
from fastweights.core.types import Gates, MemoryState
from fastweights.layers.attention import Heads, rotate
from fastweights.layers.stream import Plan, Reading, StreamLayer

_RULE = softmax_attention()


class FullAttention(StreamLayer[MemoryState]):
    """Softmax attention over every token of the document so far (Llama's: rotary positions, no biases, no dropout).

    Its state is the memory of :func:`~fastweights.core.presets.softmax_attention`: keys, rotated by their position in
    the document, and values of all tokens. It grows, so nothing of it fits a memory file. Cost O(T (L + T)) for T
    tokens behind L others.

    Args:
        dim: D.
        heads: attention heads.
    """

    grows = True

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.dim = dim
        self.heads = Heads(dim, heads, persistent=0)

    def _scale(self) -> tuple[Tensor, ...]:
        """The rule's constant, which is not learned here."""
        return (self.heads.qkv.weight.new_ones(self.heads.heads, 1, 1),)

    def init_state(self, batch: int) -> MemoryState:
        size = self.heads.head_dim
        return init_state(_RULE, self._scale(), batch, (size, size))

    def position(self, state: MemoryState) -> Tensor:
        return state.position

    def mix(self, x: Tensor, state: MemoryState, plan: Plan, surprise: bool) -> Reading[MemoryState]:
        q, k, v = self.heads.project(x)
        place = plan.layout.position.unsqueeze(1)
        turned = rotate(q, place), rotate(k, place)
        result = run(_RULE, self._scale(), *turned, v, Gates(None), state, plan.layout, None, surprise)
        felt = () if result.surprise is None else (result.surprise,)
        return Reading(self.heads.merge(result.y.to(v.dtype)), result.state, felt)
