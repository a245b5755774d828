"""Retention gate: what a memory keeps from one token to the next."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass

from fastweights.core.types import Scope


class Retention(ABC):
    """What is kept. ``scope`` is that of the gate ``retain`` (1 keeps all, 0 clears), ``None`` where there is none."""

    scope: Scope | None


@dataclass(frozen=True)
class NoRetention(Retention):
    """Everything is kept: ``A_t = A_{t-1} + S_t``."""

    scope: None = None


@dataclass(frozen=True)
class WeightDecay(Retention):
    """Titans' forgetting (eq. 13): ``A_t = retain_t A_{t-1} + S_t``, ``retain = 1 - alpha``.

    Args:
        scope: one gate per ``head``, per linear ``map`` (the camera-ready's layer-wise gates), or per ``key`` /
            ``value`` channel of every map (the camera-ready's channel-wise alpha; materialised tier).
    """

    scope: Scope = "head"
