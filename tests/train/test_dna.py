"""Batches of DNA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.train.runs import TINY

from fastweights.errors import UserError
from fastweights.train.config import TrainConfig
from fastweights.train.dna import IntervalTask, NextBaseTask, SpeciesTask


@pytest.fixture
def paths(tmp_path: Path) -> tuple[str, ...]:
    rng = np.random.default_rng(0)
    for name in ("ape", "bee"):
        (tmp_path / f"{name}.fa").write_text(f">{name}\n{''.join(rng.choice(list('ACGT'), 150_000))}\n")
    return tuple(str(tmp_path / f"{name}.fa") for name in ("ape", "bee"))


@pytest.mark.parametrize("kind", [NextBaseTask, SpeciesTask])
def test_batches_are_valid_and_repeatable(kind: type[NextBaseTask] | type[SpeciesTask], paths: tuple[str, ...]) -> None:
    task = kind(paths=paths)
    batch = task.batch(0, 1, 4, 64)
    batch.check(4, 64, task.vocab_size)
    assert batch.sha256() == task.batch(0, 1, 4, 64).sha256()
    assert batch.sha256() not in (
        task.batch(0, 2, 4, 64).sha256(),
        replace(task, part="test").batch(0, 1, 4, 64).sha256(),
    )
    config = replace(TINY, task=task)
    assert TrainConfig.from_json(config.to_json()) == config
    with pytest.raises(UserError, match="needs genomes"):
        kind()


def test_species_and_bases_have_their_tokens(paths: tuple[str, ...]) -> None:
    assert NextBaseTask(paths=paths).vocab_size == 5
    assert SpeciesTask(paths=paths).vocab_size == 6 + 2
    assert float(SpeciesTask(paths=paths).batch(0, 0, 3, 64).weights.sum()) == 3


def test_intervals_have_a_token_for_each_table(paths: tuple[str, ...], tmp_path: Path) -> None:
    for name, row in (("no", "ape,0,40,+"), ("yes", "bee,100,120,-"), ("none", "")):
        (tmp_path / f"{name}.csv").write_text(f"region,start,end,strand\n{row}\n")
    tables = tuple(str(tmp_path / f"{name}.csv") for name in ("no", "yes"))
    task = IntervalTask(tables=tables, paths=paths)
    assert task.vocab_size == 6 + 2
    batch = task.batch(0, 0, 16, 32)
    batch.check(16, 32, task.vocab_size)
    assert batch.sha256() == task.batch(0, 0, 16, 32).sha256()
    assert bool((batch.weights.sum(1) == 1).all())
    assert set(batch.targets[batch.weights > 0].tolist()) == {6, 7}
    config = replace(TINY, task=task)
    assert TrainConfig.from_json(config.to_json()) == config
    with pytest.raises(UserError, match="a table for each class"):
        IntervalTask(paths=paths)
    with pytest.raises(UserError, match="name no interval"):
        replace(task, tables=(str(tmp_path / "none.csv"),)).batch(0, 0, 1, 32)
