"""From logits to the next token: greedy, or drawn at a temperature from the likeliest tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastweights.errors import FastweightsError, UserError


class LogitsError(FastweightsError):
    """A model that gives no usable logits: NaN, +inf, or a row without any finite one."""


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token.

    `Sampling()` is greedy. With a temperature above 0, tokens are drawn from softmax(logits / temperature), cut to the
    smallest set of likeliest tokens whose probability reaches `top_p` (nucleus sampling, Holtzman et al. 2020).

    Attributes:
        temperature: At least 0 and finite; 0 is greedy, whatever `top_p`.
        top_p: Above 0, at most 1; 1 keeps every token.

    Raises:
        UserError: A value is outside its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature must be a finite number of at least 0, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top-p must lie above 0 and be at most 1, not {self.top_p}")

    def choose(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Choose one token per row.

        Args:
            logits: `[B, V]`, any floating dtype and device; -inf excludes a token.
            generator: On the host; the only source of chance. Greedy choice needs none. One number is drawn per row
                and call, so what a row draws depends on its place in the batch.

        Returns:
            int64 `[B]` on the device of `logits`. Equal logits go to the lower token.

        Raises:
            LogitsError: NaN, +inf, or nothing finite in a row.

        Cost: greedy O(V); otherwise a sort, O(V log V), in float64 on the host, so that devices agree.
        """
        best = logits.amax(-1)
        if not bool(best.isfinite().all()):  # NaN wins every maximum
            raise LogitsError("the model's logits are not finite: its memory or its weights are damaged")
        if self.temperature == 0:
            return logits.argmax(-1)
        host = logits.detach().to("cpu", torch.float64)
        ordered, tokens = host.sort(dim=-1, descending=True, stable=True)
        # Subtracting the maximum first: dividing by a tiny temperature would overflow otherwise.
        total = ((ordered - ordered[:, :1]) / self.temperature).softmax(-1).cumsum(-1)
        before = torch.nn.functional.pad(total[:, :-1], (1, 0))
        last = (before < self.top_p).sum(-1, keepdim=True) - 1
        drawn = torch.rand(len(host), 1, generator=generator, dtype=torch.float64) * total.gather(-1, last)
        place = torch.searchsorted(total, drawn, right=True).minimum(last)
        return tokens.gather(-1, place).squeeze(-1).to(logits.device)
