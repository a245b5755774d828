"""Runs in processes of their own, ended from outside: SIGKILL at any moment, and a disk that fills up."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import threading
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch
from tests.train.runs import short

from fastweights.errors import UserError
from fastweights.models.pretrained import load_model
from fastweights.train.checkpoint import latest_checkpoint, load_checkpoint
from fastweights.train.config import CheckpointConfig, TrainConfig
from fastweights.train.loop import train
from fastweights.train.records import StepRecord

KILLS = 6
CONFIG = replace(short(30), checkpoint=CheckpointConfig(every_steps=2, every_minutes=0))


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Real processes that need not import torch anew."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train.test_kill"])
    return context


def go_on(config: TrainConfig, folder: str, steps: int, delay: float) -> None:
    """What a person does after a crash: resume when there is a run, else start it.

    The process kills itself ``delay`` seconds after its step number ``steps``, whatever it is doing then. A signal from
    the parent would come at a moment that depends on how busy the machine is.
    """
    timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    done: list[int] = []

    def count(record: StepRecord) -> None:
        done.append(record.step)
        if len(done) == steps:
            timer.start()

    train(config, folder, resume=(Path(folder) / "config.json").exists(), on_step=count)


def fill_the_disk(config: TrainConfig, folder: str, limit: int) -> None:
    """Train with a limit on the size of files, and tell what was said by the exit status."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        train(config, folder, resume=True)
    except UserError as error:
        ok = "could not be written" in str(error) and "is intact" in str(error) and "\n" not in str(error)
        os._exit(2 if ok else 3)


def test_killed_at_random_moments_a_run_ends_with_the_same_bits(processes: ForkServerContext, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(CONFIG, whole)
    moments = random.Random(0)
    saved, kills = [0], 0
    while not (killed / "model").exists():
        steps = moments.randint(1, 5) if kills < KILLS else 0
        process = processes.Process(target=go_on, args=(CONFIG, str(killed), steps, moments.uniform(0, 0.02)))
        process.start()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        kills += int(process.exitcode != 0)
        latest = latest_checkpoint(killed / "checkpoints")
        saved.append(0 if latest is None else load_checkpoint(latest).step)
    assert kills >= 2
    assert saved == sorted(saved), "a kill threw the run back behind a checkpoint"
    first, second = load_model(whole / "model"), load_model(killed / "model")
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_full_disk_ends_the_run_with_one_sentence_and_keeps_the_checkpoint(
    processes: ForkServerContext, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    config = replace(CONFIG, stages=short(6).stages)

    def stop(record: object) -> None:
        os.kill(os.getpid(), 2)

    train(config, folder, on_step=stop)
    before = latest_checkpoint(folder / "checkpoints")
    assert before is not None
    process = processes.Process(target=fill_the_disk, args=(config, str(folder), 12_000))
    process.start()
    process.join()
    assert process.exitcode == 2
    assert latest_checkpoint(folder / "checkpoints") == before
    assert load_checkpoint(before).step == 1
    assert sorted(os.listdir(folder / "checkpoints")) == ["latest", before.name]
    assert train(config, folder, resume=True).finished
