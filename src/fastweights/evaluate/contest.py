"""A comparison: contenders that are trained alike and asked alike.

A recipe of a comparison is a Python file with a function ``comparison() -> Comparison``, such as
``recipes/compare_quick.py``. :func:`run_cell` trains one model for one contest and asks it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from fastweights.core.rule import beyond_defaults
from fastweights.errors import UserError
from fastweights.evaluate.questions import Measure, ask, state_after
from fastweights.models.budget import parameter_count, with_parameters
from fastweights.models.config import ModelConfig
from fastweights.models.controls import CONTROLS, controlled, defined
from fastweights.models.language_model import LanguageModel
from fastweights.models.pretrained import load_model
from fastweights.train.config import (
    CheckpointConfig,
    EvaluationConfig,
    OptimiserConfig,
    PriceConfig,
    Probe,
    SkipConfig,
    Stage,
    TrainConfig,
)
from fastweights.train.folder import CONFIG, LOG, MODEL
from fastweights.train.loop import train
from fastweights.train.optim import TrainingStopped
from fastweights.train.records import StepRecord, read_log
from fastweights.train.task import Task


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What every model is trained on, and what it is asked.

    Attributes:
        like: what all models share; see `fastweights.models.baselines.contender`.
        parameters: numbers that each of them trains, 2 % more or less.
        task: what is trained on.
        stages: the curriculum: equally many tokens for every model.
        questions: what is asked, the first at the length of training, the last at the greatest one. Every probe has a
            task of its own, or that of the contest.
        measure: what is counted.
        learned: a model that answers the first question worse than this has not learned; a share of what is counted, or
            bits.
        guess: what a guess gets, in the same unit.
        optimiser: of training.
        price: on writing, for models that have a memory.
        label_smoothing: of training.
        skip: which steps are skipped, and when training gives up.
        minutes: of training, at most; a model that is cut off is asked as it is, and marked.
        enough: training ends early when every question is answered this well, on rows of another seed than those of the
            result; 0: never.
        look_every: steps between looks at whether it is enough.
    """

    like: ModelConfig
    parameters: int
    task: Task
    stages: tuple[Stage, ...]
    questions: tuple[Probe, ...]
    measure: Measure = "right"
    learned: float
    guess: float
    optimiser: OptimiserConfig = OptimiserConfig(lr=3e-3, weight_decay=0.01, warmup_steps=50)
    price: PriceConfig = PriceConfig()
    label_smoothing: float = 0.0
    skip: SkipConfig = SkipConfig()
    minutes: float = 4.0
    enough: float = 0.0
    look_every: int = 100

    def __post_init__(self) -> None:
        if not self.questions:
            raise UserError("a contest needs at least one question")
        if self.enough and self.measure == "bits":
            raise UserError("a contest in bits has no share of right answers that is enough")

    @property
    def looks(self) -> EvaluationConfig:
        """What is asked while training goes on."""
        return EvaluationConfig(every=self.look_every, probes=self.questions) if self.enough else EvaluationConfig()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A grid: every model in every contest with every seed.

    Attributes:
        models: what each contender makes of a contest's ``like``, by name; see `fastweights.models.baselines`.
        contests: by name.
        seeds: how many.
        controls: which controls each model is asked under, at the first and the last question.
        threads: torch threads.
        minutes: of training, at most, for a contest and a model of it; the contest's where nothing is said.
    """

    models: Mapping[str, Callable[[ModelConfig], ModelConfig]]
    contests: Mapping[str, Contest]
    seeds: int = 1
    controls: tuple[str, ...] = field(default_factory=lambda: tuple(CONTROLS))
    threads: int = 2
    minutes: Mapping[tuple[str, str], float] = field(default_factory=dict)

    def cells(self) -> Iterator[Cell]:
        """All cells: seed by seed, and contest by contest."""
        for seed, contest, model in product(range(self.seeds), self.contests, self.models):
            yield Cell(contest, model, seed)

    def contest(self, cell: Cell) -> Contest:
        """The contest of a cell, on the cell's own clock."""
        contest = self.contests[cell.contest]
        return replace(contest, minutes=self.minutes.get((cell.contest, cell.model), contest.minutes))

    def training(self, cell: Cell) -> TrainConfig:
        """The training run of a cell.

        Raises:
            UserError: the model cannot have as many parameters as the contest asks for.
        """
        contest = self.contest(cell)
        model = with_parameters(self.models[cell.model](contest.like), contest.parameters)
        return TrainConfig(
            model=model,
            task=contest.task,
            stages=contest.stages,
            seed=cell.seed,
            optimiser=contest.optimiser,
            price=contest.price if model.has_memory else PriceConfig(),
            label_smoothing=contest.label_smoothing,
            skip=contest.skip,
            checkpoint=CheckpointConfig(every_minutes=1.0, keep=1),
            evaluation=contest.looks,
            threads=self.threads,
            log_every=25,
        )

    def facts(self, cell: Cell) -> dict[str, Any]:
        """All that decides a cell's result, as JSON values."""
        contest = self.contest(cell)
        asked = [beyond_defaults(question) for question in contest.questions]
        facts = {
            **cell._asdict(),
            "training": json.loads(self.training(cell).to_json()),
            "questions": asked,
            "measure": contest.measure,
            "learned": contest.learned,
            "guess": contest.guess,
            "minutes": contest.minutes,
            "asked under": list(self.controls),
        }
        facts |= {"enough": contest.enough} if contest.enough else {}
        return json.loads(json.dumps(facts))


