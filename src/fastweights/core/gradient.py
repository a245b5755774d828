"""The inner gradients of one chunk at its anchor, as rank-one factors: shared by the dual and materialised tiers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from fastweights.core.rule import Rule

Weights = dict[str, Tensor]


class Chunks(NamedTuple):
    """The inputs of a run on its grid; G = batch x heads, n = 1, maps or channels according to the gate's scope.

    ``q``, ``k`` ``[N, G, W, K]``, ``v`` ``[N, G, W, V]``, gates ``[N, G, W, n]``; ``real`` bool ``[N, G, W]`` is False
    where a slot holds no token (``None``: all do); ``fresh`` bool ``[N, G]`` where a chunk opens (``None``: all do);
    ``reset`` bool ``[N, G]`` where a document begins (``None``: nowhere).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    lr: Tensor
    momentum: Tensor | None
    retain: Tensor | None
    real: Tensor | None
    fresh: Tensor | None
    reset: Tensor | None


class Memory(NamedTuple):
    """Weights of all maps while a run goes on, each ``[G, outputs, inputs]``; ``momentum`` may be empty."""

    dual: Weights
    momentum: Weights
    anchor: Weights


class Felt(NamedTuple):
    """What the inner gradients showed, ``[N, G, W]`` each; ``rejected`` where a gradient was not finite."""

    loss: Tensor
    gradient_norm: Tensor
    rejected: Tensor


class Outcome(NamedTuple):
    """What a tier returns: answers ``[N, G, W, V]``, the memory at the end, and what was felt if asked for."""

    y: Tensor
    memory: Memory
    felt: Felt | None


class Gradients(NamedTuple):
    """Inner gradients of a chunk: ``delta_i x_i^T`` for each token and map, at the chunk's anchor.

    ``bound`` is not finite if any of them may not be; ``None`` where those were taken out.
    """

    inputs: Weights
    deltas: Weights
    felt: Felt | None
    bound: Tensor | None


def chunk_gradients(rule: Rule, anchor: Weights, k: Tensor, v: Tensor, careful: bool) -> Gradients:
    """Gradients of one chunk ``k [G, W, K]``, ``v [G, W, V]`` at an anchor, clipped as the rule says.

    With care every token is looked at, and what was felt comes back too. Without, the caller looks at ``bound``, and
    where it is not finite asks again with care.
    """
    if careful:
        return _careful_gradients(rule, anchor, k, v)
    inputs, deltas, _ = _factors(rule, anchor, k, v)
    bound = gradient_bound(inputs, deltas)
    if rule.clip is not None:
        deltas = _clipped(rule.clip, deltas, _squared_norm(inputs, deltas))
    return Gradients(inputs, deltas, None, bound)


def _careful_gradients(rule: Rule, anchor: Weights, k: Tensor, v: Tensor) -> Gradients:
    """A token whose inner gradient is not finite gets a zero gradient: it writes nothing, while its gates still act."""
    inputs, deltas, prediction = _factors(rule, anchor, k, v)
    squared = _squared_norm(inputs, deltas)
    rejected = ~torch.isfinite(squared)
    if torch.is_grad_enabled() and (torch.compiler.is_compiling() or bool(rejected.any())):
        # Again without those tokens: an infinity that is only masked still makes outer gradients NaN.
        k, v = (torch.where(rejected.unsqueeze(-1), 0.0, x) for x in (k, v))
        inputs, deltas, prediction = _factors(rule, anchor, k, v)
        squared = _squared_norm(inputs, deltas)
    squared = torch.where(rejected, 0.0, squared)
    drop = rejected.unsqueeze(-1)
    inputs = {name: torch.where(drop, 0.0, x) for name, x in inputs.items()}
    deltas = {name: torch.where(drop, 0.0, d) for name, d in deltas.items()}
    if rule.clip is not None:
        deltas = _clipped(rule.clip, deltas, squared)
    loss = torch.where(rejected, 0.0, rule.bias.loss(prediction, v))
    return Gradients(inputs, deltas, Felt(loss, _root(squared), rejected), None)


