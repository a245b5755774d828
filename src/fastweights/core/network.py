"""An architecture over given weights: its plain ``linear``, and the products that a map's kind decides.

Shapes: G batch x heads, W slots, S source tokens; weights ``[G, outputs, inputs]``, ``[G, 1, inputs]`` where a map is
elementwise.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from fastweights.core.architecture import Linear

Weights = dict[str, Tensor]


def plain(weights: Mapping[str, Tensor], constants: Mapping[str, Tensor], scaled: Collection[str]) -> Linear:
    """The ``linear`` of fixed weights; ``scaled`` names the elementwise maps."""

    def linear(name: str, x: Tensor) -> Tensor:
        if name in constants:
            return x * constants[name]
        return apply(weights[name], x, name in scaled)

    return linear


def apply(w: Tensor, x: Tensor, scaled: bool) -> Tensor:
    """``x W^T`` or ``x * w``, for ``x [..., W, inputs]``."""
    return x * w if scaled else _times(x, w.transpose(-1, -2))


def pull(w: Tensor, delta: Tensor, scaled: bool) -> Tensor:
    """The gradient at a map's input, from that at its output."""
    return delta * w if scaled else _times(delta, w)


def _times(x: Tensor, w: Tensor) -> Tensor:
    """``x @ w``, by the call that makes no views where there is a matrix for every x: a step has many of them."""
    return torch.bmm(x, w) if x.dim() == w.dim() == 3 and len(x) == len(w) else x @ w


def outer(delta: Tensor, x: Tensor, scaled: bool) -> Tensor:
    """Each token's gradient of a map's weights, ``[..., outputs, inputs]``, from its two factors."""
    return (delta * x).unsqueeze(-2) if scaled else delta.unsqueeze(-1) * x.unsqueeze(-2)


def total(weight: Tensor, delta: Tensor, x: Tensor, scaled: bool) -> Tensor:
    """``sum_i weight_i`` times each token's gradient, ``[G, outputs, inputs]``; ``weight [G, S, 1]``."""
    if scaled:
        return (weight * delta * x).sum(-2, keepdim=True)
    return _times(delta.transpose(-1, -2), x * weight)


def squared(delta: Tensor, x: Tensor, scaled: bool) -> Tensor:
    """Squared norm of each token's gradient of a map's weights, ``[...]``."""
    if scaled:
        return (delta * x).square().sum(-1)
    return torch.linalg.vecdot(delta, delta) * torch.linalg.vecdot(x, x)
