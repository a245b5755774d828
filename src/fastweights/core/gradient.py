"""The inner gradients of one chunk at its anchor, as rank-one factors: shared by the dual and materialised tiers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from fastweights.core.network import Weights, apply, plain, pull, squared
from fastweights.core.rule import Rule


class Chunks(NamedTuple):
    """The inputs of a run on its grid; G = batch x heads, n = 1, maps or channels according to the gate's scope.

    ``q`` ``[N, G, W, K]``, gates ``[N, G, W, n]``; ``k`` ``[N, G, S, K]``, ``v`` ``[N, G, S, V]`` and ``threshold``
    ``[N, G, S, 1]`` are those of the source tokens: the chunk's own, S = W, and before them those a window still holds.
    ``band`` ``[N, G, W, S]`` is how much each step writes of each source (``None``: its own token).
    ``real`` bool ``[N, G, W]`` is False where a slot holds no token (``None``: all do); ``fresh`` bool ``[N, G]`` where
    a chunk opens (``None``: all do); ``reset`` bool ``[N, G]`` where a document begins (``None``: nowhere); ``start``
    int64 ``[N, G]`` the position of a chunk's first token.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    lr: Tensor
    momentum: Tensor | None
    retain: Tensor | None
    threshold: Tensor | None
    band: Tensor | None
    real: Tensor | None
    fresh: Tensor | None
    reset: Tensor | None
    start: Tensor


class Memory(NamedTuple):
    """Weights of all maps while a run goes on, each ``[G, outputs, inputs]``; ``momentum`` may be empty."""

    dual: Weights
    momentum: Weights
    anchor: Weights


class Slow(NamedTuple):
    """What no token changes: the duals that documents begin with, and the architecture's constants ``[G, 1, n]``."""

    initial: Weights
    constants: Weights


class Sources(NamedTuple):
    """The tokens of one chunk that are written: ``k [G, S, K]``, ``v [G, S, V]``, ``threshold [G, S, 1]``."""

    k: Tensor
    v: Tensor
    threshold: Tensor | None


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


def chunk_gradients(rule: Rule, anchor: Weights, slow: Slow, sources: Sources, careful: bool) -> Gradients:
    """Gradients of one chunk's sources at an anchor, clipped as the rule says.

    With care every token is looked at, and what was felt comes back too. Without, the caller looks at ``bound``, and
    where it is not finite asks again with care.
    """
    if careful:
        return _careful_gradients(rule, anchor, slow, sources)
    inputs, deltas, _ = _factors(rule, anchor, slow, sources)
    bound = gradient_bound(inputs, deltas)
    if rule.clip is not None:
        deltas = _clipped(rule.clip, deltas, _squared_norm(rule, inputs, deltas))
    return Gradients(inputs, deltas, None, bound)


def _careful_gradients(rule: Rule, anchor: Weights, slow: Slow, sources: Sources) -> Gradients:
    """A token whose inner gradient is not finite gets a zero gradient: it writes nothing, while its gates still act."""
    inputs, deltas, prediction = _factors(rule, anchor, slow, sources)
    squared_norm = _squared_norm(rule, inputs, deltas)
    rejected = ~torch.isfinite(squared_norm)
    if torch.is_grad_enabled() and (torch.compiler.is_compiling() or bool(rejected.any())):
        # Again without those tokens: an infinity that is only masked still makes outer gradients NaN.
        k, v = (torch.where(rejected.unsqueeze(-1), 0.0, x) for x in sources[:2])
        sources = sources._replace(k=k, v=v)
        inputs, deltas, prediction = _factors(rule, anchor, slow, sources)
        squared_norm = _squared_norm(rule, inputs, deltas)
    squared_norm = torch.where(rejected, 0.0, squared_norm)
    drop = rejected.unsqueeze(-1)
    inputs = {name: torch.where(drop, 0.0, x) for name, x in inputs.items()}
    deltas = {name: torch.where(drop, 0.0, d) for name, d in deltas.items()}
    if rule.clip is not None:
        deltas = _clipped(rule.clip, deltas, squared_norm)
    loss = torch.where(rejected, 0.0, rule.bias.loss(prediction, sources.v, sources.threshold))
    return Gradients(inputs, deltas, Felt(loss, _root(squared_norm), rejected), None)


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


def _factors(rule: Rule, anchor: Weights, slow: Slow, sources: Sources) -> tuple[Weights, Weights, Tensor]:
    """Inputs and output gradients of every map, and the prediction, at the anchor."""
    if not rule.architecture.closed_form:
        return _factors_by_autograd(rule, anchor, slow, sources)
    inputs: Weights = {}
    deltas: Weights = {}
    scaled = rule.architecture.elementwise
    fixed = plain(anchor, slow.constants, scaled)

    def linear(name: str, x: Tensor) -> Tensor:
        if name in anchor:
            inputs[name] = x
        return fixed(name, x)

    def back(name: str, delta: Tensor) -> Tensor:
        return pull(anchor[name], delta, name in scaled)

    prediction, tape = rule.architecture.forward(linear, sources.k)
    grad = rule.bias.gradient(prediction, sources.v, sources.threshold)
    rule.architecture.backward(deltas.__setitem__, back, tape, grad)
    return inputs, deltas, prediction


def _factors_by_autograd(rule: Rule, anchor: Weights, slow: Slow, sources: Sources) -> tuple[Weights, Weights, Tensor]:
    """As :func:`_factors`, for an architecture without a backward of its own."""
    inputs: Weights = {}
    outputs: Weights = {}
    scaled = rule.architecture.elementwise
    differentiable = torch.is_grad_enabled()

    def linear(name: str, x: Tensor) -> Tensor:
        if name in slow.constants:
            return x * slow.constants[name]
        inputs[name] = x
        outputs[name] = apply(anchor[name], x, name in scaled)
        if not outputs[name].requires_grad:
            outputs[name].requires_grad_()
        return outputs[name]

    with torch.enable_grad():
        prediction, _ = rule.architecture.forward(linear, sources.k)
        loss = rule.bias.loss(prediction, sources.v, sources.threshold).sum()
        grads = torch.autograd.grad(loss, list(outputs.values()), create_graph=differentiable)
    if not differentiable:
        prediction, inputs = prediction.detach(), {name: x.detach() for name, x in inputs.items()}
    return inputs, dict(zip(outputs, grads, strict=True)), prediction


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


def _squared_norm(rule: Rule, inputs: Weights, deltas: Weights) -> Tensor:
    """Squared norm of each token's whole gradient, from its factors; summed over maps."""
    scaled = rule.architecture.elementwise
    found: Tensor | None = None
    for name, delta in deltas.items():
        term = squared(delta, inputs[name], name in scaled)
        found = term if found is None else found + term
    assert found is not None, "a memory has at least one map"
    return found


def _root(squared: Tensor) -> Tensor:
    """Square root whose derivative at 0 is 0: empty slots have a zero gradient, and infinity times zero is NaN."""
    empty = squared == 0.0
    return torch.where(empty, 1.0, squared).sqrt().masked_fill(empty, 0.0)


def gather_felt(felt: list[Felt | None], width: int) -> Felt | None:
    """Stacks what each chunk's own tokens felt, its last ``width`` sources; ``None`` where it was not asked for."""
    found = [f for f in felt if f is not None]
    return Felt(*[torch.stack(field)[..., -width:] for field in zip(*found, strict=True)]) if found else None
