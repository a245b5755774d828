"""Any text task at growing lengths: samples are read side by side, asked once, and kept as soon as they are done."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastweights.data.tokenizer import Tokenizer
from fastweights.errors import UserError
from fastweights.evaluate.answerer import Answerer, ReadingProgress
from fastweights.evaluate.cells import circumstances
from fastweights.evaluate.ledger import RecordedLedger, Result
from fastweights.evaluate.text_tasks import Asked, Maker, samples_of

ROWS = 8
"""Samples that are read side by side."""


class SampleStep(NamedTuple):
    """How an evaluation goes.

    Attributes:
        done: Samples with a result.
        samples: Samples in all.
        tokens: Length that is being measured.
        reading: How the reading of the present samples goes, or None between them.
    """

    done: int
    samples: int
    tokens: int
    reading: ReadingProgress | None


def evaluate_task(
    answerer: Answerer,
    task: str,
    lengths: Sequence[int],
    samples: int,
    output: Path,
    *,
    seed: int = 42,
    paths: Sequence[str] = (),
    count_by: Tokenizer | None = None,
    command: str = "",
    on_step: Callable[[SampleStep], None] | None = None,
) -> dict[str, Any]:
    """Measure a model on samples of a task and write the results; those that are in `output` already are kept.

    Each sample is read once into an empty memory and its prompt's end continued greedily, free-running.

    Args:
        answerer: Reads and answers.
        task: A name of `text_tasks.TASKS`.
        lengths: Most tokens of a sample.
        samples: For each length. The same facts are asked for at every length, wherever they fit.
        output: The results: for every length each score's mean and 95 % interval, and every sample.
        seed: Which set of samples.
        paths: See `samples_of`.
        count_by: Counts the lengths, instead of the answerer's own tokenizer; kept with the results.
        command: What was typed; kept with date, machine and versions of every run that added samples.
        on_step: Called as it goes.

    Returns:
        What is in `output` at the end, which holds other lengths too if it did before.

    Raises:
        UserError: No such task, no samples, a length that is too short, or an `output` that is something else, belongs
            to another model, task, seed, text or counting tokenizer, or cannot be written; and, before anything is
            read, a sample that is longer than the answerer can read.
    """
    if samples < 1 or not lengths:
        raise UserError(f"an evaluation needs a length and at least one sample, not {samples} of {list(lengths)}")
    makers = {tokens: samples_of(task, count_by or answerer.tokenizer, tokens, seed, paths) for tokens in lengths}
    for make in makers.values():
        _require_room(answerer, make, samples)
    ledger = _Samples(output, _facts(answerer, task, seed, paths, count_by), _run(answerer, command))
    wanted = [_key(tokens, index) for tokens in lengths for index in range(samples)]
    try:
        for tokens, make in makers.items():
            missing = [index for index in range(samples) if _key(tokens, index) not in ledger.results]
            for start in range(0, len(missing), ROWS):

                def report(reading: ReadingProgress, tokens: int = tokens) -> None:
                    if on_step is not None:
                        done = sum(key in ledger.results for key in wanted)
                        on_step(SampleStep(done, len(wanted), tokens, reading))

                for result in _answered(answerer, make, tokens, missing[start : start + ROWS], report):
                    ledger.add(result)
        if on_step is not None:
            on_step(SampleStep(len(wanted), len(wanted), lengths[-1], None))
    finally:
        written = ledger.save()
    return written


def _require_room(answerer: Answerer, make: Maker, samples: int) -> None:
    """Find out before the reading that a length is too short for the task or too long for who reads."""
    for index in range(samples if answerer.longest is not None else 1):
        one = make(index)
        answerer.require_room(one.context, one.question, one.max_tokens)


def _facts(
    answerer: Answerer, task: str, seed: int, paths: Sequence[str], count_by: Tokenizer | None
) -> dict[str, Any]:
    """What all results of a file share."""
    return {
        "model": answerer.name,
        "fingerprint": answerer.fingerprint,
        "task": task,
        "seed": seed,
        "text": list(paths),
        "count_by": None if count_by is None else count_by.name,
        "count_by_sha256": None if count_by is None else count_by.fingerprint,
    }


def _run(answerer: Answerer, command: str) -> dict[str, Any]:
    """Where and when results are added, and with what."""
    run = {"command": command} | circumstances(answerer.device, torch.get_num_threads())
    return run | {"versions": run["versions"] | dict(answerer.versions)}


def _answered(
    answerer: Answerer, make: Maker, tokens: int, indices: Sequence[int], on_read: Callable[[ReadingProgress], None]
) -> Iterator[Result]:
    """The results of some samples of one length, each as soon as it is known."""
    asked = [make(index) for index in indices]
    limit = max(one.max_tokens for one in asked)
    answers = answerer.answer([one.context for one in asked], [one.question for one in asked], limit, on_read)
    for one, index, answer in zip(asked, indices, answers, strict=True):
        yield _result(one, index, tokens, answer.text, answer.tokens)


def _key(tokens: int, index: int) -> str:
    return f"{tokens}/{index}"


def _result(asked: Asked, index: int, tokens: int, answer: str, read: int) -> Result:
    return {
        "key": _key(tokens, index),
        "tokens": tokens,
        "index": index,
        "context_tokens": read,
        "depths": list(asked.depths),
        "question": asked.question,
        "expected": list(asked.references),
        "answer": answer,
        "scores": asked.score(answer),
    }


class _Samples(RecordedLedger):
    """The results of the samples of a task."""

    what = "this task"

    def is_whole(self, result: Result) -> bool:
        return bool(result["scores"]) and result["key"] == _key(result["tokens"], result["index"])

    def in_order(self) -> Sequence[Result]:
        return sorted(self.results.values(), key=lambda result: (result["tokens"], result["index"]))

    def summary(self, results: Sequence[Result]) -> dict[str, Any]:
        lengths = sorted({result["tokens"] for result in results})
        measured = [_summary(tokens, [r for r in results if r["tokens"] == tokens]) for tokens in lengths]
        return {"runs": self.runs, "lengths": measured}


def _summary(tokens: int, results: Sequence[Result]) -> dict[str, Any]:
    """Mean and interval of every score at one length, in percent."""
    scores = {}
    for name in results[0]["scores"]:
        share = statistics.fmean(result["scores"][name] for result in results)
        low, high = interval(share, len(results))
        scores[name] = {"mean": round(100 * share, 2), "interval": [round(100 * low, 2), round(100 * high, 2)]}
    return {"tokens": tokens, "samples": len(results), "scores": scores}


def interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share that was counted over so many samples.

    For samples that can be partly right it is too wide rather than too narrow.
    """
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)
