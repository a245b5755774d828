"""Questions to a model: rows that it never saw, read once, and what it predicts where they ask."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastweights.evaluate.runner import interval
from fastweights.models.controls import RESET, forget
from fastweights.models.language_model import LanguageModel, flatten_state
from fastweights.train.config import Probe
from fastweights.train.loss import AnswerCounts, count_answers, token_losses, weighted_mean
from fastweights.train.task import Batch, Task

Measure = Literal["right", "exact", "bits"]
"""Right tokens of answers, whole answers, or bits a token (the mean loss; no answers, and less is better)."""

_TEST_SEED = 0x7E57

_AT_ONCE = 32_768
"""Positions that are read at once: batches of few long rows share a pass, or single rows would wait for one another."""


class Score(NamedTuple):
    """What was answered to one question.

    Attributes:
        tokens: positions of its rows.
        value: the share that was right, or bits a token.
        asked: what was counted: tokens, answers, or predictions.
        low: end of the 95 % interval of a share (as if all that is counted were independent), or of the mean's over
            batches.
        high: the other end.
    """

    tokens: int
    value: float
    asked: int
    low: float
    high: float


@torch.no_grad()
def ask(model: LanguageModel, question: Probe, task: Task, measure: Measure, control: str = "") -> Score | None:
    """What a model answers to one question, teacher-forced: the true tokens before each prediction are given.

    Args:
        model: in eval mode; under a control, if any, already changed by it.
        question: how many rows, and how long.
        task: where they come from, if the question names no task of its own.
        measure: what is counted.
        control: its name; under `RESET` the memory forgets before the first answer of each row.

    Returns:
        The score, or None where a reset is asked for and a row is asked from its first quarter on.
    """
    counts: list[AnswerCounts] = []
    losses: list[float] = []
    at_once = max(1, _AT_ONCE // (question.batch_size * question.length))
    for index in range(0, question.batches, at_once):
        batches = _batches(model, question, task, range(index, min(index + at_once, question.batches)))
        rows = _joined(batches)
        if control == RESET and int(first_asked(rows).min()) < max(1, question.length // 4):
            return None
        hidden = read_after_reset(model, rows) if control == RESET else model.encode(rows.ids, mask=rows.mask).hidden
        for batch, answers in zip(batches, hidden.split(question.batch_size), strict=True):
            cross_entropies, guesses = token_losses(model, answers, batch)
            losses.append(float(weighted_mean(cross_entropies, batch)))
            counts.append(count_answers(guesses, batch))
    return _score(measure, question.length, losses, counts)


def _joined(batches: Sequence[Batch]) -> Batch:
    """The rows of all batches, as far as they are read: without answers and hints."""
    ids, targets, weights = (
        torch.cat([getattr(batch, name) for batch in batches]) for name in ("ids", "targets", "weights")
    )
    if all(batch.mask is None for batch in batches):
        return Batch(ids, targets, weights)
    real = [torch.ones_like(batch.weights, dtype=torch.bool) if batch.mask is None else batch.mask for batch in batches]
    return Batch(ids, targets, weights, torch.cat(real))


def _batches(model: LanguageModel, question: Probe, task: Task, indices: range) -> list[Batch]:
    """Those batches of a question, checked, where the model is."""
    device = next(model.parameters()).device
    found = []
    for index in indices:
        batch = (question.task or task).batch(_TEST_SEED, index, question.batch_size, question.length)
        batch.check(question.batch_size, question.length, model.config.vocab_size)
        found.append(batch.to(device))
    return found


def _score(measure: Measure, tokens: int, losses: list[float], counts: list[AnswerCounts]) -> Score:
    if measure == "bits":
        bits = [loss / math.log(2) for loss in losses]
        mean = statistics.fmean(bits)
        half = 1.96 * statistics.stdev(bits) / math.sqrt(len(bits)) if len(bits) > 1 else math.inf
        return Score(tokens, _short(mean), sum(c.chosen for c in counts), _short(mean - half), _short(mean + half))
    right, asked = (
        (sum(c.right for c in counts), sum(c.chosen for c in counts))
        if measure == "right"
        else (sum(c.exact for c in counts), sum(c.answers for c in counts))
    )
    low, high = interval(right / asked, asked)
    return Score(tokens, _short(right / asked), asked, _short(low), _short(high))


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def first_asked(batch: Batch) -> Tensor:
    """int64 ``[B]``: the first position of each row that has a weight."""
    return (batch.weights > 0).int().argmax(1)


def read_after_reset(model: LanguageModel, batch: Batch) -> Tensor:
    """The hidden states ``[B, T, D]`` of rows whose memories forget everything just before the first answer."""
    first = first_asked(batch)
    least, most = int(first.min()), int(first.max())
    before = torch.arange(batch.ids.shape[1], device=batch.ids.device) < first[:, None]
    real = torch.ones_like(before) if batch.mask is None else batch.mask
    read = model.encode(batch.ids[:, :most], mask=(before & real)[:, :most])
    after = model.encode(batch.ids[:, least:], forget(model, read.state), mask=(~before & real)[:, least:])
    both = torch.where(before[:, least:most, None], read.hidden[:, least:], after.hidden[:, : most - least])
    return torch.cat([read.hidden[:, :least], both, after.hidden[:, most - least :]], 1)


@torch.no_grad()
def state_after(model: LanguageModel, tokens: int) -> int:
    """Bytes of everything that a model carries along after so many tokens of one row."""
    device = next(model.parameters()).device
    state = model.encode(torch.zeros(1, tokens, dtype=torch.int64, device=device)).state
    return sum(tensor.nbytes for tensor in flatten_state(state).values())
