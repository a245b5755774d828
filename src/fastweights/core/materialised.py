"""The materialised tier: the weights of every token of a chunk are formed, so gates may differ per channel.

Links that act at every token need that too. Cost per chunk and head: O(W inputs outputs) time and memory per map.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fastweights.core.dual import unbind_openings, unbind_sources
from fastweights.core.gradient import (
    Chunks,
    Gradients,
    Memory,
    Outcome,
    Slow,
    Sources,
    chunk_gradients,
    gather_felt,
    trust_first,
)
from fastweights.core.network import Weights, outer
from fastweights.core.opening import lag_token, open_chunk
from fastweights.core.rule import Rule
from fastweights.core.types import Scope


class _Gates(NamedTuple):
    """One chunk's gates ``[G, W, n]``, its band ``[G, W, S]`` and which slots hold a token, bool ``[G, W]``."""

    lr: Tensor
    momentum: Tensor | None
    retain: Tensor | None
    band: Tensor | None
    real: Tensor | None

    def cut(self, width: int) -> _Gates:
        """Those of the first slots."""
        return _Gates(*[None if g is None else g[:, :width] for g in self])  # type: ignore[arg-type]


def run_materialised(rule: Rule, chunks: Chunks, memory: Memory, slow: Slow, surprise: bool) -> Outcome:
    """Runs a rule over its chunks; see :func:`fastweights.core.engine.run`."""
    return trust_first(partial(_run, rule, chunks, memory, slow), surprise)


def _run(rule: Rule, chunks: Chunks, memory: Memory, slow: Slow, careful: bool) -> tuple[Outcome, list[Tensor]]:
    answers, felt, bounds = [], [], []
    fields = (chunks.lr, chunks.momentum, chunks.retain, chunks.band, chunks.real)
    unbound = zip(*[[None] * len(chunks.q) if g is None else g.unbind(0) for g in fields], strict=True)
    parts = zip(chunks.q.unbind(0), unbind_sources(chunks), unbind_openings(chunks), unbound, strict=True)
    for q, sources, opening, given in parts:
        gates = _Gates(*given)
        memory = open_chunk(rule, memory, slow, opening)

        def gradients(anchor: Weights, part: slice, sources: Sources = sources) -> Gradients:
            some = Sources(*[None if x is None else x[:, part] for x in sources])  # type: ignore[arg-type]
            return chunk_gradients(rule, anchor, slow, some, careful)

        if rule.retention.lag:
            before = memory
            advance = partial(_after_first, rule, before, gates)
            memory, found = lag_token(rule, memory, opening, gradients, advance)
        else:
            found = gradients(memory.anchor, slice(None))
        old = memory
        memory, path = _walk(rule, memory, found, gates)
        answers.append(_answer(rule, old, slow, path, q))
        felt.append(found.felt)
        bounds.append(found.bound)
    y = torch.stack(answers)
    return Outcome(y, memory, gather_felt(felt, y.shape[2])), [b for b in bounds if b is not None]


def _after_first(rule: Rule, memory: Memory, gates: _Gates, first: Gradients) -> Weights:
    return _walk(rule, memory, first, gates.cut(1))[0].dual


def _walk(rule: Rule, memory: Memory, gradients: Gradients, gates: _Gates) -> tuple[Memory, Weights]:
    """Steps through a chunk; returns the memory at its end and the weights after each slot, ``[G, W, out, in]``."""
    dual: Weights = {}
    momentum: Weights = {}
    path: Weights = {}
    sizes = [w.shape[1:] for w in memory.dual.values()]
    scaled = rule.architecture.elementwise
    for m, (name, weights) in enumerate(memory.dual.items()):
        x = gradients.inputs[name]
        written = outer(gradients.deltas[name], x, name in scaled)
        if gates.band is not None:
            written = torch.einsum("gts,gsoi->gtoi", gates.band, written)
        lr, fade, retain = (
            None if g is None else spread_gate(g, scope, sizes, m)
            for g, scope in zip(gates[:3], rule.scopes[:3], strict=True)
        )
        assert lr is not None
        pushed = memory.momentum.get(name)
        steps = []
        for t in range(gates.lr.shape[1]):
            grad = written[:, t]
            if rule.algorithm.erases:
                grad = grad + _held(weights, x[:, t])
            push = step = -lr[:, t] * grad
            if pushed is not None and fade is not None:
                push = torch.addcmul(push, fade[:, t], pushed)
                if rule.algorithm.coupling == "nesterov":
                    step = torch.addcmul(step, fade[:, t], push)
                else:
                    step = torch.zeros_like(push) if rule.algorithm.coupling == "deferred" else push
                pushed = push if gates.real is None else torch.where(gates.real[:, t, None, None], push, pushed)
            kept = weights if retain is None else retain[:, t] * weights
            moved = kept + step
            weights = moved if gates.real is None else torch.where(gates.real[:, t, None, None], moved, weights)
            steps.append(weights)
        dual[name], path[name] = weights, torch.stack(steps, 1)
        if pushed is not None:
            momentum[name] = pushed
    return Memory(dual, momentum, memory.anchor), path


def _held(weights: Tensor, x: Tensor) -> Tensor:
    """What the weights ``[G, out, in]`` hold at an input ``x [G, in]``, as a gradient: ``A x x^T / max(1, |x|^2)``."""
    share = 1.0 / torch.linalg.vecdot(x, x).clamp_min(1.0)
    held = torch.bmm(weights, x.unsqueeze(-1)) * share[:, None, None]
    return held * x.unsqueeze(1)


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


def _answer(rule: Rule, memory: Memory, slow: Slow, path: Weights, q: Tensor) -> Tensor:
    if rule.read == "chunk":
        path = {name: w[:, None].expand_as(path[name]) for name, w in memory.anchor.items()}
    else:
        if rule.read == "before":
            path = {name: torch.cat([memory.dual[name][:, None], w[:, :-1]], 1) for name, w in path.items()}
        if rule.retention.link_at == "token":
            path = {name: rule.retention.link(w) for name, w in path.items()}
    scaled = rule.architecture.elementwise

    def linear(name: str, h: Tensor) -> Tensor:
        if name in slow.constants:
            return h * slow.constants[name]
        if name in scaled:
            return h * path[name].squeeze(-2)
        return (path[name] @ h.unsqueeze(-1)).squeeze(-1)

    return rule.architecture.forward(linear, q)[0]
