"""What every part of Hope is for: the ablation of the Nested Learning paper, on prose and on parity.

    fastweights compare hope_ablation --out results/hope_ablation

The whole model has what the paper's ablation takes away one by one: delta gradient descent, momentum, decay, a
continuum memory system, and keys, values and queries that memories make. The paper's main form has no momentum and
static queries: `printed`. Without the delta rule steps are as long as they can be there. In parity chunks are one token
long, since only there can a memory turn round what it holds, and the levels learn bits that nobody can know: there
`no_levels` says what that costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from fastweights.core.algorithm import DeltaGradientDescent, Momentum
from fastweights.core.retention import NoRetention
from fastweights.core.rule import Rule
from fastweights.evaluate.contest import Comparison, Contest
from fastweights.evaluate.contests import books, language
from fastweights.models.baselines import hope
from fastweights.models.config import ModelConfig

PARTS = ("key", "value", "lr", "retain", "query")
"""What memories make."""

Change = Callable[[ModelConfig], ModelConfig]


def variant(change: Callable[[Rule], Rule] = lambda rule: rule, without: str = "", levels: str = "32,128") -> Change:
    """Hope with a change of its rule, without one of its memories, with other levels."""

    def changed(like: ModelConfig) -> ModelConfig:
        config = hope(like, like.generator_chunk, levels)
        rule = change(replace(config.rule, algorithm=DeltaGradientDescent("head", negative=True)))
        return replace(config, rule=rule, adaptive=",".join(part for part in PARTS if part != without))

    return changed


MODELS: Mapping[str, Change] = {
    "whole": variant(),
    "printed": lambda like: hope(like, like.generator_chunk),
    "no_delta": variant(lambda rule: replace(rule, algorithm=Momentum())),
    "no_momentum": variant(lambda rule: replace(rule, algorithm=DeltaGradientDescent(negative=True))),
    "no_decay": variant(lambda rule: replace(rule, retention=NoRetention())),
    "no_levels": variant(levels=""),
    "static_keys": variant(without="key"),
    "static_values": variant(without="value"),
    "static_queries": variant(without="query"),
}
"""In the order of the paper's table."""


PROSE = {"generator_chunk": 16}
BITS = {"generator_chunk": 1, "memory_heads": 2, "memory_head_dim": 16, "lr_start": 0.9}
"""What all models share: their chunks, and for bits small heads whose steps start long, as turning round needs."""


def shaped(contest: Contest, shape: Mapping[str, int | float]) -> Contest:
    """A contest whose models share a shape, on a clock that none of them should reach."""
    return replace(contest, like=replace(contest.like, **shape), minutes=30.0)  # type: ignore[arg-type]


def comparison() -> Comparison:
    """Nine models on bits per byte and on parity, one seed."""
    contests = {"books": shaped(books(), PROSE), "parity": shaped(language("parity"), BITS)}
    return Comparison(models=MODELS, contests=contests, controls=(), threads=1)
