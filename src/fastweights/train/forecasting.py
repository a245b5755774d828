"""Training a forecaster: epochs over all windows of the part for training, until the part for validation says enough.

A run takes minutes and is not resumed: there are no checkpoints. Equal configurations give equal weights on the same
machine, torch version and number of threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastweights.data.series import Part, Scaled
from fastweights.errors import UserError
from fastweights.models.device import moved
from fastweights.models.forecaster import Forecaster, ForecasterConfig
from fastweights.tasks.forecasting import Errors, Values, Windows, WindowSpec, count_windows, measure, windows_at
from fastweights.train.config import OptimiserConfig, SkipConfig
from fastweights.train.optim import Optimiser, SkipGuard, TrainingStopped, learning_rate
from fastweights.train.task import rng


@dataclass(frozen=True, kw_only=True)
class ForecastTraining:
    """Everything that decides what a training computes, beside the series.

    Attributes:
        model: whose horizon is told.
        inputs: rows that a window reads.
        batch_size: windows of a step.
        epochs: readings of all windows, at most; the learning rate falls over all of them.
        patience: epochs without a smaller error on the part for validation after which it ends.
        optimiser: AdamW and its schedule.
        seed: decides the initial weights and the order of the windows.
        device: a torch device.

    Raises:
        UserError: numbers below 1.
    """

    model: ForecasterConfig
    inputs: int = 96
    batch_size: int = 32
    epochs: int = 10
    patience: int = 3
    optimiser: OptimiserConfig = field(
        default_factory=lambda: OptimiserConfig(lr=3e-3, weight_decay=0.01, warmup_steps=50, final_fraction=0.0)
    )
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("inputs", "batch_size", "epochs", "patience"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} of a forecaster's training must be at least 1, not {getattr(self, name)}")

    @property
    def windows(self) -> WindowSpec:
        """Sizes of the windows."""
        return WindowSpec(self.inputs, self.model.horizon)


class ForecastStep(NamedTuple):
    """A step of training.

    Attributes:
        step: steps done.
        steps: of all epochs.
        epoch: from 1.
        loss: mean of the squared errors, before the step.
        skipped: why the weights were left alone; empty if they were not.
    """

    step: int
    steps: int
    epoch: int
    loss: float
    skipped: str


class ForecastResult(NamedTuple):
    """What came of a training.

    Attributes:
        model: with the weights that had the smallest squared error on the part for validation, in evaluation mode.
        curve: errors on that part after every epoch; the last one may have been cut short.
        best: the epoch whose weights those are, from 1.
        steps: done.
        capped: the time was over before the training had ended.
        stopped: why it gave up; empty if it did not.
        seconds: of training and validation.
    """

    model: Forecaster
    curve: tuple[Errors, ...]
    best: int
    steps: int
    capped: bool
    stopped: str
    seconds: float


def train_forecaster(
    scaled: Scaled,
    config: ForecastTraining,
    *,
    minutes: float = math.inf,
    on_step: Callable[[ForecastStep], None] | None = None,
) -> ForecastResult:
    """Train a forecaster from nothing.

    Args:
        scaled: the series, of `data.series.scale`.
        config: the whole training.
        minutes: after which the epoch that it is in is cut short, validated, and the last one.
        on_step: called after every step.

    Raises:
        UserError: the series has other variables, a part of it no window, or there is no such device.
    """
    if scaled.values.shape[1] != config.model.variables:
        raise UserError(
            f"the series has {scaled.values.shape[1]} variables and the forecaster {config.model.variables}: they must "
            f"agree"
        )
    began = time.monotonic()
    learner = _Learner(scaled, config, began + 60 * minutes)
    curve: list[Errors] = []
    best, kept, stopped = 0, dict[str, Tensor](), ""
    while not stopped and not learner.late and len(curve) < min(config.epochs, best + config.patience):
        try:
            learner.epoch(len(curve), on_step)
        except TrainingStopped as error:
            stopped = str(error)
        curve.append(evaluate_forecaster(learner.model, scaled, "valid", config.inputs))
        if not kept or curve[-1].mse < curve[best - 1].mse:
            best = len(curve)
            kept = {name: value.detach().clone() for name, value in learner.model.state_dict().items()}
    learner.model.load_state_dict(kept)
    return ForecastResult(
        model=learner.model.eval(),
        curve=tuple(curve),
        best=best,
        steps=learner.step,
        capped=learner.late,
        stopped=stopped,
        seconds=round(time.monotonic() - began, 1),
    )


@torch.no_grad()
def evaluate_forecaster(model: Forecaster, scaled: Scaled, part: Part, inputs: int = 96, rows: int = 256) -> Errors:
    """Errors of a model over every window of a part, each read from an empty memory.

    Args:
        model: put into evaluation mode.
        scaled: the series, scaled as the one that the model was trained on.
        part: whose windows.
        inputs: rows that a window reads.
        rows: windows read at a time; bounds the memory used.

    Raises:
        UserError: the part has no window, or the series other variables than the model.
    """
    model.eval()
    device = model.head.weight.device

    def forecast(values: Values) -> Values:
        told: Values = model(torch.from_numpy(values).to(device)).values.float().cpu().numpy()
        return told

    return measure(forecast, scaled, part, WindowSpec(inputs, model.config.horizon), rows)


class _Learner:
    """A forecaster between two steps of its training."""

    def __init__(self, scaled: Scaled, config: ForecastTraining, deadline: float) -> None:
        self.config, self.scaled, self.deadline = config, scaled, deadline
        self.count = count_windows(scaled, "train", config.windows)
        count_windows(scaled, "valid", config.windows)  # A part that is too short is found out before the training.
        self.steps = config.epochs * math.ceil(self.count / config.batch_size)
        self.step, self.late = 0, False
        self.model = _fresh(config)
        # It asks a model for nothing that a forecaster lacks.
        self.optimiser = Optimiser(self.model, config.optimiser)  # type: ignore[arg-type]
        self.guard = SkipGuard(SkipConfig(), config.optimiser.clip)

    def epoch(self, number: int, on_step: Callable[[ForecastStep], None] | None) -> None:
        """Read all windows in an order of the epoch's own, or as many as there is time for."""
        self.model.train()
        order = rng(self.config.seed, number).permutation(self.count)
        for places in np.split(order, range(self.config.batch_size, self.count, self.config.batch_size)):
            loss, skipped = self._advance(windows_at(self.scaled, "train", self.config.windows, places))
            if on_step is not None:
                on_step(ForecastStep(self.step, self.steps, number + 1, loss, skipped))
            if time.monotonic() > self.deadline:
                self.late = self.step < self.steps
                return

    def _advance(self, windows: Windows) -> tuple[float, str]:
        inputs, targets = (torch.from_numpy(part).to(self.config.device) for part in windows)
        loss = (self.model(inputs).values - targets).square().mean()
        value, norm = float(loss.detach()), math.nan
        if math.isfinite(value):
            loss.backward()
            norm = self.optimiser.collect()
        skipped = self.guard.judge(value, norm)
        if not skipped:
            self.optimiser.step(learning_rate(self.step, self.steps, self.config.optimiser), norm)
        self.optimiser.clear()
        self.step += 1
        return value, skipped


def _fresh(config: ForecastTraining) -> Forecaster:
    """The model before the first step; torch's random state on the CPU is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Forecaster(config.model)
    return moved(model, config.device)
