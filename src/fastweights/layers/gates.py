"""Numbers that reach both ends of their range exactly, and still learn there."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def exact_gate(z: Tensor, threshold: float) -> Tensor:
    """``relu(sigmoid(z) - threshold) / (1 - threshold)``, in [0, 1] with both ends reachable.

    A plain sigmoid never shuts: a forget gate of 1e-4 erases everything before two million tokens, e^-200. Backward is
    straight-through, ``sigmoid'(z) / (1 - threshold)`` everywhere, or a gate that starts shut would never open.

    Args:
        z: any shape.
        threshold: in [0, 1).
    """
    # In the precision of z: otherwise the two differences round apart, and an open gate is not exactly 1.
    floor = torch.full((), threshold, dtype=z.dtype, device=z.device)
    opened = (torch.sigmoid(z) - floor) / (1.0 - floor)
    # Adds exactly 0 to an open gate and exactly its negative to a shut one, out of the gradient's sight.
    return opened + torch.relu(-opened).detach()


def held(x: Tensor, least: float, most: float) -> Tensor:
    """``x``, but no less than ``least`` and no more than ``most``. Backward is straight-through, as in `exact_gate`."""
    return x + (x.clamp(least, most) - x).detach()


def reached(lr: Tensor, reaches: tuple[float, ...]) -> Tensor:
    """Steps ``[B, heads, T, n]`` times how far each head reaches; as they are where ``reaches`` is empty."""
    return lr * lr.new_tensor(reaches).view(-1, 1, 1) if reaches else lr


def gate_bias(value: float, threshold: float) -> float:
    """The z at which :func:`exact_gate` gives ``value``, for 0 < value < 1."""
    s = value * (1.0 - threshold) + threshold
    return math.log(s / (1.0 - s))
