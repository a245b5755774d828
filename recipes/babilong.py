"""BABILong's qa1 by its fine-tuning protocol, at the size of a laptop: where a person is, said in a book.

    fastweights train babilong --out runs/babilong

Segments of 128 tokens instead of 512, in stages of 2, 3, 5, 8 and 16 of them, each on rows of any number of segments up
to its own: 12 million tokens, padding included, for 2.1 million parameters. It was not run yet: how well it does is not
measured.
"""

from __future__ import annotations

from dataclasses import replace

from fastweights.core import presets
from fastweights.models.config import ModelConfig
from fastweights.train.babilong import BABILongTask, babilong_stages
from fastweights.train.config import (
    CheckpointConfig,
    EvaluationConfig,
    OptimiserConfig,
    PriceConfig,
    Probe,
    TrainConfig,
)


def recipe() -> TrainConfig:
    """A MAL with a matrix for memory; tested on stories and stretches of books that training never sees."""
    task = BABILongTask(size=128, vary=True)
    asked = replace(task, part="test", vary=False)
    return TrainConfig(
        model=ModelConfig(
            vocab_size=4096,
            dim=128,
            depth=3,
            heads=4,
            memory_head_dim=64,
            wiring="mal",
            rule=presets.gated_deltanet(),
            expansion=2.0,
            window=32,
            start="induction",
            embedding_std=0.35,
            forget_start=-7.0,
        ),
        task=task,
        stages=babilong_stages(task, (2, 3, 5, 8, 16), steps=600, tokens=4096),
        optimiser=OptimiserConfig(lr=2e-3, weight_decay=0.01, warmup_steps=100),
        price=PriceConfig(value=0.3),
        checkpoint=CheckpointConfig(every_minutes=2.0),
        evaluation=EvaluationConfig(
            every=600,
            probes=tuple(
                Probe(name=f"{segments}_segments", length=128 * segments, batch_size=16, batches=4, task=asked)
                for segments in (2, 8, 16)
            ),
        ),
    )
