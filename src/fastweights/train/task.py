"""What a model is trained on: batches that are a pure function of (seed, index).

A task keeps no counters and no random state of its own, so a run can stop anywhere and go on with the very batch that
would have come next.

Shapes: B rows, T positions.
"""

from __future__ import annotations

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastweights.errors import UserError
from fastweights.tasks.labelled import IGNORE


class TaskError(UserError):
    """A task made a batch that cannot be trained on."""


@dataclass(frozen=True)
class Batch:
    """Rows of tokens with what is to be predicted where.

    The prediction made *at* position ``t`` (after reading ``ids[b, t]``) is compared with ``targets[b, t]`` and counts
    with ``weights[b, t]``. Positions of weight 0 cost nothing: their logits are never computed.

    Attributes:
        ids: int64 ``[B, T]``, the tokens read.
        targets: int64 ``[B, T]``, the token to predict at each position; anything valid where the weight is 0.
        weights: float32 ``[B, T]``, >= 0; the loss is the weighted mean of the cross-entropies.
        mask: bool ``[B, T]``, False at padding, or None when every token is real.
        answers: int64 ``[B, T]``: positions of one answer share a number >= 1, 0 is no answer. Accuracy is counted over
            answers only. None means that every run of neighbouring positions with a weight is one answer.
        hints: int64 ``[B, T, n]``: tokens that a middle block should already know at each position (see
            `fastweights.train.config.HintConfig`), -1 for none; or None.
    """

    ids: Tensor
    targets: Tensor
    weights: Tensor
    mask: Tensor | None = None
    answers: Tensor | None = None
    hints: Tensor | None = None

    @classmethod
    def from_tokens(
        cls,
        tokens: np.ndarray,
        weights: np.ndarray,
        *,
        real: np.ndarray | None = None,
        answers: np.ndarray | None = None,
        hints: np.ndarray | None = None,
    ) -> Batch:
        """Make a next-token batch from ``T + 1`` tokens a row.

        Every array is ``[B, T + 1]`` and speaks of tokens, not of predictions: ``weights[b, i]`` is what predicting
        token ``i`` from the tokens before it counts, ``answers[b, i]`` the answer that token ``i`` belongs to,
        ``hints[b, i]`` what should be known when token ``i`` is predicted,
        ``real[b, i]`` is False at padding. The first token of a row is never predicted.
        """
        ids = torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.int64))
        weight = torch.from_numpy(np.ascontiguousarray(weights, dtype=np.float32))
        mask = None if real is None else torch.from_numpy(np.ascontiguousarray(real, dtype=np.bool_))
        hint = None if hints is None else torch.from_numpy(np.ascontiguousarray(hints, dtype=np.int64))
        answer = None if answers is None else torch.from_numpy(np.ascontiguousarray(answers, dtype=np.int64))
        return cls(
            ids=ids[:, :-1],
            targets=ids[:, 1:],
            weights=weight[:, 1:],
            mask=None if mask is None else mask[:, :-1],
            answers=None if answer is None else answer[:, 1:],
            hints=None if hint is None else hint[:, 1:],
        )

    @classmethod
    def from_labels(cls, ids: np.ndarray, labels: np.ndarray) -> Batch:
        """Make a batch from ids and what is to be said at each of them, both int64 ``[B, T]``.

        Labels are those of the tasks in symbols: `IGNORE` where nothing is asked.
        """
        asked = labels != IGNORE
        return cls(
            ids=torch.from_numpy(ids),
            targets=torch.from_numpy(np.where(asked, labels, 0)),
            weights=torch.from_numpy(asked.astype(np.float32)),
        )

    def piece(self, start: int, stop: int) -> Batch:
        """The positions ``start`` to ``stop`` of every row (views, nothing is copied)."""
        return Batch(*(None if x is None else x[:, start:stop] for x in self._tensors()))  # type: ignore[arg-type]

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(*(None if x is None else x.to(device) for x in self._tensors()))  # type: ignore[arg-type]

    def real_tokens(self) -> int:
        """How many positions are not padding."""
        return self.ids.numel() if self.mask is None else int(self.mask.sum())

    def sha256(self) -> str:
        """Hash of all that the batch holds; equal batches have equal hashes on every machine."""
        digest = hashlib.sha256()
        for field, tensor in zip(dataclasses.fields(self), self._tensors(), strict=True):
            if tensor is not None:
                digest.update(f"{field.name} {tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def check(self, rows: int, length: int, vocab_size: int) -> None:
        """Refuse a batch of the wrong shape, of ids outside the vocabulary, or with weights on padding.

        Raises:
            TaskError: with one sentence that names the fault.
        """
        for field, tensor in zip(dataclasses.fields(self), self._tensors(), strict=True):
            if tensor is not None and tuple(tensor.shape[:2]) != (rows, length):
                shape = list(tensor.shape)
                raise TaskError(f"the task's {field.name} have shape {shape} where [{rows}, {length}] was asked for")
        for name, ids, least in (("ids", self.ids, 0), ("targets", self.targets, 0), ("hints", self.hints, -1)):
            if ids is None or ids.numel() == 0:
                continue
            low, high = int(ids.min()), int(ids.max())
            if low < least or high >= vocab_size:
                raise TaskError(f"the task's {name} span {low} to {high}, but the model's vocab_size is {vocab_size}")
        if not bool((self.weights >= 0).all()) or not bool(torch.isfinite(self.weights).all()):
            raise TaskError("the task's weights must be finite and not negative")
        if self.mask is not None and bool((self.weights[~self.mask] > 0).any()):
            raise TaskError("the task puts loss weights on padding; padded positions must have weight 0")

    def _tensors(self) -> tuple[Tensor | None, ...]:
        return (self.ids, self.targets, self.weights, self.mask, self.answers, self.hints)


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A source of batches. Subclasses are frozen dataclasses whose fields are all of the task's settings.

    Heavy things (texts, tokenizers) belong into a cached function beside the class, never into a field: the fields are
    what a run writes into its ``config.json``. Batches may be made on a helper thread.

    Attributes:
        tokenizer: name of the tokenizer whose ids the batches hold, stored with the exported model; empty when the ids
            are symbols rather than text.
    """

    tokenizer: str = ""

    @abstractmethod
    def batch(self, seed: int, index: int, batch_size: int, length: int) -> Batch:
        """Make batch number ``index``.

        Args:
            seed: the run's seed. Equal arguments must give equal batches, whatever was asked before.
            index: number of the batch, >= 0.
            batch_size: rows B.
            length: positions T.

        Returns:
            A `Batch` whose tensors are ``[batch_size, length]``.
        """


def rng(seed: int, index: int) -> np.random.Generator:
    """The random numbers of batch ``index``: independent of every other batch and seed, equal on every machine."""
    return np.random.default_rng([seed, index])
