"""The dual tier: exact per-token weights of any architecture, without forming them.

With A and S the dual and momentum where the piece starts, ``x_i`` and ``delta_i`` the inputs and output gradients of a
map at the anchor, and carry, inertia and write from :mod:`fastweights.core.decay`, token t's weights applied to h are

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
from fastweights.core.decay import Coefficients, before, coefficients
from fastweights.core.fused import read_product, write_product
from fastweights.core.gradient import (
    Chunks,
    Felt,
    Gradients,
    Memory,
    Outcome,
    Weights,
    chunk_gradients,
    gather_felt,
    open_chunk,
    trust_first,
)
from fastweights.core.rule import Rule


def run_dual(rule: Rule, chunks: Chunks, memory: Memory, initial: Weights, surprise: bool) -> Outcome:
    """Runs a rule over its chunks; see :func:`fastweights.core.engine.run`."""
    inputs = _inputs(chunks, len(memory.dual))
    return trust_first(partial(_run, rule, inputs, memory, initial, _writing(chunks, surprise)), surprise)


class _Inputs(NamedTuple):
    """One chunk of :class:`Chunks`; ``plans``: coefficients of each map, or one for all."""

    q: Tensor
    k: Tensor
    v: Tensor
    plans: tuple[Coefficients, ...]
    reset: Tensor | None
    fresh: Tensor | None


class _Step(NamedTuple):
    """A chunk's answers ``[G, W, V]``, the memory after it, and its :class:`Gradients`' ``felt`` and ``bound``."""

    y: Tensor
    memory: Memory
    felt: Felt | None
    bound: Tensor | None


def _inputs(chunks: Chunks, maps: int) -> list[_Inputs]:
    plans = zip(*[_unbind(plan) for plan in _plans(chunks, maps)], strict=True)
    nothing = [None] * len(chunks.q)
    resets = nothing if chunks.reset is None else chunks.reset.unbind(0)
    fresh = nothing if chunks.fresh is None else chunks.fresh.unbind(0)
    parts = chunks.q.unbind(0), chunks.k.unbind(0), chunks.v.unbind(0), plans, resets, fresh
    return [_Inputs(*part) for part in zip(*parts, strict=True)]


def _writing(chunks: Chunks, surprise: bool) -> list[bool]:
    """Nothing surprising, no work: a chunk with lr = 0 everywhere needs no gradients at inference."""
    if surprise or torch.compiler.is_compiling() or torch.is_grad_enabled():
        return [True] * len(chunks.lr)
    return chunks.lr.flatten(1).any(1).tolist()


def _run(
    rule: Rule, inputs: list[_Inputs], memory: Memory, initial: Weights, writing: list[bool], careful: bool
) -> tuple[Outcome, list[Tensor]]:
    steps = []
    for one, writes in zip(inputs, writing, strict=True):
        steps.append(_step(rule, memory, initial, one, writes, careful))
        memory = steps[-1].memory
    y = torch.stack([step.y for step in steps])
    outcome = Outcome(y, memory, gather_felt([step.felt for step in steps]))
    return outcome, [step.bound for step in steps if step.bound is not None]


@compilable
def _step(rule: Rule, memory: Memory, initial: Weights, one: _Inputs, writes: bool, careful: bool) -> _Step:
    """Reads one chunk, and writes it unless it has nothing to write."""
    memory = open_chunk(memory, initial, one.fresh, one.reset)
    plan = dict(zip(memory.dual, cycle(one.plans)))
    if not writes:
        return _Step(_answer(rule, memory, None, plan, one.q), _advance(memory, None, plan), None, None)
    gradients = chunk_gradients(rule, memory.anchor, one.k, one.v, careful)
    y = _answer(rule, memory, gradients, plan, one.q)
    return _Step(y, _advance(memory, gradients, plan), gradients.felt, gradients.bound)


def _plans(chunks: Chunks, maps: int) -> list[Coefficients]:
    """Coefficients of each map, all chunks at once; one for all where every gate is per head."""

    def gate(values: Tensor | None, i: int) -> Tensor | None:
        return None if values is None else values[..., i if values.shape[-1] > 1 else 0]

    finer = any(g is not None and g.shape[-1] > 1 for g in (chunks.lr, chunks.momentum, chunks.retain))
    plans = []
    for i in range(maps if finer else 1):
        lr = gate(chunks.lr, i)
        assert lr is not None
        plans.append(coefficients(lr, gate(chunks.momentum, i), gate(chunks.retain, i), chunks.real))
    return plans


def _unbind(plan: Coefficients) -> list[Coefficients]:
    parts = [None if field is None else field.unbind(0) for field in plan]
    count = len(plan.write)
    return [Coefficients(*[None if p is None else p[n] for p in parts]) for n in range(count)]  # type: ignore[arg-type]


def _answer(rule: Rule, memory: Memory, g: Gradients | None, plan: dict[str, Coefficients], q: Tensor) -> Tensor:
    if rule.read == "chunk":
        return rule.architecture.forward(lambda name, h: torch.bmm(h, memory.anchor[name].transpose(1, 2)), q)[0]
    if rule.read == "before":
        plan = {name: before(c) for name, c in plan.items()}
    return rule.architecture.forward(dual_linear(memory, g, plan), q)[0]


def dual_linear(memory: Memory, gradients: Gradients | None, plan: dict[str, Coefficients]) -> Linear:
    """The ``linear`` that applies every token's own weights to it."""

    def linear(name: str, h: Tensor) -> Tensor:
        c = plan[name]
        a, s = memory.dual[name], memory.momentum.get(name)
        if gradients is not None:
            return read_product(h, a, s, gradients.inputs[name], gradients.deltas[name], c.carry, c.inertia, c.write)
        out = torch.bmm(h, a.transpose(1, 2)) * c.carry
        if s is not None and c.inertia is not None:
            out = torch.addcmul(out, torch.bmm(h, s.transpose(1, 2)), c.inertia)
        return out

    return linear


def _advance(memory: Memory, gradients: Gradients | None, plan: dict[str, Coefficients]) -> Memory:
    """Dual and momentum at the end of the piece."""
    dual: Weights = {}
    momentum: Weights = {}
    for name, a in memory.dual.items():
        c, s = plan[name], memory.momentum.get(name)
        if gradients is not None:
            x, delta = gradients.inputs[name], gradients.deltas[name]
            dual[name] = write_product(a, c.kept, s, c.gained, x, delta, c.weight)
            if s is not None and c.fade is not None and c.push is not None:
                momentum[name] = write_product(s, c.fade, None, None, x, delta, c.push)
            continue
        dual[name] = a * c.kept
        if s is not None and c.gained is not None and c.fade is not None:
            dual[name] = torch.addcmul(dual[name], s, c.gained)
            momentum[name] = s * c.fade
    return Memory(dual, momentum, memory.anchor)
