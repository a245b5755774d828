"""Training models with levels: what they have not finished is part of a checkpoint."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

from tests.train.runs import TINY, TINY_MODEL

from fastweights.models.pretrained import load_model
from fastweights.train.loop import train
from fastweights.train.records import StepRecord

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
