from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tests.train.runs import TINY, TINY_MODEL, HintedTask, short
from torch import Tensor

import fastweights.core.compiled
from fastweights.core.compiled import compiler
from fastweights.errors import UserError
from fastweights.models.language_model import LanguageModel, detach_state
from fastweights.models.pretrained import load_model, save_model
from fastweights.train import loop
from fastweights.train.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint, save_checkpoint
from fastweights.train.config import (
    CheckpointConfig,
    ConfigError,
    EvaluationConfig,
    HintConfig,
    OptimiserConfig,
    PriceConfig,
    Probe,
    SkipConfig,
    Stage,
    TrainConfig,
    apply_overrides,
)
from fastweights.train.folder import RunFolderError, model_from_run
from fastweights.train.loop import RunResult, train
from fastweights.train.loss import token_losses, weighted_mean
from fastweights.train.optim import Optimiser, TrainingStopped, learning_rate
from fastweights.train.recall import RecallTask
from fastweights.train.records import StepRecord, read_log
from fastweights.train.task import Batch

TIMES = ("seconds", "seconds_left", "tokens_per_second")


def weights(result: RunResult) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in result.model.named_parameters()}


def assert_same_run(one: Path, other: Path) -> None:
    """Equal weights to the bit, and equal logs but for the times."""
    first, second = load_model(one / "model"), load_model(other / "model")
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    logs = [
        [{k: v for k, v in line.items() if k not in TIMES} for line in read_log(f / "log.jsonl")] for f in (one, other)
    ]
    assert logs[0] == logs[1]


