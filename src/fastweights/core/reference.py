"""The reference: token by token, plain autograd, no formula shared with the fast tiers. The oracle of every test.

Cost per token: one forward and one backward of the memory; slow on purpose.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastweights.core.layout import Layout
from fastweights.core.rule import Rule
from fastweights.core.types import Gates, MemoryState, Scope, Surprise

Weights = tuple[Tensor, ...]


def run_reference(
    rule: Rule,
    initial: Weights,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    state: MemoryState,
    layout: Layout,
    rejected: Tensor,
) -> tuple[Tensor, MemoryState, Surprise]:
    """Runs a rule one token at a time; arguments as in :func:`fastweights.core.engine.run`, packed and checked.

    ``gates`` are ``[B, H, T, n]``; ``rejected`` is bool ``[B, H, T]``.
    """
    rows = [
        _run_row(rule, initial, _row(q, b), _row(k, b), _row(v, b), gates, state, layout, rejected, b)
        for b in range(q.shape[0])
    ]
    answers, memories, *felt = zip(*rows, strict=True)
    y, (loss, norm, rejected) = torch.stack(answers), (torch.stack(field) for field in felt)
    parts = [tuple(torch.stack(w) for w in zip(*part, strict=True)) for part in zip(*memories, strict=True)]
    zero = torch.zeros_like(loss)
    momentum = zero if gates.momentum is None else gates.momentum.mean(-1)
    retain = zero + 1 if gates.retain is None else gates.retain.mean(-1)
    surprise = Surprise(loss, norm, gates.lr.mean(-1), momentum, retain, rejected)
    return y, MemoryState(parts[0], parts[1], parts[2], layout.end.clone(), state.extra), surprise


def _row(x: Tensor, b: int) -> Tensor:
    return x[b]


def _run_row(
    rule: Rule,
    initial: Weights,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    state: MemoryState,
    layout: Layout,
    rejected: Tensor,
    b: int,
) -> tuple[Tensor, tuple[Weights, Weights, Weights], Tensor, Tensor, Tensor]:
    """One row ``[H, T, .]``: answers, (dual, momentum, anchor) at the end, loss, gradient norm and rejected tokens."""
    dual = tuple(w[b] for w in state.dual)
    momentum = tuple(w[b] for w in state.momentum)
    anchor = tuple(w[b] for w in state.anchor)
    names = [m.name for m in rule.maps(k.shape[-1], v.shape[-1])]
    answers, losses, norms, unusable = [], [], [], []
    length = int(layout.length[b])
    for t in range(q.shape[1]):
        if t >= length:
            answers.append(torch.zeros_like(v[:, 0]))
            losses.append(torch.zeros_like(v[:, 0, 0]))
            norms.append(torch.zeros_like(v[:, 0, 0]))
            unusable.append(rejected[b, :, t])
            continue
        if layout.reset is not None and bool(layout.reset[b, t]):
            dual, momentum = initial, tuple(torch.zeros_like(w) for w in momentum)
        if int(layout.position[b, t]) % rule.chunk_size == 0 or (layout.reset is not None and bool(layout.reset[b, t])):
            anchor = dual
        shapes = [w.shape[1:] for w in dual]
        lr, fade, keep = (
            None if g is None else gates_of_maps(g[b, :, t], scope, shapes)
            for g, scope in zip(gates, rule.scopes, strict=True)
        )
        assert lr is not None
        at = anchor if not rule.online else dual
        if rule.decay_before_grad and keep is not None:
            at = tuple(a * w for a, w in zip(keep, dual, strict=True))
        loss, grads, norm, overflown = inner_gradient(rule, names, at, k[:, t], v[:, t])
        alive = ~rejected[b, :, t, None, None]
        earlier = dual
        pushed = [-step * grad for step, grad in zip(lr, grads, strict=True)]
        if fade is not None:
            pushed = [f * s + p for f, s, p in zip(fade, momentum, pushed, strict=True)]
            momentum = tuple(torch.where(alive, p, s) for p, s in zip(pushed, momentum, strict=True))
        kept = dual if keep is None else tuple(a * w for a, w in zip(keep, dual, strict=True))
        dual = tuple(torch.where(alive, w + p, old) for w, p, old in zip(kept, pushed, earlier, strict=True))
        chunk_start = earlier if rule.online else anchor
        weights = {"after": dual, "before": earlier, "chunk": chunk_start}[rule.read]
        answers.append(apply_weights(rule, names, weights, q[:, t]))
        losses.append(loss)
        norms.append(norm)
        unusable.append(rejected[b, :, t] | overflown)
    y, loss, norm, refused = (torch.stack(found, 1) for found in (answers, losses, norms, unusable))
    return y, (dual, momentum, anchor if state.anchor else ()), loss, norm, refused


def gates_of_maps(gate: Tensor, scope: Scope | None, shapes: list[torch.Size]) -> list[Tensor]:
    """A gate ``[H, n]`` of one token as a factor of each map's weights, ``[H, outputs or 1, inputs or 1]``."""
    if scope == "head":
        return [gate[:, :, None]] * len(shapes)
    if scope == "map":
        return [one[:, None, None] for one in gate.unbind(1)]
    if scope == "key":
        return [part[:, None, :] for part in gate.split([inputs for _, inputs in shapes], 1)]
    return [part[:, :, None] for part in gate.split([outputs for outputs, _ in shapes], 1)]


