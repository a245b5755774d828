"""How fast an MLP memory learns to recall, beside the delta rule: steps of training until it knows.

    python benchmarks/learning_speed.py [--contenders titans,titans+rule.clip=1.0] [--tasks needles,mqar]
        [--lengths 64 256] [--seeds 1] [--steps 800] [--minutes 10] [--jobs 1] [--out results/learning_speed.json]
        [--render results/learning_speed.md]

A cell is a contender, a task, a length and a seed: a small model trained from nothing until it knows, as
`fastweights.train.learning` says. What is compared is the number of steps that it took, divided by that of the delta
rule on the same task, length and seed.

A contender is one of `RULES`, followed by changes with a + before each: one of `CHANGES`, or a setting of the model's
configuration. By default all of `SWEEP` are measured: the rules, and Titans with one of `FACTORS` at a time. Several
changes make a combination: `--contenders titans+rule.clip=1.0+lr_start=0.9`. Where a row would hold fewer than four
chunks, nothing is measured.

Every cell runs in a process of its own and is written to the file as soon as it is done. What stands there for the
same model is not measured again, so the command can be stopped at any time and called again; cells that did not come to
an end are measured again when they are given more steps or minutes. `--seeds 0 --render TABLE.md` only draws the table,
and beside it the curves, as TABLE.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from fastweights.core import presets
from fastweights.core.algorithm import GradientDescent, Momentum
from fastweights.core.architecture import MLP, Residual
from fastweights.core.retention import WeightDecay
from fastweights.core.rule import Rule, beyond_defaults
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
    show,
)
from fastweights.evaluate.compare import markdown
from fastweights.evaluate.picture import draw_curves
from fastweights.models.config import ModelConfig
from fastweights.train.learning import (
    KNOWN,
    LENGTHS,
    MINUTES,
    MODEL,
    TASKS,
    learning_config,
    learning_settings,
    run_learning,
)
from fastweights.train.overrides import apply_overrides
from fastweights.train.records import StepRecord

BASE, WANTED, STEPS = "deltanet", 1.5, 800
"""What others are compared with, the ratio to reach, and the most steps of a cell."""

DRAWN = 8
"""Curves in a panel."""

LEGEND = f"""\
Steps of training until {KNOWN:.0%} of the answers are right in two probes in a row; in brackets how many times as many
that is as `{BASE}` needs for the same rows; of several seeds the medians. Bold: at most {WANTED} times. Where it never
came so far: the steps, and the share that was right in the end. †: cut off by the clock, or training gave up.
"""


@dataclass(frozen=True)
class ScaledMLP(MLP):
    """An MLP whose first map starts ``first`` times as large: keys of unit length then reach its bend."""

    first: float = 1.0

    def initial_gain(self, name: str) -> float:
        """Larger for the first map."""
        return self.first if name == "layer1" else super().initial_gain(name)


def _inner(rule: Rule) -> MLP:
    """The MLP of a rule, without what surrounds it."""
    found = rule.architecture.inner if isinstance(rule.architecture, Residual) else rule.architecture
    if not isinstance(found, MLP):
        raise UserError(f"the change is one of an MLP memory, not of {found!r}")
    return found


def _first_map(rule: Rule, times: str) -> Rule:
    """The first map of the memory starts so many times as large."""
    mlp, around = _inner(rule), rule.architecture
    scaled = ScaledMLP(mlp.depth, mlp.expansion, mlp.activation, mlp.bias, float(times))
    return replace(rule, architecture=replace(around, inner=scaled) if isinstance(around, Residual) else scaled)


def _one_gate(rule: Rule, scope: str) -> Rule:
    """All gates are of one scope: ``head`` is one for all maps."""
    retention, algorithm = WeightDecay(scope), Momentum(scope)  # type: ignore[arg-type]
    return replace(
        rule,
        lr_scope=scope,  # type: ignore[arg-type]
        retention=retention,
        algorithm=algorithm if rule.has_momentum else rule.algorithm,
    )


RULES: dict[str, Callable[[], Rule]] = {
    "deltanet": presets.deltanet,
    "titans_linear": presets.titans_linear,
    "titans": presets.titans,
}

CHANGES: dict[str, Callable[[Rule, str], Rule]] = {
    "first_map": _first_map,
    "gates": _one_gate,
    "momentum": lambda rule, none: replace(rule, algorithm=GradientDescent()),
    "residual": lambda rule, none: replace(rule, architecture=_inner(rule)),
}
"""Changes of a rule that are more than one setting, by name; what stands behind the = is given to them."""

FACTORS: dict[str, tuple[str, ...]] = {
    "lr_start": ("0.1", "0.9"),
    "rule.lr_max": ("0.005", "0.01", "0.05", "0.1", "0.3", "1.0"),
    "rule.bias.half": ("true", "true+rule.lr_max=0.04"),
    "embedding_std": ("0.02", "1.0"),
    "rule.clip": ("1.0", "0.3"),
    "first_map": ("0.3", "2.0", "4.0", "8.0"),
    "rule.chunk_size": ("64",),
    "rule.read": ("before",),
    "residual": ("none",),
    "momentum_start": ("0.5", "0.9"),
    "momentum": ("none",),
    "gates": ("head",),
    "start": ("plain",),
    "rule.architecture.inner.expansion": ("2.0",),
}
"""What Titans is tried with, one at a time.

