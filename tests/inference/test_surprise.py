"""Surprise in bounded memory: quantiles, a curve and passages agree with the whole stream."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fastweights.core.types import Surprise
from fastweights.inference.header import QUANTILES
from fastweights.inference.surprise import CURVE, PASSAGES, WINDOW, Floats, SurpriseLog, surprise_of
from fastweights.models.language_model import Encoded


def observed(values: Floats, piece: int) -> SurpriseLog:
    """The log of one row that has seen `values`, token t being `t % 251`."""
    log = SurpriseLog.empty(1)
    ids = (np.arange(len(values)) % 251).astype(np.int32)
    for start in range(0, len(values), piece):
        part = values[None, start : start + piece]
        log = log.observe([ids[start : start + piece]], part, np.zeros(part.shape, np.bool_))
    return log


def stream(count: int) -> Floats:
    return np.random.default_rng(1).lognormal(-2, 2, count)


def test_quantiles_are_good_to_five_percent() -> None:
    values = stream(20_000)
    found = observed(values, 1000).quantiles()
    assert list(found) == [str(level) for level in QUANTILES]
    for level in QUANTILES:
        assert found[str(level)][0] == pytest.approx(np.quantile(values, level), rel=0.05)


def test_quantiles_of_nothing_and_of_zeros() -> None:
    assert SurpriseLog.empty(2).quantiles()["0.5"] == (None, None)
    assert observed(np.zeros(10), 4).quantiles()["0.99"] == (0.0,)
    assert observed(np.full(10, 1e300), 4).quantiles()["0.5"][0] is not None


@pytest.mark.parametrize("count", [1, 100, CURVE, CURVE + 1, 10_000])
def test_the_curve_is_the_mean_and_the_peak_of_its_tokens(count: int) -> None:
    values = stream(count)
    curve = observed(values, 384).curve()
    assert len(curve.mean) <= CURVE
    assert curve.width & (curve.width - 1) == 0
    parts = [values[start : start + curve.width] for start in range(0, count, curve.width)]
    np.testing.assert_allclose(curve.mean, [part.mean() for part in parts], rtol=1e-12)
    np.testing.assert_array_equal(curve.peak, [part.max() for part in parts])


def test_planted_passages_are_found_with_their_places() -> None:
    values = stream(5000) * 1e-3
    for place in (700, 2222, 4100):
        values[place : place + 10] += place
    log = observed(values, 512)
    found = log.passages(0, lambda ids: ",".join(map(str, ids)))
    assert len(found) <= PASSAGES
    for passage, place in zip(found, (4100, 2222, 700), strict=False):
        assert passage.position <= place
        assert place + 10 <= passage.position + passage.tokens
        assert passage.tokens <= WINDOW
        ids = [int(token) for token in passage.text.split(",")]
        assert ids == [(passage.position + offset) % 251 for offset in range(passage.tokens)]
        assert passage.surprise == pytest.approx(values[passage.position :][: passage.tokens].mean())


def test_passages_do_not_overlap_and_fall() -> None:
    found = observed(stream(20_000), 1000).passages(0, str)
    assert len(found) == PASSAGES
    places = sorted(passage.position for passage in found)
    assert all(after - before >= WINDOW for before, after in itertools.pairwise(places))


def test_a_log_is_never_changed_by_what_follows() -> None:
    log = observed(stream(300), 100)
    before = [part.copy() for part in log]
    log.observe([np.arange(50, dtype=np.int32)], np.ones((1, 50)), np.ones((1, 50), np.bool_))
    for one, other in zip(before, log, strict=True):
        np.testing.assert_array_equal(one, other)


def test_rows_are_apart() -> None:
    both = SurpriseLog.empty(2)
    ids = [np.arange(30, dtype=np.int32), np.arange(7, dtype=np.int32)]
    values = np.vstack([np.full(30, 2.0), np.full(30, 5.0)])
    bad = np.zeros((2, 30), np.bool_)
    bad[1, 5:] = True
    both = both.observe(ids, values, bad)
    assert both.tokens.tolist() == [30, 7]
    assert both.rejected.tolist() == [0, 2]
    assert both.sums.sum(1).tolist() == [60.0, 35.0]
    swapped = both.select([1, 0, 1])
    assert swapped.tokens.tolist() == [7, 30, 7]


def test_a_passage_that_starts_inside_a_character_shows_whole_ones() -> None:
    data = "wörter".encode()[2:]
    ids = np.frombuffer(data, np.uint8).astype(np.int32)
    log = SurpriseLog.empty(1).observe([ids], np.ones((1, len(ids))), np.zeros((1, len(ids)), np.bool_))
    assert log.passages(0, lambda ids: bytes(ids).decode("utf-8", "replace"))[0].text == "rter"


def encoded(*layers: Surprise) -> Encoded:
    return Encoded(torch.zeros(1, 3, 4), (), layers)


def felt(norm: list[float], lr: float) -> Surprise:
    one = torch.tensor(norm).expand(1, 2, 3)
    return Surprise(one, one, torch.full((1, 2, 3), lr), one, one, torch.zeros(1, 2, 3, dtype=torch.bool))


def test_surprise_is_the_mean_step_over_layers_and_heads() -> None:
    values, rejected = surprise_of(encoded(felt([1.0, 2.0, 4.0], 0.5), felt([3.0, 0.0, 0.0], 1.0)))
    np.testing.assert_allclose(values, [[1.75, 0.5, 1.0]])
    assert not rejected.any()
    assert surprise_of(encoded())[0].tolist() == [[0, 0, 0]]


def test_tokens_that_are_not_finite_count_as_rejected() -> None:
    nan, inf = float("nan"), float("inf")
    values, rejected = surprise_of(encoded(felt([nan, inf, 1.0], 0.5), felt([1.0, 1.0, 1.0], 0.5)))
    np.testing.assert_allclose(values, [[0.25, 0.25, 0.5]])
    assert rejected.tolist() == [[True, True, False]]
    left_out = felt([1.0, 1.0, 1.0], 1.0)._replace(rejected=torch.tensor([True, False, False]).expand(1, 2, 3))
    values, rejected = surprise_of(encoded(left_out))
    assert values.tolist() == [[0.0, 1.0, 1.0]]
    assert rejected.tolist() == [[True, False, False]]
