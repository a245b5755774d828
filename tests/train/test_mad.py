"""MAD's rows as batches: the generators' own, and all that they ask can be answered from the ids alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.train.runs import TINY

from fastweights.errors import UserError
from fastweights.tasks.labelled import IGNORE
from fastweights.tasks.mad import BASELINES, make_mad, memorized
from fastweights.train.config import TrainConfig
from fastweights.train.loss import count_answers
from fastweights.train.mad import MADTask
from fastweights.train.records import accuracy
from fastweights.train.task import Batch, rng

LENGTHS = {"compression": 64, "memorization": 32, "selective-copying": 256}
Answers = dict[int, int]
"""What is said at each position of a row."""


def to_test(name: str) -> MADTask:
    return MADTask(name=name, phase="test")


def published(name: str, rows: int, index: int = 0) -> Batch:
    return to_test(name).batch(0, index, rows, LENGTHS.get(name, 128))


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("phase", ["train", "test"])
def test_batches_are_valid_repeatable_and_full(name: str, phase: Any) -> None:
    task, length = MADTask(name=name, phase=phase), LENGTHS.get(name, 128)
    batch = task.batch(1, 2, 4, length)
    batch.check(4, length, task.vocab_size)
    assert batch.sha256() == task.batch(1, 2, 4, length).sha256()
    assert batch.sha256() != task.batch(1, 3, 4, length).sha256()
    assert batch.sha256() != task.batch(2, 2, 4, length).sha256()
    assert bool((batch.weights > 0).any(1).all())
    config = replace(TINY, task=task)
    assert TrainConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "compression"])
def test_rows_are_the_generators(name: str) -> None:
    assert to_test(name).spec(LENGTHS.get(name, 128)) == BASELINES[name]
    rows, batch = make_mad(rng(0, 5), 3, BASELINES[name]), published(name, 3, 5)
    asked = rows.labels != IGNORE
    assert np.array_equal(batch.ids.numpy(), rows.ids)
    assert np.array_equal(batch.weights.numpy(), asked.astype(np.float32))
    assert np.array_equal(batch.targets.numpy()[asked], rows.labels[asked])


def test_the_first_half_of_a_row_of_compression_is_the_generators() -> None:
    rows, batch = make_mad(rng(0, 5), 3, BASELINES["compression"]), published("compression", 3, 5)
    assert to_test("compression").spec(64) == BASELINES["compression"]
    assert np.array_equal(batch.ids[:, :32].numpy(), rows.ids)
    assert np.array_equal(batch.targets[:, 32:].numpy(), rows.labels)


@pytest.mark.parametrize("length", [3, 8, 9])
def test_compression_asks_behind_the_compression_token(length: int) -> None:
    batch = MADTask(name="compression").batch(0, 0, 2, length)
    last = 15
    shown = -(-length // 2)
    assert bool((batch.ids[:, shown - 1 :] == last).all())
    assert bool((batch.ids[:, : shown - 1] < last).all())
    assert torch.equal(batch.targets[:, shown:], batch.ids[:, : length - shown])
    assert torch.equal(batch.weights[0] > 0, torch.arange(length) >= shown)


def recall(ids: list[int]) -> Answers:
    """A key that was there before has the value that stood behind it; noise, tokens 16 and above, is no key."""
    values: dict[int, int] = {}
    said = {}
    for place in range(0, len(ids), 2):
        if ids[place] in values:
            said[place] = values[ids[place]]
        elif ids[place] < 16:
            values[ids[place]] = ids[place + 1]
    return said


def fuzzy_recall(ids: list[int]) -> Answers:
    """Keys are three tokens below 7, values the run of tokens 7 to 14 that follows them."""
    values: dict[tuple[int, ...], list[int]] = {}
    said: Answers = {}
    place = ids.count(15)
    while place < len(ids):
        key, start = tuple(ids[place : place + 3]), place + 3
        assert max(key) < 7
        place = start
        while place < len(ids) and ids[place] >= 7:
            place += 1
        if key in values:
            said |= {start - 1 + at: token for at, token in enumerate(values[key])}
        values.setdefault(key, ids[start:place])
    return said


def copying(ids: list[int]) -> Answers:
    middle = ids.index(15)
    return dict(enumerate((token for token in ids[:middle] if token != 14), start=middle + 1))


def compression(ids: list[int]) -> Answers:
    shown = ids.index(15) + 1
    return {shown + at: token for at, token in enumerate(ids[:shown])}


def studied() -> Callable[[list[int]], Answers]:
    """Who has learnt the map from the targets of other batches, with the run's other seeds too."""
    values: dict[int, set[int]] = defaultdict(set)
    for index in range(40):
        batch = MADTask(name="memorization").batch(index % 2, 100 + index, 8, 32)
        for key, value in zip(batch.ids[:, ::2].flatten(), batch.targets[:, 1::2].flatten(), strict=True):
            values[int(key)].add(int(value))
    assert {len(found) for found in values.values()} == {1}
    return lambda ids: {place: min(values[ids[place - 1]]) for place in range(1, len(ids), 2)}


