"""Memory algorithm: how a memory learns from the inner gradient."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass

from fastweights.core.types import Scope


class Algorithm(ABC):
    """A step. ``scope`` is that of the gate ``momentum``, ``None`` where there is none."""

    scope: Scope | None


@dataclass(frozen=True)
class GradientDescent(Algorithm):
    """``S_t = -lr_t grad_t`` (Titans eq. 8)."""

    scope: None = None


@dataclass(frozen=True)
class Momentum(Algorithm):
    """Titans' surprise (eq. 10): ``S_t = momentum_t S_{t-1} - lr_t grad_t``, past and momentary surprise.

    Args:
        scope: of the momentum gate; see :class:`~fastweights.core.retention.WeightDecay`.
    """

    scope: Scope = "head"
