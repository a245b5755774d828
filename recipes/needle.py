"""The shipped model `needle`: numbers hidden in books and noise, each recalled by its key.

    fastweights train needle --out runs/needle

It reads the novels in the folder ``books`` of the present directory: any plain-text novels will do (the shipped model
used 89 of the ELTeC English collection, DOI 10.5281/zenodo.3462536; the ten that ship with the package were not among
them). About half an hour on two cores.

Titans as MAL with a matrix for memory, written online: every gradient is taken at the current weights, exact in
parallel, so a later needle corrects for what earlier ones left. Deep memories take their gradients at a chunk's start;
they were not tried at this task's full size.
"""

from __future__ import annotations

from fastweights.core.algorithm import GradientDescent
from fastweights.core.architecture import Matrix
from fastweights.core.bias import L2
from fastweights.core.retention import WeightDecay
from fastweights.core.rule import Rule
from fastweights.models.config import ModelConfig
from fastweights.tasks.needle_rows import RowMix
from fastweights.train.config import (
    CheckpointConfig,
    EvaluationConfig,
    HintConfig,
    OptimiserConfig,
    PriceConfig,
    Probe,
    Stage,
    TrainConfig,
)
from fastweights.train.needle import NeedleTask

BOOKS = ("books",)


def recipe() -> TrainConfig:
    """Bind one digit to a key, then three, then seven; then length; then a price on writing."""
    model = ModelConfig(
        vocab_size=4096,
        dim=128,
        depth=3,
        heads=4,
        memory_heads=4,
        memory_head_dim=64,
        wiring="mal",
        rule=Rule(Matrix(), L2(), WeightDecay(), GradientDescent(), chunk_size=1, clip=None),
        expansion=2.0,
        window=24,
        persistent=4,
        start="induction",
        embedding_std=0.35,
        forget_start=-7.0,
    )
    stages = (
        Stage(steps=300, length=160, batch_size=8, task=_rows((4, 4), questions=4, digits=1, introduce=0.0, short=1.0)),
        Stage(steps=200, length=224, batch_size=8, task=_rows((2, 5), questions=5, digits=3, introduce=0.0, short=0.6)),
        Stage(steps=800, length=320, batch_size=8, task=_rows((2, 6), questions=4, introduce=0.3, short=0.3)),
        Stage(steps=600, length=512, batch_size=8, task=_rows((2, 10), questions=6, introduce=0.5, short=0.5)),
        Stage(steps=600, length=1024, batch_size=6, task=_rows((1, 12), questions=8, short=0.1)),
        Stage(steps=400, length=2048, batch_size=4, task=_rows((1, 12), questions=10)),
    )
    return TrainConfig(
        model=model,
        task=_rows((1, 8), questions=8),
        stages=stages,
        optimiser=OptimiserConfig(lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01, warmup_steps=50, final_fraction=0.03),
        hint=HintConfig(block=1, weight=0.2, end=0.5),
        price=PriceConfig(value=0.5, start=0.5, end=0.92),
        checkpoint=CheckpointConfig(every_minutes=2.0),
        evaluation=EvaluationConfig(every=150, probes=_probes()),
    )


def _rows(
    needles: tuple[int, int], questions: int, digits: int = 7, introduce: float = 1.0, short: float = 0.0
) -> NeedleTask:
    mix = RowMix(
        noise=0.1,
        text=0.9,
        dense=0.0,
        min_needles=needles[0],
        max_needles=needles[1],
        questions=questions,
        digits=digits,
        introduce=introduce,
        short=short,
    )
    return NeedleTask(paths=BOOKS, mix=mix)


def _probes() -> tuple[Probe, ...]:
    """One question a row, keys of words never trained on."""

    def probe(name: str, length: int, rows: int, needles: int) -> Probe:
        mix = RowMix(
            noise=0.0, text=1.0, dense=0.0, min_needles=needles, max_needles=needles, questions=1, split="eval"
        )
        return Probe(name=name, length=length, batch_size=rows, task=NeedleTask(paths=BOOKS, mix=mix))

    return probe("four_320", 320, 48, 4), probe("eight_1024", 1024, 24, 8), probe("one_1024", 1024, 16, 1)
