"""What a continuum memory system keeps: new languages learned one after the other, and a book that is read again.

    python benchmarks/continual.py [--mixers hope,window] [--levels 0 1 2 3] [--courses languages2,languages3,books]
        [--seeds 1] [--effort 1] [--minutes 20] [--jobs 1] [--out results/continual.json]
        [--render results/continual.md]

A cell is what mixes tokens, a number of levels, a course and a seed: a small model trained from nothing on such
courses, and then given new ones. All models of a course have equally many parameters. In `languagesN` N invented
languages are read one after the other, and sentences are to be translated into each of those read so far; in `books`
the beginning of a novel is read, then that of another, then the first again. Nothing that is asked changes a memory.

Every cell runs in a process of its own and is written to the file as soon as it is done; what stands there for the same
model is not measured again. `--seeds 0 --render TABLE.md` only draws the tables.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from fastweights.core.rule import beyond_defaults
from fastweights.data.documents import novels, open_novel
from fastweights.data.tokenizer import load_tokenizer
from fastweights.evaluate.cells import (
    CellFile,
    all_circumstances,
    answer,
    arguments_of,
    chosen,
    circumstances,
    command,
    measure_all,
    now_and_then,
    show,
)
from fastweights.evaluate.compare import Bits, Measured, Shares, comparison
from fastweights.evaluate.contests import HELD_BACK, books
from fastweights.evaluate.continual import learn_courses, marks_to_dict, read_twice
from fastweights.models.baselines import hope
from fastweights.models.budget import with_parameters
from fastweights.models.config import ModelConfig
from fastweights.models.language_model import LanguageModel
from fastweights.tasks.languages import LanguagesSpec, make_course
from fastweights.train.config import OptimiserConfig, Stage, TrainConfig
from fastweights.train.languages import TranslationTask
from fastweights.train.loop import torch_settings
from fastweights.train.records import StepRecord
from fastweights.train.run import Run
from fastweights.train.trial import practise

LEVELS = 3
"""At most; no level is a plain network that never changes."""


class Pace(NamedTuple):
    """How levels are set: tokens of the fastest one's chunk, each next one has twice as many, and `level_order`."""

    fastest: int
    order: int


def window(config: ModelConfig, pace: Pace, levels: str) -> ModelConfig:
    """Attention that sees one chunk of the fastest level, so that only the levels remember."""
    shape = replace(config, wiring="window", window=pace.fastest, persistent=0)
    return replace(shape, levels=levels, level_order=pace.order)


MIXERS: dict[str, Callable[[ModelConfig, Pace, str], ModelConfig]] = {
    "hope": lambda config, pace, levels: hope(config, 16, levels),
    "window": window,
}
COURSES = ("languages2", "languages3", "books")

IN_BOOKS, IN_LANGUAGES = Pace(32, 1), Pace(16, 2)
"""A lesson has 40 tokens. To the first order the window's levels learned less of languages; Hope's are always so."""

SPEC = LanguagesSpec(pairs=10, questions=6, adjectives=1, nouns=3, verbs=2, words=24, shortest=1, longest=1, grammars=1)
STEPS, BATCH, TAKEN = 500, 16, 32
"""Of training on languages: steps and rows; courses that are taken in the end."""

TITLE, READ = 2_000, 16_384
"""Characters of each book that are left out, and that are read."""

OPTIMISER = OptimiserConfig(lr=3e-3, weight_decay=0.01, warmup_steps=50)
PARAMETERS, MINUTES = 160_000, 20.0

LEGEND = """\
Right translations in percent, whole sentences; bits per byte of books, less is better; of several seeds: smallest /
median / largest. Bold is what ties with the best of its column: it differs by no more than the spread over seeds, and
with languages by no more than two standard errors of as many answers as there are courses. *First, at once* asks about
the first language after it, *first, at last* after the last one. *Saved* is what a first reading of A spares its second
one, with B in between, beyond what reading B alone spares. †: cut off by the clock, or training gave up.
"""


class Saved(Bits):
    """Bits of which more is better."""

    @property
    def worth(self) -> float:
        return self.median


class Cell(NamedTuple):
    """What is measured."""

    mixer: str
    levels: int
    course: str
    seed: int

    def __str__(self) -> str:
        """As it is called in messages."""
        return f"{row_of(self.mixer, self.levels)}, {self.course}, seed {self.seed}"


