"""The engine: ``init_state``, ``run`` and ``step`` for every rule, on the best exact tier.

Tiers: **dual** (any architecture, gates per head or map), **materialised** (gates per channel), **delta** (matrix
memory with gradients at the current weights), **reference** (anything, token by token).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastweights.core.delta import BLOCK, run_delta
from fastweights.core.dual import run_dual
from fastweights.core.gradient import Chunks, Memory, all_finite
from fastweights.core.layout import Grid, Layout, from_grid, make_grid, make_layout, to_grid
from fastweights.core.materialised import run_materialised
from fastweights.core.reference import run_reference
from fastweights.core.rule import Rule, Tier
from fastweights.core.types import Gates, MemoryState, Surprise, gate_width
from fastweights.errors import UserError


class Result(NamedTuple):
    """Answers ``[B, H, T, V]`` in the dtype of ``q``, the state after the call, and the surprise when asked for."""

    y: Tensor
    state: MemoryState
    surprise: Surprise | None


def init_state(rule: Rule, initial: tuple[Tensor, ...], batch: int) -> MemoryState:
    """The state of ``batch`` rows that have read nothing: dual = ``initial``, momentum = 0.

    Args:
        rule: the rule.
        initial: the memory's initial weights, ``[H, outputs, inputs]`` per map; gradients flow to them.
        batch: B.
    """
    dual = tuple(_wide(w).unsqueeze(0).repeat(batch, 1, 1, 1) for w in initial)
    momentum = tuple(torch.zeros_like(w) for w in dual) if rule.has_momentum else ()
    anchor = () if rule.online else tuple(w.clone() for w in dual)
    position = torch.zeros(batch, dtype=torch.int64, device=initial[0].device)
    return MemoryState(dual, momentum, anchor, position)


def grid_for(rule: Rule, layout: Layout) -> Grid:
    """The chunks a rule cuts a call into; compute it once per call and share it between layers of one rule."""
    if rule.tier == "delta":
        return make_grid(layout, BLOCK, blocks=True)
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
    grid: Grid | None = None,
    surprise: bool = False,
    tier: Tier | None = None,
) -> Result:
    """Reads T tokens: writes each to the memory and answers each query.

    Args:
        rule: the rule.
        initial: weights that a new document starts from, ``[H, outputs, inputs]`` per map.
        q: queries ``[B, H, T, K]``, packed as ``layout`` says.
        k: keys ``[B, H, T, K]``.
        v: values ``[B, H, T, V]``.
        gates: see :class:`~fastweights.core.types.Gates`.
        state: from :func:`init_state` or an earlier call.
        layout: where each token stands; by default T real tokens of one document per row.
        grid: :func:`grid_for` of the same rule and layout, where the caller has it already; not used where ``tier``
            cuts differently.
        surprise: also return the surprise of every token.
        tier: run on this tier instead of the rule's best (``"reference"`` is always possible).

    Returns:
        Answers, the new state, and the surprise or ``None``. In padding slots answers are unspecified but finite.
        Gradients flow to every input, once: a gradient of these gradients is refused on the dual and delta tiers.

    Raises:
        UserError: shapes that do not fit the rule, or a tier that would not compute it exactly.
    """
    if torch.is_autocast_enabled(q.device.type):
        with torch.autocast(q.device.type, enabled=False):
            return run(rule, initial, q, k, v, gates, state, layout, grid, surprise, tier)
    tier = tier or rule.tier
    if tier not in rule.tiers:
        raise UserError(f"this rule runs on the tiers {', '.join(rule.tiers)}, not on {tier!r}")
    layout = layout or make_layout(state.position, q.shape[2])
    gates = _check(rule, q, k, v, gates)
    given = q, k, v, gates
    dtype, wide = q.dtype, state.dual[0].dtype
    q, k, v = q.to(wide), k.to(wide), v.to(wide)
    gates = Gates(*[None if g is None else g.to(wide) for g in gates])  # type: ignore[arg-type]
    k, v, gates, rejected = _reject(k, v, gates)
    initial = tuple(_wide(w) for w in initial)
    if tier == "reference":
        y, after, felt = run_reference(rule, initial, q, k, v, gates, state, layout, _full(rejected, q))
        return Result(y.to(dtype), after, felt if surprise else None)
    if grid is None or (tier == "delta") != (rule.tier == "delta"):
        grid = make_grid(layout, BLOCK, blocks=True) if tier == "delta" else make_grid(layout, rule.chunk_size)
    names = [m.name for m in rule.maps(k.shape[-1], v.shape[-1])]
    batch, heads = q.shape[:2]
    flat = (
        {name: w.repeat(batch, 1, 1) for name, w in zip(names, initial, strict=True)} if grid.reset is not None else {}
    )
    programs = {"dual": run_dual, "materialised": run_materialised, "delta": run_delta}
    outcome = programs[tier](rule, _chunks(q, k, v, gates, rejected, grid), _flatten(names, state), flat, surprise)
    if outcome is None:
        return run(rule, initial, *given, state, layout, surprise=surprise, tier=rule.tiers[1])
    y = from_grid(grid, outcome.y.unflatten(1, (batch, heads)))
    after = _unflatten(outcome.memory, state, layout, batch, heads)
    if outcome.felt is None:
        return Result(y.to(dtype), after, None)
    loss, norm, overflown = (from_grid(grid, x.unflatten(1, (batch, heads))) for x in outcome.felt)
    return Result(y.to(dtype), after, _surprise(loss, norm, gates, _full(rejected, q) | overflown))


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
    later = Gates(*[None if g is None else g.unsqueeze(2) for g in gates])  # type: ignore[arg-type]
    result = run(rule, initial, q.unsqueeze(2), k.unsqueeze(2), v.unsqueeze(2), later, state)
    return result.y[:, :, 0], result.state


def read(rule: Rule, weights: tuple[Tensor, ...], q: Tensor) -> Tensor:
    """What fixed weights answer: reading without learning.

    Args:
        rule: the rule.
        weights: ``[B, H, outputs, inputs]`` per map, such as a state's ``dual``.
        q: queries ``[B, H, T, K]``.

    Returns:
        ``[B, H, T, V]`` in the dtype of ``q``.
    """
    if torch.is_autocast_enabled(q.device.type):
        with torch.autocast(q.device.type, enabled=False):
            return read(rule, weights, q)
    names = [m.name for m in rule.maps(q.shape[-1], weights[-1].shape[-2])]
    table = dict(zip(names, weights, strict=True))
    y, _ = rule.architecture.forward(lambda name, x: x @ table[name].transpose(-1, -2), q.to(weights[0].dtype))
    return y.to(q.dtype)


def _wide(w: Tensor) -> Tensor:
    """Memories are kept in float32 or wider, whatever the model's dtype."""
    return w.to(torch.promote_types(w.dtype, torch.float32))