As it is: lr from 0.01 of at most 0.02, an error without the half, embeddings of 0.5, no clip, chunks of 16, answers
after the write, residual and LayerNorm, momentum from 0.1, gates for each map, start by induction, four times as wide
inside.
"""

SWEEP = [*RULES, *(f"titans+{name}={value}" for name, values in FACTORS.items() for value in values)]


def model_of(contender: str) -> ModelConfig:
    """The model of a contender, but for what its task and the number of parameters decide.

    Raises:
        UserError: there is no such rule, change or setting, or they contradict each other.
    """
    rule, *changes = contender.split("+")
    model = replace(MODEL, rule=RULES[chosen(rule, list(RULES), "rule")[0]]())
    for change in changes:
        name, _, value = change.partition("=")
        if name in CHANGES:
            model = replace(model, rule=CHANGES[name](model.rule, value))
        else:
            model = apply_overrides(model, [change])
    return model


class Cell(NamedTuple):
    """What is measured."""

    contender: str
    task: str
    length: int
    seed: int

    def __str__(self) -> str:
        """As it is called in messages."""
        return f"{self.contender}, {self.task} in {self.length}, seed {self.seed}"


def measure(cell: Cell, arguments: argparse.Namespace) -> dict[str, Any]:
    """One cell, in this process."""
    device, threads, steps = arguments.device, arguments.threads, arguments.steps
    found = cell._asdict() | {"minutes": arguments.minutes, "limit": steps} | circumstances(device, threads)
    perhaps = now_and_then()

    def on_step(record: StepRecord) -> None:
        perhaps(f"  {cell}: step {record.step} of at most {record.steps}, loss {record.loss:.2f}")

    try:
        model = model_of(cell.contender)
        config = learning_config(model, cell.task, cell.length, cell.seed, steps=steps, device=device, threads=threads)
    except UserError as error:
        return found | {"refused": str(error)}
    return found | {"model": description(model)} | run_learning(config, arguments.minutes, on_step)._asdict()


def description(model: ModelConfig) -> Any:
    """What tells a contender's model from others, as JSON values."""
    return json.loads(json.dumps(beyond_defaults(model)))


class Results(CellFile):
    """The file of the cells.

    Raises:
        UserError: the cells that are there were measured with other settings.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, learning_settings(), Cell._fields)

    def lacks(self, cell: Cell, steps: int, minutes: float) -> bool:
        """Whether a cell is missing, had fewer steps or minutes than it needed, or another model."""
        found = self.cells.get(cell)
        if found is None or "refused" in found:
            return True
        unknown = found["known"] is None and not found["stopped"]
        short = found["minutes"] < minutes if found["capped"] else found["limit"] < steps
        return (unknown and short) or found["model"] != description(model_of(cell.contender))


def outcome(found: dict[str, Any]) -> str:
    """A cell in a few words."""
    return found["refused"] if "refused" in found else f"{progress(found)}, {found['seconds']:.0f} s"


def progress(found: dict[str, Any]) -> str:
    """The step from which a cell's model knew, or how far it came."""
    if found["known"] is not None:
        return f"{found['known']}"
    share = found["curve"][-1][1] if found["curve"] else 0.0
    mark = " †" if found["capped"] or found["stopped"] else ""
    return f"> {found['steps']} ({share:.0%}){mark}"


