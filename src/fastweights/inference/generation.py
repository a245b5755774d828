"""Continuing a text from a state: the prompt is streamed, then tokens are chosen one by one and read back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastweights.data.tokenizer import Tokenizer
from fastweights.inference.feed import Ids
from fastweights.models.language_model import LanguageModel, ModelState

Choose = Callable[[Tensor], Tensor]
"""From logits `[B, V]` to one token per row, int64 `[B]`."""


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        text: The answer, up to the first stop string.
        ids: The tokens chosen, those of a stop string included, the end-of-text token excluded.
        ended: Why it ended: a stop string ("stop"), the end-of-text token ("eos"), or the limit on tokens ("length").
        log_probability: Sum of the natural logarithms of the probabilities that the model gave the chosen tokens (at
            temperature 1), the end-of-text token included.
    """

    text: str
    ids: tuple[int, ...]
    ended: Literal["stop", "eos", "length"]
    log_probability: float


class _Row:
    """One row's answer while it grows."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.ids: list[int] = []
        self.ended: Literal["stop", "eos", "length"] | None = None
        self.log_probability = 0.0
        # A token holds at least one byte, so a stop string that ends in the newest token lies within these.
        self.reach = max((len(text.encode()) for text in stop), default=0)

    def add(self, token: int, log_probability: float) -> None:
        self.log_probability += log_probability
        if token == self.tokenizer.eos:
            self.ended = "eos"
            return
        self.ids.append(token)
        recent = self.tokenizer.decode(self.ids[-self.reach - len(self.tokenizer.token_bytes(token)) :])
        if any(text in recent for text in self.stop):
            self.ended = "stop"

    def answer(self) -> Answer:
        text = self.tokenizer.decode(self.ids)
        ends = [place for stop in self.stop if (place := text.find(stop)) >= 0]
        return Answer(
            text[: min(ends, default=len(text))], tuple(self.ids), self.ended or "length", self.log_probability
        )


def padded(pieces: Sequence[Ids], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Rows of different lengths as int64 `[B, T]` and a mask, padded on the right; no mask where all are equal."""
    length = max(len(piece) for piece in pieces)
    ids = torch.zeros(len(pieces), length, dtype=torch.int64)
    mask = torch.zeros(len(pieces), length, dtype=torch.bool)
    for row, piece in enumerate(pieces):
        ids[row, : len(piece)] = torch.from_numpy(piece)
        mask[row, : len(piece)] = True
    return ids.to(device), None if bool(mask.all()) else mask.to(device)


def read_prompt(
    model: LanguageModel, state: ModelState, prompts: Sequence[Ids], piece: int
) -> tuple[ModelState, Tensor]:
    """Read a prompt per row, `piece` tokens at a time.

    Args:
        model: Reads.
        state: Of B rows; not modified.
        prompts: B arrays of at least one token.
        piece: Bounds the memory used, whatever the length.

    Returns:
        The state after every prompt, and the logits `[B, V]` of the token after it.
    """
    device = next(model.parameters()).device
    last: Tensor | None = None
    for start in range(0, max(map(len, prompts)), piece):
        ids, mask = padded([prompt[start : start + piece] for prompt in prompts], device)
        encoded = model.encode(ids, state, mask=mask)
        state = encoded.state
        ends = torch.tensor([min(len(prompt) - start, piece) for prompt in prompts], device=device)
        newest = encoded.hidden[torch.arange(len(prompts), device=device), ends.clamp(min=1) - 1]
        last = newest if last is None else torch.where((ends > 0)[:, None], newest, last)
    assert last is not None
    return state, model.logits(last)


def continue_rows(
    model: LanguageModel,
    tokenizer: Tokenizer,
    state: ModelState,
    prompts: Sequence[Ids],
    choose: Choose,
    *,
    max_tokens: int,
    stop: Sequence[str],
    piece: int,
) -> list[Answer]:
    """Continue every row's prompt, free-running: each chosen token is what the model reads next.

    Args:
        model: Reads and predicts.
        tokenizer: Turns tokens into text.
        state: Of B rows; not modified.
        prompts: B arrays of at least one token.
        choose: Chooses the next tokens.
        max_tokens: Limit on the tokens of an answer, at least 1.
        stop: Strings that end an answer.
        piece: Tokens of a prompt that are read at a time.

    Cost: one call per token of the longest answer; rows that have ended are masked.
    """
    state, logits = read_prompt(model, state, prompts, piece)
    rows = [_Row(tokenizer, stop) for _ in prompts]
    for step in range(max_tokens):
        tokens = choose(logits)
        chosen = logits.float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0].tolist()
        for row, token, log_probability in zip(rows, tokens.tolist(), chosen, strict=True):
            if row.ended is None:
                row.add(token, log_probability)
        going = torch.tensor([row.ended is None for row in rows], device=tokens.device)
        if step + 1 == max_tokens or not bool(going.any()):
            break
        encoded = model.encode(tokens[:, None], state, mask=None if bool(going.all()) else going[:, None])
        state, logits = encoded.state, model.logits(encoded.hidden[:, -1])
    return [row.answer() for row in rows]
