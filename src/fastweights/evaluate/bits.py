"""Reading a text token by token and counting what each token costs, the memory carried along.

Every text begins with the tokenizer's end-of-text token, as texts are joined in training: it is read and not predicted,
and so every token of the text is predicted, the first one too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastweights.core.types import Surprise
from fastweights.data.tokenizer import Ids, Tokenizer
from fastweights.errors import FastweightsError
from fastweights.models.language_model import LanguageModel, ModelState
from fastweights.train.loss import token_losses
from fastweights.train.task import Batch

PIECE = 1024
"""Tokens that are read at a time; bounds the memory used."""


class PieceRead(NamedTuple):
    """A piece of a text.

    Attributes:
        ids: int32 ``[n]``, its tokens.
        bits: float64 ``[n]``, what each of them cost: minus the logarithm to base 2 of its probability.
        state: after all of them but the last have been read.
        surprise: of the tokens read, the last n of which stand before the piece's own; one per memory layer, or none.
    """

    ids: Ids
    bits: Tensor
    state: ModelState
    surprise: tuple[Surprise, ...]


def pieces_of(tokenizer: Tokenizer, text: Iterable[str], size: int = PIECE) -> Iterator[Ids]:
    """The tokens of a text, cut into pieces of ``size`` tokens, the last one perhaps shorter."""
    held: list[Ids] = []
    count = 0
    for part in tokenizer.encode_stream([text] if isinstance(text, str) else text):
        held.append(part)
        count += len(part)
        if count >= size:
            joined = np.concatenate(held)
            whole = count - count % size
            yield from np.split(joined[:whole], range(size, whole, size))
            held, count = [joined[whole:]], count - whole
    if count:
        yield np.concatenate(held)


@torch.no_grad()
def read_bits(
    model: LanguageModel,
    pieces: Iterable[Ids],
    first: Sequence[int],
    state: ModelState | None = None,
    surprise: bool = False,
) -> Iterator[PieceRead]:
    """Read pieces of one text in order, each behind the last token of the one before.

    Args:
        model: in eval mode.
        pieces: of `pieces_of`.
        first: the tokens that are read before the first one: the tokenizer's ``eos``, and before it what ``state`` has
            not read of the text before.
        state: to start from; None starts afresh.
        surprise: also give the surprise streams.

    Raises:
        FastweightsError: what the model predicts is not finite.
    """
    device = next(model.parameters()).device
    for piece in pieces:
        tokens = torch.from_numpy(np.concatenate([first, piece]).astype(np.int64))[None]
        asked = torch.ones(1, tokens.shape[1] - 1)
        asked[:, : len(first) - 1] = 0
        batch = Batch(tokens[:, :-1], tokens[:, 1:], asked).to(device)
        encoded = model.encode(batch.ids, state, surprise=surprise)
        losses, _ = token_losses(model, encoded.hidden, batch)
        if not losses.isfinite().all():
            raise FastweightsError("the model's predictions are not finite: its training has diverged, or its memory")
        state, first = encoded.state, piece[-1:].tolist()
        yield PieceRead(piece, losses.double().cpu() / math.log(2), state, encoded.surprise)
