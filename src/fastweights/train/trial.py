"""How well a memory rule recalls: a small model of it, trained from nothing on pairs and asked for them.

Every rule gets the same model around it, the same number of parameters, the same rows in the same order and the same
questions, so that results can be compared. ``benchmarks/recall_table.py`` does it for every preset.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from fastweights.core.rule import Rule, beyond_defaults
from fastweights.errors import UserError
from fastweights.models.budget import parameter_count, state_bytes, with_parameters, with_state
from fastweights.models.config import ModelConfig
from fastweights.models.language_model import LanguageModel
from fastweights.train.config import OptimiserConfig, Probe, Stage, TrainConfig
from fastweights.train.feed import Feed
from fastweights.train.loop import OnStep, torch_settings
from fastweights.train.mqar import DisputedTask, MQARTask
from fastweights.train.optim import TrainingStopped
from fastweights.train.probe import run_probe
from fastweights.train.records import StepRecord
from fastweights.train.run import Run

TASKS = {
    "mqar": MQARTask(),
    "overwrite": MQARTask(rewrites=True),
    "outliers": MQARTask(repeats=3, outliers=0.1),
}
"""Pairs; pairs whose keys are given a second value; pairs written three times, a tenth of the writings wrong."""

POINTS = ((64, 4), (128, 8), (256, 16), (256, 32))
"""(length, pairs) of the rows that are asked in the end."""

STEPS, MINUTES, PARAMETERS = 1500, 3.0, 160_000

_LENGTHS = (64, 128, 256)
_STEP_TOKENS = 1024
_PLAIN, _ROUNDS = 0.3, 5
_ANSWERS, _ROWS = 1024, 32
_OPTIMISER = OptimiserConfig(lr=3e-3, weight_decay=0.01, warmup_steps=50)
_TEST_SEED = 0
_MODEL = ModelConfig(vocab_size=512, dim=64, depth=2, heads=2, memory_head_dim=16, wiring="lmm", start="induction")


class Trial(NamedTuple):
    """What came of training a rule's model and asking it.

    Attributes:
        steps: of training, done.
        capped: the time was over before the last step.
        stopped: why the training ended early otherwise; empty if it did not.
        seconds: of training.
        tokens_per_second: read in training.
        parameters: of the model.
        state_bytes: size of all memories after one row of the largest length, without convolutions' tails.
        heads: of each memory.
        head_dim: size of their keys and values.
        hidden: width of the feed-forward networks, which makes up for the memories' parameters.
        training: share of right answers on rows like those trained on; chance is 1/256.
        accuracy: the same at each of `POINTS`, by ``"256x16"``.
        disputed: the same for values that some writing got wrong; empty for tasks without outliers. Who believes the
            last writing is right in two of three.
        asked: answers that were counted in all, by ``accuracy`` and ``disputed``.
        asking_seconds: time that asking took.
    """

    steps: int
    capped: bool
    stopped: str
    seconds: float
    tokens_per_second: float
    parameters: int
    state_bytes: int
    heads: int
    head_dim: int
    hidden: int
    training: float
    accuracy: dict[str, float]
    disputed: dict[str, float]
    asked: dict[str, int]
    asking_seconds: float


def trial_config(
    rule: Rule, task: str, seed: int, *, steps: int = STEPS, equal_state: int = 0, device: str = "cpu", threads: int = 1
) -> TrainConfig:
    """The training run of a trial.

    Args:
        rule: whose model is trained.
        task: a name of `TASKS`.
        seed: decides the initial weights and the rows trained on.
        steps: of training.
        equal_state: bytes of state that the model shall have, give or take 5 %, by the number and the size of its
            memories' heads; 0 for two heads of 16.
        device: a torch device.
        threads: torch threads.

    Raises:
        UserError: no model of the rule has these sizes, or there is no such task.
    """
    if task not in TASKS:
        raise UserError(f"the tasks of a trial are {', '.join(TASKS)}, not {task!r}")
    return TrainConfig(
        model=_model(replace(_MODEL, rule=rule), equal_state),
        task=TASKS[task],
        stages=_stages(steps),
        optimiser=_OPTIMISER,
        seed=seed,
        device=device,
        threads=threads,
        log_every=steps + 1,  # There is no log, so the gates need not be measured for it.
    )


def trial_settings(steps: int = STEPS) -> dict[str, Any]:
    """All that decides a trial's result beside its rule, task, seed and size of state, as JSON values."""
    values = {
        "steps": steps,
        "parameters": PARAMETERS,
        "model": beyond_defaults(_MODEL),
        "optimiser": beyond_defaults(_OPTIMISER),
        "stages": [f"{stage.steps} x {stage.batch_size} x {stage.length}" for stage in _stages(steps)],
        "tasks": {name: beyond_defaults(task) for name, task in TASKS.items()},
        "points": [f"{length}x{pairs}" for length, pairs in POINTS],
    }
    return json.loads(json.dumps(values))


