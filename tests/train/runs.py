"""A run small enough for tests: about 20 ms a step, two stages, the second one carrying its state."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastweights.core.architecture import Matrix
from fastweights.core.rule import Rule
from fastweights.models.config import ModelConfig
from fastweights.train.config import CheckpointConfig, OptimiserConfig, PriceConfig, Stage, TrainConfig
from fastweights.train.recall import RecallTask
from fastweights.train.task import Batch


@dataclass(frozen=True, kw_only=True)
class HintedTask(RecallTask):
    """Recall whose positions hint at the token just read, but for every third one."""

    def batch(self, seed: int, index: int, batch_size: int, length: int) -> Batch:
        plain = super().batch(seed, index, batch_size, length)
        hints = plain.ids[:, :, None].repeat(1, 1, 2)
        hints[:, ::3] = -1
        hints[:, 1::3, 1] = -1
        return replace(plain, hints=hints)


TINY_MODEL = ModelConfig(vocab_size=24, dim=16, depth=1, heads=2, wiring="lmm", rule=Rule(Matrix(), chunk_size=8))
TINY = TrainConfig(
    model=TINY_MODEL,
    task=RecallTask(symbols=8, pairs=2, queries=2),
    stages=(Stage(steps=6, length=24, batch_size=2), Stage(steps=6, length=32, batch_size=2, segments=2)),
    optimiser=OptimiserConfig(lr=3e-3, warmup_steps=3),
    price=PriceConfig(value=0.1, start=0.2, end=0.6),
    checkpoint=CheckpointConfig(every_steps=3, every_minutes=0),
    threads=1,
    log_every=4,
)


def short(steps: int) -> TrainConfig:
    """The same run with a single stage of so many steps."""
    return replace(TINY, stages=(Stage(steps=steps, length=24, batch_size=2),))
