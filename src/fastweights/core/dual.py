"""The dual tier: exact per-token weights of any architecture, without forming them.

With A and S the dual and momentum where the piece starts, ``x_i`` and ``delta_i`` the inputs and output gradients of a
map at the anchor (with ``decay_before_grad``, in pieces of one token, at the anchor decayed), and carry, inertia and
write from :mod:`fastweights.core.decay`, token t's weights applied to h are

    linear(h)_t = carry_t A h_t + inertia_t S h_t - sum_{i<=t} write_{t,i} <h_t, x_i> delta_i

exact for every architecture made of linear maps and per-token functions between them, and for every bias.
Cost per chunk and head: O(W^2 (inputs + outputs) + W inputs outputs) per map.
"""

from __future__ import annotations

from functools import partial
from itertools import cycle
from typing import NamedTuple

import torch
from torch import Tensor

from fastweights.core.architecture import Linear
from fastweights.core.compiled import compilable
from fastweights.core.decay import Coefficients, before, coefficients, first_slot, widened
from fastweights.core.fused import read_product, write_product
from fastweights.core.gradient import (
    Chunks,
    Felt,
    Gradients,
    Memory,
    Outcome,
    Slow,
    Sources,
    chunk_gradients,
    gather_felt,
    trust_first,
)
from fastweights.core.network import Weights, plain, total
from fastweights.core.opening import Opening, lag_token, open_chunk
from fastweights.core.rule import Rule

AT_ONCE = 4
"""Chunks compiled as one graph: calling a graph costs a fifth of a chunk's time, but a longer one compiles longer."""


def run_dual(rule: Rule, chunks: Chunks, memory: Memory, slow: Slow, surprise: bool) -> Outcome:
    """Runs a rule over its chunks; see :func:`fastweights.core.engine.run`."""
    inputs = _inputs(rule, chunks, len(memory.dual))
    return trust_first(partial(_run, rule, inputs, memory, slow, _writing(rule, chunks, surprise)), surprise)


class _Inputs(NamedTuple):
    """One chunk of :class:`Chunks`; ``plans``: coefficients of each map, or one for all."""

    q: Tensor
    sources: Sources
    plans: tuple[Coefficients, ...]
    opening: Opening


class _Step(NamedTuple):
    """A chunk's answers ``[G, W, V]``, and its :class:`Gradients`' ``felt`` and ``bound``."""

    y: Tensor
    felt: Felt | None
    bound: Tensor | None


def _inputs(rule: Rule, chunks: Chunks, maps: int) -> list[_Inputs]:
    plans = zip(*[_unbind(plan) for plan in _plans(rule, chunks, maps)], strict=True)
    return [
        _Inputs(q, sources, plan, opening)
        for q, sources, plan, opening in zip(
            chunks.q.unbind(0), unbind_sources(chunks), plans, unbind_openings(chunks), strict=True
        )
    ]


def unbind_sources(chunks: Chunks) -> list[Sources]:
    """The source tokens of every chunk."""
    nothing = [None] * len(chunks.q)
    thresholds = nothing if chunks.threshold is None else chunks.threshold.unbind(0)
    return [Sources(*parts) for parts in zip(chunks.k.unbind(0), chunks.v.unbind(0), thresholds, strict=True)]


def unbind_openings(chunks: Chunks) -> list[Opening]:
    """How every chunk opens."""
    nothing = [None] * len(chunks.q)
    fresh = nothing if chunks.fresh is None else chunks.fresh.unbind(0)
    resets = nothing if chunks.reset is None else chunks.reset.unbind(0)
    return [Opening(*parts) for parts in zip(fresh, resets, chunks.start.unbind(0), strict=True)]


def _writing(rule: Rule, chunks: Chunks, surprise: bool) -> list[bool]:
    """Nothing surprising, no work: a chunk with lr = 0 everywhere needs no gradients at inference."""
    if surprise or rule.retention.lag or torch.compiler.is_compiling() or torch.is_grad_enabled():
        return [True] * len(chunks.lr)
    return chunks.lr.flatten(1).any(1).tolist()


