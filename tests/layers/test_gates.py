from __future__ import annotations

import pytest
import torch

from fastweights.layers.gates import exact_gate, gate_bias


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.5])
def test_gates_reach_exactly_zero_and_one(threshold: float) -> None:
    z = torch.tensor([-200.0, -40.0, 40.0, 200.0])
    low, _, _, high = exact_gate(z, threshold).tolist()
    assert (low, high) == (0.0, 1.0)
    if threshold:
        assert exact_gate(z, threshold).tolist() == [0.0, 0.0, 1.0, 1.0]
        assert exact_gate(torch.logit(torch.tensor(threshold * 0.99)), threshold).item() == 0.0


def test_a_gate_between_the_ends_is_the_rescaled_sigmoid() -> None:
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)
    torch.testing.assert_close(exact_gate(z, 0.1), (torch.sigmoid(z) - 0.1) / 0.9)
    assert (exact_gate(torch.linspace(-50, 50, 1001), 0.05) <= 1.0).all()


def test_the_gradient_is_straight_through_so_a_shut_gate_can_open() -> None:
    z = torch.tensor([-6.0, -3.5, 0.0, 3.0], dtype=torch.float64, requires_grad=True)
    y = exact_gate(z, 0.05)
    assert y[:2].tolist() == [0.0, 0.0]
    (grad,) = torch.autograd.grad(y.sum(), z)
    s = torch.sigmoid(z.detach())
    torch.testing.assert_close(grad, s * (1 - s) / 0.95)


@pytest.mark.parametrize("value", [0.01, 0.5, 0.99])
def test_the_bias_of_a_value_gives_the_value(value: float) -> None:
    assert exact_gate(torch.tensor(gate_bias(value, 0.05), dtype=torch.float64), 0.05).item() == pytest.approx(value)


def test_an_open_gate_is_exactly_one_at_every_threshold() -> None:
    z = torch.tensor([-200.0, 200.0])
    for threshold in range(1000):
        assert exact_gate(z, threshold / 1000).tolist() == [0.0, 1.0]
