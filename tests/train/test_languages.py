"""Batches of translations say what the generator says, and depend on seed and index alone."""

from __future__ import annotations

import random

import pytest
import torch

from fastweights.errors import UserError
from fastweights.models.config import ModelConfig
from fastweights.tasks.labelled import IGNORE
from fastweights.tasks.languages import END, LanguagesSpec, make_languages
from fastweights.train.config import Stage, TrainConfig
from fastweights.train.languages import TranslationTask
from fastweights.train.loss import answer_numbers

SPEC = LanguagesSpec(languages=2, pairs=10, questions=4, longest=3)
TASKS = [
    TranslationTask(spec=SPEC),
    TranslationTask(spec=SPEC, lessons=1, about=1),
    TranslationTask(spec=SPEC, lessons=2, about=1),
    TranslationTask(spec=SPEC, lessons=2),
]


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_a_batch_depends_on_seed_and_index_alone_and_fits_the_vocabulary(task: TranslationTask) -> None:
    first = task.batch(3, 7, 4, 200)
    task.batch(3, 8, 4, 200)
    assert task.batch(3, 7, 4, 200).sha256() == first.sha256()
    assert task.batch(3, 8, 4, 200).sha256() != first.sha256()
    assert task.batch(4, 7, 4, 200).sha256() != first.sha256()
    first.check(4, 200, task.vocab_size)


def test_only_words_of_answers_have_a_weight() -> None:
    batch = TASKS[2].batch(0, 5, 6, 200)
    ids, labels = make_languages(random.Random("0/5"), 6, SPEC, 200, lessons=2, about=1)
    asked = torch.from_numpy(labels != IGNORE)
    assert torch.equal(batch.ids, torch.from_numpy(ids))
    assert torch.equal(batch.weights > 0, asked)
    assert batch.targets[asked].min() >= 2 + SPEC.languages + SPEC.meanings
    # Every sentence is one answer.
    assert answer_numbers(batch).max(1).values.tolist() == [SPEC.questions] * 6


def test_a_first_language_is_asked_with_and_without_another_one_after_it() -> None:
    alone, after = (task.batch(0, 0, 6, 200) for task in TASKS[1:3])
    for batch, lessons in ((alone, 1), (after, 2)):
        assert (batch.ids == END).sum(1).tolist() == [lessons * SPEC.pairs + SPEC.questions] * 6
        first = batch.ids[batch.weights > 0]
        assert set(first[first < 4].tolist()) == {2}


def test_a_run_can_be_written_down_and_read_back() -> None:
    model = ModelConfig(vocab_size=SPEC.vocab_size, dim=16, depth=1, heads=2, wiring="lmm")
    config = TrainConfig(model=model, task=TASKS[1], stages=(Stage(steps=1, length=192, batch_size=1),))
    assert TrainConfig.from_json(config.to_json()) == config


def test_rows_that_are_too_short_are_refused() -> None:
    with pytest.raises(UserError, match="they need 192"):
        TASKS[0].batch(0, 0, 1, 191)
