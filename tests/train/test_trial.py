"""Trials: the same model, rows and questions for every rule."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from fastweights.core import presets
from fastweights.errors import UserError
from fastweights.models.budget import parameter_count, state_bytes
from fastweights.models.language_model import LanguageModel
from fastweights.train import trial
from fastweights.train.config import TrainConfig
from fastweights.train.trial import PARAMETERS, TASKS, Trial, run_trial, trial_config, trial_settings


@pytest.fixture(autouse=True)
def _few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_ANSWERS", 64)
    monkeypatch.setattr(trial, "_ROWS", 2)


def config(task: str = "mqar", seed: int = 0, steps: int = 3) -> TrainConfig:
    return trial_config(presets.deltanet(), task, seed, steps=steps)


def without_times(found: Trial) -> Trial:
    return found._replace(seconds=0.0, tokens_per_second=0.0, asking_seconds=0.0)


def test_equal_trials_have_equal_results() -> None:
    before = torch.get_rng_state()
    first, second = run_trial(config("outliers")), run_trial(config("outliers"))
    assert torch.equal(torch.get_rng_state(), before)
    assert without_times(first) == without_times(second)
    assert (first.steps, first.capped, first.stopped) == (3, False, "")
    assert abs(first.parameters - PARAMETERS) <= 0.02 * PARAMETERS
    assert set(first.accuracy) == set(first.disputed) == {"64x4", "128x8", "256x16", "256x32"}
    assert first.asked == {"accuracy": 256, "disputed": 16 + 16 + 20 + 20}
    assert json.loads(json.dumps(first._asdict())) == first._asdict()


def test_a_trial_that_runs_out_of_time_is_asked_as_it_is() -> None:
    steps: list[int] = []
    found = run_trial(config(), minutes=0.0, on_step=lambda record: steps.append(record.step))
    assert (found.steps, found.capped, steps) == (0, True, [])
    assert set(found.accuracy) == {"64x4", "128x8", "256x16", "256x32"}
    assert found.disputed == {}


def test_a_training_that_gives_up_is_told() -> None:
    usual = config(steps=6)
    rash = replace(usual.optimiser, lr=1e38, warmup_steps=0)
    found = run_trial(replace(usual, optimiser=rash, skip=replace(usual.skip, limit=1)))
    assert "had to be skipped" in found.stopped
    assert not found.capped


def test_the_curriculum_has_all_steps_and_ends_with_the_longest_rows() -> None:
    for steps in (1, 7, 50, 1500):
        stages = config(steps=steps).stages
        assert sum(stage.steps for stage in stages) == steps
        assert {stage.length * stage.batch_size for stage in stages} == {1024}
    assert stages[0].task == TASKS["mqar"]
    assert stages[-1].length == 256
    assert len(trial_settings(1500)["stages"]) == len(stages) == 16


def test_models_of_equal_state() -> None:
    for rule in (presets.deltanet(), presets.titans()):
        found = trial_config(rule, "mqar", 0, equal_state=50_000).model
        assert state_bytes(LanguageModel(found).init_state(1)) == pytest.approx(50_000, rel=0.05)
        assert parameter_count(found) == pytest.approx(PARAMETERS, rel=0.02)
    with pytest.raises(UserError, match="has a state of 100 bytes"):
        trial_config(presets.titans(), "mqar", 0, equal_state=100)


def test_a_task_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match="the tasks of a trial are mqar, overwrite, outliers, not 'copy'"):
        config("copy")
