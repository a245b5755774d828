"""BABILong's rows as batches: the protocol's own, with a weight on the answer alone."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.runs import TINY

from fastweights.data.tokenizer import load_tokenizer
from fastweights.errors import UserError
from fastweights.tasks import babi
from fastweights.tasks.babilong import GEN
from fastweights.tasks.babilong_score import TASK_LABELS
from fastweights.train.babilong import BABILongTask, babilong_stages
from fastweights.train.config import TrainConfig
from fastweights.train.loss import count_answers

BPE = load_tokenizer("bpe4096")


@pytest.mark.parametrize("question", ["qa1", "qa5", "qa8"])
def test_rows_end_with_question_and_answer_and_only_the_answer_counts(question: babi.Task) -> None:
    task = BABILongTask(question=question)
    batch = task.batch(0, 3, 2, 512)
    batch.check(2, 512, BPE.vocab_size)
    assert batch.mask is not None
    for ids, targets, weights, mask in zip(batch.ids, batch.targets, batch.weights, batch.mask, strict=True):
        asked = targets[weights > 0].tolist()
        assert (asked[0], asked[-1]) == (GEN, BPE.eos)
        answer = BPE.decode(asked[1:-1]).strip()
        assert set(answer.split(",")) <= set(TASK_LABELS[question])
        last = int(weights.nonzero().max()) + 1  # the end itself is read too
        assert not bool(mask[last + 1 :].any())
        assert bool(mask[: last + 1].all())
        before = BPE.decode(ids[: int(weights.nonzero().min()) + 1].tolist())
        assert before.rstrip().endswith("?")
        assert int(mask.sum()) > 400


def test_batches_are_repeatable_and_the_parts_are_different() -> None:
    task = BABILongTask(size=128)
    assert task.batch(0, 1, 2, 256).sha256() == task.batch(0, 1, 2, 256).sha256()
    assert task.batch(0, 1, 2, 256).sha256() != task.batch(0, 2, 2, 256).sha256()
    assert task.batch(0, 1, 2, 256).sha256() != replace(task, part="test").batch(0, 1, 2, 256).sha256()
    config = replace(TINY, task=task)
    assert TrainConfig.from_json(config.to_json()) == config


def test_books_by_path(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(
        "".join(f"This is the long sentence number {n} of a book of one's own. " for n in range(200))
    )
    task = BABILongTask(size=128, paths=(str(tmp_path / "a.txt"),))
    for own, start in ((task, 0), (replace(task, part="test"), 180)):
        text = BPE.decode(own.batch(0, 0, 1, 256).ids[0].tolist())
        numbers = [int(number) for number in re.findall(r"number (\d+) of", text)]
        assert numbers
        assert all((number >= 180) == (start == 180) for number in numbers)


def test_rows_of_any_number_of_segments() -> None:
    batch = BABILongTask(size=128, vary=True).batch(0, 0, 16, 512)
    assert batch.mask is not None
    segments = {-(-int(length) // 128) for length in batch.mask.sum(1)}
    assert segments == {1, 2, 3, 4}


def test_an_oracle_has_all_and_a_constant_answer_what_it_deserves() -> None:
    batch = BABILongTask(size=128).batch(0, 0, 24, 256)
    asked = batch.targets[batch.weights > 0]
    assert count_answers(asked, batch).exact == count_answers(asked, batch).answers == 24
    (first,) = (batch.targets[:1][batch.weights[:1] > 0],)
    same = sum(torch.equal(first, row[weights > 0]) for row, weights in zip(batch.targets, batch.weights, strict=True))
    assert 1 <= same <= 12


def test_the_curriculum() -> None:
    stages = babilong_stages(BABILongTask(size=128), (2, 3, 16), steps=7, tokens=1024)
    assert [(stage.steps, stage.length, stage.batch_size) for stage in stages] == [
        (7, 256, 4),
        (7, 384, 2),
        (7, 2048, 1),
    ]


@pytest.mark.parametrize(
    ("options", "length", "says"),
    [
        ({"question": "qa11"}, 512, "BABILong's questions are qa1"),
        ({"part": "valid"}, 512, "part must be train or test"),
        ({"size": 0}, 512, "at least one token"),
        ({"size": 128}, 200, "no multiple of a segment of 128"),
        ({"size": 8}, 8, "few enough facts for 1 x 8 tokens"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], length: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        BABILongTask(**options).batch(0, 0, 1, length)
