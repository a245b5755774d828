"""Sliding-window attention with a persistent prefix."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastweights.core.layout import Layout
from fastweights.layers.stream import Plan, Reading, StreamLayer, checked


class AttentionState(NamedTuple):
    """Keys and values of the last ``window`` tokens ``[B, heads, window, head_dim]``, unrotated, and the position."""

    keys: Tensor
    values: Tensor
    position: Tensor


def rotate(x: Tensor, index: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864) of ``x [..., T, head_dim]`` at positions ``index [..., T]``."""
    half = x.shape[-1] // 2
    wide = torch.promote_types(x.dtype, torch.float32)
    frequency = base ** (-torch.arange(half, device=x.device, dtype=wide) / half)
    angle = index.to(wide).unsqueeze(-1) * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half : 2 * half]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :]], -1)


class Buffer(NamedTuple):
    """Keys and values ``[B, heads, slots, head_dim]``, unrotated; slots not filled yet hold zeros."""

    keys: Tensor
    values: Tensor


class Heads(nn.Module):
    """Projections of an attention, and its persistent tokens seen as keys and values."""

    def __init__(self, dim: int, heads: int, persistent: int) -> None:
        super().__init__()
        checked(dim % heads == 0, f"dim {dim} is not divisible by {heads} heads")
        self.heads, self.head_dim = heads, dim // heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.persistent = nn.Parameter(torch.randn(persistent, dim)) if persistent else None

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``x [B, T, dim]`` to queries, keys and values ``[B, heads, T, head_dim]``."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def keys_values(self, x: Tensor) -> Buffer:
        """``x [B, T, dim]`` to keys and values alone, ``[B, heads, T, head_dim]``."""
        mixed = nn.functional.linear(x, self.qkv.weight[x.shape[-1] :])
        return Buffer(*mixed.unflatten(-1, (2, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4))

    def buffer(self, batch: int, slots: int) -> Buffer:
        """Room for the keys and values of ``slots`` tokens."""
        shape = (batch, self.heads, slots, self.head_dim)
        return Buffer(self.qkv.weight.new_zeros(shape), self.qkv.weight.new_zeros(shape))

    def prefix(self, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the persistent tokens, ``[heads, P, head_dim]``, or ``None``."""
        if self.persistent is None:
            return None
        k, v = self.keys_values(self.persistent.to(dtype).unsqueeze(0))
        return k[0], v[0]

    def merge(self, y: Tensor) -> Tensor:
        """``[B, heads, T, head_dim] -> [B, T, dim]``."""
        return self.out(y.transpose(1, 2).flatten(2))


def attend(
    q: Tensor, rotated: tuple[Tensor, Tensor, Tensor], allowed: Tensor, prefix: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Softmax attention over a persistent prefix and the tokens before.

    Args:
        q: unrotated queries ``[..., W, head_dim]``, for the prefix, which has no place.
        rotated: queries, keys ``[..., S, head_dim]`` with rotary positions, and values.
        allowed: bool, broadcastable to ``[..., W, S]``.
        prefix: keys and values, broadcastable to ``[..., P, head_dim]``, always visible.

    A token whose key or value is not finite is seen by no query, not with a weight of 0 either: 0 times NaN is NaN.
    """
    turned, k, v = rotated
    sound = torch.isfinite(k.sum(-1) + v.sum(-1))
    if torch.compiler.is_compiling() or not bool(sound.all()):
        k, v = (torch.where(sound.unsqueeze(-1), x, 0.0) for x in (k, v))
        allowed = allowed & sound.unsqueeze(-2)
    scale = q.shape[-1] ** -0.5
    scores = (turned @ k.transpose(-1, -2)) * scale
    scores = scores.masked_fill(~allowed, float("-inf"))
    if prefix is not None:
        scores = torch.cat([(q @ prefix[0].transpose(-1, -2)) * scale, scores], -1)
    weights = torch.softmax(scores, -1)
    if prefix is None:
        return weights @ v
    first = prefix[0].shape[-2]
    return weights[..., :first] @ prefix[1] + weights[..., first:] @ v


class SlidingWindowAttention(StreamLayer[AttentionState]):
    """Causal attention over the last ``window`` tokens of the document and P persistent tokens (Titans eqs. 27, 31).

    Rotary positions are distances inside the window, so nothing depends on absolute position. Cost O(T window).

    Args:
        dim: D.
        heads: attention heads.
        window: tokens a token sees, itself included.
        persistent: learned tokens that every token sees.
    """

    def __init__(self, dim: int, heads: int, window: int, persistent: int = 0) -> None:
        super().__init__()
        checked(window >= 1, f"the attention window must be at least 1 token, not {window}")
        self.dim, self.window = dim, window
        self.heads = Heads(dim, heads, persistent)

    def init_state(self, batch: int) -> AttentionState:
        position = torch.zeros(batch, dtype=torch.int64, device=self.heads.qkv.weight.device)
        return AttentionState(*self.heads.buffer(batch, self.window), position)

    def position(self, state: AttentionState) -> Tensor:
        return state.position

    def mix(self, x: Tensor, state: AttentionState, plan: Plan, surprise: bool) -> Reading[AttentionState]:
        layout = plan.layout
        q, k, v = self.heads.project(x)
        keys, values = torch.cat([state.keys.to(k.dtype), k], 2), torch.cat([state.values.to(v.dtype), v], 2)
        y = self.heads.merge(self._attend_blocks(q, keys, values, layout))
        last_keys = self._last(keys, layout).to(state.keys.dtype)
        last_values = self._last(values, layout).to(state.values.dtype)
        return Reading(y, AttentionState(last_keys, last_values, layout.end.clone()))

    def _attend_blocks(self, q: Tensor, keys: Tensor, values: Tensor, layout: Layout) -> Tensor:
        """Cuts the queries into blocks; a block sees itself and the window before it."""
        time, window = q.shape[2], self.window
        size = min(window, time)
        blocks = -(-time // size)
        spare = blocks * size - time
        pad = torch.nn.functional.pad
        q_blocks = pad(q, (0, 0, 0, spare)).unflatten(2, (blocks, size))
        k_blocks, v_blocks = (
            pad(x, (0, 0, 0, spare)).unfold(2, window + size, size).transpose(-1, -2) for x in (keys, values)
        )
        here = torch.arange(window + size, device=q.device)
        rows = here[window:]
        distance = rows[:, None] - here[None, :]
        position = pad(layout.position, (0, spare)).unflatten(1, (blocks, size))
        allowed = (distance >= 0) & (distance < window) & (distance <= position.unsqueeze(-1))
        prefix = self.heads.prefix(q.dtype)
        if prefix is not None:
            prefix = prefix[0].unsqueeze(1), prefix[1].unsqueeze(1)
        y = attend(q_blocks, (rotate(q_blocks, rows), rotate(k_blocks, here), v_blocks), allowed.unsqueeze(1), prefix)
        return y.flatten(2, 3)[:, :, :time]

    def _last(self, whole: Tensor, layout: Layout) -> Tensor:
        """The last ``window`` tokens of the document; zeros where it has not that many."""
        if layout.real is None and layout.reset is None:
            return whole[:, :, -self.window :].clone()
        index = layout.length[:, None] + torch.arange(self.window, device=whole.device)
        last = whole.gather(2, index[:, None, :, None].expand(-1, whole.shape[1], -1, whole.shape[3]))
        ages = torch.arange(self.window, 0, -1, device=whole.device)
        return torch.where((ages <= layout.end[:, None])[:, None, :, None], last, 0.0)
