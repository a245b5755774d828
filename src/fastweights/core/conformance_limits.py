"""Properties 6, 7, 8 and 10: a rule learns, is differentiable, stays finite at its limits, and compiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from fastweights.core.conformance_equality import EXACT, Scene, outcome
from fastweights.core.conformance_trial import Inputs, Span, Trial, moving
from fastweights.core.engine import grid_for, run
from fastweights.core.layout import make_layout
from fastweights.core.properties import (
    Verdict,
    compiles,
    finite,
    identical,
    not_applicable,
    survives_checkpointing,
    within,
    worst,
)
from fastweights.core.rule import Rule
from fastweights.core.types import MemoryState
from fastweights.errors import UserError

REPEATS = 10_000
"""Times that one token is repeated in the long run of property 8."""


def two_chunks(rule: Rule) -> int:
    """Two chunks and a token, and no fewer than five tokens."""
    return max(2 * rule.chunk_size + 1, 5)


def learns(trial: Trial, seed: int = 6) -> Verdict:
    """Property 6: retain 1, momentum 0, clip off, lr 0.1 / chunk_size: a repeated chunk's summed inner loss falls.

    After seven repetitions it is below that of the first reading, in every head. It need not fall each time: in a deep
    memory this lr can step across a valley.
    """
    rule = trial.rule
    if not rule.learns:
        return not_applicable("the rule does not claim to learn a repeated chunk")
    lr = min(0.1 / rule.chunk_size, rule.lr_max)
    trial = replace(trial, rule=replace(rule, clip=None))
    spans = {"lr": Span(lr, lr), "momentum": Span(0.0, 0.0), "retain": Span(1.0, 1.0), "importance": Span(1.0, 1.0)}
    x = trial.draw(1, rule.chunk_size, seed, spans).repeat(1, 8, 1, 1)
    surprise = trial.read(x, trial.fresh(1), surprise=True).surprise
    assert surprise is not None, "it was asked for"
    losses = surprise.loss[0].unflatten(0, (8, rule.chunk_size)).sum(1)
    falls = bool((losses[-1] < losses[0]).all())
    return Verdict(falls, f"loss {losses[0].sum():.3g} -> {losses[1].sum():.3g} -> ... -> {losses[-1].sum():.3g}")


def gradients_reach(trial: Trial, seed: int = 6) -> Verdict:
    """Property 7: from the answers alone, every input, gate and initial map of every head gets a gradient."""
    trial = replace(trial, initial=moving(trial.initial))
    x = trial.draw(2, two_chunks(trial.rule), seed).requires_grad_()
    y = trial.read(x, trial.fresh(2)).y
    weighing = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=y.dtype)
    grads = torch.autograd.grad((y * weighing).sum(), [x, *trial.initial], allow_unused=True, materialize_grads=True)
    missing = [f"W_0 {i}" for i, g in enumerate(grads[1:]) if not bool(g.flatten(1).any(1).all())]
    maps = len(trial.rule.maps(trial.key_dim, trial.value_dim))
    for name, g in trial.split(grads[0]).items():
        # A unit of an activation may be off for all tokens, so gates per channel are asked for one channel a head.
        whole = g.any(-1, keepdim=True) if name in trial.gate_names and g.shape[-1] not in (1, maps) else g
        if not bool(whole.flatten(0, 1).any(0).all()):
            missing.append(name)
    verdicts = [finite(grads, "gradients: ")]
    verdicts.append(Verdict(not missing, f"no gradient for {', '.join(missing)}" if missing else "all reached"))
    return worst(verdicts)


def gates_at_limits(trial: Trial, seed: int = 6) -> Verdict:
    """Property 8: gates of exactly 0 and exactly their maximum, all alike or mixed among others token by token."""
    time = two_chunks(trial.rule)
    limits = {"lr": (0.0, trial.rule.lr_max), "momentum": (0.0, 1.0), "retain": (0.0, 1.0)}
    limits |= {"threshold": (0.0, 4.0), "importance": (0.0, 1.0)}
    verdicts = []
    for values in product(*[limits[name] for name in trial.gate_names]):
        chosen = dict(zip(trial.gate_names, values, strict=True))
        x = trial.draw(1, time, seed, {name: Span(value, value) for name, value in chosen.items()})
        found = outcome(trial, Scene(x, trial.midway(1, seed)))
        verdicts.append(finite(found, ", ".join(f"{name} {value:g}" for name, value in chosen.items()) + ": "))
    x = trial.draw(2, time, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, part in trial.split(x).items():
        if name in trial.gate_names:
            dice = torch.randint(0, 3, part.shape, generator=generator)
            low, high = limits[name]
            part.copy_(torch.where(dice == 0, low, torch.where(dice == 1, high, part)))
    return worst([*verdicts, as_the_loop(trial, Scene(x, trial.midway(2, seed)), "mixed, ")])


def as_the_loop(trial: Trial, scene: Scene, what: str) -> Verdict:
    """Everything that comes out of a call is finite and as from the reference."""
    got, want = outcome(trial, scene), outcome(trial.on("reference"), scene)
    return worst([within(got[name], want[name], EXACT, f"{what}{name}: ") for name in want])


def zeros(trial: Trial, seed: int = 6) -> Verdict:
    """Property 8: keys, values and queries of zeros; a fresh and an old memory."""
    x = trial.draw(2, two_chunks(trial.rule), seed)
    for name in ("q", "k", "v"):
        trial.split(x)[name].zero_()
    old = as_the_loop(trial, Scene(x, trial.midway(2, seed)), "old memory, ")
    return worst([old, as_the_loop(trial, Scene(x[:1], None), "fresh memory, ")])


def huge_values(trial: Trial, seed: int = 6) -> Verdict:
    """Property 8: tokens that overflow write nothing and are counted; large ones stay finite."""
    return worst([*_overflowing(trial, seed), *_large(trial, seed)])


def _overflowing(trial: Trial, seed: int) -> Iterator[Verdict]:
    """Two tokens whose squared length overflows, and two that overflow only later, in their inner gradient."""
    time = two_chunks(trial.rule)
    state = trial.midway(2, seed)
    want = torch.zeros(2, time, trial.heads, dtype=torch.bool)
    want[0, 1 :: time - 2, 0] = True
    for part in ("k", "v"):
        x = trial.draw(2, time, seed)
        trial.split(x)[part][0, 1 :: time - 2, 0] *= 1e200
        yield rejects(trial, x, state, want, f"{part} of 1e200: ")
        yield as_the_loop(trial, Scene(x, state), f"{part} of 1e200, ")
    x = trial.draw(2, time, seed)
    trial.split(x)["k"][0, 1 :: time - 2, 0] *= 1e120 ** (1 / trial.rule.architecture.power)
    with torch.no_grad():
        answer = trial.read(x, state, surprise=True)
    yield finite(answer, "k of 1e120: ")
    # Accepted, it is not compared: a residual memory subtracts numbers of 1e120 from one another.
    if answer.surprise is not None and bool(answer.surprise.rejected[want].all()):
        yield as_the_loop(trial, Scene(x, state), "k of 1e120, ")


def _large(trial: Trial, seed: int) -> Iterator[Verdict]:
    """Every token large, in float32 and with the clip on."""
    try:
        single = replace(trial, rule=replace(trial.rule, clip=trial.rule.clip or 1.0)).to(torch.float32)
    except UserError:
        return
    if single.rule.tiers[0] == "reference":
        return
    for part, scale in (("v", 1e15), ("k", 1e6), ("q", 1e15 ** (1 / trial.rule.architecture.power))):
        x = single.draw(2, two_chunks(trial.rule), seed)
        single.split(x)[part].mul_(scale)
        yield finite(outcome(single, Scene(x, single.midway(2, seed))), f"{part} of {scale:.0e}, clipped: ")


def rejects(trial: Trial, x: Tensor, state: MemoryState, want: Tensor, what: str) -> Verdict:
    """Exactly the tokens ``want [B, T, H]`` are counted as rejected."""
    surprise = trial.read(x, state, surprise=True).surprise
    assert surprise is not None, "it was asked for"
    found = surprise.rejected
    return Verdict(torch.equal(found, want), f"{what}{int(found.sum())} tokens rejected, {int(want.sum())} expected")


def non_finite_tokens(trial: Trial, seed: int = 6) -> Verdict:
    """Property 8: a token with a NaN or an infinity leaves no trace in its head, nor in any other head or row."""
    time = two_chunks(trial.rule)
    at = time // 2
    clean, state = trial.draw(2, time, seed), trial.midway(2, seed)
    y, after = trial(clean, state)
    verdicts = []
    for part, value in [("k", torch.nan), ("v", torch.inf), *[(name, torch.nan) for name in trial.gate_names]]:
        x = clean.clone()
        trial.split(x)[part][0, at, 0, 0] = value
        want = torch.zeros(2, time, trial.heads, dtype=torch.bool)
        want[0, at, 0] = True
        got, ended = trial(x, state)
        untouched = [(got[1], y[1]), (got[:, :, 1], y[:, :, 1]), (got[:, :at], y[:, :at])]
        untouched += [(a[1], b[1]) for a, b in zip(ended.dual, after.dual, strict=True)]
        before = trial(x[:, :at], state)[1]
        passed = trial(x[:, at : at + 1], before)[1]
        kept = [(a[0, 0], b[0, 0]) for i in (0, 1) for a, b in zip(passed[i], before[i], strict=True)]
        kept = [] if trial.rule.settles else kept
        name = f"{part} {value}"
        verdicts += [
            rejects(trial, x, state, want, f"{name}: "),
            as_the_loop(trial, Scene(x, state), f"{name}, "),
            identical([a for a, _ in untouched], [b for _, b in untouched], f"{name}, other tokens: "),
            identical([a for a, _ in kept], [b for _, b in kept], f"{name}, the memory it meets: "),
        ]
    return worst([*verdicts, non_finite_query(trial, clean, state, at), traceless(trial, state, seed)])


def traceless(trial: Trial, state: MemoryState, seed: int) -> Verdict:
    """A token that is not finite, last in a call and not the first of its chunk, leaves row 0's memory alone."""
    if trial.rule.grows or (trial.rule.online and trial.rule.settles):
        return not_applicable("the memory grows, or every token opens a chunk")
    x = trial.draw(2, max(2 * trial.rule.chunk_size, 3), seed)
    trial.split(x)["v"][0, -1] = torch.nan
    with_it, without = trial(x, state)[1], trial(x[:, :-1], state)[1]
    pairs = [(a[0], b[0]) for i in (0, 1) for a, b in zip(with_it[i], without[i], strict=True)]
    return within([a for a, _ in pairs], [b for _, b in pairs], EXACT, "without the token: ")


