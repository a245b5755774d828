"""Forecasting by memory rules at equal numbers of parameters, beside forecasts that learn nothing: one table a series.

    python benchmarks/forecasting.py PATH.csv [--horizons 96,192,336,720] [--rules titans,gated_deltanet] [--seeds 1]
        [--epochs 10] [--minutes 15] [--days 360 120 120] [--jobs 1] [--out results/forecasting.json]
        [--render results/forecasting.md]

The file is one of ETT's, or another one with a column of dates and columns of numbers. It is cut and scaled as
everybody does it (`fastweights.data.series`), and every window of the part for tests is asked for. A cell of the table
is a series, a rule or a control, a horizon and a seed. Every cell runs in a process of its own and is written to the
file as soon as it is done; what stands there for the same rule and the same numbers is not measured again, so the
command can be stopped at any time and called again. Cells that the clock cut off are measured again when they are given
more minutes. Several series may share a file. `--seeds 0 --render TABLE.md` only draws the tables.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from fastweights.core.presets import PRESETS
from fastweights.core.rule import beyond_defaults
from fastweights.data.series import ETT_DAYS, PARTS, Scaled, read_series, scale
from fastweights.errors import UserError
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
    rule_of,
    show,
)
from fastweights.evaluate.compare import Measured, comparison
from fastweights.models.budget import with_parameters
from fastweights.models.config import ModelConfig
from fastweights.models.durable import sha256
from fastweights.models.forecaster import ForecasterConfig
from fastweights.tasks.forecasting import CONTROLS, HORIZONS, WindowSpec, control, count_windows, measure
from fastweights.train.forecasting import ForecastStep, ForecastTraining, evaluate_forecaster, train_forecaster

INPUTS, EPOCHS, MINUTES = 96, 10, 15.0
RULES = ("titans", "gated_deltanet")

MODEL = ModelConfig(vocab_size=1, dim=64, depth=2, heads=2, memory_head_dim=16, wiring="lmm")
"""What all models have in common, but for the width of the feed-forward networks."""

PARAMETERS, TOLERANCE = 100_000, 0.04
"""Of the blocks; embedding and head come on top, and are the same for all rules of a horizon."""

LEGEND = """\
Errors on scaled values over all windows of the part for tests, less is better; of several seeds: smallest / median /
largest. Bold is what ties with the best of its column: it differs by no more than the spread over seeds. The first rows
learn nothing. †: cut off by the clock, or stopped early.
"""


class Cell(NamedTuple):
    """What is measured."""

    series: str
    contender: str
    horizon: int
    seed: int

    def __str__(self) -> str:
        """As it is called in messages."""
        seed = "" if self.contender in CONTROLS else f", seed {self.seed}"
        return f"{self.series}, {self.contender}, {self.horizon} rows{seed}"


@dataclass(frozen=True)
class Loss(Measured):
    """Errors; less is better. Windows overlap, so that nothing is known of chance but the spread over seeds."""

    values: tuple[float, ...]
    learned: bool = True
    mark: str = ""

    @property
    def variance(self) -> float:
        return 0.0

    @property
    def worth(self) -> float:
        return -self.median

    def shown(self, value: float) -> str:
        return f"{value:.3f}"


def settings(days: Sequence[int], epochs: int) -> dict[str, Any]:
    """All that decides a result beside its cell and the series, as JSON values."""
    training = ForecastTraining(model=ForecasterConfig(1, 1, MODEL), epochs=epochs)
    values = {
        "days": list(days),
        "inputs": INPUTS,
        "parameters": PARAMETERS,
        "model": beyond_defaults(MODEL),
        "optimiser": beyond_defaults(training.optimiser),
        "epochs": f"{epochs} x {training.batch_size}, patience {training.patience}",
    }
    return json.loads(json.dumps(values))


def learner(contender: str) -> Any:
    """What tells a contender's rule from others, as JSON values; None for what learns nothing."""
    return None if contender in CONTROLS else rule_of(contender)


def measure_cell(cell: Cell, arguments: argparse.Namespace) -> dict[str, Any]:
    """One cell, in this process."""
    scaled = scale(read_series(arguments.path), tuple(arguments.days))
    found = cell._asdict() | {"minutes": arguments.minutes, "rule": learner(cell.contender)}
    found |= {"sha256": sha256(arguments.path)} | circumstances(arguments.device, arguments.threads)
    spec = WindowSpec(INPUTS, cell.horizon)
    try:
        if cell.contender in CONTROLS:
            errors = measure(control(cell.contender, spec, scaled.per_day), scaled, "test", spec)
            return found | errors._asdict() | {"capped": False, "stopped": "", "parameters": 0}
        model = with_parameters(replace(MODEL, rule=PRESETS[cell.contender]()), PARAMETERS, TOLERANCE)
    except UserError as error:
        return found | {"refused": str(error)}
    config = ForecastTraining(
        model=ForecasterConfig(scaled.values.shape[1], cell.horizon, model),
        inputs=INPUTS,
        epochs=arguments.epochs,
        seed=cell.seed,
        device=arguments.device,
    )
    return found | trained(cell, scaled, config, arguments.minutes)


