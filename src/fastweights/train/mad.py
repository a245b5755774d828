"""The six tasks of MAD as something to train on; `fastweights.tasks.mad` says what they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

from fastweights.errors import UserError
from fastweights.tasks.labelled import IGNORE, Labelled
from fastweights.tasks.mad import (
    BASELINES,
    CompressionSpec,
    CopyingSpec,
    FuzzyRecallSpec,
    MADSpec,
    MemorizationSpec,
    Phase,
    RecallSpec,
    make_mad,
)
from fastweights.train.task import Batch, Task, rng


@dataclass(frozen=True, kw_only=True)
class MADTask(Task):
    """Rows of one of MAD's tasks, as long as the stage says.

    The published score is a probe's ``accuracy``, the share of tokens; ``exact`` counts whole answers, which in copying
    and compression are all that a row asks.

    Compression is another task here than the published one, and its numbers are not comparable. There a network of its
    own decodes every token from the state behind the row's last one, and from an encoding of the token's place. A
    language model has neither: here the first half of a row is tokens and the compression token, and the second half
    shows that token alone and asks for the first half in order, its compression token last where the length is even. So
    the model itself must count, and attention that reaches the first half need not compress: only of a model that keeps
    nothing but a state does this task say what it can hold. The published 32 tokens are a length of 64.

    Attributes:
        name: of `fastweights.tasks.mad.BASELINES`.
        phase: of the recall tasks: ``train`` asks for every next token, as published, ``test`` for answers alone.
        vocabulary: how many tokens there are, 16 of them noise in noisy recall; 0 for the published number.
        noise: share of noise in noisy recall; below 0 for the published one.
        copies: tokens to copy in selective copying; 0 for the published number.
        dictionary: in memorization, the seed of the map from keys to values, >= 0. The run's seed leaves the map alone,
            so a probe asks for what was trained.
    """

    name: str = "in-context-recall"
    phase: Phase = "train"
    vocabulary: int = 0
    noise: float = -1.0
    copies: int = 0
    dictionary: int = MemorizationSpec.seed

    def __post_init__(self) -> None:
        if self.name not in BASELINES:
            raise UserError(f"the tasks of MAD are {', '.join(BASELINES)}, not {self.name!r}")
        if self.phase not in get_args(Phase):
            raise UserError(f"phase must be train or test, not {self.phase!r}")
        if self.noise >= 0 and self.name != "noisy-in-context-recall":
            raise UserError(f"only noisy-in-context-recall has noise, not {self.name}")
        if self.copies and self.name != "selective-copying":
            raise UserError(f"only selective-copying has copies, not {self.name}")
        if self.dictionary != MemorizationSpec.seed and self.name != "memorization":
            raise UserError(f"only memorization has a dictionary, not {self.name}")

    @property
    def vocab_size(self) -> int:
        """What a model's vocabulary must hold at least."""
        return self.vocabulary or BASELINES[self.name].vocab_size

    def spec(self, length: int) -> MADSpec:
        """What rows of ``length`` tokens look like; of compression, their first half.

        Raises:
            UserError: there are no such rows.
        """
        found = replace(BASELINES[self.name], vocab_size=self.vocab_size)
        match found:
            case RecallSpec():
                noise = self.noise if self.noise >= 0 else found.noise
                return replace(found, length=length, noise=noise, phase=self.phase)
            case FuzzyRecallSpec():
                return replace(found, length=length, phase=self.phase)
            case CopyingSpec():
                return replace(found, length=length, copies=self.copies or found.copies)
            case CompressionSpec():
                if length < 3:
                    raise UserError(
                        f"compression asks behind a token and the compression token, not in rows of {length}"
                    )
                return replace(found, length=-(-length // 2))
            case MemorizationSpec():
                return replace(found, length=length, seed=self.dictionary)

    def batch(self, seed: int, index: int, batch_size: int, length: int) -> Batch:
        spec = self.spec(length)
        rows = make_mad(rng(seed, index), batch_size, spec)
        return Batch.from_labels(*(_decoded(rows, length) if isinstance(spec, CompressionSpec) else rows))


def _decoded(rows: Labelled, length: int) -> Labelled:
    """Fill rows up to ``length`` with the compression token and ask there for what stands before, from the first on."""
    shown, asked = rows.ids.shape[1], length - rows.ids.shape[1]
    again = np.repeat(rows.ids[:, -1:], asked, axis=1)
    labels = np.full((len(rows.ids), length), IGNORE)
    labels[:, shown:] = rows.ids[:, :asked]
    return Labelled(np.concatenate([rows.ids, again], axis=1), labels)