def _run(
    rule: Rule, inputs: list[_Inputs], memory: Memory, slow: Slow, writing: list[bool], careful: bool
) -> tuple[Outcome, list[Tensor]]:
    steps: list[_Step] = []
    while len(steps) < len(inputs):
        start, end = len(steps), len(steps) + AT_ONCE
        if end <= len(inputs) and all(writing[start:end]):
            found, memory = _several_steps(rule, memory, slow, tuple(inputs[start:end]), careful)
            steps += found
        else:
            step, memory = _step(rule, memory, slow, inputs[start], writing[start], careful)
            steps.append(step)
    y = torch.stack([step.y for step in steps])
    outcome = Outcome(y, memory, gather_felt([step.felt for step in steps], y.shape[2]))
    return outcome, [step.bound for step in steps if step.bound is not None]


@compilable
def _several_steps(
    rule: Rule, memory: Memory, slow: Slow, group: tuple[_Inputs, ...], careful: bool
) -> tuple[list[_Step], Memory]:
    """Chunks that write, one after the other; a part of its own, since torch limits the graphs of each part."""
    steps = []
    for one in group:
        step, memory = _step(rule, memory, slow, one, True, careful)
        steps.append(step)
    return steps, memory


@compilable
def _step(rule: Rule, memory: Memory, slow: Slow, one: _Inputs, writes: bool, careful: bool) -> tuple[_Step, Memory]:
    """Reads one chunk, and writes it unless it has nothing to write; the memory after it."""
    memory = open_chunk(rule, memory, slow, one.opening)
    plan = dict(zip(memory.dual, cycle(one.plans)))
    if not writes:
        y = _answer(rule, memory, slow, None, plan, one.q)
        return _Step(y, None, None), _advance(rule, memory, None, plan)
    if rule.retention.lag:
        memory, gradients = _lagging(rule, memory, slow, one, plan, careful)
    else:
        anchor = _decayed(memory.dual, plan) if rule.decay_before_grad else memory.anchor
        gradients = chunk_gradients(rule, anchor, slow, one.sources, careful)
    if rule.algorithm.erases:
        gradients = _erasing(gradients, memory, plan)
    y = _answer(rule, memory, slow, gradients, plan, one.q)
    return _Step(y, gradients.felt, gradients.bound), _advance(rule, memory, gradients, plan)


def _plans(rule: Rule, chunks: Chunks, maps: int) -> list[Coefficients]:
    """Coefficients of each map, all chunks at once; one for all where every gate is per head."""

    def gate(values: Tensor | None, i: int) -> Tensor | None:
        return None if values is None else values[..., i if values.shape[-1] > 1 else 0]

    finer = any(g is not None and g.shape[-1] > 1 for g in (chunks.lr, chunks.momentum, chunks.retain))
    plans = []
    for i in range(maps if finer else 1):
        lr = gate(chunks.lr, i)
        assert lr is not None
        gates = lr, gate(chunks.momentum, i), gate(chunks.retain, i)
        plan = coefficients(*gates, chunks.real, rule.algorithm.coupling)
        plans.append(plan if chunks.band is None else widened(plan, chunks.band))
    return plans


def _unbind(plan: Coefficients) -> list[Coefficients]:
    parts = [None if field is None else field.unbind(0) for field in plan]
    count = len(plan.write)
    return [Coefficients(*[None if p is None else p[n] for p in parts]) for n in range(count)]  # type: ignore[arg-type]


def _lagging(
    rule: Rule, memory: Memory, slow: Slow, one: _Inputs, plan: dict[str, Coefficients], careful: bool
) -> tuple[Memory, Gradients]:
    early = {name: first_slot(c) for name, c in plan.items()}

    def gradients(anchor: Weights, part: slice) -> Gradients:
        sources = Sources(*[None if x is None else x[:, part] for x in one.sources])  # type: ignore[arg-type]
        return chunk_gradients(rule, anchor, slow, sources, careful)

    return lag_token(rule, memory, one.opening, gradients, lambda first: _advance(rule, memory, first, early).dual)


def _decayed(dual: Weights, plan: dict[str, Coefficients]) -> Weights:
    """The memory that a token finds decayed already: ``retain_t A_{t-1}``, in a chunk of this token alone."""
    return {name: w * plan[name].kept for name, w in dual.items()}


