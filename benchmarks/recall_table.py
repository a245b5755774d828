"""Recall of every memory rule, at equal numbers of parameters: one table.

    python benchmarks/recall_table.py [--presets titans,deltanet] [--tasks mqar,overwrite,outliers] [--seeds 1]
        [--minutes 3] [--jobs 1] [--out results/recall_table.json] [--render results/recall_table.md]

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
import datetime
import difflib
import json
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastweights import __version__
from fastweights.core.presets import PRESETS
from fastweights.core.rule import beyond_defaults
from fastweights.errors import UserError
from fastweights.evaluate.compare import Measured, comparison
from fastweights.models.durable import write_file
from fastweights.train.folder import difference
from fastweights.train.records import StepRecord
from fastweights.train.trial import MINUTES, POINTS, STEPS, TASKS, run_trial, trial_config, trial_settings

LEARNED = 0.5
"""Share of right answers on rows like those trained on from which a model has learned its task; chance is 1/256."""


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
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor()
    found = cell._asdict() | {
        "minutes": arguments.minutes,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {"processor": name or platform.machine(), "cores": os.cpu_count(), "threads": threads},
        "versions": {"fastweights": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "rule": rule_of(cell.preset),
    }
    told = time.monotonic()

    def tell(record: StepRecord) -> None:
        nonlocal told
        if time.monotonic() - told > 30:
            told = time.monotonic()
            share = record.answers.right / max(1, record.answers.chosen)
            print(f"  {cell}: step {record.step} of {record.steps}, {share:.0%} right", file=sys.stderr)

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
    return found | {"tier": rule.tier} | run_trial(config, arguments.minutes, tell)._asdict()


def rule_of(preset: str) -> Any:
    """What tells a preset's rule from others, as JSON values; None if it cannot be built."""
    try:
        return json.loads(json.dumps(beyond_defaults(PRESETS[preset]())))
    except UserError:
        return None


