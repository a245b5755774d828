"""Mamba's mixer in transformers beside ours: outputs and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests_peers.sources import transformers
from tests_peers.trial import Answer, compare, compare_outer_gradients, outer_gradients
from torch import nn

from fastweights.layers.selective import SelectiveSSM

DIM, STATES = 32, 8


def pair() -> tuple[Any, SelectiveSSM]:
    """The two with the same numbers; theirs lists the convolution's taps from the earliest token on."""
    torch.manual_seed(0)
    theirs = transformers("mamba").MambaMixer(transformers("mamba").MambaConfig(hidden_size=DIM, state_size=STATES), 0)
    theirs, ours = theirs.double(), SelectiveSSM(DIM, STATES).double()
    nn.init.normal_(theirs.A_log)
    nn.init.normal_(theirs.D)
    ours.load_state_dict(
        {
            "into.weight": theirs.in_proj.weight,
            "convolution.weight": theirs.conv1d.weight[:, 0].flip(1).T,
            "shift": theirs.conv1d.bias,
            "select.weight": theirs.x_proj.weight,
            "step.weight": theirs.dt_proj.weight,
            "step.bias": theirs.dt_proj.bias,
            "log_decay": theirs.A_log,
            "skip": theirs.D,
            "out.weight": theirs.out_proj.weight,
        }
    )
    return theirs, ours


@pytest.mark.parametrize("tokens", [1, 3, 50])
def test_mamba(tokens: int) -> None:
    theirs, ours = pair()
    x = torch.randn(2, tokens, DIM, dtype=torch.float64, requires_grad=True)
    answers = Answer(ours(x).y, ()), Answer(theirs(x), ())
    # Theirs computes what decays in float32, whatever the inputs.
    compare("transformers", "MambaMixer", "mamba", *answers, tolerance=1e-6)
    mine = outer_gradients(answers[0].y, [x, ours.into.weight, ours.log_decay, ours.step.bias])
    found = outer_gradients(answers[1].y, [x, theirs.in_proj.weight, theirs.A_log, theirs.dt_proj.bias])
    compare_outer_gradients("transformers", "MambaMixer", "mamba", mine, found, 1e-5)
