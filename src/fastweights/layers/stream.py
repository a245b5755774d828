"""What every layer that reads a stream shares: state in, state out, padding and documents handled in one place."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from fastweights.core.engine import Grids, grid_for
from fastweights.core.layout import Grid, Layout, from_grid, make_grid, make_layout, pack, to_grid, unpack
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
        self._grids: dict[Rule, Grids] = {}
        self._pieces: dict[int, Pieces] = {}
        self._chunks: dict[int, Grid] = {}

    def for_rule(self, rule: Rule) -> Grids:
        """The chunks of a rule."""
        if rule not in self._grids:
            self._grids[rule] = grid_for(rule, self.layout)
        return self._grids[rule]

    def grid(self, size: int) -> Grid:
        """The chunks of ``size`` positions."""
        if size not in self._chunks:
            self._chunks[size] = make_grid(self.layout, size)
        return self._chunks[size]

    def pieces(self, size: int) -> Pieces:
        """The parts of the call that lie in each row's next segments of ``size`` positions."""
        if size not in self._pieces:
            self._pieces[size] = cut_pieces(self.layout, size)
        return self._pieces[size]


class Piece(NamedTuple):
    """The tokens ``[B, W]`` of a call that lie in one segment of each row; rows may stand at different segments.

    Attributes:
        plan: layout and grids of these tokens alone.
        slots: int64 ``[B, W]``, place of each token in its segment.
        fresh: bool ``[B]``, the segment begins with this piece.
        begins: bool ``[B]``, so does a new document, or ``None`` when none does.
        opens: some row is fresh.
    """

    plan: Plan
    slots: Tensor
    fresh: Tensor
    begins: Tensor | None
    opens: bool


class Pieces(NamedTuple):
    """A call cut into pieces, and the grid that cuts it."""

    grid: Grid
    parts: tuple[Piece, ...]

    def cut(self, x: Tensor) -> tuple[Tensor, ...]:
        """``[B, H, T, ...]`` (packed) to one ``[B, H, W, ...]`` for each piece; slots without a token hold zeros."""
        return to_grid(self.grid, x).unbind(0)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of :meth:`cut` (padding slots: unspecified)."""
        return from_grid(self.grid, torch.stack(list(parts)))


def cut_pieces(layout: Layout, size: int) -> Pieces:
    """Cuts a call where segments of ``size`` positions begin; every piece gets a layout of its own."""
    grid = make_grid(layout, size)
    parts = []
    end = layout.end
    for n, here in enumerate(to_grid(grid, layout.position.unsqueeze(1))[:, :, 0]):
        real = None if grid.slot is None or bool(grid.slot[:, n].all()) else grid.slot[:, n]
        length = torch.full_like(end, grid.width) if real is None else real.sum(1)
        last = here.gather(1, (length - 1).clamp_min(0)[:, None])[:, 0]
        end = torch.where(length > 0, last + 1, end)
        begins = None if grid.reset is None else grid.reset[:, n]
        reset = None
        if begins is not None and bool(begins.any()):
            reset = torch.zeros_like(here, dtype=torch.bool)
            reset[:, 0] = begins
        plan = Plan(Layout(here, length, real, reset, None, None, None, end))
        fresh = grid.fresh[:, n]
        parts.append(Piece(plan, here % size, fresh, None if reset is None else begins, bool(fresh.any())))
    return Pieces(grid, tuple(parts))


class StreamLayer(nn.Module, Generic[State]):
    """A layer over ``[B, T, D]`` that carries a state from call to call.

    Subclasses work on packed streams (``mix``); ``forward`` is the public door, which takes padding masks and document
    borders. States are NamedTuples of tensors and are never changed in place.

    Attributes:
        dim: D.
        grows: the state grows with the document.
    """

    dim: int
    grows: bool = False
    _kind: type | None = None

    @abstractmethod
    def init_state(self, batch: int) -> State:
        """The state of ``batch`` rows that have read nothing."""

    @abstractmethod
    def position(self, state: State) -> Tensor:
        """int64 ``[B]``: real tokens read of each row's document."""

    def prepare(self, plan: Plan) -> None:
        """Cuts the grids that :meth:`mix` will ask the plan for: ``mix`` can then be compiled as one graph."""

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
        elif not self._fits(state):
            what = "a whole answer: pass its .state" if isinstance(state, Reading) else f"a {type(state).__name__}"
            raise UserError(f"the state must be one of this layer's own, from init_state or a reading; it is {what}")
        position = self.position(state)
        if position.shape[0] != x.shape[0]:
            raise UserError(f"the state holds {position.shape[0]} rows and the input {x.shape[0]}; they must agree")
        layout = make_layout(position, x.shape[1], mask, cu_seqlens)
        plan = Plan(layout)
        self.prepare(plan)
        reading = self.mix(pack(layout, x), state, plan, surprise)
        return Reading(unpack(layout, reading.y), reading.state, unpack_surprise(layout, reading.surprise))

    def _fits(self, state: object) -> bool:
        """Whether a state is of the kind that this layer makes; a tensor has no kind of its own."""
        if self._kind is None:
            self._kind = type(self.init_state(1))
        return isinstance(state, self._kind)


def unpack_surprise(layout: Layout, felt: tuple[Surprise, ...]) -> tuple[Surprise, ...]:
    """Moves surprise streams ``[B, H, T]`` from packed order to array order; padding slots hold 0."""
    if layout.present is None:
        return felt
    return tuple(Surprise(*[unpack(layout, x.transpose(1, 2)).transpose(1, 2) for x in one]) for one in felt)


def checked(condition: bool, message: str) -> None:
    """Raises :class:`UserError` with the message unless the condition holds."""
    if not condition:
        raise UserError(message)


def mapped(function: Callable[..., Tensor], first: Any, *others: Any) -> Any:
    """A state whose tensors are the function's of those at the same place in the given ones."""
    if isinstance(first, Tensor):
        return function(first, *others)
    parts = [mapped(function, *one) for one in zip(first, *others, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)


def chosen(where: Tensor, new: Any, old: Any) -> Any:
    """The state ``new`` in the rows where ``where [B]`` is true; memories that grow are filled up with zeros."""

    def choose(a: Tensor, b: Tensor) -> Tensor:
        if a.dim() > 2 and a.shape[2] != b.shape[2]:
            longest = max(a.shape[2], b.shape[2])
            a, b = (torch.cat([x, x.new_zeros(*x.shape[:2], longest - x.shape[2], x.shape[3])], 2) for x in (a, b))
        return torch.where(where.reshape(-1, *[1] * (a.dim() - 1)), a, b)

    return mapped(choose, new, old)