class Results:
    """The file: the settings that all cells share, and the cells.

    Args:
        path: written when the first cell comes.
        settings: what they share.

    Raises:
        UserError: the cells that are there were measured with other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        self.cells: dict[Cell, dict[str, Any]] = {}
        if not path.is_file():
            return
        content = json.loads(path.read_text(encoding="utf-8"))
        changed = difference(content["settings"], settings)
        if changed:
            raise UserError(f"the cells in {path} were measured with other settings: {changed}; choose another --out")
        self.cells = {Cell(*(found[name] for name in Cell._fields)): found for found in content["cells"]}

    def lacks(self, cell: Cell, minutes: float) -> bool:
        """Whether a cell is missing, could not be built, had fewer minutes than it needed, or another rule."""
        found = self.cells.get(cell)
        if found is None or "refused" in found or (found["capped"] and found["minutes"] < minutes):
            return True
        return found["rule"] != rule_of(cell.preset)

    def add(self, cell: Cell, found: dict[str, Any]) -> None:
        """Write a cell, in place of the same one from before."""
        self.cells[cell] = found
        content = {"settings": self.settings, "cells": [self.cells[key] for key in sorted(self.cells)]}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_file(self.path, (json.dumps(content, indent=1) + "\n").encode())


def measure_all(cells: Sequence[Cell], arguments: argparse.Namespace, results: Results) -> int:
    """Measure cells in processes of their own, some at a time; returns how many of the processes crashed."""
    waiting, running = list(reversed(cells)), dict[Cell, subprocess.Popen[str]]()
    began, done, crashed = time.monotonic(), 0, 0
    try:
        while waiting or running:
            while waiting and len(running) < arguments.jobs:
                cell = waiting.pop()
                print(f"[{len(cells) - len(waiting)}/{len(cells)}] {cell}", file=sys.stderr)
                running[cell] = start(cell, arguments)
            for cell in [cell for cell, process in running.items() if process.poll() is not None]:
                process = running.pop(cell)
                out, _ = process.communicate()
                done += 1
                if process.returncode:
                    crashed += 1
                    said = f"its process ended with status {process.returncode}"
                else:
                    results.add(cell, {"command": arguments.command, **json.loads(out)})
                    said = outcome(results.cells[cell])
                minutes = (time.monotonic() - began) / 60 / done * (len(cells) - done)
                print(f"  {cell}: {said}; about {minutes:.0f} min left", file=sys.stderr)
            time.sleep(0.05)
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return crashed


def start(cell: Cell, arguments: argparse.Namespace) -> subprocess.Popen[str]:
    """A process that measures one cell and prints it."""
    given = [f"--{name}={getattr(arguments, name)}" for name in ("steps", "minutes", "device", "threads")]
    command = [sys.executable, __file__, *given, "--cell", *map(str, cell)]
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def outcome(found: dict[str, Any]) -> str:
    """A cell in a few words."""
    if "refused" in found:
        return found["refused"]
    cut = f", cut off at step {found['steps']}" if found["capped"] or found["stopped"] else ""
    right = statistics.mean(found["accuracy"].values())
    return f"{right:.1%} right, {found['training']:.0%} on rows like those trained on, {found['seconds']:.0f} s{cut}"


def render(cells: Sequence[dict[str, Any]]) -> str:
    """The tables in Markdown: for the usual heads, then for each size of memory asked for."""
    parts = [
        "Right answers in percent; of several seeds: smallest / median / largest. Bold is what ties with the best of "
        "its column: it differs by no more than the spread over seeds, or than two standard errors of the answers "
        "counted. What has less than half right on rows like those trained on did not learn. †: cut off by the clock, "
        "or stopped early.\n"
    ]
    for size in sorted({found["equal_state"] for found in cells}):
        same = [found for found in cells if found["equal_state"] == size]
        refused = {found["preset"]: found["refused"] for found in same if "refused" in found}
        parts += [f"## With a memory of {size:,} bytes\n"] if size else []
        parts += tables([found for found in same if "refused" not in found])
        parts += [f"`{preset}` could not be built: {reason}.\n" for preset, reason in refused.items()]
    for key in ("date", "machine", "versions"):
        values = {json.dumps(found[key]).translate(str.maketrans("", "", '{}"')) for found in cells}
        parts.append(f"{key.capitalize()}: {'; '.join(sorted(values))}.\n")
    return "\n".join(parts)


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
    return Measured(
        shares=tuple(statistics.mean(found[kind][point] for point in points) for found in seeds),
        asked=seeds[0]["asked"][kind] * len(points) // len(POINTS),
        learned=statistics.median(found["training"] for found in seeds) >= LEARNED,
        mark=" †" if any(found["capped"] or found["stopped"] for found in seeds) else "",
    )


def chosen(given: str, known: Sequence[str], kind: str) -> list[str]:
    """The names in a list with commas, or all.

    Raises:
        UserError: a name that does not exist, with the nearest one that does.
    """
    names = given.split(",") if given else list(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1) or known
            raise UserError(f"there is no {kind} {name!r}; there is {', '.join(near)}")
    return names


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/recall_table.json"))
    parser.add_argument("--presets", default="", help="names with commas between them; all by default")
    parser.add_argument("--tasks", default="", help=f"of {', '.join(TASKS)}; all by default")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--steps", type=int, default=STEPS, help="of training")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of training, at most")
    parser.add_argument("--equal-state", type=int, nargs="+", default=[0], help="bytes of memory; 0: the usual heads")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each cell")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--render", type=Path, help="where the table goes, in Markdown")
    parser.add_argument("--cell", nargs=len(Cell._fields), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.command = shlex.join(["python", *sys.argv])
    return arguments


def main() -> None:
    """Measure what is missing, write each cell as it comes, and draw the table."""
    arguments = parsed()
    if arguments.cell:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one.
        preset, task, seed, size = arguments.cell
        print(json.dumps(measure(Cell(preset, task, int(seed), int(size)), arguments)))
        return
    results = Results(arguments.out, trial_settings(arguments.steps))
    wanted = [
        Cell(preset, task, seed, size)
        for size in arguments.equal_state
        for seed in range(arguments.seeds)
        for task in chosen(arguments.tasks, list(TASKS), "task")
        for preset in chosen(arguments.presets, list(PRESETS), "preset")
    ]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    crashed = measure_all([cell for cell in wanted if results.lacks(cell, arguments.minutes)], arguments, results)
    if arguments.render:
        write_file(arguments.render, render(list(results.cells.values())).encode())
    if crashed:
        sys.exit(f"{crashed} cells crashed; call again to try them once more")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit("stopped; every cell that was done is kept")