ORACLES: dict[str, Callable[[], Callable[[list[int]], Answers]]] = {
    "in-context-recall": lambda: recall,
    "noisy-in-context-recall": lambda: recall,
    "fuzzy-in-context-recall": lambda: fuzzy_recall,
    "selective-copying": lambda: copying,
    "compression": lambda: compression,
    "memorization": studied,
}


@pytest.mark.parametrize("name", BASELINES)
def test_who_reads_the_ids_alone_is_right_everywhere_and_asked_only_what_can_be_known(name: str) -> None:
    batch, oracle = published(name, 32), ORACLES[name]()
    guesses: list[int] = []
    for ids, weights in zip(batch.ids.tolist(), batch.weights, strict=True):
        said = oracle(ids)
        assert sorted(said) == weights.nonzero().flatten().tolist()
        guesses += [said[place] for place in sorted(said)]
    reached = accuracy([count_answers(torch.tensor(guesses), batch)])
    assert (reached["accuracy"], reached["exact"]) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("in-context-recall", range(8, 16)),
        ("noisy-in-context-recall", range(8, 16)),
        ("fuzzy-in-context-recall", range(7, 15)),
        ("selective-copying", range(14)),
        ("compression", range(15)),
        ("memorization", range(127, 255)),
    ],
)
def test_a_constant_answer_is_at_chance(name: str, answers: range) -> None:
    """Every answer is as likely; only the compression token, asked once a row, is known beforehand."""
    batch = published(name, 256)
    known = {15} if name == "compression" else set()
    asked = batch.targets[batch.weights > 0]
    assert set(asked.tolist()) <= {*answers, *known}
    reached = [accuracy([count_answers(torch.full_like(asked, answer), batch)])["accuracy"] for answer in answers]
    assert sum(reached) == pytest.approx(1 - len(known) / 32, abs=1e-3)
    # In recall a row's eight values are drawn once for all: 2,048 draws decide, a standard deviation of 0.007.
    assert max(reached) < 1.25 / len(answers) + 0.01


@pytest.mark.parametrize("name", ["in-context-recall", "noisy-in-context-recall", "fuzzy-in-context-recall"])
def test_training_rows_of_recall_ask_for_every_next_token(name: str) -> None:
    batch = MADTask(name=name).batch(0, 0, 8, 128)
    wanted = torch.ones(8, 127, dtype=torch.bool) if "fuzzy" not in name else batch.ids[:, 1:] != 15
    assert torch.equal(batch.weights[:, :-1] > 0, wanted)
    assert not bool(batch.weights[:, -1].any())
    assert torch.equal(batch.targets[:, :-1][wanted], batch.ids[:, 1:][wanted])


def test_memorization_asks_for_one_map_whatever_the_runs_seed_and_another_for_another_dictionary() -> None:
    def values(task: MADTask, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        batch = task.batch(seed, 0, 64, 32)
        return batch.ids[:, ::2].flatten(), batch.targets[:, 1::2].flatten()

    one = MADTask(name="memorization")
    another = replace(one, dictionary=7)
    known = torch.from_numpy(memorized(one.spec(32)).copy())
    for seed in (0, 1, 0x5EED):
        keys, said = values(one, seed)
        assert torch.equal(said, known[keys])
    keys, said = values(another, 0)
    assert float((said == known[keys]).float().mean()) < 0.1
    assert torch.equal(keys, values(one, 0)[0])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "recall"}, "the tasks of MAD are in-context-recall"),
        ({"phase": "valid"}, "phase must be train or test, not 'valid'"),
        ({"name": "compression", "noise": 0.2}, "only noisy-in-context-recall has noise"),
        ({"copies": 3}, "only selective-copying has copies"),
        ({"dictionary": 3}, "only memorization has a dictionary"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        MADTask(**options)


@pytest.mark.parametrize(
    ("options", "length", "says"),
    [
        ({}, 33, "length must be even and at least 4, not 33"),
        ({"name": "noisy-in-context-recall", "noise": 1.0}, 32, r"noise must lie in \[0, 1\)"),
        ({"name": "fuzzy-in-context-recall"}, 11, "two pairs of 6 tokens do not fit into a length of 11"),
        ({"name": "selective-copying", "copies": 200}, 256, "200 tokens, twice, and a copy token do not fit"),
        ({"name": "compression"}, 2, "not in rows of 2"),
        ({"name": "memorization"}, 31, "length must be even and at least 2, not 31"),
        ({"name": "memorization", "dictionary": -1}, 32, "seed must be 0 or more, not -1"),
    ],
)
def test_rows_that_there_are_not_are_refused(options: dict[str, Any], length: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        MADTask(**options).batch(0, 0, 1, length)


def test_sizes_can_be_changed() -> None:
    noisy = MADTask(name="noisy-in-context-recall", noise=0.6, vocabulary=48)
    assert noisy.vocab_size == 48
    ids = noisy.batch(0, 0, 64, 256).ids
    assert int(ids.max()) == 47
    assert float((ids >= 32).float().mean()) == pytest.approx(0.6, abs=0.02)
    assert MADTask(name="selective-copying", copies=32).batch(0, 0, 1, 256).weights.sum() == 32
    assert [MADTask(name=name).vocab_size for name in BASELINES] == [16, 16, 32, 16, 16, 256]
