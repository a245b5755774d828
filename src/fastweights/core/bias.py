"""Attentional bias: what a memory tries to get right, as a loss between its answer and the value."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Affine(NamedTuple):
    """A gradient that is affine in the prediction: ``slope * prediction - gain * target``."""

    slope: float
    gain: float


class Bias(ABC):
    """An inner loss, summed over the value's channels, and its hand-derived gradient."""

    @abstractmethod
    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """``[..., V], [..., V] -> [...]``."""

    @abstractmethod
    def gradient(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Gradient of the loss with respect to the prediction, ``[..., V]``."""

    def affine(self) -> Affine | None:
        """The gradient's two numbers where it is affine in the prediction (the delta tier needs it), else ``None``."""
        return None


@dataclass(frozen=True)
class L2(Bias):
    """Squared error: ``1/2 ||f(k) - v||^2``, or without the half as Titans eq. 12 prints it.

    The factor matters: with unit keys and lr in [0, 1] the write ``1 - slope * lr`` along the key reaches [0, 1] with
    the half and [-1, 1] without it, and negative eigenvalues are what parity needs (arXiv 2411.12537).
    """

    half: bool = True

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        squared = (prediction - target).square().sum(-1)
        return 0.5 * squared if self.half else squared

    def gradient(self, prediction: Tensor, target: Tensor) -> Tensor:
        error = prediction - target
        return error if self.half else 2.0 * error

    def affine(self) -> Affine:
        return Affine(1.0, 1.0) if self.half else Affine(2.0, 2.0)


@dataclass(frozen=True)
class DotProduct(Bias):
    """``-<f(k), v>``: Hebbian writing, the bias of linear attention, RetNet and Mamba-2 (MIRAS section 4)."""

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return -(prediction * target).sum(-1)

    def gradient(self, prediction: Tensor, target: Tensor) -> Tensor:
        del prediction
        return -target

    def affine(self) -> Affine:
        return Affine(0.0, 1.0)
