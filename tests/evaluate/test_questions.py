"""What a model is asked is counted right, and a reset comes just before the first question of each row."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest
import torch
from tests.evaluate.small_grid import LIKE, RECALL
from torch import Tensor, nn

from fastweights.evaluate.questions import Score, ask, first_asked, read_after_reset, state_after
from fastweights.models.baselines import contender
from fastweights.models.controls import RESET, forget
from fastweights.models.language_model import Encoded, LanguageModel
from fastweights.tasks.needle_rows import RowMix
from fastweights.train.config import Probe
from fastweights.train.needle import NeedleTask
from fastweights.train.recall import RecallTask
from fastweights.train.state_tracking import ParityTask
from fastweights.train.task import Batch

PROBE = Probe(name="asked", length=64, batch_size=8, batches=16)


class Oracle(LanguageModel):
    """Says what it was told to, whatever it reads: one id a position, in the order of the batches and their rows."""

    def __init__(self, says: list[Tensor]) -> None:
        super().__init__(LIKE)
        self.says = torch.cat(says)

    def encode(self, ids: Tensor, *args: object, **options: object) -> Encoded:
        said, self.says = self.says[: len(ids)], self.says[len(ids) :]
        return Encoded(nn.functional.one_hot(said, LIKE.vocab_size).float(), (), (), None)

    def logits(self, hidden: Tensor) -> Tensor:
        return 50.0 * hidden


def batches() -> list[Batch]:
    return [RECALL.batch(0x7E57, index, PROBE.batch_size, PROBE.length) for index in range(PROBE.batches)]


@pytest.mark.parametrize(("measure", "value"), [("right", 1.0), ("exact", 1.0), ("bits", 0.0)])
def test_an_oracle_is_always_right(measure: str, value: float) -> None:
    score = ask(Oracle([batch.targets for batch in batches()]), PROBE, RECALL, measure)  # type: ignore[arg-type]
    assert score is not None
    assert (score.tokens, score.value) == (64, value)
    assert score.low <= value <= score.high
    assert score.asked == sum(int((batch.weights > 0).sum()) for batch in batches())


def test_a_constant_answer_is_at_chance() -> None:
    says = [torch.full_like(batch.targets, 9) for batch in batches()]
    score = ask(Oracle(says), PROBE, RECALL, "right")
    assert score is not None
    nine = [(batch.targets == 9)[batch.weights > 0].float() for batch in batches()]
    assert score.value == pytest.approx(float(torch.cat(nine).mean()), abs=1e-5)
    assert score.low < 1 / 8 < score.high


def test_whole_answers_and_tokens_of_them_are_counted_apart() -> None:
    task = NeedleTask(mix=RowMix(text=0.0, dense=0.0))
    probe = Probe(name="asked", length=256, batch_size=2)
    batch = task.batch(0x7E57, 0, 2, 256)
    torch.manual_seed(0)
    model = LanguageModel(replace(LIKE, vocab_size=4096)).eval()
    found: dict[str, Score | None] = {measure: ask(model, probe, task, measure) for measure in ("right", "exact")}
    assert found["right"] is not None
    assert found["exact"] is not None
    assert batch.answers is not None
    assert found["exact"].asked == int(batch.answers.amax(1).sum()) < found["right"].asked


@torch.no_grad()
@pytest.mark.parametrize("at_once", [1, 1300, 32_768])
def test_bits_are_the_mean_loss_in_bits(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastweights.evaluate.questions._AT_ONCE", at_once)
    torch.manual_seed(0)
    model = LanguageModel(LIKE).eval()
    losses = []
    for batch in batches():
        log_p = torch.log_softmax(model(batch.ids).logits, -1).gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)
        losses.append(float(-(log_p * batch.weights).sum() / batch.weights.sum() / math.log(2)))
    score = ask(model, PROBE, RECALL, "bits")
    assert score is not None
    assert score.value == pytest.approx(statistics.mean(losses), rel=1e-4)
    assert score.high - score.value == pytest.approx(1.96 * statistics.stdev(losses) / 4, rel=1e-2)


class Padded(RecallTask):
    """Every other batch begins with padding."""

    def batch(self, seed: int, index: int, batch_size: int, length: int) -> Batch:
        batch = super().batch(seed, index, batch_size, length)
        real = (torch.arange(length) >= 8 * (index % 2)).expand(batch_size, length)
        return replace(batch, mask=real if index % 2 else None, weights=batch.weights * real)


@pytest.mark.parametrize("control", ["", RESET])
def test_it_does_not_matter_how_many_batches_are_read_at_once(control: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = LanguageModel(contender("lmm", LIKE)).double().eval()
    task = Padded(symbols=RECALL.symbols, pairs=RECALL.pairs, queries=RECALL.queries)
    found = []
    for at_once in (1, 1300, 32_768):
        monkeypatch.setattr("fastweights.evaluate.questions._AT_ONCE", at_once)
        found.append([ask(model, PROBE, task, measure, control) for measure in ("right", "bits")])
    assert found[0] == found[1] == found[2]
    assert found[0] != [ask(model, PROBE, RECALL, measure, control) for measure in ("right", "bits")]


@torch.no_grad()
def test_a_reset_leaves_the_memory_nothing_of_what_stood_before_the_question() -> None:
    torch.manual_seed(0)
    config = replace(contender("lmm", LIKE), convolution=1)
    model, batch = LanguageModel(config).double().eval(), batches()[0]
    start = first_asked(batch)
    assert bool((start >= 48).all())
    other = replace(batch, ids=batch.ids.clone())
    for row, at in enumerate(start.tolist()):
        other.ids[row, :at] = 3
        assert float(batch.weights[row, at]) > 0
        assert not bool(batch.weights[row, :at].any())
    hidden, again = read_after_reset(model, batch), read_after_reset(model, other)
    asked = batch.weights > 0
    torch.testing.assert_close(hidden[asked], again[asked], rtol=0, atol=0)
    plain = model.encode(batch.ids).hidden
    before = torch.arange(64) < start[:, None]
    torch.testing.assert_close(hidden[before], plain[before])
    assert not torch.allclose(hidden[asked], plain[asked])


@pytest.mark.parametrize("name", ["lmm", "mac", "mal", "hope", "hope_attention"])
@torch.no_grad()
def test_a_reset_is_what_two_readings_of_all_positions_say(name: str) -> None:
    """Rows have padding inside and are asked at different places."""
    torch.manual_seed(0)
    model = LanguageModel(contender(name, LIKE)).double().eval()
    batch = RECALL.batch(0, 0, 4, 64)
    mask = torch.ones(4, 64, dtype=torch.bool)
    mask[1, 10:20] = mask[2, :7] = False
    late = torch.arange(64) >= torch.tensor([[30], [34], [45], [39]])
    batch = replace(batch, mask=mask, weights=batch.weights * late)
    start = first_asked(batch)
    assert len(set(start.tolist())) > 1
    before = torch.arange(64) < start[:, None]
    read = model.encode(batch.ids, mask=before & mask)
    after = model.encode(batch.ids, forget(model, read.state), mask=~before & mask)
    wanted = torch.where(before[..., None], read.hidden, after.hidden)
    torch.testing.assert_close(read_after_reset(model, batch)[mask], wanted[mask])


def test_a_row_that_is_asked_at_once_has_nothing_to_be_reset() -> None:
    at_once = replace(PROBE, length=3, batches=1)
    model = LanguageModel(contender("lmm", replace(LIKE, vocab_size=3))).eval()
    assert ask(model, at_once, ParityTask(), "right", RESET) is None


def test_a_reset_is_no_control_where_rows_are_asked_all_along() -> None:
    task = ParityTask()
    model = LanguageModel(contender("lmm", replace(LIKE, vocab_size=3))).eval()
    assert ask(model, PROBE, task, "right", RESET) is None
    assert ask(LanguageModel(contender("lmm", LIKE)).eval(), PROBE, RECALL, "right", RESET) is not None


def test_the_state_is_all_that_is_carried_along() -> None:
    sizes = {name: LanguageModel(contender(name, LIKE)) for name in ("lstm", "transformer++", "lmm")}
    assert state_after(sizes["lstm"], 9) == 2 * 16 * 4 + 8
    grown = state_after(sizes["transformer++"], 20) - state_after(sizes["transformer++"], 10)
    assert grown == 10 * (2 * 16 + 2) * 4
    assert state_after(sizes["lmm"], 20) == state_after(sizes["lmm"], 10) > 0
