"""Optimisers as memories: each against its formula, and every one of them trains."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.train.runs import TINY_MODEL
from torch import Tensor, nn

from fastweights.core.algorithm import newton_schulz
from fastweights.errors import UserError
from fastweights.models.language_model import LanguageModel
from fastweights.train.config import ConfigError, OptimiserConfig
from fastweights.train.memory_optimisers import M3, RMS, DeepMomentum, DeltaMomentum, MatrixOptimiser
from fastweights.train.optim import Optimiser, warm_levels

KINDS = [DeltaMomentum, DeepMomentum, M3]


def gradients(count: int, shape: tuple[int, int] = (4, 6)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def steps(kind: type[MatrixOptimiser], found: list[Tensor], **options: object) -> list[Tensor]:
    """The directions of the steps for given gradients, each of unit root mean square."""
    p = nn.Parameter(torch.zeros_like(found[0]))
    optimiser = kind([p], lr=1.0, **options)  # type: ignore[arg-type]
    directions = []
    for g in found:
        before, p.grad = p.detach().clone(), g.clone()
        optimiser.step()
        directions.append((before - p.detach()) / RMS)
    return directions


def unit(x: Tensor) -> Tensor:
    return x / x.square().mean().sqrt()


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_delta_momentum_takes_out_what_the_new_gradient_writes_over(shape: tuple[int, int]) -> None:
    found, m = gradients(5, shape), torch.zeros(shape)
    for g, step in zip(found, steps(DeltaMomentum, found, alpha=0.9, beta=0.7), strict=True):
        u = g / g.norm()
        m = m @ (0.9 * torch.eye(shape[1]) - 0.7 * u.T @ u) + g
        torch.testing.assert_close(step, unit(m), rtol=1e-4, atol=1e-5)


def test_delta_momentum_without_its_delta_is_momentum() -> None:
    found, m = gradients(4), torch.zeros(4, 6)
    for g, step in zip(found, steps(DeltaMomentum, found, alpha=0.9, beta=0.0), strict=True):
        m = 0.9 * m + g
        torch.testing.assert_close(step, unit(m), rtol=1e-4, atol=1e-5)


def test_m3_is_two_orthogonalised_momenta_over_the_root_of_squares() -> None:
    found = gradients(7)
    fast = slow = squares = total = torch.zeros(4, 6)
    taken = steps(M3, found, betas=(0.8, 0.9, 0.7), share=0.5, period=3)
    for i, (g, step) in enumerate(zip(found, taken, strict=True), 1):
        fast, squares, total = 0.8 * fast + 0.2 * g, 0.9 * squares + 0.1 * g.square(), total + g
        if i % 3 == 0:
            slow, total = 0.7 * slow + 0.3 * total / 3, torch.zeros(4, 6)
        both = newton_schulz(fast, 5, 1e-12) + (0.5 * newton_schulz(slow, 5, 1e-12) if i >= 3 else 0.0)
        root = (squares / (1 - 0.9**i)).sqrt()
        torch.testing.assert_close(step, unit(both / (root / root.mean() + 1e-3)), rtol=1e-4, atol=1e-5)


def test_deep_momentum_learns_by_the_gradient_of_its_loss() -> None:
    """Its network's step is autograd's; it goes against mean and answer; what comes again and again is passed on."""
    p, g = nn.Parameter(torch.zeros(4, 6)), gradients(1)[0]
    optimiser = DeepMomentum([p], lr=1.0, inner_lr=0.5, alpha=1.0, mean=0.5)
    for _ in range(2):
        p.grad = g.clone()
        optimiser.step()
    state = copy.deepcopy(optimiser.state[p])
    p.grad, before = 2.0 * g.flip(0), p.detach().clone()
    optimiser.step()
    u = unit(g.flip(0))
    inner, outer = (state[name].requires_grad_() for name in ("inner", "outer"))
    mean = (0.5 * state["mean"] + 0.5 * u) / (1 - 0.5**3)
    loss = 0.5 * (u + torch.tanh(u @ inner.T) @ outer.T - mean).square().sum() / len(u)
    d_inner, d_outer = torch.autograd.grad(loss, [inner, outer])
    hidden = torch.tanh(u @ inner.T).square().sum(1).mean().clamp_min(1.0)
    after = optimiser.state[p]
    torch.testing.assert_close(after["outer"], outer - 0.5 / hidden * d_outer, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(after["inner"], inner - 0.5 / u.square().sum(1).mean() * d_inner, rtol=1e-4, atol=1e-6)
    step, answer = unit((before - p).detach()), u + torch.tanh(u @ after["inner"].T) @ after["outer"].T
    torch.testing.assert_close(step, unit(mean + answer), rtol=1e-4, atol=1e-5)
    same = steps(DeepMomentum, [g] * 5)[-1]
    assert F.cosine_similarity(same.flatten(), g.flatten(), 0) > 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_has_one_size_and_decay_is_decoupled(kind: type[MatrixOptimiser]) -> None:
    for g in (1e-3, 1.0, 1e3):
        (step,) = steps(kind, [torch.full((3, 5), g) + gradients(1, (3, 5))[0] * g])
        assert step.square().mean().sqrt().item() == pytest.approx(1.0, rel=1e-3)
    p = nn.Parameter(torch.ones(3, 5))
    optimiser = kind([p], lr=0.5, weight_decay=0.2)  # type: ignore[call-arg]
    p.grad = torch.zeros(3, 5)
    assert optimiser.step(lambda: 7.0) == 7.0
    torch.testing.assert_close(p.detach(), torch.full((3, 5), 0.9), atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="trains matrices"):
        kind([nn.Parameter(torch.ones(3))], lr=0.1)  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", KINDS)
def test_an_optimiser_of_narrow_parameters_goes_on_where_it_was(kind: type[MatrixOptimiser]) -> None:
    """Also after 256 steps, behind which a narrow counter would stand still."""
    p = nn.Parameter(torch.zeros(3, 5, dtype=torch.bfloat16))
    optimiser = kind([p], lr=0.1)  # type: ignore[call-arg]
    for g in gradients(260, (3, 5)):
        p.grad = g.bfloat16()
        optimiser.step()
    q = nn.Parameter(p.detach().clone())
    other = kind([q], lr=0.1)  # type: ignore[call-arg]
    other.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    for name, value in optimiser.state[p].items():
        assert other.state[q][name].dtype == value.dtype
        assert torch.equal(other.state[q][name], value)
    for g in gradients(3, (3, 5)):
        p.grad, q.grad = g.bfloat16(), g.bfloat16()
        optimiser.step()
        other.step()
    assert torch.equal(p, q)


@pytest.mark.parametrize("kind", ["adamw", "muon", "delta", "deep", "m3"])
def test_a_model_is_trained_and_its_optimiser_goes_on_where_it_was(kind: str) -> None:
    torch.manual_seed(0)
    config = OptimiserConfig(kind=kind, lr=3e-3)  # type: ignore[arg-type]
    model = LanguageModel(TINY_MODEL)
    ids = torch.randint(0, TINY_MODEL.vocab_size, (4, 12))

    def descend(model: LanguageModel, optimiser: Optimiser, count: int) -> list[float]:
        losses = []
        for _ in range(count):
            loss = F.cross_entropy(model(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            optimiser.step(3e-3, optimiser.collect())
            optimiser.clear()
            losses.append(loss.item())
        return losses

    optimiser = Optimiser(model, config)
    losses = descend(model, optimiser, 20)
    assert losses[-1] < losses[0] - 0.3
    saved = {name: value.clone() for name, value in optimiser.tensors().items()}
    other = copy.deepcopy(model)
    again = Optimiser(other, config)
    again.load_tensors(saved)
    assert descend(other, again, 3) == descend(model, optimiser, 3)


def test_unknown_kinds_are_refused_and_levels_warm_up_in_a_tenth_of_training() -> None:
    with pytest.raises(ConfigError, match="one of adamw, muon, delta, deep, m3"):
        OptimiserConfig(kind="sgd")  # type: ignore[arg-type]
    assert [warm_levels(step, 100) for step in (0, 5, 10, 99)] == pytest.approx([0.1, 0.55, 1.0, 1.0])
