from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.train.runs import TINY

from fastweights.data.documents import open_novel
from fastweights.errors import UserError
from fastweights.train.config import Stage
from fastweights.train.feed import Feed
from fastweights.train.recall import RecallTask
from fastweights.train.task import Batch, TaskError
from fastweights.train.text import TextTask


def test_weights_of_tokens_become_weights_of_the_predictions_before_them() -> None:
    tokens = np.array([[5, 6, 7, 8]])
    batch = Batch.from_tokens(tokens, np.array([[1.0, 0.0, 2.0, 0.0]]), answers=np.array([[0, 0, 3, 0]]))
    assert batch.ids.tolist() == [[5, 6, 7]]
    assert batch.targets.tolist() == [[6, 7, 8]]
    assert batch.weights.tolist() == [[0.0, 2.0, 0.0]]
    assert batch.answers is not None
    assert batch.answers.tolist() == [[0, 3, 0]]


def test_a_batch_depends_on_seed_and_index_alone() -> None:
    task = RecallTask(symbols=8, pairs=2, queries=2)
    first = task.batch(3, 7, 4, 32).sha256()
    task.batch(3, 8, 4, 32)
    assert task.batch(3, 7, 4, 32).sha256() == first
    assert task.batch(3, 8, 4, 32).sha256() != first
    assert task.batch(4, 7, 4, 32).sha256() != first


def test_recall_asks_for_the_value_that_stood_behind_the_key() -> None:
    task = RecallTask(symbols=8, pairs=3, queries=3)
    batch = task.batch(0, 0, 16, 48)
    batch.check(16, 48, 24)
    assert int((batch.weights > 0).sum()) == 16 * 3
    for row, position in (batch.weights > 0).nonzero().tolist():
        key, value = int(batch.ids[row, position]), int(batch.targets[row, position])
        first = batch.ids[row].tolist().index(key)
        assert first < position
        assert int(batch.ids[row, first + 1]) == value


def test_recall_refuses_rows_that_are_too_short() -> None:
    with pytest.raises(UserError, match="do not fit into rows of 16"):
        RecallTask(symbols=8, pairs=4, queries=4).batch(0, 0, 1, 16)


def test_text_rows_are_windows_of_the_text(tmp_path: Path) -> None:
    text = "".join(chr(97 + i % 26) + str(i) for i in range(400))
    (tmp_path / "a.txt").write_text(text)
    task = TextTask(paths=(str(tmp_path / "a.txt"),))
    batch = task.batch(0, 0, 3, 20)
    batch.check(3, 20, 264)
    assert torch.equal(batch.ids[:, 1:], batch.targets[:, :-1])
    for row in batch.ids.tolist():
        assert bytes(i - 8 for i in row).decode() in text
    with pytest.raises(UserError, match="too few for rows of 5000"):
        task.batch(0, 0, 1, 5000)


def test_a_faulty_batch_is_refused() -> None:
    ids = torch.zeros(2, 4, dtype=torch.int64)
    ones = torch.ones(2, 4)
    good = Batch(ids, ids, ones)
    good.check(2, 4, 1)
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    for bad, says in (
        (replace(good, weights=torch.ones(2, 3)), r"weights have shape \[2, 3\]"),
        (replace(good, ids=ids + 1), "span 1 to 1"),
        (replace(good, targets=ids - 1), "targets span"),
        (replace(good, weights=-ones), "not negative"),
        (replace(good, weights=ones * float("nan")), "finite"),
        (replace(good, mask=mask), "loss weights on padding"),
        (replace(good, hints=ids[:, :, None] - 2), "hints span -2"),
        (replace(good, hints=ids[:, :3, None]), r"hints have shape \[2, 3, 1\]"),
    ):
        with pytest.raises(TaskError, match=says):
            bad.check(2, 4, 1)
    assert replace(good, mask=mask).real_tokens() == 7


def test_the_feed_gives_the_pieces_of_one_document_in_turn() -> None:
    stages = (Stage(steps=2, length=24, batch_size=2), Stage(steps=4, length=16, batch_size=2, segments=2))
    config = replace(TINY, stages=stages)
    with Feed(config) as feed:
        pieces = [feed.get(step).ids for step in range(config.steps)]
    with Feed(config) as feed:
        assert torch.equal(feed.get(5).ids, pieces[5])
    whole = config.task.batch(config.seed, 3, 2, 32).ids
    assert torch.equal(torch.cat(pieces[4:6], dim=1), whole)


def test_an_error_in_a_task_reaches_the_caller() -> None:
    config = replace(TINY, task=RecallTask(symbols=30, pairs=2, queries=2))
    with Feed(config) as feed, pytest.raises(TaskError, match="vocab_size is 24"):
        feed.get(0)


def test_text_may_be_shipped_novels() -> None:
    batch = TextTask(novels=("ENG18850_Rutherford",)).batch(0, 0, 2, 30)
    text = "".join(open_novel("ENG18850_Rutherford")).encode()
    for row in batch.ids.tolist():
        assert bytes(i - 8 for i in row) in text
    with pytest.raises(UserError, match="no novel 'X'"):
        TextTask(novels=("X",)).batch(0, 0, 2, 30)
