"""TTT-Linear and TTT-MLP (arXiv 2407.04620): the authors' PyTorch code, and fla-core's.

Both have f(x) = x + LN(xW + b), and the loss 1/2 ||LN(kW + b) - (v - k)||^2, which is 1/2 ||f(k) - v||^2: the residual
already takes k off the target. The state is read after the token's write.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests_peers import sources
from tests_peers.rules import rule
from tests_peers.trial import Answer, compare, difference, record_disagreement
from torch import Tensor

from fastweights.core.engine import Result, init_state, run
from fastweights.core.rule import Rule
from fastweights.core.types import Gates, MemoryState

BATCH, HEADS, SIZE, CHUNK, LENGTH = 2, 3, 8, 16, 48
WIDTH = HEADS * SIZE
KINDS = {"ttt_linear": "TTTLinear", "ttt_mlp": "TTTMLP"}
# TTT-MLP's derivative of gelu has constants of eight digits.
LIMIT = {"ttt_linear": 1e-10, "ttt_mlp": 1e-9}


def joined(weight: Tensor, bias: Tensor) -> Tensor:
    """Their weight ``[.., inputs, outputs]`` and bias ``[.., 1, outputs]`` as our matrix for inputs that end in 1."""
    return torch.cat([weight, bias], -2).mT


def answer_by_reader(
    one: Rule, initial: tuple[Tensor, ...], q: Tensor, k: Tensor, v: Tensor, lr: Tensor, factor: Tensor
) -> Answer:
    """Ours where steps also depend on the token that reads, ``W_t = W_0 - factor_t sum_{i <= t} lr_i grad_i``.

    No step size per token does that, so every token is read from a run of its own, from its chunk's start.
    """

    def go(state: MemoryState, first: int, last: int) -> Result:
        some = slice(first, last + 1)
        gates = Gates(lr=lr[:, :, some] * factor[:, :, last : last + 1])
        return run(one, initial, q[:, :, some], k[:, :, some], v[:, :, some], gates, state)

    state, answers = init_state(one, initial, q.shape[0]), []
    for first in range(0, q.shape[2], CHUNK):
        results = [go(state, first, first + t) for t in range(CHUNK)]
        answers += [result.y[:, :, -1] for result in results]
        state = results[-1].state
    return Answer(torch.stack(answers, 2), state.dual)


class Layer:
    """One of their layers in float64, and what it hands to its memory."""

    def __init__(self, name: str, flat: bool) -> None:
        """Random weights and biases; with ``flat``, the factor 1/i of token i in its chunk is made 1 by its offset."""
        ttt = sources.ttt()
        config = ttt.TTTConfig(hidden_size=WIDTH, num_attention_heads=HEADS, mini_batch_size=CHUNK, ttt_base_lr=2.0)
        self.memory = getattr(ttt, KINDS[name])(config, layer_idx=0).double()
        self.maps = ("1",) if name == "ttt_linear" else ("1", "2")
        with torch.no_grad():
            for n in self.maps:
                getattr(self.memory, f"W{n}").mul_(20)
                getattr(self.memory, f"b{n}").normal_()
            self.memory.learnable_ttt_lr_weight.mul_(10)
            self.memory.ttt_norm_weight.uniform_(0.5, 2)
            self.memory.ttt_norm_bias.normal_()
            if flat:
                self.memory.learnable_token_idx.copy_(1 - self.memory.token_idx)
        self.memory.requires_grad_(False)
        self.q, self.k, self.v = torch.randn(3, BATCH, HEADS, LENGTH, SIZE, dtype=torch.float64)
        self.x = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64)

    @property
    def initial(self) -> tuple[Tensor, ...]:
        """Weights with their biases, then the LayerNorm's gain and shift."""
        maps = [joined(getattr(self.memory, f"W{n}"), getattr(self.memory, f"b{n}")) for n in self.maps]
        return (*maps, self.memory.ttt_norm_weight.unsqueeze(1), self.memory.ttt_norm_bias.unsqueeze(1))

    @property
    def lr(self) -> Tensor:
        """ttt_base_lr sigmoid(w x + b) / head_dim."""
        gate = torch.einsum("btc,hc->bht", self.x, self.memory.learnable_ttt_lr_weight[:, 0])
        return 2.0 / SIZE * torch.sigmoid(gate + self.memory.learnable_ttt_lr_bias)

    def answer(self, first: int = 0, last: int = LENGTH, after: Any = None) -> tuple[Answer, Any]:
        """Their answers for some of the tokens, and the state that the next call takes."""
        parts = {f"X{name}": x[:, :, first:last] for name, x in zip("QKV", (self.q, self.k, self.v), strict=True)}
        size = min(CHUNK, last - first)
        inputs = self.memory.get_ttt_inputs(parts | {"X": self.x[:, first:last]}, size, None)
        y, state = self.memory.ttt(inputs, size, after, None)
        dual = tuple(joined(state[f"W{n}_states"], state[f"b{n}_states"]) for n in self.maps)
        return Answer(y.unflatten(-1, (HEADS, SIZE)).transpose(1, 2), dual), state


