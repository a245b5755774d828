from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastweights.train.loss import AnswerCounts, GateUse
from fastweights.train.progress import ProgressLine, duration, evaluation_text
from fastweights.train.records import LogError, LogFile, StepRecord, read_log, summarise

EIGHT = (0,) * 8


def record(step: int, loss: float, skipped: str = "", gates: GateUse | None = None) -> StepRecord:
    counts = AnswerCounts(1, 2, (1, *EIGHT[1:]), (1, 1, *EIGHT[2:]), 0, 1)
    return StepRecord(
        step=step,
        steps=100,
        stage=0,
        length=64,
        loss=loss,
        answers=counts,
        price=0.5,
        price_weight=0.1,
        gates=gates,
        gradient_norm=1.0,
        lr=1e-3,
        tokens=1000,
        skipped=skipped,
        skips=int(bool(skipped)),
        seconds=0.5,
        elapsed=12.0,
        seconds_left=95.0,
    )


def test_the_line_says_where_the_run_stands() -> None:
    line = ProgressLine()
    text = line.text(record(3, 2.0))
    assert text == "step 3/100 · length 64 · loss 2.000 · right 50.0% · price 0.500 · 2,000 tokens/s · 1:35 left"
    assert "loss 1.900" in line.text(record(4, 1.0))
    assert "loss 1.900" in line.text(record(5, float("nan"), skipped="its loss was nan"))
    assert "1 skipped" in line.text(record(6, 1.9, skipped="x"))


def test_a_run_whose_first_step_is_skipped_has_no_loss_yet() -> None:
    assert "loss" not in ProgressLine().text(record(1, float("nan"), skipped="its loss was nan"))


def test_times_and_evaluations_are_short() -> None:
    assert [duration(s) for s in (0, 59.6, 95, 7265)] == ["0:00", "1:00", "1:35", "2:01:05"]
    assert evaluation_text(20, {"a/loss": 0.12345678, "a/list": [1], "a/none": None}) == "step 20: a/loss 0.1235"


def test_a_record_survives_json() -> None:
    one = record(1, 2.0, gates=GateUse((0.1, 0.2), (0.0, 0.0), (0.5, 1.0)))
    assert StepRecord.from_plain(json.loads(json.dumps(one.to_plain()))) == one


def test_a_log_line_averages_the_sound_steps() -> None:
    line = summarise([record(1, 1.0), record(2, float("nan"), skipped="nan"), record(3, 3.0)])
    assert line["loss"] == 2.0
    assert line["accuracy"] == 0.5
    assert line["accuracy_at"] == [1.0, 0.0]
    assert line["exact"] == 0.0
    assert line["tokens_per_second"] == 2000.0
    assert "loss" not in summarise([record(2, float("nan"), skipped="nan")])


def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LogFile(tmp_path / "log.jsonl", 0) as log:
        with Path("/dev/full").open("wb", buffering=0) as full, monkeypatch.context() as patch:
            patch.setattr(log, "_file", full)
            with pytest.raises(LogError, match=r"log\.jsonl could not be written: No space left on device"):
                log.write({"step": 1})
        log.write({"step": 2})
    assert read_log(tmp_path / "log.jsonl") == [{"step": 2}]
    with pytest.raises(LogError, match=r"nowhere/log\.jsonl could not be written: No such file or directory"):
        LogFile(tmp_path / "nowhere" / "log.jsonl", 0)
