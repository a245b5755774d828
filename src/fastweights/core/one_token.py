"""A chunk of one token: the rule as it is printed, without the coefficients that several tokens of a chunk need."""

from __future__ import annotations

import torch
from torch import Tensor

from fastweights.core.gradient import Gradients, Memory, Slow, Sources, chunk_gradients
from fastweights.core.network import Weights, apply, outer
from fastweights.core.rule import Rule
from fastweights.core.types import Gates


def one_token_applies(rule: Rule) -> bool:
    """Whether :func:`write_token` knows the rule: every token its own chunk, plain steps, one gate a head."""
    printed = rule.algorithm.coupling in ("none", "heavy ball") and rule.read == "after" and not rule.decay_before_grad
    return rule.online and printed and rule.bias.window == 1 and not rule.settles and rule.retention.link_at is None


def write_token(
    rule: Rule, memory: Memory, slow: Slow, sources: Sources, gates: Gates, real: Tensor | None
) -> Memory | None:
    """The memory after one token.

    Args:
        rule: one that :func:`one_token_applies` to.
        memory: opened for this token, so that its anchor is its dual.
        slow: what no token changes.
        sources: the token, ``[G, 1, ...]``.
        gates: ``[G, 1, 1]`` each.
        real: bool ``[G, 1]``, False where there is no token and nothing changes; ``None``: there is one everywhere.

    Returns:
        ``None`` where an inner gradient is not finite, and nothing is written. Cost: each map is read at most twice,
        three times where the step erases, and made anew once. Where no gradients are recorded and every lr is 0,
        nothing is read.
    """
    assert gates.lr is not None
    steps: Weights = {}
    if torch.is_grad_enabled() or bool(gates.lr.any()):
        gradients = chunk_gradients(rule, memory.dual, slow, sources, careful=False)
        if gradients.bound is None or not bool(torch.isfinite(gradients.bound)):
            return None
        steps = _steps(rule, memory.dual, gradients, gates.lr)
    dual: Weights = {}
    momentum: Weights = {}
    for name, w in memory.dual.items():
        kept, step = w if gates.retain is None else gates.retain * w, steps.get(name)
        if gates.momentum is not None:
            before = memory.momentum[name]
            faded = gates.momentum * before
            step = momentum[name] = _where(real, faded if step is None else faded + step, before)
        dual[name] = _where(real, kept if step is None else kept + step, w)
    return Memory(dual, momentum, dual)


def _steps(rule: Rule, dual: Weights, gradients: Gradients, lr: Tensor) -> Weights:
    """What the token adds to every map, ``[G, outputs, inputs]``."""
    steps: Weights = {}
    scaled = rule.architecture.elementwise
    for name, delta in gradients.deltas.items():
        x = gradients.inputs[name]
        if rule.algorithm.erases:
            held = apply(dual[name], x, name in scaled)
            delta = delta + held / torch.linalg.vecdot(x, x).clamp_min(1.0).unsqueeze(-1)
        steps[name] = outer(-lr * delta, x, name in scaled).squeeze(1)
    return steps


def _where(real: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    return new if real is None else torch.where(real.unsqueeze(-1), new, old)