@pytest.mark.parametrize("name", KINDS)
def test_ttt_with_a_step_size_per_token(name: str) -> None:
    # Two whole chunks and, in a second call, part of a third.
    layer, one, whole, end = Layer(name, flat=True), rule(name), 2 * CHUNK, 2 * CHUNK + 5
    first, state = layer.answer(0, whole)
    second, _ = layer.answer(whole, end, state)
    theirs = Answer(torch.cat([first.y, second.y], 2), second.state)
    q, k, v, lr = (x[:, :, :end] for x in (layer.q, layer.k, layer.v, layer.lr))
    result = run(one, layer.initial, q, k, v, Gates(lr=lr), init_state(one, layer.initial, BATCH))
    ours = Answer(result.y, result.state.dual)
    compare("ttt-lm-pytorch", KINDS[name], name, ours, theirs, LIMIT[name], "its factor 1/i made 1")


@pytest.mark.parametrize("name", KINDS)
def test_ttt_with_its_factor(name: str) -> None:
    # As published: eta[t, i] = lr_i / t is also a factor of the token that reads.
    layer = Layer(name, flat=False)
    theirs, _ = layer.answer()
    factor = layer.memory.token_idx.repeat(LENGTH // CHUNK).expand(BATCH, HEADS, LENGTH)
    ours = answer_by_reader(rule(name), layer.initial, layer.q, layer.k, layer.v, layer.lr, factor)
    compare("ttt-lm-pytorch", KINDS[name], name, ours, theirs, LIMIT[name], "with its factor 1/i")


def test_fla_ttt_linear() -> None:
    # State [B, H, K, V], bias [B, H, 1, V]. Its eta is a factor of the token that reads, as 1/i is in TTT.
    q, k, v = torch.randn(3, BATCH, HEADS, LENGTH, SIZE)
    eta = 0.02 + 0.2 * torch.rand(BATCH, HEADS, LENGTH)
    weight, bias = torch.randn(HEADS, SIZE, SIZE), torch.randn(HEADS, 1, SIZE)
    gain, shift = 0.5 + torch.rand(HEADS, 1, SIZE), torch.randn(HEADS, 1, SIZE)
    y, after, after_bias = sources.fla("ttt").chunk_ttt_linear_ref(
        *(x.transpose(1, 2).clone() for x in (q, k, v)),
        gain.squeeze(1),
        shift.squeeze(1),
        eta.transpose(1, 2).unsqueeze(-1),
        scale=1.0,
        mini_batch_size=CHUNK,
        initial_state=weight.expand(BATCH, -1, -1, -1),
        initial_state_bias=bias.expand(BATCH, -1, -1, -1),
        output_final_state=True,
    )
    y, initial = y.transpose(1, 2), (joined(weight, bias), gain, shift)
    ours = answer_by_reader(rule("ttt_linear"), initial, q, k, v, torch.ones_like(eta), eta)
    # It answers z + LN(z) with z = qW + b, where TTT answers q + LN(z). Turned around: z is y less our LN(z).
    turned = q + gain * F.layer_norm(y - (ours.y - q), (SIZE,), eps=1e-6) + shift
    theirs = Answer(turned, (joined(after, after_bias),))
    compare("fla-core", "chunk_ttt_linear_ref", "ttt_linear", ours, theirs, note="the residual of its answers turned")
    note = "adds its LayerNorm to qW + b, where TTT adds it to q"
    record_disagreement("fla-core", "chunk_ttt_linear_ref", "ttt_linear", "answers", difference(ours.y, y), note)
