"""Recall of every memory rule, at equal numbers of parameters: one table.

    python benchmarks/recall_table.py [--presets titans,deltanet] [--tasks mqar,overwrite,outliers] [--seeds 1]
        [--minutes 3] [--jobs 1] [--out results/recall_table.json] [--render results/recall_table.md]
        [--page docs/how_to_choose.md]

A cell of the table is a preset, a task and a seed: a small model trained from nothing and then asked, as
`fastweights.train.trial` says. Every cell runs in a process of its own and is written to the file as soon as it is
done. What stands there for the same rule is not measured again, so the command can be stopped at any time and called
again; cells that the clock cut off are measured again when they are given more minutes. A rule that cannot be built is
written down with the reason and tried again by the next call.

`--equal-state N` gives the model of every rule N bytes of memory, by the number and the size of its heads, so that a
matrix can be compared with an MLP: 50000 suits both. `--seeds 0 --render TABLE.md` only draws the table.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastweights.core.presets import PRESETS
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
from fastweights.evaluate.compare import Measured, Shares, comparison
from fastweights.models.durable import write_file
from fastweights.train.records import StepRecord
from fastweights.train.trial import MINUTES, POINTS, STEPS, TASKS, run_trial, trial_config, trial_settings

LEARNED = 0.5
"""Share of right answers on rows like those trained on from which a model has learned its task; chance is 1/256."""


LEGEND = """\
Right answers in percent; of several seeds: smallest / median / largest. Bold is what ties with the best of its column:
it differs by no more than the spread over seeds, or than two standard errors of the answers counted. What has less than
half right on rows like those trained on did not learn. †: cut off by the clock, or stopped early.
"""

BEGIN = "<!-- recall table: begin; rendered from results, never written by hand -->"
END = "<!-- recall table: end -->"


class Cell(NamedTuple):
    """What is measured; `equal_state` is the size of the memory asked for in bytes, 0 for the usual heads."""

    preset: str
    task: str
    seed: int
    equal_state: int

    def __str__(self) -> str:
        """As it is called in messages."""
        state = f", {self.equal_state:,} bytes" if self.equal_state else ""
        return f"{self.preset}, {self.task}, seed {self.seed}{state}"


def measure(cell: Cell, arguments: argparse.Namespace) -> dict[str, Any]:
    """One cell, in this process."""
    device, threads = arguments.device, arguments.threads
    found = cell._asdict() | {"minutes": arguments.minutes, "rule": rule_of(cell.preset)}
    found |= circumstances(device, threads)
    perhaps = now_and_then()

    def on_step(record: StepRecord) -> None:
        share = record.answers.right / max(1, record.answers.chosen)
        perhaps(f"  {cell}: step {record.step} of {record.steps}, {share:.0%} right")

    try:
        rule = PRESETS[cell.preset]()
        config = trial_config(
            rule,
            cell.task,
            cell.seed,
            steps=arguments.steps,
            equal_state=cell.equal_state,
            device=device,
            threads=threads,
        )
    except UserError as error:
        return found | {"refused": str(error)}
    return found | {"tier": rule.tier} | run_trial(config, arguments.minutes, on_step)._asdict()


def outcome(found: dict[str, Any]) -> str:
    """A cell in a few words."""
    if "refused" in found:
        return found["refused"]
    cut = f", cut off at step {found['steps']}" if found["capped"] or found["stopped"] else ""
    right = statistics.mean(found["accuracy"].values())
    return f"{right:.1%} right, {found['training']:.0%} on rows like those trained on, {found['seconds']:.0f} s{cut}"


def render(cells: Sequence[dict[str, Any]]) -> str:
    """All tables in Markdown: for the usual heads, then for each size of memory asked for."""
    return "\n".join([LEGEND, *(part for parts in by_size(cells) for part in parts), *all_circumstances(cells)])


def overview(cells: Sequence[dict[str, Any]]) -> str:
    """The same without the tables of lengths and pairs."""
    first = [part for title, mean, *_ in by_size(cells) for part in (title, mean) if part]
    return "\n".join([LEGEND, *first, *all_circumstances(cells)])


def by_size(cells: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """For every size of memory asked for: its title, its tables, and what could not be built."""
    for size in sorted({found["equal_state"] for found in cells}):
        same = [found for found in cells if found["equal_state"] == size]
        refused = {found["preset"]: found["refused"] for found in same if "refused" in found}
        yield [
            f"## With a memory of {size:,} bytes\n" if size else "",
            *tables([found for found in same if "refused" not in found]),
            *(f"`{preset}` could not be built: {reason}.\n" for preset, reason in refused.items()),
        ]


def into_page(path: Path, table: str) -> None:
    """Put a table between the two comments of a page, in place of what stands there.

    Raises:
        UserError: the page cannot be read, or has no such comments.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the page '{path}': {(error.strerror or str(error)).lower()}") from error
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise UserError(f"the page '{path}' has no place for the table: it needs the lines '{BEGIN}' and '{END}'")
    write_file(path, f"{before}{begin}\n\n{table}\n{end}{after}".encode())