def run_trial(config: TrainConfig, minutes: float = MINUTES, on_step: OnStep | None = None) -> Trial:
    """Train a model and ask it.

    Args:
        config: of `trial_config`.
        minutes: of training, at most. A model that did not get to its last step is asked as it is.
        on_step: called after every step of training.

    Raises:
        UserError: there is no such device.
    """
    with torch_settings(config, lambda note: None):
        return _run_trial(config, minutes, on_step)


class Practice(NamedTuple):
    """How a training without a folder went.

    Attributes:
        stopped: why it gave up; empty if it did not.
        tokens: read in training.
        seconds: of the steps alone.
    """

    stopped: str
    tokens: int
    seconds: float


def practise(run: Run, minutes: float, goes_on: Callable[[StepRecord], bool]) -> Practice:
    """Train to the last step, until the time is over, or until ``goes_on``, asked after every step, says no."""
    began, tokens, seconds = time.monotonic(), 0, 0.0
    with Feed(run.config) as feed:
        try:
            while run.step < run.config.steps and time.monotonic() - began < 60 * minutes:
                record = run.advance(feed)
                tokens, seconds = tokens + record.tokens, seconds + record.seconds
                if not goes_on(record):
                    break
        except TrainingStopped as error:
            return Practice(str(error), tokens, seconds)
    return Practice("", tokens, seconds)


def _run_trial(config: TrainConfig, minutes: float, on_step: OnStep | None) -> Trial:
    def tell(record: StepRecord) -> bool:
        if on_step is not None:
            on_step(record)
        return True

    run = Run(config, None, lambda note: None)
    practice = practise(run, minutes, tell)
    model = run.export()
    assert isinstance(config.task, MQARTask)
    began = time.monotonic()
    training, accuracy, disputed, asked = _ask(model, config.task)
    return Trial(
        steps=run.step,
        capped=run.step < config.steps and not practice.stopped,
        stopped=practice.stopped,
        seconds=round(practice.seconds, 1),
        tokens_per_second=round(practice.tokens / max(practice.seconds, 1e-9)),
        parameters=parameter_count(config.model),
        state_bytes=_state_after_reading(model),
        heads=config.model.memory_heads or config.model.heads,
        head_dim=config.model.memory_head_dim,
        hidden=config.model.hidden,
        training=round(training, 5),
        accuracy=accuracy,
        disputed=disputed,
        asked=asked,
        asking_seconds=round(time.monotonic() - began, 1),
    )


def _model(config: ModelConfig, equal_state: int) -> ModelConfig:
    if not equal_state:
        return with_parameters(config, PARAMETERS)
    for shape in with_state(config, equal_state):
        with contextlib.suppress(UserError):
            return with_parameters(shape, PARAMETERS)
    raise UserError(f"no model of {PARAMETERS:,} parameters has a state of {equal_state:,} bytes, 5 % more or less")


def _stages(steps: int) -> tuple[Stage, ...]:
    """Short rows of plain pairs first, which teach to bind a value to its key; then all lengths in turn."""
    plain = round(_PLAIN * steps)
    turns = _ROUNDS * len(_LENGTHS)
    borders = [plain + round((steps - plain) * turn / turns) for turn in range(turns + 1)]
    planned: list[tuple[int, int, MQARTask | None]] = [(plain, _LENGTHS[0], TASKS["mqar"])]
    planned += [(b - a, length, None) for (a, b), length in zip(pairwise(borders), _LENGTHS * _ROUNDS, strict=True)]
    return tuple(
        Stage(steps=number, length=length, batch_size=_STEP_TOKENS // length, task=task)
        for number, length, task in planned
        if number > 0
    )


def _ask(model: LanguageModel, task: MQARTask) -> tuple[float, dict[str, float], dict[str, float], dict[str, int]]:
    """``training``, ``accuracy``, ``disputed`` and ``asked`` of a `Trial`."""

    def share(task: MQARTask, length: int, batches: int) -> float:
        probe = Probe(name="asked", length=length, batch_size=_ROWS, batches=batches, task=task)
        return run_probe(model, probe, task, _TEST_SEED)["accuracy"]

    training = statistics.mean(share(task, length, 2) for length in _LENGTHS)
    accuracy: dict[str, float] = {}
    disputed: dict[str, float] = {}
    asked = {"accuracy": 0, "disputed": 0}
    for length, pairs in POINTS:
        name, batches = f"{length}x{pairs}", _ANSWERS // (_ROWS * pairs)
        fixed = replace(task, least_pairs=pairs, most_pairs=pairs)
        accuracy[name] = share(fixed, length, batches)
        asked["accuracy"] += batches * _ROWS * pairs
        if task.outliers > 0:
            disputed[name] = share(DisputedTask(**asdict(fixed)), length, batches)
            asked["disputed"] += batches * _ROWS * fixed.spec(length, pairs).wrong
    return training, accuracy, disputed, asked


@torch.no_grad()
def _state_after_reading(model: LanguageModel) -> int:
    ids = torch.zeros(1, max(_LENGTHS), dtype=torch.int64, device=next(model.parameters()).device)
    return state_bytes(model.encode(ids).state)
