"""Checkpoints: folders that are whole or not there, and the newest of them is never in danger.

Layout: ``checkpoints/step-00000200/`` holds one safetensors file per group of tensors and ``state.json`` with the facts
and the SHA-256 of each file; ``checkpoints/latest`` holds the newest folder's name. A checkpoint is written under
another name, brought to the disk, renamed, and only then pointed at; older ones are removed last. Killing the process
or filling the disk at any moment leaves the checkpoint that ``latest`` names as it was.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fastweights.errors import UserError
from fastweights.models.durable import sha256, sync, write_file, write_tensors

FORMAT = 1
_NAME = re.compile(r"step-\d{8,}")
_STATE = "state.json"
_LATEST = "latest"


class CheckpointError(UserError):
    """A checkpoint that cannot be written, is damaged, or belongs to something else."""


class Checkpoint(NamedTuple):
    """What a run needs to go on: ``tensors`` by group and name, and ``facts``, plain JSON values."""

    step: int
    tensors: Mapping[str, Mapping[str, torch.Tensor]]
    facts: Mapping[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write a checkpoint and make it the latest.

    Args:
        folder: the run's ``checkpoints`` folder; made when missing.
        checkpoint: what to write. Group names become file names.
        keep: how many checkpoints to keep, this one included.

    Returns:
        The checkpoint's folder. Nothing is written when it is already the latest.

    Raises:
        CheckpointError: when the disk is full or cannot be written; all older checkpoints are untouched then.
    """
    target = folder / f"step-{checkpoint.step:08d}"
    if latest_checkpoint(folder) == target:
        return target
    temporary = folder / f".writing-{target.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        _write(temporary, checkpoint)
        if target.exists():
            # A process killed between its rename and its pointer left this one; nothing points at it.
            _remove(target)
        temporary.rename(target)
        sync(folder)
        write_file(folder / _LATEST, f"{target.name}\n".encode())
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        latest = latest_checkpoint(folder)
        kept = f"{latest} is intact" if latest else "there is no earlier one"
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        message = f"the checkpoint of step {checkpoint.step} could not be written to {folder} ({reason}); {kept}"
        raise CheckpointError(message) from error
    # Folders of later steps are what a run left behind that was set back to an earlier checkpoint.
    kept_folders = [path for path in _complete(folder) if path.name <= target.name][-keep:]
    for path in _complete(folder):
        if path not in kept_folders:
            _remove(path)
    return target


def latest_checkpoint(folder: Path) -> Path | None:
    """The folder of the newest checkpoint, or None when there is none.

    Goes by the ``latest`` file, or by the highest step where that file is missing or names nothing.
    """
    pointer = folder / _LATEST
    name = pointer.read_text(encoding="utf-8", errors="replace").strip() if pointer.is_file() else ""
    if _NAME.fullmatch(name) and (folder / name).is_dir():
        return folder / name
    complete = _complete(folder)
    return complete[-1] if complete else None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder, every file checked against its hash.

    Raises:
        CheckpointError: when a file is missing, altered or of a newer format.
    """
    state = _read_state(path)
    tensors = {}
    for group, digest in state["sha256"].items():
        file = path / f"{group}.safetensors"
        if not file.is_file():
            raise CheckpointError(f"the checkpoint {path} is damaged: {file.name} is missing{_way_out(path)}")
        if sha256(file) != digest:
            raise CheckpointError(f"the checkpoint {path} is damaged: {file.name} was altered{_way_out(path)}")
        tensors[group] = load_file(file)
    return Checkpoint(state["step"], tensors, state["facts"])


def _read_state(path: Path) -> dict[str, Any]:
    """``state.json`` without its own hash, which is checked."""
    try:
        state = json.loads((path / _STATE).read_bytes())
        number, digest = state["format"], state.pop("state_sha256")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged: {_STATE} cannot be read{_way_out(path)}") from error
    if number != FORMAT:
        raise CheckpointError(f"the checkpoint {path} has format {number}; this version of fastweights reads {FORMAT}")
    if _digest(state) != digest:
        raise CheckpointError(f"the checkpoint {path} is damaged: {_STATE} was altered{_way_out(path)}")
    assert isinstance(state, dict)
    return state


def _digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _way_out(path: Path) -> str:
    older = [p for p in _complete(path.parent) if p.name < path.name]
    return f"; remove that folder to go on from {older[-1].name}" if older else ""


def _write(temporary: Path, checkpoint: Checkpoint) -> None:
    temporary.mkdir()
    digests = {}
    for group, tensors in checkpoint.tensors.items():
        file = temporary / f"{group}.safetensors"
        write_tensors(file, tensors)
        digests[group] = sha256(file)
    state = {"format": FORMAT, "step": checkpoint.step, "sha256": digests, "facts": checkpoint.facts}
    write_file(temporary / _STATE, json.dumps(state | {"state_sha256": _digest(state)}, indent=1).encode())
    sync(temporary)


def _complete(folder: Path) -> list[Path]:
    """All checkpoint folders, oldest first; each is whole, since it got its name by a rename."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _remove(path: Path) -> None:
    """Delete a checkpoint; it loses its name first, so that half of one never counts as one."""
    dying = path.with_name(f".removing-{path.name}")
    path.rename(dying)
    shutil.rmtree(dying, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Delete what killed processes left behind."""
    for path in folder.iterdir():
        if path.name.startswith((".writing-", ".removing-")):
            shutil.rmtree(path, ignore_errors=True)
        elif path.name.startswith(f".{_LATEST}."):
            path.unlink(missing_ok=True)
