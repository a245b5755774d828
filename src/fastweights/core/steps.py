"""Several steps a token: the token becomes as many tokens of its own, and its query is answered by the last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastweights.core.algorithm import GradientDescent
from fastweights.core.checks import Call
from fastweights.core.layout import Layout
from fastweights.core.rule import Rule
from fastweights.core.types import Gates, MemoryState, Surprise


def one_step(rule: Rule) -> Rule:
    """The rule of a single step."""
    return replace(rule, algorithm=GradientDescent())


def run_steps(
    call: Call, dispatch: Callable[[Call, Any], Any], grid: Any
) -> tuple[Tensor, MemoryState, Surprise | None]:
    """Runs a rule whose algorithm is :class:`~fastweights.core.algorithm.Steps`, by the engine.

    ``loss`` and ``gradient_norm`` of a surprise are sums over the token's steps, ``lr`` their mean.
    """
    count = call.rule.algorithm.steps
    lr, _, retain, _, _ = call.gates
    assert lr is not None

    def spread(x: Tensor) -> Tensor:
        return x.unflatten(-1, (count, -1)).flatten(2, 3)

    if retain is not None:
        retain = torch.cat([retain, torch.ones_like(retain).repeat(1, 1, 1, count - 1)], -1).unflatten(-1, (count, -1))
        retain = retain.flatten(2, 3)
    rejected = None if call.rejected is None else call.rejected.repeat_interleave(count, 2)
    inner = call._replace(
        rule=one_step(call.rule),
        q=call.q.repeat_interleave(count, 2),
        k=spread(call.k),
        v=spread(call.v),
        gates=Gates(spread(lr), None, retain),
        state=call.state._replace(position=call.state.position * count),
        layout=stretched(call.layout, count),
        rejected=rejected,
    )
    result = dispatch(inner, grid)
    answered = count - 1 if call.rule.read == "after" else 0
    state = result.state._replace(position=call.layout.end.clone())
    return result.y[:, :, answered::count], state, _gathered(result.surprise, count)


def _gathered(felt: Surprise | None, count: int) -> Surprise | None:
    if felt is None:
        return None
    loss, norm, lr, momentum, retain, rejected = (x.unflatten(2, (-1, count)) for x in felt)
    return Surprise(loss.sum(-1), norm.sum(-1), lr.mean(-1), momentum[..., 0], retain[..., 0], rejected.any(-1))


def stretched(layout: Layout, count: int) -> Layout:
    """A layout in which every token stands ``count`` times; packed, so without array order."""
    inside = torch.arange(count, device=layout.position.device)
    position = (layout.position.unsqueeze(-1) * count + inside).flatten(1)
    real = None if layout.real is None else layout.real.repeat_interleave(count, 1)
    reset = None
    if layout.reset is not None:
        reset = (layout.reset.unsqueeze(-1) & (inside == 0)).flatten(1)
    return Layout(position, layout.length * count, real, reset, None, None, None, layout.end * count)
