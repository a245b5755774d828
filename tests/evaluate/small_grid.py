"""A comparison small enough for tests."""

from __future__ import annotations

from fastweights.evaluate.contest import Comparison, Contest
from fastweights.models.baselines import CONTENDERS
from fastweights.models.config import ModelConfig
from fastweights.train.config import Probe, Stage
from fastweights.train.recall import RecallTask
from fastweights.train.state_tracking import ParityTask

LIKE = ModelConfig(vocab_size=24, dim=16, heads=2, depth=1, segment=16)
RECALL = RecallTask(symbols=8, pairs=2, queries=2)


def recall(steps: int = 3) -> Contest:
    return Contest(
        like=LIKE,
        parameters=40_000,
        task=RECALL,
        stages=(Stage(steps=steps, length=32, batch_size=4),),
        questions=(
            Probe(name="short", length=32, batch_size=8, batches=2),
            Probe(name="64 tokens", length=64, batch_size=4),
        ),
        learned=0.0,
        guess=1 / 8,
    )


def bits(steps: int = 3) -> Contest:
    return Contest(
        like=LIKE,
        parameters=40_000,
        task=ParityTask(),
        stages=(Stage(steps=steps, length=8, batch_size=4),),
        questions=(Probe(name="8 bits", length=8, batch_size=4, batches=3),),
        measure="bits",
        learned=0.1,
        guess=1.0,
    )


def grid(seeds: int = 1, names: tuple[str, ...] = ("lmm", "lstm")) -> Comparison:
    models = {name: CONTENDERS[name] for name in names}
    contests = {"recall": recall(), "parity": bits()}
    return Comparison(models=models, contests=contests, seeds=seeds, threads=1)
