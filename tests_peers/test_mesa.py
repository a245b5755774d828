"""MesaNet (arXiv 2506.05233): fla-core's exact solution, and its step with conjugate gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests_peers.fla_rules import flipped, seq_first
from tests_peers.rules import rule
from tests_peers.sources import fla
from tests_peers.trial import HEADS, KEY, Answer, Inputs, compare, draw
from torch import Tensor

from fastweights.core.engine import init_state, run
from fastweights.core.types import Gates


def start() -> tuple[Inputs, Tensor, Tensor]:
    """Inputs, a positive semidefinite H_kk to begin with, and the parameter of the ridge."""
    given = draw(torch.float32, length=64, value=KEY)
    spread = torch.randn(*given.memory.shape)
    return given, spread @ spread.mT / KEY, torch.randn(HEADS, KEY)


def lamb(ridge: Tensor) -> Tensor:
    """The ridge itself; its floor is that of the published model."""
    return F.softplus(ridge) + 0.25


def ours(given: Inputs, keys: Tensor, ridge: Tensor) -> Answer:
    initial = (torch.zeros(HEADS, KEY, KEY), torch.zeros(HEADS, KEY, KEY), ridge.unsqueeze(1))
    state = init_state(rule("mesa"), initial, given.q.shape[0])._replace(dual=(given.memory, keys))
    result = run(rule("mesa"), initial, given.q, given.k, given.v, Gates(lr=given.lr, retain=given.retain), state)
    return Answer(result.y, result.state.dual)


def test_exact() -> None:
    # H_kk = exp(g) H_kk + beta k k^T, H_kv likewise as [B, H, K, V]; o = H_kv^T (H_kk + diag(lamb))^-1 q, no scale.
    given, keys, ridge = start()
    q, k, v, g, beta = seq_first(given.q, given.k, given.v, given.retain.log(), given.lr)
    y, after_keys, after = fla("mesa_net").naive_mesa_net_exact(
        q, k, v, g, lamb(ridge), beta, keys, *flipped(given.memory)
    )
    theirs = Answer(y.transpose(1, 2), (*flipped(after), after_keys))
    compare("fla-core", "naive_mesa_net_exact", "mesa", ours(given, keys, ridge), theirs)


def test_one_step_at_a_time() -> None:
    # Its 30 iterations stop short of the solution: 1e-5 is added to every denominator.
    given, keys, ridge = start()
    step, answers = fla("mesa_net").naive_mesa_net_decoding_one_step, []
    after_keys, (after,) = keys, flipped(given.memory)
    for t in range(given.q.shape[2]):
        q, k, v, g, beta = (x[:, :, t] for x in (given.q, given.k, given.v, given.retain.log(), given.lr))
        y, after_keys, after = step(q, k, v, g, lamb(ridge), beta, after_keys, after)
        answers.append(y)
    theirs = Answer(torch.stack(answers, 2), (*flipped(after), after_keys))
    note = "30 iterations of conjugate gradients with 1e-5 in the denominators"
    function = "naive_mesa_net_decoding_one_step"
    compare("fla-core", function, "mesa", ours(given, keys, ridge), theirs, tolerance=1e-3, note=note)
