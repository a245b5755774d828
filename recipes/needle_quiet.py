"""The fourth part of the shipped model `needle`: longer rows.

    fastweights train needle_quiet --out runs/needle_quiet

It starts from the run in ``runs/needle_many`` (`recipes/needle_many.py`). What a memory writes of the haystack is noise
on what it holds, and adds up with the length of the document; rows of 4,096 and 8,192 tokens hold more of it.
"""

from __future__ import annotations

from dataclasses import replace

from fastweights.train.config import OptimiserConfig, PriceConfig, Stage, TrainConfig
from fastweights.train.needle import NeedleTask
from fastweights.train.recipes import load_recipe


def recipe() -> TrainConfig:
    """Rows of 4,096 tokens with 4 to 12 needles, then rows of 8,192 with 1 to 12."""
    third = load_recipe("needle_many")
    task = third.task
    assert isinstance(task, NeedleTask)
    crowded = replace(task, mix=replace(task.mix, min_needles=4, max_needles=12, questions=12))
    mixed = replace(task, mix=replace(task.mix, min_needles=1, max_needles=12, questions=12))
    return replace(
        third,
        start_from="runs/needle_many",
        seed=3,
        stages=(
            Stage(steps=260, length=4096, batch_size=2, task=crowded),
            Stage(steps=120, length=8192, batch_size=1, task=mixed),
        ),
        optimiser=OptimiserConfig(lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01, warmup_steps=10, final_fraction=0.02),
        price=PriceConfig(value=3.0, start=0.0, end=0.0),
    )
