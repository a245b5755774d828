from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.train.runs import TINY

from fastweights.errors import UserError
from fastweights.train.config import (
    CheckpointConfig,
    ConfigError,
    EvaluationConfig,
    OptimiserConfig,
    PriceConfig,
    Probe,
    SkipConfig,
    Stage,
    TrainConfig,
)
from fastweights.train.recall import RecallTask
from fastweights.train.text import TextTask


def test_a_configuration_survives_json() -> None:
    stage = Stage(steps=1, length=8, batch_size=1, task=TextTask(paths=("a.txt", "b")))
    probes = (Probe(name="far", length=64, batch_size=1), Probe(name="own", length=8, batch_size=1, task=TINY.task))
    config = replace(
        TINY,
        stages=(*TINY.stages, stage),
        optimiser=OptimiserConfig(clip=float("inf"), betas=(0.8, 0.99)),
        evaluation=EvaluationConfig(every=5, probes=probes),
    )
    assert TrainConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"task": {"type": "Nothing"}}, "a task of type 'Nothing'"),
        ({"sed": 1}, "config has no setting named sed"),
        ({"optimiser": {"rate": 1}}, "config.optimiser has no setting named rate"),
    ],
)
def test_json_of_something_else_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TrainConfig.from_json(json.dumps(json.loads(TINY.to_json()) | change))
    with pytest.raises(ConfigError, match="not a training configuration"):
        TrainConfig.from_json("{}")
    with pytest.raises(ConfigError, match="not a training configuration"):
        TrainConfig.from_json("{")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Stage(steps=0, length=1, batch_size=1),
        lambda: Stage(steps=5, length=1, batch_size=1, segments=2),
        lambda: OptimiserConfig(lr=0),
        lambda: OptimiserConfig(eps=-1.0),
        lambda: OptimiserConfig(weight_decay=-1.0),
        lambda: PriceConfig(value=float("inf")),
        lambda: replace(TINY, seed=2**63),
        lambda: replace(TINY, label_smoothing=1.0),
        lambda: OptimiserConfig(betas=(0.9, 1.0)),
        lambda: OptimiserConfig(final_fraction=2),
        lambda: OptimiserConfig(clip=0),
        lambda: SkipConfig(factor=1),
        lambda: SkipConfig(limit=0),
        lambda: PriceConfig(start=0.5, end=0.4),
        lambda: PriceConfig(value=-1),
        lambda: CheckpointConfig(keep=0),
        lambda: Probe(name="", length=1, batch_size=1),
        lambda: EvaluationConfig(probes=(Probe(name="a", length=1, batch_size=1),) * 2),
        lambda: RecallTask(symbols=2, pairs=3),
        lambda: TextTask(),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_run_needs_a_stage() -> None:
    with pytest.raises(ConfigError, match="at least one stage"):
        replace(TINY, stages=())


def test_the_curriculum_places_every_step_and_numbers_documents_once() -> None:
    places = [TINY.place(step) for step in range(TINY.steps)]
    assert [place.number for place in places] == [0] * 6 + [1] * 6
    assert [place.document for place in places] == [0, 1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 8]
    assert [place.segment for place in places[6:]] == [0, 1] * 3
    with pytest.raises(IndexError):
        TINY.place(TINY.steps)


def test_tokens_left_count_each_stage_by_its_own_size() -> None:
    assert TINY.tokens_after(0) == TINY.tokens == 6 * 48 + 6 * 64
    assert TINY.tokens_after(7) == 5 * 64
    assert TINY.tokens_after(TINY.steps) == 0
