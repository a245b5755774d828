"""A forecaster reads a series in any pieces, never looks ahead, and starts from the mean."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.layers.wirings import WIRINGS, config
from torch import Tensor

from fastweights.core.properties import tensors
from fastweights.errors import UserError
from fastweights.layers.conformance import PER_LENGTH, Subject, memories, split_gradients, stirred
from fastweights.models.config import ModelConfig
from fastweights.models.forecaster import Forecaster, ForecasterConfig, ForecasterState

C, H = 3, 5


def forecaster(wiring: str = "lmm", rule: str = "titans") -> Forecaster:
    return stirred(Forecaster(ForecasterConfig(C, H, config(wiring, rule))).double())


def series(batch: int, time: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, time, C, generator=generator, dtype=torch.float64) + 10.0


@pytest.mark.parametrize("wiring", WIRINGS)
@torch.no_grad()
def test_reading_in_two_calls_or_many_equals_one(wiring: str) -> None:
    model, x = forecaster(wiring), series(2, 40)
    whole = model(x)
    assert whole.values.shape == (2, H, C)
    for cuts in ([13], list(range(1, 40))):
        state, told = model.init_state(2), whole.values
        for piece in torch.tensor_split(x, cuts, dim=1):
            told, state = model(piece, state)
        torch.testing.assert_close(told, whole.values, rtol=1e-9, atol=1e-9)
        assert model.position(state).tolist() == [40, 40]
        torch.testing.assert_close(state.total, x.sum(1))


@pytest.mark.parametrize(("wiring", "rule"), [("lmm", "titans"), ("mal", "titans_linear")])
def test_it_has_the_properties_of_all_that_read_a_stream(wiring: str, rule: str) -> None:
    """All but borders of documents, which it does not take."""
    model = forecaster(wiring, rule)

    def stream(
        x: Tensor, state: ForecasterState | None, mask: Tensor | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, ForecasterState]:
        assert cu_seqlens is None
        read = model.encode(x, state, mask=mask)
        told = model.tell(read.hidden, read.mean).flatten(2)
        return told if mask is None else torch.where(mask[..., None], told, 0.0), read.state

    subject = Subject(stream, model.init_state, series, torch.nan, dict(model.named_parameters()), {})
    for name, check in PER_LENGTH.items():
        if name != "5 documents separate":
            verdict = check(subject, 20)
            assert verdict.ok, f"{name}: {verdict}"
    assert split_gradients(subject, 20).ok


@torch.no_grad()
def test_padding_changes_nothing_wherever_it_stands() -> None:
    model, x = forecaster("mac"), series(2, 12)
    mask = torch.zeros(2, 20, dtype=torch.bool)
    mask[0, 2:14] = mask[1, 8:] = True
    padded = torch.full((2, 20, C), torch.nan, dtype=torch.float64)
    padded[mask] = x.flatten(0, 1)
    want, got = model(x), model(padded, mask=mask)
    torch.testing.assert_close(got.values, want.values, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.state.total, want.state.total)


@torch.no_grad()
def test_a_new_model_tells_the_mean_and_a_shift_of_the_series_is_a_shift_of_what_is_told() -> None:
    x = series(2, 17)
    new = Forecaster(ForecasterConfig(C, H, config("lmm", "titans"))).double()
    torch.testing.assert_close(new(x).values, x.mean(1, keepdim=True).expand(2, H, C))
    model, shift = forecaster(), torch.tensor([100.0, -3.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(model(x + shift).values, model(x).values + shift)


def test_every_parameter_gets_a_gradient() -> None:
    model = forecaster("mag")
    (model(series(2, 40)).values * series(2, H, 1)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name


@torch.no_grad()
def test_a_bfloat16_model_keeps_sums_and_memories_in_float32() -> None:
    model = forecaster().bfloat16()
    told = model(series(2, 20).bfloat16())
    assert told.state.total.dtype == torch.float32
    assert {t.dtype for m in memories(told.state.blocks) for t in tensors(m)} == {torch.float32, torch.int64}
    assert bool(told.values.isfinite().all())


def test_projections_decay_and_nothing_else() -> None:
    model = forecaster()
    decayed, kept = model.parameter_groups(0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert len(decayed["params"]) + len(kept["params"]) == len(names)
    inside = {names[id(parameter)] for parameter in decayed["params"]}
    assert {"blocks.0.mixer.qkv.weight", "blocks.0.feedforward.down.weight"} <= inside
    assert not {"embedding.weight", "head.weight", "blocks.0.mixer.gates.weight"} & inside


def test_what_does_not_fit_is_refused() -> None:
    model = forecaster()
    with pytest.raises(UserError, match=r"must be \[batch, time >= 1, 3\]; it is \[2, 4, 2\]"):
        model(torch.zeros(2, 4, 2))
    with pytest.raises(UserError, match="must be one of this model's own"):
        model(series(2, 4), model(series(2, 4)))
    with pytest.raises(UserError, match="the state holds 1 series and the input 2"):
        model(series(2, 4), model.init_state(1))
    other = Forecaster(ForecasterConfig(C + 1, H, config("lmm", "titans"))).init_state(2)
    with pytest.raises(UserError, match="must be one of this model's own"):
        model(series(2, 4), other)
    for mask in (torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 4)):
        with pytest.raises(UserError, match=r"the mask must be bool \[2, 4\]"):
            model(series(2, 4), mask=mask)
    with pytest.raises(UserError, match="no row is read"):
        model(series(2, 4), mask=torch.tensor([[True] * 4, [False] * 4]))
    with pytest.raises(UserError, match="needs a variable and a row"):
        ForecasterConfig(0, 5)
    for wrong in (replace(ModelConfig(), tied=True), replace(ModelConfig(), start="induction")):
        with pytest.raises(UserError, match="has no words"):
            ForecasterConfig(C, H, wrong)
