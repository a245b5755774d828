"""Training a forecaster: it learns, keeps the best of its epochs, ends early, and is repeatable."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.made_series import waves

from fastweights.core import presets
from fastweights.data.series import Scaled, Series, scale
from fastweights.errors import UserError
from fastweights.models.config import ModelConfig
from fastweights.models.forecaster import Forecaster, ForecasterConfig
from fastweights.tasks.forecasting import WindowSpec, control, measure
from fastweights.train.config import OptimiserConfig
from fastweights.train.forecasting import ForecastStep, ForecastTraining, evaluate_forecaster, train_forecaster

MODEL = ModelConfig(vocab_size=1, dim=16, depth=1, heads=2, wiring="lmm", rule=presets.gated_deltanet())
TRAINING = ForecastTraining(
    model=ForecasterConfig(variables=3, horizon=6, model=MODEL),
    inputs=24,
    batch_size=16,
    epochs=3,
    optimiser=OptimiserConfig(lr=1e-2, weight_decay=0.01, warmup_steps=2),
)


@pytest.fixture(scope="module")
def scaled() -> Scaled:
    days = (8, 4, 4)
    return scale(Series("made", ("a", "b", "c"), waves(24 * sum(days)), 24), days)


def test_it_learns_what_the_mean_does_not_know(scaled: Scaled) -> None:
    steps: list[ForecastStep] = []
    result = train_forecaster(scaled, TRAINING, on_step=steps.append)
    spec = WindowSpec(24, 6)
    found = evaluate_forecaster(result.model, scaled, "test", 24)
    assert found.windows == 24 * 4 - 6 + 1
    assert found.mse < 0.5 * measure(control("mean", spec, 24), scaled, "test", spec).mse
    # 192 rows hold 163 windows, 11 batches of 16 and fewer.
    assert [(step.step, step.steps, step.epoch) for step in steps] == [(n + 1, 33, n // 11 + 1) for n in range(33)]
    assert (result.steps, result.capped, result.stopped) == (33, False, "")
    assert len(result.curve) == 3
    assert not result.model.training


def test_the_model_is_that_of_the_best_epoch(scaled: Scaled) -> None:
    result = train_forecaster(scaled, replace(TRAINING, optimiser=replace(TRAINING.optimiser, lr=0.3)))
    curve = [errors.mse for errors in result.curve]
    assert result.best == 1 + int(np.argmin(curve))
    assert evaluate_forecaster(result.model, scaled, "valid", 24) == result.curve[result.best - 1]


def test_it_ends_when_validation_no_longer_gains(scaled: Scaled) -> None:
    """Days of validation upside down: the better a model knows those for training, the worse it becomes."""
    values = scaled.values.copy()
    rows = scaled.rows("valid")
    values[rows.start : rows.stop] *= -1
    turned = scaled._replace(values=values)
    result = train_forecaster(turned, replace(TRAINING, epochs=9, patience=2))
    assert len(result.curve) == result.best + 2 < 9
    assert result.steps == 11 * len(result.curve)
    assert not result.capped


def test_equal_trainings_give_equal_weights_and_leave_the_random_state(scaled: Scaled) -> None:
    before = torch.get_rng_state()
    one, same, other = (
        train_forecaster(scaled, replace(TRAINING, epochs=1, seed=seed)).model.state_dict() for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_nothing_of_the_part_for_tests_reaches_a_training(scaled: Scaled) -> None:
    values = scaled.values.copy()
    values[scaled.rows("test").start :] = np.nan
    weights = [
        train_forecaster(series, replace(TRAINING, epochs=1)).model.state_dict()
        for series in (scaled, scaled._replace(values=values))
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_clock_ends_it_with_what_there_is(scaled: Scaled) -> None:
    result = train_forecaster(scaled, TRAINING, minutes=0.0)
    assert (result.steps, result.capped, result.best) == (1, True, 1)
    assert len(result.curve) == 1


def test_numbers_that_are_not_finite_end_it_and_leave_sound_weights(scaled: Scaled) -> None:
    values = scaled.values.copy()
    values[: scaled.ends[0]] = np.nan
    skips: list[str] = []
    config = replace(TRAINING, batch_size=4)
    result = train_forecaster(scaled._replace(values=values), config, on_step=lambda step: skips.append(step.skipped))
    assert "steps in a row had to be skipped" in result.stopped
    assert skips == ["its loss was nan"] * 19
    assert all(bool(value.isfinite().all()) for value in result.model.state_dict().values())


def test_windows_are_read_from_an_empty_memory_whatever_is_read_at_a_time(scaled: Scaled) -> None:
    torch.manual_seed(0)
    model = Forecaster(TRAINING.model)
    torch.nn.init.normal_(model.head.weight, std=0.1)
    one, other = (evaluate_forecaster(model, scaled, "test", 24, rows) for rows in (5, 500))
    assert one == pytest.approx(other, rel=1e-5)


def test_what_cannot_be_is_refused(scaled: Scaled) -> None:
    with pytest.raises(UserError, match="the series has 3 variables and the forecaster 2"):
        train_forecaster(scaled, replace(TRAINING, model=ForecasterConfig(2, 6, MODEL)))
    with pytest.raises(UserError, match="there is no device 'abacus'"):
        train_forecaster(scaled, replace(TRAINING, device="abacus"))
    with pytest.raises(UserError, match="patience of a forecaster's training must be at least 1"):
        replace(TRAINING, patience=0)
    with pytest.raises(UserError, match="too few to read 24 and tell 400"):
        train_forecaster(scaled, replace(TRAINING, model=ForecasterConfig(3, 400, MODEL)))
    steps: list[object] = []
    with pytest.raises(UserError, match=r"the part valid has .* rows, too few"):
        train_forecaster(scaled, replace(TRAINING, model=ForecasterConfig(3, 120, MODEL)), on_step=steps.append)
    assert not steps
