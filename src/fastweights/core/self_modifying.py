"""Memories that make what they learn from: keys, values, gates and targets (Nested Learning eqs. 86-91).

Several memories of one architecture stand side by side as heads: *generators*, whose answers to a token become its key,
its value and its gates, and the memory proper, the last, which answers queries. Every one of them learns the token's
key, and as its target what it answers itself to the token's value. All of this is made with the weights of the chunk's
first token; within the chunk the rule then goes on exactly, token by token, on the dual tier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from fastweights.core.checks import wide
from fastweights.core.dual import run_dual
from fastweights.core.engine import Result, init_state, mean_gates
from fastweights.core.gradient import Chunks, Memory, Outcome, Slow, Sources, all_finite
from fastweights.core.layout import Grid, Layout, from_grid, to_grid
from fastweights.core.network import plain
from fastweights.core.one_token import one_token_applies, write_token
from fastweights.core.opening import Opening, open_chunk
from fastweights.core.rule import Rule
from fastweights.core.types import Gates, MemoryState, Surprise
from fastweights.errors import UserError


class Made(NamedTuple):
    """What the generators made of the tokens of a chunk.

    ``k`` and ``v`` ``[B, H, W, d]``, gates ``[B, H, W, 1]`` (scope ``head``), queries ``q [B, H, W, d]``.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Gates


Maker = Callable[[Tensor, Tensor, Tensor], Made]
"""From a chunk's queries and inputs ``[B, H, W, d]`` and the generators' answers ``[B, generators, H, W, d]``."""


class SelfModifying(NamedTuple):
    """A rule for several memories.

    Attributes:
        rule: of every memory; its chunk size is that of the memory proper.
        generator_chunk: tokens that share one anchor of the generators.
        moving: for each generator and, last, the memory: whether it learns in context, or stays as it began.
    """

    rule: Rule
    generator_chunk: int
    moving: tuple[bool, ...]

    @property
    def carried(self) -> Rule:
        """The rule whose states these are: it keeps anchors where any of the memories needs one."""
        return replace(self.rule, chunk_size=max(self.rule.chunk_size, self.generator_chunk))

    @property
    def least_chunk(self) -> int:
        """A call is cut where any of the memories may take a new anchor."""
        return min(self.rule.chunk_size, self.generator_chunk)


def require_self_modifying(memories: SelfModifying) -> None:
    """Refuses rules that cannot make their own targets, with the reason.

    Raises:
        UserError: always where a rule is no plain step with one key a token, or chunk sizes do not divide each other.
    """
    rule, other = memories.rule, memories.generator_chunk
    if type(other) is not int or other < 1 or (rule.chunk_size % other and other % rule.chunk_size):
        raise UserError(
            f"the generators' chunk size {other!r} and the memory's {rule.chunk_size} must divide one another"
        )
    plain_step = "dual" in rule.tiers and not (rule.decay_before_grad or rule.retention.link_at or rule.settles)
    one_pair = rule.values == 1 and rule.bias.window == 1 and rule.bias.threshold_scope is None
    if not plain_step or not one_pair or rule.constants(8, 8):
        raise UserError(
            "memories that make their own targets need a rule of plain steps on the weights themselves: no link, no "
            "window, no threshold, no decay before the gradient, one key a token, gradient descent (also delta) with "
            "or without momentum"
        )
    if not rule.normalise_qk or rule.fixed:
        raise UserError(
            "memories that make their own targets have keys of unit length and gates of their own making: normalise_qk "
            "must be True, and no gate fixed"
        )
    affine = rule.bias.affine()
    if not rule.algorithm.erases and affine is not None and affine.gain > affine.slope:
        raise UserError(
            "a memory that makes its own targets grows without bound where nothing is erased: use a squared error, or "
            "delta gradient descent"
        )
    if {scope for scope in rule.scopes if scope is not None} != {"head"}:
        raise UserError("memories that make their own gates make one number a head: every gate's scope must be 'head'")


def begin(memories: SelfModifying, initial: tuple[Tensor, ...], batch: int) -> MemoryState:
    """The state of ``batch`` rows that have read nothing; ``initial [memories x H, outputs, inputs]`` per map."""
    return init_state(memories.carried, initial, batch)


