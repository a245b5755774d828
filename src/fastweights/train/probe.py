"""Teacher-forced tests on batches that training never sees."""

from __future__ import annotations

from typing import Any

import torch

from fastweights.models.language_model import LanguageModel
from fastweights.train.config import Probe
from fastweights.train.loss import AnswerCounts, count_answers, token_losses, weighted_mean
from fastweights.train.records import accuracy
from fastweights.train.task import Task

# Training uses the run's own seed; a seed shifted by a constant gives other, equally repeatable batches.
_PROBE_SEED = 0x5EED


@torch.no_grad()
def run_probe(model: LanguageModel, probe: Probe, task: Task, seed: int) -> dict[str, Any]:
    """Measure a model on ``probe.batches`` batches.

    Args:
        model: left in the mode (train or eval) in which it came.
        probe: how much to test.
        task: where batches come from when the probe names no task of its own.
        seed: the run's seed.

    Returns:
        ``loss`` (mean over batches) and the shares of `fastweights.train.records.accuracy`. Teacher-forced: the true
        tokens before each prediction are given, so these numbers bound free-running answers from above.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    losses: list[float] = []
    counts: list[AnswerCounts] = []
    for index in range(probe.batches):
        batch = (probe.task or task).batch(seed + _PROBE_SEED, index, probe.batch_size, probe.length)
        batch.check(probe.batch_size, probe.length, model.config.vocab_size)
        batch = batch.to(device)
        hidden = model.encode(batch.ids, mask=batch.mask).hidden
        cross_entropies, guesses = token_losses(model, hidden, batch)
        losses.append(float(weighted_mean(cross_entropies, batch)))
        counts.append(count_answers(guesses, batch))
    model.train(was_training)
    return {"loss": float(f"{sum(losses) / len(losses):.5g}")} | accuracy(counts)


def better(name: str, value: float, best: float) -> bool:
    """Whether ``value`` beats ``best`` in the measure ``name``: less of a loss, more of anything else."""
    return value < best if name.split("/")[-1] == "loss" else value > best
