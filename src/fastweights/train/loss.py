"""The loss on chosen positions, the price on writing, and what there is to know about the answers.

Shapes: B rows, T positions, N chosen positions, D model, V vocabulary, H heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastweights.core.types import Surprise
from fastweights.models.language_model import LanguageModel
from fastweights.train.task import Batch

ANSWER_POSITIONS = 8


class AnswerCounts(NamedTuple):
    """How many answers were predicted right, teacher-forced (the true tokens before each are given).

    ``right``/``chosen`` count tokens of answers, ``right_at``/``chosen_at`` the same by place inside the answer (first,
    second, ..., up to `ANSWER_POSITIONS`), ``exact``/``answers`` whole answers.
    """

    right: int
    chosen: int
    right_at: tuple[int, ...]
    chosen_at: tuple[int, ...]
    exact: int
    answers: int


def token_losses(
    model: LanguageModel, hidden: Tensor, batch: Batch, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Cross-entropies and best guesses at the positions with a weight, and only there.

    Args:
        model: gives the logits.
        hidden: ``[B, T, D]`` from ``model.encode``.
        batch: where ``weights > 0`` a prediction counts.
        label_smoothing: share of each target that goes to all of the vocabulary alike, in [0, 1).

    Returns:
        (cross-entropy in nats, float32 ``[N]``; guessed ids, int64 ``[N]``), in row-major order of the positions.
        Costs N times the head's product, whatever B and T are.
    """
    chosen = batch.weights > 0
    logits = model.logits(hidden[chosen]).float()
    losses = F.cross_entropy(logits, batch.targets[chosen], reduction="none", label_smoothing=label_smoothing)
    return losses, logits.detach().argmax(dim=-1)


def weighted_mean(losses: Tensor, batch: Batch) -> Tensor:
    """The mean of ``losses`` ``[N]`` under the batch's weights; 0 when no position has one."""
    weights = batch.weights[batch.weights > 0]
    return (losses * weights).sum() / weights.sum().clamp_min(torch.finfo(torch.float32).tiny)


def hint_loss(model: LanguageModel, projection: Tensor, tapped: Tensor, hints: Tensor) -> Tensor:
    """How far a middle block is from knowing what it should: mean cross-entropy of hints under the embeddings.

    Args:
        model: gives the embeddings.
        projection: ``[D, D]``, learned, starts as the identity, used in the dtype of ``tapped``. Without it the block
            would have to hold the hinted tokens and nothing else (measured: nothing is bound then).
        tapped: ``[B, T, D]``, the residual stream behind the block.
        hints: int64 ``[B, T, n]``, token ids, -1 for none.
    """
    chosen = (hints >= 0).any(-1)
    wanted = hints[chosen]
    known = F.rms_norm(F.linear(tapped[chosen], projection.to(tapped.dtype)), tapped.shape[-1:])
    log_p = torch.log_softmax((known @ model.embedding.weight.T).float(), -1)
    real = (wanted >= 0).float()
    found = log_p.gather(1, wanted.clamp_min(0)) * real
    return -(found.sum(1) / real.sum(1).clamp_min(1.0)).sum() / real.any(1).sum().clamp_min(1)


def opened(lr: Tensor, largest_lr: tuple[float, ...]) -> Tensor:
    """How far an lr gate is open, from ``lr [B, H, T]``; ``largest_lr`` has one number a head, or one for all."""
    return lr / lr.new_tensor(largest_lr).unsqueeze(-1)


def write_price(surprise: tuple[Surprise, ...], largest_lr: tuple[float, ...], mask: Tensor | None) -> Tensor:
    """``mean(lr / largest_lr + (1 - retain))`` over memory layers, heads and real tokens: a scalar in [0, 2].

    Args:
        surprise: one per memory layer, fields ``[B, H, T]``, still attached to the graph.
        largest_lr: of each head, so that an open gate costs 1 whatever its unit.
        mask: bool ``[B, T]``, False at padding, or None.
    """
    layers = [_mean_over_real(opened(s.lr, largest_lr) + (1.0 - s.retain), mask) for s in surprise]
    return torch.stack(layers).mean()