def non_finite_query(trial: Trial, clean: Tensor, state: MemoryState, at: int) -> Verdict:
    """A query with a NaN spoils its own answer alone."""
    y, after = trial(clean, state)
    x = clean.clone()
    trial.split(x)["q"][0, at, 0, 0] = torch.nan
    got, ended = trial(x, state)
    got[0, at, 0] = y[0, at, 0]
    return identical((got, ended), (y, after), "q nan, everything else: ")


def repeated_token(trial: Trial, seed: int = 6) -> Verdict:
    """Property 8: one token 10,000 times, nothing forgotten, with lr x chunk_size <= 1 or with the clip on.

    With momentum (second row) lr / (1 - momentum), the step that a constant gradient ends up taking, is at that bound.
    """
    rule = trial.rule
    if rule.grows:
        return not_applicable("the rule keeps tokens, nothing adds up")
    if rule.tiers[0] == "reference":
        return not_applicable("10,000 tokens are too many for the reference")
    single = trial.to(torch.float32)
    rows = []
    for momentum in (0.0, 0.9) if rule.has_momentum else (0.0,):
        lr = rule.lr_max if rule.clip else min(rule.lr_max, (1.0 - momentum) / rule.chunk_size)
        spans = {"lr": Span(lr, lr), "momentum": Span(momentum, momentum), "retain": Span(1.0, 1.0)}
        rows.append(single.draw(1, 1, seed, spans).expand(-1, REPEATS, -1, -1))
    with torch.no_grad():
        y, state = single(torch.cat(rows), single.fresh(len(rows)))
    return finite((y, state), f"answers up to {float(y.abs().max()):.2g}: ")


