"""Softmax attention as a memory that keeps every token: the growing member of the family.

The state's ``extra`` holds the keys ``[B, H, L, K]`` and values ``[B, H, L, V]`` of the row's document, packed to the
left, and ``[B, H, L, 1]`` which of them count (1) or were rejected (0); L is the length of the longest. The
surprise of a token is the error of its value as predicted from its key and the tokens before it; the gradient's norm is
that error's length. Cost: O(T (L + T)) per head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastweights.core.checks import Call
from fastweights.core.types import MemoryState, Surprise


def init_state(scale: Tensor, position: Tensor, sizes: tuple[int, int]) -> MemoryState:
    """Nothing kept; ``scale [H, 1, 1]`` is the rule's constant, ``sizes`` K and V."""
    batch, heads = len(position), scale.shape[0]
    kept = tuple(scale.new_zeros(batch, heads, 0, size) for size in (*sizes, 1))
    return MemoryState((), (), (), position, kept)


def run_softmax(call: Call) -> tuple[Tensor, MemoryState, Surprise | None]:
    """Runs the rule on all tokens at once."""
    layout, state = call.layout, call.state
    held = state.extra[0].shape[2]
    refused = call.refused()
    given = call.k, call.v, (~refused).to(call.k.dtype).unsqueeze(-1)
    k, v, usable = (torch.cat([old, new], 2) for old, new in zip(state.extra, given, strict=True))
    seen = _seen(call, held).unsqueeze(1) & (usable > 0).transpose(-1, -2)
    y = _attend(call.initial[-1], call.q, k, v, seen)
    after = MemoryState((), (), (), layout.end.clone(), _kept(call, (k, v, usable)))
    if not call.surprise:
        return y, after, None
    earlier = seen & (torch.arange(k.shape[2], device=k.device) < held + _slots(call)).unsqueeze(0)
    error = _attend(call.initial[-1], call.k, k, v, earlier) - call.v
    zero = torch.zeros_like(error[..., 0])
    loss, length = 0.5 * error.square().sum(-1), torch.linalg.vector_norm(error, dim=-1)
    return y, after, Surprise(loss, length, zero + 1, zero, zero + 1, refused)


def read(scale: Tensor, kept: tuple[Tensor, ...], q: Tensor) -> Tensor:
    """What the kept keys, values and their number ``[B]`` answer to ``q [B, H, T, K]``; 0 where nothing is kept."""
    k, v, usable, count = kept
    seen = torch.arange(k.shape[2], device=k.device) < count[:, None]
    return _attend(scale, q, k, v, seen[:, None, None, :] & (usable > 0).transpose(-1, -2))


def _attend(scale: Tensor, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """The weighted mean of the values that are seen; 0 where none is."""
    scores = (q * scale * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    none = ~seen.any(-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(~(seen | none), -torch.inf), -1)
    return torch.where(none, 0.0, weights @ v)


def _slots(call: Call) -> Tensor:
    return torch.arange(call.q.shape[2], device=call.q.device)[:, None]


def _seen(call: Call, held: int) -> Tensor:
    """Which of the kept and new tokens each token sees, bool ``[B, T, L + T]``: earlier ones of its document."""
    layout = call.layout
    slots = _slots(call)[:, 0]
    document = torch.zeros_like(layout.position) if layout.reset is None else layout.reset.cumsum(1)
    new = (slots[None, :] <= slots[:, None]) & (document[:, :, None] == document[:, None, :])
    old = torch.arange(held, device=slots.device) < call.state.position[:, None]
    first = (document == 0)[:, :, None] & old[:, None, :]
    return torch.cat([first, new], 2)


def _kept(call: Call, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Keys, values and which count of each row's document after the call; ``given`` are the kept and the new ones."""
    layout, held = call.layout, call.state.extra[0].shape[2]
    batch, time = layout.position.shape
    length = int(layout.end.max())
    place = torch.arange(length, device=given[0].device).expand(batch, length)
    # The last token of a row is its slot length - 1; the document's tokens end there. Kept ones of the first document
    # stand before all new ones, but a row may have kept fewer than the longest.
    fresh = torch.zeros_like(layout.length, dtype=torch.bool) if layout.reset is None else layout.reset.any(1)
    before = torch.where(fresh, 0, call.state.position)
    first = held + layout.length - (layout.end - before)
    index = torch.where(place < before[:, None], place, first[:, None] + place - before[:, None])
    index = index.clamp(0, held + time - 1)[:, None, :, None]
    real = (place < layout.end[:, None])[:, None, :, None]

    def gathered(x: Tensor) -> Tensor:
        return torch.where(real, x.gather(2, index.expand(-1, x.shape[1], -1, x.shape[-1])), 0.0)

    return tuple(gathered(x) for x in given)


def without_room(state: Any) -> Any:
    """A tree of states in which growing memories keep no more room than their longest row needs."""
    if isinstance(state, Tensor):
        return state
    if isinstance(state, MemoryState) and not state.dual:
        longest = int(state.position.max())
        return state._replace(extra=tuple(x[:, :, :longest].clone() for x in state.extra))
    parts = [without_room(part) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
