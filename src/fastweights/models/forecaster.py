"""The memory as a layer over numbers: a model that reads rows of a time series and tells those that follow.

Series drift, so every row is read less the mean of the rows read up to it, and what is told is told above the mean of
all of them: the centring of RevIN (Kim et al. 2022) without a look ahead, so that a series can be read in pieces.

Shapes: B series, T rows, C variables, D width, H rows that are told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastweights.errors import UserError
from fastweights.layers.norm import RMSNorm
from fastweights.models.config import ModelConfig
from fastweights.models.groups import parameter_groups
from fastweights.models.titans import build_block


@dataclass(frozen=True)
class ForecasterConfig:
    """A model that forecasts.

    Attributes:
        variables: C.
        horizon: H.
        model: its blocks; ``vocab_size`` and ``embedding_std`` are those of language models and say nothing here.

    Raises:
        UserError: numbers below 1, or a model that starts as a language model does.
    """

    variables: int
    horizon: int
    model: ModelConfig = ModelConfig(vocab_size=1, wiring="lmm")

    def __post_init__(self) -> None:
        if self.variables < 1 or self.horizon < 1:
            raise UserError(
                f"a forecaster needs a variable and a row to tell at least, not {self.variables} and {self.horizon}"
            )
        if self.model.tied or self.model.start != "plain":
            raise UserError("a forecaster has no words: its model must have tied=False and start='plain'")
        if any(self.model.level_chunks):
            raise UserError("levels learn the next token, and a forecaster has none: its model must have levels=''")


class ForecasterState(NamedTuple):
    """The states of all blocks, and the sum ``[B, C]`` of the rows read, in float32 or wider."""

    blocks: tuple[Any, ...]
    total: Tensor


class EncodedSeries(NamedTuple):
    """``hidden [B, T, D]`` after the last norm, the mean ``[B, T, C]`` of the rows up to each, and the state."""

    hidden: Tensor
    mean: Tensor
    state: ForecasterState


class Told(NamedTuple):
    """``values [B, H, C]`` that follow the last row, and the state after it."""

    values: Tensor
    state: ForecasterState


class Forecaster(nn.Module):
    """A linear embedding of the variables, blocks of the library, and a linear head over the last position.

    Nothing in a state is changed in place, so keeping a reference is a fork. The head starts at 0: a new model tells
    the mean.

    Args:
        config: the model.

    Example:
        >>> model = Forecaster(ForecasterConfig(variables=7, horizon=96))
        >>> told = model(torch.randn(2, 50, 7))
        >>> model(torch.randn(2, 46, 7), told.state).values.shape
        torch.Size([2, 96, 7])
    """

    def __init__(self, config: ForecasterConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.model.dim
        self.embedding = nn.Linear(config.variables, dim)
        self.blocks = nn.ModuleList([build_block(config.model) for _ in range(config.model.depth)])
        self.norm = RMSNorm(dim)
        self.head = nn.Linear(dim, config.horizon * config.variables)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def init_state(self, batch: int) -> ForecasterState:
        """The state of ``batch`` series of which nothing has been read."""
        wide = torch.promote_types(self.head.weight.dtype, torch.float32)
        total = torch.zeros(batch, self.config.variables, dtype=wide, device=self.head.weight.device)
        return ForecasterState(tuple(block.init_state(batch) for block in self._blocks()), total)

    def position(self, state: ForecasterState) -> Tensor:
        """int64 ``[B]``: rows read of each series."""
        return self._blocks()[0].position(state.blocks[0])

    def encode(self, x: Tensor, state: ForecasterState | None = None, *, mask: Tensor | None = None) -> EncodedSeries:
        """Reads rows without telling anything; arguments and errors as in :meth:`forward`."""
        if x.dim() != 3 or x.shape[1] == 0 or x.shape[2] != self.config.variables:
            raise UserError(f"the input must be [batch, time >= 1, {self.config.variables}]; it is {list(x.shape)}")
        if state is None:
            state = self.init_state(x.shape[0])
        elif not isinstance(state, ForecasterState) or not self._fits(state):
            raise UserError("the state must be one of this model's own: pass the .state of an answer, or init_state")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != x.shape[:2]):
            raise UserError(f"the mask must be bool {list(x.shape[:2])}; it is {mask.dtype} {list(mask.shape)}")
        if len(state.total) != x.shape[0]:
            raise UserError(f"the state holds {len(state.total)} series and the input {x.shape[0]}; they must agree")
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        total = state.total[:, None] + torch.where(real[..., None], x, 0.0).to(state.total.dtype).cumsum(1)
        count = self.position(state)[:, None] + real.cumsum(1)
        mean = total / count.clamp_min(1)[..., None]
        y = self.embedding((x - mean).to(self.embedding.weight.dtype))
        after = []
        for block, before in zip(self._blocks(), state.blocks, strict=True):
            reading = block(y, before, mask=mask)
            y = reading.y
            after.append(reading.state)
        # A copy, or the state would keep the sums up to every row.
        return EncodedSeries(self.norm(y), mean, ForecasterState(tuple(after), total[:, -1].clone()))

    def tell(self, hidden: Tensor, mean: Tensor) -> Tensor:
        """What follows a position: ``[..., D], [..., C] -> [..., H, C]``."""
        return self.head(hidden).unflatten(-1, (self.config.horizon, self.config.variables)) + mean.unsqueeze(-2)

    def forward(self, x: Tensor, state: ForecasterState | None = None, *, mask: Tensor | None = None) -> Told:
        """Reads rows and tells those that follow the last one.

        Args:
            x: ``[B, T, C]``, finite where it is not padding.
            state: from :meth:`init_state` or an earlier answer; ``None`` starts afresh.
            mask: bool ``[B, T]``, False where a slot is padding, anywhere in a series of which some row is read.

        Raises:
            UserError: shapes that do not fit, or a series without a row.
        """
        read = self.encode(x, state, mask=mask)
        if mask is not None and not bool(mask.any(1).all()):
            raise UserError("a series of which no row is read has nothing behind it to tell: leave it out of the call")
        if mask is None:
            return Told(self.tell(read.hidden[:, -1], read.mean[:, -1]), read.state)
        series = torch.arange(len(x), device=x.device)
        last = x.shape[1] - 1 - mask.flip(1).int().argmax(1)
        return Told(self.tell(read.hidden[series, last], read.mean[series, last]), read.state)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Groups for AdamW; see `fastweights.models.groups`."""
        return parameter_groups(self, self.blocks, weight_decay)

    def _fits(self, state: ForecasterState) -> bool:
        return len(state.blocks) == len(self.blocks) and state.total.shape[1:] == (self.config.variables,)

    def _blocks(self) -> list[Any]:
        return list(self.blocks)
