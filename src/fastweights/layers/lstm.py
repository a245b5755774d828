"""A long short-term memory (Hochreiter and Schmidhuber, 1997) as a layer: the non-linear recurrence to compare with."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fastweights.core.layout import Layout
from fastweights.layers.stream import Plan, Reading, StreamLayer


class LSTMState(NamedTuple):
    """Output and cell ``[B, dim]`` after the last token, and the position."""

    hidden: Tensor
    cell: Tensor
    position: Tensor


class LSTM(StreamLayer[LSTMState]):
    """One LSTM of D units and a projection. It has no memory in this library's sense, so it feels no surprise.

    A token that is not finite is read as zeros.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.cell = nn.LSTM(dim, dim, batch_first=True)
        self.out = nn.Linear(dim, dim, bias=False)

    def init_state(self, batch: int) -> LSTMState:
        zeros = self.out.weight.new_zeros(batch, self.dim)
        return LSTMState(zeros, zeros.clone(), torch.zeros(batch, dtype=torch.int64, device=zeros.device))

    def position(self, state: LSTMState) -> Tensor:
        return state.position

    def mix(self, x: Tensor, state: LSTMState, plan: Plan, surprise: bool) -> Reading[LSTMState]:
        layout = plan.layout
        x = torch.where(torch.isfinite(x).all(-1, keepdim=True), x, 0.0)
        hidden, cell = state.hidden, state.cell
        answers = []
        for start, stop in _spans(layout):
            if layout.reset is not None:
                begins = layout.reset[:, start].unsqueeze(1)
                hidden, cell = (torch.where(begins, 0.0, part) for part in (hidden, cell))
            here = (layout.length - start).clamp(0, stop - start)
            y, hidden, cell = self._span(x[:, start:stop], hidden, cell, here)
            answers.append(y)
        return Reading(self.out(torch.cat(answers, 1)), LSTMState(hidden, cell, layout.end.clone()))

    def _span(self, x: Tensor, hidden: Tensor, cell: Tensor, length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reads the first ``length`` tokens of each row of ``x``; no document begins behind its first slot."""
        before = hidden.to(x.dtype).unsqueeze(0), cell.to(x.dtype).unsqueeze(0)
        if bool((length == x.shape[1]).all()):
            y, (hidden, cell) = self.cell(x, before)
            return y, hidden[0], cell[0]
        # Rows of no token are run on one slot of padding, and keep their state.
        packed = pack_padded_sequence(x, length.clamp_min(1).cpu(), batch_first=True, enforce_sorted=False)
        read, after = self.cell(packed, before)
        y, _ = pad_packed_sequence(read, batch_first=True, total_length=x.shape[1])
        some = (length > 0).unsqueeze(1)
        hidden, cell = (torch.where(some, new[0], old[0]) for new, old in zip(after, before, strict=True))
        return y, hidden, cell


def _spans(layout: Layout) -> list[tuple[int, int]]:
    """Slots between which no row begins a document."""
    time = layout.position.shape[1]
    if layout.reset is None:
        return [(0, time)]
    inside = layout.reset if layout.real is None else layout.reset & layout.real
    cuts = sorted({0, time, *inside.any(0).nonzero().flatten().tolist()})
    return list(pairwise(cuts))
