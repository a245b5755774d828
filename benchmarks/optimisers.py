"""How fast a small language model learns to read under each optimiser: AdamW, Muon, and memories of gradients.

    python benchmarks/optimisers.py [--optimisers adamw,muon,delta,deep,m3] [--rates 0.001 0.003 0.01] [--seeds 1]
        [--steps 600] [--minutes 10] [--jobs 1] [--out results/optimisers.json] [--render results/optimisers.md]

A cell is an optimiser, a learning rate and a seed: the Transformer++ of the contest `books`, trained on the bytes of
novels, and asked for novels that it was not trained on. All optimisers but AdamW train the matrices of the blocks and
leave the rest to AdamW. Every one is judged at the rate that suits it best.

Every cell runs in a process of its own and is written to the file as soon as it is done; what stands there is not
measured again. `--seeds 0 --render TABLE.md` only draws the table, and beside it the curves, as TABLE.png.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, get_args

from fastweights.core.rule import beyond_defaults
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
from fastweights.evaluate.compare import Bits, Measured, comparison
from fastweights.evaluate.contests import books
from fastweights.evaluate.picture import draw_curves
from fastweights.evaluate.questions import ask
from fastweights.models.baselines import contender
from fastweights.train.config import OptimiserConfig, OptimiserKind, TrainConfig
from fastweights.train.loop import torch_settings
from fastweights.train.records import StepRecord
from fastweights.train.run import Run
from fastweights.train.trial import practise

OPTIMISERS: tuple[str, ...] = get_args(OptimiserKind)
BASE, RATES, STEPS, MINUTES = OPTIMISERS[0], [0.001, 0.003, 0.01], 600, 10.0
"""What others are compared with, and what is measured by default."""

WINDOW = 30
"""Steps of training whose losses are one point of a curve."""

OPTIMISER = OptimiserConfig(weight_decay=0.01, warmup_steps=50)

LEGEND = f"""\
Bits per byte of novels that were not trained on, less is better; of several seeds: smallest / median / largest. Bold is
what ties with the best of its column: it differs by no more than the spread over seeds, or than two standard errors.
*Steps* has those after which the optimiser, at its best rate, has come as far in training as `{BASE}` at its best rate
in the end, the medians of seeds with the same rows; -- where it never does, or no seed is the same. †: cut off, or
training gave up.
"""


class Cell(NamedTuple):
    """What is measured."""

    optimiser: str
    rate: float
    seed: int

    def __str__(self) -> str:
        """As it is called in messages."""
        return f"{self.optimiser}, {self.rate:g}, seed {self.seed}"


def training(cell: Cell, steps: int, device: str = "cpu", threads: int = 1) -> TrainConfig:
    """The training run of a cell."""
    contest = books(steps)
    return TrainConfig(
        model=contender("transformer++", contest.like, contest.parameters),
        task=contest.task,
        stages=contest.stages,
        seed=cell.seed,
        optimiser=replace(OPTIMISER, kind=cell.optimiser, lr=cell.rate),  # type: ignore[arg-type]
        device=device,
        threads=threads,
        log_every=steps + 1,
    )


def settings(steps: int) -> dict[str, Any]:
    """All that decides a result beside its cell, as JSON values."""
    config = training(Cell(BASE, RATES[0], 0), steps)
    values = {"model": beyond_defaults(config.model), "optimiser": beyond_defaults(OPTIMISER), "window": WINDOW}
    values |= {"stages": [beyond_defaults(stage) for stage in config.stages], "task": beyond_defaults(config.task)}
    values |= {"asked": beyond_defaults(books(steps).questions[0])}
    return json.loads(json.dumps(values))


def measure(cell: Cell, arguments: argparse.Namespace) -> dict[str, Any]:
    """One cell, in this process."""
    config = training(cell, arguments.steps, arguments.device, arguments.threads)
    found = cell._asdict() | {"minutes": arguments.minutes} | circumstances(config.device, config.threads)
    perhaps, losses = now_and_then(), list[float]()

    def on_step(record: StepRecord) -> bool:
        losses.append(record.loss / math.log(2))
        perhaps(f"  {cell}: step {record.step} of {record.steps}, {losses[-1]:.2f} bits")
        return True

    with torch_settings(config, lambda note: None):
        run = Run(config, None, lambda note: None)
        practice = practise(run, arguments.minutes, on_step)
        contest = books(arguments.steps)
        score = ask(run.export(), contest.questions[0], contest.task, "bits")
    assert score is not None
    return found | {
        "bits": score.value,
        "error": round((score.high - score.low) / 2 / 1.96, 5),
        "curve": curve_of(losses),
        "steps": run.step,
        "capped": run.step < config.steps and not practice.stopped,
        "stopped": practice.stopped,
        "seconds": round(practice.seconds, 1),
    }


def curve_of(losses: Sequence[float]) -> list[list[float]]:
    """Mean losses of so many steps, each with the step at which they end."""
    ends = range(WINDOW, len(losses) + 1, WINDOW)
    return [[end, round(statistics.fmean(losses[end - WINDOW : end]), 4)] for end in ends]


def outcome(found: dict[str, Any]) -> str:
    """A cell in a few words."""
    cut = f", ended at step {found['steps']}" if found["capped"] or found["stopped"] else ""
    return f"{found['bits']:.3f} bits, {found['seconds']:.0f} s{cut}"


def render(cells: Sequence[dict[str, Any]]) -> str:
    """The table in Markdown: optimisers over rates."""
    rows = [name for name in OPTIMISERS if any(found["optimiser"] == name for found in cells)]
    columns: dict[str, dict[str, Measured]] = {}
    for rate in sorted({found["rate"] for found in cells}):
        for row in rows:
            if seeds := cells_of(cells, row, rate):
                columns.setdefault(f"{rate:g}", {})[row] = bits(seeds)
    best = {row: at_best_rate(cells, row) for row in rows}
    columns["at the best rate"] = {row: bits(seeds) for row, seeds in best.items()}
    steps = {row: steps_to(seeds, best[BASE]) for row, seeds in best.items()} if BASE in best else {}
    rates = {row: f"{seeds[0]['rate']:g}" for row, seeds in best.items()}
    table = comparison(rows, columns, {"best rate": rates, "steps": steps})
    return "\n".join([LEGEND, table, *all_circumstances(cells)])


def cells_of(cells: Sequence[dict[str, Any]], optimiser: str, rate: float) -> list[dict[str, Any]]:
    """The seeds of an optimiser at a rate, in order."""
    own = [found for found in cells if (found["optimiser"], found["rate"]) == (optimiser, rate)]
    return sorted(own, key=lambda found: found["seed"])


def bits(seeds: Sequence[dict[str, Any]]) -> Bits:
    """The cells of all seeds as one."""
    mark = " †" if any(found["capped"] or found["stopped"] for found in seeds) else ""
    return Bits(tuple(found["bits"] for found in seeds), max(found["error"] for found in seeds), mark=mark)


def at_best_rate(cells: Sequence[dict[str, Any]], optimiser: str) -> list[dict[str, Any]]:
    """The seeds of an optimiser at the rate whose median is best."""
    rates = {found["rate"] for found in cells if found["optimiser"] == optimiser}
    return min((cells_of(cells, optimiser, rate) for rate in sorted(rates)), key=lambda seeds: bits(seeds).median)


def steps_to(seeds: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]]) -> str:
    """The median of steps after which seeds have come as far as those of the base in the end."""
    goals = {found["seed"]: found["curve"][-1][1] for found in base if found["curve"]}
    found = [first_below(cell["curve"], goals[cell["seed"]]) for cell in seeds if cell["seed"] in goals]
    median = statistics.median(found) if found else math.inf
    return f"{median:.0f}" if median < math.inf else "--"


def first_below(curve: Sequence[Sequence[float]], goal: float) -> float:
    """Where a curve first reaches a goal, with straight lines between its points; infinite if it never does."""
    if curve and curve[0][1] <= goal:
        return curve[0][0]
    for (x0, y0), (x1, y1) in pairwise(curve):
        if y1 <= goal:
            return x0 + (x1 - x0) * (y0 - goal) / (y0 - y1)
    return math.inf


def draw(cells: Sequence[dict[str, Any]], path: Path) -> None:
    """The training curves of every optimiser at its best rate, of the smallest seed."""
    names = [name for name in OPTIMISERS if any(found["optimiser"] == name for found in cells)]
    best = {name: at_best_rate(cells, name)[0] for name in names}
    curves = {f"{name}, {found['rate']:g}": [(x, y) for x, y in found["curve"]] for name, found in best.items()}
    draw_curves({"bytes of novels": curves}, path, "steps of training", "bits per byte", shares=False)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimisers", default="", help=f"of {', '.join(OPTIMISERS)}; all by default")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="learning rates")
    parser.add_argument("--steps", type=int, default=STEPS, help="of training")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of training, at most")
    return arguments_of(parser, "results/optimisers.json", Cell._fields)


def main() -> int:
    """Measure what is missing, write each cell as it comes, and draw the table and the curves."""
    arguments = parsed()
    if arguments.cell:
        optimiser, rate, seed = arguments.cell
        return answer(lambda: measure(Cell(optimiser, float(rate), int(seed)), arguments))
    results = CellFile(arguments.out, settings(arguments.steps), Cell._fields)
    wanted = [
        Cell(optimiser, rate, seed)
        for seed in range(arguments.seeds)
        for rate in arguments.rates
        for optimiser in chosen(arguments.optimisers, OPTIMISERS, "optimiser")
    ]
    given = [f"--{name}={getattr(arguments, name)}" for name in ("steps", "minutes")]
    missing = [cell for cell in wanted if results.is_missing(cell, arguments.minutes, {})]
    crashed = measure_all(results, missing, [__file__, *given], outcome, arguments)
    show(results, arguments, render, draw)
    return crashed


if __name__ == "__main__":
    command(main)