def render(cells: Sequence[dict[str, Any]]) -> str:
    """The table in Markdown: contenders over tasks and lengths."""
    measured = [found for found in cells if "refused" not in found]
    columns = sorted({(found["task"], found["length"]) for found in measured}, key=lambda c: (TASKS.index(c[0]), c[1]))
    rows = {}
    for row in in_order({found["contender"] for found in measured}):
        own = [found for found in measured if found["contender"] == row]
        shown = [entry(own, measured, task, length) for task, length in columns]
        ratios = [ratio for _, ratio in shown if ratio is not None]
        parameters = " to ".join(f"{n:,}" for n in sorted({found["parameters"] for found in own}))
        rows[row] = [parameters, *(text for text, _ in shown), f"{max(ratios):.2f}" if ratios else ""]
    titles = ["parameters", *(f"{task}, {length}" for task, length in columns), "largest ratio"]
    refused = [found for found in cells if "refused" in found]
    said = [f"`{found['contender']}` could not be built: {found['refused']}.\n" for found in refused]
    return "\n".join([LEGEND, markdown(titles, rows), *said, *all_circumstances(cells)])


def in_order(contenders: set[str]) -> list[str]:
    """Contenders in the order of the sweep, others behind them."""
    return [name for name in SWEEP if name in contenders] + sorted(contenders - set(SWEEP))


def entry(
    own: Sequence[dict[str, Any]], everyone: Sequence[dict[str, Any]], task: str, length: int
) -> tuple[str, float | None]:
    """An entry of the table and the median ratio: infinite where it never knew, None where there is none."""
    here = [found for found in own if (found["task"], found["length"]) == (task, length)]
    if not here:
        return "", None
    base = {
        found["seed"]: found["known"]
        for found in everyone
        if (found["contender"], found["task"], found["length"]) == (BASE, task, length)
    }
    known = [found["known"] for found in here if found["known"] is not None]
    text = progress(here[0]) if len(here) == 1 else f"{statistics.median(known):g}" if known else "never"
    if 0 < len(known) < len(here):
        text += f", {len(known)} of {len(here)} seeds"
    ratios = [
        float("inf") if found["known"] is None else found["known"] / base[found["seed"]]
        for found in here
        if base.get(found["seed"])
    ]
    if not ratios:
        return text, None
    ratio = statistics.median(ratios)
    text += f" ({ratio:.2f})" if ratio < float("inf") else ""
    return f"**{text}**" if ratio <= WANTED else text, ratio


def draw(cells: Sequence[dict[str, Any]], path: Path) -> None:
    """The curves of the smallest seed: the rules as they are, then the fastest of the others."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    measured = [found for found in cells if found.get("curve")]
    for task, length in sorted({(found["task"], found["length"]) for found in measured}):
        here = [found for found in measured if (found["task"], found["length"]) == (task, length)]
        first = {found["contender"]: found for found in sorted(here, key=lambda found: -found["seed"])}
        fastest = sorted(first, key=lambda name: (name not in RULES, first[name]["known"] or float("inf"), name))
        panels[f"{task}, {length} tokens"] = {
            name: [(0.0, 0.0), *map(tuple, first[name]["curve"])] for name in fastest[:DRAWN]
        }
    draw_curves(panels, path, "steps of training", "answers right")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", default="", help="with commas between them; all of the sweep by default")
    parser.add_argument("--tasks", default="", help=f"of {', '.join(TASKS)}; all by default")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="positions a row")
    parser.add_argument("--steps", type=int, default=STEPS, help="of training, at most")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of a cell, at most")
    return arguments_of(parser, "results/learning_speed.json", Cell._fields)


def wanted(arguments: argparse.Namespace) -> list[Cell]:
    """The cells asked for, the delta rule's first; none with rows of fewer than four chunks."""
    contenders = arguments.contenders.split(",") if arguments.contenders else list(SWEEP)
    chunk = {contender: model_of(contender).rule.chunk_size for contender in contenders}
    return [
        Cell(contender, task, length, seed)
        for seed in range(arguments.seeds)
        for contender in contenders
        for task in chosen(arguments.tasks, TASKS, "task")
        for length in arguments.lengths
        if length >= 4 * chunk[contender]
    ]


def main() -> int:
    """Measure what is missing, write each cell as it comes, and draw the table and the curves."""
    arguments = parsed()
    if arguments.cell:
        contender, task, length, seed = arguments.cell
        return answer(lambda: measure(Cell(contender, task, int(length), int(seed)), arguments))
    results = Results(arguments.out)
    given = [f"--{name}={getattr(arguments, name)}" for name in ("steps", "minutes")]
    missing = [cell for cell in wanted(arguments) if results.lacks(cell, arguments.steps, arguments.minutes)]
    crashed = measure_all(results, missing, [__file__, *given], outcome, arguments)
    show(results, arguments, render, draw)
    return crashed


if __name__ == "__main__":
    command(main)