class Stopper:
    """Presses Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, record: StepRecord) -> None:
        if record.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(TINY, folder).finished
    return folder


def test_a_run_leaves_a_model_a_log_and_its_last_checkpoints(whole: Path) -> None:
    assert sorted(os.listdir(whole)) == ["checkpoints", "config.json", "log.jsonl", "model"]
    assert sorted(os.listdir(whole / "checkpoints")) == ["latest", "step-00000009", "step-00000012"]
    assert TrainConfig.from_json((whole / "config.json").read_text()) == TINY
    assert load_model(whole / "model").fingerprint() == model_from_run(whole).fingerprint()


def test_the_log_tells_loss_accuracy_gates_and_speed(whole: Path) -> None:
    lines = read_log(whole / "log.jsonl")
    steps = [line for line in lines if line["kind"] == "steps"]
    assert [line["step"] for line in steps] == [4, 8, 12]
    assert [line["price_weight"] for line in steps] == pytest.approx([0.0125, 0.095833, 0.1], rel=1e-3)
    for line in steps:
        assert 0 < line["price"] < 2
        assert len(line["write"]) == len(line["forget"]) == len(line["shut"]) == 1
        assert line["loss"] > 0
        assert 0 <= line["accuracy"] <= 1
        assert line["tokens_per_second"] > 0
        assert line["gradient_norm"] > 0
    assert lines[-1] == {"kind": "evaluation", "step": 12}


@pytest.mark.parametrize("stops", [(1,), (3,), (4, 5), (7,), (8, 10), (11,)], ids=str)
def test_a_run_that_was_stopped_ends_as_if_it_never_was(stops: tuple[int, ...], whole: Path, tmp_path: Path) -> None:
    """Stopped at a checkpoint, between two, inside a carried document (7, 11) and twice."""
    resume = False
    for stop in stops:
        result = train(TINY, tmp_path / "run", resume=resume, on_step=Stopper(stop))
        assert (result.finished, result.step, result.model_folder) == (False, stop, None)
        resume = True
        torch.manual_seed(stop)  # whatever else the process draws must not matter
    assert train(TINY, tmp_path / "run", resume=True).finished
    assert_same_run(whole, tmp_path / "run")


def test_a_run_that_has_done_enough_ends_with_a_model_and_can_go_on(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = train(TINY, folder, until=lambda record: record.step == 5)
    assert (result.finished, result.step, result.model_folder) == (True, 5, folder / "model")
    assert read_log(folder / "log.jsonl")[-1] == {"kind": "evaluation", "step": 5}
    assert load_model(folder / "model").fingerprint() == model_from_run(folder).fingerprint()
    assert train(TINY, folder, resume=True).step == 12
    assert load_model(folder / "model").fingerprint() == load_model(whole / "model").fingerprint()


def test_lines_behind_the_checkpoint_and_a_torn_line_leave_the_log(whole: Path, tmp_path: Path) -> None:
    """A killed process may have logged more steps than it saved."""
    folder = tmp_path / "run"
    train(TINY, folder, on_step=Stopper(7))
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps({"kind": "steps", "step": 8, "loss": 0}) + '\n{"kind": "st')
    train(TINY, folder, resume=True)
    assert_same_run(whole, folder)


def test_resuming_before_the_first_checkpoint_starts_anew(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(TINY.to_json())
    train(TINY, folder, resume=True)
    assert_same_run(whole, folder)


def test_resuming_a_finished_run_changes_nothing(whole: Path, tmp_path: Path) -> None:
    before = (whole / "log.jsonl").read_text()
    result = train(TINY, whole, resume=True, on_step=lambda record: pytest.fail("a step was done"))
    assert result.finished
    assert (whole / "log.jsonl").read_text() == before


def test_training_leaves_the_callers_random_state_and_threads_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(replace(short(1), threads=2), tmp_path / "run")
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == 1


def test_a_run_is_never_overwritten_by_accident(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(RunFolderError, match="no run to resume"):
        train(short(1), folder, resume=True)
    train(short(1), folder)
    with pytest.raises(RunFolderError, match="holds a run already"):
        train(short(1), folder)
    with pytest.raises(RunFolderError, match="contradict"):
        train(short(1), folder, resume=True, force=True)
    (folder / "notes.txt").write_text("mine")
    assert train(short(2), folder, force=True).step == 2
    assert (folder / "notes.txt").read_text() == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(RunFolderError, match="is not empty and is no training run"):
            train(short(1), tmp_path / "other", force=force)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optimiser.lr=0.5", r"optimiser\.lr was 0\.003 and is now 0\.5"),
        ("model.rule.chunk_size=4", r"model\.rule\.chunk_size was 8 and is now 4"),
        ("task.pairs=1", r"task\.pairs was 2 and is now 1"),
        ("stages.0.steps=9", r"stages\.0\.steps was 2 and is now 9"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(override: str, says: str, tmp_path: Path) -> None:
    train(short(2), tmp_path / "run", on_step=Stopper(1))
    with pytest.raises(RunFolderError, match=says):
        train(apply_overrides(short(2), [override]), tmp_path / "run", resume=True)
    assert train(apply_overrides(short(2), ["checkpoint.keep=5"]), tmp_path / "run", resume=True).finished


def test_a_run_is_not_resumed_on_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(short(3), tmp_path / "run", on_step=Stopper(1))
    batch = RecallTask.batch

    def changed(self: RecallTask, seed: int, index: int, batch_size: int, length: int) -> Batch:
        return batch(self, seed + 1, index, batch_size, length)

    monkeypatch.setattr(RecallTask, "batch", changed)
    with pytest.raises(CheckpointError, match="batch of step 2 is not the one this run would have had"):
        train(short(3), tmp_path / "run", resume=True)


def test_a_run_that_never_began_is_in_nobodys_way(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="do not fit"):
        train(replace(short(1), task=RecallTask(symbols=16, pairs=16, queries=2)), tmp_path / "run")
    assert train(short(1), tmp_path / "run").finished


def test_it_learns(tmp_path: Path) -> None:
    task = RecallTask(symbols=4, pairs=2, queries=3)
    config = replace(
        TINY,
        model=replace(TINY_MODEL, vocab_size=12, dim=32),
        task=task,
        stages=(Stage(steps=60, length=24, batch_size=16),),
        optimiser=OptimiserConfig(lr=1e-2, warmup_steps=10, weight_decay=0.0),
        price=PriceConfig(),
        evaluation=EvaluationConfig(probes=(Probe(name="same", length=24, batch_size=64),)),
    )
    metrics = train(config, tmp_path / "run").metrics
    assert metrics["same/accuracy"] > 0.4, "guessing among the values is right one time in four"
    assert metrics["same/loss"] < 1.3


def test_bfloat16_keeps_float32_weights_through_a_stop(tmp_path: Path) -> None:
    config = replace(short(4), precision="bfloat16")
    train(config, tmp_path / "whole")
    result = train(config, tmp_path / "run", on_step=Stopper(2))
    assert {p.dtype for p in result.model.parameters()} == {torch.bfloat16}
    train(config, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert {p.dtype for p in load_model(tmp_path / "run" / "model").parameters()} == {torch.float32}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_hints_are_learned_and_survive_a_stop(precision: Literal["float32", "bfloat16"], tmp_path: Path) -> None:
    hint = HintConfig(weight=0.5, end=0.7)
    config = replace(short(5), task=HintedTask(symbols=8, pairs=2, queries=2), hint=hint, precision=precision)
    result = train(config, tmp_path / "whole")
    train(config, tmp_path / "run", on_step=Stopper(2))
    train(config, tmp_path / "run", resume=True, on_step=Stopper(4))
    train(config, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    latest = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert latest is not None
    projection = load_checkpoint(latest).tensors["hint"]["hint.projection"]
    assert not torch.equal(projection, torch.eye(16))
    without = train(replace(config, hint=HintConfig()), tmp_path / "without")
    assert any(not torch.equal(a, b) for a, b in zip(weights(result).values(), weights(without).values(), strict=True))


def test_recomputing_gives_the_same_weights(tmp_path: Path) -> None:
    plain = weights(train(short(2), tmp_path / "plain"))
    recomputed = weights(train(replace(short(2), recompute=True), tmp_path / "recomputed"))
    for name, value in plain.items():
        torch.testing.assert_close(recomputed[name], value)


def test_steps_that_are_not_finite_are_skipped_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))
    poison = {2, 3}

    def poisoned(losses: Tensor, batch: Batch) -> Tensor:
        return weighted_mean(losses, batch) * (float("nan") if next(calls) in poison else 1.0)

    monkeypatch.setattr("fastweights.train.run.weighted_mean", poisoned)
    notes: list[str] = []
    records: list[StepRecord] = []
    result = train(short(6), tmp_path / "run", on_note=notes.append, on_step=records.append)
    assert [bool(record.skipped) for record in records] == [False, False, True, True, False, False]
    assert notes == [f"step {step} was skipped because its loss was nan" for step in (3, 4)]
    assert read_log(tmp_path / "run" / "log.jsonl")[0]["skipped"] == 2
    assert all(bool(torch.isfinite(p).all()) for p in result.model.parameters())


def test_too_many_skips_end_the_run_and_keep_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))

    def poisoned(losses: Tensor, batch: Batch) -> Tensor:
        return weighted_mean(losses, batch) * (float("nan") if next(calls) >= 4 else 1.0)

    monkeypatch.setattr("fastweights.train.run.weighted_mean", poisoned)
    config = replace(short(20), skip=SkipConfig(limit=3))
    with pytest.raises(TrainingStopped, match="3 steps in a row had to be skipped"):
        train(config, tmp_path / "run")
    latest = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert latest is not None
    saved = load_checkpoint(latest)
    assert all(bool(torch.isfinite(x).all()) for x in saved.tensors["model"].values())


def test_probes_and_a_hook_are_run_when_due_and_the_best_is_kept(tmp_path: Path) -> None:
    evaluation = EvaluationConfig(every=2, probes=(Probe(name="far", length=48, batch_size=2, batches=2),))
    seen: list[tuple[int, Mapping[str, Any]]] = []

    def hook(model: LanguageModel, step: int) -> dict[str, float]:
        return {"hook": {2: 0.5, 4: 0.9, 5: 0.1}[step]}

    config = replace(short(5), evaluation=evaluation)
    result = train(config, tmp_path / "run", on_evaluation=lambda s, m: seen.append((s, m)), evaluate=hook)
    assert [step for step, _ in seen] == [2, 4, 5]
    assert result.metrics.keys() == {"far/loss", "far/accuracy", "far/accuracy_at", "far/exact", "hook"}
    latest = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert latest is not None
    best = load_checkpoint(latest).facts["best"]
    assert best["hook"] == {"value": 0.9, "step": 4}
    assert best["far/loss"]["value"] == min(metrics["far/loss"] for _, metrics in seen)


def test_labels_are_smoothed_in_training_and_not_in_probes(tmp_path: Path) -> None:
    evaluation = EvaluationConfig(probes=(Probe(name="far", length=48, batch_size=2),))
    plain = replace(short(1), evaluation=evaluation, price=PriceConfig(), optimiser=OptimiserConfig(lr=1e-12))
    found = {}
    for share in (0.0, 0.5):
        steps: list[StepRecord] = []
        result = train(replace(plain, label_smoothing=share), tmp_path / str(share), on_step=steps.append)
        found[share] = steps[0].loss, result.metrics["far/loss"]
    assert found[0.5][0] != found[0.0][0]
    assert found[0.5][1] == pytest.approx(found[0.0][1], rel=1e-5)


def test_a_run_can_start_from_a_model(tmp_path: Path) -> None:
    model = LanguageModel(TINY_MODEL)
    save_model(model, tmp_path / "model", tokenizer="")
    config = replace(short(1), start_from=str(tmp_path / "model"), optimiser=OptimiserConfig(lr=1e-9))
    trained = train(config, tmp_path / "run").model
    for ours, theirs in zip(model.parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-6)
    other = replace(config, model=replace(TINY_MODEL, depth=2))
    with pytest.raises(ConfigError, match="depth was 1 and is now 2"):
        train(other, tmp_path / "other")


def test_a_run_can_start_from_a_run_that_was_stopped(tmp_path: Path) -> None:
    first = train(short(2), tmp_path / "first")
    shutil.rmtree(tmp_path / "first" / "model")
    config = replace(short(1), start_from=str(tmp_path / "first"), optimiser=OptimiserConfig(lr=1e-9))
    trained = train(config, tmp_path / "second").model
    for ours, theirs in zip(first.model.parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-6)


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for device in ("cuda:97", "teapot"):
        with pytest.raises(ConfigError, match=f"there is no device '{device}' on this machine"):
            train(replace(short(1), device=device), tmp_path / "run")


def test_a_setting_that_a_run_knew_nothing_of_does_not_keep_it_from_going_on(tmp_path: Path) -> None:
    train(short(2), tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    facts = json.loads(path.read_text())
    del facts["model"]["memory_head_dim"]
    path.write_text(json.dumps(facts))
    assert train(short(2), tmp_path / "run", resume=True).finished


def test_the_state_is_carried_detached_from_segment_to_segment(tmp_path: Path) -> None:
    """Two steps of a run with two segments are two steps by hand, the second from the detached state of the first."""
    stage = Stage(steps=2, length=16, batch_size=2, segments=2)
    config = replace(TINY, stages=(stage,), price=PriceConfig(), optimiser=OptimiserConfig(warmup_steps=0))
    losses: list[float] = []
    result = train(config, tmp_path / "run", on_step=lambda record: losses.append(record.loss))

    torch.manual_seed(config.seed)
    model = LanguageModel(TINY_MODEL)
    optimiser = Optimiser(model, config.optimiser)
    batch, state, expected = TINY.task.batch(0, 0, 2, 32), None, []
    for step in range(2):
        piece = batch.piece(16 * step, 16 * step + 16)
        output = model.encode(piece.ids, state)
        loss = weighted_mean(token_losses(model, output.hidden, piece)[0], piece)
        loss.backward()
        optimiser.step(learning_rate(step, 2, config.optimiser), optimiser.collect())
        optimiser.clear()
        state = detach_state(output.state)
        expected.append(loss.item())
    assert losses == expected
    assert losses[1] > 0
    for ours, theirs in zip(model.parameters(), result.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_time_limit_saves_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []

    def save(folder: Path, checkpoint: Any, keep: int) -> Path:
        saved.append(checkpoint.step)
        return save_checkpoint(folder, checkpoint, keep)

    monkeypatch.setattr("fastweights.train.loop.save_checkpoint", save)
    train(replace(short(3), checkpoint=CheckpointConfig(every_minutes=1e-9)), tmp_path / "run")
    assert saved == [1, 2, 3, 3]


def test_a_second_interrupt_stops_at_once_and_the_checkpoint_stays(tmp_path: Path) -> None:
    def twice(record: StepRecord) -> None:
        if record.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(short(9), tmp_path / "run", on_step=twice)
    assert train(short(9), tmp_path / "run", resume=True).finished


def test_a_compiled_run_learns_the_same_and_its_compiler_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a backend that every machine has in place of Inductor."""
    seen: list[object] = []

    def light(backend: str | None, device: str) -> Any:
        seen.append(backend)
        return compiler(None if backend is None else "aot_eager", device)

    monkeypatch.setattr(loop, "compiler", light)
    plain = train(short(3), tmp_path / "plain")
    compiled = train(replace(short(3), compile=True), tmp_path / "compiled")
    torch.compiler.reset()
    assert seen == [None, "inductor"]
    for name, weight in weights(plain).items():
        torch.testing.assert_close(weights(compiled)[name], weight, rtol=1e-4, atol=1e-5)

    def refuse(*given: object) -> Any:
        raise AssertionError("compiled")

    monkeypatch.setattr(fastweights.core.compiled, "_compiled", refuse)
    plain.model(torch.zeros(1, 9, dtype=torch.int64))


def test_a_run_that_cannot_be_compiled_says_so_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "compiler", lambda backend, device: nullcontext(False))
    notes: list[str] = []
    assert train(replace(short(1), compile=True), tmp_path / "run", on_note=notes.append).finished
    assert any("torch.compile does not work" in note for note in notes)
