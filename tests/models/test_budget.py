"""Models of equal size are of equal size."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastweights.core import presets
from fastweights.errors import UserError
from fastweights.models.budget import parameter_count, state_bytes, with_parameters, with_state
from fastweights.models.config import ModelConfig
from fastweights.models.language_model import LanguageModel

RULES = [presets.deltanet(), presets.titans()]
BASE = ModelConfig(vocab_size=64, dim=32, depth=2, heads=2, wiring="lmm")


def config(number: int) -> ModelConfig:
    return replace(BASE, rule=RULES[number])


@pytest.mark.parametrize("number", range(len(RULES)))
def test_the_feed_forward_network_makes_up_for_the_memory(number: int) -> None:
    found = with_parameters(config(number), 60_000)
    count = sum(parameter.numel() for parameter in LanguageModel(found).parameters())
    assert count == parameter_count(found) == pytest.approx(60_000, rel=0.03)
    assert found.rule == RULES[number]


def test_what_no_network_makes_up_for_is_refused() -> None:
    with pytest.raises(UserError, match="no feed-forward network gives the model 1,000 parameters"):
        with_parameters(config(0), 1000)
    assert parameter_count(with_parameters(config(0), 60_000, tolerance=0.03)) <= 61_800
    with pytest.raises(UserError, match="come with every 16 units"):
        with_parameters(config(0), 60_000, tolerance=1e-9)


@pytest.mark.parametrize("number", range(len(RULES)))
def test_the_heads_make_up_for_the_size_of_the_memory(number: int) -> None:
    size = 40_000
    shapes = list(with_state(config(number), size))
    sizes = [state_bytes(LanguageModel(shape).init_state(1)) for shape in shapes]
    assert sizes
    assert all(abs(found - size) <= 0.05 * size for found in sizes)
    assert sizes == sorted(sizes, key=lambda found: abs(found - size))


def test_no_shape_is_near_enough_to_a_few_bytes() -> None:
    assert list(with_state(config(1), 100)) == []