def row_of(mixer: str, levels: int) -> str:
    """The name of a row of the tables."""
    return f"{mixer}, {levels} level{'' if levels == 1 else 's'}"


def spec_of(course: str) -> LanguagesSpec:
    """What the courses of languages look like."""
    return replace(SPEC, languages=int(course.removeprefix("languages")))


def training(cell: Cell, effort: float = 1.0, device: str = "cpu", threads: int = 1) -> TrainConfig:
    """The training run of a cell."""
    if cell.course == "books":
        contest, pace = books(), IN_BOOKS
        like, parameters, task, stages = contest.like, contest.parameters, contest.task, contest.stages
    else:
        spec, pace, parameters = spec_of(cell.course), IN_LANGUAGES, PARAMETERS
        like = ModelConfig(vocab_size=spec.vocab_size, dim=64, depth=2, heads=2, start="induction")
        task = TranslationTask(spec=spec)
        stages = (Stage(steps=STEPS, length=spec.row_tokens, batch_size=BATCH),)
    levels = ",".join(str(pace.fastest << level) for level in range(cell.levels))
    return TrainConfig(
        model=with_parameters(MIXERS[cell.mixer](like, pace, levels), parameters),
        task=task,
        stages=tuple(replace(stage, steps=max(1, round(effort * stage.steps))) for stage in stages),
        seed=cell.seed,
        optimiser=OPTIMISER,
        device=device,
        threads=threads,
        log_every=10**6,
    )


def measure(cell: Cell, arguments: argparse.Namespace) -> dict[str, Any]:
    """One cell, in this process."""
    config = training(cell, arguments.effort, arguments.device, arguments.threads)
    found = cell._asdict() | {"minutes": arguments.minutes, "training": facts(cell, arguments.effort)}
    found |= circumstances(config.device, config.threads)
    perhaps = now_and_then()

    def on_step(record: StepRecord) -> bool:
        share = record.answers.right / max(1, record.answers.chosen)
        perhaps(f"  {cell}: step {record.step} of {record.steps}, loss {record.loss:.2f}, {share:.0%} right")
        return True

    with torch_settings(config, lambda note: None):
        run = Run(config, None, lambda note: None)
        practice = practise(run, arguments.minutes, on_step)
        model = run.export()
        found |= read_books(model) if cell.course == "books" else translate(model, spec_of(cell.course))
    return found | {
        "steps": run.step,
        "capped": run.step < config.steps and not practice.stopped,
        "stopped": practice.stopped,
        "seconds": round(practice.seconds, 1),
    }


def translate(model: LanguageModel, spec: LanguagesSpec) -> dict[str, Any]:
    """New courses, taken side by side."""
    rng = random.Random("courses that nobody trains on")
    return marks_to_dict(learn_courses(model, [make_course(rng, spec) for _ in range(TAKEN)]))


def read_books(model: LanguageModel) -> dict[str, Any]:
    """The beginnings, behind the title pages, of the two novels that no contest trains on, in bits per byte."""
    a, b = ("".join(open_novel(novel.name))[TITLE : TITLE + READ] for novel in novels()[-HELD_BACK:])
    readings = read_twice(model, load_tokenizer("bytes"), [a], [b])
    return readings._asdict() | {"saved": readings.saved, "forgotten": readings.forgotten}


def settings() -> dict[str, Any]:
    """What all cells share, as JSON values."""
    values = {"languages": beyond_defaults(SPEC), "optimiser": beyond_defaults(OPTIMISER), "courses": TAKEN}
    return json.loads(json.dumps(values | {"characters": [TITLE, READ]}))


def facts(cell: Cell, effort: float) -> Any:
    """The model and the training of a cell beside its seed, as JSON values."""
    config = training(cell, effort)
    stages = [f"{stage.steps} x {stage.batch_size} x {stage.length}" for stage in config.stages]
    return json.loads(json.dumps({"model": beyond_defaults(config.model), "stages": stages}))


def outcome(found: dict[str, Any]) -> str:
    """A cell in a few words."""
    cut = f", ended at step {found['steps']}" if found["capped"] or found["stopped"] else ""
    if found["course"] == "books":
        return f"{found['a']:.3f} bits, {found['saved']:.4f} saved, {found['seconds']:.0f} s{cut}"
    at_once, at_last = found["exact"]["first_lesson"]
    return f"first language {at_once:.0f} % right at once, {at_last:.0f} % at last, {found['seconds']:.0f} s{cut}"


