"""Multi-query associative recall as something to train on: easy and hard rows in turn."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from fastweights.errors import UserError
from fastweights.tasks.associative_recall import MQARSpec, disputed, make_mqar
from fastweights.tasks.labelled import IGNORE, Labelled
from fastweights.train.task import Batch, Task, rng


@dataclass(frozen=True, kw_only=True)
class MQARTask(Task):
    """Batches of `fastweights.tasks.associative_recall`; the value of a key is predicted where the key returns.

    The rows of one batch hold equally many pairs. That number is drawn anew for each batch, evenly between the two
    limits, as far as the rows are long enough; how long they are is the curriculum's choice.

    Attributes:
        vocab_size: at most the model's, even, and more than the longest rows.
        least_pairs: smallest number of pairs a row, >= 1.
        most_pairs: largest number of pairs a row.
        power: where keys return; see `MQARSpec`, also for the fields below.
        random_fillers: fill up with random tokens, which now and then write a pair of their own, instead of zeros.
        rewrites: every key is given a second value.
        repeats: how often each pair is written.
        outliers: share of the writings that carry a wrong value.
    """

    vocab_size: int = 512
    least_pairs: int = 4
    most_pairs: int = 32
    power: float = 0.01
    random_fillers: bool = False
    rewrites: bool = False
    repeats: int = 1
    outliers: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.least_pairs <= self.most_pairs:
            raise UserError(
                f"a recall task needs 1 <= least_pairs <= most_pairs, not {self.least_pairs} and {self.most_pairs}"
            )

    def spec(self, length: int, pairs: int) -> MQARSpec:
        """What rows of ``length`` positions with ``pairs`` pairs look like.

        Raises:
            UserError: when there are no such rows.
        """
        return MQARSpec(
            length=length,
            pairs=pairs,
            vocab_size=self.vocab_size,
            power=self.power,
            random_fillers=self.random_fillers,
            rewrites=self.rewrites,
            repeats=self.repeats,
            outliers=self.outliers,
        )

    def batch(self, seed: int, index: int, batch_size: int, length: int) -> Batch:
        random = rng(seed, index)
        most = min(self.most_pairs, self.spec(length, self.least_pairs).room)
        spec = self.spec(length, int(random.integers(self.least_pairs, most + 1)))
        return Batch.from_labels(*make_mqar(random, batch_size, spec))


@dataclass(frozen=True, kw_only=True)
class DisputedTask(MQARTask):
    """Asks only about values that some writing got wrong. Every row has ``least_pairs`` pairs."""

    def batch(self, seed: int, index: int, batch_size: int, length: int) -> Batch:
        only = replace(self, most_pairs=self.least_pairs)
        whole = MQARTask.batch(only, seed, index, batch_size, length)
        labels = np.where(whole.weights.numpy() > 0, whole.targets.numpy(), IGNORE)
        asked = disputed(Labelled(whole.ids.numpy(), labels), self.spec(length, self.least_pairs))
        return replace(whole, weights=torch.from_numpy(asked.astype(np.float32)))
