"""Identities between rules of different choices: what one choice becomes at the end of its range is another."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from tests.core.papers import all_close, answer, close, residual_mlp, rows, same, states, stream

from fastweights.core import presets
from fastweights.core.algorithm import (
    Algorithm,
    ConjugateGradient,
    DeltaGradientDescent,
    GradientDescent,
    Momentum,
    Nesterov,
    Steps,
)
from fastweights.core.architecture import MLP, Matrix, Residual
from fastweights.core.bias import L2, LP, Bias, DotProduct, Huber, Omega, Reach, RobustL2
from fastweights.core.least_squares import conjugate_gradient
from fastweights.core.retention import (
    Bounded,
    ElasticNet,
    FDivergence,
    KLDivergence,
    LinkAt,
    LQNorm,
    NoRetention,
    Reset,
    Retention,
    RowNorm,
    SoftThreshold,
    WeightDecay,
)
from fastweights.core.rule import Rule

TIME = 11
DEEP = Rule(Residual(MLP(2, 1.5)), L2(), WeightDecay(), Momentum(), chunk_size=4, clip=None)
FLAT = Rule(Matrix(), L2(), WeightDecay(), Momentum(), chunk_size=1, clip=None)
bases = pytest.mark.parametrize("base", [DEEP, FLAT], ids=["deep", "matrix"])


@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_dot_product_without_retention_is_linear_attention(chunk: int) -> None:
    """Its gradient does not look at the memory, so every chunk size is the same sum over earlier tokens."""
    rule = Rule(Matrix(), DotProduct(), NoRetention(), GradientDescent(), chunk_size=chunk, clip=None)
    s = stream(rule, TIME)
    same(rule, presets.linear_attention(), s)
    close(answer(rule, s).y, s.q @ s.initial[0].T + np.tril(s.q @ s.k.T) @ (s.lr * s.v))


def test_squared_error_that_keeps_everything_is_deltanet() -> None:
    rule = replace(FLAT, algorithm=GradientDescent())
    s = stream(rule, TIME)
    same(rule, presets.deltanet(), s._replace(retain=np.ones_like(s.retain)))


def test_erasing_under_a_dot_product_is_deltanet() -> None:
    """Nested Learning (57) with L = -<W x, v>: W (I - lr x x^T) + lr v x^T."""
    rule = Rule(Matrix(), DotProduct(), NoRetention(), DeltaGradientDescent(), chunk_size=1, clip=None)
    same(rule, presets.deltanet(), stream(rule, TIME))


@bases
@pytest.mark.parametrize("reach", ["coordinate", "norm", "mixture"])
def test_huber_with_a_threshold_out_of_reach_is_l2(reach: Reach, base: Rule) -> None:
    rule = replace(base, bias=Huber(reach))
    s = stream(rule, TIME)
    same(rule, base, s._replace(threshold=np.full_like(s.threshold, 1e6)))
    assert np.abs(answer(rule, s._replace(threshold=s.threshold * 0.1)).y - answer(base, s).y).max() > 1e-3


@bases
@pytest.mark.parametrize(("bias", "half"), [(LP(2.0), False), (RobustL2(0.0), True)], ids=["lp", "robust"])
def test_biases_that_end_in_l2(bias: Bias, half: bool, base: Rule) -> None:
    same(replace(base, bias=bias), replace(base, bias=L2(half)), stream(base, TIME))


@bases
@pytest.mark.parametrize("inner", [L2(), LP(3.0), Huber("norm"), DotProduct()], ids=lambda bias: type(bias).__name__)
def test_a_window_of_one_token_is_the_token(inner: Bias, base: Rule) -> None:
    rule = replace(base, bias=Omega(inner, 1))
    s = stream(rule, TIME, lr=(0.01, 0.1))
    same(rule, replace(base, bias=inner), s._replace(importance=np.ones_like(s.importance)))


@bases
def test_a_window_in_which_only_the_last_token_counts_is_the_token(base: Rule) -> None:
    """Importance and lr are 0 at odd places: a step at an even one counts itself alone."""
    rule, s = replace(base, bias=Omega(L2(), 2)), stream(base, TIME)
    odd = np.arange(TIME)[:, None] % 2 == 1
    lr = np.where(odd, 0.0, s.lr)
    same(rule, base, s._replace(lr=lr, importance=np.where(odd, 0.0, 1.0)), s._replace(lr=lr))


@bases
@pytest.mark.parametrize("algorithm", [Momentum(), Nesterov()], ids=lambda algorithm: type(algorithm).__name__)
def test_momentum_of_0_is_gradient_descent(algorithm: Algorithm, base: Rule) -> None:
    rule = replace(base, algorithm=algorithm)
    s = stream(rule, TIME)
    still = s._replace(momentum=np.zeros_like(s.momentum))
    same(rule, replace(base, algorithm=GradientDescent()), still)
    assert np.abs(answer(rule, s).y - answer(rule, still).y).max() > 1e-3


@bases
def test_nesterov_is_momentum_with_one_more_step_of_it(base: Rule) -> None:
    """From zero momentum, one token: the step is lr (1 + momentum) u instead of lr u."""
    rule = replace(base, algorithm=Nesterov())
    s = rows(stream(rule, TIME), slice(1))
    same(rule, base, s, s._replace(lr=s.lr * (1.0 + s.momentum)))


def test_one_step_a_token_is_gradient_descent() -> None:
    rule = presets.deltaproduct(1)
    same(rule, presets.gated_deltanet(), stream(rule, TIME))
    assert isinstance(rule.algorithm, Steps)


def test_longhorn_with_small_steps_is_deltanet_to_first_order() -> None:
    s = stream(presets.longhorn(), TIME)
    apart = []
    for lr in (2e-4, 1e-4):
        small = s._replace(lr=np.full_like(s.lr, lr))
        delta = answer(presets.deltanet(), small).y
        apart.append(np.abs(answer(presets.longhorn(), small).y - delta).max())
    assert 0 < apart[0] < 1e-6
    assert apart[0] / apart[1] == pytest.approx(4.0, rel=0.01)


LINKS = pytest.mark.parametrize(("at", "read"), [("chunk", "chunk"), ("token", "after"), ("token", "before")])


@LINKS
@pytest.mark.parametrize("form", ["mirror", "printed"])
def test_moneta_at_two_and_two_is_l2_with_decay(form: str, at: LinkAt, read: str) -> None:
    link = LQNorm(2.0, form=form, link_at=at)  # type: ignore[arg-type]
    rule = replace(DEEP, bias=LP(2.0), retention=link, read=read)  # type: ignore[arg-type]
    s = stream(rule, TIME, lr=(0.01, 0.2))
    same(rule, replace(rule, bias=L2(half=False), retention=WeightDecay()), s)


@LINKS
@pytest.mark.parametrize("hidden", [False, True])
def test_an_elastic_net_that_does_not_shrink_is_weight_decay(hidden: bool, at: LinkAt, read: str) -> None:
    def net(shrink: float) -> ElasticNet | SoftThreshold:
        return SoftThreshold(shrink, link_at=at) if hidden else ElasticNet(shrink)

    rule = replace(DEEP, retention=net(0.0), read=read)  # type: ignore[arg-type]
    s = stream(rule, TIME)
    same(rule, replace(rule, retention=WeightDecay()), s)
    shrunk = answer(replace(rule, retention=net(0.2)), s)
    assert np.abs(shrunk.y - answer(rule, s).y).max() > 1e-3


@pytest.mark.parametrize("time", [TIME, 12])
@pytest.mark.parametrize("total", [1.0, 2.5])
def test_the_kl_divergence_as_a_projection_is_its_link_at_chunk_ends(total: float, time: int) -> None:
    rule = replace(DEEP, retention=KLDivergence(total=total, lag=False), read="chunk")
    s = stream(rule, time)
    s = s._replace(retain=np.ones_like(s.retain))
    same(replace(rule, retention=FDivergence("kl", total)), rule, s)


SIMPLEXES: list[tuple[Retention, str]] = [
    (KLDivergence(total=2.5), "chunk"),
    (KLDivergence(total=2.5, link_at="token"), "after"),
    (FDivergence("kl", 2.5), "chunk"),
    (FDivergence("chi2", 2.5), "chunk"),
]


@pytest.mark.parametrize(("retention", "read"), SIMPLEXES)
def test_rows_on_the_simplex_sum_to_the_total_at_every_position(retention: Retention, read: str) -> None:
    rule = replace(DEEP, retention=retention, read=read)  # type: ignore[arg-type]
    found = states(rule, stream(rule, TIME))
    for weights in found:
        for w in weights:
            assert (w >= 0.0).all()
            close(w.sum(-1), np.full(len(w), 2.5))
    assert np.abs(found[0][0] - found[-1][0]).max() > 1e-3


def test_memora_s_rows_sum_to_1_at_every_position() -> None:
    rule = presets.memora(chunk_size=4)
    found = states(rule, stream(rule, TIME))
    for w in (w for weights in found for w in weights):
        assert (w > 0.0).all()
        close(w.sum(-1), np.ones(len(w)))
    # The lag token: the weights move with a chunk's first token, and again only where the next chunk opens.
    moves = [bool(np.abs(a[0] - b[0]).max() > 1e-6) for a, b in pairwise(found)]
    assert moves == [t % 4 in (0, 3) for t in range(TIME)]


@pytest.mark.parametrize(("at", "read"), [("chunk", "chunk"), ("token", "after")])
def test_bounded_weights_stay_inside_their_bounds(at: LinkAt, read: str) -> None:
    rule = replace(DEEP, retention=Bounded(-0.5, 1.5, link_at=at), read=read)  # type: ignore[arg-type]
    found = states(rule, stream(rule, TIME, lr=(20.0, 40.0), retain=(1.0, 1.0)))
    every = np.concatenate([w.ravel() for weights in found for w in weights])
    assert every.min() >= -0.5
    assert every.max() <= 1.5
    # It was pushed to both ends.
    assert every.min() < -0.49
    assert every.max() > 1.49


@pytest.mark.parametrize("unit", [False, True])
def test_rows_keep_their_length(unit: bool) -> None:
    rule = replace(DEEP, retention=RowNorm(unit=unit), read="chunk")
    found = states(rule, s := stream(rule, TIME))
    for weights in found:
        for w, first in zip(weights, s.initial, strict=True):
            close(np.linalg.norm(w, axis=1), np.ones(len(w)) if unit else np.linalg.norm(first, axis=1))
    assert np.abs(found[0][0] - found[-1][0]).max() > 1e-3


@bases
def test_a_reset_forgets_exactly_and_at_its_border_alone(base: Rule) -> None:
    rule = replace(base, retention=Reset(WeightDecay(), 8))
    s = stream(rule, 2 * 8 + 3)
    found = states(rule, s)
    for t, weights in enumerate(found):
        forgotten = all(np.array_equal(w, first) for w, first in zip(weights, s.initial, strict=True))
        assert forgotten == (t % 8 == 0)
    # Nothing of what was read before is left, not even in the momentum.
    close(answer(rule, s).y[8:], answer(rule, rows(s, slice(8, None))).y)
    same(rule, base, rows(s, slice(7)))


def test_tnt_s_local_memories_start_again_from_what_they_learned() -> None:
    rule = presets.tnt((2, 4), chunk_size=4, shard=8)
    s = stream(rule, 2 * 8 + 3, lr=(0.01, 0.1))
    whole, first, second = s.initial[:2], s.initial[2:4], s.initial[4:6]
    for t, weights in enumerate(states(rule, s)):
        assert np.array_equal(weights[0], whole[0]) == (t < 4)
        for got, learned in ((weights[2:4], first), (weights[4:6], second)):
            assert all(np.array_equal(a, b) for a, b in zip(got, learned, strict=True)) == (t % 8 == 0)


def test_tnt_without_writes_reads_every_learned_memory() -> None:
    """With lr 0 and retain 1: f(V_0, q) + f(W_0, P q), where the keys of the local chunk span P."""
    rule = presets.tnt((4,), chunk_size=4, shard=8)
    s = stream(rule, TIME)
    s = s._replace(lr=np.zeros_like(s.lr), retain=np.ones_like(s.retain))
    want = []
    for t, q in enumerate(s.q):
        unit = [k / np.linalg.norm(k) for k in s.k[4 * (t // 4) : t + 1]]
        projected = sum(k * (k @ q) for k in unit)
        want.append(residual_mlp(s.initial[:2], q) + residual_mlp(s.initial[2:4], np.asarray(projected)))
    close(answer(rule, s).y, want)


def test_mesa_that_forgets_nothing_is_ridge_regression() -> None:
    """Each query by the normal equations over all tokens so far: (K^T K + ridge) W^T = K^T V."""
    s = stream(presets.mesa(), TIME, value=3)
    s = s._replace(lr=np.ones_like(s.lr), retain=np.ones_like(s.retain))
    s.initial[0][:] = 0.0
    ridge = np.diag(np.log1p(np.exp(s.initial[2][0])) + 0.25)
    want = []
    for t, q in enumerate(s.q):
        k, v = s.k[: t + 1], s.v[: t + 1]
        want.append(q @ np.linalg.solve(k.T @ k + ridge, k.T @ v))
    close(answer(presets.mesa(), s).y, want)


def test_conjugate_gradients_arrive_within_as_many_steps_as_there_are_keys() -> None:
    rule = presets.mesa()
    s = stream(rule, TIME)
    exact = answer(rule, s, "reference").y
    apart = [np.abs(answer(presets.mesa(n), s).y - exact).max() for n in (1, 2, 4)]
    assert apart[0] > apart[1] > 1e-4
    assert apart[2] < 1e-10
    assert rule.algorithm == ConjugateGradient(30)


def test_a_conjugate_gradient_is_a_solve_and_so_is_its_gradient() -> None:
    draw = torch.Generator().manual_seed(0)
    root, b, weight = (torch.randn(3, *n, dtype=torch.float64, generator=draw) for n in ((6, 6), (6,), (6,)))
    grads = []
    for direct in (False, True):
        leaves = [x.clone().requires_grad_() for x in (root, b)]
        system = leaves[0] @ leaves[0].transpose(1, 2) + 0.5 * torch.eye(6, dtype=torch.float64)
        apply = partial(torch.einsum, "nij,nj->ni", system)
        solved = torch.linalg.solve(system, leaves[1]) if direct else conjugate_gradient(apply, leaves[1], 30)
        grads.append([solved.detach(), *torch.autograd.grad((solved * weight).sum(), leaves)])
    all_close([x.numpy() for x in grads[0]], [x.numpy() for x in grads[1]])
