"""Attentional bias: what a memory tries to get right, as a loss between its answer and the value.

Losses are sums over the value's channels. With ``e = prediction - target`` throughout.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from fastweights.core.types import Scope
from fastweights.errors import UserError, is_positive, require_positive


class Affine(NamedTuple):
    """A gradient that is affine in the prediction: ``slope * prediction - gain * target``."""

    slope: float
    gain: float


class Bias(ABC):
    """An inner loss, summed over the value's channels, and its hand-derived gradient.

    ``threshold`` is a gate of the bias's own, ``[..., 1]`` per token, for those that declare ``threshold_scope``; in
    layers it reaches ``threshold_max`` times sqrt(V);
    ``window`` and ``importance_scope`` are those of :class:`Omega`.
    """

    threshold_scope: Scope | None = None
    threshold_max: float = 1.0
    importance_scope: Scope | None = None
    window: int = 1

    @abstractmethod
    def loss(self, prediction: Tensor, target: Tensor, threshold: Tensor | None = None) -> Tensor:
        """``[..., V], [..., V] -> [...]``."""

    @abstractmethod
    def gradient(self, prediction: Tensor, target: Tensor, threshold: Tensor | None = None) -> Tensor:
        """Gradient of the loss with respect to the prediction, ``[..., V]``."""

    def affine(self) -> Affine | None:
        """The gradient's two numbers where it is affine in the prediction (the delta tier needs it), else ``None``."""
        return None


@dataclass(frozen=True)
class L2(Bias):
    """Squared error: ``1/2 ||f(k) - v||^2``, or without the half as Titans eq. 12 prints it.

    The factor matters: with unit keys and lr in [0, 1] the write ``1 - slope * lr`` along the key reaches [0, 1] with
    the half and [-1, 1] without it, and negative eigenvalues are what parity needs (arXiv 2411.12537).

    Args:
        half: whether the loss has its half.
        weight: times the loss. Another lr does the same, unless the step has a part that is no gradient, as that of
            :class:`~fastweights.core.algorithm.DeltaGradientDescent` has.
    """

    half: bool = True
    weight: float = 1.0

    def __post_init__(self) -> None:
        require_positive("the weight of a squared error", self.weight)

    @property
    def _slope(self) -> float:
        return self.weight if self.half else 2.0 * self.weight

    def loss(self, prediction: Tensor, target: Tensor, threshold: Tensor | None = None) -> Tensor:
        return 0.5 * self._slope * (prediction - target).square().sum(-1)

    def gradient(self, prediction: Tensor, target: Tensor, threshold: Tensor | None = None) -> Tensor:
        error = prediction - target
        return error if self._slope == 1.0 else self._slope * error

    def affine(self) -> Affine:
        return Affine(self._slope, self._slope)


@dataclass(frozen=True)
class DotProduct(Bias):
    """``-<f(k), v>``: Hebbian writing, the bias of linear attention, RetNet and Mamba-2 (MIRAS section 4)."""

    def loss(self, prediction: Tensor, target: Tensor, threshold: Tensor | None = None) -> Tensor:
        return -(prediction * target).sum(-1)

    def gradient(self, prediction: Tensor, target: Tensor, threshold: Tensor | None = None) -> Tensor:
        del prediction
        return -target

    def affine(self) -> Affine:
        return Affine(0.0, 1.0)


@dataclass(frozen=True)
class LP(Bias):
    """``sum (e^2 + eps)^(p/2)``, the p-th power of the L_p norm with its corner rounded (MIRAS eqs. 10, 11).

    The gradient is ``p e (e^2 + eps)^((p - 2) / 2)``: exactly that of the loss, unlike the printed ``tanh`` for the
    sign. p = 2 is the squared error without its half; p = 1 writes little more than signs, the paper's "value-less"
    memory; Moneta has p = 3.

    Args:
        p: between 1 and 4. Above 2 large errors weigh more, below 2 less.
        eps: where the corner is rounded; errors below its root count as squares.
    """

    p: float = 3.0
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if not is_positive(self.p) or not 1 <= self.p <= 4:
            raise UserError(f"p of an L_p bias must lie between 1 and 4, not {self.p!r}")
        require_positive("eps of an L_p bias", self.eps)

    def loss(self, prediction: Tensor, target: Tensor, threshold: Tensor | None = None) -> Tensor:
        rounded = (prediction - target).square() + self.eps
        return (rounded ** (self.p / 2) - self.eps ** (self.p / 2)).sum(-1)

    def gradient(self, prediction: Tensor, target: Tensor, threshold: Tensor | None = None) -> Tensor:
        error = prediction - target
        return self.p * error * (error.square() + self.eps) ** (self.p / 2 - 1)

    def affine(self) -> Affine | None:
        return Affine(2.0, 2.0) if self.p == 2 else None


Reach = Literal["coordinate", "norm", "mixture"]


