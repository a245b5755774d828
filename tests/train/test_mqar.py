from __future__ import annotations

import pytest
import torch

from fastweights.errors import UserError
from fastweights.tasks.labelled import IGNORE
from fastweights.train.mqar import DisputedTask, MQARTask

TASKS = [MQARTask(), MQARTask(rewrites=True), MQARTask(repeats=3, outliers=0.1, random_fillers=True)]


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_depends_on_seed_and_index_alone(task: MQARTask) -> None:
    first = task.batch(3, 7, 4, 64).sha256()
    task.batch(3, 8, 4, 64)
    assert task.batch(3, 7, 4, 64).sha256() == first
    assert task.batch(3, 8, 4, 64).sha256() != first
    assert task.batch(4, 7, 4, 64).sha256() != first


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [64, 128, 256])
def test_every_query_asks_for_the_value_that_most_of_its_last_writings_carry(task: MQARTask, length: int) -> None:
    for index in range(8):
        batch = task.batch(0, index, 2, length)
        batch.check(2, length, task.vocab_size)
        pairs = int(batch.weights[0].sum())
        spec = task.spec(length, pairs)
        for ids, targets, weights in zip(
            batch.ids.tolist(), batch.targets.tolist(), batch.weights.tolist(), strict=True
        ):
            start = 2 * (spec.written - spec.repeats * pairs)
            written = list(zip(ids[start : 2 * spec.written : 2], ids[start + 1 : 2 * spec.written : 2], strict=True))
            asked = [place for place, weight in enumerate(weights) if weight > 0]
            assert {weights[place] for place in asked} == {1.0}
            assert {ids[place] for place in asked} == {key for key, _ in written}
            for place in asked:
                said = [value for key, value in written if key == ids[place]]
                assert 2 * said.count(targets[place]) > len(said) == task.repeats
            assert IGNORE not in targets


def test_the_number_of_pairs_is_drawn_for_each_batch_as_far_as_rows_are_long_enough() -> None:
    def counts(task: MQARTask, length: int) -> set[int]:
        return {int(task.batch(0, index, 1, length).weights.sum()) for index in range(400)}

    assert counts(MQARTask(), 256) == set(range(4, 33))
    assert counts(MQARTask(), 64) == set(range(4, 17))
    assert counts(MQARTask(rewrites=True), 64) == set(range(4, 11))
    assert counts(MQARTask(repeats=3), 64) == set(range(4, 9))
    assert counts(MQARTask(least_pairs=5, most_pairs=5), 64) == {5}


def test_disputed_questions_are_those_that_a_wrong_writing_answers_otherwise() -> None:
    task = DisputedTask(least_pairs=8, repeats=3, outliers=0.25)
    batch = task.batch(0, 0, 16, 64)
    whole = MQARTask(least_pairs=8, most_pairs=8, repeats=3, outliers=0.25).batch(0, 0, 16, 64)
    assert torch.equal(batch.ids, whole.ids)
    assert torch.equal(batch.targets, whole.targets)
    for ids, targets, weights, before in zip(batch.ids, batch.targets, batch.weights, whole.weights, strict=True):
        for place in before.nonzero().flatten().tolist():
            said = {int(ids[i + 1]) for i in range(0, 48, 2) if ids[i] == ids[place]}
            assert bool(weights[place]) == (said != {int(targets[place])})
        assert int(weights.sum()) == 6


def test_rows_that_are_too_short_and_limits_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(UserError, match="4 pairs and their queries do not fit"):
        MQARTask(rewrites=True).batch(0, 0, 1, 16)
    with pytest.raises(UserError, match="1 <= least_pairs <= most_pairs, not 8 and 4"):
        MQARTask(least_pairs=8, most_pairs=4)