def _check(rule: Rule, q: Tensor, k: Tensor, v: Tensor, gates: Gates) -> Gates:
    if q.shape != k.shape or q.shape[:3] != v.shape[:3] or q.dim() != 4:
        raise UserError(
            f"queries and keys must be [B, H, T, K] and values [B, H, T, V]; they are {tuple(q.shape)}, "
            f"{tuple(k.shape)} and {tuple(v.shape)}"
        )
    if q.shape[2] == 0:
        raise UserError("a call must bring at least one token slot")
    maps = rule.maps(k.shape[-1], v.shape[-1])
    checked: list[Tensor | None] = []
    for name, gate, scope in zip(Gates._fields, gates, rule.scopes, strict=True):
        if (gate is None) != (scope is None):
            raise UserError(f"this rule {'has no' if scope is None else 'needs a'} gate {name!r}")
        if gate is None or scope is None:
            checked.append(None)
            continue
        gate = gate.unsqueeze(-1) if gate.dim() == 3 else gate
        want = (*q.shape[:3], gate_width(scope, maps))
        if tuple(gate.shape) != want:
            raise UserError(f"gate {name!r} of scope {scope!r} must have shape {list(want)}, not {list(gate.shape)}")
        checked.append(gate)
    return Gates(*checked)  # type: ignore[arg-type]


def _reject(k: Tensor, v: Tensor, gates: Gates) -> tuple[Tensor, Tensor, Gates, Tensor | None]:
    """Masks tokens whose gates, or squared lengths of key or value, are not finite: that row, head and token alone.

    It is the squared length that counts, because inner gradients are products of such lengths.
    """
    given = [x.detach() for x in gates if x is not None]
    lengths = [torch.linalg.vector_norm(x.detach()).square() for x in (k, v)]
    if not torch.compiler.is_compiling() and all_finite([*lengths, *given]):
        return k, v, gates, None
    squares = [x.detach().square().sum(-1, keepdim=True) for x in (k, v)]
    finite = torch.stack([torch.isfinite(x).all(-1) for x in (*squares, *given)]).all(0)
    keep = finite.unsqueeze(-1)
    lr, momentum, retain = (
        None if g is None else torch.where(keep, g, fill) for g, fill in zip(gates, (0.0, 1.0, 1.0), strict=True)
    )
    assert lr is not None
    return torch.where(keep, k, 0.0), torch.where(keep, v, 0.0), Gates(lr, momentum, retain), ~finite


def _full(rejected: Tensor | None, q: Tensor) -> Tensor:
    return torch.zeros(q.shape[:3], dtype=torch.bool, device=q.device) if rejected is None else rejected


def _chunks(q: Tensor, k: Tensor, v: Tensor, gates: Gates, rejected: Tensor | None, grid: Grid) -> Chunks:
    heads = q.shape[1]

    def cut(x: Tensor) -> Tensor:
        return to_grid(grid, x).flatten(1, 2).contiguous()

    def rows(x: Tensor) -> Tensor:
        return x.transpose(0, 1).repeat_interleave(heads, 1)

    real = None if grid.slot is None else rows(grid.slot)
    if rejected is not None:
        alive = cut(~rejected)
        real = alive if real is None else real & alive
    lr, momentum, retain = (None if g is None else cut(g) for g in gates)
    assert lr is not None
    reset = None if grid.reset is None else rows(grid.reset)
    fresh = None if grid.aligned else rows(grid.fresh)
    return Chunks(cut(q), cut(k), cut(v), lr, momentum, retain, real, fresh, reset)


def _flatten(names: list[str], state: MemoryState) -> Memory:
    dual, momentum, anchor = (
        dict(zip(names, [w.flatten(0, 1) for w in part], strict=True)) if part else {}
        for part in (state.dual, state.momentum, state.anchor)
    )
    return Memory(dual, momentum, anchor or dual)


def _unflatten(memory: Memory, state: MemoryState, layout: Layout, batch: int, heads: int) -> MemoryState:
    dual, momentum, anchor = (tuple(w.unflatten(0, (batch, heads)) for w in part.values()) for part in memory)
    return MemoryState(dual, momentum, anchor if state.anchor else (), layout.end.clone(), state.extra)


def _surprise(loss: Tensor, norm: Tensor, gates: Gates, rejected: Tensor) -> Surprise:
    momentum = torch.zeros_like(loss) if gates.momentum is None else gates.momentum.mean(-1)
    retain = torch.ones_like(loss) if gates.retain is None else gates.retain.mean(-1)
    return Surprise(loss, norm, gates.lr.mean(-1), momentum, retain, rejected)
