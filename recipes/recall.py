"""Four pairs hidden in noise, recalled: a first run that shows everything and ends within two minutes on two cores.

Run it with ``fastweights train recall --out runs/recall``.
"""

from __future__ import annotations

from fastweights.core.algorithm import GradientDescent
from fastweights.core.architecture import Matrix
from fastweights.core.rule import Rule
from fastweights.models.config import ModelConfig
from fastweights.train.config import EvaluationConfig, OptimiserConfig, PriceConfig, Probe, Stage, TrainConfig
from fastweights.train.recall import RecallTask


def recipe() -> TrainConfig:
    """A small matrix memory without attention; rows of 64 and then 256 symbols, tested on rows of 1,024."""
    return TrainConfig(
        model=ModelConfig(
            vocab_size=96,
            dim=64,
            depth=2,
            heads=2,
            wiring="lmm",
            rule=Rule(Matrix(), algorithm=GradientDescent(), chunk_size=1, clip=None),
            start="induction",
        ),
        task=RecallTask(symbols=32, pairs=4, queries=8),
        stages=(Stage(steps=120, length=64, batch_size=32), Stage(steps=80, length=256, batch_size=16)),
        optimiser=OptimiserConfig(lr=3e-3, weight_decay=0.01, warmup_steps=50),
        price=PriceConfig(value=0.1, start=0.6, end=0.8),
        evaluation=EvaluationConfig(every=40, probes=(Probe(name="1024", length=1024, batch_size=16),)),
    )
