"""A run's folder: ``config.json``, ``log.jsonl``, ``checkpoints/`` and, once the run has ended, ``model/``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from fastweights.errors import UserError
from fastweights.models.config import ModelConfig
from fastweights.models.durable import write_file
from fastweights.models.language_model import LanguageModel
from fastweights.models.pretrained import fill
from fastweights.train.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint
from fastweights.train.config import TrainConfig
from fastweights.train.overrides import flatten

CONFIG = "config.json"
LOG = "log.jsonl"
CHECKPOINTS = "checkpoints"
MODEL = "model"

# Settings that do not change what is computed, so that a run may be resumed with other values.
_FREE = ("checkpoint.",)


class RunFolderError(UserError):
    """A folder that a run may not use, or cannot be resumed from."""


def open_run(folder: Path, config: TrainConfig, *, resume: bool, force: bool) -> Checkpoint | None:
    """Make a run's folder ready.

    Args:
        folder: where the run lives.
        config: what is to run.
        resume: go on with the run that is there.
        force: remove the run that is there and start anew.

    Returns:
        The checkpoint to go on from, or None to start at the first step.

    Raises:
        RunFolderError: when a run with something to lose is there and neither ``resume`` nor ``force`` was asked for,
            when there is none to resume, when it was started with other settings, or when the folder holds something
            else.
        CheckpointError: when the newest checkpoint is damaged.
    """
    if resume and force:
        raise RunFolderError("resume and force contradict each other: go on with a run, or remove it")
    exists = (folder / CONFIG).is_file()
    if resume:
        if not exists:
            raise RunFolderError(f"there is no run to resume in {folder}: {folder / CONFIG} is missing")
        _refuse_other_settings(folder, config)
        _write_config(folder, config)
        latest = latest_checkpoint(folder / CHECKPOINTS)
        return None if latest is None else load_checkpoint(latest)
    if exists and not force and not _has_nothing(folder):
        raise RunFolderError(f"{folder} holds a run already: resume it, force a new one, or choose another folder")
    if folder.exists() and not exists and (not folder.is_dir() or any(folder.iterdir())):
        raise RunFolderError(f"{folder} is not empty and is no training run: choose another folder")
    if exists:
        _remove_run(folder)
    _write_config(folder, config)
    return None


def model_from_run(folder: str | Path) -> LanguageModel:
    """The model as a run's newest checkpoint holds it, in float32 and eval mode: for looking at a run before its end.

    Raises:
        RunFolderError: when there is no run or no checkpoint yet.
        CheckpointError: when the checkpoint is damaged.
    """
    latest = latest_checkpoint(Path(folder) / CHECKPOINTS)
    if latest is None:
        raise RunFolderError(f"{folder} holds no checkpoint: the run has not reached its first one, or is elsewhere")
    checkpoint = load_checkpoint(latest)
    model = LanguageModel(ModelConfig.from_json(json.dumps(checkpoint.facts["config"]["model"])))
    fill(model, checkpoint.tensors["model"])
    return model.eval()


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """A sentence part on the first setting that differs between two plain configurations; empty when none does."""
    old, new = flatten(before), flatten(now)
    names = [key for key in (*old, *(key for key in new if key not in old)) if not key.startswith(_FREE)]
    differing = [key for key in names if old.get(key, _ABSENT) != new.get(key, _ABSENT)]
    if not differing:
        return ""
    key = differing[0]
    more = f" (and {len(differing) - 1} more settings differ)" if len(differing) > 1 else ""
    return f"{key} was {_show(old.get(key, _ABSENT))} and is now {_show(new.get(key, _ABSENT))}{more}"


_ABSENT = object()


def _show(value: Any) -> str:
    return "absent" if value is _ABSENT else json.dumps(value)


def _refuse_other_settings(folder: Path, config: TrainConfig) -> None:
    try:
        # Through the classes, so that a setting of which the run knew nothing yet has its default.
        before = json.loads(TrainConfig.from_json((folder / CONFIG).read_text(encoding="utf-8")).to_json())
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{folder / CONFIG} cannot be read, so the run cannot be resumed: {error}") from error
    changed = difference(before, json.loads(config.to_json()))
    if changed:
        raise RunFolderError(f"the run in {folder} was started with other settings: {changed}")


def _write_config(folder: Path, config: TrainConfig) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / CONFIG, (config.to_json() + "\n").encode())
    except OSError as error:
        raise RunFolderError(f"the run's folder {folder} cannot be written: {error.strerror}") from error


def _has_nothing(folder: Path) -> bool:
    """Whether the run ended before its first line of log, as when its texts were not found."""
    log = folder / LOG
    return latest_checkpoint(folder / CHECKPOINTS) is None and (not log.is_file() or log.stat().st_size == 0)


def _remove_run(folder: Path) -> None:
    """Remove what a run writes, and nothing else that may lie in its folder."""
    # config.json goes first: without it the folder is no run that anyone could resume by mistake.
    for name in (CONFIG, LOG):
        (folder / name).unlink(missing_ok=True)
    for name in (CHECKPOINTS, MODEL):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
