"""The engine: ``init_state``, ``run``, ``step`` and ``read`` for every rule, on the best exact tier.

Tiers: **dual** (any architecture, gates per head or map), **materialised** (gates per channel, links at every token),
**delta** (matrix memory with gradients at the current weights), **least squares** and **attention** (memories that
solve instead of stepping), **reference** (anything, token by token).
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from fastweights.core import hierarchy, softmax, steps
from fastweights.core.algorithm import Hierarchy
from fastweights.core.checks import Call, checked, rejecting, require_state, wide
from fastweights.core.delta import block, run_delta
from fastweights.core.dual import run_dual
from fastweights.core.gradient import Chunks, Memory, Outcome, Slow
from fastweights.core.layout import Grid, Layout, from_grid, make_grid, make_layout, to_grid
from fastweights.core.least_squares import run_least_squares, solve_query
from fastweights.core.materialised import run_materialised
from fastweights.core.network import plain
from fastweights.core.opening import Opening, link, open_chunk
from fastweights.core.reference import run_reference
from fastweights.core.rule import ANY_SIZE, Rule, Tier
from fastweights.core.types import Gates, MemoryState, Surprise
from fastweights.core.window import band, empty_tail, extend, new_tail, sources
from fastweights.errors import UserError

_PROGRAMS = {
    "dual": run_dual,
    "materialised": run_materialised,
    "delta": run_delta,
    "least squares": run_least_squares,
}


Grids = Grid | tuple[Any, ...]
"""The chunks of a call; of every memory of a hierarchy."""


class Result(NamedTuple):
    """Answers ``[B, H, T, V]`` in the dtype of ``q``, the state after the call, and the surprise when asked for."""

    y: Tensor
    state: MemoryState
    surprise: Surprise | None


def init_state(
    rule: Rule, initial: tuple[Tensor, ...], batch: int, sizes: tuple[int, int] | None = None
) -> MemoryState:
    """The state of ``batch`` rows that have read nothing: dual = ``initial``, momentum = 0.

    Args:
        rule: the rule.
        initial: the memory's initial weights, ``[H, outputs, inputs]`` per map, then its constants ``[H, 1, n]``;
            gradients flow to them.
        batch: B.
        sizes: K and V; needed by rules that keep tokens (an Omega window, softmax attention).

    Raises:
        UserError: the rule keeps tokens and ``sizes`` is missing.
    """
    if isinstance(rule.algorithm, Hierarchy):
        return hierarchy.init_state(rule, initial, batch, init_state)
    given = tuple(wide(w) for w in initial)
    position = torch.zeros(batch, dtype=torch.int64, device=given[0].device)
    if (rule.grows or rule.bias.importance_scope is not None) and sizes is None:
        raise UserError("this rule keeps tokens in its state: init_state needs sizes=(K, V)")
    if rule.grows:
        return softmax.init_state(given[0], position, cast(tuple[int, int], sizes))
    own = given[: len(given) - _constant_count(rule)]
    dual = tuple(rule.retention.begin(w).unsqueeze(0).repeat(batch, 1, 1, 1) for w in own)
    momentum = tuple(torch.zeros_like(w) for w in dual) if rule.has_momentum else ()
    anchor = tuple(rule.retention.link(w) if rule.retention.link_at else w.clone() for w in dual)
    extra = () if sizes is None else empty_tail(rule, batch, given[0].shape[0], sizes, given[0])
    return MemoryState(dual, momentum, anchor if rule.keeps_anchor else (), position, extra)


def grid_for(rule: Rule, layout: Layout) -> Grids:
    """The chunks a rule cuts a call into; compute it once per call and share it between layers of one rule."""
    if rule.algorithm.steps > 1:
        return grid_for(steps.one_step(rule), steps.stretched(layout, rule.algorithm.steps))
    if isinstance(rule.algorithm, Hierarchy):
        return tuple(grid_for(part.rule, layout) for part in hierarchy.parts(rule))
    return _grid(rule, layout, rule.tiers[0])


def _grid(rule: Rule, layout: Layout, tier: Tier) -> Grid:
    if tier in ("delta", "least squares"):
        return make_grid(layout, block(rule), blocks=True)
    return make_grid(layout, rule.chunk_size)


def run(
    rule: Rule,
    initial: tuple[Tensor, ...],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    state: MemoryState,
    layout: Layout | None = None,
    grid: Grids | None = None,
    surprise: bool = False,
    tier: Tier | None = None,
) -> Result:
    """Reads T tokens: writes each to the memory and answers each query.

    Args:
        rule: the rule.
        initial: weights that a new document starts from and the rule's constants, as in :func:`init_state`.
        q: queries ``[B, H, T, K]``, packed as ``layout`` says.
        k: keys ``[B, H, T, K]``; ``rule.keys`` of them side by side where a token brings several.
        v: values ``[B, H, T, V]``; ``rule.values`` of them side by side.
        gates: see :class:`~fastweights.core.types.Gates`.
        state: from :func:`init_state` or an earlier call.
        layout: where each token stands; by default T real tokens of one document per row.
        grid: :func:`grid_for` of the same rule and layout, where the caller has it already; not used where ``tier``
            cuts differently.
        surprise: also return the surprise of every token.
        tier: run on this tier instead of the rule's best (``"reference"`` is always possible).

    Returns:
        Answers, the new state, and the surprise or ``None``. In padding slots answers are unspecified but finite.
        Gradients flow to every input, once: for gradients of these gradients, see
        :func:`~fastweights.core.second_order.second_order`.

    Raises:
        UserError: shapes that do not fit the rule, or a tier that would not compute it exactly.
    """
    if torch.is_autocast_enabled(q.device.type):
        with torch.autocast(q.device.type, enabled=False):
            return run(rule, initial, q, k, v, gates, state, layout, grid, surprise, tier)
    chosen = tier or rule.tiers[0]
    if chosen not in rule.tiers:
        raise UserError(f"this rule runs on the tiers {', '.join(rule.tiers)}, not on {chosen!r}")
    require_state(state, gates)
    layout = layout or make_layout(state.position, q.shape[2])
    dtype = q.dtype
    call = rejecting(checked(Call(rule, initial, q, k, v, gates, state, layout, surprise, chosen)))
    result = _dispatch(call, grid if chosen == rule.tiers[0] else None)
    felt = result.surprise
    if felt is not None and call.rejected is not None:
        felt = felt._replace(rejected=felt.rejected | call.rejected)
    return Result(result.y.to(dtype), result.state, felt if surprise else None)


def _dispatch(call: Call, grid: Grids | None) -> Result:
    """Runs a call that has been checked; memories made of several dispatch calls of their parts."""
    if call.rule.algorithm.steps > 1:
        return Result(*steps.run_steps(call, _dispatch, grid))
    if isinstance(call.rule.algorithm, Hierarchy):
        return Result(*hierarchy.run_hierarchy(call, _dispatch, grid))
    if call.tier == "attention":
        return Result(*softmax.run_softmax(call))
    if call.tier == "reference":
        return Result(*run_reference(call))
    return _run_chunks(call, grid if isinstance(grid, Grid) else _grid(call.rule, call.layout, call.tier))


def _run_chunks(call: Call, grid: Grid) -> Result:
    """Runs one of the tiers that work on a grid of chunks."""
    rule, state = call.rule, call.state
    names = [m.name for m in rule.maps(*call.sizes)]
    batch, heads = call.q.shape[:2]
    chunks, tail = _chunks(call, grid)
    outcome = _PROGRAMS[call.tier](rule, chunks, _flatten(names, state), _slow(call, grid, names), call.surprise)
    if outcome is None:
        return _dispatch(call._replace(tier=rule.tiers[1]), None)
    y = from_grid(grid, outcome.y.unflatten(1, (batch, heads)))
    after = _unflatten(outcome.memory, state, call.layout, batch, heads)._replace(extra=tail)
    if outcome.felt is None:
        return Result(y, after, None)
    return Result(y, after, _felt(call, grid, outcome))


def _felt(call: Call, grid: Grid, outcome: Outcome) -> Surprise:
    assert outcome.felt is not None
    batch, heads = call.q.shape[:2]
    loss, norm, overflown = (from_grid(grid, x.unflatten(1, (batch, heads))) for x in outcome.felt)
    return Surprise(loss, norm, *mean_gates(call.gates, loss), overflown)


def mean_gates(gates: Gates, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """lr, momentum and retain of a surprise, averaged over maps and channels."""
    found = zip(gates[:3], (1.0, 0.0, 1.0), strict=True)
    lr, momentum, retain = (torch.full_like(like, fill) if g is None else g.mean(-1) for g, fill in found)
    return lr, momentum, retain


def step(
    rule: Rule,
    initial: tuple[Tensor, ...],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    state: MemoryState,
) -> tuple[Tensor, MemoryState]:
    """One token per row: ``q``, ``k``, ``v`` ``[B, H, .]``, gates ``[B, H]`` or ``[B, H, n]``; else as :func:`run`."""
    later = Gates(*[None if g is None else g.unsqueeze(2) for g in gates])
    result = run(rule, initial, q.unsqueeze(2), k.unsqueeze(2), v.unsqueeze(2), later, state)
    return result.y[:, :, 0], result.state


def weights_in_force(rule: Rule, initial: tuple[Tensor, ...], state: MemoryState) -> tuple[Tensor, ...]:
    """What answers a query before the next token: with :func:`read`, reading without learning.

    Returns:
        ``[B, H, outputs, inputs]`` per map, after links and whatever happens where a chunk opens; of softmax attention
        the kept keys, values and their number.
    """
    if rule.grows:
        return (*state.extra, state.position)
    if isinstance(rule.algorithm, Hierarchy):
        return hierarchy.weights_in_force(rule, initial, state, weights_in_force)
    names = [str(i) for i in range(len(state.dual))]
    batch, heads = state.dual[0].shape[:2]
    given = [wide(w) for w in initial[: len(names)]]
    first = {name: rule.retention.begin(w).repeat(batch, 1, 1) for name, w in zip(names, given, strict=True)}
    start = state.position.repeat_interleave(heads)
    opening = Opening(start % rule.chunk_size == 0, None, start)
    opened = open_chunk(rule, _flatten(names, state), Slow(first, {}), opening)
    found = opened.anchor if rule.read == "chunk" else link(rule, opened.dual)
    return tuple(w.unflatten(0, (batch, heads)) for w in found.values())


def read(rule: Rule, initial: tuple[Tensor, ...], weights: tuple[Tensor, ...], q: Tensor) -> Tensor:
    """What fixed weights answer: reading without learning.

    Args:
        rule: the rule.
        initial: as in :func:`init_state`, for the rule's constants.
        weights: from :func:`weights_in_force`.
        q: queries ``[B, H, T, K]``.

    Returns:
        ``[B, H, T, V]`` in the dtype of ``q``.
    """
    if torch.is_autocast_enabled(q.device.type):
        with torch.autocast(q.device.type, enabled=False):
            return read(rule, initial, weights, q)
    asked = q.to(wide(initial[0]).dtype)
    if rule.grows:
        return softmax.read(wide(initial[0]), weights, asked).to(q.dtype)
    if isinstance(rule.algorithm, Hierarchy):
        return hierarchy.read(rule, initial, weights, asked, read).to(q.dtype)
    count = _constant_count(rule)
    fixed = [wide(w) for w in initial[len(initial) - count :]]
    constants = dict(zip([m.name for m in rule.constants(ANY_SIZE, ANY_SIZE)], fixed, strict=True))
    names = [m.name for m in rule.maps(ANY_SIZE, ANY_SIZE)]
    if rule.tiers[0] == "least squares":
        asked = solve_query(rule, weights[1], constants["ridge"], asked)
    linear = plain(dict(zip(names, weights, strict=True)), constants, rule.architecture.elementwise)
    return rule.architecture.forward(linear, asked)[0].to(q.dtype)


def _constant_count(rule: Rule) -> int:
    return len(rule.constants(ANY_SIZE, ANY_SIZE))


def _slow(call: Call, grid: Grid, names: list[str]) -> Slow:
    """What no token changes, per row and head."""
    rule, batch = call.rule, call.q.shape[0]
    constants = {name: w.repeat(batch, 1, 1) for name, w in call.constants().items()}
    if grid.reset is None and rule.retention.every is None and not rule.retention.projects:
        return Slow({}, constants)
    own = call.initial[: len(names)]
    first = {name: rule.retention.begin(w).repeat(batch, 1, 1) for name, w in zip(names, own, strict=True)}
    return Slow(first, constants)


def _chunks(call: Call, grid: Grid) -> tuple[Chunks, tuple[Tensor, ...]]:
    """The call on its grid, and the window of tokens that the state keeps."""
    rule, heads = call.rule, call.q.shape[1]

    def cut(x: Tensor) -> Tensor:
        return to_grid(grid, x).flatten(1, 2).contiguous()

    def rows(x: Tensor) -> Tensor:
        return x.transpose(0, 1).repeat_interleave(heads, 1)

    real = None if grid.slot is None else rows(grid.slot)
    if call.rejected is not None:
        alive = cut(~call.rejected)
        real = alive if real is None else real & alive
    lr, momentum, retain, threshold, importance = (None if g is None else cut(g) for g in call.gates)
    assert lr is not None
    reset = None if grid.reset is None else rows(grid.reset)
    fresh = None if grid.aligned else rows(grid.fresh)
    k, v, start = cut(call.k), cut(call.v), rows(grid.start)
    written, tail = None, call.state.extra
    if importance is not None:
        kept = rule.bias.window - 1
        tokens = [call.k, call.v, call.gates.importance]
        tokens += [] if call.gates.threshold is None else [call.gates.threshold]
        longer = extend(call.state.extra, cast(list[Tensor], tokens))
        own = [k, v, importance] + ([] if threshold is None else [threshold])
        k, v, counted, *rest = (sources(x, y, grid, kept) for x, y in zip(longer, own, strict=True))
        threshold = rest[0] if rest else None
        written = band(counted[..., 0], start, rule.bias.window)
        tail = new_tail(longer, call.layout, kept)
    chunks = Chunks(cut(call.q), k, v, lr, momentum, retain, threshold, written, real, fresh, reset, start)
    return chunks, tail


def _flatten(names: list[str], state: MemoryState) -> Memory:
    dual, momentum, anchor = (
        dict(zip(names, [w.flatten(0, 1) for w in part], strict=True)) if part else {}
        for part in (state.dual, state.momentum, state.anchor)
    )
    return Memory(dual, momentum, anchor or dual)


def _unflatten(memory: Memory, state: MemoryState, layout: Layout, batch: int, heads: int) -> MemoryState:
    dual, momentum, anchor = (tuple(w.unflatten(0, (batch, heads)) for w in part.values()) for part in memory)
    return MemoryState(dual, momentum, anchor if state.anchor else (), layout.end.clone(), state.extra)
