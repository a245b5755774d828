"""What every layer that reads a stream shares: state in, state out, padding and documents handled in one place."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor, nn

from fastweights.core.engine import grid_for
from fastweights.core.layout import Grid, Layout, make_grid, make_layout, pack, unpack
from fastweights.core.rule import Rule
from fastweights.core.types import Surprise
from fastweights.errors import UserError

State = TypeVar("State")


class Reading(NamedTuple, Generic[State]):
    """What a layer returns for one call.

    ``y`` ``[B, T, D]``; ``state`` after the call; ``surprise`` one entry per memory inside (empty unless asked for).
    """

    y: Tensor
    state: State
    surprise: tuple[Surprise, ...] = ()


class Plan:
    """The layout of one call and the grids cut from it, made once and shared by all layers of a model."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._grids: dict[Rule | int, Grid] = {}

    def for_rule(self, rule: Rule) -> Grid:
        """The chunks of a rule."""
        if rule not in self._grids:
            self._grids[rule] = grid_for(rule, self.layout)
        return self._grids[rule]

    def for_size(self, size: int) -> Grid:
        """Chunks of ``size`` positions."""
        if size not in self._grids:
            self._grids[size] = make_grid(self.layout, size)
        return self._grids[size]


class StreamLayer(nn.Module, Generic[State]):
    """A layer over ``[B, T, D]`` that carries a state from call to call.

    Subclasses work on packed streams (``mix``); ``forward`` is the public door, which takes padding masks and document
    borders. States are NamedTuples of tensors and are never changed in place.
    """

    dim: int

    @abstractmethod
    def init_state(self, batch: int) -> State:
        """The state of ``batch`` rows that have read nothing."""

    @abstractmethod
    def position(self, state: State) -> Tensor:
        """int64 ``[B]``: real tokens read of each row's document."""

    @abstractmethod
    def mix(self, x: Tensor, state: State, plan: Plan, surprise: bool) -> Reading[State]:
        """Reads a packed stream ``x [B, T, D]``; padding lies behind the real tokens and must leave no trace."""

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        surprise: bool = False,
    ) -> Reading[State]:
        """Reads ``x [B, T, D]`` from ``state`` (``None``: a fresh one).

        Args:
            x: any sequence of vectors, not only embedded tokens.
            state: from :meth:`init_state` or an earlier call.
            mask: bool ``[B, T]``, False where a slot is padding (left, right or interior); such slots answer 0.
            cu_seqlens: borders of documents packed into one row (B = 1), as in variable-length attention.
            surprise: also return the surprise stream.

        Raises:
            UserError: shapes that do not fit.
        """
        if x.dim() != 3 or x.shape[2] != self.dim or x.shape[1] == 0:
            raise UserError(f"the input must be [batch, time >= 1, {self.dim}]; it is {list(x.shape)}")
        if state is None:
            state = self.init_state(x.shape[0])
        position = self.position(state)
        if position.shape[0] != x.shape[0]:
            raise UserError(f"the state holds {position.shape[0]} rows and the input {x.shape[0]}; they must agree")
        layout = make_layout(position, x.shape[1], mask, cu_seqlens)
        reading = self.mix(pack(layout, x), state, Plan(layout), surprise)
        return reading._replace(y=unpack(layout, reading.y))


def checked(condition: bool, message: str) -> None:
    """Raises :class:`UserError` with the message unless the condition holds."""
    if not condition:
        raise UserError(message)


AnyLayer = StreamLayer[Any]
