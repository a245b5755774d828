"""Vectors of unit length, and what has none."""

from __future__ import annotations

import torch

from fastweights.layers.norm import SHORTEST, unit


def test_a_vector_has_unit_length_unless_it_is_next_to_nothing() -> None:
    x = torch.tensor([[3.0, 4.0], [-SHORTEST, 0.0], [0.0, SHORTEST / 4], [0.0, 0.0]])
    torch.testing.assert_close(unit(x), torch.tensor([[0.6, 0.8], [-1.0, 0.0], [0.0, 0.25], [0.0, 0.0]]))
    assert unit(x.bfloat16()).dtype == torch.float32
    assert unit(x.double()).dtype == torch.float64


def test_nothing_has_a_bounded_gradient_and_a_second_one() -> None:
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(unit(x)[0], x, create_graph=True)
    torch.testing.assert_close(first, torch.tensor([1 / SHORTEST, 0.0, 0.0], dtype=torch.float64))
    (second,) = torch.autograd.grad(first.sum(), x)
    assert not second.any()
    other = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit, other)
    assert torch.autograd.gradgradcheck(unit, other)
