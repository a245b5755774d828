"""Rows of the reference for memories that solve instead of stepping, written out without any shortcut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastweights.core.checks import Call
from fastweights.core.rule import Rule

if TYPE_CHECKING:
    from fastweights.core.reference import Ended, Row


def least_squares_row(call: Call, row: Row) -> Ended:
    """MesaNet, each query by a direct solve."""
    from fastweights.core.reference import Ended

    algorithm: Any = call.rule.algorithm
    ridge = torch.diag_embed(F.softplus(call.constants()["ridge"][:, 0]) + algorithm.ridge)
    values, keys = row.dual
    answers, losses, norms = [], [], []
    for t in range(len(row.position)):
        if row.reset[t]:
            values, keys = call.initial[:2]
        k, v = row.k[:, t, :, None], row.v[:, t, :, None]
        assert row.gates.lr is not None
        error = values @ torch.linalg.solve(0.5 * (keys + keys.transpose(1, 2)) + ridge, k) - v
        losses.append(call.rule.bias.loss(error[..., 0], torch.zeros_like(v[..., 0])))
        gradient = call.rule.bias.gradient(error[..., 0], torch.zeros_like(v[..., 0]))
        norms.append(torch.linalg.vector_norm(gradient, dim=-1) * torch.linalg.vector_norm(k, dim=(1, 2)))
        lr = row.gates.lr[:, t, :, None]
        retain = 1.0 if row.gates.retain is None else row.gates.retain[:, t, :, None]
        alive = ~row.rejected[:, t, None, None]
        values = torch.where(alive, retain * values + lr * v @ k.transpose(1, 2), values)
        keys = torch.where(alive, retain * keys + lr * k @ k.transpose(1, 2), keys)
        system = 0.5 * (keys + keys.transpose(1, 2)) + ridge
        answers.append((values @ torch.linalg.solve(system, row.q[:, t, :, None]))[..., 0])
    y, loss, norm = (torch.stack(found, 1) if found else like for found, like in _pairs(row, answers, losses, norms))
    return Ended(y, ((values, keys), (), (), ()), loss, norm, torch.zeros_like(loss, dtype=torch.bool))


def attend_row(call: Call, row: Row) -> Ended:
    """Softmax attention, each query over a list of pairs."""
    from fastweights.core.reference import Ended

    scale, size = call.initial[-1][:, 0], call.q.shape[-1]
    kept = [tuple(x[:, j] for x in row.extra) for j in range(row.start)]
    answers, losses, norms = [], [], []
    for t in range(len(row.position)):
        kept = [] if row.reset[t] else kept
        before = _attended(row.k[:, t], kept, scale, size, row.v[:, t])
        losses.append(0.5 * (before - row.v[:, t]).square().sum(-1))
        norms.append(torch.linalg.vector_norm(before - row.v[:, t], dim=-1))
        usable = (~row.rejected[:, t, None]).to(row.k.dtype)
        kept = [*kept, (row.k[:, t], row.v[:, t], usable)]
        answers.append(_attended(row.q[:, t], kept, scale, size, row.v[:, t]))
    y, loss, norm = (torch.stack(found, 1) if found else like for found, like in _pairs(row, answers, losses, norms))
    stored = [torch.stack(x, 1) if x else e[:, :0] for x, e in _columns(kept, row)]
    return Ended(y, ((), (), (), tuple(stored)), loss, norm, torch.zeros_like(loss, dtype=torch.bool))


def _columns(kept: list[tuple[Tensor, ...]], row: Row) -> list[tuple[list[Tensor], Tensor]]:
    return [([pair[i] for pair in kept], row.extra[i]) for i in range(3)]


def _attended(q: Tensor, kept: list[tuple[Tensor, ...]], scale: Tensor, size: int, like: Tensor) -> Tensor:
    """``[H, V]``, head by head: each may have refused other tokens."""
    answers = []
    for h in range(len(q)):
        pairs = [(k[h], v[h]) for k, v, usable in kept if bool(usable[h] > 0)]
        if not pairs:
            answers.append(torch.zeros_like(like[h]))
            continue
        keys, values = (torch.stack(column) for column in zip(*pairs, strict=True))
        scores = (keys @ q[h]) * scale[h] / size**0.5
        answers.append(torch.softmax(scores, 0) @ values)
    return torch.stack(answers)


def _pairs(row: Row, answers: list[Tensor], *numbers: list[Tensor]) -> list[tuple[list[Tensor], Tensor]]:
    """Each list with what stands for it where a row brings no token."""
    return [(answers, row.v), *[(found, row.v[:, :, 0]) for found in numbers]]


def implicit_step(rule: Rule, weights: Tensor, lr: Tensor, token: Any) -> Tensor:
    """The W that solves ``W - A + lr grad(W) = 0`` for ``A [H, V, K]``, squared error."""
    affine = rule.bias.affine()
    assert affine is not None
    k, v = token.k.unsqueeze(-1), token.v.unsqueeze(-1)
    identity = torch.eye(k.shape[1], dtype=k.dtype, device=k.device)
    system = identity + affine.slope * lr * k @ k.transpose(1, 2)
    return torch.linalg.solve(system, weights + affine.gain * lr * v @ k.transpose(1, 2), left=False)


def erase_step(
    rule: Rule, weights: Tensor, keep: list[Tensor] | None, lr: Tensor, token: Any
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """RWKV-7's write; loss and gradient norm of what it erases, and where that is not finite: nothing is written."""
    key, erased = token.k.chunk(2, -1)
    held = (weights @ erased.unsqueeze(-1))[..., 0]
    zero = torch.zeros_like(held)
    gradient = rule.bias.gradient(held, zero)
    norm = torch.linalg.vector_norm(gradient, dim=-1) * torch.linalg.vector_norm(erased, dim=-1)
    overflown = ~torch.isfinite(norm.square())
    if bool(overflown.any()):
        silent = [torch.where(overflown[:, None], 0.0, x) for x in (token.k, token.v)]
        new, (loss, norm, _) = erase_step(rule, weights, keep, lr, token._replace(k=silent[0], v=silent[1]))
        return new, (loss, norm, overflown)
    kept = weights if keep is None else keep[0] * weights
    new = kept - lr * gradient.unsqueeze(-1) * erased.unsqueeze(1) + token.v.unsqueeze(-1) * key.unsqueeze(1)
    return new, (rule.bias.loss(held, zero), norm, overflown)
