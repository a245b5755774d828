"""The materialised tier: the weights of every token of a chunk are formed, so gates may differ per channel.

Cost per chunk and head: O(W inputs outputs) time and memory per map.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fastweights.core.gradient import (
    Chunks,
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
from fastweights.core.types import Scope


def run_materialised(rule: Rule, chunks: Chunks, memory: Memory, initial: Weights, surprise: bool) -> Outcome:
    """Runs a rule over its chunks; see :func:`fastweights.core.engine.run`."""
    return trust_first(partial(_run, rule, chunks, memory, initial), surprise)


def _run(rule: Rule, chunks: Chunks, memory: Memory, initial: Weights, careful: bool) -> tuple[Outcome, list[Tensor]]:
    answers, felt, bounds = [], [], []
    gates = [[None] * len(chunks.q) if g is None else g.unbind(0) for g in (chunks.lr, chunks.momentum, chunks.retain)]
    for n, (q, k, v) in enumerate(zip(chunks.q.unbind(0), chunks.k.unbind(0), chunks.v.unbind(0), strict=True)):
        reset = None if chunks.reset is None else chunks.reset[n]
        fresh = None if chunks.fresh is None else chunks.fresh[n]
        memory = open_chunk(memory, initial, fresh, reset)
        gradients = chunk_gradients(rule, memory.anchor, k, v, careful)
        real = None if chunks.real is None else chunks.real[n]
        old = memory
        memory, path = _walk(rule, memory, gradients, [g[n] for g in gates], real)
        answers.append(_answer(rule, old, path, q))
        felt.append(gradients.felt)
        bounds.append(gradients.bound)
    return Outcome(torch.stack(answers), memory, gather_felt(felt)), [b for b in bounds if b is not None]


def _walk(
    rule: Rule, memory: Memory, gradients: Gradients, gates: list[Tensor | None], real: Tensor | None
) -> tuple[Memory, Weights]:
    """Steps through a chunk; returns the memory at its end and the weights after each slot, ``[G, W, out, in]``."""
    dual: Weights = {}
    momentum: Weights = {}
    path: Weights = {}
    sizes = [w.shape[1:] for w in memory.dual.values()]
    for m, (name, weights) in enumerate(memory.dual.items()):
        x, delta = gradients.inputs[name], gradients.deltas[name]
        lr, fade, retain = (
            None if g is None else spread_gate(g, scope, sizes, m) for g, scope in zip(gates, rule.scopes, strict=True)
        )
        assert lr is not None
        pushed = memory.momentum.get(name)
        steps = []
        for t in range(x.shape[1]):
            push = -lr[:, t] * (delta[:, t, :, None] * x[:, t, None, :])
            if pushed is not None and fade is not None:
                push = torch.addcmul(push, fade[:, t], pushed)
                pushed = push if real is None else torch.where(real[:, t, None, None], push, pushed)
            kept = weights if retain is None else retain[:, t] * weights
            moved = kept + push
            weights = moved if real is None else torch.where(real[:, t, None, None], moved, weights)
            steps.append(weights)
        dual[name], path[name] = weights, torch.stack(steps, 1)
        if pushed is not None:
            momentum[name] = pushed
    return Memory(dual, momentum, memory.anchor), path


def spread_gate(gate: Tensor, scope: Scope | None, sizes: list[torch.Size], m: int) -> Tensor:
    """Brings a gate ``[..., n]`` to the shape of map m's weights, ``[..., out or 1, in or 1]``."""
    if scope == "head":
        return gate.unsqueeze(-1)
    if scope == "map":
        return gate[..., m, None, None]
    axis = 1 if scope == "key" else 0
    start = sum(s[axis] for s in sizes[:m])
    part = gate[..., start : start + sizes[m][axis]]
    return part.unsqueeze(-2) if scope == "key" else part.unsqueeze(-1)


def _answer(rule: Rule, memory: Memory, path: Weights, q: Tensor) -> Tensor:
    if rule.read == "chunk":
        path = {name: w[:, None].expand_as(path[name]) for name, w in memory.anchor.items()}
    elif rule.read == "before":
        path = {name: torch.cat([memory.dual[name][:, None], w[:, :-1]], 1) for name, w in path.items()}
    return rule.architecture.forward(lambda name, h: (path[name] @ h.unsqueeze(-1)).squeeze(-1), q)[0]
