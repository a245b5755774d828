"""Memory algorithm: how a memory learns from the inner gradient.

``u_t`` is the inner gradient of token t, S the momentum, A the dual; what ``retain`` keeps is left out here.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastweights.core.types import Scope
from fastweights.errors import UserError, require_positive

Coupling = Literal["none", "heavy ball", "nesterov", "deferred"]
"""How the momentum enters the dual: there is none; ``A += S``; Nesterov's; or only where a chunk opens."""


class Algorithm(ABC):
    """A step. ``scope`` is that of the gate ``momentum``, ``None`` where there is none.

    ``erases`` says that the step also takes the token's own key out of the weights (:class:`DeltaGradientDescent`),
    ``steps`` how many keys and values a token brings.
    """

    scope: Scope | None
    coupling: Coupling = "none"
    erases: bool = False
    steps: int = 1

    def settle(self, dual: Tensor, momentum: Tensor) -> Tensor:
        """What a ``deferred`` momentum makes of one map's dual ``[..., outputs, inputs]`` where a chunk opens."""
        del momentum
        return dual

    def stable_lr(self, retain: Tensor, slope: float, chunk: int) -> Tensor:
        """A step with which a matrix does not overshoot under a unit key that comes again and again, without momentum.

        Args:
            retain: in [0, 1], any shape.
            slope: of the bias's gradient in the memory's answers, a target that the memory makes included.
            chunk: tokens whose gradients are taken at the same weights.
        """
        # A chunk keeps a^C - slope * lr * (1 + a + ... + a^(C - 1)), a = retain; the sum is at most C and 1 / (1 - a).
        return (1.0 + retain**chunk) / slope * (1.0 - retain).clamp_min(1.0 / chunk)


@dataclass(frozen=True)
class GradientDescent(Algorithm):
    """``A_t = A_{t-1} - lr_t u_t`` (Titans eq. 8)."""

    scope: None = None


@dataclass(frozen=True)
class Momentum(Algorithm):
    """Titans' surprise (eq. 10): ``S_t = momentum_t S_{t-1} - lr_t u_t``, ``A_t = A_{t-1} + S_t``.

    Args:
        scope: of the momentum gate; see :class:`~fastweights.core.retention.WeightDecay`.
    """

    scope: Scope = "head"

    coupling = "heavy ball"


@dataclass(frozen=True)
class Nesterov(Algorithm):
    """Momentum that looks ahead: S as in :class:`Momentum`, ``A_t = A_{t-1} + momentum_t S_t - lr_t u_t``.

    The usual form without a second gradient (Sutskever et al. 2013; ``torch.optim.SGD(nesterov=True)``).

    Args:
        scope: of the momentum gate.
    """

    scope: Scope = "head"

    coupling = "nesterov"


@dataclass(frozen=True)
class ImplicitStep(Algorithm):
    """The step that takes the gradient where it arrives (Longhorn, arXiv 2407.14207).

    ``W_t = argmin 1/2 |W - W_{t-1}|^2 + lr_t loss(W; k_t, v_t)``; for a matrix with squared error that is a step of
    ``lr / (1 + slope lr |k|^2)``, stable for any lr. Other memories have no closed form and are refused.
    """

    scope: None = None


@dataclass(frozen=True)
class Steps(Algorithm):
    """Several steps a token, one after the other, each with a key, a value and an lr of its own (DeltaProduct).

    arXiv 2502.10297: a product of generalised Householder matrices per token, which is what permutations of several
    elements need. Keys are ``[B, H, T, count x K]``, values ``[B, H, T, count x V]``, lr ``count`` numbers; the token's
    ``retain`` acts before its first step, queries are answered after its last.

    Args:
        count: steps a token, at least 1.
    """

    count: int = 2

    scope = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"a token takes at least 1 step, not {self.count}")

    @property
    def steps(self) -> int:  # type: ignore[override]
        """``count``."""
        return self.count


@dataclass(frozen=True)
class DeltaGradientDescent(Algorithm):
    """Hope's step (Nested Learning eqs. 56, 57, 88): ``A_t = A_{t-1} (I - lr_t x_t x_t^T) - lr_t delta_t x_t^T``.

    For every linear map with its own input x and output gradient delta, both at the anchor, while the erased weights
    are the present ones. x is shortened to unit length in the erasing term where it is longer: for unit keys that is
    the paper's step, and the eigenvalue ``1 - lr |x|^2`` of the erasing stays in [0, 1] for lr <= 1.

    A squared error erases a second time: along the key of a token that is its own chunk a matrix keeps
    ``retain - (1 + slope) lr``, where slope is 1 with the loss's half and 2 without. Layers hold lr to what keeps this
    eigenvalue in [0, 1], or in [-1, 1] if asked; see :meth:`stable_lr`. Where the target is what the memory itself
    answers to a value v of unit length, as in Hope, it is ``retain - (1 + slope - gain <k, v>) lr``.

    Args:
        scope: of a momentum gate, or ``None``: the paper prints none and lists one in its ablation.
        negative: layers let eigenvalues be negative, down to -1, which parity needs.
    """

    scope: Scope | None = None
    negative: bool = False

    erases = True

    def stable_lr(self, retain: Tensor, slope: float, chunk: int) -> Tensor:
        most = (1.0 + retain if self.negative else retain) / (1.0 + slope)
        if chunk == 1 or slope <= 1.0:
            return most
        # A chunk keeps a^C - slope * lr * (1 - a^C) / (1 - a), a = retain - lr: either side of the maximum suffices.
        ratio = ((slope - 1.0) / (slope + 1.0)) ** (1.0 / chunk)
        return torch.minimum(most, torch.maximum(retain - ratio, (1.0 - retain) / (slope - 1.0)))

    @property
    def coupling(self) -> Coupling:  # type: ignore[override]
        """The momentum's, if there is one."""
        return "none" if self.scope is None else "heavy ball"


