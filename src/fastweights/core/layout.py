"""Where each token of a call stands: padding, documents and chunk borders, counted in real tokens.

A call brings an array ``[B, T]`` in which some slots may be padding and some tokens may begin a new document. Here the
real tokens of each row are packed to the left (:class:`Layout`), and cut into the chunks of a memory, the segments of
an attention, ... (:class:`Grid`), whose borders depend only on a token's position in its document: never on array
slots, so that any split of a stream gives the same result.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fastweights.errors import UserError


class Layout(NamedTuple):
    """The packed view of one call: real tokens first in every row, padding behind them.

    Attributes:
        position: int64 ``[B, T]``, position of each packed token in its document (meaningless behind the real ones).
        length: int64 ``[B]``, real tokens of each row.
        real: bool ``[B, T]``, or ``None`` when every slot holds a real token.
        reset: bool ``[B, T]``, a document begins here (the token that begins a stream is not marked), or ``None``.
        order: int64 ``[B, T]``, array slot of each packed slot, or ``None`` when they are the same.
        inverse: int64 ``[B, T]``, packed slot of each array slot, or ``None``.
        present: bool ``[B, T]``, the caller's mask in array order, or ``None``.
        end: int64 ``[B]``, position after the call.
    """

    position: Tensor
    length: Tensor
    real: Tensor | None
    reset: Tensor | None
    order: Tensor | None
    inverse: Tensor | None
    present: Tensor | None
    end: Tensor


def make_layout(position: Tensor, time: int, mask: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Layout:
    """Lays out a call of ``time`` slots for rows that stand at ``position``.

    Args:
        position: int64 ``[B]``, real tokens already read of each row's document.
        time: T, slots of the call.
        mask: bool ``[B, T]``, False where a slot is padding (left, right or interior).
        cu_seqlens: integer ``[n + 1]``, borders of the documents packed into the single row of a call with B = 1, in
            slots: 0 = c_0 < c_1 < ... < c_n = T. The first document continues the state; each later one starts afresh.

    Raises:
        UserError: shapes or borders that make no sense.
    """
    batch = position.shape[0]
    device = position.device
    if mask is not None and tuple(mask.shape) != (batch, time):
        raise UserError(f"mask has shape {tuple(mask.shape)}; it must be [batch, time] = [{batch}, {time}]")
    reset = None if cu_seqlens is None else _document_starts(cu_seqlens, batch, time, device)
    slots = torch.arange(time, device=device).expand(batch, time)
    order = inverse = real = present = None
    length = torch.full((batch,), time, dtype=torch.int64, device=device)
    if mask is not None and not bool(mask.all()):
        present = mask.to(torch.bool)
        length = present.sum(1)
        real = slots < length[:, None]
        if not torch.equal(present, real):
            order = torch.argsort((~present).to(torch.int8), dim=1, stable=True)
            inverse = torch.argsort(order, dim=1)
            if reset is not None:
                reset = _move_starts(reset, present).gather(1, order)
    if reset is not None and not bool(reset.any()):
        reset = None
    positions = slots + position[:, None]
    if reset is not None:
        last_start = torch.where(reset, slots, -1).cummax(1).values
        positions = torch.where(last_start >= 0, slots - last_start, positions)
    last = (length - 1).clamp_min(0)[:, None]
    end = torch.where(length > 0, positions.gather(1, last)[:, 0] + 1 if time else position, position)
    return Layout(positions, length, real, reset, order, inverse, present, end)


def _document_starts(cu_seqlens: Tensor, batch: int, time: int, device: torch.device) -> Tensor:
    borders = cu_seqlens.tolist()
    if batch != 1:
        raise UserError(f"cu_seqlens describes documents packed into one row; the batch has {batch} rows, not 1")
    if len(borders) < 2 or borders[0] != 0 or borders[-1] != time or any(a >= b for a, b in pairwise(borders)):
        raise UserError(f"cu_seqlens must rise from 0 to {time} (the length of the call); it is {borders[:8]}")
    starts = torch.zeros(1, time, dtype=torch.bool, device=device)
    starts[0, borders[1:-1]] = True
    return starts


def _move_starts(reset: Tensor, present: Tensor) -> Tensor:
    """Moves a start that stands on padding to the next real token of its row."""
    documents = reset.cumsum(1)
    last_seen = torch.where(present, documents, 0).cummax(1).values
    before = torch.cat([torch.zeros_like(last_seen[:, :1]), last_seen[:, :-1]], 1)
    return present & (documents > before)


def pack(layout: Layout, x: Tensor) -> Tensor:
    """Moves ``x [B, T, ...]`` from array order to packed order; padding slots become zeros."""
    if layout.order is not None:
        x = x.gather(1, _expand(layout.order, x))
    if layout.real is not None:
        x = torch.where(_expand(layout.real, x), x, torch.zeros((), dtype=x.dtype, device=x.device))
    return x


def unpack(layout: Layout, y: Tensor) -> Tensor:
    """Moves ``y [B, T, ...]`` back to array order; padding slots hold zeros."""
    if layout.inverse is not None:
        y = y.gather(1, _expand(layout.inverse, y))
    if layout.present is not None:
        y = torch.where(_expand(layout.present, y), y, torch.zeros((), dtype=y.dtype, device=y.device))
    return y


def _expand(index: Tensor, x: Tensor) -> Tensor:
    return index.reshape(*index.shape, *([1] * (x.dim() - 2))).expand_as(x)


class Grid(NamedTuple):
    """A call cut into chunks ``[B, N, W]``; a chunk holds the tokens whose positions share ``position // size``.

    Attributes:
        source: int64 ``[B, N * W]``, packed slot of each grid slot, or ``None`` when the cut is a plain reshape.
        slot: bool ``[B, N, W]``, the slot holds a real token, or ``None`` when all do.
        fresh: bool ``[B, N]``, the first token of the chunk opens it (position divisible by the size).
        start: int64 ``[B, N]``, position of the chunk's first token in its document (0 in chunks without tokens).
        reset: bool ``[B, N]``, the chunk begins a new document, or ``None`` when none does.
        inverse: int64 ``[B, T]``, grid slot of each packed slot, or ``None``.
        chunks: N.
        width: W, at most the chunk's size.
        aligned: every chunk is fresh in every row (never said of a single token, so that compiled steps are one graph).
    """

    source: Tensor | None
    slot: Tensor | None
    fresh: Tensor
    start: Tensor
    reset: Tensor | None
    inverse: Tensor | None
    chunks: int
    width: int
    aligned: bool


def make_grid(layout: Layout, size: int, blocks: bool = False) -> Grid:
    """Cuts a layout into chunks of ``size`` positions (``blocks``: at slots of the call, for rules without chunks)."""
    batch, time = layout.position.shape
    device = layout.position.device
    counter = _slots_in_document(layout) if blocks else layout.position
    plain = layout.real is None and layout.reset is None and time % size == 0
    if plain and bool((counter[:, 0] % size == 0).all()):
        fresh = torch.ones(batch, time // size, dtype=torch.bool, device=device)
        return Grid(None, None, fresh, layout.position[:, ::size], None, None, time // size, size, True)
    opens = counter % size == 0
    if layout.reset is not None:
        opens = opens | layout.reset
    number = opens.cumsum(1)
    number = number - number[:, :1]
    real = torch.ones_like(opens) if layout.real is None else layout.real
    slots = torch.arange(time, device=device).expand(batch, time)
    first = torch.where(opens, slots, 0).cummax(1).values
    offset = slots - first
    chunks = int(torch.where(real, number, 0).max()) + 1
    width = int(torch.where(real, offset, 0).max()) + 1
    target = torch.where(real, number * width + offset, chunks * width)
    index = torch.full((batch, chunks * width + 1), time, dtype=torch.int64, device=device).scatter(1, target, slots)
    index = index[:, :-1]
    slot = index < time
    head = index.reshape(batch, chunks, width)[:, :, 0]
    known = head < time
    head = head.clamp_max(time - 1)
    fresh = known & (counter.gather(1, head) % size == 0)
    start = torch.where(known, layout.position.gather(1, head), 0)
    reset = None if layout.reset is None else known & layout.reset.gather(1, head)
    full = bool(slot.all())
    return Grid(
        index.clamp_max(time - 1),
        None if full else slot.reshape(batch, chunks, width),
        fresh,
        start,
        reset,
        target.clamp_max(chunks * width - 1),
        chunks,
        width,
        time > 1 and bool(fresh.all()),
    )


def _slots_in_document(layout: Layout) -> Tensor:
    slots = torch.arange(layout.position.shape[1], device=layout.position.device).expand_as(layout.position)
    if layout.reset is None:
        return slots
    return slots - torch.where(layout.reset, slots, 0).cummax(1).values


def to_grid(grid: Grid, x: Tensor) -> Tensor:
    """Cuts ``x [B, H, T, ...]`` (packed) into chunks ``[N, B, H, W, ...]``; slots without a token hold zeros."""
    batch, heads, _, *rest = x.shape
    if grid.source is not None:
        index = grid.source.reshape(batch, 1, -1, *([1] * len(rest))).expand(batch, heads, -1, *rest)
        x = x.gather(2, index)
    x = x.reshape(batch, heads, grid.chunks, grid.width, *rest)
    if grid.slot is not None:
        slot = grid.slot.reshape(batch, 1, grid.chunks, grid.width, *([1] * len(rest)))
        x = torch.where(slot, x, torch.zeros((), dtype=x.dtype, device=x.device))
    return x.movedim(2, 0)


def from_grid(grid: Grid, y: Tensor) -> Tensor:
    """Puts chunks ``[N, B, H, W, ...]`` back in packed order ``[B, H, T, ...]`` (padding slots: unspecified)."""
    y = y.movedim(0, 2)
    batch, heads, chunks, width, *rest = y.shape
    y = y.reshape(batch, heads, chunks * width, *rest)
    if grid.inverse is None:
        return y
    index = grid.inverse.reshape(batch, 1, -1, *([1] * len(rest))).expand(batch, heads, -1, *rest)
    return y.gather(2, index)
