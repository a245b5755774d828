from __future__ import annotations

import itertools
import math

import pytest
import torch
from tests.train.runs import TINY_MODEL

from fastweights.models.language_model import LanguageModel
from fastweights.train.config import OptimiserConfig, PriceConfig, SkipConfig
from fastweights.train.optim import Optimiser, SkipGuard, TrainingStopped, learning_rate, price_at


def test_the_rate_warms_up_and_ends_at_its_fraction() -> None:
    config = OptimiserConfig(lr=2.0, warmup_steps=4, final_fraction=0.1)
    rates = [learning_rate(step, 20, config) for step in range(20)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0
    assert rates[-1] == pytest.approx(0.2)
    assert all(a >= b for a, b in itertools.pairwise(rates[3:]))
    assert rates[4 + 15 // 2] == pytest.approx(0.2 + 0.9 * (1 + math.cos(math.pi * 7 / 15)))


def test_a_run_shorter_than_its_warm_up_has_a_rate() -> None:
    assert learning_rate(2, 3, OptimiserConfig(lr=1.0, warmup_steps=10)) == pytest.approx(0.3)
    assert learning_rate(0, 1, OptimiserConfig(lr=1.0, warmup_steps=0)) == 1.0


def test_the_price_rises_between_its_two_fractions() -> None:
    config = PriceConfig(value=0.4, start=0.25, end=0.75)
    assert [price_at(step, 100, config) for step in (0, 24, 25, 50, 75, 99)] == pytest.approx([0, 0, 0, 0.2, 0.4, 0.4])
    assert price_at(50, 100, PriceConfig(value=1.0, start=0.5, end=0.5)) == 1.0


def step_once(model: LanguageModel, optimiser: Optimiser, lr: float = 1e-2) -> float:
    model.encode(torch.arange(12)[None] % 24).hidden.float()[..., ::2].sum().backward()
    norm = optimiser.collect()
    optimiser.step(lr, norm)
    optimiser.clear()
    return norm


def test_a_step_is_adamw_with_a_clipped_gradient() -> None:
    model, twin = LanguageModel(TINY_MODEL), LanguageModel(TINY_MODEL)
    twin.load_state_dict(model.state_dict())
    config = OptimiserConfig(clip=0.5, weight_decay=0.5)
    optimiser = Optimiser(model, config)
    adam = torch.optim.AdamW(twin.parameter_groups(0.5), lr=1e-2, betas=config.betas, eps=config.eps, foreach=False)
    for _ in range(3):
        norm = step_once(model, optimiser)
        twin.encode(torch.arange(12)[None] % 24).hidden[..., ::2].sum().backward()
        assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)), rel=1e-4)
        adam.step()
        adam.zero_grad()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_bfloat16_parameters_follow_a_float32_copy() -> None:
    model = LanguageModel(TINY_MODEL).to(torch.bfloat16)
    optimiser = Optimiser(model, OptimiserConfig())
    before = {name: master.clone() for name, master in optimiser.masters().items()}
    for _ in range(3):
        step_once(model, optimiser, lr=1e-5)
    masters = optimiser.masters()
    assert all(master.dtype == torch.float32 for master in masters.values())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, masters[name].to(torch.bfloat16))
    # Steps of 1e-5 vanish in bfloat16; the copies keep them.
    assert all(bool((masters[name] != before[name]).any()) for name in masters if name != "head.weight")


def test_the_guard_skips_what_is_not_finite_or_far_out() -> None:
    guard = SkipGuard(SkipConfig(factor=10.0, window=8, limit=3), clip=1.0)
    assert [guard.judge(1.0, norm) for norm in (0.5, 0.7, 3.0)] == ["", "", ""]
    assert "loss was nan" in guard.judge(math.nan, math.nan)
    assert "gradient norm was inf" in guard.judge(1.0, math.inf)
    assert guard.judge(1.0, 0.6) == ""
    assert "was above 10" in guard.judge(1.0, 11.0)
    assert guard.skipped == 3


def test_a_tiny_median_makes_no_outliers_below_the_clip() -> None:
    guard = SkipGuard(SkipConfig(factor=10.0), clip=1.0)
    for _ in range(20):
        assert guard.judge(0.0, 1e-6) == ""
    assert guard.judge(2.0, 5.0) == ""


def test_norms_that_have_grown_for_good_stop_being_outliers() -> None:
    guard = SkipGuard(SkipConfig(factor=3.0, window=4, limit=10), clip=1.0)
    for _ in range(4):
        guard.judge(1.0, 2.0)
    assert [bool(guard.judge(1.0, 50.0)) for _ in range(4)] == [True, True, False, False]


def test_too_many_skips_in_a_row_end_the_run_with_one_sentence() -> None:
    guard = SkipGuard(SkipConfig(limit=3), clip=1.0)
    guard.judge(math.nan, math.nan)
    guard.judge(math.nan, math.nan)
    guard.judge(1.0, 1.0)
    guard.judge(math.nan, math.nan)
    guard.judge(math.nan, math.nan)
    with pytest.raises(TrainingStopped, match="3 steps in a row had to be skipped, the last because its loss was nan"):
        guard.judge(math.nan, math.nan)


def test_the_guard_goes_on_where_it_was() -> None:
    guard = SkipGuard(SkipConfig(window=4), clip=1.0)
    for norm in (1.0, math.inf, 3.0, math.inf):
        guard.judge(1.0, norm)
    other = SkipGuard(SkipConfig(window=4), clip=1.0)
    other.load_facts(guard.facts())
    assert other.facts() == guard.facts()
    guard.new_stage()
    assert guard.facts() == {"norms": [], "in_a_row": 1, "skipped": 2}
