"""All that a session knows at one moment, and the pure functions that lead from one moment to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fastweights.inference.feed import Ids
from fastweights.inference.generation import padded
from fastweights.inference.header import Health, Source, finite
from fastweights.inference.surprise import SurpriseLog, surprise_of
from fastweights.models.language_model import LanguageModel, ModelState, fast_weights, flatten_state, unflatten_state


@dataclass(frozen=True)
class Snapshot:
    """All that a session knows at one moment; immutable, so keeping one costs nothing but its memory.

    Attributes:
        state: The model's state after the tokens that have been written.
        waiting: Per row, tokens read that do not fill a piece yet.
        log: Statistics of the surprise of the tokens written.
        sources: What has been read.
    """

    state: ModelState
    waiting: tuple[Ids, ...]
    log: SurpriseLog
    sources: tuple[Source, ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens read, per row: those written and those waiting."""
        return tuple(int(n) + len(ids) for n, ids in zip(self.log.tokens, self.waiting, strict=True))

    def state_bytes(self) -> int:
        """Size of the model's state; the same after any number of tokens."""
        return sum(tensor.nbytes for tensor in flatten_state(self.state).values())

    def select(self, rows: Sequence[int]) -> Snapshot:
        """Some of the rows, in the order given, each any number of times."""
        index = torch.tensor(list(rows))
        state = _mapped(self.state, lambda tensor: tensor.index_select(0, index.to(tensor.device)))
        sources = tuple(replace(s, row=new) for new, old in enumerate(rows) for s in self.sources if s.row == old)
        waiting = tuple(self.waiting[row] for row in rows)
        return Snapshot(state, waiting, self.log.select(rows), sources)


def blank(model: LanguageModel, rows: int) -> Snapshot:
    """Rows that have read nothing."""
    with torch.no_grad():
        state = _compact(model.init_state(rows))
    return Snapshot(state, (np.empty(0, np.int32),) * rows, SurpriseLog.empty(rows), ())


def written(model: LanguageModel, now: Snapshot, pieces: Sequence[Ids]) -> tuple[Snapshot, float]:
    """The snapshot after the memory has read `pieces`, one per row, and their mean surprise; nothing waits any more."""
    ids, mask = padded(pieces, next(model.parameters()).device)
    with torch.no_grad():
        encoded = model.encode(ids, now.state, mask=mask, surprise=True)
    surprise, rejected = surprise_of(encoded)
    total = sum(float(surprise[row, : len(piece)].sum()) for row, piece in enumerate(pieces))
    log = now.log.observe(pieces, surprise, rejected)
    after = Snapshot(_compact(encoded.state), tuple(piece[:0] for piece in pieces), log, now.sources)
    return after, total / sum(map(len, pieces))


def _mapped(state: ModelState, change: Callable[[Tensor], Tensor]) -> ModelState:
    changed: ModelState = unflatten_state(state, {name: change(part) for name, part in flatten_state(state).items()})
    return changed


def _compact(state: ModelState) -> ModelState:
    """The state in memory of its own, laid out as after loading it from a file.

    A view would keep the whole piece alive; and products may round differently for another layout or alignment.
    """

    def own(tensor: Tensor) -> Tensor:
        alone = tensor.untyped_storage().nbytes() == tensor.nbytes
        return tensor if alone and tensor.is_contiguous() else tensor.clone(memory_format=torch.contiguous_format)

    return _mapped(state, own)


def norms(state: ModelState) -> dict[str, Tensor]:
    """Frobenius norm of the fast weights of each layer, float64 `[R]`."""
    squares: dict[str, Tensor] = {}
    for number, tensor in fast_weights(state):
        layer = f"layer {number}"
        square = tensor.double().flatten(1).square().sum(1).cpu()
        squares[layer] = squares[layer] + square if layer in squares else square
    return {layer: square.sqrt() for layer, square in squares.items()}


def total_norm(state: ModelState) -> float:
    """Norm of all fast weights of a row together; the mean over rows; 0 for a model without memory."""
    parts = list(norms(state).values())
    return float(torch.stack(parts).square().sum(0).sqrt().mean()) if parts else 0.0


def health(now: Snapshot) -> Health:
    """Norms, counts and quantiles."""
    floating = [tensor for tensor in flatten_state(now.state).values() if tensor.is_floating_point()]
    return Health(
        norms={layer: tuple(map(finite, norm.tolist())) for layer, norm in norms(now.state).items()},
        non_finite=sum(int((~tensor.isfinite()).sum()) for tensor in floating),
        rejected=tuple(now.log.rejected.tolist()),
        surprise=now.log.quantiles(),
    )
