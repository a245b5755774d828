"""Coefficients of a piece against the recurrence they stand for, walked in NumPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from fastweights.core.algorithm import Coupling
from fastweights.core.decay import Coefficients, before, coefficients, products, scan
from fastweights.core.second_order import second_order

Array = npt.NDArray[np.float64]
WIDTHS = [1, 2, 3, 5, 8, 13, 16]


def close(got: Tensor, want: npt.ArrayLike) -> None:
    np.testing.assert_allclose(got.numpy(), np.asarray(want), rtol=1e-12, atol=1e-13)


def gates(width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """lr, momentum, retain and which slots are real, for two heads; some gates are exactly 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    lr, momentum, retain = torch.rand(3, 2, width, generator=generator, dtype=torch.float64)
    dice = torch.randint(0, 4, (2, width), generator=generator)
    momentum, retain = torch.where(dice == 0, 0.0, momentum), torch.where(dice == 1, 1.0, retain)
    retain = torch.where(dice == 2, 0.0, retain)
    return lr, momentum, retain, torch.rand(2, width, generator=generator) > 0.3


def walk(
    lr: Tensor, momentum: Tensor | None, retain: Tensor | None, real: Tensor | None, coupling: Coupling
) -> tuple[Array, Array]:
    """The recurrence on vectors over (A_0, S_0, u_1 ... u_W): rows of A_t and S_t for t = 1 ... W.

    S_t = momentum_t S_{t-1} - lr_t u_t and A_t = retain_t A_{t-1} + S_t (Titans eqs. 10 and 13), or with Nesterov's
    momentum_t S_t - lr_t u_t in the place of S_t, or nothing where the momentum waits; an empty slot makes no step.
    """
    width = len(lr)
    memory, surprise = np.eye(width + 2)[0], np.eye(width + 2)[1]
    memories, surprises = [], []
    for t in range(width):
        if real is None or real[t]:
            push = -float(lr[t]) * np.eye(width + 2)[2 + t]
            surprise = (float(momentum[t]) * surprise if momentum is not None else 0.0) + push
            step = surprise
            if momentum is not None and coupling == "nesterov":
                step = float(momentum[t]) * surprise + push
            if coupling == "deferred":
                step = np.zeros_like(push)
            memory = (float(retain[t]) if retain is not None else 1.0) * memory + step
        memories.append(memory)
        surprises.append(surprise)
    return np.stack(memories), np.stack(surprises)


def expect(c: Coefficients, head: int, memories: Array, surprises: Array, momentum: bool) -> None:
    close(c.carry[head, :, 0], memories[:, 0])
    close(c.write[head], -memories[:, 2:])
    if not momentum:
        assert c.inertia is None
        assert c.gained is None
        assert c.fade is None
        assert c.push is None
        return
    assert c.inertia is not None
    assert c.gained is not None
    assert c.fade is not None
    assert c.push is not None
    close(c.inertia[head, :, 0], memories[:, 1])
    close(c.fade[head, 0, 0], surprises[-1, 1])
    close(c.push[head, :, 0], -surprises[-1, 2:])
    assert torch.equal(c.gained[head, 0], c.inertia[head, -1])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("decays", [False, True])
@pytest.mark.parametrize("coupling", ["none", "heavy ball", "nesterov", "deferred"])
@pytest.mark.parametrize("width", WIDTHS)
def test_coefficients_are_those_of_the_recurrence(width: int, coupling: Coupling, decays: bool, padded: bool) -> None:
    moves = coupling != "none"
    lr, momentum, retain, real = gates(width)
    given = lr, momentum if moves else None, retain if decays else None, real if padded else None
    found = coefficients(*given, coupling)
    for head in range(2):
        one = [None if g is None else g[head] for g in given]
        memories, surprises = walk(lr[head], one[1], one[2], one[3], coupling)
        expect(found, head, memories, surprises, moves)
        assert torch.equal(found.kept[head, 0], found.carry[head, -1])
        assert torch.equal(found.weight[head, :, 0], found.write[head, -1])


@pytest.mark.parametrize("width", WIDTHS)
def test_products_are_products(width: int) -> None:
    gate = gates(width)[2]
    want = np.zeros((2, width, width))
    for head, t, s in np.ndindex(want.shape):
        if s <= t:
            want[head, t, s] = gate[head, s + 1 : t + 1].prod()
    close(products(gate), want)