def _clipped(clip: float, deltas: Weights, squared: Tensor) -> Weights:
    scale = (clip * torch.rsqrt(squared.clamp_min(clip**2))).unsqueeze(-1)
    return {name: d * scale for name, d in deltas.items()}


def trust_first(program: Callable[[bool], tuple[Outcome, list[Tensor]]], surprise: bool) -> Outcome:
    """Runs a program without care for single tokens, and again with care where an inner gradient was not finite.

    Args:
        program: takes whether to be careful; returns what it computed and the bounds of its gradients.
        surprise: whether what was felt is asked for, which takes care from the start.
    """
    if not surprise and not torch.compiler.is_compiling():
        outcome, bounds = program(False)
        if not bounds or bool(torch.isfinite(torch.stack(bounds)).all()):
            return outcome
        del outcome, bounds
    outcome, _ = program(True)
    return outcome if surprise else outcome._replace(felt=None)


def _factors(rule: Rule, anchor: Weights, k: Tensor, v: Tensor) -> tuple[Weights, Weights, Tensor]:
    """Inputs and output gradients of every map, and the prediction, at the anchor."""
    inputs: Weights = {}
    deltas: Weights = {}

    def linear(name: str, x: Tensor) -> Tensor:
        inputs[name] = x
        return torch.bmm(x, anchor[name].transpose(1, 2))

    def back(name: str, delta: Tensor) -> Tensor:
        return torch.bmm(delta, anchor[name])

    prediction, tape = rule.architecture.forward(linear, k)
    rule.architecture.backward(deltas.__setitem__, back, tape, rule.bias.gradient(prediction, v))
    return inputs, deltas, prediction


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no number is infinite or NaN; one pass, since a finite sum has only finite terms.

    A sum that overflows although its terms are finite answers False, which costs a closer look and nothing else.
    """
    return bool(torch.isfinite(torch.stack([x.detach().sum() for x in tensors]).sum()))


def gradient_bound(inputs: Weights, deltas: Weights) -> Tensor:
    """A number that is finite only if every gradient has a finite squared norm: sums over all tokens bound every one.

    A bound that overflows although no token does costs a second run and nothing else.
    """

    def total(x: Tensor) -> Tensor:
        flat = x.detach().flatten()
        return torch.dot(flat, flat)

    return torch.stack([total(d) * total(inputs[name]) for name, d in deltas.items()]).sum()


def _squared_norm(inputs: Weights, deltas: Weights) -> Tensor:
    """Squared norm of each token's whole gradient, from its rank-one factors: sum over maps of |delta|^2 |x|^2."""
    total: Tensor | None = None
    for name, delta in deltas.items():
        x = inputs[name]
        term = torch.linalg.vecdot(delta, delta) * torch.linalg.vecdot(x, x)
        total = term if total is None else total + term
    assert total is not None, "a memory has at least one map"
    return total


def _root(squared: Tensor) -> Tensor:
    """Square root whose derivative at 0 is 0: empty slots have a zero gradient, and infinity times zero is NaN."""
    empty = squared == 0.0
    return torch.where(empty, 1.0, squared).sqrt().masked_fill(empty, 0.0)


def gather_felt(felt: list[Felt | None]) -> Felt | None:
    """Stacks what was felt in each chunk; ``None`` where it was not asked for."""
    found = [f for f in felt if f is not None]
    return Felt(*[torch.stack(field) for field in zip(*found, strict=True)]) if found else None


def open_chunk(memory: Memory, initial: Weights, fresh: Tensor | None, reset: Tensor | None) -> Memory:
    """Starts a chunk: documents that begin get the initial weights, chunks that open take a new anchor."""
    dual, momentum, anchor = memory
    if reset is not None:
        begins = reset[:, None, None]
        dual = {name: torch.where(begins, initial[name], w) for name, w in dual.items()}
        momentum = {name: torch.where(begins, 0.0, w) for name, w in momentum.items()}
    if fresh is None:
        return Memory(dual, momentum, dual)
    opens = fresh[:, None, None]
    return Memory(dual, momentum, {name: torch.where(opens, w, anchor[name]) for name, w in dual.items()})
