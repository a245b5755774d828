"""The mixers of the four wirings, with rules of every tier, small enough to test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from fastweights.core import presets
from fastweights.core.rule import Rule
from fastweights.core.types import MemoryState
from fastweights.layers.conformance import stirred
from fastweights.layers.stream import StreamLayer
from fastweights.models.config import ModelConfig, Recall, Wiring
from fastweights.models.conformance import small_config
from fastweights.models.titans import build_mixer

RULES: dict[str, Rule] = {
    "titans": presets.titans(expansion=2.0, chunk_size=4),
    "titans_linear": presets.titans_linear(),
    "titans_swiglu": presets.titans_swiglu(chunk_size=4),
}

WIRINGS: dict[str, tuple[Wiring, Recall]] = {
    "lmm": ("lmm", "aligned"),
    "mac": ("mac", "aligned"),
    "mac_pooled": ("mac", "pooled"),
    "mag": ("mag", "aligned"),
    "mal": ("mal", "aligned"),
}


def config(wiring: str, rule: str = "titans") -> ModelConfig:
    """A small model of two blocks."""
    kind, recall = WIRINGS[wiring]
    return small_config(kind, RULES[rule], recall)


def mixer(wiring: str, rule: str = "titans") -> StreamLayer[Any]:
    """One mixer in float64 whose every parameter is random."""
    return stirred(build_mixer(config(wiring, rule)).double())


def clipped(rule: str) -> Rule:
    """The rule with the clip that models have by default; never on the delta tier."""
    return replace(RULES[rule], clip=1.0, chunk_size=4)


def floats(*shape: int) -> torch.Tensor:
    """Random float64 input."""
    return torch.randn(shape, dtype=torch.float64)


def the_memory(state: Any) -> MemoryState:
    """The first memory in a tree of states."""
    if isinstance(state, MemoryState):
        return state
    return the_memory(state[0])
