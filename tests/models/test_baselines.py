"""Contenders: the same size, the same block, and every property of a layer that reads a stream."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastweights.data.tokenizer import ByteTokenizer
from fastweights.errors import UserError
from fastweights.inference.memory_file import MemoryFileError
from fastweights.inference.session import Session
from fastweights.layers.attention import rotate
from fastweights.layers.conformance import check_layer
from fastweights.layers.full_attention import FullAttention
from fastweights.layers.lstm import LSTM
from fastweights.layers.selective import SelectiveSSM, scan
from fastweights.models.baselines import BASELINES, CONTENDERS, OURS, contender
from fastweights.models.budget import parameter_count
from fastweights.models.config import ModelConfig
from fastweights.models.conformance import check_model
from fastweights.models.language_model import LanguageModel

LIKE = ModelConfig(vocab_size=64, dim=64, depth=2, heads=2, memory_head_dim=16, window=16, segment=32)


@pytest.mark.parametrize("name", CONTENDERS)
def test_contenders_have_the_same_size_and_differ_in_the_mixer_alone(name: str) -> None:
    config = contender(name, LIKE, 170_000)
    assert parameter_count(config) == pytest.approx(170_000, rel=0.02)
    changed = {f.name for f in fields(config) if getattr(config, f.name) != getattr(LIKE, f.name)}
    hope = {"generator_chunk", "levels", "level_order"} if name.startswith("hope") else set()
    assert changed <= {"wiring", "rule", "expansion", "persistent", "start"} | hope
    logits = LanguageModel(config)(torch.randint(0, 64, (2, 9))).logits
    assert logits.shape == (2, 9, 64)
    assert bool(torch.isfinite(logits).all())


def test_every_contender_is_another_model() -> None:
    assert len({contender(name, LIKE).to_json() for name in CONTENDERS}) == len(CONTENDERS) == len(OURS | BASELINES)
    with pytest.raises(UserError, match="did you mean 'deltanet'"):
        contender("deltanett", LIKE)


def test_an_lstm_has_every_property() -> None:
    report = check_layer(LSTM(6), lengths=[1, 7, 16], without=[10])
    assert report.ok, report.table()


def test_a_selective_state_space_has_every_property() -> None:
    report = check_layer(SelectiveSSM(6, states=3), lengths=[1, 7, 16], without=[10])
    assert report.ok, report.table()


def test_full_attention_has_every_property() -> None:
    report = check_layer(FullAttention(8, 2), lengths=[1, 7, 16], without=[10])
    assert report.ok, report.table()


@pytest.mark.parametrize("wiring", ["attention", "window", "lstm", "mamba"])
def test_whole_models_have_every_property(wiring: str) -> None:
    small = ModelConfig(vocab_size=50, dim=16, heads=2, window=5, wiring=wiring)  # type: ignore[arg-type]
    report = check_model(LanguageModel(small), lengths=[1, 7, 20], without=[10])
    assert report.ok, report.table()


def by_hand(layer: FullAttention, x: Tensor) -> Tensor:
    """Llama's attention of one document, by torch's own function."""
    q, k, v = layer.heads.project(x)
    place = torch.arange(x.shape[1])
    y = F.scaled_dot_product_attention(rotate(q, place), rotate(k, place), v, is_causal=True)
    return layer.heads.merge(y)


def test_full_attention_is_softmax_attention_with_rotary_positions() -> None:
    layer = FullAttention(16, 2).double()
    x = torch.randn(3, 11, 16, dtype=torch.float64)
    torch.testing.assert_close(layer(x).y, by_hand(layer, x), rtol=1e-10, atol=1e-10)


def test_an_lstm_is_torchs() -> None:
    layer = LSTM(5).double()
    x = torch.randn(2, 9, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x).y, layer.out(layer.cell(x)[0]), rtol=0, atol=0)


def mamba_by_hand(layer: SelectiveSSM, x: Tensor) -> Tensor:
    """Algorithm 2 of Mamba for one document ``[T, D]``, a token, a channel and a state at a time."""
    u, gate = (layer.into.weight @ x.T).T.split(layer.inner, 1)
    taps = layer.convolution.weight
    mixed = torch.zeros_like(u)
    for t in range(len(u)):
        for back in range(min(len(taps), t + 1)):
            mixed[t] += taps[back] * u[t - back]
    u = F.silu(mixed + layer.shift)
    state = torch.zeros(layer.inner, layer.states, dtype=x.dtype)
    rows = []
    for now, z in zip(u, gate, strict=True):
        low, write, read = (layer.select.weight @ now).split([layer.rank, layer.states, layer.states])
        dt = torch.log1p(torch.exp(layer.step.weight @ low + layer.step.bias))
        state = torch.exp(-dt[:, None] * layer.log_decay.exp()) * state + torch.outer(dt * now, write)
        rows.append(layer.out.weight @ ((state @ read + layer.skip * now) * F.silu(z)))
    return torch.stack(rows)


def test_a_selective_state_space_is_mambas() -> None:
    layer = SelectiveSSM(6, states=3).double()
    torch.nn.init.normal_(layer.convolution.weight)
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    expected = torch.stack([mamba_by_hand(layer, row) for row in x])
    torch.testing.assert_close(layer(x).y, expected, rtol=1e-10, atol=1e-12)


def test_a_huge_token_of_a_selective_state_space_spoils_no_other_document_and_no_later_call() -> None:
    layer = SelectiveSSM(6, states=3)
    x = torch.randn(1, 6, 6)
    x[0, 2] = 1e30
    reading = layer(x, cu_seqlens=torch.tensor([0, 3, 6]))
    torch.testing.assert_close(reading.y[:, 3:], layer(x[:, 3:]).y)
    assert bool(layer(x[:, :2], layer(x[:, :3]).state).y.isfinite().all())


def test_the_gradient_of_the_scan_is_autograds() -> None:
    shapes = (2, 5, 3, 2), (2, 5, 3, 2), (2, 3, 2)
    parts = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(scan, parts)


@pytest.mark.parametrize("wiring", ["attention", "window", "lstm", "mamba"])
def test_a_session_reads_and_asks_and_saves_no_memory(wiring: str, tmp_path: object) -> None:
    tokenizer = ByteTokenizer()
    config = ModelConfig(vocab_size=tokenizer.vocab_size, dim=16, heads=2, wiring=wiring)  # type: ignore[arg-type]
    session = Session(LanguageModel(config), tokenizer)
    session.read("One of the special magic numbers is 7. " * 9)
    assert session.ask("What is it?", max_tokens=3).ids
    with pytest.raises(MemoryFileError, match="has no memory to save"):
        session.save(f"{tmp_path}/a.memory")
