"""Retention gate: what a memory keeps from one token to the next.

Beside the gate ``retain``, a retention may act in two places (MIRAS section 5.2):

* a **link** on the read side: the weights in force are ``W = link(A)`` of what is accumulated, the dual A. It acts at
  the chunk's start (``link_at="chunk"``: W stays while A collects, all reads of the chunk use it) or at every token;
* a **projection** on the state side: where a chunk opens, the memory that the chunk before left is replaced.

Weights are ``[..., outputs, inputs]`` of one map and head; a row is the last dimension.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fastweights.core.types import Scope
from fastweights.errors import UserError, is_positive, require_positive

LinkAt = Literal["chunk", "token"]


class Retention(ABC):
    """What is kept. ``scope`` is that of the gate ``retain`` (1 keeps all, 0 clears), ``None`` where there is none.

    ``descends`` says that a small step down in the dual is one in the weights in force.
    """

    scope: Scope | None
    link_at: LinkAt | None = None
    projects: bool = False
    every: int | None = None
    lag: bool = False
    refused_scopes: tuple[Scope, ...] = ()
    descends: bool = True

    def begin(self, initial: Tensor) -> Tensor:
        """The dual of a document that begins, from the learned initial weights."""
        return initial

    def initial_spread(self, gain: float, inputs: int) -> float:
        """Standard deviation that a map's learned initial weights start from; ``gain`` is the architecture's."""
        return gain / inputs**0.5

    def link(self, dual: Tensor) -> Tensor:
        """The weights in force, from the dual."""
        return dual

    def project(self, dual: Tensor, anchor: Tensor, initial: Tensor) -> Tensor:
        """What a chunk starts from.

        Args:
            dual: what the chunk before left.
            anchor: the weights in force while it was read.
            initial: the dual that documents begin with (:meth:`begin`).
        """
        del anchor, initial
        return dual


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


@dataclass(frozen=True)
class KLDivergence(Retention):
    """KL and entropy on the scaled simplex, Memora's (MIRAS eqs. 21, 27): ``W_t = total softmax(A_t)`` for every row.

    ``A`` holds logits: ``A_t = retain_t log W_{t-1} - lr_t grad``, where the row's constant that tells ``A`` from
    ``log W`` changes no softmax as long as ``retain`` is one number per row; gates per ``key`` channel are another
    rule and are refused. Logits are re-centred where a chunk opens.

    Args:
        scope: of the gate; see :class:`WeightDecay`.
        total: what each row of W sums to.
        link_at: where the softmax acts; the paper: at the chunk's start.
        lag: the chunk's first token is written before the gradients of the others are taken (eq. 30, "lag token").
    """

    scope: Scope = "head"
    total: float = 1.0
    link_at: LinkAt = "chunk"
    lag: bool = True

    projects = True
    refused_scopes = ("key",)

    def __post_init__(self) -> None:
        _check_link(self.link_at)
        require_positive("total", self.total)

    def initial_spread(self, gain: float, inputs: int) -> float:
        """1: these are logits."""
        return 1.0

    def link(self, dual: Tensor) -> Tensor:
        return self.total * torch.softmax(dual, -1)

    def project(self, dual: Tensor, anchor: Tensor, initial: Tensor) -> Tensor:
        return dual - torch.logsumexp(dual, -1, keepdim=True)


@dataclass(frozen=True)
class LQNorm(Retention):
    """The mirror map of ``1/2 |W|_q^2``, Moneta's (MIRAS eqs. 17, 24), norms over each map's whole matrix.

    With ``p = q / (q - 1)`` the ``mirror`` form is ``W = sign(A) |A|^(p-1) |A|_p^(2-p)``, of degree 1 in A; for q = 2
    it is A itself. The paper prints ``W = A / |A|_q^(q-2)``, the ``printed`` form: it drops the factor ``|A|^(p-1)``,
    turns a large A into a small W where q > 3, and has no value at A = 0. ``mirror`` is the default for that reason.
    Learned initial weights are those in force: a document begins with the A whose link they are.

    Args:
        q: at least 2; Moneta's is 4. Larger values spread the weights more evenly.
        form: ``mirror`` or ``printed``.
        scope: of the gate ``retain``, which acts on A; see :class:`WeightDecay`.
        link_at: where the link acts; the paper: at chunk ends.
        eps: rounds ``|x|`` to ``sqrt(x^2 + eps max(x^2))``, and bounds the printed divisor.
    """

    q: float = 4.0
    form: Literal["mirror", "printed"] = "mirror"
    scope: Scope = "head"
    link_at: LinkAt = "chunk"
    eps: float = 1e-14

    def __post_init__(self) -> None:
        _check_link(self.link_at)
        require_positive("eps of an L_q retention", self.eps)
        if not is_positive(self.q) or self.q < 2:
            raise UserError(f"q of an L_q retention must be at least 2, not {self.q!r}")
        if self.form not in ("mirror", "printed"):
            raise UserError(f"form must be 'mirror' or 'printed', not {self.form!r}")

    @property
    def descends(self) -> bool:  # type: ignore[override]
        """The printed form turns a large A into a small W: a step down in A can be one up in W."""
        return self.form == "mirror"

    def begin(self, initial: Tensor) -> Tensor:
        return initial if self.form == "printed" else self._mirror(initial, self.q)

    def initial_spread(self, gain: float, inputs: int) -> float:
        """Never 0, where the printed form has no value and both move infinitely fast."""
        return (gain or 1.0) / inputs**0.5

    def link(self, dual: Tensor) -> Tensor:
        if self.form == "printed":
            return dual / (self._norm(dual, self.q) ** (self.q - 2) + self.eps)
        return self._mirror(dual, self.q / (self.q - 1))

    def _mirror(self, w: Tensor, p: float) -> Tensor:
        """The gradient of ``1/2 |w|_p^2``; those of p and q = p / (p - 1) undo each other."""
        scaled, largest = self._scaled(w)
        size = scaled.square() + self.eps
        return largest * scaled * size ** (p / 2 - 1) * (size ** (p / 2)).sum((-2, -1), keepdim=True) ** (2 / p - 1)

    def _norm(self, w: Tensor, p: float) -> Tensor:
        scaled, largest = self._scaled(w)
        return largest * ((scaled.square() + self.eps) ** (p / 2)).sum((-2, -1), keepdim=True) ** (1 / p)

    def _scaled(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The matrix over its largest entry, and that entry, which counts as a number: both maps are homogeneous."""
        largest = w.detach().abs().amax((-2, -1), keepdim=True)
        return w / torch.where(largest == 0, 1.0, largest), largest


