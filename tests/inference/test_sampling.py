"""Tokens are chosen as asked for: greedy, by temperature, from the nucleus; and nonsense is refused."""

from __future__ import annotations

import math

import pytest
import torch

from fastweights.errors import UserError
from fastweights.inference.sampling import LogitsError, Sampling


def draws(sampling: Sampling, logits: torch.Tensor, count: int) -> torch.Tensor:
    """Frequencies of each token in `count` draws."""
    chosen = sampling.choose(logits.expand(count, -1), torch.Generator().manual_seed(1))
    return torch.bincount(chosen, minlength=logits.shape[-1]) / count


def test_greedy_takes_the_largest_and_the_first_of_equals() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 3.0, -math.inf], [-5.0, -math.inf, -4.0]])
    assert Sampling().choose(logits).tolist() == [1, 0, 2]
    assert Sampling(temperature=0, top_p=0.1).choose(logits.bfloat16()).tolist() == [1, 0, 2]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_gives_the_softmax(temperature: float) -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, -math.inf])
    expected = (logits / temperature).softmax(-1)
    found = draws(Sampling(temperature), logits, 100_000)
    assert found[3] == 0
    torch.testing.assert_close(found, expected, atol=0.006, rtol=0)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log()
    assert (draws(Sampling(1.0, 0.4), logits, 100) > 0).tolist() == [False, True, False, False]
    assert (draws(Sampling(1.0, 0.6), logits, 1000) > 0).tolist() == [False, True, False, True]
    assert (draws(Sampling(1.0, 0.9), logits, 1000) > 0).tolist() == [True, True, False, True]
    found = draws(Sampling(1.0, 0.6), logits, 100_000)
    torch.testing.assert_close(found[1], torch.tensor(0.625), atol=0.006, rtol=0)


def test_a_tiny_temperature_is_greedy_and_stays_finite() -> None:
    logits = torch.tensor([[1e4, 1e4 - 1, -1e4]])
    assert Sampling(1e-300).choose(logits, torch.Generator()).tolist() == [0]


def test_the_same_seed_draws_the_same() -> None:
    logits = torch.randn(8, 50)
    one, two = (Sampling(1.0, 0.9).choose(logits, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)


@pytest.mark.parametrize("temperature", [-0.1, math.inf, math.nan])
def test_bad_temperatures_are_refused(temperature: float) -> None:
    with pytest.raises(UserError, match="temperature must be"):
        Sampling(temperature)


@pytest.mark.parametrize("top_p", [0.0, -1.0, 1.01, math.nan])
def test_bad_top_p_is_refused(top_p: float) -> None:
    with pytest.raises(UserError, match="top-p must"):
        Sampling(1.0, top_p)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(bad: float, temperature: float) -> None:
    logits = torch.zeros(2, 3)
    logits[1, 2] = bad
    with pytest.raises(LogitsError):
        Sampling(temperature).choose(logits)
    with pytest.raises(LogitsError):
        Sampling(temperature).choose(torch.full((1, 3), -math.inf))
