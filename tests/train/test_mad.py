"""MAD's rows as batches: the generators' own, asked where an answer is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.train.runs import TINY

from fastweights.errors import UserError
from fastweights.tasks.labelled import IGNORE
from fastweights.tasks.mad import BASELINES, make_mad
from fastweights.train.config import TrainConfig
from fastweights.train.loss import count_answers
from fastweights.train.mad import MADTask
from fastweights.train.task import rng

LENGTHS = {"compression": 64, "memorization": 32, "selective-copying": 256}


@pytest.mark.parametrize("name", BASELINES)
def test_batches_are_valid_repeatable_and_full(name: str) -> None:
    task, length = MADTask(name=name, phase="test"), LENGTHS.get(name, 128)
    batch = task.batch(1, 2, 4, length)
    batch.check(4, length, task.tokens)
    assert batch.sha256() == task.batch(1, 2, 4, length).sha256()
    assert batch.sha256() != task.batch(1, 3, 4, length).sha256()
    assert bool((batch.weights > 0).any(1).all())
    config = replace(TINY, task=task)
    assert TrainConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "compression"])
def test_rows_are_the_generators(name: str) -> None:
    task, length = MADTask(name=name, phase="test"), LENGTHS.get(name, 128)
    assert task.spec(length) == BASELINES[name]
    rows, batch = make_mad(rng(0, 5), 3, BASELINES[name]), task.batch(0, 5, 3, length)
    assert np.array_equal(batch.ids.numpy(), rows.ids)
    assert np.array_equal(batch.weights.numpy() > 0, rows.labels != IGNORE)


@pytest.mark.parametrize("length", [8, 9])
def test_compression_asks_behind_the_compression_token(length: int) -> None:
    batch = MADTask(name="compression").batch(0, 0, 2, length)
    last = 15
    shown = -(-length // 2)
    assert bool((batch.ids[:, shown - 1 :] == last).all())
    assert bool((batch.ids[:, : shown - 1] < last).all())
    assert torch.equal(batch.targets[:, shown:], batch.ids[:, : length - shown])
    assert torch.equal(batch.weights[0] > 0, torch.arange(length) >= shown)


@pytest.mark.parametrize("name", BASELINES)
def test_an_oracle_has_all_and_a_constant_next_to_none(name: str) -> None:
    batch = MADTask(name=name, phase="test").batch(0, 0, 64, LENGTHS.get(name, 128))
    asked = batch.targets[batch.weights > 0]
    assert count_answers(asked, batch).exact == count_answers(asked, batch).answers
    guess = count_answers(torch.full_like(asked, int(asked[0])), batch)
    assert guess.right / guess.chosen < 0.3


def test_training_rows_of_recall_ask_for_every_token() -> None:
    batch = MADTask().batch(0, 0, 2, 32)
    assert bool((batch.weights[:, :-1] > 0).all())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "recall"}, "the tasks of MAD are in-context-recall"),
        ({"name": "compression", "noise": 0.2}, "only noisy-in-context-recall has noise"),
        ({"copies": 3}, "only selective-copying has copies"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        MADTask(**options)


def test_sizes_can_be_changed() -> None:
    assert MADTask(name="noisy-in-context-recall", noise=0.6, vocab_size=64).tokens == 64
    assert MADTask(name="selective-copying", copies=32).batch(0, 0, 1, 256).weights.sum() == 32
    with pytest.raises(UserError):
        MADTask(name="selective-copying", copies=200).batch(0, 0, 1, 256)
