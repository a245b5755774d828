from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.layers.wirings import floats

from fastweights.core.layout import make_layout
from fastweights.layers import convolution
from fastweights.layers.convolution import ShortConvolution


@pytest.fixture(params=[convolution.PIECE, 2])
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens in one piece, and in pieces shorter than the convolution's reach."""
    monkeypatch.setattr(convolution, "PIECE", request.param)


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize("size", [1, 2, 4])
def test_it_is_a_causal_depthwise_convolution(size: int) -> None:
    layer = ShortConvolution(6, size).double()
    torch.nn.init.normal_(layer.weight)
    x = floats(2, 11, 6)
    y, tail = layer(x, layer.init_state(2), make_layout(torch.zeros(2, dtype=torch.int64), 11))
    kernel = layer.weight.flip(0).T.unsqueeze(1)
    want = F.conv1d(F.pad(x.transpose(1, 2), (size - 1, 0)), kernel, groups=6).transpose(1, 2)
    torch.testing.assert_close(y, want)
    assert torch.equal(tail, x[:, 11 - (size - 1) :])


def test_it_starts_as_the_identity() -> None:
    layer = ShortConvolution(6)
    x = torch.randn(2, 5, 6)
    assert torch.equal(layer(x, layer.init_state(2), make_layout(torch.zeros(2, dtype=torch.int64), 5))[0], x)


@pytest.mark.usefixtures("piece")
def test_its_backward_is_autograd() -> None:
    """Also where a document begins: the taps do not reach over its border."""
    layer = ShortConvolution(3).double()
    torch.nn.init.normal_(layer.weight)
    borders = torch.tensor([0, 4, 5, 9])
    for cu_seqlens in (None, borders):
        layout = make_layout(torch.zeros(1, dtype=torch.int64), 9, cu_seqlens=cu_seqlens)
        x, tail = floats(1, 9, 3).requires_grad_(), layer.init_state(1).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda x, tail, weight, layout=layout: torch.func.functional_call(
                layer, {"weight": weight}, (x, tail, layout)
            )[0],
            (x, tail, layer.weight),
        )


def test_in_bfloat16_a_gradient_is_rounded_once_however_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.randn(1, 4099, 8, dtype=torch.bfloat16)
    weight = torch.randn(4, 8, dtype=torch.bfloat16).requires_grad_()

    def gradient(size: int) -> torch.Tensor:
        monkeypatch.setattr(convolution, "PIECE", size)
        return torch.autograd.grad(convolution.depthwise(whole, weight, []).sum(), weight)[0].float()

    torch.testing.assert_close(gradient(16), gradient(4096), rtol=2**-8, atol=1e-6)
