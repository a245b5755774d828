"""Where a chunk opens: what the chunk before left is settled and projected, documents begin, a new anchor is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastweights.core.gradient import Gradients, Memory, Slow
from fastweights.core.network import Weights
from fastweights.core.rule import Rule


class Opening(NamedTuple):
    """How one chunk opens; bool ``[G]`` each.

    Attributes:
        fresh: a chunk opens (``None``: everywhere).
        reset: a document begins (``None``: nowhere).
        start: int64 ``[G]``, position of the chunk's first token.
    """

    fresh: Tensor | None
    reset: Tensor | None
    start: Tensor


def open_chunk(rule: Rule, memory: Memory, slow: Slow, opening: Opening) -> Memory:
    """The memory with which a chunk is read; its anchor holds the weights in force."""
    fresh, reset, _ = opening
    dual, momentum, anchor = memory
    if rule.settles:
        dual, reset = _settle(rule, memory, slow, opening)
    if reset is not None:
        dual = choose(reset, slow.initial, dual)
        momentum = choose(reset, {name: torch.zeros_like(w) for name, w in momentum.items()}, momentum)
    in_force = link(rule, dual)
    return Memory(dual, momentum, in_force if fresh is None else choose(fresh, in_force, anchor))


def _settle(rule: Rule, memory: Memory, slow: Slow, opening: Opening) -> tuple[Weights, Tensor | None]:
    """What becomes of the dual where a later chunk of a document opens, and which memories begin anew."""
    dual, momentum, anchor = memory
    later = opening.start > 0 if opening.fresh is None else opening.fresh & (opening.start > 0)
    if not torch.compiler.is_compiling() and not bool(later.any()):
        return dual, opening.reset
    if rule.algorithm.coupling == "deferred":
        dual = choose(later, {name: rule.algorithm.settle(w, momentum[name]) for name, w in dual.items()}, dual)
    if rule.retention.projects:
        project = rule.retention.project
        dual = choose(later, {name: project(w, anchor[name], slow.initial[name]) for name, w in dual.items()}, dual)
    if rule.retention.every is None:
        return dual, opening.reset
    again = later & (opening.start % rule.retention.every == 0)
    return dual, again if opening.reset is None else opening.reset | again


def link(rule: Rule, dual: Weights) -> Weights:
    """The weights in force."""
    return dual if rule.retention.link_at is None else {name: rule.retention.link(w) for name, w in dual.items()}


def choose(where: Tensor, new: Weights, old: Weights) -> Weights:
    """``new`` in the groups where ``where [G]`` is true."""
    mask = where[:, None, None]
    return {name: torch.where(mask, new[name], w) for name, w in old.items()}


def lag_token(
    rule: Rule,
    memory: Memory,
    opening: Opening,
    gradients: Callable[[Weights, slice], Gradients],
    advance: Callable[[Gradients], Weights],
) -> tuple[Memory, Gradients]:
    """Memora's lag token (MIRAS eq. 30): the first token of a chunk is written before the others' gradients are taken.

    Args:
        rule: the rule.
        memory: as the chunk opens.
        opening: how it opens.
        gradients: those of some tokens of the chunk at an anchor.
        advance: the dual after the first token, from its gradient.

    Returns:
        The memory with the anchor that the other tokens have, and the gradients of all.
    """
    first = gradients(memory.anchor, slice(0, 1))
    anchor = link(rule, advance(first))
    anchor = anchor if opening.fresh is None else choose(opening.fresh, anchor, memory.anchor)
    rest = gradients(anchor, slice(None))
    joined = [_first_of(opening.fresh, a, b) for a, b in zip(first[:2], rest[:2], strict=True)]
    felt = rest.felt
    if first.felt is not None and rest.felt is not None:
        pairs = zip(first.felt, rest.felt, strict=True)
        felt = type(rest.felt)(*[_put_first(opening.fresh, a, b) for a, b in pairs])
    bound = None if first.bound is None or rest.bound is None else first.bound + rest.bound
    return memory._replace(anchor=anchor), Gradients(joined[0], joined[1], felt, bound)


def _first_of(fresh: Tensor | None, first: Weights, rest: Weights) -> Weights:
    return {name: _put_first(fresh, first[name], x) for name, x in rest.items()}


def _put_first(fresh: Tensor | None, first: Tensor, rest: Tensor) -> Tensor:
    """Slot 0 of ``first [G, 1, ...]``, where the chunk is fresh, before the later slots of ``rest [G, W, ...]``."""
    if fresh is not None:
        first = torch.where(fresh.reshape(-1, *[1] * (rest.dim() - 1)), first, rest[:, :1])
    return torch.cat([first, rest[:, 1:]], 1)
