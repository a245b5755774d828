"""How fast a memory rule learns to recall: the first step from which a model that is trained from nothing knows.

Every rule gets the same model around it, the same number of parameters and the same rows in the same order. All rows of
a run are of one length, so that a step means the same from the first to the last. ``benchmarks/learning_speed.py``
compares rules by it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from fastweights.core.rule import beyond_defaults
from fastweights.errors import UserError
from fastweights.models.budget import parameter_count, with_parameters
from fastweights.models.config import ModelConfig
from fastweights.train.config import OptimiserConfig, Probe, Stage, TrainConfig
from fastweights.train.loop import OnStep, torch_settings
from fastweights.train.mqar import MQARTask
from fastweights.train.probe import run_probe
from fastweights.train.recall import RecallTask
from fastweights.train.records import StepRecord
from fastweights.train.run import Run
from fastweights.train.task import Task
from fastweights.train.trial import practise

TASKS = ("needles", "mqar")
"""Four pairs hidden in noise; ``length / 16 + 4`` pairs back to back, each asked for once."""

LENGTHS = (64, 256)
"""Positions a row."""

KNOWN, PROBES, EVERY = 0.95, 2, 25
"""A model knows at the first of two probes in a row that find this share of answers right; steps between probes."""

STEPS, MINUTES, PARAMETERS = 2000, 10.0, 160_000

MODEL = ModelConfig(vocab_size=96, dim=64, depth=2, heads=2, wiring="lmm", start="induction")
"""What every model has in common; the vocabulary is the task's."""

_STEP_TOKENS, _ANSWERS = 2048, 256
_OPTIMISER = OptimiserConfig(lr=3e-3, weight_decay=0.01, warmup_steps=50, final_fraction=1.0)


class Learning(NamedTuple):
    """How a model learned.

    Attributes:
        curve: (steps done, share of right answers on rows never trained on), every `EVERY` steps.
        known: the step at which it knew, the first of `PROBES` in a row; None if it never did.
        steps: of training, done: no more than were needed to see that it knows.
        capped: the time was over before it knew and before the last step.
        stopped: why the training gave up; empty if it did not.
        skipped: steps that left the weights alone, since a loss or a gradient was not sound.
        seconds: of training, without probes.
        tokens_per_second: read in training.
        parameters: of the model.
        hidden: width of the feed-forward networks, which makes up for the memories' parameters.
    """

    curve: tuple[tuple[int, float], ...]
    known: int | None
    steps: int
    capped: bool
    stopped: str
    skipped: int
    seconds: float
    tokens_per_second: float
    parameters: int
    hidden: int


def learning_task(name: str, length: int) -> tuple[Task, Task]:
    """What is trained on, and what is asked in probes.

    Args:
        name: of `TASKS`. Needles are asked for several times a row in training and once in probes: the second
            answer of a row could be found where the first one stands.
        length: positions a row, at least 64.

    Raises:
        UserError: no such task, or rows too short.
    """
    if name not in TASKS or length < min(LENGTHS):
        raise UserError(f"the tasks are {', '.join(TASKS)} at {min(LENGTHS)} positions or more, not {name} at {length}")
    if name == "mqar":
        pairs = length // 16 + 4
        mqar = MQARTask(least_pairs=pairs, most_pairs=pairs)
        return mqar, mqar
    needles = RecallTask(symbols=MODEL.vocab_size // 3, pairs=4, queries=8)
    return needles, replace(needles, queries=needles.pairs, once=True)


def learning_config(
    model: ModelConfig,
    task: str,
    length: int,
    seed: int,
    *,
    steps: int = STEPS,
    device: str = "cpu",
    threads: int = 1,
) -> TrainConfig:
    """The training run.

    Args:
        model: `MODEL` with what is tried. Its vocabulary becomes the task's, its networks as wide as `PARAMETERS` asks.
        task: a name of `TASKS`.
        length: positions a row.
        seed: decides the initial weights and all rows.
        steps: at most.
        device: a torch device.
        threads: torch threads.

    Raises:
        UserError: no model of this kind has so many parameters, or there is no such task.
    """
    trained, _ = learning_task(task, length)
    words = trained.vocab_size if isinstance(trained, MQARTask) else MODEL.vocab_size
    return TrainConfig(
        model=with_parameters(replace(model, vocab_size=words), PARAMETERS),
        task=trained,
        stages=(Stage(steps=steps, length=length, batch_size=max(1, _STEP_TOKENS // length)),),
        optimiser=_OPTIMISER,
        seed=seed,
        device=device,
        threads=threads,
        log_every=steps + 1,  # There is no log, so the gates need not be measured for it.
    )


def learning_settings() -> dict[str, Any]:
    """All that decides a result beside the model, the task, the length, the seed and the steps, as JSON values."""
    values = {
        "parameters": PARAMETERS,
        "model": beyond_defaults(MODEL),
        "optimiser": beyond_defaults(_OPTIMISER),
        "tokens a step": _STEP_TOKENS,
        "tasks": {
            f"{name} {length}": [beyond_defaults(task) for task in learning_task(name, length)]
            for name in TASKS
            for length in LENGTHS
        },
        "known": f"{KNOWN:.0%} of about {_ANSWERS} answers in {PROBES} probes in a row, {EVERY} steps apart",
    }
    return json.loads(json.dumps(values))


def first_known(curve: Sequence[tuple[int, float]]) -> int | None:
    """The first step of a curve from which on `PROBES` in a row find the share `KNOWN` of the answers right."""
    for start in range(len(curve) - PROBES + 1):
        if all(share >= KNOWN for _, share in curve[start : start + PROBES]):
            return curve[start][0]
    return None


def run_learning(config: TrainConfig, minutes: float = MINUTES, on_step: OnStep | None = None) -> Learning:
    """Train a model until it knows.

    Args:
        config: of `learning_config`.
        minutes: at most, probes included.
        on_step: called after every step of training.

    Raises:
        UserError: there is no such device.
    """
    with torch_settings(config, lambda note: None):
        run = Run(config, None, lambda note: None)
        probe = _probe(config)
        curve: list[tuple[int, float]] = []
        skipped = 0

        def goes_on(record: StepRecord) -> bool:
            nonlocal skipped
            skipped = record.skips
            if on_step is not None:
                on_step(record)
            if record.step % EVERY == 0:
                curve.append((record.step, run_probe(run.model, probe, config.task, config.seed)["accuracy"]))
            return first_known(curve) is None

        practice = practise(run, minutes, goes_on)
    known = first_known(curve)
    return Learning(
        curve=tuple(curve),
        known=known,
        steps=run.step,
        capped=known is None and run.step < config.steps and not practice.stopped,
        stopped=practice.stopped,
        skipped=skipped,
        seconds=round(practice.seconds, 1),
        tokens_per_second=round(practice.tokens / max(practice.seconds, 1e-9)),
        parameters=parameter_count(config.model),
        hidden=config.model.hidden,
    )


def _probe(config: TrainConfig) -> Probe:
    """Rows with about `_ANSWERS` answers, the same at every probe of a run."""
    stage = config.stages[0]
    name = "mqar" if isinstance(config.task, MQARTask) else "needles"
    _, asked = learning_task(name, stage.length)
    each = int(asked.batch(0, 0, 1, stage.length).weights.sum())
    return Probe(name="asked", length=stage.length, batch_size=math.ceil(_ANSWERS / each), task=asked)