def one_graph(trial: Trial, seed: int = 6) -> Verdict:
    """Property 10: ``run`` compiles to one graph, forward and backward, with layout and grid made outside."""
    if trial.rule.tiers[0] == "reference":
        return not_applicable("the reference walks in Python, token by token")
    if trial.rule.grows:
        return not_applicable("the size of the state depends on the tokens read")
    if not trial.rule.architecture.closed_form:
        return not_applicable("inner gradients come from autograd, which a graph cannot hold")
    # Two chunks: tracing costs time in proportion to their number.
    return compiles(*_call(trial, max(trial.rule.chunk_size + 1, 3), seed), EXACT)


def checkpointing(trial: Trial, seed: int = 6) -> Verdict:
    """Property 10: works under non-reentrant activation checkpointing."""
    return survives_checkpointing(*_call(trial, two_chunks(trial.rule), seed))


def _call(trial: Trial, time: int, seed: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """``run`` as a function of tensors alone, in the middle of a document, and its arguments."""
    state = trial.midway(2, seed)
    layout = make_layout(state.position, time)
    grid = grid_for(trial.rule, layout)
    inputs = trial.inputs(trial.draw(2, time, seed))

    def call(inputs: Inputs, state: MemoryState, initial: tuple[Tensor, ...]) -> Any:
        result = run(trial.rule, initial, *inputs, state, layout, grid)
        return result.y, result.state.dual, result.state.momentum

    return call, (moving(inputs), moving(state), trial.initial)
