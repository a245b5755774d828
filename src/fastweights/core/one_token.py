"""A chunk of one token: the rule as it is printed, without the coefficients that several tokens of a chunk need."""

from __future__ import annotations

import torch
from torch import Tensor

from fastweights.core.gradient import Memory, Slow, Sources, chunk_gradients
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
        ``None`` where an inner gradient is not finite, and nothing is written. Cost: each map is read twice, three
        times where the step erases, and made anew once.
    """
    gradients = chunk_gradients(rule, memory.dual, slow, sources, careful=False)
    if gradients.bound is None or not bool(torch.isfinite(gradients.bound)):
        return None
    assert gates.lr is not None
    dual: Weights = {}
    momentum: Weights = {}
    scaled = rule.architecture.elementwise
    for name, delta in gradients.deltas.items():
        w, x = memory.dual[name], gradients.inputs[name]
        if rule.algorithm.erases:
            delta = delta + apply(w, x, name in scaled) / torch.linalg.vecdot(x, x).clamp_min(1.0).unsqueeze(-1)
        step = outer(-gates.lr * delta, x, name in scaled).squeeze(1)
        if gates.momentum is not None:
            step = momentum[name] = _where(real, gates.momentum * memory.momentum[name] + step, memory.momentum[name])
        kept = w if gates.retain is None else gates.retain * w
        dual[name] = _where(real, kept + step, w)
    return Memory(dual, momentum, dual)


def _where(real: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    return new if real is None else torch.where(real.unsqueeze(-1), new, old)
