"""The third part of the shipped model `needle`: many needles in one document, each told from the others by its key.

    fastweights train needle_many --out runs/needle_many

It starts from the run in ``runs/needle_long`` (`recipes/needle_long.py`). What is left to learn there are digits taken
from another needle of the same document, so most rows are crowded; the price on writing stays.
"""

from __future__ import annotations

from dataclasses import replace

from fastweights.train.config import OptimiserConfig, PriceConfig, Stage, TrainConfig
from fastweights.train.needle import NeedleTask
from fastweights.train.recipes import load_recipe


def recipe() -> TrainConfig:
    """Rows of 1,024 tokens with 6 to 12 needles, then rows of 2,048 with 1 to 12."""
    second = load_recipe("needle_long")
    task = second.task
    assert isinstance(task, NeedleTask)
    crowded = replace(task, mix=replace(task.mix, min_needles=6, max_needles=12, questions=10))
    return replace(
        second,
        start_from="runs/needle_long",
        seed=2,
        stages=(
            Stage(steps=240, length=1024, batch_size=6, task=crowded),
            Stage(steps=60, length=2048, batch_size=4, task=second.stages[-1].task),
        ),
        optimiser=OptimiserConfig(
            lr=1.2e-3, betas=(0.9, 0.98), weight_decay=0.01, warmup_steps=20, final_fraction=0.02
        ),
        price=PriceConfig(value=2.5, start=0.0, end=0.0),
    )
