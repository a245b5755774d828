"""The language model: embeddings, blocks, head, and a state that goes in and comes out."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastweights.core.layout import make_layout, pack, unpack
from fastweights.core.rule import beyond_defaults
from fastweights.core.types import Surprise
from fastweights.errors import UserError
from fastweights.layers.norm import RMSNorm
from fastweights.layers.stream import Plan, Reading, mapped, unpack_surprise
from fastweights.models.config import ModelConfig
from fastweights.models.groups import parameter_groups
from fastweights.models.hope import HopeState, Learner
from fastweights.models.titans import build_block, start_by_copying, start_by_counting

ModelState = tuple[Any, ...]
"""One state for each block; of a model with levels a `fastweights.models.hope.HopeState`."""


class Encoded(NamedTuple):
    """``hidden [B, T, D]`` after the last norm, the state, and one surprise per memory layer (empty unless asked).

    ``tapped [B, T, D]`` is the residual stream behind the block asked for, or ``None``.
    """

    hidden: Tensor
    state: ModelState
    surprise: tuple[Surprise, ...]
    tapped: Tensor | None = None


class Output(NamedTuple):
    """``logits [B, T, vocabulary]`` of the next token, the state, and one surprise per memory layer."""

    logits: Tensor
    state: ModelState
    surprise: tuple[Surprise, ...]


class LanguageModel(nn.Module):
    """A Titans language model.

    ``state`` is a tuple of block states (NamedTuples of tensors). Nothing in it is changed in place, so keeping a
    reference is a fork. Pass it on, detached (:func:`detach_state`), for truncated backpropagation across batches.

    Args:
        config: the model.
        recompute: trade time for memory in training: blocks are run again in the backward pass. Without effect in a
            model with levels, whose gradients are differentiated twice.
    """

    def __init__(self, config: ModelConfig, recompute: bool = False) -> None:
        super().__init__()
        self.config, self.recompute = config, recompute
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList([build_block(config) for _ in range(config.depth)])
        self.learner = Learner(config) if config.level_chunks else None
        self.norm = RMSNorm(config.dim)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        nn.init.normal_(self.embedding.weight, std=config.embedding_std)
        nn.init.normal_(self.head.weight, std=config.dim**-0.5)
        if config.start == "induction":
            start_by_copying(self._blocks())
            nn.init.normal_(self.head.weight, std=0.02)
        if config.start == "counting":
            start_by_counting(self._blocks())
        if config.tied:
            self.head.weight = self.embedding.weight

    def init_state(self, batch: int) -> ModelState:
        """The state of ``batch`` rows that have read nothing."""
        if self.learner is not None:
            return self.learner.init_state(self, batch)
        return tuple(block.init_state(batch) for block in self._blocks())

    def _blocks(self) -> list[Any]:
        return list(self.blocks)

    def position(self, state: ModelState) -> Tensor:
        """int64 ``[B]``: real tokens read of each row's document."""
        blocks = state.blocks if isinstance(state, HopeState) else state
        return self._blocks()[0].position(blocks[0])

    def encode(
        self,
        ids: Tensor,
        state: ModelState | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        surprise: bool = False,
        tap: int | None = None,
    ) -> Encoded:
        """Reads ``ids`` int64 ``[B, T]`` without computing logits.

        Arguments as in :meth:`forward`; ``tap`` also returns the residual stream behind block ``tap`` (from 0).
        """
        if ids.dim() != 2 or ids.shape[1] == 0:
            raise UserError(f"token ids must be [batch, time >= 1]; they are {list(ids.shape)}")
        if state is None:
            state = self.init_state(ids.shape[0])
        elif not self._fits(state):
            raise UserError("the state must be one of this model's own: pass the .state of an answer, or init_state")
        position = self.position(state)
        if position.shape[0] != ids.shape[0]:
            raise UserError(f"the state holds {position.shape[0]} rows and the input {ids.shape[0]}; they must agree")
        layout = make_layout(position, ids.shape[1], mask, cu_seqlens)
        plan, packed = Plan(layout), pack(layout, ids)
        if self.learner is not None and isinstance(state, HopeState):
            read = self.learner.read(self, packed, state, plan, surprise, tap)
            x, after, felt, tapped = read.x, cast(ModelState, read.state), read.felt, read.tapped
        else:
            self.prepare(plan)
            x, after, felt, tapped = self.through(self.embedding(packed), state, plan, surprise, tap)
        tapped = None if tapped is None else unpack(layout, tapped)
        return Encoded(unpack(layout, self.norm(x)), after, unpack_surprise(layout, felt), tapped)

    def _fits(self, state: Any) -> bool:
        """Whether a state is one of this model's."""
        if self.learner is not None:
            return isinstance(state, HopeState)
        return len(state) == self.config.depth and not hasattr(state, "_fields")

    def prepare(self, plan: Plan) -> None:
        """Cuts the grids that the blocks will ask the plan for."""
        self._blocks()[0].prepare(plan)

    def through(
        self, x: Tensor, state: tuple[Any, ...], plan: Plan, surprise: bool, tap: int | None
    ) -> tuple[Tensor, tuple[Any, ...], tuple[Surprise, ...], Tensor | None]:
        """Through all blocks, packed: ``x [B, T, D]`` behind them, their states, surprises, and the tapped stream."""
        after: list[Any] = []
        felt: tuple[Surprise, ...] = ()
        tapped = None
        for number, (block, before) in enumerate(zip(self._blocks(), state, strict=True)):
            reading = self._run(block, x, before, plan, surprise)
            x = reading.y
            after.append(reading.state)
            felt = felt + reading.surprise
            tapped = x if number == tap else tapped
        return x, tuple(after), felt, tapped

    def _run(self, block: Any, x: Tensor, state: Any, plan: Plan, surprise: bool) -> Reading[Any]:
        if not self.recompute or not torch.is_grad_enabled() or self.learner is not None:
            return block.mix(x, state, plan, surprise)
        return checkpoint(block.mix, x, state, plan, surprise, use_reentrant=False)

    def logits(self, hidden: Tensor) -> Tensor:
        """``[..., D] -> [..., vocabulary]``."""
        return self.head(hidden)

    def forward(
        self,
        ids: Tensor,
        state: ModelState | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        surprise: bool = False,
    ) -> Output:
        """Reads tokens and predicts the next ones.

        Args:
            ids: int64 ``[B, T]``.
            state: from :meth:`init_state` or an earlier call; ``None`` starts afresh.
            mask: bool ``[B, T]``, False where a slot is padding, anywhere in the row.
            cu_seqlens: borders of documents packed into one row (B = 1).
            surprise: also return the surprise streams.

        Raises:
            UserError: shapes that do not fit.
        """
        encoded = self.encode(ids, state, mask=mask, cu_seqlens=cu_seqlens, surprise=surprise)
        return Output(self.logits(encoded.hidden), encoded.state, encoded.surprise)

    def fingerprint(self) -> str:
        """SHA-256 over the configuration and every parameter: which model a memory belongs to.

        The same in every version of this library that computes the same from them.
        """
        digest = hashlib.sha256(json.dumps(beyond_defaults(self.config), sort_keys=True).encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Groups for AdamW; see `fastweights.models.groups`."""
        return parameter_groups(self, self.blocks, weight_decay)


def flatten_state(state: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a state by dotted name (``0.memory.dual.0``)."""
    if isinstance(state, Tensor):
        return {prefix: state}
    names = getattr(state, "_fields", None) or [str(i) for i in range(len(state))]
    flat: dict[str, Tensor] = {}
    for name, part in zip(names, state, strict=True):
        flat |= flatten_state(part, f"{prefix}.{name}" if prefix else name)
    return flat


_FAST_WEIGHTS = re.compile(r"(?:blocks\.)?(\d+)\.(?:(?:.*\.)?dual|offsets)\.\d+")


def fast_weights(state: ModelState) -> list[tuple[int, Tensor]]:
    """All that a state has learned, memories' weights and levels' offsets ``[B, ...]``, with the block's number."""
    found = ((_FAST_WEIGHTS.fullmatch(name), tensor) for name, tensor in flatten_state(state).items())
    return [(int(match[1]), tensor) for match, tensor in found if match]


def unflatten_state(like: Any, tensors: dict[str, Tensor], prefix: str = "") -> Any:
    """A state of the form of ``like`` with the tensors of :func:`flatten_state`."""
    if isinstance(like, Tensor):
        return tensors[prefix]
    names = getattr(like, "_fields", None) or [str(i) for i in range(len(like))]
    parts = [
        unflatten_state(part, tensors, f"{prefix}.{name}" if prefix else name)
        for name, part in zip(names, like, strict=True)
    ]
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)


def detach_state(state: Any) -> Any:
    """The same state without its history, for truncated backpropagation."""
    return mapped(Tensor.detach, state)