class GateUse(NamedTuple):
    """Mean use of the gates, one number in [0, 1] per memory layer.

    ``write`` is lr / largest_lr, ``forget`` is 1 - retain, ``shut`` the share of tokens whose write gate is exactly 0,
    and ``kept`` the share of those whose forget gate is.
    """

    write: tuple[float, ...]
    forget: tuple[float, ...]
    shut: tuple[float, ...]
    kept: tuple[float, ...] = ()


@torch.no_grad()
def gate_use(surprise: tuple[Surprise, ...], largest_lr: tuple[float, ...], mask: Tensor | None) -> GateUse:
    """Summarise the gates of every memory layer over heads and real tokens."""
    return GateUse(
        write=tuple(float(_mean_over_real(opened(s.lr, largest_lr), mask)) for s in surprise),
        forget=tuple(float(_mean_over_real(1.0 - s.retain, mask)) for s in surprise),
        shut=tuple(float(_mean_over_real((s.lr == 0).float(), mask)) for s in surprise),
        kept=tuple(float(_mean_over_real((s.retain == 1).float(), mask)) for s in surprise),
    )


def _mean_over_real(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of ``x`` ``[B, H, T]`` over heads and over the tokens where ``mask`` ``[B, T]`` is True."""
    x = x.float()
    if mask is None:
        return x.mean()
    real = mask[:, None, :].to(x.dtype)
    return (x * real).sum() / (real.sum() * x.shape[1]).clamp_min(1.0)


@torch.no_grad()
def count_answers(guesses: Tensor, batch: Batch) -> AnswerCounts:
    """Compare ``guesses`` ``[N]`` (from `token_losses`) with the answers of the batch."""
    chosen = batch.weights > 0
    rows = torch.arange(chosen.shape[0], device=chosen.device)[:, None].expand_as(chosen)
    groups = answer_numbers(batch)
    member = groups[chosen] > 0
    right = (guesses == batch.targets[chosen])[member]
    label = torch.stack([rows[chosen][member], groups[chosen][member]], dim=1)
    if label.shape[0] == 0:
        nothing = (0,) * ANSWER_POSITIONS
        return AnswerCounts(0, 0, nothing, nothing, 0, 0)
    # A stable sort by (row, answer) puts the tokens of one answer side by side, in reading order.
    key = label[:, 0] * (int(groups.max()) + 1) + label[:, 1]
    order = torch.argsort(key, stable=True)
    _, answer, sizes = torch.unique_consecutive(key[order], return_inverse=True, return_counts=True)
    right = right[order].long()
    start = sizes.cumsum(0) - sizes
    rank = torch.arange(len(right), device=right.device) - start[answer]
    near = rank < ANSWER_POSITIONS
    chosen_at = torch.bincount(rank[near], minlength=ANSWER_POSITIONS)
    right_at = torch.bincount(rank[near & (right > 0)], minlength=ANSWER_POSITIONS)
    hits = torch.zeros_like(sizes).index_add_(0, answer, right)
    return AnswerCounts(
        right=int(right.sum()),
        chosen=len(right),
        right_at=tuple(right_at.tolist()),
        chosen_at=tuple(chosen_at.tolist()),
        exact=int((hits == sizes).sum()),
        answers=len(sizes),
    )


def answer_numbers(batch: Batch) -> Tensor:
    """int64 ``[B, T]``: the answer each position belongs to, 0 for none (see `Batch.answers`)."""
    if batch.answers is not None:
        return batch.answers
    chosen = batch.weights > 0
    before = F.pad(chosen[:, :-1], (1, 0))
    return (chosen & ~before).long().cumsum(dim=1) * chosen
