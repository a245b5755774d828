"""The state of a training run in memory, and what one step does to it.

What a step computes depends on the configuration, the weights, the optimiser's state, the carried memory and the step's
number, and on nothing else; all of these are in every checkpoint.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastweights.models.language_model import (
    Encoded,
    LanguageModel,
    ModelState,
    detach_state,
    flatten_state,
    unflatten_state,
)
from fastweights.models.pretrained import list_models, load_model, persistent_buffers
from fastweights.train.checkpoint import Checkpoint, CheckpointError
from fastweights.train.config import ConfigError, Place, TrainConfig
from fastweights.train.feed import Feed
from fastweights.train.folder import CHECKPOINTS, difference, model_from_run
from fastweights.train.loss import (
    AnswerCounts,
    GateUse,
    count_answers,
    gate_use,
    hint_loss,
    token_losses,
    weighted_mean,
    write_price,
)
from fastweights.train.optim import Optimiser, SkipGuard, learning_rate, price_at, warm_levels
from fastweights.train.probe import better, run_probe
from fastweights.train.records import StepRecord, summarise
from fastweights.train.task import Batch

OnNote = Callable[[str], None]
Evaluate = Callable[[LanguageModel, int], Mapping[str, Any]]


HINT = "hint.projection"
"""Name of the projection of the hint loss: trained with the model, kept in checkpoints, no part of the model."""


class Run:
    """A run between two steps.

    Args:
        config: the run.
        checkpoint: where to go on from, or None for the start.
        note: told what the person should know.

    Attributes:
        config: as given.
        model: in train mode, in the configured precision.
        step: steps done.
        metrics: the last evaluation's.
    """

    def __init__(self, config: TrainConfig, checkpoint: Checkpoint | None, note: OnNote) -> None:
        self.config, self.step = config, 0
        self.metrics: dict[str, Any] = {}
        self._device = torch.device(config.device)
        torch.manual_seed(config.seed)
        self.model = build_model(config).to(self._device).train()
        masters = None
        if config.precision == "bfloat16":
            # The float32 copies start from the weights as drawn, not from their rounded values.
            masters = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
            self.model.to(torch.bfloat16)
        if checkpoint is not None:
            masters = dict(checkpoint.tensors["model"]) | dict(checkpoint.tensors.get("hint", {}))
        self._hint = torch.nn.Parameter(torch.eye(config.model.dim, device=self._device))
        extra = {HINT: self._hint} if config.hint.weight > 0 else {}
        if masters is not None and extra:
            masters.setdefault(HINT, self._hint.detach().clone())
        self._optimiser = Optimiser(self.model, config.optimiser, masters, extra)
        self._guard = SkipGuard(config.skip, config.optimiser.clip)
        self._carried: ModelState | None = None
        self._window: list[StepRecord] = []
        self._best: dict[str, dict[str, Any]] = {}
        self._elapsed_before, self._seconds_per_token, self._next_batch = 0.0, 0.0, ""
        if checkpoint is not None:
            self._restore(checkpoint, note)
        self._began = self._saved_at = time.monotonic()

    def check_data(self, feed: Feed) -> None:
        """Refuse to resume on other data than the run was trained on so far.

        Raises:
            CheckpointError: when the next batch is not the one that the checkpoint expects.
        """
        if self._next_batch and feed.get(self.step).sha256() != self._next_batch:
            raise CheckpointError(
                f"the batch of step {self.step + 1} is not the one this run would have had: "
                f"the task's code, texts or tokenizer have changed since it was stopped, so start a new run"
            )

    def advance(self, feed: Feed) -> StepRecord:
        """Do one optimiser step on the next batch of ``feed``, or skip it.

        Raises:
            TrainingStopped: too many steps in a row had to be skipped.
            TaskError: the task made a batch that cannot be trained on.
        """
        began = time.perf_counter()
        config, place = self.config, self.config.place(self.step)
        if self.step > 0 and place.number != config.place(self.step - 1).number:
            self._guard.new_stage()
        lr = learning_rate(self.step, config.steps, config.optimiser)
        weight = price_at(self.step, config.steps, config.price)
        batch = feed.get(self.step).to(self._device)
        output, loss, hint, price, answers = self._forward(batch, place, weight)
        total = loss + hint + weight * price
        value, norm = float(total.detach()), math.nan
        if math.isfinite(value):
            total.backward()
            norm = self._optimiser.collect()
        skipped = self._guard.judge(value, norm)
        if not skipped:
            self._optimiser.step(lr, norm)
        self._optimiser.clear()
        self._carry(output.state, place, math.isfinite(value))
        self.step += 1
        tokens, seconds = batch.real_tokens(), time.perf_counter() - began
        record = StepRecord(
            step=self.step,
            steps=config.steps,
            stage=place.number,
            length=place.stage.length,
            loss=float(loss.detach()),
            answers=answers,
            price=float(price.detach()),
            price_weight=weight,
            gates=self._gate_use(output, batch),
            gradient_norm=norm,
            lr=lr,
            tokens=tokens,
            skipped=skipped,
            skips=self._guard.skipped,
            seconds=seconds,
            elapsed=self._elapsed(),
            seconds_left=self._seconds_left(seconds, tokens),
        )
        self._window.append(record)
        return record

    def log_due(self) -> bool:
        """Whether a line of the log is due after this step."""
        return self.step % self.config.log_every == 0 or self.step == self.config.steps

    def take_log_line(self) -> dict[str, Any]:
        """The line for all steps since the last one."""
        line = summarise(self._window)
        self._window.clear()
        return line

    def evaluation_due(self) -> bool:
        """Whether an evaluation is due after this step."""
        every = self.config.evaluation.every
        return self.step == self.config.steps or (every > 0 and self.step % every == 0)

    def evaluate(self, extra: Evaluate | None) -> dict[str, Any]:
        """Run every probe, then ``extra``; returns (and keeps) the metrics as ``probe/measure``."""
        metrics: dict[str, Any] = {}
        for probe in self.config.evaluation.probes:
            result = run_probe(self.model, probe, self.config.task, self.config.seed)
            metrics |= {f"{probe.name}/{measure}": value for measure, value in result.items()}
        if extra is not None:
            metrics |= extra(self.model, self.step)
            self.model.train()
        for name, value in metrics.items():
            if isinstance(value, int | float) and (
                name not in self._best or better(name, value, self._best[name]["value"])
            ):
                self._best[name] = {"value": value, "step": self.step}
        self.metrics = metrics
        return metrics

    def checkpoint_due(self) -> bool:
        """Whether a checkpoint is due after this step."""
        plan = self.config.checkpoint
        if plan.every_steps > 0 and self.step % plan.every_steps == 0:
            return True
        return plan.every_minutes > 0 and time.monotonic() - self._saved_at >= 60 * plan.every_minutes

    def checkpoint(self, feed: Feed) -> Checkpoint:
        """All that is needed to go on from here in another process."""
        self._saved_at = time.monotonic()
        tensors: dict[str, Mapping[str, Tensor]] = {
            "model": self._optimiser.masters() | persistent_buffers(self.model),
            "optimiser": self._optimiser.tensors(),
            "random": _random_states(self._device),
        }
        if self.config.hint.weight > 0:
            tensors["hint"] = self._optimiser.extras()
        if self._carried is not None:
            tensors["carried"] = flatten_state(self._carried)
        facts = {
            "config": json.loads(self.config.to_json()),
            "elapsed": self._elapsed(),
            "seconds_per_token": self._seconds_per_token,
            "guard": self._guard.facts(),
            "window": [record.to_plain() for record in self._window],
            "metrics": self.metrics,
            "best": self._best,
            "next_batch": feed.get(self.step).sha256() if self.step < self.config.steps else "",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        return Checkpoint(self.step, tensors, facts)

    def export(self) -> LanguageModel:
        """The model in float32 and in eval mode; the run cannot go on after this."""
        self.model.float()
        masters = self._optimiser.masters()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(masters[name])
        if self.model.learner is not None:
            self.model.learner.warmth = 1.0
        return self.model.eval()

    def _forward(
        self, batch: Batch, place: Place, weight: float
    ) -> tuple[Encoded, Tensor, Tensor, Tensor, AnswerCounts]:
        """Returns (output, weighted cross-entropy, weighted hint loss, price, answers); all three scalars attached."""
        if self.model.learner is not None:
            self.model.learner.warmth = warm_levels(self.step, self.config.steps)
        measured = weight > 0 or (self.step + 1) % self.config.log_every == 0
        start = self._carried if place.segment > 0 else None
        hint = self.config.hint
        hinted = hint.weight > 0 and batch.hints is not None and self.step < hint.end * self.config.steps
        tap = hint.block if hinted else None
        output = self.model.encode(batch.ids, start, mask=batch.mask, surprise=measured, tap=tap)
        losses, guesses = token_losses(self.model, output.hidden, batch, self.config.label_smoothing)
        price = hint_part = losses.new_zeros(())
        if output.surprise:
            price = write_price(output.surprise, self.config.model.largest_lr, batch.mask)
        if batch.hints is not None and output.tapped is not None:
            hint_part = hint.weight * hint_loss(self.model, self._hint, output.tapped, batch.hints)
        return output, weighted_mean(losses, batch), hint_part, price, count_answers(guesses, batch)

    def _gate_use(self, output: Encoded, batch: Batch) -> GateUse | None:
        if not output.surprise or not self.log_due():
            return None
        return gate_use(output.surprise, self.config.model.largest_lr, batch.mask)

    def _carry(self, state: ModelState, place: Place, finite: bool) -> None:
        """Keep the detached state for the next segment; a step whose loss was not finite leaves the one before."""
        if place.segment + 1 == place.stage.segments:
            self._carried = None
        elif finite:
            self._carried = detach_state(state)

    def _elapsed(self) -> float:
        return self._elapsed_before + time.monotonic() - self._began

    def _seconds_left(self, seconds: float, tokens: int) -> float:
        """Tokens still to read times a running mean of seconds per token."""
        pace = seconds / max(tokens, 1)
        old = self._seconds_per_token
        self._seconds_per_token = pace if old == 0 else 0.95 * old + 0.05 * pace
        return self.config.tokens_after(self.step) * self._seconds_per_token

    def _restore(self, checkpoint: Checkpoint, note: OnNote) -> None:
        facts = checkpoint.facts
        self.step = checkpoint.step
        for name, buffer in persistent_buffers(self.model).items():
            buffer.copy_(checkpoint.tensors["model"][name])
        self._optimiser.load_tensors(checkpoint.tensors["optimiser"])
        self._guard.load_facts(facts["guard"])
        self._window = [StepRecord.from_plain(plain) for plain in facts["window"]]
        self.metrics, self._best = dict(facts["metrics"]), dict(facts["best"])
        self._elapsed_before, self._seconds_per_token = facts["elapsed"], facts["seconds_per_token"]
        self._next_batch = facts["next_batch"]
        if "carried" in checkpoint.tensors:
            like = self.model.init_state(self.config.place(self.step).stage.batch_size)
            carried = {name: x.to(self._device) for name, x in checkpoint.tensors["carried"].items()}
            self._carried = unflatten_state(like, carried)
        _set_random_states(checkpoint.tensors["random"])
        note(f"resumed after step {self.step} of {self.config.steps}")
        here = (torch.get_num_threads(), torch.__version__)
        then = (facts["threads"], facts["torch"])
        if here != then:
            note(f"the run had {then[0]} threads and torch {then[1]}, now {here[0]} and {here[1]}: bits may differ")


def build_model(config: TrainConfig) -> LanguageModel:
    """A fresh model, or the one that ``config.start_from`` names.

    Raises:
        ConfigError: when that model's configuration is not ``config.model``.
    """
    if not config.start_from:
        return LanguageModel(config.model, config.recompute)
    model = _starting_model(config.start_from)
    model.recompute = config.recompute
    changed = difference(json.loads(model.config.to_json()), json.loads(config.model.to_json()))
    if changed:
        raise ConfigError(f"the model {config.start_from} cannot be the start of this run: {changed}")
    return model


def _starting_model(name: str) -> LanguageModel:
    """A model by name or folder, or the newest of a run, which may have been stopped before its end."""
    shipped = name in [info.name for info in list_models()]
    if not shipped and (Path(name) / CHECKPOINTS).is_dir():
        return model_from_run(name)
    return load_model(name, dtype=torch.float32)


def _random_states(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _set_random_states(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
