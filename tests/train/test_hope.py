"""Training models with levels: what they have not finished is part of a checkpoint."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

from tests.train.runs import TINY, TINY_MODEL

from fastweights.models.pretrained import load_model
from fastweights.train.feed import Feed
from fastweights.train.loop import train
from fastweights.train.optim import warm_levels
from fastweights.train.records import StepRecord
from fastweights.train.run import Run

LEVELS = replace(TINY, model=replace(TINY_MODEL, levels="5,20", level_optimiser="momentum"))


def test_a_run_that_was_stopped_inside_a_document_ends_as_if_it_never_was(tmp_path: Path) -> None:
    """After 7 steps the checkpoint holds a state that is carried on, with an unfinished window of 2 tokens."""

    def press(record: StepRecord) -> None:
        if record.step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    whole = train(LEVELS, tmp_path / "whole")
    assert not train(LEVELS, tmp_path / "run", on_step=press).finished
    assert train(LEVELS, tmp_path / "run", resume=True).finished
    assert whole.model_folder is not None
    ours = load_model(tmp_path / "run" / "model")
    assert ours.fingerprint() == load_model(whole.model_folder).fingerprint()


def test_steps_of_levels_warm_up_while_a_model_is_trained_and_are_whole_when_it_is_exported() -> None:
    run, warmth = Run(LEVELS, None, lambda note: None), []
    assert run.model.learner is not None
    with Feed(LEVELS) as feed:
        while run.step < LEVELS.steps:
            run.advance(feed)
            warmth.append(run.model.learner.warmth)
    assert warmth == [warm_levels(step, LEVELS.steps) for step in range(LEVELS.steps)]
    assert warmth[0] < 1.0
    learner = run.export().learner
    assert learner is not None
    assert learner.warmth == 1.0
