"""The six tasks of MAD as something to train on; `fastweights.tasks.mad` says what they are."""

from __future__ import annotations

from dataclasses import dataclass, replace

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

    The published compression has a network of its own decode every token from the state behind the row's last one. A
    language model has no such network: here the first half of the row is tokens and the compression token, and in the
    second half, which shows that token alone, they are asked in order, from the state carried on.

    Attributes:
        name: of `fastweights.tasks.mad.BASELINES`.
        phase: of the recall tasks: ``train`` asks for every next token, as published, ``test`` for answers alone.
        vocab_size: tokens; 0 for the published number.
        noise: share of noise in noisy recall; below 0 for the published one.
        copies: tokens to copy; 0 for the published number, an eighth of which the shortest rows hold.
    """

    name: str = "in-context-recall"
    phase: Phase = "train"
    vocab_size: int = 0
    noise: float = -1.0
    copies: int = 0

    def __post_init__(self) -> None:
        if self.name not in BASELINES:
            raise UserError(f"the tasks of MAD are {', '.join(BASELINES)}, not {self.name!r}")
        if self.noise >= 0 and self.name != "noisy-in-context-recall":
            raise UserError(f"only noisy-in-context-recall has noise, not {self.name}")
        if self.copies and self.name != "selective-copying":
            raise UserError(f"only selective-copying has copies, not {self.name}")

    @property
    def tokens(self) -> int:
        """What a model's vocabulary must hold at least."""
        return self.vocab_size or BASELINES[self.name].vocab_size

    def spec(self, length: int) -> MADSpec:
        """What rows of ``length`` tokens look like.

        Raises:
            UserError: there are no such rows.
        """
        found = BASELINES[self.name]
        if self.vocab_size:
            found = replace(found, vocab_size=self.vocab_size)
        match found:
            case RecallSpec():
                noise = self.noise if self.noise >= 0 else found.noise
                return replace(found, length=length, noise=noise, phase=self.phase)
            case FuzzyRecallSpec():
                return replace(found, length=length, phase=self.phase)
            case CopyingSpec():
                return replace(found, length=length, copies=self.copies or found.copies)
            case CompressionSpec():
                return replace(found, length=-(-length // 2))
            case MemorizationSpec():
                return replace(found, length=length)

    def batch(self, seed: int, index: int, batch_size: int, length: int) -> Batch:
        spec = self.spec(length)
        rows = make_mad(rng(seed, index), batch_size, spec)
        return Batch.from_labels(*(_decoded(rows, length) if isinstance(spec, CompressionSpec) else rows))


def _decoded(rows: Labelled, length: int) -> Labelled:
    """Tokens, and behind the compression token as many of it: the tokens before are asked there in order."""
    shown, asked = rows.ids.shape[1], length - rows.ids.shape[1]
    again = np.repeat(rows.ids[:, -1:], asked, axis=1)
    labels = np.full((len(rows.ids), length), IGNORE)
    labels[:, shown:] = rows.ids[:, :asked]
    return Labelled(np.concatenate([rows.ids, again], axis=1), labels)
