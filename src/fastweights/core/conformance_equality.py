"""Properties 1 and 2: every tier agrees with the autograd loop, and inner gradients by hand with autograd."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from fastweights.core.conformance_trial import Trial, make_trial, moving
from fastweights.core.gradient import Slow, Sources, chunk_gradients
from fastweights.core.network import outer
from fastweights.core.properties import Verdict, error, identical, not_applicable, within, worst
from fastweights.core.rule import Rule
from fastweights.core.types import MemoryState
from fastweights.errors import UserError

EXACT = 1e-10
"""Largest relative error in float64."""

ROUNDING = 1e-6
"""What float32 may add to any error; memories are kept in float32 or wider."""


class Scene(NamedTuple):
    """One call: the tokens, the state before (``None``: fresh, so that gradients reach W_0), padding and documents.

    ``surprise`` tells whether it is asked for: a tier takes another way where it is not.
    """

    x: Tensor
    state: MemoryState | None
    mask: Tensor | None = None
    cu_seqlens: Tensor | None = None
    surprise: bool = True


def scenes(trial: Trial, time: int, seed: int) -> Iterator[Scene]:
    """Two rows in mid-document at different phases, with padding; and one row of several documents from W_0."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(2, time, generator=generator) > 0.2
    yield Scene(trial.draw(2, time, seed), trial.midway(2, seed), mask)
    yield Scene(trial.draw(1, time, seed + 1), None, None, torch.tensor(borders(time)), surprise=False)


