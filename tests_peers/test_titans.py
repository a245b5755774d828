"""Titans: titans-unofficial token by token, and what of fla-core's functions is close to it or wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests_peers import fla_rules
from tests_peers.sources import fla
from tests_peers.trial import (
    Answer,
    answer,
    compare,
    compare_outer_gradients,
    difference,
    draw,
    outer_gradients,
    record_disagreement,
)
from torch import Tensor
from torch.autograd import grad

from fastweights.core import presets
from fastweights.core.algorithm import GradientDescent
from fastweights.core.architecture import MLP, Matrix, Residual
from fastweights.core.bias import L2
from fastweights.core.engine import init_state, run
from fastweights.core.retention import NoRetention
from fastweights.core.rule import Rule
from fastweights.core.types import Gates

EPS = 1e-6


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_titans_unofficial(depth: int, clip: float | None) -> None:
    # NeuralMemoryModule projects its own keys, values and gates; ours is given what it computes. Its memory is an MLP
    # with ReLU and biases, read before the write, and its loss ||M(k) - v||^2 has no half. It adds 1e-6 to the norm it
    # clips.
    from titans.utils.memory import NeuralMemoryModule

    size, length = 8, 40
    peer = NeuralMemoryModule(size, memory_depth=depth, max_grad_norm=clip).double()
    x = torch.randn(2, length, size, dtype=torch.float64)
    y, state = peer(x)
    parts = [joined(*pair).unsqueeze(1) for part in state for pair in zip(part[::2], part[1::2], strict=True)]
    theirs = Answer(y.unsqueeze(1), tuple(parts))

    memory = MLP(depth, expansion=1.0, activation="relu", bias=True)
    rule = replace(presets.titans_linear(), architecture=memory, bias=L2(half=False), read="before", clip=clip)
    q, k = (F.normalize(w(x), dim=-1).unsqueeze(1) for w in (peer.W_Q, peer.W_K))
    theta, eta = (torch.sigmoid(gate(x)).mT for gate in (peer.theta_proj, peer.eta_proj))
    gates = Gates(lr=theta, momentum=eta, retain=1 - torch.sigmoid(peer.alpha_proj(x) - 4.0).mT)
    initial = tuple(joined(layer.weight, layer.bias).unsqueeze(0) for layer in peer.memory_layers)
    result = run(rule, initial, q, k, peer.W_V(x).unsqueeze(1), gates, init_state(rule, initial, 2))
    ours = Answer(result.y, (*result.state.dual, *result.state.momentum))

    limit = 1e-10 if clip is None else 1e-5
    function = f"NeuralMemoryModule(memory_depth={depth}, max_grad_norm={clip})"
    label = f"titans_linear on an MLP of depth {depth}"
    compare("titans-unofficial", function, label, ours, theirs, limit)
    # Every parameter of theirs, through every write.
    slopes = [outer_gradients(found.y, list(peer.parameters())) for found in (ours, theirs)]
    compare_outer_gradients("titans-unofficial", function, label, slopes[0], slopes[1], limit)


def joined(weight: Tensor, bias: Tensor) -> Tensor:
    """A weight and a bias as one matrix for inputs that end in 1."""
    return torch.cat([weight, bias.unsqueeze(-1)], -1)


def test_fla_comba_erases_before_it_decays() -> None:
    # Comba's chunked form takes the error at the undecayed memory: linear Titans without momentum.
    given = draw(torch.float32)
    rule = replace(presets.titans_linear(), algorithm=GradientDescent())
    ours = answer(rule, given)
    compare("fla-core", "naive_chunk_comba", "titans_linear without momentum", ours, fla_rules.naive_chunk_comba(given))
    # The token-by-token form beside it decays first, as Gated DeltaNet does; the two are not the same rule.
    apart = difference(ours.y, fla_rules.naive_recurrent_comba(given).y)
    assert apart > 1e-2
    note = "decays before it erases, unlike fla-core's chunked form and kernels; it equals gated_deltanet"
    record_disagreement("fla-core", "naive_recurrent_comba", "titans_linear without momentum", "answers", apart, note)


def test_fla_momentum_in_chunks_where_gates_are_mild() -> None:
    # It computes log(beta + 1e-6), which alone costs some 1e-6.
    given = draw(torch.float32)
    mild = given._replace(momentum=0.5 + given.momentum / 2)
    theirs = fla_rules.chunk_momentum_delta_rule_ref(mild)
    ours = answer(presets.titans_linear(), mild)
    note = "mild gates; it adds 1e-6 to a gate"
    compare("fla-core", "chunk_momentum_delta_rule_ref", "titans_linear", ours, theirs, tolerance=2e-5, note=note)


def test_fla_momentum_in_chunks_loses_accuracy_where_momentum_fades_fast() -> None:
    given = draw(torch.float32)
    ours = answer(presets.titans_linear(), given)
    assert difference(ours.y, fla_rules.recurrent_momentum_delta_rule_ref(given).y) < 1e-5
    apart = difference(ours.y, fla_rules.chunk_momentum_delta_rule_ref(given).y)
    assert apart > 1e-2
    note = "momentum gates down to 0.1: differs from its own token-by-token form, with which ours agrees"
    record_disagreement("fla-core", "chunk_momentum_delta_rule_ref", "titans_linear", "answers", apart, note)


def test_fla_titans_has_a_wrong_inner_gradient() -> None:
    # One token with theta 1, alpha 0 and eta 0: the memory's change is minus the inner gradient. Its target v - k for
    # LN(kM) is v for k + LN(kM), our residual memory. In its LayerNorm's backward a division by rstd * D covers one of
    # three terms, so that the gradient is about D times too long.
    size = 64
    memory = torch.randn(1, 1, size, size)
    k, v = F.normalize(torch.randn(1, 1, 1, size), dim=-1), torch.randn(1, 1, 1, size)
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    gain, shift = torch.ones(1, size), torch.zeros(1, size)
    run_peer = fla("titans").chunk_titans_linear_ref
    _, after = run_peer(
        *(x.transpose(1, 2) for x in (k, k, v)),
        gain,
        shift,
        *(x.transpose(1, 2) for x in (one, zero, zero)),
        eps=EPS,
        initial_state=memory,
        output_final_state=True,
        use_chunk=False,
    )
    theirs = memory - after

    leaf = memory.clone().requires_grad_()
    loss = (F.layer_norm(k @ leaf, (size,), eps=EPS) - (v - k)).square().sum()
    (truth,) = grad(loss, leaf)

    architecture = Residual(Matrix(), eps=EPS)
    rule = Rule(architecture, L2(half=False), NoRetention(), GradientDescent(), chunk_size=1, clip=None)
    initial = (memory[0].mT,)
    ours = run(rule, initial, k, k, v, Gates(lr=one[..., 0]), init_state(rule, initial, 1)).state.dual[0]
    assert difference((memory.mT - ours).mT, truth) < 1e-5
    wrong = ((theirs - truth).norm() / truth.norm()).item()
    assert wrong > 10
    note = "relative error of the inner gradient against torch.autograd, with which ours agrees"
    record_disagreement("fla-core", "chunk_titans_linear_ref", "titans with a residual matrix", "gradient", wrong, note)
