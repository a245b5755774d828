"""Pairs hidden in noise: the smallest task that needs a memory, and needs no text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastweights.errors import UserError
from fastweights.train.task import Batch, Task, rng


@dataclass(frozen=True, kw_only=True)
class RecallTask(Task):
    """Key-value pairs among random symbols; in the last quarter of each row keys return and their values are asked for.

    Keys are the ids 0 to ``symbols - 1``, values the next ``symbols`` ids, noise the ``symbols`` after those; each row
    draws its own pairs. Only the values after a returning key have a weight. (Multi-query associative recall of Arora
    et al. 2023, "Zoology", with noise between the pairs.)

    Attributes:
        symbols: ids of each kind; the model's ``vocab_size`` is at least three times this.
        pairs: pairs per row, at most ``symbols`` and at most 3/16 of the length.
        queries: keys asked for per row, at most 1/8 of the length.
    """

    symbols: int = 16
    pairs: int = 4
    queries: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.pairs <= self.symbols or self.queries < 1:
            raise UserError(
                f"a recall task needs 1 <= pairs <= symbols and queries >= 1, "
                f"not {self.pairs} pairs, {self.symbols} symbols and {self.queries} queries"
            )

    def batch(self, seed: int, index: int, batch_size: int, length: int) -> Batch:
        random = rng(seed, index)
        n, first_query = self.symbols, 3 * length // 4
        if 2 * self.pairs > first_query // 2 or 2 * self.queries > (length + 1 - first_query):
            raise UserError(f"{self.pairs} pairs and {self.queries} queries do not fit into rows of {length} positions")
        tokens = random.integers(2 * n, 3 * n, size=(batch_size, length + 1))
        weights = np.zeros((batch_size, length + 1))
        for row, weight in zip(tokens, weights, strict=True):
            keys = random.choice(n, size=self.pairs, replace=False)
            values = n + random.integers(0, n, size=self.pairs)
            places = 2 * random.choice(first_query // 2, size=self.pairs, replace=False)
            row[places], row[places + 1] = keys, values
            asked = random.integers(0, self.pairs, size=self.queries)
            places = first_query + 2 * random.choice((length + 1 - first_query) // 2, self.queries, replace=False)
            row[places], row[places + 1] = keys[asked], values[asked]
            weight[places + 1] = 1.0
        return Batch.from_tokens(tokens, weights)
