from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastweights.models import durable
from fastweights.train import checkpoint as module
from fastweights.train.checkpoint import (
    Checkpoint,
    CheckpointError,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)


def example(step: int) -> Checkpoint:
    weights = {"w": torch.full((3, 2), float(step)), "b": torch.arange(4, dtype=torch.bfloat16)}
    return Checkpoint(step, {"model": weights, "state": {"n": torch.tensor(step)}}, {"note": [step, 0.1, None]})


def assert_holds(folder: Path, step: int) -> None:
    path = latest_checkpoint(folder)
    assert path is not None
    found = load_checkpoint(path)
    assert (found.step, found.facts) == (step, example(step).facts)
    for group, tensors in example(step).tensors.items():
        assert found.tensors[group].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(found.tensors[group][name], tensor)
            assert found.tensors[group][name].dtype == tensor.dtype


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", example(7))
    assert_holds(tmp_path / "c", 7)
    assert (tmp_path / "c" / "latest").read_text() == "step-00000007\n"


def test_the_newest_are_kept_and_nothing_else_stays(tmp_path: Path) -> None:
    for step in (1, 2, 10, 300):
        save_checkpoint(tmp_path, example(step), keep=2)
    assert sorted(os.listdir(tmp_path)) == ["latest", "step-00000010", "step-00000300"]
    assert_holds(tmp_path, 300)


def test_saving_the_latest_again_writes_nothing(tmp_path: Path) -> None:
    first = save_checkpoint(tmp_path, example(3)) / "state.json"
    before = first.stat().st_mtime_ns
    save_checkpoint(tmp_path, example(3))
    assert first.stat().st_mtime_ns == before


def test_without_its_pointer_the_highest_step_is_the_latest(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None
    for step in (9, 10):
        save_checkpoint(tmp_path, example(step))
    for text in ("step-00000099", "../step-00000009", ""):
        (tmp_path / "latest").write_text(text)
        assert_holds(tmp_path, 10)
    (tmp_path / "latest").unlink()
    assert_holds(tmp_path, 10)


def test_a_run_set_back_leaves_no_later_steps_behind(tmp_path: Path) -> None:
    for step in (10, 20):
        save_checkpoint(tmp_path, example(step))
    (tmp_path / "latest").write_text("step-00000010\n")
    save_checkpoint(tmp_path, example(15), keep=1)
    assert_holds(tmp_path, 15)
    assert sorted(os.listdir(tmp_path)) == ["latest", "step-00000015"]


class Killed(BaseException):
    """Stands for a process that ends here: no handler of the library catches it."""


STEPS_OF_SAVING = [
    (module, "write_tensors"),
    (module, "write_file"),
    (module, "sync"),
    (Path, "rename"),
    (Path, "mkdir"),
    (shutil, "rmtree"),
    (os, "replace"),
    (os, "fsync"),
    (durable, "save_file"),
]


@pytest.mark.parametrize(("owner", "name"), STEPS_OF_SAVING, ids=lambda part: getattr(part, "__name__", part))
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_death_at_any_step_of_saving_leaves_a_whole_checkpoint(
    owner: Any, name: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th call of a function never returns, for every n; then the next process saves over the remains."""
    deaths = 0
    for call in range(1, 20):
        folder = tmp_path / str(call)
        for step in (1, 2):
            save_checkpoint(folder, example(step), keep=1)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, dies_at(call, getattr(owner, name), when))
            try:
                save_checkpoint(folder, example(3), keep=1)
                died = False
            except Killed:
                died = True
        latest = latest_checkpoint(folder)
        assert latest is not None
        assert_holds(folder, load_checkpoint(latest).step)
        assert load_checkpoint(latest).step in ((2, 3) if died else (3,))
        save_checkpoint(folder, example(4), keep=1)
        assert sorted(os.listdir(folder)) == ["latest", "step-00000004"]
        assert_holds(folder, 4)
        if not died:
            break
        deaths += 1
    else:
        pytest.fail("the function is called without end")
    assert deaths > 0


def dies_at(call: int, function: Callable[..., Any], when: str) -> Callable[..., Any]:
    count = 0

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == call and when == "before":
            raise Killed
        result = function(*args, **kwargs)
        if count == call:
            raise Killed
        return result

    return wrapper


@pytest.mark.parametrize("name", ["write_tensors", "write_file"])
def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, example(1))

    def full(path: Path, data: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, name, full)
        with pytest.raises(CheckpointError, match=r"step 2 could not be written .*No space left on device.*is intact"):
            save_checkpoint(tmp_path, example(2))
    (tmp_path / "latest").write_text("step-00000001\n")
    assert_holds(tmp_path, 1)


@pytest.mark.parametrize("file", ["model.safetensors", "state.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_named(file: str, tmp_path: Path) -> None:
    for step in (1, 2):
        path = save_checkpoint(tmp_path, example(step))
    data = bytearray((path / file).read_bytes())
    data[len(data) // 3] ^= 4
    (path / file).write_bytes(data)
    damaged = bytes(data)
    for change in (lambda: None, lambda: (path / file).write_bytes(damaged[:10]), lambda: (path / file).unlink()):
        change()
        with pytest.raises(CheckpointError, match=r"damaged|format"):
            load_checkpoint(path)
    with pytest.raises(CheckpointError, match="remove that folder to go on from step-00000001"):
        load_checkpoint(path)


def test_a_checkpoint_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, example(1))
    text = (path / "state.json").read_text().replace('"format": 1', '"format": 2')
    (path / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match="has format 2; this version of fastweights reads 1"):
        load_checkpoint(path)
