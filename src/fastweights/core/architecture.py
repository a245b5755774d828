"""What stores the memory: networks written once against an abstract ``linear(name, x)``.

The engine hands an architecture different ``linear``s: a plain product, one that records its inputs, or the *dual*
read that applies the weights of every token without forming them. The gradient of a linear map is the rank-one
``delta x^T`` (of an elementwise map the product ``delta * x``); an architecture's hand-derived ``backward`` therefore
only names, for each map, the gradient ``delta`` at its output. ``linear`` also applies the architecture's constants,
elementwise weights that the outer training learns and no token changes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fastweights.core.fused import gelu_slope
from fastweights.core.types import Map
from fastweights.errors import UserError, require_positive

Linear = Callable[[str, Tensor], Tensor]
Back = Callable[[str, Tensor], Tensor]
Record = Callable[[str, Tensor], None]
Activation = Literal["gelu", "gelu_tanh", "silu", "relu", "tanh"]


def _check(expansion: float, activation: Activation) -> None:
    require_positive("the expansion of a memory", expansion)
    if activation not in get_args(Activation):
        raise UserError(f"activation must be one of {', '.join(get_args(Activation))}, not {activation!r}")


class Architecture(ABC):
    """A memory network f(W, x): linear maps and any per-token function between them.

    ``elementwise`` names those of its maps that are elementwise; ``power`` is the highest that its features take of an
    input.
    """

    elementwise: frozenset[str] = frozenset()
    power: int = 1

    @abstractmethod
    def maps(self, key_dim: int, value_dim: int) -> tuple[Map, ...]:
        """The linear maps of the network, in the order they are applied."""

    def constants(self, key_dim: int, value_dim: int) -> tuple[Map, ...]:
        """Elementwise weights that no token changes, named unlike the maps; none by default."""
        del key_dim, value_dim
        return ()

    @abstractmethod
    def forward(self, linear: Linear, x: Tensor) -> tuple[Tensor, Any]:
        """Applies the network to ``x [..., W, K]``; returns ``[..., W, V]`` and what ``backward`` needs."""

    def backward(self, record: Record, back: Back, tape: Any, grad: Tensor) -> None:
        """Hand-derived inner gradient; an architecture without one is differentiated by autograd, more slowly.

        Args:
            record: called once per map with its name and the gradient at its output.
            back: ``back(name, delta)`` is ``delta`` times the map's weights, the gradient at the map's input.
            tape: what ``forward`` returned beside its output.
            grad: gradient of the inner loss at the network's output, ``[..., W, V]``.
        """
        raise NotImplementedError

    @property
    def closed_form(self) -> bool:
        """Whether its backward is written by hand."""
        return type(self).backward is not Architecture.backward

    def initial_gain(self, name: str) -> float:
        """Standard deviation, in units of 1/sqrt(inputs), that the learned initial weights of a map start from."""
        del name
        return 1.0

    def initial_constant(self, name: str, index: int) -> float:
        """The value that a number of a constant starts from."""
        del name, index
        return 1.0


@dataclass(frozen=True)
class Vector(Architecture):
    """One weight per channel, ``f(w, x) = w * x``: the smallest memory (MIRAS table 1). Keys and values of one size."""

    elementwise = frozenset({"vector"})

    def maps(self, key_dim: int, value_dim: int) -> tuple[Map, ...]:
        _one_size("a vector memory", key_dim, value_dim)
        return (Map("vector", key_dim, 1, elementwise=True),)

    def forward(self, linear: Linear, x: Tensor) -> tuple[Tensor, Any]:
        return linear("vector", x), None

    def backward(self, record: Record, back: Back, tape: Any, grad: Tensor) -> None:
        record("vector", grad)

    def initial_gain(self, name: str) -> float:
        """Zero: it starts empty."""
        return 0.0


@dataclass(frozen=True)
class Matrix(Architecture):
    """A single matrix, ``f(W, x) = W x``: the memory of linear attention, DeltaNet and linear Titans.

    Args:
        bias: appends a constant 1 to x (TTT-Linear's bias vector).
    """

    bias: bool = False

    def maps(self, key_dim: int, value_dim: int) -> tuple[Map, ...]:
        return (Map("matrix", key_dim + self.bias, value_dim),)

    def forward(self, linear: Linear, x: Tensor) -> tuple[Tensor, Any]:
        return linear("matrix", _with_one(x) if self.bias else x), None

    def backward(self, record: Record, back: Back, tape: Any, grad: Tensor) -> None:
        record("matrix", grad)

    def initial_gain(self, name: str) -> float:
        """Zero: a matrix memory starts empty."""
        return 0.0


@dataclass(frozen=True)
class MLP(Architecture):
    """A multi-layer perceptron without biases; Titans' deep memory (camera-ready section 3.3: depth 2, GELU).

    Args:
        depth: number of linear maps, at least 1.
        expansion: width of the hidden layers as a multiple of the key size (the paper: 4).
        activation: between the maps.
        bias: appends a constant 1 to every map's input (TTT-MLP's bias vectors).
    """

    depth: int = 2
    expansion: float = 4.0
    activation: Activation = "gelu"
    bias: bool = False

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise UserError(f"an MLP memory has at least 1 layer, not {self.depth}")
        _check(self.expansion, self.activation)

    def maps(self, key_dim: int, value_dim: int) -> tuple[Map, ...]:
        hidden = max(1, round(key_dim * self.expansion))
        sizes = [key_dim, *[hidden] * (self.depth - 1), value_dim]
        return tuple(Map(f"layer{i + 1}", a + self.bias, b) for i, (a, b) in enumerate(pairwise(sizes)))

    def forward(self, linear: Linear, x: Tensor) -> tuple[Tensor, Any]:
        before: list[Tensor] = []
        for i in range(1, self.depth):
            before.append(linear(f"layer{i}", _with_one(x) if self.bias else x))
            x = activate(self.activation, before[-1])
        return linear(f"layer{self.depth}", _with_one(x) if self.bias else x), before

    def backward(self, record: Record, back: Back, tape: Any, grad: Tensor) -> None:
        for i in range(self.depth, 1, -1):
            record(f"layer{i}", grad)
            through = back(f"layer{i}", grad)
            grad = activate_backward(self.activation, through[..., :-1] if self.bias else through, tape[i - 2])
        record("layer1", grad)


@dataclass(frozen=True)
class GatedMLP(Architecture):
    """SwiGLU memory, ``W_down (act(W_gate x) * (W_up x))`` (LaCT, TTT-E2E).

    Args:
        expansion: hidden width as a multiple of the key size.
        activation: of the gate.
    """

    expansion: float = 2.0
    activation: Activation = "silu"

    def __post_init__(self) -> None:
        _check(self.expansion, self.activation)

    def maps(self, key_dim: int, value_dim: int) -> tuple[Map, ...]:
        hidden = max(1, round(key_dim * self.expansion))
        return (Map("gate", key_dim, hidden), Map("up", key_dim, hidden), Map("down", hidden, value_dim))

    def forward(self, linear: Linear, x: Tensor) -> tuple[Tensor, Any]:
        gate, up = linear("gate", x), linear("up", x)
        opened = activate(self.activation, gate)
        return linear("down", opened * up), (gate, up, opened)

    def backward(self, record: Record, back: Back, tape: Any, grad: Tensor) -> None:
        gate, up, opened = tape
        record("down", grad)
        hidden = back("down", grad)
        record("up", hidden * opened)
        record("gate", activate_backward(self.activation, hidden * up, gate))


@dataclass(frozen=True)
class _Around(Architecture):
    """Something around an inner network of one size of keys and values: what does not depend on what it is."""

    inner: Architecture = MLP()

    def maps(self, key_dim: int, value_dim: int) -> tuple[Map, ...]:
        _one_size("a residual memory", key_dim, value_dim)
        return self.inner.maps(key_dim, value_dim)

    def constants(self, key_dim: int, value_dim: int) -> tuple[Map, ...]:
        return self.inner.constants(key_dim, value_dim)

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
        """That of the inner network."""
        return self.inner.power

    def initial_gain(self, name: str) -> float:
        return self.inner.initial_gain(name)

    def initial_constant(self, name: str, index: int) -> float:
        return self.inner.initial_constant(name, index)


@dataclass(frozen=True)
class Residual(_Around):
    """Residual and LayerNorm around a memory, ``f(W, x) = x + LN(inner(W, x))`` (Titans camera-ready section 3.3).

    ``eps`` of at least 1e-3 keeps the gradient through the norm bounded while the inner network is still small. Needs
    keys and values of one size.

    Args:
        inner: the network.
        eps: of the LayerNorm.
        affine: the LayerNorm has a learned gain and shift, as TTT's; otherwise the layer's output norm has them.
    """

    eps: float = 1e-3
    affine: bool = False

    def __post_init__(self) -> None:
        require_positive("the LayerNorm's eps", self.eps)
        if self.affine and any(c.name == "gain" for c in self.inner.constants(8, 8)):
            raise UserError("two LayerNorms of one memory cannot both have a gain and a shift: they would be the same")

    def constants(self, key_dim: int, value_dim: int) -> tuple[Map, ...]:
        own = (Map("gain", value_dim, 1, True), Map("shift", value_dim, 1, True)) if self.affine else ()
        return (*self.inner.constants(key_dim, value_dim), *own)

    def forward(self, linear: Linear, x: Tensor) -> tuple[Tensor, Any]:
        y, tape = self.inner.forward(linear, x)
        centred = y - y.mean(-1, keepdim=True)
        inverse = torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.eps)
        normed = centred * inverse
        if not self.affine:
            return x + normed, (tape, normed, inverse, None)
        gain = linear("gain", torch.ones_like(normed))
        return x + normed * gain + linear("shift", torch.ones_like(normed)), (tape, normed, inverse, gain)

    def backward(self, record: Record, back: Back, tape: Any, grad: Tensor) -> None:
        inner, normed, inverse, gain = tape
        grad = grad if gain is None else grad * gain
        along = (grad * normed).mean(-1, keepdim=True)
        grad = (grad - grad.mean(-1, keepdim=True) - normed * along) * inverse
        self.inner.backward(record, back, inner, grad)

    def initial_gain(self, name: str) -> float:
        """A normed network may not start at zero, even if its inner one would."""
        return self.inner.initial_gain(name) or 1.0

    def initial_constant(self, name: str, index: int) -> float:
        """Gain 1, shift 0."""
        return 0.0 if name == "shift" else 1.0 if name == "gain" else self.inner.initial_constant(name, index)


@dataclass(frozen=True)
class Skip(_Around):
    """A residual without a norm, ``f(W, x) = x + inner(W, x)``: the memory of Hope (Nested Learning eq. 89).

    Needs keys and values of one size.

    Args:
        inner: the network.
    """

    def forward(self, linear: Linear, x: Tensor) -> tuple[Tensor, Any]:
        y, tape = self.inner.forward(linear, x)
        return x + y, tape

    def backward(self, record: Record, back: Back, tape: Any, grad: Tensor) -> None:
        self.inner.backward(record, back, tape, grad)


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[..., :1])], -1)


def _one_size(what: str, key_dim: int, value_dim: int) -> None:
    if key_dim != value_dim:
        raise UserError(f"{what} needs keys and values of one size, not {key_dim} and {value_dim}")


def activate(kind: Activation, x: Tensor) -> Tensor:
    """The activation itself."""
    if kind == "gelu":
        return F.gelu(x)
    if kind == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if kind == "silu":
        return F.silu(x)
    return torch.relu(x) if kind == "relu" else torch.tanh(x)


def activate_backward(kind: Activation, grad: Tensor, x: Tensor) -> Tensor:
    """``grad`` times the activation's derivative at ``x``; itself differentiable."""
    if kind == "gelu":
        return gelu_slope(grad, x)
    if kind == "gelu_tanh":
        inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)
        t = torch.tanh(inner)
        slope = math.sqrt(2.0 / math.pi) * (1.0 + 0.134145 * x.square())
        return grad * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t.square()) * slope)
    if kind == "silu":
        s = torch.sigmoid(x)
        return grad * (s * (1 + x * (1 - s)))
    if kind == "relu":
        return grad * (x > 0)
    return grad * (1 - torch.tanh(x).square())
