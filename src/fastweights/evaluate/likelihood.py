"""How probable given texts are behind other texts: several pairs read side by side, each from an empty memory.

This is what lm-evaluation-harness asks of a model, in functions that do not need it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastweights.data.tokenizer import Ids, Tokenizer
from fastweights.errors import FastweightsError
from fastweights.inference.generation import padded
from fastweights.inference.snapshot import blank
from fastweights.models.language_model import LanguageModel
from fastweights.train.loss import token_losses
from fastweights.train.task import Batch


class Pair(NamedTuple):
    """Tokens that are read, and tokens that are predicted behind them.

    Attributes:
        context: int32, at least one.
        asked: int32, any number.
    """

    context: Ids
    asked: Ids


class Scored(NamedTuple):
    """What a model says to the tokens asked for.

    Attributes:
        log_probability: Natural logarithm of the probability of all of them together; 0.0 for none.
        greedy: Whether each of them is the likeliest one behind those before it.
    """

    log_probability: float
    greedy: bool


def pair_of(tokenizer: Tokenizer, context: str, continuation: str) -> Pair:
    """The tokens of two texts that follow each other.

    As in lm-evaluation-harness, both are tokenised as one text, and white space at the end of the context belongs to
    the continuation. A token that reaches over the border is asked for too, so that what is read and asked is always
    the one text. Behind an empty context the continuation begins a document, after an end-of-text token.
    """
    whole, alone = tokenizer.encode_array(context + continuation), tokenizer.encode_array(context.rstrip())
    shared = min(len(whole), len(alone))
    same = whole[:shared] == alone[:shared]
    kept = shared if same.all() else int(same.argmin())
    return Pair(whole[:kept] if kept else beginning(tokenizer), whole[kept:])


def beginning(tokenizer: Tokenizer) -> Ids:
    """What is read before the first token of a document: the end-of-text token, int32 ``[1]``."""
    return np.array([tokenizer.eos], np.int32)


def windows(tokenizer: Tokenizer, ids: Ids, size: int) -> Iterator[Pair]:
    """The windows of a document in which lm-evaluation-harness measures models that read so many tokens at most.

    Every token is asked for once. Behind the first window there is nothing but the token before; the last one reads
    as much of the text before it as still fits.

    Args:
        tokenizer: Gives the token before the first.
        ids: The document.
        size: Tokens that are read for one window, at least 1.
    """
    for start in range(0, len(ids), size):
        asked = ids[start : start + size]
        context = ids[start + len(asked) - size - 1 : start] if start else beginning(tokenizer)
        yield Pair(context, asked)


def side_by_side(lengths: Sequence[int], rows: int) -> Iterator[list[int]]:
    """Which texts are read together: their indices, the longest first.

    Args:
        lengths: Of the texts.
        rows: Most texts of a group. None is shorter than half the longest of its group: padding costs as much as text.
    """
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if group and (len(group) == rows or 2 * lengths[index] < lengths[group[0]]):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


@torch.no_grad()
def score(model: LanguageModel, pairs: Sequence[Pair], piece: int) -> list[Scored]:
    """Read every pair from an empty memory, all side by side.

    Args:
        model: In eval mode.
        pairs: At least one.
        piece: Tokens of a row that are read at a time. It bounds the memory used, whatever the lengths, and changes
            nothing beyond rounding.

    Raises:
        FastweightsError: What the model predicts is not finite.

    Cost: one reading of the longest pair by as many rows; logits only where tokens are asked for.
    """
    tokens = [np.concatenate(pair) for pair in pairs]
    first = torch.tensor([len(pair.context) for pair in pairs])
    state = blank(model, len(pairs)).state
    total = torch.zeros(len(pairs), dtype=torch.float64)
    greedy = torch.ones(len(pairs), dtype=torch.bool)
    for start in range(0, max(map(len, tokens)) - 1, piece):
        batch = _piece(tokens, first, start, piece).to(next(model.parameters()).device)
        encoded = model.encode(batch.ids, state, mask=batch.mask)
        state = encoded.state
        chosen = batch.weights > 0
        if not bool(chosen.any()):
            continue
        losses, guesses = token_losses(model, encoded.hidden, batch)
        if not bool(losses.isfinite().all()):
            raise FastweightsError("the model's predictions are not finite: its training has diverged, or its memory")
        row = chosen.nonzero()[:, 0].cpu()
        total.index_add_(0, row, -losses.double().cpu())
        greedy[row[(guesses != batch.targets[chosen]).cpu()]] = False
    return [Scored(*found) for found in zip(total.tolist(), greedy.tolist(), strict=True)]


def _piece(tokens: Sequence[Ids], first: Tensor, start: int, piece: int) -> Batch:
    """The tokens from `start` on that are read; asked for behind them is what stands at `first` ``[B]`` or later."""
    host = torch.device("cpu")
    ids, mask = padded([row[:-1][start : start + piece] for row in tokens], host)
    targets, _ = padded([row[1:][start : start + piece] for row in tokens], host)
    asked = start + 1 + torch.arange(ids.shape[1]) >= first[:, None]
    return Batch(ids, targets, (asked if mask is None else asked & mask).float(), mask)