def _erasing(gradients: Gradients, memory: Memory, plan: dict[str, Coefficients]) -> Gradients:
    """Delta gradient descent: each token's output gradients with what the present weights hold at its input added.

    ``w_t = delta_t + A_{t-1} x_t / max(1, |x_t|^2)``; A_{t-1} holds the w before it, so they solve a unit-triangular
    system (Nested Learning eqs. 90-93).
    """
    deltas: Weights = {}
    for name, delta in gradients.deltas.items():
        x, a, s, earlier = gradients.inputs[name], memory.dual[name], memory.momentum.get(name), before(plan[name])
        share = 1.0 / torch.linalg.vecdot(x, x).clamp_min(1.0).unsqueeze(-1)
        held = torch.bmm(x, a.transpose(1, 2)) * earlier.carry
        if s is not None and earlier.inertia is not None:
            held = held + torch.bmm(x, s.transpose(1, 2)) * earlier.inertia
        system = torch.bmm(x, x.transpose(1, 2)) * earlier.write * share
        deltas[name] = torch.linalg.solve_triangular(system, delta + held * share, upper=False, unitriangular=True)
    return gradients._replace(deltas=deltas)


def _answer(
    rule: Rule, memory: Memory, slow: Slow, g: Gradients | None, plan: dict[str, Coefficients], q: Tensor
) -> Tensor:
    scaled = rule.architecture.elementwise
    if rule.read == "chunk":
        return rule.architecture.forward(plain(memory.anchor, slow.constants, scaled), q)[0]
    if rule.read == "before":
        plan = {name: before(c) for name, c in plan.items()}
    return rule.architecture.forward(dual_linear(rule, memory, slow, g, plan), q)[0]


def dual_linear(
    rule: Rule, memory: Memory, slow: Slow, gradients: Gradients | None, plan: dict[str, Coefficients]
) -> Linear:
    """The ``linear`` that applies every token's own weights to it."""
    scaled = rule.architecture.elementwise

    def linear(name: str, h: Tensor) -> Tensor:
        if name in slow.constants:
            return h * slow.constants[name]
        c = plan[name]
        a, s = memory.dual[name], memory.momentum.get(name)
        if name in scaled:
            weights = a * c.carry
            if s is not None and c.inertia is not None:
                weights = torch.addcmul(weights, s, c.inertia)
            if gradients is not None:
                weights = torch.baddbmm(weights, c.write, gradients.inputs[name] * gradients.deltas[name], alpha=-1.0)
            return h * weights
        if gradients is not None:
            return read_product(h, a, s, gradients.inputs[name], gradients.deltas[name], c.carry, c.inertia, c.write)
        out = torch.bmm(h, a.transpose(1, 2)) * c.carry
        if s is not None and c.inertia is not None:
            out = torch.addcmul(out, torch.bmm(h, s.transpose(1, 2)), c.inertia)
        return out

    return linear


def _advance(rule: Rule, memory: Memory, gradients: Gradients | None, plan: dict[str, Coefficients]) -> Memory:
    """Dual and momentum at the end of the piece."""
    dual: Weights = {}
    momentum: Weights = {}
    for name, a in memory.dual.items():
        factors = None if gradients is None else (gradients.inputs[name], gradients.deltas[name])
        scaled = name in rule.architecture.elementwise
        dual[name], pushed = _moved(a, memory.momentum.get(name), factors, plan[name], scaled)
        if pushed is not None:
            momentum[name] = pushed
    return Memory(dual, momentum, memory.anchor)


def _moved(
    dual: Tensor, momentum: Tensor | None, factors: tuple[Tensor, Tensor] | None, c: Coefficients, scaled: bool
) -> tuple[Tensor, Tensor | None]:
    """One map at the end of the piece; no momentum where the coefficients have none of it."""
    if momentum is None or c.gained is None:
        new, pushed = dual * c.kept, None
    elif factors is not None and not scaled and c.fade is not None and c.push is not None:
        return write_product(dual, momentum, *factors, c.kept, c.gained, c.weight, c.fade, c.push)
    else:
        new = torch.addcmul(dual * c.kept, momentum, c.gained)
        pushed = None if c.fade is None else momentum * c.fade
    if factors is None:
        return new, pushed
    x, delta = factors
    new = new - total(c.weight, delta, x, scaled)
    return new, None if pushed is None or c.push is None else pushed - total(c.push, delta, x, scaled)