MUON = (3.4445, -4.7750, 2.0315)
"""Coefficients of the Newton-Schulz iteration that Muon uses: fast, and singular values land near 1, not on it."""


@dataclass(frozen=True)
class NewtonSchulz(Algorithm):
    """Steps along the orthogonalised momentum, where a chunk opens (Atlas eqs. 32, 33; LaCT; Muon).

    ``S_t = momentum_t S_{t-1} - lr_t u_t`` collects; when the next chunk opens, ``A += step NS(S)``, whose singular
    values are about ``step``. With chunk size 1 it acts at every token, as Atlas prints it. Elementwise maps have no
    singular values and are refused.

    Args:
        scope: of the momentum gate.
        step: length of the step; lr weighs tokens against each other and cannot change it.
        iterations: of Newton-Schulz.
        floor: momenta shorter than this make shorter steps: without it, what rounding leaves of a momentum that has
            faded would make a whole one.
    """

    scope: Scope = "head"
    step: float = 0.1
    iterations: int = 5
    floor: float = 1e-4

    coupling = "deferred"

    def __post_init__(self) -> None:
        require_positive("the step along an orthogonalised momentum", self.step)
        require_positive("the floor of an orthogonalised momentum", self.floor)
        if self.iterations < 1:
            raise UserError(f"Newton-Schulz needs at least 1 iteration, not {self.iterations}")

    def settle(self, dual: Tensor, momentum: Tensor) -> Tensor:
        return dual + self.step * newton_schulz(momentum, self.iterations, self.floor)


@dataclass(frozen=True)
class ConjugateGradient(Algorithm):
    """The best matrix for all tokens so far, solved anew for every query (MesaNet, arXiv 2506.05233).

    Two matrices collect, ``H_kk = retain H_kk + lr k k^T`` and ``H_kv`` likewise with v; a query is answered by
    ``H_kv (H_kk + ridge)^-1 q``, the minimum of the discounted squared error plus the ridge, by conjugate gradients.
    The ridge is one learned positive number per key channel.

    Args:
        iterations: of conjugate gradients, at most; exact from K on in exact arithmetic.
        ridge: smallest value of the ridge.
    """

    iterations: int = 30
    ridge: float = 0.25

    scope = None

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise UserError(f"conjugate gradients need at least 1 iteration, not {self.iterations}")
        require_positive("the ridge", self.ridge)


@dataclass(frozen=True)
class Hierarchy(Algorithm):
    """TNT (arXiv 2511.07343): a global memory with the rule's own, large chunk beside local ones with small chunks.

    Every memory has the rule's architecture, bias and step; the global one is read at its chunk's start, the local
    ones after each token, with queries projected onto the keys of their chunk (eq. 7), and they start again from
    their learned W_0 every ``shard`` tokens. Answers are added.

    Args:
        local_chunks: chunk size of each local memory.
        shard: tokens after which the local memories start again, a multiple of every chunk size.
        step: how each memory learns.
    """

    local_chunks: tuple[int, ...] = (8,)
    shard: int = 2048
    step: GradientDescent | Momentum | Nesterov = Momentum()

    @property
    def scope(self) -> Scope | None:  # type: ignore[override]
        """Of the inner step."""
        return self.step.scope

    @property
    def coupling(self) -> Coupling:  # type: ignore[override]
        """Of the inner step."""
        return self.step.coupling

    def __post_init__(self) -> None:
        if not isinstance(self.local_chunks, tuple) or not isinstance(self.step, GradientDescent | Momentum | Nesterov):
            raise UserError("a hierarchy has a tuple of local chunk sizes, a shard, and a plain step or momentum")
        if not self.local_chunks or any(c < 1 or self.shard % c for c in self.local_chunks):
            raise UserError(
                f"a hierarchy needs local chunk sizes that divide its shard of {self.shard}, not {self.local_chunks}"
            )


@dataclass(frozen=True)
class Attention(Algorithm):
    """Softmax attention: the growing, non-parametric memory that keeps every token (MIRAS section 4).

    The answer to a query is the average of all values, weighed by ``exp(scale <q, k>)``: the Nadaraya-Watson minimum
    of the squared error. The state grows with the document.
    """

    scope: None = None


def newton_schulz(x: Tensor, iterations: int, floor: float) -> Tensor:
    """Brings the singular values of ``x [..., m, n]`` near 1; a zero stays zero. Cost: O(iterations m n min(m, n))."""
    a, b, c = MUON
    tall = x.shape[-2] > x.shape[-1]
    x = x.transpose(-1, -2) if tall else x
    x = x * torch.rsqrt(x.square().sum((-2, -1), keepdim=True) + floor**2)
    for _ in range(iterations):
        gram = x @ x.transpose(-1, -2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(-1, -2) if tall else x