def trained(cell: Cell, scaled: Scaled, config: ForecastTraining, minutes: float) -> dict[str, Any]:
    """Train a forecaster and ask for every window of the part for tests."""
    perhaps = now_and_then()

    def on_step(step: ForecastStep) -> None:
        perhaps(f"  {cell}: step {step.step} of {step.steps}, epoch {step.epoch}, loss {step.loss:.3f}")

    result = train_forecaster(scaled, config, minutes=minutes, on_step=on_step)
    found = evaluate_forecaster(result.model, scaled, "test", INPUTS)._asdict()
    found |= {name: getattr(result, name) for name in ("best", "steps", "capped", "stopped", "seconds")}
    found |= {"curve": [errors.mse for errors in result.curve]}
    return found | {"parameters": sum(parameter.numel() for parameter in result.model.parameters())}


def outcome(found: dict[str, Any]) -> str:
    """A cell in a few words."""
    if "refused" in found:
        return found["refused"]
    said = f"squared error {found['mse']:.3f}, absolute {found['mae']:.3f}"
    if found["contender"] in CONTROLS:
        return said
    cut = ", cut off" if found["capped"] or found["stopped"] else ""
    return f"{said}, best of {len(found['curve'])} epochs was {found['best']}, {found['seconds']:.0f} s{cut}"


def render(cells: Sequence[dict[str, Any]]) -> str:
    """All tables in Markdown: squared and absolute errors of each series."""
    parts = [LEGEND]
    for series in sorted({found["series"] for found in cells}):
        same = [found for found in cells if found["series"] == series]
        refused = {found["contender"]: found["refused"] for found in same if "refused" in found}
        measured = [found for found in same if "refused" not in found]
        for kind, title in (("mse", "squared errors"), ("mae", "absolute errors")):
            parts.append(f"## {series}, {title}\n\n{table(measured, kind)}")
        parts += [f"`{rule}` could not be built: {reason}.\n" for rule, reason in refused.items()]
    return "\n".join([*parts, *all_circumstances(cells)])


def table(cells: Sequence[dict[str, Any]], kind: str) -> str:
    """Controls and rules over horizons, and the mean over all horizons where all were measured with the same seeds."""
    names = list(dict.fromkeys(found["contender"] for found in cells))
    rows = [name for name in (*CONTROLS, *PRESETS) if name in names]
    horizons = sorted({found["horizon"] for found in cells})
    columns: dict[str, dict[str, Measured]] = {title: {} for title in (*map(str, horizons), "mean")}
    sizes = {}
    for row in rows:
        own = sorted((found for found in cells if found["contender"] == row), key=lambda found: found["seed"])
        by_horizon = {horizon: [found for found in own if found["horizon"] == horizon] for horizon in horizons}
        for horizon, seeds in by_horizon.items():
            if seeds:
                columns[str(horizon)][row] = loss([[found] for found in seeds], kind)
        known = [[found["seed"] for found in seeds] for seeds in by_horizon.values()]
        if known[0] and all(seeds == known[0] for seeds in known):
            columns["mean"][row] = loss(list(zip(*by_horizon.values(), strict=True)), kind)
        counts = sorted({found["parameters"] for found in own})
        ends = dict.fromkeys((counts[0], counts[-1]))
        sizes[row] = "" if row in CONTROLS else " to ".join(f"{count:,}" for count in ends)
    return comparison(rows, columns, {"parameters": sizes})


def loss(seeds: Sequence[Sequence[dict[str, Any]]], kind: str) -> Loss:
    """The cells of each seed as one number."""
    cut = any(found["capped"] or found["stopped"] for cells in seeds for found in cells)
    values = tuple(statistics.mean(found[kind] for found in cells) for cells in seeds)
    return Loss(values, mark=" †" if cut else "")


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between them."""
    return [int(part) for part in text.split(",")]


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="the series: a CSV file")
    parser.add_argument("--horizons", type=numbers, default=list(HORIZONS), help="numbers with commas between them")
    parser.add_argument("--rules", default=",".join(RULES), help="names of presets with commas between them")
    parser.add_argument("--days", type=int, nargs=3, default=list(ETT_DAYS), help="of training, validation and tests")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of training, at most")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of training, at most")
    return arguments_of(parser, "results/forecasting.json", Cell._fields)


def main() -> int:
    """Measure what is missing, write each cell as it comes, and draw the tables."""
    arguments = parsed()
    if arguments.cell:
        series, contender, horizon, seed = arguments.cell
        return answer(lambda: measure_cell(Cell(series, contender, int(horizon), int(seed)), arguments))
    series = read_series(arguments.path)
    scaled = scale(series, tuple(arguments.days))
    rules = chosen(arguments.rules, list(PRESETS), "rule")
    for part, horizon in product(PARTS, arguments.horizons):
        count_windows(scaled, part, WindowSpec(INPUTS, horizon))
    results = CellFile(arguments.out, settings(arguments.days, arguments.epochs), Cell._fields)
    wanted = [
        Cell(series.name, contender, horizon, seed)
        for seed in range(arguments.seeds)
        for horizon in arguments.horizons
        for contender in (rules if seed else [*CONTROLS, *rules])
    ]
    given = [str(arguments.path), f"--epochs={arguments.epochs}", f"--minutes={arguments.minutes}"]
    given += ["--days", *map(str, arguments.days)]
    held = sha256(arguments.path)
    missing = [
        cell
        for cell in wanted
        if results.is_missing(cell, arguments.minutes, {"rule": learner(cell.contender), "sha256": held})
    ]
    crashed = measure_all(results, missing, [__file__, *given], outcome, arguments)
    show(results, arguments, render)
    return crashed


if __name__ == "__main__":
    command(main)