def apply_weights(rule: Rule, names: list[str], weights: Weights, x: Tensor) -> Tensor:
    """The memory ``[H, out, in]`` applied to one token per head, ``x [H, K] -> [H, V]``."""
    table = dict(zip(names, weights, strict=True))
    y, _ = rule.architecture.forward(lambda name, h: h @ table[name].transpose(1, 2), x[:, None, :])
    return y[:, 0]


def inner_gradient(
    rule: Rule, names: list[str], weights: Weights, k: Tensor, v: Tensor
) -> tuple[Tensor, Weights, Tensor, Tensor]:
    """Inner loss ``[H]``, its gradient by autograd (clipped as the rule says), and the norm before clipping ``[H]``.

    The last value, bool ``[H]``, marks heads whose gradient is not finite; theirs is zero.
    """
    loss, grads = _differentiate(rule, names, weights, k, v)
    overflown = ~torch.isfinite(_squared(grads))
    if bool(overflown.any()):
        # Again without those tokens: an infinity that is only masked still makes outer gradients NaN.
        k, v = (torch.where(overflown[:, None], 0.0, x) for x in (k, v))
        loss, grads = _differentiate(rule, names, weights, k, v)
        loss = torch.where(overflown, 0.0, loss)
        grads = tuple(torch.where(overflown[:, None, None], 0.0, g) for g in grads)
    squared = _squared(grads)
    still = squared == 0
    # The square root has no derivative at 0, where tokens without a gradient stand.
    norm = torch.where(still, 1.0, squared).sqrt().masked_fill(still, 0.0)
    if rule.clip is not None:
        scale = rule.clip * torch.rsqrt(squared.clamp_min(rule.clip**2))
        grads = tuple(g * scale[:, None, None] for g in grads)
    return loss, grads, norm, overflown


def _differentiate(rule: Rule, names: list[str], weights: Weights, k: Tensor, v: Tensor) -> tuple[Tensor, Weights]:
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = tuple(w if w.requires_grad and differentiable else w.detach().requires_grad_() for w in weights)
        loss = rule.bias.loss(apply_weights(rule, names, leaves, k), v)
        grads = torch.autograd.grad(loss.sum(), leaves, create_graph=differentiable)
    return loss if differentiable else loss.detach(), grads


def _squared(grads: Weights) -> Tensor:
    """Squared norm of the whole gradient of each head, ``[H]``."""
    return torch.stack([g.square().sum((1, 2)) for g in grads]).sum(0)
