"""The window of an Omega bias: the last tokens of every row, kept in the state, in front of each chunk's own.

Tokens of a chunk are packed to its left, so the tokens before it are the ones before its first in the stream. With
P = window - 1 tokens kept, a chunk of W slots has S = P + W sources.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastweights.core.layout import Grid, Layout
from fastweights.core.rule import Rule
from fastweights.errors import UserError


class Tail(NamedTuple):
    """The last P tokens, the latest at the end, zeros where the document is younger; ``[B, H, P, .]`` each."""

    k: Tensor
    v: Tensor
    importance: Tensor
    threshold: Tensor | None = None


def empty_tail(rule: Rule, batch: int, heads: int, sizes: tuple[int, int], like: Tensor) -> tuple[Tensor, ...]:
    """The window of rows that have read nothing; ``sizes`` are K and V. Empty where the rule has no window."""
    kept = rule.bias.window - 1
    if rule.bias.importance_scope is None:
        return ()
    widths = [*sizes, 1] + ([] if rule.bias.threshold_scope is None else [1])
    return tuple(like.new_zeros(batch, heads, kept, width) for width in widths)


def extend(tail: tuple[Tensor, ...], tokens: list[Tensor]) -> list[Tensor]:
    """The kept tokens in front of a call's ``[B, H, T, .]``: ``[B, H, P + T, .]`` each.

    Raises:
        UserError: the state has no window that fits.
    """
    if len(tail) != len(tokens) or any(a.shape[-1] != b.shape[-1] for a, b in zip(tail, tokens, strict=True)):
        raise UserError("the state was not made for this rule and these sizes: its window does not fit")
    return [torch.cat([old, new], 2) for old, new in zip(tail, tokens, strict=True)]


def sources(extended: Tensor, own: Tensor, grid: Grid, kept: int) -> Tensor:
    """Every chunk's source tokens ``[N, G, P + W, .]``.

    Args:
        extended: ``[B, H, P + T, .]``, packed.
        own: the chunks' own tokens ``[N, G, W, .]``.
        grid: how the call is cut.
        kept: P.
    """
    if not kept:
        return own
    batch, heads = extended.shape[:2]
    first = first_slots(grid, extended.device)
    index = first[:, :, None] + torch.arange(kept, device=extended.device)
    index = index.flatten(1)[:, None, :, None].expand(batch, heads, -1, extended.shape[-1])
    early = extended.gather(2, index).unflatten(2, (grid.chunks, kept)).movedim(2, 0).flatten(1, 2)
    return torch.cat([early, own], 2)


def first_slots(grid: Grid, device: torch.device) -> Tensor:
    """The packed slot of each chunk's first token, int64 ``[B, N]``."""
    if grid.source is None:
        return (torch.arange(grid.chunks, device=device) * grid.width).expand(len(grid.fresh), -1)
    return grid.source.unflatten(1, (grid.chunks, grid.width))[:, :, 0]


def band(importance: Tensor, start: Tensor, window: int) -> Tensor:
    """How much each step writes of each source, ``[N, G, W, S]``.

    Args:
        importance: of the sources, ``[N, G, S]``.
        start: position of each chunk's first token in its document, ``[N, G]``.
        window: tokens that a step writes, itself included.
    """
    kept = window - 1
    width = importance.shape[-1] - kept
    slots = torch.arange(width, device=importance.device)
    places = torch.arange(importance.shape[-1], device=importance.device) - kept
    near = (places <= slots[:, None]) & (places > slots[:, None] - window)
    known = places >= -start[..., None, None]
    return torch.where(near & known, importance.unsqueeze(-2), 0.0)


def new_tail(extended: list[Tensor], layout: Layout, kept: int) -> tuple[Tensor, ...]:
    """The window after the call."""
    device = layout.length.device
    index = layout.length[:, None] + torch.arange(kept, device=device)
    age = kept - torch.arange(kept, device=device)
    known = (age <= layout.end[:, None])[:, None, :, None]
    batch, heads = extended[0].shape[:2]
    index = index[:, None, :, None]
    return tuple(torch.where(known, x.gather(2, index.expand(batch, heads, kept, x.shape[-1])), 0.0) for x in extended)