def render(cells: Sequence[dict[str, Any]]) -> str:
    """A table for each kind of course."""
    parts = [LEGEND]
    for course in COURSES:
        own = [found for found in cells if found["course"] == course]
        if own:
            parts.append(f"## {course}\n\n{table(own, book_columns if course == 'books' else language_columns)}")
    return "\n".join([*parts, *all_circumstances(cells)])


def table(
    cells: Sequence[dict[str, Any]], columns_of: Callable[[Sequence[dict[str, Any]]], dict[str, Measured]]
) -> str:
    """Rows are mixers with their levels."""
    columns: dict[str, dict[str, Measured]] = {}
    keys = [(mixer, levels) for mixer in MIXERS for levels in range(LEVELS + 1)]
    rows = []
    for mixer, levels in keys:
        seeds = [found for found in cells if (found["mixer"], found["levels"]) == (mixer, levels)]
        if not seeds:
            continue
        rows.append(row_of(mixer, levels))
        for title, measured in columns_of(sorted(seeds, key=lambda found: found["seed"])).items():
            columns.setdefault(title, {})[rows[-1]] = measured
    return comparison(rows, columns, {})


def mark_of(seeds: Sequence[dict[str, Any]]) -> str:
    """What stands behind the numbers."""
    return " †" if any(found["capped"] or found["stopped"] for found in seeds) else ""


def language_columns(seeds: Sequence[dict[str, Any]]) -> dict[str, Measured]:
    """What is measured of courses in languages."""
    lessons = len(seeds[0]["asked"])

    def shares(pick: Callable[[dict[str, Any]], float]) -> Shares:
        # What is asked about one course shares a memory and a lexicon, so that courses are what counts.
        return Shares(tuple(pick(found["exact"]) / 100 for found in seeds), TAKEN, mark=mark_of(seeds))

    return {
        "first, at once": shares(lambda exact: exact["first_lesson"][0]),
        "first, at last": shares(lambda exact: exact["first_lesson"][1]),
        f"all {lessons}, at last": shares(lambda exact: exact["average_accuracy"]),
    }


def book_columns(seeds: Sequence[dict[str, Any]]) -> dict[str, Measured]:
    """What is measured of books."""
    names = {"A": "a", "A after A": "a_after_a", "A after B": "a_after_b", "A after A and B": "a_after_a_b"}
    columns: dict[str, Measured] = {
        title: Bits(tuple(found[name] for found in seeds), 0.0, mark=mark_of(seeds)) for title, name in names.items()
    }
    return columns | {"saved": Saved(tuple(found["saved"] for found in seeds), 0.0, mark=mark_of(seeds))}


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixers", default="", help=f"of {', '.join(MIXERS)}; all by default")
    parser.add_argument("--levels", type=int, nargs="+", default=list(range(LEVELS + 1)), choices=range(LEVELS + 1))
    parser.add_argument("--courses", default="", help=f"of {', '.join(COURSES)}; all by default")
    parser.add_argument("--effort", type=float, default=1.0, help="times the steps of training")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of training, at most")
    return arguments_of(parser, "results/continual.json", Cell._fields)


def main() -> int:
    """Measure what is missing, write each cell as it comes, and draw the tables."""
    arguments = parsed()
    if arguments.cell:
        mixer, levels, course, seed = arguments.cell
        return answer(lambda: measure(Cell(mixer, int(levels), course, int(seed)), arguments))
    results = CellFile(arguments.out, settings(), Cell._fields)
    wanted = [
        Cell(mixer, levels, course, seed)
        for seed in range(arguments.seeds)
        for course in chosen(arguments.courses, COURSES, "course")
        for mixer in chosen(arguments.mixers, list(MIXERS), "mixer")
        for levels in arguments.levels
    ]
    given = [f"--{name}={getattr(arguments, name)}" for name in ("effort", "minutes")]
    missing = [
        cell
        for cell in wanted
        if results.is_missing(cell, arguments.minutes, {"training": facts(cell, arguments.effort)})
    ]
    crashed = measure_all(results, missing, [__file__, *given], outcome, arguments)
    show(results, arguments, render)
    return crashed


if __name__ == "__main__":
    command(main)
