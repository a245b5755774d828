"""Memory as context (MAC): attention over what the memory recalls, and a memory of what the attention found."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastweights.core.engine import weights_in_force
from fastweights.core.types import Surprise
from fastweights.layers.attention import Buffer, Heads, attend, rotate
from fastweights.layers.blocks import NormalisedGate
from fastweights.layers.memory import MemoryLayer, MemoryLayerState
from fastweights.layers.recall import AlignedRecall, PooledRecall, Recall, RecallState, Start, clear, fill
from fastweights.layers.stream import Piece, Plan, Reading, StreamLayer, checked, chosen


class MACState(NamedTuple):
    """All that a MAC layer remembers.

    Attributes:
        memory: state of the memory layer.
        start: the memory's weights in force where the segment being read began.
        recalled: what the recall remembers.
        segment: keys and values of the segment's tokens so far.
    """

    memory: MemoryLayerState
    start: tuple[Tensor, ...]
    recalled: RecallState
    segment: Buffer


class MAC(StreamLayer[MACState]):
    """Memory as context (Titans eqs. 21-25), causal.

    For each segment: recall from the memory as it was before the segment; attend over [persistent, recalled, segment];
    write the attention's output y to the memory; answer ``gate(y_t, M_t(y_t))``, read per token. Rotary positions are
    slots of the segment. The segments of a call are read one after another; the attention costs O(T segment).

    Args:
        memory: the memory layer; its chunk size must divide ``segment``.
        heads: attention heads.
        segment: tokens of a segment, counted in real tokens of the document.
        persistent: learned tokens that every token sees.
        pooled: memory tokens per segment, a divisor of ``segment`` (:class:`PooledRecall`); by default one token is
            recalled for each token (:class:`AlignedRecall`).

    Raises:
        UserError: sizes that do not divide each other.
    """

    def __init__(
        self, memory: MemoryLayer, heads: int, segment: int, persistent: int = 0, pooled: int | None = None
    ) -> None:
        super().__init__()
        chunk = memory.rule.chunk_size
        checked(
            segment >= 1 and segment % chunk == 0,
            f"segment {segment} must be a multiple of the rule's chunk size {chunk}",
        )
        self.dim, self.segment, self.memory = memory.dim, segment, memory
        self.recall: Recall = (
            AlignedRecall(memory, segment) if pooled is None else PooledRecall(memory, pooled, segment)
        )
        self.heads = Heads(self.dim, heads, persistent)
        self.gate = NormalisedGate(self.dim)

    def init_state(self, batch: int) -> MACState:
        memory = self.memory.init_state(batch)
        start = tuple(w.clone() for w in self._in_force(memory))
        recalled = self.recall.init_state(batch, self.heads)
        return MACState(memory, start, recalled, self.heads.buffer(batch, self.segment))

    def position(self, state: MACState) -> Tensor:
        return self.memory.position(state.memory)

    def prepare(self, plan: Plan) -> None:
        for piece in plan.pieces(self.segment).parts:
            self.memory.prepare(piece.plan)

    def mix(self, x: Tensor, state: MACState, plan: Plan, surprise: bool) -> Reading[MACState]:
        pieces = plan.pieces(self.segment)
        queries, tail = self.recall.queries(x, state.recalled.tail, plan)
        state = state._replace(recalled=state.recalled._replace(tail=tail))
        prefix, initial = self.heads.prefix(x.dtype), self.memory.initial_weights()
        streams = [pieces.cut(stream) for stream in (*self.heads.project(x), queries)]
        answers: list[Tensor] = []
        felt: list[Surprise] = []
        for piece, q, k, v, query in zip(pieces.parts, *streams, strict=True):
            start = self._start(state, piece)
            known = Start(initial, start)
            recalled = self.recall.advance(state.recalled, piece, known, query, self.heads)
            segment = fill(clear(state.segment, piece), piece, Buffer(k, v))
            attended = self._attend(q, recalled.tokens, segment, piece, prefix)
            written = self.memory.mix(attended, state.memory, piece.plan, surprise)
            state = MACState(written.state, start, recalled, segment)
            answers.append(self.gate(attended, written.y).unsqueeze(1))
            felt.extend(written.surprise)
        whole = (Surprise(*[pieces.join(field) for field in zip(*felt, strict=True)]),) if felt else ()
        return Reading(pieces.join(answers).squeeze(1), state, whole)

    def _start(self, state: MACState, piece: Piece) -> tuple[Tensor, ...]:
        """The memory's weights where each row's segment begins."""
        if not torch.compiler.is_compiling() and not piece.opens:
            return state.start
        start = chosen(piece.fresh, self._in_force(state.memory), state.start)
        if piece.begins is None:
            return start
        return chosen(piece.begins, self._in_force(self.memory.init_state(len(piece.fresh))), start)

    def _in_force(self, state: MemoryLayerState) -> tuple[Tensor, ...]:
        return weights_in_force(self.memory.rule, self.memory.initial_weights(), state.memory)

    def _attend(
        self, q: Tensor, recalled: Buffer, segment: Buffer, piece: Piece, prefix: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """The attention's output ``[B, W, dim]`` for queries ``[B, heads, W, head_dim]``."""
        slots = torch.arange(self.segment, device=q.device)
        keys = [rotate(recalled.keys, self.recall.index()), rotate(segment.keys, slots)]
        seen = [self.recall.seen(piece), slots <= piece.slots.unsqueeze(-1)]
        turned = rotate(q, piece.slots.unsqueeze(1))
        values = torch.cat([recalled.values, segment.values], 2)
        y = attend(q, (turned, torch.cat(keys, 2), values), torch.cat(seen, -1).unsqueeze(1), prefix)
        return self.heads.merge(y)
