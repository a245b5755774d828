"""The parity of bits: a state that a memory with eigenvalues in [0, 1] cannot track, and one with negative ones can.

Run it with ``fastweights train parity --out runs/parity``: within 100 steps all rows of 40 bits are right. With
``--set model.rule.lr_max=1.0`` the same model has no negative eigenvalues, and none is (arXiv 2411.12537).
"""

from __future__ import annotations

from dataclasses import replace

from fastweights.core import presets
from fastweights.models.config import ModelConfig
from fastweights.train.config import EvaluationConfig, OptimiserConfig, Probe, Stage, TrainConfig
from fastweights.train.state_tracking import ParityTask


def recipe() -> TrainConfig:
    """Rows of 3 to 40 bits; tested on rows of 40 and of 256, ``exact`` counts those that are right at every bit."""
    return TrainConfig(
        model=ModelConfig(
            vocab_size=3, dim=64, depth=2, heads=4, wiring="lmm", rule=replace(presets.deltanet(), lr_max=2.0)
        ),
        task=ParityTask(shortest=3),
        stages=(Stage(steps=300, length=40, batch_size=64),),
        optimiser=OptimiserConfig(lr=3e-3, weight_decay=0.01, warmup_steps=50),
        evaluation=EvaluationConfig(
            every=100,
            probes=(
                Probe(name="40", length=40, batch_size=128, task=ParityTask()),
                Probe(name="256", length=256, batch_size=64, task=ParityTask()),
            ),
        ),
    )
