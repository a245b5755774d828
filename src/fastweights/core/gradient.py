"""The inner gradients of one chunk at its anchor, as rank-one factors: shared by the dual and materialised tiers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastweights.core.rule import Rule

Weights = dict[str, Tensor]


class Chunks(NamedTuple):
    """The inputs of a run on its grid; G = batch x heads, n = 1, maps or channels according to the gate's scope.

    ``q``, ``k`` ``[N, G, W, K]``, ``v`` ``[N, G, W, V]``, gates ``[N, G, W, n]``; ``real`` bool ``[N, G, W]`` is False
    where a slot holds no token (``None``: all do); ``fresh`` bool ``[N, G]`` where a chunk opens; ``reset`` bool
    ``[N, G]`` where a document begins (``None``: nowhere); ``aligned``: every chunk is fresh.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    lr: Tensor
    momentum: Tensor | None
    retain: Tensor | None
    real: Tensor | None
    fresh: Tensor
    reset: Tensor | None
    aligned: bool


class Memory(NamedTuple):
    """Weights of all maps while a run goes on, each ``[G, outputs, inputs]``; ``momentum`` may be empty."""

    dual: Weights
    momentum: Weights
    anchor: Weights


class Outcome(NamedTuple):
    """What a tier returns: answers ``[N, G, W, V]``, the memory at the end, loss and gradient norm ``[N, G, W]``."""

    y: Tensor
    memory: Memory
    loss: Tensor | None
    gradient_norm: Tensor | None


class Gradients(NamedTuple):
    """Inner gradients of a chunk: ``delta_i x_i^T`` for each token and map, at the chunk's anchor."""

    inputs: Weights
    deltas: Weights
    loss: Tensor | None
    norm: Tensor | None


def chunk_gradients(rule: Rule, anchor: Weights, k: Tensor, v: Tensor, surprise: bool) -> Gradients:
    """Gradients of one chunk ``k [G, W, K]``, ``v [G, W, V]``, clipped as the rule says.

    A token whose inner gradient is not finite gets a zero gradient: it writes nothing.
    """
    inputs: Weights = {}
    deltas: Weights = {}

    def linear(name: str, x: Tensor) -> Tensor:
        inputs[name] = x
        return torch.bmm(x, anchor[name].transpose(1, 2))

    def back(name: str, delta: Tensor) -> Tensor:
        return torch.bmm(delta, anchor[name])

    prediction, tape = rule.architecture.forward(linear, k)
    rule.architecture.backward(deltas.__setitem__, back, tape, rule.bias.gradient(prediction, v))
    loss = rule.bias.loss(prediction, v) if surprise else None
    squared = _squared_norm(inputs, deltas)
    finite = torch.isfinite(squared)
    if torch.compiler.is_compiling() or not bool(finite.all()):
        squared = torch.where(finite, squared, 0.0)
        keep = finite.unsqueeze(-1)
        inputs = {name: torch.where(keep, x, 0.0) for name, x in inputs.items()}
        deltas = {name: torch.where(keep, d, 0.0) for name, d in deltas.items()}
    if rule.clip is not None:
        scale = (rule.clip * torch.rsqrt(squared.clamp_min(rule.clip**2))).unsqueeze(-1)
        deltas = {name: d * scale for name, d in deltas.items()}
    return Gradients(inputs, deltas, loss, squared.sqrt() if surprise else None)


def _squared_norm(inputs: Weights, deltas: Weights) -> Tensor:
    """Squared norm of each token's whole gradient, from its rank-one factors: sum over maps of |delta|^2 |x|^2."""
    total: Tensor | None = None
    for name, delta in deltas.items():
        x = inputs[name]
        term = torch.linalg.vecdot(delta, delta) * torch.linalg.vecdot(x, x)
        total = term if total is None else total + term
    assert total is not None, "a memory has at least one map"
    return total


def open_chunk(memory: Memory, initial: Weights, fresh: Tensor, reset: Tensor | None, aligned: bool) -> Memory:
    """Starts a chunk: documents that begin get the initial weights, chunks that open take a new anchor."""
    dual, momentum, anchor = memory
    if reset is not None:
        begins = reset[:, None, None]
        dual = {name: torch.where(begins, initial[name], w) for name, w in dual.items()}
        momentum = {name: torch.where(begins, 0.0, w) for name, w in momentum.items()}
    if aligned:
        return Memory(dual, momentum, dual)
    opens = fresh[:, None, None]
    return Memory(dual, momentum, {name: torch.where(opens, w, anchor[name]) for name, w in dual.items()})
