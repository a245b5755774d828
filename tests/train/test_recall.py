"""Pairs in noise: rows are read token by token, as a reader with a perfect memory would."""

from __future__ import annotations

import pytest

from fastweights.errors import UserError
from fastweights.train.recall import RecallTask

TASKS = [
    RecallTask(symbols=8, pairs=3, queries=3),
    RecallTask(symbols=32, pairs=4, queries=4, once=True),
    RecallTask(symbols=32, pairs=4, queries=6, changes=2),
    RecallTask(symbols=2, pairs=2, queries=2, changes=2, once=True),
    RecallTask(symbols=8, pairs=5, queries=3, changes=3, once=True),
]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [64, 101])
def test_the_value_written_last_is_asked_for(task: RecallTask, length: int) -> None:
    n, first_query = task.symbols, 3 * length // 4
    for index in range(20):
        batch = task.batch(0, index, 4, length)
        batch.check(4, length, 3 * n)
        changed = task.changed(batch)
        for row in range(4):
            ids, targets = batch.ids[row].tolist(), batch.targets[row].tolist()
            tokens = [*ids, targets[-1]]
            written: dict[int, list[int]] = {}
            for place in range(first_query):
                if tokens[place] < n:
                    assert n <= tokens[place + 1] < 2 * n
                    written.setdefault(tokens[place], []).append(tokens[place + 1])
            assert sorted(map(len, written.values())) == [1] * (task.pairs - task.changes) + [2] * task.changes
            assert all(len(set(values)) == len(values) for values in written.values())
            asked = [place for place in range(length) if batch.weights[row, place] > 0]
            assert asked == [place for place in range(first_query, length) if ids[place] < n]
            assert len(asked) == task.queries
            assert not task.once or len({ids[place] for place in asked}) == task.queries
            for place in asked:
                assert targets[place] == written[ids[place]][-1]
                assert bool(changed[row, place]) == (len(written[ids[place]]) == 2)
            assert int(changed[row].sum()) == sum(len(written[ids[place]]) == 2 for place in asked)
            pairs = 2 * (task.pairs + task.changes + task.queries)
            assert sum(token >= 2 * n for token in tokens) == length + 1 - pairs


def test_old_and_new_values_stand_in_either_order_of_the_draw() -> None:
    """A key's first value is as often anything as its second: neither the place nor the value tells which it is."""
    task, seen = RecallTask(symbols=4, pairs=1, queries=1, changes=1), set()
    for index in range(300):
        row = task.batch(0, index, 1, 64).ids[0].tolist()
        seen.add(tuple(row[place + 1] for place in range(48) if row[place] < 4))
    assert seen == {(a, b) for a in range(4, 8) for b in range(4, 8) if a != b}


@pytest.mark.parametrize(
    ("task", "start"),
    [
        (RecallTask(), "7cb8c6f0d8bc3596"),
        (RecallTask(symbols=32, pairs=4, queries=8), "50fd6b3a497c594a"),
        (RecallTask(symbols=1, pairs=1, queries=1), "9a14ef51f7a5fc66"),
    ],
)
def test_rows_without_changes_are_those_of_every_version(task: RecallTask, start: str) -> None:
    assert task.batch(5, 0, 7, 96).sha256().startswith(start)


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(UserError, match="5 of 4 keys cannot get another of 16 values"):
        RecallTask(changes=5)
    with pytest.raises(UserError, match="1 of 1 keys cannot get another of 1 values"):
        RecallTask(symbols=1, pairs=1, queries=1, changes=1)
    with pytest.raises(UserError, match="5 queries ask for some of 4 keys twice"):
        RecallTask(queries=5, once=True)
    with pytest.raises(UserError, match="7 pairs and 4 queries do not fit into rows of 32"):
        RecallTask(changes=3).batch(0, 0, 1, 32)
