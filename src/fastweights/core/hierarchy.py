"""TNT's hierarchy: one rule as several, whose states and answers stand side by side.

The global memory is the rule itself, read at its chunk's start. Beside each local memory, a second matrix collects the
keys of the local chunk, ``P_t = sum k k^T / |k|^2``; a query is projected by it before the local memory answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from fastweights.core.algorithm import GradientDescent, Hierarchy
from fastweights.core.architecture import Matrix
from fastweights.core.bias import DotProduct
from fastweights.core.checks import Call
from fastweights.core.retention import NoRetention, Reset, WeightDecay
from fastweights.core.rule import ANY_SIZE, Rule
from fastweights.core.types import Gates, MemoryState, Surprise

Weights = tuple[Tensor, ...]


class Part(NamedTuple):
    """One memory of the hierarchy: its rule, and how many maps it has."""

    rule: Rule
    maps: int


def parts(rule: Rule) -> list[Part]:
    """The global memory, the local ones, and the local ones' spans of keys."""
    algorithm = cast(Hierarchy, rule.algorithm)
    count = len(rule.architecture.maps(ANY_SIZE, ANY_SIZE))
    whole = replace(rule, algorithm=algorithm.step)
    again = Reset(cast(NoRetention | WeightDecay, rule.retention), algorithm.shard)
    local = [replace(whole, retention=again, chunk_size=c, read="after") for c in algorithm.local_chunks]
    spans = [
        Rule(Matrix(), DotProduct(), Reset(NoRetention(), c), GradientDescent(), chunk_size=c, clip=None)
        for c in algorithm.local_chunks
    ]
    return [Part(whole, count), *[Part(r, count) for r in local], *[Part(r, 1) for r in spans]]


def init_state(rule: Rule, initial: Weights, batch: int, init: Callable[..., MemoryState]) -> MemoryState:
    """The states of all memories in one."""
    return _join(
        [init(part.rule, given, batch) for part, given in zip(parts(rule), _initials(rule, initial), strict=True)]
    )


def run_hierarchy(
    call: Call, dispatch: Callable[[Call, Any], Any], grids: Any
) -> tuple[Tensor, MemoryState, Surprise | None]:
    """Runs all memories by the engine and adds their answers.

    ``loss`` and ``gradient_norm`` of the surprise are sums over the memories; the gates are shared.
    """
    found = parts(call.rule)
    states = _split(found, call.state)
    initials = _initials(call.rule, call.initial)
    local = (len(found) - 1) // 2
    grids = grids or [None] * len(found)

    def part(i: int, q: Tensor, v: Tensor, gates: Gates) -> Any:
        tier = call.tier if call.tier in found[i].rule.tiers else found[i].rule.tiers[0]
        own = call._replace(rule=found[i].rule, initial=initials[i], q=q, v=v, gates=gates, state=states[i], tier=tier)
        return dispatch(own, grids[i] if tier == found[i].rule.tiers[0] else None)

    results = [part(0, call.q, call.v, call.gates)]
    once = Gates(torch.ones_like(call.q[..., :1]))
    length = torch.linalg.vecdot(call.k, call.k).unsqueeze(-1)
    shortened = call.k / torch.where(length == 0, 1.0, length)
    spans = [part(1 + local + i, call.q, shortened, once) for i in range(local)]
    results += [part(1 + i, spans[i].y, call.v, call.gates) for i in range(local)]
    y = torch.stack([result.y for result in results]).sum(0)
    state = _join([result.state for result in (*results, *spans)])
    if not call.surprise:
        return y, state, None
    felt = [result.surprise for result in results]
    loss, norm = (torch.stack([getattr(f, name) for f in felt]).sum(0) for name in ("loss", "gradient_norm"))
    rejected = torch.stack([f.rejected for f in felt]).any(0)
    return y, state, felt[0]._replace(loss=loss, gradient_norm=norm, rejected=rejected)


def weights_in_force(rule: Rule, initial: Weights, state: MemoryState, in_force: Callable[..., Weights]) -> Weights:
    """Those of every memory; of the spans those that the last local chunk left."""
    found = parts(rule)
    local = (len(found) - 1) // 2
    known = list(zip(found, _initials(rule, initial), _split(found, state), strict=True))
    answering = [w for part, given, own in known[: 1 + local] for w in in_force(part.rule, given, own)]
    return (*answering, *[own.dual[0] for _, _, own in known[1 + local :]])


def read(rule: Rule, initial: Weights, weights: Weights, q: Tensor, read_one: Callable[..., Tensor]) -> Tensor:
    """What fixed weights answer to ``q [B, H, T, K]``."""
    found = parts(rule)
    local = (len(found) - 1) // 2
    initials = _initials(rule, initial)
    groups = _group(weights, [part.maps for part in found])
    y = read_one(found[0].rule, initials[0], groups[0], q)
    for i in range(1, 1 + local):
        projected = read_one(found[local + i].rule, initials[local + i], groups[local + i], q)
        y = y + read_one(found[i].rule, initials[i], groups[i], projected)
    return y


def _initials(rule: Rule, initial: Weights) -> list[Weights]:
    """The initial weights of every memory; those with the rule's architecture also need its constants."""
    found = parts(rule)
    count = len(rule.architecture.constants(ANY_SIZE, ANY_SIZE))
    constants = initial[len(initial) - count :] if count else ()
    groups = _group(initial, [part.maps for part in found])
    networks = 1 + (len(found) - 1) // 2
    return [(*group, *constants) if i < networks else group for i, group in enumerate(groups)]


def _group(tensors: Weights, counts: list[int]) -> list[Weights]:
    ends = list(accumulate(counts))
    return [tensors[end - count : end] for count, end in zip(counts, ends, strict=True)]


def _join(states: list[MemoryState]) -> MemoryState:
    fields = [tuple(w for state in states for w in state[i]) for i in range(3)]
    return MemoryState(fields[0], fields[1], fields[2], states[0].position)


def _split(found: list[Part], state: MemoryState) -> list[MemoryState]:
    has = [
        [part.maps for part in found],
        [part.maps * part.rule.has_momentum for part in found],
        [part.maps * part.rule.keeps_anchor for part in found],
    ]
    fields = [_group(tensors, counts) for tensors, counts in zip(state[:3], has, strict=True)]
    return [MemoryState(dual, momentum, anchor, state.position) for dual, momentum, anchor in zip(*fields, strict=True)]
