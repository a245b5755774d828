"""Reading in pieces: the same answers, gates and norms as in one piece."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.train.runs import TINY_MODEL

from fastweights.core import presets
from fastweights.layers.memory import MemoryLayer
from fastweights.models.language_model import LanguageModel
from fastweights.train.config import Probe
from fastweights.train.loss import gate_use
from fastweights.train.probe import run_probe
from fastweights.train.reading import memory_norm, read_rows
from fastweights.train.recall import RecallTask

TASK = RecallTask(symbols=8, pairs=2, queries=2)


def fresh(preset: str = "titans", threshold: float = 0.05) -> LanguageModel:
    torch.manual_seed(0)
    rule = presets.PRESETS[preset]()
    return LanguageModel(replace(TINY_MODEL, rule=rule, depth=2, gate_threshold=threshold)).eval()


@pytest.mark.parametrize("preset", ["titans", "titans_linear"])
def test_pieces_give_what_one_piece_gives(preset: str) -> None:
    model, batch = fresh(preset), TASK.batch(0, 0, 3, 100)
    steps: list[int] = []
    pieces = read_rows(model, batch, tokens=3 * 23, look=1, on_piece=steps.append)
    whole = read_rows(model, batch, tokens=10**6)
    assert steps == [23, 46, 69, 92, 100]
    assert torch.equal(pieces.right, whole.right)
    assert torch.allclose(pieces.norm, whole.norm, rtol=1e-5)
    assert pieces.tokens == whole.tokens == 300
    with torch.no_grad():
        assert pieces.norm_before == whole.norm_before == pytest.approx(float(memory_norm(model.init_state(1))))
    expected = gate_use(model.encode(batch.ids, surprise=True).surprise, model.config.largest_lr, None)
    assert whole.gates == expected
    # The last piece is shorter than the others, so that its tokens count for more.
    assert torch.allclose(torch.tensor(pieces.gates), torch.tensor(expected), atol=0.02)


def test_answers_stand_in_the_order_of_the_rows() -> None:
    model, batch = fresh(), TASK.batch(0, 0, 8, 64)
    logits = model.logits(model.encode(batch.ids).hidden)
    expected = (logits.argmax(-1) == batch.targets)[batch.weights > 0]
    found = read_rows(model, batch, tokens=80).right
    assert torch.equal(found, expected)
    probed = run_probe(model, Probe(name="p", length=64, batch_size=8), TASK, -0x5EED)
    assert float(found.float().mean()) == pytest.approx(probed["accuracy"], abs=1e-4)


def test_a_gate_that_is_never_open_is_shut_for_every_token() -> None:
    model = fresh(threshold=0.5)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, MemoryLayer) and layer.gates is not None:
                layer.gates.weight.zero_()
                layer.gates.bias.fill_(-1.0)
    found = read_rows(model, TASK.batch(0, 0, 2, 64), tokens=32)
    assert found.gates == ((0.0, 0.0), (0.0, 0.0), (1.0, 1.0), (1.0, 1.0))
    assert torch.allclose(found.norm, torch.full((2,), found.norm_before))
