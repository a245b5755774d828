"""The fifth and last part of the shipped model `needle`: more needles than it will be asked for.

    fastweights train needle_crowd --out runs/needle_crowd

It starts from the run in ``runs/needle_quiet`` (`recipes/needle_quiet.py`). What is left to learn there are digits
taken from another needle, whatever the length of the document: rows crowded with up to 16 needles ask for keys that lie
further apart. Long rows close it, so that the memory stays still.
"""

from __future__ import annotations

from dataclasses import replace

from fastweights.train.config import OptimiserConfig, Stage, TrainConfig
from fastweights.train.needle import NeedleTask
from fastweights.train.recipes import load_recipe


def recipe() -> TrainConfig:
    """Rows of 2,048 tokens with 6 to 16 needles, then rows of 8,192 with 4 to 12."""
    fourth = load_recipe("needle_quiet")
    task = fourth.task
    assert isinstance(task, NeedleTask)
    crowded = replace(task, mix=replace(task.mix, min_needles=6, max_needles=16, questions=14))
    mixed = replace(task, mix=replace(task.mix, min_needles=4, max_needles=12, questions=14))
    return replace(
        fourth,
        start_from="runs/needle_quiet",
        seed=4,
        stages=(
            Stage(steps=300, length=2048, batch_size=4, task=crowded),
            Stage(steps=60, length=8192, batch_size=1, task=mixed),
        ),
        optimiser=OptimiserConfig(
            lr=1.2e-3, betas=(0.9, 0.98), weight_decay=0.01, warmup_steps=20, final_fraction=0.02
        ),
    )
