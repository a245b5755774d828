"""`train`: a whole run, from its configuration to the saved model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastweights.core.compiled import compiler
from fastweights.models.language_model import LanguageModel
from fastweights.models.pretrained import save_model
from fastweights.models.stopping import stop_requests
from fastweights.train.checkpoint import save_checkpoint
from fastweights.train.config import ConfigError, TrainConfig
from fastweights.train.feed import Feed
from fastweights.train.folder import CHECKPOINTS, LOG, MODEL, open_run
from fastweights.train.records import LogFile, StepRecord
from fastweights.train.run import Evaluate, OnNote, Run

OnStep = Callable[[StepRecord], None]
OnEvaluation = Callable[[int, Mapping[str, Any]], None]


class RunResult(NamedTuple):
    """How a call of `train` ended.

    Attributes:
        folder: the run's folder.
        step: steps done.
        finished: False when the run was stopped before its last step.
        metrics: the last evaluation's, as ``probe/measure``.
        model: in float32 and eval mode when finished.
        model_folder: where the finished model was saved, else None.
    """

    folder: Path
    step: int
    finished: bool
    metrics: Mapping[str, Any]
    model: LanguageModel
    model_folder: Path | None


def train(
    config: TrainConfig,
    folder: str | Path,
    *,
    resume: bool = False,
    force: bool = False,
    on_step: OnStep | None = None,
    on_evaluation: OnEvaluation | None = None,
    on_note: OnNote | None = None,
    evaluate: Evaluate | None = None,
    until: Callable[[StepRecord], bool] | None = None,
) -> RunResult:
    """Train a model, or go on training it.

    Args:
        config: the whole run.
        folder: where its log, checkpoints and final model go.
        resume: go on with the run in ``folder`` from its last checkpoint; its settings must be equal.
        force: remove the run in ``folder`` first.
        on_step: called after every step.
        on_evaluation: called with the steps done and the metrics after every evaluation.
        on_note: called with a sentence worth showing (resumed, skipped, stopped).
        evaluate: called beside the configuration's probes with the model and the steps done; what it returns is logged
            with their metrics. It must leave torch's random state alone.
        until: asked after every step, and after the evaluation that follows it; True ends the training there, as if
            that step had been the last one.

    Returns:
        A `RunResult`. Ctrl-C and SIGTERM save a checkpoint and return with ``finished=False``.

    Raises:
        UserError: one sentence for whatever cannot go on (see the submodules); the last checkpoint is intact.

    Example:
        >>> result = train(recipe(), "runs/first", on_step=lambda record: print(record.step, record.loss))
    """
    folder = Path(folder)
    note: OnNote = on_note or (lambda text: None)
    with torch_settings(config, note):
        checkpoint = open_run(folder, config, resume=resume, force=force)
        run = Run(config, checkpoint, note)
        with stop_requests() as stop, Feed(config) as feed, LogFile(folder / LOG, run.step) as log:
            run.check_data(feed)
            ended = False
            while run.step < config.steps and not ended and not stop.asked:
                record = run.advance(feed)
                if record.skipped:
                    note(f"step {record.step} was skipped because {record.skipped}")
                if on_step is not None:
                    on_step(record)
                if run.log_due():
                    log.write(run.take_log_line())
                due = run.evaluation_due()
                if due:
                    _evaluate(run, evaluate, log, on_evaluation)
                ended = until is not None and until(record)
                if ended and not due:
                    _evaluate(run, evaluate, log, on_evaluation)
                if run.checkpoint_due():
                    save_checkpoint(folder / CHECKPOINTS, run.checkpoint(feed), config.checkpoint.keep)
            save_checkpoint(folder / CHECKPOINTS, run.checkpoint(feed), config.checkpoint.keep)
        return _finish(run, folder, note, ended or run.step == config.steps)


def _evaluate(run: Run, evaluate: Evaluate | None, log: LogFile, on_evaluation: OnEvaluation | None) -> None:
    metrics = run.evaluate(evaluate)
    log.write({"kind": "evaluation", "step": run.step} | metrics)
    if on_evaluation is not None:
        on_evaluation(run.step, metrics)


def _finish(run: Run, folder: Path, note: OnNote, finished: bool) -> RunResult:
    if not finished:
        note(f"stopped after step {run.step} of {run.config.steps}; the run can be resumed")
        return RunResult(folder, run.step, False, run.metrics, run.model, None)
    model = run.export()
    save_model(model, folder / MODEL, tokenizer=run.config.task.tokenizer, overwrite=True)
    return RunResult(folder, run.step, True, run.metrics, model, folder / MODEL)


def _require_device(name: str) -> None:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"there is no device {name!r} on this machine: set device=cpu, or another that is") from error


@contextlib.contextmanager
def torch_settings(config: TrainConfig, note: OnNote) -> Iterator[None]:
    """Threads and compiler as configured and a random state of the run's own; all are put back afterwards."""
    _require_device(config.device)
    threads = torch.get_num_threads()
    devices = [torch.device(config.device)] if torch.device(config.device).type == "cuda" else []
    if config.threads:
        torch.set_num_threads(config.threads)
    try:
        backend = "inductor" if config.compile else None
        with torch.random.fork_rng(devices=devices), compiler(backend, config.device) as compiles:
            if config.compile and not compiles:
                note("torch.compile does not work on this machine, so the run is not compiled")
            yield
    finally:
        torch.set_num_threads(threads)
