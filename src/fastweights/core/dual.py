"""The dual tier: exact per-token weights of any architecture, without forming them.

With A and S the dual and momentum where the piece starts, ``x_i`` and ``delta_i`` the inputs and output gradients of a
map at the anchor, and carry, inertia and write from :mod:`fastweights.core.decay`, token t's weights applied to h are

    linear(h)_t = carry_t A h_t + inertia_t S h_t - sum_{i<=t} write_{t,i} <h_t, x_i> delta_i

exact for every architecture made of linear maps and per-token functions between them, and for every bias.
Cost per chunk and head: O(W^2 (inputs + outputs) + W inputs outputs) per map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastweights.core.architecture import Linear
from fastweights.core.decay import Coefficients, before, coefficients
from fastweights.core.gradient import Chunks, Gradients, Memory, Outcome, Weights, chunk_gradients, open_chunk
from fastweights.core.rule import Rule


def run_dual(rule: Rule, chunks: Chunks, memory: Memory, initial: Weights, surprise: bool) -> Outcome:
    """Runs a rule over its chunks; see :func:`fastweights.core.engine.run`."""
    maps = list(memory.dual)
    plans = [_unbind(plan) for plan in _plans(chunks, len(maps))]
    answers, losses, norms = [], [], []
    resets = [None] * len(chunks.q) if chunks.reset is None else chunks.reset.unbind(0)
    inputs = zip(chunks.q.unbind(0), chunks.k.unbind(0), chunks.v.unbind(0), chunks.lr.unbind(0), strict=True)
    for n, (q, k, v, lr) in enumerate(inputs):
        memory = open_chunk(memory, initial, chunks.fresh[n], resets[n], chunks.aligned)
        plan = dict(zip(maps, [p[n] for p in plans], strict=True))
        gradients = None
        if surprise or not _nothing_to_write(lr):
            gradients = chunk_gradients(rule, memory.anchor, k, v, surprise)
        answers.append(_answer(rule, memory, gradients, plan, q))
        memory = _advance(memory, gradients, plan)
        if gradients is not None and surprise:
            losses.append(gradients.loss)
            norms.append(gradients.norm)
    stack = torch.stack
    return Outcome(stack(answers), memory, stack(losses) if surprise else None, stack(norms) if surprise else None)


def _nothing_to_write(lr: Tensor) -> bool:
    """Nothing surprising, no work: a chunk with lr = 0 everywhere needs no gradients at inference."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    return not bool(lr.any())


def _plans(chunks: Chunks, maps: int) -> list[Coefficients]:
    """Coefficients of each map, all chunks at once; computed once where every gate is per head."""

    def gate(values: Tensor | None, i: int) -> Tensor | None:
        return None if values is None else values[..., i if values.shape[-1] > 1 else 0]

    finer = any(g is not None and g.shape[-1] > 1 for g in (chunks.lr, chunks.momentum, chunks.retain))
    plans = []
    for i in range(maps if finer else 1):
        lr = gate(chunks.lr, i)
        assert lr is not None
        plans.append(coefficients(lr, gate(chunks.momentum, i), gate(chunks.retain, i), chunks.real))
    return plans if finer else plans * maps


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
        out = torch.bmm(h, memory.dual[name].transpose(1, 2)) * c.carry
        if c.inertia is not None:
            out = torch.addcmul(out, torch.bmm(h, memory.momentum[name].transpose(1, 2)), c.inertia)
        if gradients is None:
            return out
        scores = torch.bmm(h, gradients.inputs[name].transpose(1, 2)) * c.write
        return torch.baddbmm(out, scores, gradients.deltas[name], alpha=-1.0)

    return linear


def _advance(memory: Memory, gradients: Gradients | None, plan: dict[str, Coefficients]) -> Memory:
    """Dual and momentum at the end of the piece."""
    dual: Weights = {}
    momentum: Weights = {}
    for name, old in memory.dual.items():
        c = plan[name]
        new = old * c.carry[:, -1:]
        if c.inertia is not None and c.fade is not None:
            new = torch.addcmul(new, memory.momentum[name], c.inertia[:, -1:])
            momentum[name] = memory.momentum[name] * c.fade
        if gradients is not None:
            delta_t, x = gradients.deltas[name].transpose(1, 2), gradients.inputs[name]
            new = torch.baddbmm(new, delta_t, x * c.write[:, -1, :, None], alpha=-1.0)
            if c.push is not None:
                momentum[name] = torch.baddbmm(momentum[name], delta_t, x * c.push, alpha=-1.0)
        dual[name] = new
    return Memory(dual, momentum, memory.anchor)
