"""Batches of state tracking say what the generators say, at every position, and depend on seed and index alone."""

from __future__ import annotations

import pytest
import torch

from fastweights.errors import UserError
from fastweights.tasks.labelled import IGNORE
from fastweights.tasks.state_tracking import group_table
from fastweights.train.state_tracking import ArithmeticTask, LanguageTask, ParityTask, WordProblemTask
from fastweights.train.task import Batch, Task

TASKS: list[Task] = [
    WordProblemTask(),
    WordProblemTask(group="A4xZ5"),
    ParityTask(),
    ParityTask(shortest=3, asked="last"),
    ArithmeticTask(shortest=3),
    ArithmeticTask(brackets=True),
    *(LanguageTask(language=name) for name in ("parity", "aa", "abab", "anbn", "anbncn", "shuffle2")),
]


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_a_batch_depends_on_seed_and_index_alone_and_fits_the_vocabulary(task: Task) -> None:
    first = task.batch(3, 7, 16, 36)
    task.batch(3, 8, 16, 36)
    assert task.batch(3, 7, 16, 36).sha256() == first.sha256()
    assert task.batch(3, 8, 16, 36).sha256() != first.sha256()
    assert task.batch(4, 7, 16, 36).sha256() != first.sha256()
    first.check(16, 36, task.vocab_size)  # type: ignore[attr-defined]
    assert first.weights.sum() > 0


def test_a_word_problem_asks_for_the_running_product() -> None:
    batch, table = WordProblemTask(group="S4").batch(0, 0, 8, 20), group_table("S4")
    for ids, targets in zip(batch.ids.tolist(), batch.targets.tolist(), strict=True):
        product = 0
        for element, target in zip(ids, targets, strict=True):
            product = int(table[product, element])
            assert target == product
    assert batch.weights.min() == 1


def test_parity_is_asked_everywhere_or_at_the_end() -> None:
    everywhere = ParityTask().batch(0, 0, 8, 20)
    ones = (everywhere.ids == 2).cumsum(1)
    assert torch.equal(everywhere.targets, 1 + ones % 2)
    ragged = ParityTask(shortest=3).batch(0, 0, 64, 20)
    assert set(ragged.weights.sum(1).int().tolist()) == set(range(3, 21))
    last = ParityTask(shortest=3, asked="last").batch(0, 0, 64, 20)
    assert last.weights.sum(1).tolist() == [1.0] * 64


def test_rows_of_a_language_have_weights_on_their_words_alone() -> None:
    batch = LanguageTask(language="shuffle2").batch(0, 0, 32, 50)
    assert torch.equal(batch.weights > 0, batch.ids > 0)
    assert LanguageTask(language="shuffle2").vocab_size == 32
    assert IGNORE not in batch.targets


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(UserError, match="group must be one of"):
        WordProblemTask(group="S9").batch(0, 0, 1, 8)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="none lies in 1 to 2"):
        LanguageTask(language="anbncn", shortest=1).batch(0, 0, 1, 2)


def test_labels_become_targets_where_something_is_asked() -> None:
    ids = torch.tensor([[1, 2, 0]]).numpy()
    batch = Batch.from_labels(ids, torch.tensor([[5, IGNORE, 7]]).numpy())
    assert batch.targets.tolist() == [[5, 0, 7]]
    assert batch.weights.tolist() == [[1.0, 0.0, 1.0]]
