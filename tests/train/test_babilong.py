"""BABILong's rows as batches: the protocol's own, with a weight on the answer alone, which can be read in the row."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.train.runs import TINY

from fastweights.data.tokenizer import load_tokenizer
from fastweights.errors import UserError
from fastweights.tasks import babi
from fastweights.tasks.babilong import GEN, SEGMENTS, TrainingRow, training_row
from fastweights.tasks.babilong_score import TASK_LABELS
from fastweights.train import babilong
from fastweights.train.babilong import BABILongTask, babilong_stages
from fastweights.train.config import Stage, TrainConfig
from fastweights.train.loss import count_answers
from fastweights.train.records import accuracy
from fastweights.train.task import Batch

BPE = load_tokenizer("bpe4096")
MOVE = re.compile(
    r"(Mary|John|Daniel|Sandra) (?:went|journeyed|travelled|went back|moved) to the "
    r"(bedroom|kitchen|garden|hallway|bathroom|office)\."
)


@cache
def many() -> Batch:
    return BABILongTask(size=128).batch(0, 0, 192, 256)


@pytest.mark.parametrize("question", ["qa1", "qa5", "qa8"])
def test_rows_end_with_question_and_answer_and_only_the_answer_counts(question: babi.Task) -> None:
    task = BABILongTask(question=question)
    batch = task.batch(0, 3, 2, 512)
    batch.check(2, 512, BPE.vocab_size)
    assert batch.mask is not None
    for ids, targets, weights, mask in zip(batch.ids, batch.targets, batch.weights, batch.mask, strict=True):
        asked = targets[weights > 0].tolist()
        assert (asked[0], asked[-1]) == (GEN, BPE.eos)
        assert set(weights[weights > 0].tolist()) == {1.0}
        answer = BPE.decode(asked[1:-1]).strip()
        assert set(answer.split(",")) <= set(TASK_LABELS[question])
        places = weights.nonzero().flatten().tolist()
        assert places == list(range(places[0], places[-1] + 1))
        last = places[-1] + 1  # the end itself is read too
        assert not bool(mask[last + 1 :].any())
        assert bool(mask[: last + 1].all())
        assert BPE.decode(ids[: places[0] + 1].tolist()).endswith("?")
        assert int(mask.sum()) > 400


def test_rows_are_the_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[TrainingRow] = []

    def seen(*arguments: Any) -> TrainingRow:
        assert arguments[1].name == BPE.name
        assert arguments[4:] == (4, 128)
        made.append(training_row(*arguments))
        return made[-1]

    monkeypatch.setattr(babilong, "training_row", seen)
    batch = BABILongTask(size=128).batch(0, 5, 3, 512)
    assert batch.mask is not None
    assert len(made) == 3
    for row, ids, targets, weights, mask in zip(made, batch.ids, batch.targets, batch.weights, batch.mask, strict=True):
        size = len(row.ids)
        assert np.array_equal(ids[:size].numpy(), row.ids)
        assert np.array_equal(targets[: size - 1].numpy(), row.ids[1:])
        assert np.array_equal(weights[: size - 1].numpy(), row.answers[1:])
        assert not bool(weights[size - 1 :].any())
        assert torch.equal(mask, torch.arange(512) < size)


def test_batches_are_repeatable_and_the_parts_are_different() -> None:
    task = BABILongTask(size=128)
    assert task.batch(0, 1, 2, 256).sha256() == task.batch(0, 1, 2, 256).sha256()
    assert task.batch(0, 1, 2, 256).sha256() != task.batch(0, 2, 2, 256).sha256()
    assert task.batch(0, 1, 2, 256).sha256() != task.batch(1, 1, 2, 256).sha256()
    assert task.batch(0, 1, 2, 256).sha256() != replace(task, part="test").batch(0, 1, 2, 256).sha256()
    config = replace(TINY, task=task)
    assert TrainConfig.from_json(config.to_json()) == config


def test_books_by_path(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(
        "".join(f"This is the long sentence number {n} of a book of one's own. " for n in range(200))
    )
    task = BABILongTask(size=128, paths=(str(tmp_path / "a.txt"),))
    for own, numbers in ((task, range(180)), (replace(task, part="test"), range(180, 200))):
        batch = own.batch(0, 0, 8, 1024)
        found = {
            int(number) for row in batch.ids for number in re.findall(r"number (\d+) of", BPE.decode(row.tolist()))
        }
        assert found
        assert found <= set(numbers)
        assert len(found) > len(numbers) // 2


def test_too_small_a_book_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("This is the only sentence of a book of one's own.")
    with pytest.raises(UserError, match="hold too few sentences"):
        BABILongTask(part="test", paths=(str(tmp_path / "a.txt"),)).batch(0, 0, 1, 512)


def test_rows_of_any_number_of_segments() -> None:
    batch = BABILongTask(size=128, vary=True).batch(0, 0, 16, 512)
    assert batch.mask is not None
    segments = {-(-int(length) // 128) for length in batch.mask.sum(1)}
    assert segments == {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("question", "tokenizer", "size"),
    [("qa2", "bpe4096", 128), ("qa5", "bpe4096", 128), ("qa1", "bpe4096", 64), ("qa1", "bytes", 128)],
)
def test_a_row_is_never_asked_what_does_not_fit_into_it(question: babi.Task, tokenizer: str, size: int) -> None:
    """Of the stories with few enough facts up to one in two is too long here: a run would end at a random step."""
    task = BABILongTask(question=question, tokenizer=tokenizer, size=size)
    batch = task.batch(0, 0, 48, size)
    assert batch.mask is not None
    assert bool((batch.weights.sum(1) >= 3).all())
    assert len(set(batch.mask.sum(1).tolist())) > 1


def locate(text: str) -> str:
    """Where the person asked for at the end went last."""
    found = re.search(r"Where is (\w+)\?$", text)
    assert found is not None
    return [room for person, room in MOVE.findall(text) if person == found[1]][-1]


def test_who_reads_the_ids_alone_is_right_everywhere() -> None:
    guesses: list[int] = []
    for ids, weights in zip(many().ids, many().weights, strict=True):
        first = int(weights.nonzero()[0])
        guesses += [GEN, *BPE.encode(locate(BPE.decode(ids[: first + 1].tolist()))), BPE.eos]
    counts = count_answers(torch.tensor(guesses), many())
    assert accuracy([counts])["exact"] == 1.0
    assert counts.answers == 192


def test_a_constant_answer_is_at_chance() -> None:
    rooms = [BPE.encode(room) for room in TASK_LABELS["qa1"]]
    asked = [row[weights > 0].tolist()[1:-1] for row, weights in zip(many().targets, many().weights, strict=True)]
    shares = [asked.count(room) / len(asked) for room in rooms]
    assert sum(shares) == pytest.approx(1.0)
    assert 1 / 12 < min(shares) <= max(shares) < 1 / 4  # three standard deviations around a sixth


def test_the_answer_is_what_follows_gen_with_its_end() -> None:
    """As exact match is published: what is said before ``GEN`` is not looked at, and going on afterwards is wrong."""
    batch = BABILongTask(size=128).batch(0, 0, 8, 128)
    right = batch.targets[batch.weights > 0]
    without_gen, without_end = (torch.where(right == token, 9, right) for token in (GEN, BPE.eos))
    assert (count_answers(without_gen, batch).exact, count_answers(without_end, batch).exact) == (8, 0)
    assert count_answers(right, batch).chosen == len(right) - 8


def test_the_curriculum() -> None:
    stages = babilong_stages(BABILongTask(size=128), (2, 3, 16), steps=7, tokens=1024)
    assert stages == (
        Stage(steps=7, length=256, batch_size=4),
        Stage(steps=7, length=384, batch_size=2),
        Stage(steps=7, length=2048, batch_size=1),
    )
    published = babilong_stages(BABILongTask(), SEGMENTS, steps=1, tokens=1)
    assert [stage.length for stage in published] == [1024, 1536, 2560, 4096, 8192, 16384]
    with pytest.raises(UserError, match="length must be at least 1"):
        babilong_stages(BABILongTask(), (2, -1), steps=1, tokens=1024)


@pytest.mark.parametrize(
    ("options", "length", "says"),
    [
        ({"question": "qa11"}, 512, "BABILong's questions are qa1"),
        ({"part": "valid"}, 512, "part must be train or test"),
        ({"size": 0}, 512, "at least one token"),
        ({"size": 128}, 200, "no multiple of a segment of 128"),
        ({"size": 8}, 8, "no question of qa1 fits into 1 x 8 tokens"),
        ({"size": 16, "vary": True}, 1024, "no question of qa1 fits into 1 x 16 tokens"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], length: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        BABILongTask(**options).batch(0, 0, 1, length)