def test_products_never_overflow_nor_divide() -> None:
    gate = torch.full((64,), 1e-30, dtype=torch.float32).requires_grad_()
    found = products(gate)
    assert bool(torch.isfinite(found).all())
    assert torch.equal(found.diagonal(), torch.ones(64))
    found.sum().backward()
    assert gate.grad is not None
    assert bool(torch.isfinite(gate.grad).all())


def test_gradients_pass_through_a_gate_of_exactly_0() -> None:
    """The derivative with respect to a shut gate is the product of the others; a cumulative quotient has none."""
    gate = torch.tensor([0.5, 0.0, 0.25, 0.5], dtype=torch.float64, requires_grad=True)
    products(gate)[3, 0].backward()
    assert gate.grad is not None
    assert gate.grad.tolist() == [0.0, 0.25 * 0.5, 0.0, 0.0]


@pytest.mark.parametrize("start", [None, 0, 1])
@pytest.mark.parametrize("width", [1, 2, 7])
def test_a_scan_and_its_gradients_are_those_of_its_expression(width: int, start: int | None) -> None:
    """Gates of exactly 0 and 1 among them; what lies above the diagonal of ``given`` is 0 and stays so."""
    columns = 2 + width
    generator = torch.Generator().manual_seed(width)
    gate = gates(width)[2].requires_grad_()
    own = torch.randn(2, width, width, generator=generator, dtype=torch.float64).requires_grad_()
    leading = torch.randn(2, width, 2, generator=generator, dtype=torch.float64).requires_grad_()
    weights = torch.randn(2, width, columns, generator=generator, dtype=torch.float64)

    def found() -> list[Tensor]:
        rows, last = scan(gate, torch.cat([leading, own.tril()], -1), start)
        total = (rows * weights).sum() + (last * weights[:, 0]).sum()
        return [rows, last, *torch.autograd.grad(total, (gate, leading, own))]

    got = found()
    with second_order():
        want = found()
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    assert not bool(got[0][..., 2:].triu(1).any())


@pytest.mark.parametrize("expressions", [False, True])
@pytest.mark.parametrize("moves", [False, True])
def test_what_is_infinite_above_the_diagonal_reaches_no_gate(moves: bool, expressions: bool) -> None:
    lr, momentum, retain, _ = gates(4)
    given = [gate.requires_grad_() for gate in (lr, momentum, retain)]
    with second_order(expressions):
        found = coefficients(lr, momentum if moves else None, retain, None, "heavy ball" if moves else "none")
    above = torch.ones_like(found.write).triu(1) > 0
    found.write.backward(torch.where(above, torch.inf, 1.0))
    for gate in given if moves else (lr, retain):
        assert gate.grad is not None
        assert bool(gate.grad.isfinite().all())


@pytest.mark.parametrize("moves", [False, True])
def test_before_is_one_slot_earlier(moves: bool) -> None:
    lr, momentum, retain, _ = gates(6)
    after = coefficients(lr, momentum if moves else None, retain, None, "heavy ball")
    earlier = before(after)
    assert torch.equal(earlier.carry[:, 1:], after.carry[:, :-1])
    assert torch.equal(earlier.write[:, 1:], after.write[:, :-1])
    assert torch.equal(earlier.carry[:, 0], torch.ones(2, 1, dtype=torch.float64))
    assert not bool(earlier.write[:, 0].any())
    if moves:
        assert earlier.inertia is not None
        assert after.inertia is not None
        assert torch.equal(earlier.inertia[:, 1:], after.inertia[:, :-1])
        assert not bool(earlier.inertia[:, 0].any())


def test_a_piece_may_be_cut_anywhere() -> None:
    """The coefficients of a whole follow from those of its parts: A_end = carry_2 A_mid + inertia_2 S_mid - ..."""
    lr, momentum, retain, _ = gates(9, seed=3)
    whole = coefficients(lr, momentum, retain, None, "heavy ball")
    parts = [[gate[:, part] for gate in (lr, momentum, retain)] for part in (slice(4), slice(4, 9))]
    first, second = (coefficients(a, b, c, None, "heavy ball") for a, b, c in parts)
    assert whole.inertia is not None
    assert first.inertia is not None
    assert first.fade is not None
    assert second.inertia is not None
    carry = second.carry * first.kept
    inertia = second.carry * first.inertia[:, -1:] + second.inertia * first.fade
    torch.testing.assert_close(whole.carry[:, 4:], carry, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(whole.inertia[:, 4:], inertia, rtol=1e-12, atol=1e-14)
