"""One trial: random inputs, our answer, their answer, and how far they are apart.

Everything is in our convention: sequences ``[B, H, T, .]``, memories ``[B, H, V, K]``, gates that multiply. What a peer
does otherwise is turned around in its adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastweights.core.engine import init_state, run
from fastweights.core.rule import Rule
from fastweights.core.types import Gates

BATCH, HEADS, KEY, VALUE = 2, 3, 8, 6
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


class Inputs(NamedTuple):
    """What a call brings; ``retain`` is ``[B, H, T]`` or, per key channel, ``[B, H, T, K]``."""

    q: Tensor
    k: Tensor
    v: Tensor
    lr: Tensor
    momentum: Tensor
    retain: Tensor
    memory: Tensor
    surprise: Tensor


class Answer(NamedTuple):
    """Reads ``[B, H, T, V]`` and the final state, one tensor ``[B, H, V, K]`` per part; empty if it is not returned."""

    y: Tensor
    state: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """One line of results/peers.json."""

    peer: str
    function: str
    rule: str
    compared: str
    dtype: str
    largest_difference: float
    agrees: bool = True
    note: str = ""


MEASURED: list[Measurement] = []


def draw(
    dtype: torch.dtype, length: int = 128, value: int = VALUE, channels: bool = False, empty: bool = False
) -> Inputs:
    """Random inputs: unit queries and keys, gates that forget and carry a lot, a memory that is not empty.

    Args:
        dtype: of every tensor.
        length: T.
        value: V.
        channels: draw ``retain`` per key channel instead of per head.
        empty: the initial memory and momentum are zero, for peers that can start from nothing else.
    """
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

    size = BATCH, HEADS, length
    q, k = (torch.nn.functional.normalize(normal(*size, KEY), dim=-1) for _ in range(2))
    lr, momentum = uniform(0.1, 0.9, *size), uniform(0.1, 0.9, *size)
    retain = uniform(0.8, 1.0, *size, KEY) if channels else uniform(0.8, 1.0, *size)
    scale = 0.0 if empty else 1.0
    memory, surprise = scale * normal(BATCH, HEADS, value, KEY), 0.1 * scale * normal(BATCH, HEADS, value, KEY)
    return Inputs(*[x.to(dtype) for x in (q, k, normal(*size, value), lr, momentum, retain, memory, surprise)])


def answer(rule: Rule, given: Inputs) -> Answer:
    """Ours: the rule on its fastest exact tier, on a memory of one matrix."""
    _, momentum_scope, retain_scope = rule.scopes[:3]
    gates = Gates(
        lr=given.lr,
        momentum=None if momentum_scope is None else given.momentum,
        retain=None if retain_scope is None else given.retain,
    )
    initial = (torch.zeros_like(given.memory[0]),)
    start = init_state(rule, initial, given.q.shape[0])
    start = start._replace(dual=(given.memory,), momentum=(given.surprise,) if rule.has_momentum else ())
    result = run(rule, initial, given.q, given.k, given.v, gates, start)
    return Answer(result.y, (*result.state.dual, *result.state.momentum))


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, as a part of the largest value where that is above 1; both must be finite."""
    assert ours.shape == theirs.shape
    assert torch.isfinite(ours).all(), "ours is not finite"
    assert torch.isfinite(theirs).all(), "theirs is not finite"
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1.0)).item()


def compare(
    peer: str, function: str, rule: str, ours: Answer, theirs: Answer, tolerance: float | None = None, note: str = ""
) -> None:
    """Asserts that the answers, and the states where the peer returns one, are the same; notes how much they differ."""
    assert len(theirs.state) in (0, len(ours.state))
    pairs = [(ours.y, theirs.y), *zip(ours.state, theirs.state, strict=False)]
    compared = "answers, final state" if theirs.state else "answers"
    _measure(peer, function, rule, compared, pairs, tolerance or TOLERANCE[theirs.y.dtype], note)


def compare_outer_gradients(
    peer: str, function: str, rule: str, ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], tolerance: float
) -> None:
    """As :func:`compare`, for what :func:`outer_gradients` finds."""
    _measure(peer, function, rule, "outer gradients", list(zip(ours, theirs, strict=True)), tolerance, "")


def _measure(
    peer: str, function: str, rule: str, compared: str, pairs: list[tuple[Tensor, Tensor]], limit: float, note: str
) -> None:
    largest = max(difference(mine, other) for mine, other in pairs)
    dtype = str(pairs[0][1].dtype).removeprefix("torch.")
    MEASURED.append(Measurement(peer, function, rule, compared, dtype, largest, note=note))
    assert largest <= limit, f"{peer} {function} differs from {rule} in {compared} by {largest:.1e}"


def outer_gradients(y: Tensor, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of a random weighted sum of the answers, through every write; 0 for a leaf that was not used."""
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.autograd.grad((y * weights.to(y.dtype)).sum(), leaves, allow_unused=True, materialize_grads=True)


def record_disagreement(peer: str, function: str, rule: str, compared: str, largest: float, note: str) -> None:
    """Notes where a peer is wrong, for a test that has shown it."""
    MEASURED.append(Measurement(peer, function, rule, compared, "float32", largest, agrees=False, note=note))
