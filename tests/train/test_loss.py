from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.train.runs import TINY_MODEL
from torch import Tensor

from fastweights.core import presets
from fastweights.core.types import Surprise
from fastweights.models.language_model import LanguageModel
from fastweights.train.loss import count_answers, gate_use, hint_loss, token_losses, weighted_mean, write_price
from fastweights.train.task import Batch


@pytest.fixture
def batch() -> Batch:
    ids = torch.randint(0, 24, (3, 10))
    weights = torch.rand(3, 10) * (torch.rand(3, 10) < 0.5)
    return Batch(ids, torch.randint(0, 24, (3, 10)), weights)


def felt(lr: Tensor, retain: Tensor) -> Surprise:
    nothing = torch.zeros_like(lr)
    return Surprise(nothing, nothing, lr, nothing, retain, nothing.bool())


def test_the_loss_is_the_weighted_mean_over_all_logits(batch: Batch) -> None:
    model = LanguageModel(TINY_MODEL)
    output = model(batch.ids)
    expected = -output.logits.log_softmax(-1).gather(-1, batch.targets[..., None])[..., 0]
    losses, guesses = token_losses(model, model.encode(batch.ids).hidden, batch)
    wanted = (expected * batch.weights).sum() / batch.weights.sum()
    torch.testing.assert_close(weighted_mean(losses, batch), wanted)
    assert torch.equal(guesses, output.logits.argmax(-1)[batch.weights > 0])


def test_smoothed_labels_give_a_share_to_the_whole_vocabulary(batch: Batch) -> None:
    model = LanguageModel(TINY_MODEL)
    hidden = model.encode(batch.ids).hidden
    chosen = batch.weights > 0
    logs = model.logits(hidden[chosen]).log_softmax(-1)
    target = F.one_hot(batch.targets[chosen], logs.shape[-1]).to(logs)
    wanted = -((0.9 * target + 0.1 / logs.shape[-1]) * logs).sum(-1)
    torch.testing.assert_close(token_losses(model, hidden, batch, 0.1)[0], wanted)


def test_logits_are_computed_at_the_chosen_positions_only(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LanguageModel(TINY_MODEL)
    seen: list[torch.Size] = []
    logits = model.logits

    def watched(hidden: Tensor) -> Tensor:
        seen.append(hidden.shape)
        return logits(hidden)

    monkeypatch.setattr(model, "logits", watched)
    token_losses(model, model.encode(batch.ids).hidden, batch)
    assert seen == [torch.Size([int((batch.weights > 0).sum()), 16])]


def test_a_batch_without_chosen_positions_costs_nothing_and_has_a_gradient(batch: Batch) -> None:
    model = LanguageModel(TINY_MODEL)
    empty = replace(batch, weights=torch.zeros(3, 10))
    losses, guesses = token_losses(model, model.encode(batch.ids).hidden, empty)
    loss = weighted_mean(losses, empty)
    loss.backward()
    assert loss.item() == 0.0
    assert count_answers(guesses, empty).chosen == 0


def test_the_price_is_the_mean_use_over_layers_heads_and_real_tokens() -> None:
    lr = torch.tensor([[[0.5, 1.0, 9.0]]])
    retain = torch.tensor([[[1.0, 0.5, 0.0]]])
    mask = torch.tensor([[True, True, False]])
    idle = felt(torch.zeros(1, 1, 3), torch.ones(1, 1, 3))
    price = write_price((felt(lr, retain), idle), largest_lr=(0.5,), mask=mask)
    assert price.item() == pytest.approx(((1.0 + 2.0 + 0.5) / 2 + 0) / 2)
    use = gate_use((felt(lr, retain), idle), largest_lr=(0.5,), mask=mask)
    assert use.write == pytest.approx((1.5, 0.0))
    assert use.forget == pytest.approx((0.25, 0.0))
    assert use.shut == pytest.approx((0.0, 1.0))


def test_a_wide_open_gate_costs_1_in_every_head_however_far_it_reaches() -> None:
    lr = torch.tensor([[[0.8, 0.8], [0.2, 0.1]]])
    use = gate_use((felt(lr, torch.ones(1, 2, 2)),), largest_lr=(0.8, 0.2), mask=None)
    assert use.write == pytest.approx(((1.0 + 1.0 + 1.0 + 0.5) / 4,))


@pytest.mark.parametrize(
    "change", [{"wiring": "attention"}, {"wiring": "lmm", "rule": presets.softmax_attention()}], ids=["wiring", "rule"]
)
def test_where_no_gate_is_everything_is_written_whole(change: dict[str, Any]) -> None:
    config = replace(TINY_MODEL, memory_heads=4, memory_head_dim=8, lr_last=0.5, **change)
    felt = LanguageModel(config).encode(torch.randint(0, 24, (2, 12)), surprise=True).surprise
    assert len(felt) == config.depth
    assert gate_use(felt, config.largest_lr, None).write == (1.0,) * config.depth


def test_the_price_reaches_the_gates_and_ignores_padding() -> None:
    model = LanguageModel(TINY_MODEL)
    ids = torch.randint(0, 24, (2, 12))
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 6:] = False
    price = write_price(model.encode(ids, mask=mask, surprise=True).surprise, (1.0,), mask)
    short = model.encode(ids[1:, :6], surprise=True).surprise
    full = model.encode(ids[:1], surprise=True).surprise
    expected = (12 * write_price(full, (1.0,), None) + 6 * write_price(short, (1.0,), None)) / 18
    torch.testing.assert_close(price, expected)
    price.backward()
    gradients = [p.grad for name, p in model.named_parameters() if "gates" in name]
    assert gradients
    assert all(g is not None and bool((g != 0).any()) for g in gradients)


