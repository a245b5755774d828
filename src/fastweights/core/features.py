"""Feature maps on keys and queries, in front of any memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastweights.core.architecture import Architecture, Back, Linear, Matrix, Record, Residual, Vector
from fastweights.core.types import Map
from fastweights.errors import UserError


@dataclass(frozen=True)
class Polynomial(Architecture):
    """Polynomial features in front of a memory, ``f(W, x) = inner(W, phi(x))`` (Atlas section 3.1).

    ``phi(x)`` holds every monomial of x up to ``degree``, weighed so that ``<phi(q), phi(k)> = sum_i a_i^2 <q, k>^i``:
    a truncated series of any kernel of the inner product. The a_i are learned and start at ``sqrt(1 / i!)``, the
    exponential's. A matrix can then hold O(K^degree) pairs (proposition 2), at O(K^degree) of its size.

    Args:
        inner: the memory over the features.
        degree: of the polynomial, 1 to 3.
    """

    inner: Architecture = Matrix()
    degree: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.degree <= 3:
            raise UserError(f"the degree of polynomial features must be 1, 2 or 3, not {self.degree}")
        if isinstance(self.inner, Residual | Polynomial | Vector):
            raise UserError(
                "polynomial features go around a matrix or a network, inside a residual: Residual(Polynomial(MLP()))"
            )

    def maps(self, key_dim: int, value_dim: int) -> tuple[Map, ...]:
        return self.inner.maps(math.comb(key_dim + self.degree, self.degree), value_dim)

    def constants(self, key_dim: int, value_dim: int) -> tuple[Map, ...]:
        own = Map("coefficients", self.degree + 1, 1, True)
        return (*self.inner.constants(key_dim, value_dim), own)

    def forward(self, linear: Linear, x: Tensor) -> tuple[Tensor, Any]:
        coefficients = linear("coefficients", x.new_ones(*x.shape[:-1], self.degree + 1))
        parts = [coefficients[..., :1]]
        # A compiler folds the tables into its graph; it does not know caches.
        table = _table.__wrapped__ if torch.compiler.is_compiling() else _table
        for i in range(1, self.degree + 1):
            places, orders = table(x.shape[-1], i, x.device)
            monomials = orders.to(x.dtype).sqrt()
            for place in places:
                monomials = monomials * x.index_select(-1, place)
            parts.append(coefficients[..., i : i + 1] * monomials)
        return self.inner.forward(linear, torch.cat(parts, -1))

    def backward(self, record: Record, back: Back, tape: Any, grad: Tensor) -> None:
        self.inner.backward(record, back, tape, grad)

    @property
    def closed_form(self) -> bool:
        """Whether that of the inner network is."""
        return self.inner.closed_form

    @property
    def elementwise(self) -> frozenset[str]:  # type: ignore[override]
        """Those of the inner network."""
        return self.inner.elementwise

    @property
    def power(self) -> int:  # type: ignore[override]
        """The degree."""
        return self.degree * self.inner.power

    def initial_gain(self, name: str) -> float:
        return self.inner.initial_gain(name)

    def initial_constant(self, name: str, index: int) -> float:
        """The root of 1 / i!."""
        if name != "coefficients":
            return self.inner.initial_constant(name, index)
        return math.factorial(index) ** -0.5


@cache
def _table(size: int, degree: int, device: torch.device) -> tuple[list[Tensor], Tensor]:
    """The factors of all monomials of one degree, place by place, and in how many orders each can stand."""
    found = _monomials(size, degree)
    places = [torch.tensor([factors[i] for factors in found], device=device) for i in range(degree)]
    return places, torch.tensor([_orders(factors) for factors in found], device=device)


def _monomials(size: int, degree: int) -> list[tuple[int, ...]]:
    """The monomials of ``size`` variables of one degree (up to 3), as rising indices of their factors."""
    # Written out, because a compiler follows loops where it stops at itertools.
    if degree == 1:
        return [(i,) for i in range(size)]
    if degree == 2:
        return [(i, j) for i in range(size) for j in range(i, size)]
    return [(i, j, k) for i in range(size) for j in range(i, size) for k in range(j, size)]


def _orders(factors: tuple[int, ...]) -> int:
    """In how many orders the factors of a monomial can stand."""
    different = len(set(factors))
    return (1, 1, 2, 6)[different] if len(factors) == different else (1 if different == 1 else 3)
