"""The delta tier: a matrix memory whose every gradient is taken at the *current* weights, exact in parallel.

The error of token t is affine in the errors before it, so a chunk's errors solve one unit-triangular system
``(I + slope L) delta = slope (carry A k + inertia S k) - gain v`` with ``L_{t,i} = write_{t-1,i} <k_t, k_i>``
(DeltaNet, arXiv 2406.06484, with the decay and momentum of :mod:`fastweights.core.decay` added). Everything that does
not depend on the state is computed for all chunks at once. Chunks are only a unit of work here: results do not depend
on where they are cut.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastweights.core.algorithm import ImplicitStep
from fastweights.core.bias import Affine
from fastweights.core.channels import run_channels
from fastweights.core.decay import Coefficients, before, coefficients
from fastweights.core.gradient import Chunks, Felt, Memory, Outcome, Slow, gradient_bound
from fastweights.core.network import Weights
from fastweights.core.opening import choose
from fastweights.core.rule import Rule

BLOCK = 64
"""Tokens solved together."""

CHANNEL_BLOCK = 16
"""The same where gates differ per key channel: work grows with the block times K."""


def _per_channel(rule: Rule) -> bool:
    return rule.erase_key or "key" in rule.scopes[:3]


def block(rule: Rule) -> int:
    """Tokens that this rule solves together."""
    return CHANNEL_BLOCK if _per_channel(rule) else BLOCK


def run_delta(rule: Rule, chunks: Chunks, memory: Memory, slow: Slow, surprise: bool) -> Outcome | None:
    """Runs a rule over its chunks; see :func:`fastweights.core.engine.run`.

    Returns ``None`` where an inner gradient is not finite: one solve for many tokens cannot leave a single one out.
    """
    if _per_channel(rule):
        return run_channels(rule, chunks, memory, slow, surprise)
    affine = rule.bias.affine()
    assert affine is not None, "Rule.tier sends only affine gradients here"
    k, v = chunks.k, chunks.v
    momentum = None if chunks.momentum is None else chunks.momentum[..., 0]
    retain = None if chunks.retain is None else chunks.retain[..., 0]
    lr = chunks.lr[..., 0]
    if isinstance(rule.algorithm, ImplicitStep):
        lr = lr / (1.0 + affine.slope * lr * torch.linalg.vecdot(k, k))
    plan = coefficients(lr, momentum, retain, chunks.real, rule.algorithm.coupling)
    earlier = before(plan)
    if rule.decay_before_grad and retain is not None:
        decay = retain.unsqueeze(-1)
        shifted = None if earlier.inertia is None else earlier.inertia * decay
        earlier = earlier._replace(carry=earlier.carry * decay, inertia=shifted, write=earlier.write * decay)
    path, memory = _walk(plan, _solve(affine, earlier, k, v), k, chunks.reset, memory, slow.initial)
    bound = gradient_bound({"matrix": k}, {"matrix": path.errors})
    if not torch.compiler.is_compiling() and not bool(torch.isfinite(bound)):
        return None
    y = _apply(plan if rule.read == "after" else before(plan), chunks.q, k, path)
    if not surprise:
        return Outcome(y, memory, None)
    loss = rule.bias.loss(_apply(earlier, k, k, path), v)
    norm = torch.linalg.vector_norm(path.errors, dim=-1) * torch.linalg.vector_norm(k, dim=-1)
    return Outcome(y, memory, Felt(loss, norm, torch.zeros_like(loss, dtype=torch.bool)))


class _System(NamedTuple):
    """The solved system: ``errors = with_dual A^T + with_momentum S^T - constant``, each ``[N, G, W, .]``."""

    with_dual: Tensor | None
    with_momentum: Tensor | None
    constant: Tensor


class _Path(NamedTuple):
    """Dual and momentum at the start of every chunk ``[N, G, V, K]``, and the errors ``[N, G, W, V]``."""

    dual: Tensor
    momentum: Tensor | None
    errors: Tensor


def _solve(affine: Affine, earlier: Coefficients, k: Tensor, v: Tensor) -> _System:
    constant = v if affine.gain == 1.0 else v * affine.gain
    if affine.slope == 0.0:
        return _System(None, None, constant)
    system = (k @ k.transpose(-1, -2)) * earlier.write * affine.slope
    sides = [k * (earlier.carry * affine.slope), constant]
    if earlier.inertia is not None:
        sides.insert(1, k * (earlier.inertia * affine.slope))
    solved = torch.linalg.solve_triangular(system, torch.cat(sides, -1), upper=False, unitriangular=True)
    parts = solved.split([s.shape[-1] for s in sides], -1)
    return _System(parts[0], parts[1] if len(parts) == 3 else None, parts[-1])


def _walk(
    plan: Coefficients, system: _System, k: Tensor, reset: Tensor | None, memory: Memory, initial: Weights
) -> tuple[_Path, Memory]:
    """Carries the memory from chunk to chunk: the only sequential part."""
    writes = (k * plan.weight).unbind(0)
    kept = plan.kept.unbind(0)
    pushes = inertias = fades = None
    if plan.gained is not None and plan.fade is not None and plan.push is not None:
        pushes, inertias, fades = (k * plan.push).unbind(0), plan.gained.unbind(0), plan.fade.unbind(0)
    constants = (-system.constant).unbind(0)
    with_dual = None if system.with_dual is None else system.with_dual.unbind(0)
    with_momentum = None if system.with_momentum is None else system.with_momentum.unbind(0)
    duals, momenta, errors = [], [], []
    for n, error in enumerate(constants):
        if reset is not None:
            zeros = {name: torch.zeros_like(w) for name, w in memory.momentum.items()}
            dual, momentum = choose(reset[n], initial, memory.dual), choose(reset[n], zeros, memory.momentum)
            memory = Memory(dual, momentum, {})
        a = memory.dual["matrix"]
        duals.append(a)
        if with_dual is not None:
            error = torch.baddbmm(error, with_dual[n], a.transpose(1, 2))
        new = a * kept[n]
        if pushes is not None and inertias is not None and fades is not None:
            s = memory.momentum["matrix"]
            momenta.append(s)
            if with_momentum is not None:
                error = torch.baddbmm(error, with_momentum[n], s.transpose(1, 2))
            new = torch.addcmul(new, s, inertias[n])
            s = torch.baddbmm(s * fades[n], error.transpose(1, 2), pushes[n], alpha=-1.0)
            memory = memory._replace(momentum={"matrix": s})
        errors.append(error)
        new = torch.baddbmm(new, error.transpose(1, 2), writes[n], alpha=-1.0)
        memory = memory._replace(dual={"matrix": new})
    path = _Path(torch.stack(duals), torch.stack(momenta) if momenta else None, torch.stack(errors))
    return path, memory._replace(anchor={})


def _apply(plan: Coefficients, h: Tensor, k: Tensor, path: _Path) -> Tensor:
    """Applies every token's weights to ``h [N, G, W, K]``, all chunks at once."""
    y = (h * plan.carry) @ path.dual.transpose(-1, -2)
    if plan.inertia is not None and path.momentum is not None:
        y = y + (h * plan.inertia) @ path.momentum.transpose(-1, -2)
    return y - ((h @ k.transpose(-1, -2)) * plan.write) @ path.errors