def run_self_modifying(
    memories: SelfModifying,
    initial: tuple[Tensor, ...],
    q: Tensor,
    u: Tensor,
    make: Maker,
    state: MemoryState,
    layout: Layout,
    grid: Grid,
    surprise: bool,
) -> Result:
    """Reads T tokens.

    Args:
        memories: the rule.
        initial: weights that a new document starts from, ``[memories x H, outputs, inputs]`` per map, the memories in
            the order of ``moving``.
        q: queries ``[B, H, T, d]``, packed as ``layout`` says.
        u: what the generators are asked with, ``[B, H, T, d]``.
        make: turns answers into keys, values and gates.
        state: from :func:`begin` or an earlier call.
        layout: where each token stands.
        grid: of the layout, for chunks of :attr:`SelfModifying.least_chunk`.
        surprise: also return that of the memory proper.

    Returns:
        Answers of the memory proper in the dtype of ``q``, the state and the surprise. Cost: one dual chunk of every
        memory for each chunk, one after the other, and two more reads of it.
    """
    if torch.is_autocast_enabled(q.device.type):
        with torch.autocast(q.device.type, enabled=False):
            return run_self_modifying(memories, initial, q, u, make, state, layout, grid, surprise)
    run = _Run(memories, initial, state, grid, u)
    answers: list[Tensor] = []
    felt: list[Surprise] = []
    dtype = run.dtype
    for n, (q_n, u_n) in enumerate(zip(to_grid(grid, q.to(dtype)), to_grid(grid, u.to(dtype)), strict=True)):
        run.open(n)
        made = make(q_n, u_n, run.ask(u_n, slice(0, -1)))
        y_n, felt_n = run.write(n, made, surprise)
        answers.append(y_n)
        felt += felt_n
    y = from_grid(grid, torch.stack(answers))
    whole = Surprise(*[from_grid(grid, torch.stack(x)) for x in zip(*felt, strict=True)]) if felt else None
    dual, momentum, anchor = (tuple(w.unflatten(0, run.groups) for w in part.values()) for part in run.memory)
    dual, momentum, anchor = (tuple(w.flatten(1, 2) for w in part) for part in (dual, momentum, anchor))
    after = MemoryState(dual, momentum, anchor if state.anchor else (), layout.end.clone())
    return Result(y.to(q.dtype), after, whole)


