"""Normalisation: root mean square, and unit length."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def unit(x: Tensor) -> Tensor:
    """``x`` with length 1 over the last dimension, in float32 or wider.

    Rounded to bfloat16 a key may be longer than 1, and a write with the largest step then grows what it should replace.
    """
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1, eps=1e-6)


class RMSNorm(nn.Module):
    """``x / rms(x) * weight`` over the last dimension (arXiv 1910.07467)."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``[..., dim] -> [..., dim]``."""
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)