def test_answers_are_counted_token_by_token_and_whole() -> None:
    targets = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]])
    weights = torch.tensor([[0.0, 1, 1, 0, 1, 1], [1.0, 1, 1, 1, 1, 0.5]])
    answers = torch.tensor([[0, 1, 1, 0, 2, 2], [0, 0, 0, 7, 7, 7]])
    ids = torch.zeros_like(targets)
    chosen = weights > 0
    guesses = targets.clone()
    guesses[0, 2] = guesses[1, 5] = guesses[1, 0] = 0
    counts = count_answers(guesses[chosen], Batch(ids, targets, weights, answers=answers))
    assert (counts.right, counts.chosen, counts.exact, counts.answers) == (5, 7, 1, 3)
    assert counts.right_at[:4] == (3, 2, 0, 0)
    assert counts.chosen_at[:4] == (3, 3, 1, 0)


def test_runs_of_weights_are_the_answers_when_none_are_named() -> None:
    targets = torch.zeros(2, 12, dtype=torch.int64)
    weights = torch.ones(2, 12)
    weights[0, 5] = 0
    counts = count_answers(targets[weights > 0], Batch(targets, targets, weights))
    assert (counts.answers, counts.exact, counts.chosen) == (3, 3, 23)
    assert counts.chosen_at == (3, 3, 3, 3, 3, 2, 1, 1)


def test_interleaved_answers_are_told_apart() -> None:
    targets = torch.tensor([[1, 1, 1, 1]])
    answers = torch.tensor([[2, 1, 2, 1]])
    counts = count_answers(torch.tensor([1, 0, 1, 0]), Batch(targets, targets, torch.ones(1, 4), answers=answers))
    assert (counts.answers, counts.exact, counts.right) == (2, 1, 2)
    assert counts.right_at[:2] == (1, 1)


def test_the_hint_loss_is_the_mean_over_positions_of_the_mean_over_their_hints() -> None:
    model = LanguageModel(TINY_MODEL)
    tapped = torch.randn(2, 3, 16)
    hints = torch.tensor([[[1, 2], [-1, -1], [3, -1]], [[-1, -1], [4, 4], [-1, 5]]])
    known = tapped * tapped.pow(2).mean(-1, keepdim=True).add(torch.finfo(torch.float32).eps).rsqrt()
    surprise = -(known @ model.embedding.weight.T).log_softmax(-1)
    places = [(0, 0, (1, 2)), (0, 2, (3,)), (1, 1, (4, 4)), (1, 2, (5,))]
    expected = sum(sum(float(surprise[b, t, i].detach()) for i in ids) / len(ids) for b, t, ids in places) / 4
    assert hint_loss(model, torch.eye(16), tapped, hints).item() == pytest.approx(expected, rel=1e-5)
    assert hint_loss(model, torch.eye(16), tapped, hints.clamp_max(-1)).item() == 0.0