@dataclass(frozen=True)
class ElasticNet(Retention):
    """Small weights are forgotten, becoming exactly 0, where a chunk opens (MIRAS eq. 22, the proximal step).

    ``W = S(A)`` with soft thresholding, ``S(z) = sign(z) max(0, |z| - shrink)``.

    Args:
        shrink: the threshold, at least 0.
        scope: of the gate ``retain``, the equation's lambda; see :class:`WeightDecay`.
    """

    shrink: float = 1e-3
    scope: Scope = "head"

    projects = True

    def __post_init__(self) -> None:
        _check_shrink(self.shrink)

    def project(self, dual: Tensor, anchor: Tensor, initial: Tensor) -> Tensor:
        return soft_threshold(dual, self.shrink)


@dataclass(frozen=True)
class SoftThreshold(Retention):
    """The elastic net as a link (MIRAS eq. 23, follow the regularised leader): small weights are hidden, not forgotten.

    ``W = S(A)`` as in :class:`ElasticNet`; what stays below the threshold goes on collecting in A.

    Args:
        shrink: the threshold, at least 0.
        scope: of the gate ``retain``; see :class:`WeightDecay`.
        link_at: where the link acts.
    """

    shrink: float = 1e-3
    scope: Scope = "head"
    link_at: LinkAt = "chunk"

    def __post_init__(self) -> None:
        _check_link(self.link_at)
        _check_shrink(self.shrink)

    def link(self, dual: Tensor) -> Tensor:
        return soft_threshold(dual, self.shrink)


def soft_threshold(w: Tensor, shrink: float) -> Tensor:
    """``sign(w) max(0, |w| - shrink)``."""
    return torch.sign(w) * torch.relu(w.abs() - shrink)


