"""The rules that are compared, by name: presets, and one that is composed from the same choices."""

from __future__ import annotations

from fastweights.core.algorithm import GradientDescent
from fastweights.core.architecture import Matrix
from fastweights.core.bias import L2
from fastweights.core.presets import PRESETS
from fastweights.core.retention import WeightDecay
from fastweights.core.rule import Rule

COMPOSED: dict[str, Rule] = {
    "kda": Rule(Matrix(), L2(), WeightDecay("key"), GradientDescent(), 1, clip=None, decay_before_grad=True),
}
"""Kimi's delta attention: Gated DeltaNet with a decay for every key channel."""


def rule(name: str) -> Rule:
    """The rule of a name."""
    return COMPOSED[name] if name in COMPOSED else PRESETS[name]()
