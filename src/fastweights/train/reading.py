"""Rows far longer than those trained on, read in pieces with the memory carried from one to the next."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastweights.models.language_model import LanguageModel, ModelState, fast_weights
from fastweights.train.loss import GateUse, gate_use, token_losses
from fastweights.train.task import Batch

TOKENS, LOOK = 8192, 8
"""Tokens of a piece, all rows together (more leave a CPU's cache); pieces from one look at the gates to the next."""


class RowsRead(NamedTuple):
    """What came of reading rows.

    Attributes:
        right: bool ``[N]``, for each position with a weight in row-major order whether it was predicted right,
            teacher-forced.
        gates: their mean use per memory layer.
        norm: float32 ``[B]``, Frobenius norm of all fast weights of a row after its last token.
        norm_before: the same before the first, equal for all rows.
        tokens: read in all.
        seconds: of reading.
    """

    right: Tensor
    gates: GateUse
    norm: Tensor
    norm_before: float
    tokens: int
    seconds: float


@torch.no_grad()
def read_rows(
    model: LanguageModel,
    batch: Batch,
    tokens: int = TOKENS,
    look: int = LOOK,
    on_piece: Callable[[int], None] | None = None,
) -> RowsRead:
    """Read rows without gradients and see what is answered.

    Args:
        model: in eval mode.
        batch: rows of any length ``[B, T]`` without padding.
        tokens: read at a time, all rows together; changes nothing but the memory and the time that it takes.
        look: the use of the gates is measured in one piece of so many, since a memory that is looked at computes what
            it could leave out while its gates are shut.
        on_piece: called after each piece with the positions read of every row.
    """
    rows, length = batch.ids.shape
    piece = max(1, tokens // rows)
    state = model.init_state(rows)
    before = float(memory_norm(state)[0])
    right = torch.zeros_like(batch.weights, dtype=torch.bool)
    uses: list[GateUse] = []
    began = time.monotonic()
    for number, start in enumerate(range(0, length, piece)):
        part = batch.piece(start, start + piece)
        output = model.encode(part.ids, state, surprise=number % look == 0)
        state = output.state
        if output.surprise:
            uses.append(gate_use(output.surprise, model.config.largest_lr, None))
        asked = part.weights > 0
        if asked.any():
            _, guesses = token_losses(model, output.hidden, part)
            right[:, start : start + piece][asked] = guesses == part.targets[asked]
        if on_piece is not None:
            on_piece(min(length, start + piece))
    seconds = time.monotonic() - began
    return RowsRead(right[batch.weights > 0], _mean(uses), memory_norm(state), before, batch.ids.numel(), seconds)


def memory_norm(state: ModelState) -> Tensor:
    """Frobenius norm of all fast weights of every row, ``[B]``."""
    squares = [x.flatten(1).square().sum(1) for _, x in fast_weights(state)]
    return torch.stack(squares).sum(0).sqrt()


def _mean(uses: list[GateUse]) -> GateUse:
    """The mean over pieces, layer by layer."""
    means = [tuple(sum(layer) / len(uses) for layer in zip(*field, strict=True)) for field in zip(*uses, strict=True)]
    return GateUse(*means)
