"""The second part of the shipped model `needle`: the same task, longer, with a higher price on writing.

    fastweights train needle_long --out runs/needle_long

It starts from the run in ``runs/needle`` (`recipes/needle.py`). For the shipped weights that run was stopped (Ctrl-C)
early in its rows of 1,024 tokens; the model card says where. Such rows do more good under this price.
"""

from __future__ import annotations

from dataclasses import replace

from fastweights.train.config import HintConfig, OptimiserConfig, PriceConfig, Stage, TrainConfig
from fastweights.train.needle import NeedleTask
from fastweights.train.recipes import load_recipe


def recipe() -> TrainConfig:
    """Rows of 1,024 and 2,048 tokens under a price that rises to 2.5."""
    first = load_recipe("needle")
    task = first.task
    assert isinstance(task, NeedleTask)
    crowded = replace(task, mix=replace(task.mix, min_needles=3, max_needles=12))
    mixed = replace(task, mix=replace(task.mix, max_needles=12, questions=10))
    return replace(
        first,
        start_from="runs/needle",
        seed=1,
        stages=(
            Stage(steps=550, length=1024, batch_size=6, task=crowded),
            Stage(steps=350, length=2048, batch_size=4, task=mixed),
        ),
        optimiser=OptimiserConfig(
            lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.01, warmup_steps=20, final_fraction=0.03
        ),
        hint=HintConfig(),
        price=PriceConfig(value=2.5, start=0.0, end=0.55),
    )
