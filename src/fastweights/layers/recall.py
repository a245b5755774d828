"""What a memory recalls for a segment of attention: a token for each token, or a few for the segment before."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastweights.core.engine import read
from fastweights.layers.attention import Buffer, Heads
from fastweights.layers.convolution import ShortConvolution
from fastweights.layers.memory import MemoryLayer
from fastweights.layers.norm import RMSNorm, unit
from fastweights.layers.stream import Piece, Plan, checked


class RecallState(NamedTuple):
    """What recalling needs to remember.

    Attributes:
        tail: the last inputs of the queries' convolution, ``[B, taps - 1, H x key_dim]``.
        tokens: keys and values of the segment's recalled tokens.
        sums: pooled recall only, sums of the segment's queries by group ``[B, H, tokens, key_dim]``, else empty.
    """

    tail: Tensor
    tokens: Buffer
    sums: tuple[Tensor, ...]


class Start(NamedTuple):
    """A memory as it was where a segment began.

    Attributes:
        initial: the memory's initial weights and constants.
        weights: those in force, :func:`~fastweights.core.engine.weights_in_force`.
    """

    initial: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]


class Recall(nn.Module):
    """Queries to a memory, and its answers as keys and values of an attention (Titans eqs. 21, 22).

    ``q_t = W_Q x_t`` with the short convolution, SiLU and normalisation that the memory's own queries have. The
    projection is not the memory's own, though it starts as a copy of it: that one sees what the attention found, this
    one what the segment brings.
    """

    def __init__(self, memory: MemoryLayer, slots: int) -> None:
        super().__init__()
        self.rule, self.shape, self.slots = memory.rule, (memory.heads, memory.head_dim), slots
        inner = memory.heads * memory.head_dim
        self.query = nn.Linear(memory.dim, inner, bias=False)
        self.convolution = ShortConvolution(inner, memory.convolution.size)
        self.out = nn.Linear(inner, memory.dim, bias=False)
        # A matrix memory answers 0 until something is written; the wide eps bounds the gradient of the norm there.
        self.norm = RMSNorm(memory.dim, eps=1e-3)
        self.ask_as(memory)

    @abstractmethod
    def advance(self, state: RecallState, piece: Piece, start: Start, q: Tensor, heads: Heads) -> RecallState:
        """Recalls what a piece of the stream needs.

        Args:
            state: before the piece.
            piece: the tokens.
            start: the memory where the segment began.
            q: their queries ``[B, H, W, key_dim]``, zeros in empty slots.
            heads: the attention that will see the recalled tokens.
        """

    @abstractmethod
    def seen(self, piece: Piece) -> Tensor:
        """Which recalled tokens each token of a piece may see, bool ``[B, W, slots]``."""

    @abstractmethod
    def index(self) -> Tensor:
        """Rotary positions of the recalled tokens, int64 ``[slots]``."""

    def init_state(self, batch: int, heads: Heads) -> RecallState:
        """The state of ``batch`` rows that have read nothing."""
        return RecallState(self.convolution.init_state(batch), heads.buffer(batch, self.slots), ())

    def ask_as(self, memory: MemoryLayer) -> None:
        """Makes the query projection a copy of the memory's own, as it is now."""
        with torch.no_grad():
            self.query.weight.copy_(memory.qkv.weight[: self.query.out_features])

    def queries(self, x: Tensor, tail: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
        """Queries ``[B, H, T, key_dim]`` of a packed stream ``x [B, T, dim]``, and the new tail."""
        mixed, tail = self.convolution(self.query(x), tail, plan.layout)
        return self.normalise(F.silu(mixed).unflatten(-1, self.shape).transpose(1, 2)), tail

    def normalise(self, q: Tensor) -> Tensor:
        """Unit length, where the rule says so."""
        return unit(q) if self.rule.normalise_qk else q

    def tokens(self, start: Start, q: Tensor) -> Tensor:
        """What the memory answers to queries ``[B, H, n, key_dim]``, as tokens ``[B, n, dim]``."""
        answers = read(self.rule, start.initial, start.weights, q).to(self.out.weight.dtype)
        return self.norm(self.out(answers.transpose(1, 2).flatten(2)))


class AlignedRecall(Recall):
    """One recalled token for each token of the segment, at the same rotary position.

    Token i sees the recalled tokens j <= i: taken literally, eqs. 21-23 show every row what later rows recalled, a leak
    of the future.
    """

    def advance(self, state: RecallState, piece: Piece, start: Start, q: Tensor, heads: Heads) -> RecallState:
        new = heads.keys_values(self.tokens(start, q))
        return state._replace(tokens=fill(clear(state.tokens, piece), piece, new))

    def seen(self, piece: Piece) -> Tensor:
        return torch.arange(self.slots, device=piece.slots.device) <= piece.slots.unsqueeze(-1)

    def index(self) -> Tensor:
        return torch.arange(self.slots, device=self.out.weight.device)


class PooledRecall(Recall):
    """A few recalled tokens for the whole segment (the camera-ready's memory tokens), in front of it.

    The queries of the segment before, averaged in groups of neighbours, are asked of the memory as it is when the
    segment begins. A document's first segment has none.
    """

    def __init__(self, memory: MemoryLayer, slots: int, segment: int) -> None:
        checked(
            1 <= slots <= segment and segment % slots == 0,
            f"the number of memory tokens must divide the segment {segment}; it is {slots}",
        )
        super().__init__(memory, slots)
        self.segment, self.group = segment, segment // slots

    def init_state(self, batch: int, heads: Heads) -> RecallState:
        weight = self.out.weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        sums = torch.zeros(batch, self.shape[0], self.slots, self.shape[1], dtype=wide, device=weight.device)
        return super().init_state(batch, heads)._replace(sums=(sums,))

    def advance(self, state: RecallState, piece: Piece, start: Start, q: Tensor, heads: Heads) -> RecallState:
        (sums,), tokens = state.sums, state.tokens
        if torch.compiler.is_compiling() or piece.opens:
            queries = self.normalise(sums / self.group)
            fresh = piece.fresh[:, None, None, None]
            later = (piece.plan.layout.position[:, :1] >= self.segment)[:, :, None, None]
            new = heads.keys_values(self.tokens(start, queries))
            pairs = zip(clear(tokens, piece), new, strict=True)
            tokens = Buffer(*[torch.where(fresh & later, recalled, old) for old, recalled in pairs])
            sums = torch.where(fresh, 0.0, sums)
        q = torch.where(torch.isfinite(q).all(-1, keepdim=True), q, 0.0)
        group = F.one_hot(piece.slots // self.group, self.slots).to(sums.dtype).unsqueeze(1)
        return state._replace(tokens=tokens, sums=(sums + group.transpose(-1, -2) @ q.to(sums.dtype),))

    def seen(self, piece: Piece) -> Tensor:
        later = piece.plan.layout.position >= self.segment
        return later.unsqueeze(-1).expand(-1, -1, self.slots)

    def index(self) -> Tensor:
        return torch.arange(-self.slots, 0, device=self.out.weight.device)


def clear(buffer: Buffer, piece: Piece) -> Buffer:
    """The buffer with zeros in the rows whose segment begins with the piece."""
    if not torch.compiler.is_compiling() and not piece.opens:
        return buffer
    return Buffer(*[torch.where(piece.fresh[:, None, None, None], 0.0, old) for old in buffer])


def fill(buffer: Buffer, piece: Piece, new: Buffer) -> Buffer:
    """The buffer with the keys and values ``[B, heads, W, head_dim]`` of a piece at their slots of the segment."""
    slots = torch.arange(buffer.keys.shape[2], device=buffer.keys.device)
    offset = slots - piece.slots[:, :1]
    inside = ((offset >= 0) & (offset < piece.plan.layout.length[:, None]))[:, None, :, None]
    index = offset.clamp(0, piece.slots.shape[1] - 1)[:, None, :, None].expand_as(buffer.keys)
    return Buffer(*[torch.where(inside, n.gather(2, index), old) for n, old in zip(new, buffer, strict=True)])
