"""Needles hidden in noise and in books, asked for at the end of each row."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fastweights.data.tokenizer import load_tokenizer
from fastweights.errors import UserError
from fastweights.tasks.needle_rows import NeedleRow, RowMaker, RowMix, SentenceBank
from fastweights.train.task import Batch, Task


@dataclass(frozen=True, kw_only=True)
class NeedleTask(Task):
    """Rows of `fastweights.tasks.needle_rows`; only answers, and keys repeated in a question, have a weight.

    Attributes:
        tokenizer: name or path of the tokenizer.
        paths: text files or folders to hide needles in; empty leaves noise only.
        mix: which kinds of rows, how often.
        first_weight: loss weight of a value's first token, the one that only its key can tell.
        rest_weight: of the value's other tokens.
        closing_weight: of the space before a value, and of the full stop and end behind it.
        key_weight: of a key's tokens where a question repeats it.
    """

    tokenizer: str = "bpe4096"
    paths: tuple[str, ...] = ()
    mix: RowMix = field(default_factory=RowMix)
    first_weight: float = 2.0
    rest_weight: float = 1.0
    closing_weight: float = 0.2
    key_weight: float = 0.2

    def __post_init__(self) -> None:
        if self.mix.text and not self.paths:
            raise UserError("needles in text need text: name files or folders in task.paths, or set task.mix.text=0")

    def batch(self, seed: int, index: int, batch_size: int, length: int) -> Batch:
        maker = _maker(self.tokenizer, self.paths)
        rng = random.Random(f"{seed}/{index}")
        rows = [maker.row(rng, length + 1, self.mix.draw(rng)) for _ in range(batch_size)]
        ids, weights = np.stack([row.ids for row in rows]), np.stack([self._weights(row) for row in rows])
        hints = np.stack([maker.hints(row) for row in rows])
        return Batch.from_tokens(ids, weights, answers=np.stack([row.answers for row in rows]), hints=hints)

    def _weights(self, row: NeedleRow) -> NDArray[np.float64]:
        weights = self.key_weight * row.keys.astype(np.float64)
        for number in range(1, len(row.asked) + 1):
            places = np.flatnonzero(row.answers == number)
            weights[places] = self.rest_weight
            weights[places[[0, -2, -1]]] = self.closing_weight
            weights[places[1]] = self.first_weight
        return weights


@lru_cache(maxsize=2)
def _maker(tokenizer_name: str, paths: tuple[str, ...]) -> RowMaker:
    tokenizer = load_tokenizer(tokenizer_name)
    return RowMaker(tokenizer, SentenceBank.from_paths(tokenizer, *paths) if paths else None)
