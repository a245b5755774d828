"""The position-wise network of a block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastweights.core.compiled import compilable


class SwiGLU(nn.Module):
    """``W_down (silu(W_gate x) * (W_up x))`` (arXiv 2002.05202), without biases."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., dim] -> [..., dim]``."""
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(opened(gate, up))


@compilable
def opened(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``."""
    return F.silu(gate) * up
