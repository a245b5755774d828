"""How fast a model learns: the step is found, and training ends there."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from fastweights.core import presets
from fastweights.errors import UserError
from fastweights.models.budget import parameter_count
from fastweights.train import learning
from fastweights.train.config import TrainConfig
from fastweights.train.learning import (
    MODEL,
    PARAMETERS,
    Learning,
    first_known,
    learning_config,
    learning_settings,
    learning_task,
    run_learning,
)


def config(task: str = "needles", steps: int = 3, seed: int = 0) -> TrainConfig:
    return learning_config(replace(MODEL, rule=presets.deltanet()), task, 64, seed, steps=steps)


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What probes are to find, one after the other; they follow every step."""
    found: list[float] = []
    monkeypatch.setattr(learning, "EVERY", 1)
    monkeypatch.setattr(learning, "_STEP_TOKENS", 64)

    def fake(model: Any, probe: Any, task: Any, seed: int) -> dict[str, float]:
        return {"accuracy": found.pop(0)}

    monkeypatch.setattr(learning, "run_probe", fake)
    return found


@pytest.mark.parametrize(
    ("shares", "known"),
    [
        ([], None),
        ([1.0], None),
        ([0.5, 0.95, 0.95], 50),
        ([0.96, 0.94, 0.97, 0.98], 75),
        ([0.96, 0.94, 0.97], None),
    ],
)
def test_a_model_knows_from_the_first_of_two_good_probes_on(shares: list[float], known: int | None) -> None:
    assert first_known([(25 * (i + 1), share) for i, share in enumerate(shares)]) == known


def test_training_ends_when_the_model_knows(shares: list[float]) -> None:
    shares += [0.1, 0.99, 0.5, 0.96, 0.97, 1.0]
    found = run_learning(config(steps=10))
    assert (found.known, found.steps, found.capped, found.stopped) == (4, 5, False, "")
    assert found.curve == ((1, 0.1), (2, 0.99), (3, 0.5), (4, 0.96), (5, 0.97))
    assert shares == [1.0]


def test_training_that_ends_before_says_how(shares: list[float]) -> None:
    shares += [0.1] * 10
    found = run_learning(config(steps=2))
    assert (found.known, found.steps, found.capped) == (None, 2, False)
    assert json.loads(json.dumps(found._asdict()))["curve"] == [[1, 0.1], [2, 0.1]]
    found = run_learning(config(steps=2), minutes=0.0)
    assert (found.known, found.steps, found.capped, found.curve) == (None, 0, True, ())
    usual = config(steps=6)
    rash = replace(usual.optimiser, lr=1e38, warmup_steps=0)
    found = run_learning(replace(usual, optimiser=rash, skip=replace(usual.skip, limit=1)))
    assert "had to be skipped" in found.stopped
    assert (found.capped, found.skipped >= 0) == (False, True)


def test_equal_runs_have_equal_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "EVERY", 2)
    monkeypatch.setattr(learning, "_ANSWERS", 16)

    def without_times(found: Learning) -> Learning:
        return found._replace(seconds=0.0, tokens_per_second=0.0)

    before = torch.get_rng_state()
    for task in ("needles", "mqar"):
        first = run_learning(config(task))
        assert without_times(first) == without_times(run_learning(config(task)))
        assert [step for step, _ in first.curve] == [2]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("preset", ["deltanet", "titans_linear", "titans"])
@pytest.mark.parametrize("task", learning.TASKS)
def test_all_models_have_equally_many_parameters(preset: str, task: str) -> None:
    made = learning_config(replace(MODEL, rule=presets.PRESETS[preset]()), task, 64, 0)
    assert parameter_count(made.model) == pytest.approx(PARAMETERS, rel=0.02)
    assert made.model.vocab_size == made.task.vocab_size if task == "mqar" else 96  # type: ignore[attr-defined]
    assert made.tokens == made.steps * 2048


def test_each_needle_is_asked_for_once_in_probes_and_more_often_in_training() -> None:
    trained, asked = learning_task("needles", 256)
    assert int(trained.batch(0, 0, 1, 256).weights.sum()) == 8
    batch = asked.batch(0, 0, 4, 256)
    for ids, weights in zip(batch.ids, batch.weights, strict=True):
        assert len(set(ids[weights > 0].tolist())) == 4
    assert int(learning_task("mqar", 256)[1].batch(0, 0, 1, 256).weights.sum()) == 20


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(UserError, match="the tasks are needles, mqar at 64 positions or more, not copy at 64"):
        config("copy")
    assert json.loads(json.dumps(learning_settings())) == learning_settings()
