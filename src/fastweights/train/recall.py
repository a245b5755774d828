"""Pairs hidden in noise: the smallest task that needs a memory, and needs no text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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
        pairs: pairs per row, at most ``symbols``; together with ``changes`` at most 3/16 of the length.
        queries: keys asked for per row, at most 1/8 of the length.
        changes: how many keys of a row get another value further on; the last one is asked for.
        once: no key is asked for twice in a row.
    """

    symbols: int = 16
    pairs: int = 4
    queries: int = 4
    changes: int = 0
    once: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.pairs <= self.symbols or self.queries < 1:
            raise UserError(
                f"a recall task needs 1 <= pairs <= symbols and queries >= 1, "
                f"not {self.pairs} pairs, {self.symbols} symbols and {self.queries} queries"
            )
        if not 0 <= self.changes <= (self.pairs if self.symbols > 1 else 0):
            raise UserError(f"{self.changes} of {self.pairs} keys cannot get another of {self.symbols} values")
        if self.once and self.queries > self.pairs:
            raise UserError(f"{self.queries} queries ask for some of {self.pairs} keys twice")

    def batch(self, seed: int, index: int, batch_size: int, length: int) -> Batch:
        random = rng(seed, index)
        n, first_query, written = self.symbols, 3 * length // 4, self.pairs + self.changes
        if 2 * written > first_query // 2 or 2 * self.queries > (length + 1 - first_query):
            raise UserError(f"{written} pairs and {self.queries} queries do not fit into rows of {length} positions")
        tokens = random.integers(2 * n, 3 * n, size=(batch_size, length + 1))
        weights = np.zeros((batch_size, length + 1))
        for row, weight in zip(tokens, weights, strict=True):
            keys = random.choice(n, size=self.pairs, replace=False)
            values = n + random.integers(0, n, size=self.pairs)
            places = 2 * random.choice(first_query // 2, size=written, replace=False)
            first, later = places[: self.changes], places[self.pairs :]
            places[: self.changes], places[self.pairs :] = np.minimum(first, later), np.maximum(first, later)
            row[places[: self.pairs]], row[places[: self.pairs] + 1] = keys, values
            # Another value is this one, shifted among all n by less than n.
            shift = random.integers(1, max(n, 2), size=self.changes)
            values[: self.changes] = n + (values[: self.changes] - n + shift) % n
            row[places[self.pairs :]], row[places[self.pairs :] + 1] = keys[: self.changes], values[: self.changes]
            if self.once:
                asked = random.permutation(self.pairs)[: self.queries]
            else:
                asked = random.integers(0, self.pairs, size=self.queries)
            places = first_query + 2 * random.choice((length + 1 - first_query) // 2, self.queries, replace=False)
            row[places], row[places + 1] = keys[asked], values[asked]
            weight[places + 1] = 1.0
        return Batch.from_tokens(tokens, weights)

    def changed(self, batch: Batch) -> Tensor:
        """Which answers of a batch are values of keys that got another one: bool ``[B, T]``, False elsewhere."""
        written = batch.ids[:, : 3 * batch.ids.shape[1] // 4]
        found = torch.zeros_like(batch.weights, dtype=torch.bool)
        for row, place in (batch.weights > 0).nonzero().tolist():
            found[row, place] = (written[row] == batch.ids[row, place]).sum() > 1
        return found
