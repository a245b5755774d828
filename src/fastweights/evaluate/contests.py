"""Contests of the size that a laptop can train: recall, a hidden number, state tracking, prose."""

from __future__ import annotations

from itertools import pairwise

from fastweights.data.documents import novels
from fastweights.evaluate.contest import Contest
from fastweights.models.config import ModelConfig
from fastweights.tasks.formal_languages import BINS, Language
from fastweights.tasks.needle_rows import RowMix
from fastweights.train.config import Probe, SkipConfig, Stage
from fastweights.train.mqar import MQARTask
from fastweights.train.needle import NeedleTask
from fastweights.train.state_tracking import LanguageTask, ParityTask
from fastweights.train.text import TextTask

HELD_BACK = 2
"""Shipped novels that no contest trains on: the last ones by year."""

SUDDEN = SkipConfig(factor=1000.0)
"""What a state tracker learns it learns suddenly, with gradients a hundred times those of the plateau before."""


def mqar(steps: int = 1000) -> Contest:
    """Multi-query associative recall (arXiv 2312.04927): 4 to 32 pairs in rows of 64 to 256 tokens.

    Rows of 64 tokens first, then all lengths in turn. A guess among the 256 values is right in 0.4 %.
    """
    task = MQARTask()
    plain, lengths, rounds = round(0.3 * steps), (64, 128, 256), 5
    borders = [plain + round((steps - plain) * turn / 15) for turn in range(16)]
    later = [
        Stage(steps=max(1, b - a), length=length, batch_size=1024 // length)
        for (a, b), length in zip(pairwise(borders), lengths * rounds, strict=True)
    ]
    return Contest(
        like=ModelConfig(vocab_size=512, dim=64, depth=2, heads=2, memory_head_dim=16, start="induction"),
        parameters=160_000,
        task=task,
        stages=(Stage(steps=max(1, plain), length=64, batch_size=16), *later),
        questions=tuple(_recall(task, length, pairs) for length, pairs in ((64, 4), (128, 8), (256, 16), (256, 32))),
        learned=0.5,
        guess=1 / 256,
    )


def _recall(task: MQARTask, length: int, pairs: int) -> Probe:
    fixed = MQARTask(vocab_size=task.vocab_size, least_pairs=pairs, most_pairs=pairs)
    return Probe(name=f"{pairs} pairs", length=length, batch_size=32, batches=max(1, 32 // pairs), task=fixed)


def parity(steps: int = 400) -> Contest:
    """The parity of 3 to 40 bits, asked at every bit, and of up to 256 in the end. A guess is right in half."""
    return Contest(
        like=ModelConfig(vocab_size=3, dim=64, depth=2, heads=4),
        parameters=160_000,
        task=ParityTask(shortest=3),
        stages=(Stage(steps=steps, length=40, batch_size=64),),
        questions=tuple(
            Probe(name=f"{length} bits", length=length, batch_size=64, batches=2, task=ParityTask())
            for length in (40, 80, 256)
        ),
        learned=0.9,
        guess=0.5,
        skip=SUDDEN,
    )


def language(name: Language, steps: int = 400) -> Contest:
    """One of the Hope paper's formal languages: words of 2 to 50 symbols, then of 51 to 100; a whole row counts.

    A guess gets no row right; but for ``parity`` and ``shuffle2`` there is one row a length. As in the paper, training
    ends when everything is right, the longer words as well: these decide when to stop.
    """
    asked = [LanguageTask(language=name, shortest=shortest) for shortest, _ in BINS]
    return Contest(
        like=ModelConfig(vocab_size=asked[0].vocab_size, dim=64, depth=1, heads=4),
        parameters=90_000,
        task=asked[0],
        stages=(Stage(steps=steps, length=BINS[0][1], batch_size=32),),
        questions=tuple(
            Probe(name=f"{shortest} to {longest} symbols", length=longest, batch_size=64, batches=4, task=task)
            for (shortest, longest), task in zip(BINS, asked, strict=True)
        ),
        measure="exact",
        learned=0.99,
        guess=0.0,
        skip=SUDDEN,
        minutes=20.0,
        enough=1.0,
        look_every=50,
    )


def needle(steps: int = 700) -> Contest:
    """One number of seven digits in RULER's noise, asked for by its key (S-NIAH-PK): rows of 256 tokens, up to 4,096.

    The first rows have a number of one digit. What counts are whole numbers, with the true digits before each given, in
    32 rows, or 16 of the two greatest lengths.
    """
    first, task = (NeedleTask(mix=_one_needle(digits, short)) for digits, short in ((1, 1.0), (7, 0.5)))
    asked = NeedleTask(mix=_one_needle(7, 0.0, "eval"))
    return Contest(
        like=ModelConfig(vocab_size=4096, dim=64, depth=2, heads=2, start="induction", embedding_std=0.35),
        parameters=700_000,
        task=task,
        stages=(
            Stage(steps=round(0.2 * steps), length=192, batch_size=8, task=first),
            Stage(steps=steps - round(0.2 * steps), length=256, batch_size=8),
        ),
        questions=tuple(
            Probe(name=f"{length} tokens", length=length, batch_size=rows, batches=batches, task=asked)
            for length, rows, batches in ((256, 16, 2), (512, 8, 4), (1024, 4, 8), (2048, 2, 8), (4096, 1, 16))
        ),
        measure="exact",
        learned=0.5,
        guess=0.0,
    )


def _one_needle(digits: int, short: float, split: str = "train") -> RowMix:
    return RowMix(
        noise=1.0,
        text=0.0,
        dense=0.0,
        min_needles=1,
        max_needles=1,
        questions=1,
        digits=digits,
        short=short,
        introduce=1.0 - short,
        split=split,  # type: ignore[arg-type]
    )


def books(steps: int = 300) -> Contest:
    """Bits per byte of novels: eight of those that are shipped to train on, in rows of 512 bytes, two to be read."""
    names = [novel.name for novel in novels()]
    held_back = TextTask(novels=tuple(names[-HELD_BACK:]))
    return Contest(
        like=ModelConfig(vocab_size=264, dim=64, depth=2, heads=2),
        parameters=200_000,
        task=TextTask(novels=tuple(names[:-HELD_BACK])),
        stages=(Stage(steps=steps, length=512, batch_size=4),),
        questions=tuple(
            Probe(name=f"{length} bytes", length=length, batch_size=rows, batches=8, task=held_back)
            for length, rows in ((512, 8), (2048, 2), (4096, 1))
        ),
        measure="bits",
        learned=3.0,
        guess=8.0,
    )