def borders(time: int) -> list[int]:
    """Borders of up to three documents in ``time`` slots, off the chunks' grid."""
    return sorted({0, time // 5, time // 2, time})


def outcome(trial: Trial, scene: Scene) -> dict[str, Tensor]:
    """Answers, state and surprise of a call, and the gradients of a random weighing of them; heads first."""
    initial, x = moving(trial.initial), moving(scene.x)
    trial = replace(trial, initial=initial)
    state = trial.fresh(x.shape[0]) if scene.state is None else moving(scene.state)
    answer = trial.read(x, state, scene.mask, scene.cu_seqlens, scene.surprise)
    found = {"reads": answer.y.movedim(2, 0)}
    if answer.surprise is not None:
        found |= {name: getattr(answer.surprise, name).movedim(2, 0) for name in ("loss", "gradient_norm")}
    for name in ("dual", "momentum", "anchor", "extra"):
        found |= {f"{name} {i}": w.movedim(1, 0) for i, w in enumerate(getattr(answer.state, name))}
    generator = torch.Generator().manual_seed(7)
    weighed = [
        (t.double() * torch.randn(t.shape, generator=generator, dtype=torch.float64)).sum() for t in found.values()
    ]
    leaves = [x, *initial]
    if scene.state is not None:
        leaves = [x, *state.dual, *state.momentum, *state.anchor, *state.extra]
    if answer.surprise is not None:
        found["rejected"] = answer.surprise.rejected.movedim(2, 0)
    grads = torch.autograd.grad(torch.stack(weighed).sum(), leaves, allow_unused=True, materialize_grads=True)
    for name, part in trial.split(grads[0]).items():
        found[f"gradient of {name}"] = part.movedim(2, 0)
    axis, kind = (0, "W_0") if scene.state is None else (1, "state")
    found |= {f"gradient of {kind} {i}": g.movedim(axis, 0) for i, g in enumerate(grads[1:])}
    return {name: t.detach() for name, t in found.items()}


def tiers_agree(trial: Trial, time: int, seed: int = 4) -> Verdict:
    """Property 1 in float64: reads, state, surprise and all outer gradients of every tier, against the loop."""
    tiers = [tier for tier in trial.rule.tiers if tier != "reference"]
    if not tiers:
        return not_applicable("the rule runs on the reference itself")
    verdicts = []
    for scene in scenes(trial, time, seed):
        want = outcome(trial.on("reference"), scene)
        for tier in tiers:
            got = outcome(trial.on(tier), scene)
            verdicts += [within(got[name], want[name], EXACT, f"{tier}, {name}: ") for name in want]
    x, state = trial.draw(1, time, seed), trial.midway(1, seed)
    verdicts.append(
        identical(trial.read(x, state, surprise=True)[:2], trial.read(x, state)[:2], "surprise asked for: ")
    )
    return worst(verdicts)


def rounding(trial: Trial, time: int, seeds: int, dtype: torch.dtype, factor: float, seed: int = 5) -> Verdict:
    """Property 1 in a narrower dtype: the error is at most ``factor`` times that of the loop in the same dtype.

    Both are measured against the float64 loop on the same (rounded) inputs. Every draw is a head of one call. The two
    errors of a draw are compared with each other, and the median over draws decides: a draw can be badly conditioned.
    Where it is above the limit, eight times as many draws decide: one in five may be by chance, and then, once in
    hundreds of comparisons, three of five are.
    """
    if trial.rule.tiers[0] == "reference":
        return not_applicable("the rule runs on the reference itself")
    verdict = _rounding(trial, time, seeds, dtype, factor, seed)
    return _rounding(trial, time, 8 * seeds, dtype, factor, seed) if verdict.ok is False else verdict


def _rounding(trial: Trial, time: int, seeds: int, dtype: torch.dtype, factor: float, seed: int) -> Verdict:
    single = make_trial(trial.rule, trial.key_dim, trial.value_dim, heads=seeds).to(torch.float32)
    verdicts = []
    for scene in scenes(single, time, seed):
        narrow = scene._replace(x=scene.x.to(dtype))
        exact = scene._replace(x=narrow.x.double(), state=None if scene.state is None else widened(scene.state))
        truth = outcome(single.to(torch.float64).on("reference"), exact)
        loop, fast = outcome(single.on("reference"), narrow), outcome(single, narrow)
        for name, want in truth.items():
            if not want.is_floating_point():
                continue
            if fast[name].dtype != loop[name].dtype:
                return Verdict(False, f"{name} has dtype {fast[name].dtype}, not {loop[name].dtype}")
            mine, theirs = (
                [error(t, w) for t, w in zip(found[name].double(), want, strict=True)] for found in (fast, loop)
            )
            margin = median(a / (factor * b + ROUNDING) for a, b in zip(mine, theirs, strict=True))
            detail = f"{name}: error {median(mine):.1e}, the loop's {median(theirs):.1e}"
            verdicts.append(Verdict(margin <= 1.0, detail, margin))
    return worst(verdicts)


def widened(state: MemoryState) -> MemoryState:
    """The state in float64."""
    dual, momentum, anchor, extra = (tuple(w.double() for w in part) for part in (*state[:3], state.extra))
    return MemoryState(dual, momentum, anchor, state.position, extra)


def inner_gradients(rule: Rule, key_dim: int, value_dim: int, seeds: int = 3) -> Verdict:
    """Property 2: the hand-derived gradient, loss, norm and clip of every token equal autograd's."""
    if rule.tiers[0] in ("attention", "least squares"):
        return not_applicable("the rule takes no inner gradients")
    verdicts = []
    for seed in range(seeds):
        trial = make_trial(rule, key_dim, value_dim, seed=seed)
        found = trial.inputs(trial.draw(1, 8, seed))
        threshold = None if found.gates.threshold is None else found.gates.threshold[0]
        sources = Sources(found.k[0][..., :key_dim], found.v[0][..., :value_dim], threshold)
        names = [m.name for m in rule.architecture.maps(key_dim, value_dim)]
        anchor = dict(zip(names, trial.initial[: len(names)], strict=True))
        fixed = [m.name for m in rule.architecture.constants(key_dim, value_dim)]
        constants = dict(zip(fixed, trial.initial[len(trial.initial) - len(fixed) :], strict=True))
        loss, want = autograd_gradients(rule, anchor, constants, sources)
        norm = torch.stack([g.square().sum((-1, -2)) for g in want.values()]).sum(0).sqrt()
        clip = float(norm.median())
        scaled = rule.architecture.elementwise
        for bound in (None, clip):
            clipped = rule if bound == rule.clip else _with_clip(rule, bound)
            if clipped is None:
                continue
            got = chunk_gradients(clipped, anchor, Slow({}, constants), sources, careful=True)
            share = torch.ones_like(norm) if bound is None else (bound / norm).clamp_max(1.0)
            for name in names:
                formed = outer(got.deltas[name], got.inputs[name], name in scaled)
                verdicts.append(within(formed, want[name] * share[..., None, None], EXACT, f"{name}, clip {bound}: "))
            verdicts.append(within(got.felt, (loss, norm, torch.zeros_like(norm, dtype=torch.bool)), EXACT, "felt: "))
        verdicts.append(bias_gradient(rule, sources.v, torch.roll(sources.v, 1, 1), threshold))
    return worst(verdicts)


def _with_clip(rule: Rule, bound: float | None) -> Rule | None:
    """The rule with another clip, ``None`` where it takes none."""
    try:
        return replace(rule, clip=bound)
    except UserError:
        return None


def autograd_gradients(
    rule: Rule, anchor: dict[str, Tensor], constants: dict[str, Tensor], sources: Sources
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss ``[H, T]`` of every token, and its gradient with respect to weights of its own, ``[H, T, out, in]``."""
    scaled = rule.architecture.elementwise
    own = {name: w[:, None].repeat(1, sources.k.shape[1], 1, 1).requires_grad_() for name, w in anchor.items()}

    def linear(name: str, h: Tensor) -> Tensor:
        if name in constants:
            return h * constants[name]
        return h * own[name].squeeze(-2) if name in scaled else (own[name] @ h.unsqueeze(-1)).squeeze(-1)

    prediction, _ = rule.architecture.forward(linear, sources.k)
    loss = rule.bias.loss(prediction, sources.v, sources.threshold)
    return loss.detach(), dict(zip(own, torch.autograd.grad(loss.sum(), list(own.values())), strict=True))


def bias_gradient(rule: Rule, prediction: Tensor, target: Tensor, threshold: Tensor | None) -> Verdict:
    """The bias alone: its gradient equals autograd's, and the two numbers of ``affine`` if it declares them."""
    prediction = prediction.detach().requires_grad_()
    loss = rule.bias.loss(prediction, target, threshold)
    want = torch.autograd.grad(loss.sum(), prediction)[0]
    verdicts = [within(rule.bias.gradient(prediction.detach(), target, threshold), want, EXACT, "bias: ")]
    affine = rule.bias.affine()
    if affine is not None:
        claimed = affine.slope * prediction.detach() - affine.gain * target
        verdicts.append(within(claimed, want, EXACT, "affine: "))
    return worst(verdicts)