class Cell(NamedTuple):
    """One model in one contest with one seed."""

    contest: str
    model: str
    seed: int

    def __str__(self) -> str:
        """As it is called in messages."""
        return f"{self.contest}, {self.model}, seed {self.seed}"


def run_cell(
    comparison: Comparison,
    cell: Cell,
    folder: Path,
    on_step: Callable[[StepRecord], None],
    on_note: Callable[[str], None],
) -> dict[str, Any]:
    """Train the model of a cell, or go on training it, and ask it.

    Args:
        comparison: the grid.
        cell: of it.
        folder: of the training run.
        on_step: called after every step of training.
        on_note: called with what else there is to tell.

    Returns:
        What was found, as JSON values.

    Raises:
        KeyboardInterrupt: the training was interrupted; its checkpoint is kept.
        UserError: the run in ``folder`` has other settings.
    """
    contest, config = comparison.contest(cell), comparison.training(cell)
    found: dict[str, Any] = {"parameters": parameter_count(config.model), "hidden": config.model.hidden, "stopped": ""}
    try:
        last = _train(contest, config, folder, on_step)
    except TrainingStopped as error:
        return found | {"stopped": str(error)}
    steps, seconds, skipped, metrics = last
    found |= {"steps": steps, "capped": steps < config.steps and not is_enough(contest, metrics)}
    found |= {"seconds": seconds, "skipped": skipped}
    on_note(f"{cell}: asking")
    began = time.monotonic()
    asked = ask_all(load_model(folder / MODEL), contest, comparison.controls)
    return found | asked | {"wall_seconds": round(seconds + time.monotonic() - began, 1)}


class _Trained(NamedTuple):
    """How a training ended: steps, seconds, steps skipped, and what the last look found."""

    steps: int
    seconds: float
    skipped: int
    metrics: Mapping[str, Any]


def _train(contest: Contest, config: TrainConfig, folder: Path, on_step: Callable[[StepRecord], None]) -> _Trained:
    """Train to the end of a contest; a run that has ended there already is left as it is."""
    records: list[StepRecord] = []
    looked: dict[str, Any] = {}

    def tell(record: StepRecord) -> None:
        records[:] = [record]
        on_step(record)

    def over(record: StepRecord) -> bool:
        return record.elapsed > 60 * contest.minutes or is_enough(contest, looked)

    if not _has_ended(contest, config, folder):
        resume = (folder / CONFIG).is_file()
        result = train(
            config,
            folder,
            resume=resume,
            on_step=tell,
            on_evaluation=lambda step, metrics: looked.update(metrics),
            until=over,
        )
        if not result.finished:
            raise KeyboardInterrupt
    lines = {line["kind"]: line for line in read_log(folder / LOG)}
    look = lines["evaluation"]
    if records:
        return _Trained(look["step"], records[0].elapsed, records[0].skips, look)
    return _Trained(look["step"], lines["steps"]["seconds"], lines["steps"]["skipped"], look)


def _has_ended(contest: Contest, config: TrainConfig, folder: Path) -> bool:
    """Whether a run has come to its last step, to the end of its minutes, or to what is enough."""
    if not (folder / MODEL).is_dir() or (folder / CONFIG).read_text(encoding="utf-8") != config.to_json():
        return False
    last = {line["kind"]: line for line in read_log(folder / LOG)}
    look, seconds = last["evaluation"], last.get("steps", {"seconds": 0.0})["seconds"]
    return look["step"] == config.steps or seconds > 60 * contest.minutes or is_enough(contest, look)


def is_enough(contest: Contest, metrics: Mapping[str, Any]) -> bool:
    """Whether training may end early after a look that found ``metrics``, as ``probe/measure``."""
    name = "exact" if contest.measure == "exact" else "accuracy"
    found = [metrics.get(f"{question.name}/{name}") for question in contest.questions]
    return contest.enough > 0 and all(share is not None and share >= contest.enough for share in found)


def ask_all(model: LanguageModel, contest: Contest, controls: tuple[str, ...]) -> dict[str, Any]:
    """Every question, and the first and the last under every control that is defined; as JSON values."""
    scores = [ask(model, question, contest.task, contest.measure) for question in contest.questions]
    ends = [contest.questions[i] for i in sorted({0, len(contest.questions) - 1})]
    under = {}
    for name in controls:
        if defined(name, model):
            changed = controlled(name, model)
            asked = [ask(changed, question, contest.task, contest.measure, name) for question in ends]
            under[name] = [score._asdict() for score in asked if score is not None]
    first = scores[0]
    assert first is not None
    learned = first.value <= contest.learned if contest.measure == "bits" else first.value >= contest.learned
    return {
        "scores": [score._asdict() for score in scores if score is not None],
        "controls": {name: found for name, found in under.items() if found},
        "is learned": learned,
        "state_bytes": state_after(model, contest.questions[-1].length),
    }


def with_effort(comparison: Comparison, effort: float) -> Comparison:
    """The comparison with so many times the steps of training."""

    def changed(contest: Contest) -> Contest:
        stages = tuple(replace(stage, steps=max(1, round(stage.steps * effort))) for stage in contest.stages)
        return replace(contest, stages=stages)

    return replace(comparison, contests={name: changed(contest) for name, contest in comparison.contests.items()})
