"""A retention gate of your own: rows of the memory stay inside a ball. Certified, then trained to recall.

Run it from the repository's root with ``python examples/own_retention.py``: about half a minute on one thread.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from fastweights.core.algorithm import GradientDescent
from fastweights.core.architecture import Matrix
from fastweights.core.bias import L2
from fastweights.core.conformance import check_rule
from fastweights.core.retention import Retention
from fastweights.core.rule import Rule
from fastweights.core.types import Scope
from fastweights.models.config import ModelConfig
from fastweights.train.config import EvaluationConfig, OptimiserConfig, Probe, Stage, TrainConfig
from fastweights.train.loop import train
from fastweights.train.recall import RecallTask


@dataclass(frozen=True)
class Ball(Retention):
    """Rows of the memory that have grown longer than the radius are shortened to it, where a chunk opens.

    Args:
        radius: the greatest length of a row.
        scope: of a gate ``retain`` beside it, or ``None`` for no such gate.
    """

    radius: float = 1.0
    scope: Scope | None = "head"

    projects = True

    def project(self, dual: Tensor, anchor: Tensor, initial: Tensor) -> Tensor:
        """Shortens; the small number keeps the root's gradient finite where a row is 0."""
        length = (dual.square().sum(-1, keepdim=True) + 1e-12).sqrt()
        return dual * (self.radius / length.clamp_min(self.radius))


RULE = Rule(Matrix(), L2(), Ball(), GradientDescent(), chunk_size=8)


def configuration(steps: int) -> TrainConfig:
    """Two memory layers, no attention; four pairs hidden in rows of 64 symbols."""
    return TrainConfig(
        model=ModelConfig(vocab_size=96, dim=64, depth=2, heads=2, wiring="lmm", rule=RULE, start="induction"),
        task=RecallTask(symbols=32, pairs=4, queries=8),
        stages=(Stage(steps=steps, length=64, batch_size=32),),
        optimiser=OptimiserConfig(lr=3e-3, weight_decay=0.01, warmup_steps=20),
        evaluation=EvaluationConfig(every=30, probes=(Probe(name="recall", length=64, batch_size=64),)),
        threads=1,
    )


def main(steps: int = 120, grid: Iterable[tuple[int, int]] = ((1, 7), (4, 16))) -> float:
    """Certifies the rule, trains a model that has it, and returns the share of values recalled right.

    Args:
        steps: of training.
        grid: chunk sizes and lengths at which the rule is certified.
    """
    report = check_rule(RULE, grid=grid, title="Ball")
    print(report.table())
    if not report.ok:
        raise SystemExit(1)
    with tempfile.TemporaryDirectory() as folder:
        result = train(configuration(steps), folder, force=True, on_evaluation=lambda step, found: print(step, found))
    accuracy = float(result.metrics["recall/accuracy"])
    print(f"recalled {accuracy:.1%} of the values, chance {1 / 32:.1%}")
    return accuracy


if __name__ == "__main__":
    main()
