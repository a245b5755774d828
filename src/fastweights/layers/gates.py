"""Gates that reach exactly 0 and exactly 1."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class _ExactGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: float) -> Tensor:
        s = torch.sigmoid(z)
        ctx.save_for_backward(s)
        ctx.threshold = threshold
        return torch.relu(s - threshold) / (1.0 - threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (s,) = ctx.saved_tensors
        return grad * s * (1.0 - s) / (1.0 - ctx.threshold), None


def exact_gate(z: Tensor, threshold: float) -> Tensor:
    """``relu(sigmoid(z) - threshold) / (1 - threshold)``, in [0, 1] with both ends reachable.

    A plain sigmoid never shuts: a forget gate of 1e-4 erases everything before two million tokens, e^-200. Backward is
    straight-through, ``sigmoid'(z) / (1 - threshold)`` everywhere, or a gate that starts shut would never open.

    Args:
        z: any shape.
        threshold: in [0, 1).
    """
    return _ExactGate.apply(z, threshold)  # type: ignore[no-any-return]


def gate_bias(value: float, threshold: float) -> float:
    """The z at which :func:`exact_gate` gives ``value``, for 0 < value < 1."""
    s = value * (1.0 - threshold) + threshold
    return math.log(s / (1.0 - s))