class _Run:
    """A call in the making: the memories' weights, and what stays the same from chunk to chunk."""

    def __init__(
        self, memories: SelfModifying, initial: tuple[Tensor, ...], state: MemoryState, grid: Grid, u: Tensor
    ) -> None:
        batch, heads, _, width = u.shape
        self.rule, self.grid = memories.carried, grid
        self.groups = batch, len(memories.moving), heads
        self.chunks = memories.generator_chunk, memories.rule.chunk_size
        given = [wide(w) for w in initial]
        self.dtype = given[0].dtype
        self.names = [m.name for m in self.rule.maps(width, width)]
        parts = (state.dual, state.momentum, state.anchor or state.dual)
        self.memory = Memory(
            *[dict(zip(self.names, [w.flatten(0, 1) for w in part], strict=bool(part))) for part in parts]
        )
        first = dict(zip(self.names, given, strict=True))
        documents = grid.reset is not None
        self.slow = Slow({name: w.repeat(batch, 1, 1) for name, w in first.items()} if documents else {}, {})
        moving = torch.tensor(memories.moving, device=u.device).view(1, -1, 1, 1, 1)
        self.moving = None if all(memories.moving) else moving
        self.one_token = one_token_applies(self.rule)

    def spread(self, x: Tensor) -> Tensor:
        """``[B, H or 1, ...]`` to every memory's group, ``[G, ...]``."""
        batch, count, heads = self.groups
        return x.unsqueeze(1).expand(batch, count, heads, *x.shape[2:]).flatten(0, 2)

    def last(self, x: Tensor) -> Tensor:
        """Of ``[1, G, ...]`` what is the memory's own, ``[1, B, H, ...]``."""
        return x.unflatten(1, self.groups)[:, :, -1]

    def open(self, n: int) -> None:
        """Chunk n: documents begin, and those memories take a new anchor whose own chunk begins."""
        grid, rule = self.grid, self.rule
        reset = None if grid.reset is None else self.spread(grid.reset[:, n, None])
        fresh = None
        if not rule.online:
            start, opens = grid.start[:, n, None], grid.fresh[:, n, None]
            own = [(opens & (start % size == 0)) for size in self.chunks]
            _, count, heads = self.groups
            fresh = torch.cat([own[0].expand(-1, count - 1), own[1]], 1)
            fresh = fresh.unsqueeze(-1).expand(-1, -1, heads).flatten()
        self.memory = open_chunk(
            rule, self.memory, self.slow, Opening(fresh, reset, self.spread(grid.start[:, n, None]))
        )

    def ask(self, x: Tensor, part: slice) -> Tensor:
        """What some of the memories answer to ``x [B, H, W, d]`` with their anchors: ``[B, memories, H, W, d]``."""
        anchors = {name: w.unflatten(0, self.groups)[:, part] for name, w in self.memory.anchor.items()}
        asked = x.unsqueeze(1).expand(-1, len(range(self.groups[1])[part]), -1, -1, -1)
        return self.rule.architecture.forward(plain(anchors, {}, self.rule.architecture.elementwise), asked)[0]

    def write(self, n: int, made: Made, surprise: bool) -> tuple[Tensor, list[Surprise]]:
        """Writes chunk n: what the memory proper answers ``[B, H, W, d]``, and what it felt if that is asked for."""
        targets = self.ask(made.v, slice(None))
        made, targets, sound = _sound(made, targets)
        slot = None if self.grid.slot is None else self.grid.slot[:, n, None]
        real = slot if sound is None else sound if slot is None else sound & slot
        real = None if real is None else self.spread(real)
        lr, momentum, retain, *_ = (None if g is None else self.spread(g) for g in made.gates)
        assert lr is not None
        if self.moving is not None:
            lr = torch.where(self.moving, lr.unflatten(0, self.groups), 0.0).flatten(0, 2)
            if retain is not None:
                retain = torch.where(self.moving, retain.unflatten(0, self.groups), 1.0).flatten(0, 2)
        gates, sources = Gates(lr, momentum, retain), Sources(self.spread(made.k), targets.flatten(0, 2), None)
        if self.one_token and not surprise and not torch.compiler.is_compiling():
            after = write_token(self.rule, self.memory, self.slow, sources, gates, real)
            if after is not None:
                self.memory = after
                return self.ask(made.q, slice(-1, None))[:, 0], []
        outcome = self.write_chunk(n, made.q, sources, gates, real, surprise)
        self.memory = outcome.memory
        y = self.last(outcome.y)[0]
        if outcome.felt is None:
            return y, []
        loss, norm, rejected = (self.last(x)[0] for x in outcome.felt)
        rejected = rejected if sound is None else rejected | ~sound
        return y, [Surprise(loss, norm, *mean_gates(made.gates, loss), rejected)]

    def write_chunk(
        self, n: int, q: Tensor, sources: Sources, gates: Gates, real: Tensor | None, surprise: bool
    ) -> Outcome:
        """Chunk n on the dual tier."""
        q = self.spread(q)
        none = None if self.rule.online else torch.zeros(len(q), dtype=torch.bool, device=q.device)
        given = q, sources.k, sources.v, gates.lr, gates.momentum, gates.retain
        rest = None, None, real, none, None, self.spread(self.grid.start[:, n, None])
        chunk = Chunks(*[None if x is None else x.unsqueeze(0) for x in (*given, *rest)])  # type: ignore[arg-type]
        return run_dual(self.rule, chunk, self.memory, self.slow, surprise)


def _sound(made: Made, targets: Tensor) -> tuple[Made, Tensor, Tensor | None]:
    """Takes out tokens whose key, target or gate is not finite: bool ``[B, H, W]``, ``None`` where all are sound."""
    given = [g for g in made.gates if g is not None]
    if not torch.compiler.is_compiling() and all_finite([made.k.square(), targets.square(), *given]):
        return made, targets, None
    squares = made.k.square().sum(-1), *targets.square().sum(-1).unbind(1), *[g[..., 0] for g in given]
    sound = torch.stack([torch.isfinite(x) for x in squares]).all(0)
    keep = sound.unsqueeze(-1)
    gates = Gates(*[None if g is None else torch.where(keep, g, 0.0) for g in made.gates])
    kept = made._replace(k=torch.where(keep, made.k, 0.0), gates=gates)
    return kept, torch.where(keep.unsqueeze(1), targets, 0.0), sound
