"""What a model felt is what its memory layers say, token by token, and the numbers made of it are right."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.small_model import build

from fastweights.core import presets
from fastweights.data.tokenizer import ByteTokenizer
from fastweights.errors import UserError
from fastweights.evaluate import surprise as module
from fastweights.evaluate.surprise import Stream, feel, rank_correlation, surprise_report
from fastweights.models.config import ModelConfig
from fastweights.models.language_model import LanguageModel

BYTES = ByteTokenizer()
A, B = "It was the best of times. " * 40, "Nobody knew what came then, or why! " * 30


def test_the_rank_correlation_is_spearmans() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    # Ties share a rank: 1.5, 1.5, 3 against 1, 2, 3.
    assert rank_correlation([7, 7, 9], [1, 2, 3]) == pytest.approx(1.5 / math.sqrt(1.5 * 2))
    assert math.isnan(rank_correlation([1, 1, 1], [1, 2, 3]))
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=400), rng.normal(size=400)
    ranks = [np.argsort(np.argsort(values)) for values in (one, other)]
    assert rank_correlation(one, other) == pytest.approx(np.corrcoef(ranks[0], ranks[1])[0, 1])


@pytest.mark.parametrize("piece", [7, 1024])
@torch.no_grad()
def test_a_stream_is_what_one_call_feels(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", piece)
    model, ids = build().double().eval(), BYTES.encode_array(A[:100])
    stream = feel(model, BYTES, ids)
    whole = torch.tensor([[BYTES.eos, *ids.tolist()]])
    output = model(whole, surprise=True)
    log_p = torch.log_softmax(output.logits[:, :-1], -1).gather(-1, whole[:, 1:, None])[0, :, 0]
    np.testing.assert_allclose(stream.bits, (-log_p / math.log(2)).numpy(), rtol=1e-5)
    (felt,) = output.surprise
    np.testing.assert_allclose(stream.surprise[0], felt.gradient_norm[0].mean(0).numpy()[1:], rtol=1e-6)
    np.testing.assert_allclose(stream.write[0], felt.lr[0].mean(0).numpy()[1:] / model.config.rule.lr_max, rtol=1e-6)
    np.testing.assert_allclose(stream.forget[0], 1 - felt.retain[0].mean(0).numpy()[1:], rtol=1e-6, atol=1e-12)


def test_switches_and_repetitions_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A made stream: surprise 5 in the first 4 tokens of each topic of 16, 1 elsewhere, halved at each repetition."""
    calls: list[int] = []

    def made(model: object, tokenizer: object, ids: np.ndarray, on_read: object = None) -> Stream:
        calls.append(len(ids))
        place = np.arange(len(ids))
        surprise = np.where(place % 16 < 4, 5.0, 1.0) if len(calls) < 3 else 0.5 ** (place // 8)
        flat = np.full(len(ids), 0.25)
        felt = surprise.astype(np.float64)
        return Stream(felt, felt[None], flat[None], 0 * flat[None])

    monkeypatch.setattr(module, "feel", made)
    model = build()
    report = surprise_report(model, BYTES, [A], [B], tokens=64, topic=16, window=4, passage=8, repetitions=3)
    assert calls == [64, 64, 24]
    assert report.correlation[0] == pytest.approx(1.0)
    around = report.switches[0].surprise
    assert [(one.mean, one.number) for one in around] == [(1, 3), (5, 3), (1, 8), (4, 3)]
    assert [mean.mean for mean in report.switches[0].write] == [0.25, 0.25, 0.25, 0.0]
    assert math.isnan(rank_correlation([1, 1], [1, 2]))
    assert report._replace(correlation=(math.nan,)).to_dict()["correlation"] == [None]
    assert report.repetitions == ((1.0, 0.5, 0.25),)
    assert report.to_dict()["repetitions"] == [[1.0, 0.5, 0.25]]
    along = report.to_dict()["along"]
    assert (along["topic"], along["window"]) == (16, 4)
    assert along["surprise"] == [along["bits"]] == [[5.0, 1.0, 1.0, 1.0] * 4]
    assert (along["write"], along["forget"]) == ([[0.25] * 16], [[0.0] * 16])


def test_intervals_do_not_take_neighbours_for_independent() -> None:
    """A quantity that drifts slowly, as norms do: the interval of a mean that is the same everywhere must hold it."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        drift = np.repeat(rng.normal(size=(24, 16)), 16, axis=1)  # topics of 256 tokens, all of a window alike
        held += abs((mean := module._response(drift, 16).behind).mean) < mean.half
    assert 176 <= held <= 200


def test_what_was_rejected_surprises_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = build().eval(), BYTES.encode_array(A[:20])
    encode = model.encode

    def rejecting(*given: object, **options: object) -> object:
        encoded = encode(*given, **options)  # type: ignore[arg-type]
        (felt,) = encoded.surprise
        norm = felt.gradient_norm.clone()
        norm[..., 4], norm[..., 6] = math.nan, math.inf
        return encoded._replace(surprise=(felt._replace(gradient_norm=norm),))

    monkeypatch.setattr(model, "encode", rejecting)
    stream = feel(model, BYTES, ids)
    assert [int(place) for place in np.flatnonzero(stream.surprise[0] == 0)] == [3, 5]


def test_a_memory_that_corrects_is_less_surprised_by_what_it_has_read() -> None:
    torch.manual_seed(0)
    rule = replace(presets.deltanet(), lr_max=1.0)
    model = LanguageModel(ModelConfig(vocab_size=BYTES.vocab_size, dim=32, heads=2, depth=1, wiring="lmm", rule=rule))
    report = surprise_report(model, BYTES, [A], [B], tokens=64, topic=16, window=4, passage=20, repetitions=4)
    first, *_, last = report.repetitions[0]
    assert last < 0.8 * first


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"window": 6}, "three windows in a topic"),
        ({"tokens": 63}, r"four topics \(64\)"),
        ({"passage": 65}, "a passage in the 64 tokens"),
        ({"repetitions": 1}, "two repetitions"),
        ({"tokens": 5000}, "too few to read"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        surprise_report(build(), BYTES, [A], [B], topic=16, **({"tokens": 64, "window": 4, "passage": 8} | options))  # type: ignore[arg-type]


def test_a_model_without_a_memory_is_refused() -> None:
    model = LanguageModel(ModelConfig(vocab_size=BYTES.vocab_size, dim=16, heads=2, depth=1, wiring="lstm"))
    with pytest.raises(UserError, match="has no memory, so nothing surprises it"):
        surprise_report(model, BYTES, [A], [B])
