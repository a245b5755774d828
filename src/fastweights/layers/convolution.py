"""The short causal convolution: what lets a memory bind neighbouring tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastweights.core.layout import Layout


class ShortConvolution(nn.Module):
    """Depthwise causal convolution over the last ``size`` real tokens of a document.

    Keys and values come from the same token; without this a memory can learn nothing but W_K -> W_V (Titans section
    4.4; perplexity 27.0 to 28.7 when removed, table 5). Starts as the identity. Cost O(T dim size).
    """

    def __init__(self, dim: int, size: int = 4) -> None:
        super().__init__()
        self.size = size
        weight = torch.zeros(size, dim)
        weight[0] = 1.0
        self.weight = nn.Parameter(weight)

    def init_state(self, batch: int) -> Tensor:
        """The tail of a stream that has not begun: zeros ``[B, size - 1, dim]``."""
        return self.weight.new_zeros(batch, self.size - 1, self.weight.shape[1])

    def forward(self, x: Tensor, tail: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """``x [B, T, dim]`` packed, ``tail [B, size - 1, dim]`` the tokens before it; returns both anew."""
        reach = self.size - 1
        whole = torch.cat([tail.to(x.dtype), x], 1)
        weight = self.weight.to(x.dtype)
        time = x.shape[1]
        y = x * weight[0]
        for back in range(1, self.size):
            shifted = whole[:, reach - back : reach - back + time]
            if layout.reset is not None:
                shifted = torch.where((layout.position >= back).unsqueeze(-1), shifted, 0.0)
            y.addcmul_(shifted, weight[back])
        if layout.real is None and layout.reset is None:
            return y, whole[:, time:].clone()
        ages = torch.arange(reach, 0, -1, device=x.device)
        index = layout.length[:, None] + torch.arange(reach, device=x.device)
        last = whole.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[2]))
        return y, torch.where((ages <= layout.end[:, None]).unsqueeze(-1), last, 0.0)