def tables(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Presets over tasks, the mean over all points; then presets over points, for each task."""
    of_preset = {found["preset"]: found for found in cells}
    rows = [name for name in PRESETS if name in of_preset] + sorted(set(of_preset) - set(PRESETS))
    names = [f"{length}x{pairs}" for length, pairs in POINTS]
    means: dict[str, dict[str, Measured]] = {}
    points: dict[str, dict[str, dict[str, Measured]]] = {}
    for task in TASKS:
        for kind, title in (("accuracy", task), ("disputed", f"{task}, disputed")):
            for row in rows:
                seeds = [found for found in cells if (found["task"], found["preset"]) == (task, row) and found[kind]]
                if not seeds:
                    continue
                means.setdefault(title, {})[row] = measured(seeds, kind, names)
                for name in names:
                    points.setdefault(title, {}).setdefault(name, {})[row] = measured(seeds, kind, [name])
    facts = {
        "tier": {row: of_preset[row]["tier"] for row in rows},
        "parameters": {row: f"{of_preset[row]['parameters']:,}" for row in rows},
        "state, bytes": {row: f"{of_preset[row]['state_bytes']:,}" for row in rows},
    }
    by_point = [f"{title}, by length x pairs:\n\n{comparison(rows, found, {})}" for title, found in points.items()]
    return [f"Mean over {', '.join(names)} (length x pairs):\n\n{comparison(rows, means, facts)}", *by_point]


def measured(seeds: Sequence[dict[str, Any]], kind: str, points: Sequence[str]) -> Measured:
    """The cells of all seeds as one."""
    return Shares(
        values=tuple(statistics.mean(found[kind][point] for point in points) for found in seeds),
        asked=seeds[0]["asked"][kind] * len(points) // len(POINTS),
        learned=statistics.median(found["training"] for found in seeds) >= LEARNED,
        mark=" †" if any(found["capped"] or found["stopped"] for found in seeds) else "",
    )


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", default="", help="names with commas between them; all by default")
    parser.add_argument("--tasks", default="", help=f"of {', '.join(TASKS)}; all by default")
    parser.add_argument("--steps", type=int, default=STEPS, help="of training")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of training, at most")
    parser.add_argument("--equal-state", type=int, nargs="+", default=[0], help="bytes of memory; 0: the usual heads")
    parser.add_argument("--page", type=Path, help="a page of the docs that holds the means between two comments")
    return arguments_of(parser, "results/recall_table.json", Cell._fields)


def main() -> int:
    """Measure what is missing, write each cell as it comes, and draw the table."""
    arguments = parsed()
    if arguments.cell:
        preset, task, seed, size = arguments.cell
        return answer(lambda: measure(Cell(preset, task, int(seed), int(size)), arguments))
    results = CellFile(arguments.out, trial_settings(arguments.steps), Cell._fields)
    wanted = [
        Cell(preset, task, seed, size)
        for size in arguments.equal_state
        for seed in range(arguments.seeds)
        for task in chosen(arguments.tasks, list(TASKS), "task")
        for preset in chosen(arguments.presets, list(PRESETS), "preset")
    ]
    given = [f"--{name}={getattr(arguments, name)}" for name in ("steps", "minutes")]
    missing = [cell for cell in wanted if results.is_missing(cell, arguments.minutes, {"rule": rule_of(cell.preset)})]
    crashed = measure_all(results, missing, [__file__, *given], outcome, arguments)
    show(results, arguments, render)
    if arguments.page:
        into_page(arguments.page, overview(list(results.cells.values())))
    return crashed


if __name__ == "__main__":
    command(main)
