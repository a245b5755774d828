"""The delta tier where gates differ per key channel, or another key is erased than is written.

    A_t = A_{t-1} diag(a_t) - e_t x_t^T + v_t z_t^T,    e_t = slope A' r_t

with a per-channel (GLA, HGRN2, KDA, RWKV-7): r is the key that is looked at, ``x = lr * r`` what is erased, ``z`` the
key that is written, and A' either A_{t-1} or, with ``decay_before_grad``, ``A_{t-1} diag(a_t)``. Products of gates are
formed for every pair of slots and channel, so that nothing is divided by a gate. Cost per block of W tokens and head:
O(W^2 K) for the scores, and the products of the delta tier.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastweights.core.decay import products
from fastweights.core.gradient import Chunks, Felt, Memory, Outcome, Slow, gradient_bound
from fastweights.core.opening import choose
from fastweights.core.rule import Rule


class _Writes(NamedTuple):
    """One token's keys ``[N, G, W, K]``: looked at, erased, written; and its values ``[N, G, W, V]``."""

    look: Tensor
    erase: Tensor
    write: Tensor
    value: Tensor


class _Decay(NamedTuple):
    """Per channel: ``carry [N, G, W, K]`` from the block's start to a slot, ``pairs [N, G, K, W, W]`` between slots."""

    carry: Tensor
    pairs: Tensor

    def scores(self, h: Tensor, x: Tensor) -> Tensor:
        """``sum_c h_t x_i pairs_{t,i}`` per channel c, ``[N, G, W, W]``."""
        return torch.einsum("ngtc,ngcti,ngic->ngti", h, self.pairs, x)


def run_channels(rule: Rule, chunks: Chunks, memory: Memory, slow: Slow, surprise: bool) -> Outcome | None:
    """Runs a rule over its blocks; ``None`` where an inner gradient is not finite."""
    affine = rule.bias.affine()
    assert affine is not None, "Rule.tiers sends only affine gradients here"
    writes = _writes(rule, chunks, affine.gain)
    after = _decay(chunks)
    before = _Decay(_shift(after.carry, 1.0), _shift(after.pairs, 0.0))
    earlier = before
    if rule.decay_before_grad and chunks.retain is not None:
        gate = _retain(chunks)
        earlier = _Decay(before.carry * gate, before.pairs * gate.transpose(-1, -2).unsqueeze(-1))
    solved = _solve(earlier, writes, affine.slope) if affine.slope else None
    duals, errors, memory = _walk(chunks, memory, slow, writes, after, solved)
    bound = gradient_bound({"v": writes.write}, {"v": writes.value})
    if errors is not None:
        bound = bound + gradient_bound({"e": writes.erase}, {"e": errors})
    if not torch.compiler.is_compiling() and not bool(torch.isfinite(bound)):
        return None

    def applied(decay: _Decay, h: Tensor) -> Tensor:
        y = (h * decay.carry) @ duals.transpose(-1, -2)
        y = y if errors is None else y - decay.scores(h, writes.erase) @ errors
        return y + decay.scores(h, writes.write) @ writes.value

    y = applied(after if rule.read == "after" else before, chunks.q)
    if not surprise:
        return Outcome(y, memory, None)
    prediction = applied(earlier, writes.look)
    loss = rule.bias.loss(prediction, torch.zeros_like(prediction) if rule.erase_key else chunks.v)
    error = rule.bias.gradient(prediction, torch.zeros_like(prediction) if rule.erase_key else chunks.v)
    norm = torch.linalg.vector_norm(error, dim=-1) * torch.linalg.vector_norm(writes.look, dim=-1)
    return Outcome(y, memory, Felt(loss, norm, torch.zeros_like(loss, dtype=torch.bool)))


def _solve(earlier: _Decay, writes: _Writes, slope: float) -> tuple[Tensor, Tensor]:
    """What an error is of the dual at the block's start, and of the values before it."""
    sides = [
        writes.look * earlier.carry * slope,
        (earlier.scores(writes.look, writes.write) * slope) @ writes.value,
    ]
    system = earlier.scores(writes.look, writes.erase) * slope
    solved = torch.linalg.solve_triangular(system, torch.cat(sides, -1), upper=False, unitriangular=True)
    with_dual, constant = solved.split([s.shape[-1] for s in sides], -1)
    return with_dual, constant


def _writes(rule: Rule, chunks: Chunks, gain: float) -> _Writes:
    lr = chunks.lr if chunks.real is None else torch.where(chunks.real.unsqueeze(-1), chunks.lr, 0.0)
    if rule.erase_key:
        write, look = chunks.k.chunk(2, -1)
        value = chunks.v if chunks.real is None else torch.where(chunks.real.unsqueeze(-1), chunks.v, 0.0)
        return _Writes(look, lr * look, write, value)
    return _Writes(chunks.k, lr * chunks.k, lr * chunks.k, chunks.v * gain)


def _retain(chunks: Chunks) -> Tensor:
    """The retain gate of every key channel ``[N, G, W, K]``; 1 in empty slots."""
    assert chunks.retain is not None
    gate = chunks.retain.expand(*chunks.retain.shape[:-1], chunks.q.shape[-1])
    return gate if chunks.real is None else torch.where(chunks.real.unsqueeze(-1), gate, 1.0)


def _decay(chunks: Chunks) -> _Decay:
    if chunks.retain is None:
        gate = torch.ones_like(chunks.q)
    else:
        gate = _retain(chunks)
    pairs = products(gate.transpose(-1, -2))
    return _Decay(pairs[..., 0].transpose(-1, -2) * gate[..., :1, :], pairs)


def _shift(rows: Tensor, fill: float) -> Tensor:
    """Every row one later along the second last dimension, ``fill`` in the first."""
    return torch.cat([torch.full_like(rows[..., :1, :], fill), rows[..., :-1, :]], -2)


def _walk(
    chunks: Chunks, memory: Memory, slow: Slow, writes: _Writes, decay: _Decay, solved: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor | None, Memory]:
    """Duals at the start of every block ``[N, G, V, K]``, errors ``[N, G, W, V]`` if any, and the memory at the end."""
    last = decay.pairs[..., -1, :].transpose(-1, -2)
    erased, written = (writes.erase * last).unbind(0), (writes.write * last).unbind(0)
    kept, values = decay.carry[:, :, -1:].unbind(0), writes.value.unbind(0)
    parts = None if solved is None else (solved[0].unbind(0), solved[1].unbind(0))
    dual = memory.dual["matrix"]
    duals, errors = [], []
    for n, value in enumerate(values):
        if chunks.reset is not None:
            dual = choose(chunks.reset[n], slow.initial, {"matrix": dual})["matrix"]
        duals.append(dual)
        new = dual * kept[n]
        if parts is not None:
            errors.append(torch.baddbmm(parts[1][n], parts[0][n], dual.transpose(1, 2)))
            new = torch.baddbmm(new, errors[-1].transpose(1, 2), erased[n], alpha=-1.0)
        dual = torch.baddbmm(new, value.transpose(1, 2), written[n])
    return torch.stack(duals), torch.stack(errors) if errors else None, Memory({"matrix": dual}, {}, {})