@dataclass(frozen=True)
class Huber(Bias):
    """Squared error for small errors, absolute error for large ones: outliers write a bounded amount.

    With the threshold d, a gate per token (learned, as Yaad's delta_t):

    * ``coordinate``: ``1/2 e_j^2`` where ``|e_j| <= d``, else ``d (|e_j| - d / 2)`` (MIRAS eq. 14);
    * ``norm``: ``1/2 |e|^2`` where ``|e| <= d``, else ``d (|e| - d / 2)`` (eq. 15): the error clipped to length d;
    * ``mixture``: what Yaad uses (eq. 16), the whole error decides: ``1/2 |e|^2`` where ``|e| <= d``, else
      ``d sum |e_j|``, whose gradient is ``d sign(e)``.

    ``mixture`` jumps at ``|e| = d``: its gradient is that of the branch it is in, as the paper prints it.

    Args:
        reach: what the threshold is compared with.
        threshold_max: upper end of the threshold's gate in layers, in units of sqrt(V). It starts near there, as
            squared error: a residual memory's answers have length sqrt(V), and with a threshold below that ``mixture``
            would see nothing but signs.
        eps: rounds ``|x|`` to ``sqrt(x^2 + eps)`` in the absolute branch of ``mixture`` and in norms.
    """

    threshold_scope = "head"

    reach: Reach = "mixture"
    threshold_max: float = 4.0
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.reach not in get_args(Reach):
            raise UserError(f"reach must be one of {', '.join(get_args(Reach))}, not {self.reach!r}")
        require_positive("the largest threshold", self.threshold_max)
        require_positive("eps of a Huber bias", self.eps)

    def loss(self, prediction: Tensor, target: Tensor, threshold: Tensor | None = None) -> Tensor:
        error, d = prediction - target, _needed(threshold)
        square = 0.5 * error.square()
        if self.reach == "coordinate":
            return torch.where(error.abs() <= d, square, d * (error.abs() - 0.5 * d)).sum(-1)
        length, d = self._length(error)[..., 0], d[..., 0]
        if self.reach == "norm":
            # Half the squared rounded length, less a constant, so that both branches meet.
            return torch.where(length <= d, 0.5 * length.square(), d * (length - 0.5 * d))
        return torch.where(length <= d, square.sum(-1), d * (error.square() + self.eps).sqrt().sum(-1))

    def gradient(self, prediction: Tensor, target: Tensor, threshold: Tensor | None = None) -> Tensor:
        error, d = prediction - target, _needed(threshold)
        if self.reach == "coordinate":
            return torch.where(error.abs() <= d, error, d * torch.sign(error))
        length = self._length(error)
        if self.reach == "norm":
            return error * torch.where(length <= d, 1.0, d / length)
        return torch.where(length <= d, error, d * error * torch.rsqrt(error.square() + self.eps))

    def _length(self, error: Tensor) -> Tensor:
        return (error.square().sum(-1, keepdim=True) + self.eps).sqrt()


@dataclass(frozen=True)
class RobustL2(Bias):
    """The worst squared error over values that may be off by up to ``shift`` (MIRAS section 5.1, "value shift").

    ``max over |d| <= shift of 1/2 |e - d|^2 = 1/2 (|e| + shift)^2``, whose gradient is ``e + shift e / |e|``, with the
    length rounded at 0.

    Args:
        shift: how far off values may be, at least 0.
        eps: rounds the length to ``sqrt(|e|^2 + eps)``.
    """

    shift: float = 0.1
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.shift != 0 and not is_positive(self.shift):
            raise UserError(f"the shift of a robust bias must be at least 0, not {self.shift!r}")
        require_positive("eps of a robust bias", self.eps)

    def loss(self, prediction: Tensor, target: Tensor, threshold: Tensor | None = None) -> Tensor:
        squared = (prediction - target).square().sum(-1)
        return 0.5 * squared + self.shift * (squared + self.eps).sqrt() + 0.5 * self.shift**2

    def gradient(self, prediction: Tensor, target: Tensor, threshold: Tensor | None = None) -> Tensor:
        error = prediction - target
        return error * (1.0 + self.shift * torch.rsqrt(error.square().sum(-1, keepdim=True) + self.eps))


@dataclass(frozen=True)
class KL(Bias):
    """``KL(softmax(v) || softmax(f(k)))``: values are distributions over channels; the gradient is their difference."""

    def loss(self, prediction: Tensor, target: Tensor, threshold: Tensor | None = None) -> Tensor:
        wanted = torch.log_softmax(target, -1)
        return (wanted.exp() * (wanted - torch.log_softmax(prediction, -1))).sum(-1)

    def gradient(self, prediction: Tensor, target: Tensor, threshold: Tensor | None = None) -> Tensor:
        return torch.softmax(prediction, -1) - torch.softmax(target, -1)


@dataclass(frozen=True)
class Omega(Bias):
    """A window over any bias: token t writes the gradients of the last ``window`` tokens (Atlas eqs. 8, 9).

    ``sum over t - window < i <= t of importance_i loss(f(k_i), v_i)``; the gate ``importance`` (Atlas' gamma, in
    [0, 1]) belongs to the token that is written again, lr to the step that writes. Earlier tokens are taken at the
    present anchor, also those from before the chunk; a window does not reach into another document. A window of 1 with
    importance 1 is the inner bias itself.

    Args:
        inner: the bias of one token.
        window: tokens, at least 1.
    """

    importance_scope = "head"

    inner: Bias = L2()
    window: int = 4

    def __post_init__(self) -> None:
        if self.window < 1:
            raise UserError(f"an Omega window holds at least 1 token, not {self.window}")
        if isinstance(self.inner, Omega):
            raise UserError("an Omega window is put around a bias, not around another window")

    @property
    def threshold_scope(self) -> Scope | None:  # type: ignore[override]
        """Of the inner bias."""
        return self.inner.threshold_scope

    @property
    def threshold_max(self) -> float:  # type: ignore[override]
        """Of the inner bias."""
        return self.inner.threshold_max

    def loss(self, prediction: Tensor, target: Tensor, threshold: Tensor | None = None) -> Tensor:
        return self.inner.loss(prediction, target, threshold)

    def gradient(self, prediction: Tensor, target: Tensor, threshold: Tensor | None = None) -> Tensor:
        return self.inner.gradient(prediction, target, threshold)


def _needed(threshold: Tensor | None) -> Tensor:
    if threshold is None:
        raise UserError("a Huber bias needs a threshold for every token")
    return threshold
