"""An architecture of your own, without a backward: slots chosen by a softmax. Certified, then it learns while it reads.

Run it from the repository's root with ``python examples/own_architecture.py``: some seconds on one thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastweights.core.algorithm import GradientDescent
from fastweights.core.architecture import Architecture, Linear
from fastweights.core.bias import L2
from fastweights.core.conformance import check_rule
from fastweights.core.engine import init_state, run
from fastweights.core.retention import WeightDecay
from fastweights.core.rule import Rule
from fastweights.core.types import Gates, Map


@dataclass(frozen=True)
class Slots(Architecture):
    """Every slot has an address and holds a value: ``f(W, x) = contents softmax(sharpness addresses x)``.

    Args:
        count: slots.
        sharpness: of the choice between them.
    """

    count: int = 32
    sharpness: float = 6.0

    def maps(self, key_dim: int, value_dim: int) -> tuple[Map, ...]:
        """Two linear maps, in the order in which they are applied."""
        return Map("addresses", key_dim, self.count), Map("contents", self.count, value_dim)

    def forward(self, linear: Linear, x: Tensor) -> tuple[Tensor, Any]:
        """The network; without a backward of its own there is nothing to remember for it."""
        return linear("contents", torch.softmax(self.sharpness * linear("addresses", x), -1)), None


RULE = Rule(Slots(), L2(), WeightDecay(), GradientDescent(), chunk_size=4)


def main(rounds: int = 20, grid: Iterable[tuple[int, int]] = ((1, 7), (4, 16))) -> list[float]:
    """Certifies the rule and lets it read twelve pairs again and again; returns the inner loss of every round.

    Args:
        rounds: how often the pairs are read.
        grid: chunk sizes and lengths at which the rule is certified.
    """
    torch.set_num_threads(1)
    print(f"tier: {RULE.tier}")
    report = check_rule(RULE, grid=grid, title="Slots")
    print(report.table())
    if not report.ok:
        raise SystemExit(1)
    size, pairs = 32, 12
    generator = torch.Generator().manual_seed(0)
    initial = tuple(
        RULE.initial_spread(m) * torch.randn(1, m.outputs, m.inputs, generator=generator) for m in RULE.maps(size, size)
    )
    k, v = F.normalize(torch.randn(2, 1, 1, pairs, size, generator=generator), dim=-1).repeat(1, 1, 1, rounds, 1)
    gates = Gates(lr=torch.ones(1, 1, pairs * rounds), retain=torch.ones(1, 1, pairs * rounds))
    with torch.no_grad():
        felt = run(RULE, initial, k, k, v, gates, init_state(RULE, initial, 1), surprise=True).surprise
    assert felt is not None
    losses: list[float] = felt.loss.unflatten(-1, (rounds, pairs)).mean((0, 1, 3)).tolist()
    print("inner loss, round by round:", " ".join(f"{loss:.2g}" for loss in losses))
    return losses


if __name__ == "__main__":
    main()
