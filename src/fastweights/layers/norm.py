"""Normalisation: root mean square, and unit length."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHORTEST = 1e-2
"""Length of the shortest vector that has a direction."""


def unit(x: Tensor) -> Tensor:
    """``x`` with length 1 over the last dimension, in float32 or wider; what is shorter than `SHORTEST` stays short.

    Rounded to bfloat16 a key may be longer than 1, and a write with the largest step then grows what it should replace.
    A gradient grows by one over the length, so nothing, such as the key of a first token that is the query of the token
    before, must not be stretched; and it must be differentiable twice there, which a square root is not.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x * x.square().sum(-1, keepdim=True).clamp_min(SHORTEST**2).rsqrt()


class RMSNorm(nn.Module):
    """``x / rms(x) * weight`` over the last dimension (arXiv 1910.07467)."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``[..., dim] -> [..., dim]``."""
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)