@dataclass(frozen=True)
class FDivergence(Retention):
    """An f-divergence to the memory before, on the scaled simplex (MIRAS section 5.2): ``W = W' * g(U - zeta)``.

    ``U`` is what a chunk has collected, ``g`` the inverse of f', and zeta, one number per row, makes the row sum to
    ``total``. It is a projection: inside a chunk the memory moves linearly. There is no gate: the divergence itself
    keeps the memory near. A document begins with ``total softmax(initial)``.

    Args:
        f: ``kl`` (f = u log u, g = exp; the row is a softmax of ``log W' + U``) or ``chi2`` (f = (u - 1)^2 / 2,
            g(y) = max(0, 1 + y): weights can become exactly 0 and then stay so).
        total: what each row of W sums to.
    """

    f: Literal["kl", "chi2"] = "chi2"
    total: float = 1.0

    scope = None
    projects = True

    def __post_init__(self) -> None:
        require_positive("total", self.total)
        if self.f not in ("kl", "chi2"):
            raise UserError(f"f must be 'kl' or 'chi2', not {self.f!r}")

    def begin(self, initial: Tensor) -> Tensor:
        return self.total * torch.softmax(initial, -1)

    def initial_spread(self, gain: float, inputs: int) -> float:
        """1: these are logits."""
        return 1.0

    def project(self, dual: Tensor, anchor: Tensor, initial: Tensor) -> Tensor:
        moved = dual - anchor
        if self.f == "kl":
            return self.total * torch.softmax(anchor.clamp_min(torch.finfo(anchor.dtype).tiny).log() + moved, -1)
        return self._chi2(anchor, moved)

    def _chi2(self, w: Tensor, moved: Tensor) -> Tensor:
        """Finds zeta exactly: the row's sum falls piecewise linearly in it, with a corner at every ``1 + moved``."""
        with torch.no_grad():
            corners, order = (1.0 + moved).sort(-1, descending=True)
            ahead = w.gather(-1, order)
            mass = ahead.cumsum(-1)
            zeta = ((ahead * corners).cumsum(-1) - self.total) / mass.clamp_min(torch.finfo(w.dtype).tiny)
            # The weights above zeta are those of the longest run whose smallest corner still lies above its own zeta.
            runs = ((corners > zeta) & (mass > 0)).to(torch.int64)
            last = (runs * torch.arange(1, w.shape[-1] + 1, device=w.device)).argmax(-1, keepdim=True)
            active = 1.0 + moved > zeta.gather(-1, last)
        kept = torch.where(active, w, 0.0)
        found = ((kept * (1.0 + moved)).sum(-1, keepdim=True) - self.total) / kept.sum(-1, keepdim=True)
        return kept * (1.0 + moved - found)


@dataclass(frozen=True)
class Bounded(Retention):
    """A Bregman retention that keeps every weight inside an interval: ``W = low + (high - low) sigmoid(A)``.

    MIRAS section 5.2, where the interval is (0, 1): ``W_t = sigmoid(logit(W_{t-1}) - lr grad)``.

    Args:
        low: of the interval.
        high: of the interval.
        scope: of the gate ``retain``, which pulls A to 0, the middle; see :class:`WeightDecay`.
        link_at: where the link acts.
    """

    low: float = -1.0
    high: float = 1.0
    scope: Scope = "head"
    link_at: LinkAt = "chunk"

    def __post_init__(self) -> None:
        _check_link(self.link_at)
        if not -float("inf") < self.low < self.high < float("inf"):
            raise UserError(f"bounds must be finite and rise, not {self.low} and {self.high}")

    def link(self, dual: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * torch.sigmoid(dual)


@dataclass(frozen=True)
class RowNorm(Retention):
    """Every row keeps the length it has in the initial memory (LaCT, arXiv 2505.23884), where a chunk opens.

    ``unit`` gives each row length 1 instead: memory slots on the sphere (Lattice, arXiv 2504.05646, whose slots move
    orthogonally to themselves; moving and renormalising agree with that to first order).

    Args:
        unit: rows of length 1.
        scope: of a gate ``retain`` beside it, or ``None`` as in LaCT.
        eps: rounds lengths to ``sqrt(|w|^2 + eps)``.
    """

    unit: bool = False
    scope: Scope | None = None
    eps: float = 1e-12

    projects = True

    def __post_init__(self) -> None:
        require_positive("eps of a row norm", self.eps)

    def begin(self, initial: Tensor) -> Tensor:
        return initial / self._length(initial) if self.unit else initial

    def initial_spread(self, gain: float, inputs: int) -> float:
        """Never 0: a row without length would stay so."""
        return (gain or 1.0) / inputs**0.5

    def project(self, dual: Tensor, anchor: Tensor, initial: Tensor) -> Tensor:
        return dual * (self._length(initial) / self._length(dual))

    def _length(self, w: Tensor) -> Tensor:
        return (w.square().sum(-1, keepdim=True) + self.eps).sqrt()


@dataclass(frozen=True)
class Reset(Retention):
    """The memory starts again from the learned W_0 every ``every`` tokens (TNT, arXiv 2511.07343 eq. 6).

    Momentum starts again too. What must be kept longer is another memory's work.

    Args:
        inner: what is kept in between: :class:`NoRetention` or :class:`WeightDecay`.
        every: tokens, a multiple of the rule's chunk size.
    """

    inner: NoRetention | WeightDecay = NoRetention()
    every: int = 4096

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UserError(f"a memory is reset every 1 or more tokens, not {self.every}")
        if not isinstance(self.inner, NoRetention | WeightDecay):
            raise UserError(f"a reset goes around NoRetention or WeightDecay, not {self.inner!r}")

    @property
    def scope(self) -> Scope | None:  # type: ignore[override]
        """Of the inner retention."""
        return self.inner.scope


def _check_link(at: str) -> None:
    if at not in get_args(LinkAt):
        raise UserError(f"a link acts at every 'chunk' or 'token', not at {at!r}")


def _check_shrink(shrink: float) -> None:
    if shrink != 0 and not is_positive(shrink):
        raise UserError(f"the threshold of an elastic net must be at least 0, not {shrink!r}")
