"""Batches in order, the next one made on a helper thread while the present one is trained on."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from fastweights.train.config import TrainConfig
from fastweights.train.task import Batch


class Feed:
    """Gives the batch of any step, and has the batch of the step after it made meanwhile.

    Args:
        config: the curriculum, the tasks and the seed.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._document = -1
        self._batch: Future[Batch] | None = None
        self._next: Future[Batch] | None = None

    def get(self, step: int) -> Batch:
        """The piece of a batch that step ``step`` trains on, checked.

        Raises:
            TaskError: when the task made a batch that cannot be trained on.
        """
        place = self._config.place(step)
        if place.document != self._document:
            ready = self._next if place.document == self._document + 1 else None
            self._batch = ready or self._submit(step)
            self._document = place.document
            following = step - place.segment + place.stage.segments
            self._next = self._submit(following) if following < self._config.steps else None
        assert self._batch is not None
        start = place.segment * place.stage.length
        return self._batch.result().piece(start, start + place.stage.length)

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _submit(self, step: int) -> Future[Batch]:
        return self._pool.submit(self._make, step)

    def _make(self, step: int) -> Batch:
        place = self._config.place(step)
        stage = place.stage
        length = stage.length * stage.segments
        task = stage.task or self._config.task
        batch = task.batch(self._config.seed, place.document, stage.batch_size, length)
        batch.check(stage.batch_size, length, self._config.model.vocab_size)
        return batch
