"""Measurements that can be stopped at any time: the cells of a table, in one file, each written as soon as it is done.

A cell is a tuple that says what is measured (a rule, a task, a seed). Every cell is measured in a process of its own;
what a file holds already is not measured again.
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
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fastweights import __version__
from fastweights.core.presets import PRESETS
from fastweights.core.rule import beyond_defaults
from fastweights.errors import UserError
from fastweights.evaluate.picture import can_draw
from fastweights.models.durable import write_file
from fastweights.models.stopping import stop_requests

Cell = tuple[Any, ...]


class CellFile:
    """A file of cells and of the settings that all of them share.

    Args:
        path: written when the first cell comes.
        settings: what the cells share, as JSON values.
        names: what tells cells apart: names of values that each of them holds.

    Attributes:
        cells: what was found, by cell.

    Raises:
        UserError: the cells that are there were measured with other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any], names: Sequence[str]) -> None:
        self.path, self.settings = path, settings
        self.cells: dict[Cell, dict[str, Any]] = {}
        if not path.is_file():
            return
        content = json.loads(path.read_text(encoding="utf-8"))
        for name in content["settings"] | settings:
            before, now = (json.dumps(found.get(name)) for found in (content["settings"], settings))
            if before != now:
                raise UserError(
                    f"the cells in {path} were measured with other settings: {name} was {before} and is now {now}; "
                    f"choose another --out"
                )
        self.cells = {tuple(found[name] for name in names): found for found in content["cells"]}

    def is_missing(self, cell: Cell, minutes: float, facts: Mapping[str, Any]) -> bool:
        """Whether a cell is missing, could not be built, had fewer minutes than it needed, or was about something else.

        Args:
            cell: what is wanted.
            minutes: that it may take; what was ``capped`` with fewer ``minutes`` is lacking.
            facts: values that it must hold, beside its names.
        """
        found = self.cells.get(tuple(cell))
        if found is None or "refused" in found or (found["capped"] and found["minutes"] < minutes):
            return True
        return any(found.get(name) != value for name, value in facts.items())

    def add(self, cell: Cell, found: dict[str, Any]) -> None:
        """Write a cell, in place of the same one from before."""
        self.cells[tuple(cell)] = found
        content = {"settings": self.settings, "cells": [self.cells[key] for key in sorted(self.cells)]}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_file(self.path, (json.dumps(content, indent=1) + "\n").encode())


def rule_of(preset: str) -> Any:
    """What tells a preset's rule from others, as JSON values; None if it cannot be built."""
    try:
        return json.loads(json.dumps(beyond_defaults(PRESETS[preset]())))
    except UserError:
        return None


def arguments_of(parser: argparse.ArgumentParser, out: str, names: Sequence[str]) -> argparse.Namespace:
    """Read the command line of a measurement.

    Args:
        parser: with what is the measurement's own.
        out: the file of cells by default.
        names: what tells cells apart.

    Returns:
        What was given, with ``command``, the whole line, and ``cell``: values when the process is to measure that one.
    """
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each cell")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--render", type=Path, help="where the table goes, in Markdown")
    parser.add_argument("--cell", nargs=len(names), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.command = shlex.join(["python", *sys.argv])
    return arguments


def command(main: Callable[[], int]) -> None:
    """Runs a measurement as a command: it ends with what went wrong, and keeps every cell that was done.

    Args:
        main: returns how many cells crashed.
    """
    # Also where a shell has started it in the background, which makes it deaf to Ctrl-C.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        crashed = main()
    except UserError as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit("stopped; every cell that was done is kept")
    if crashed:
        sys.exit(f"{crashed} cells crashed; call again to try them once more")


def circumstances(device: str, threads: int) -> dict[str, Any]:
    """Where and when a cell is measured: ``date``, ``machine`` and ``versions``."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {"processor": name or platform.machine(), "cores": os.cpu_count(), "threads": threads},
        "versions": {"fastweights": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def all_circumstances(cells: Iterable[dict[str, Any]]) -> list[str]:
    """`circumstances` of all cells in Markdown: one paragraph for each kind, different ones side by side."""
    found = list(cells)
    parts = []
    for key in ("date", "machine", "versions"):
        values = {json.dumps(one[key]).translate(str.maketrans("", "", '{}"')) for one in found}
        parts.append(f"{key.capitalize()}: {'; '.join(sorted(values))}.\n")
    return parts


def measure_all(
    results: CellFile,
    cells: Sequence[Cell],
    program: Sequence[str],
    outcome: Callable[[dict[str, Any]], str],
    arguments: argparse.Namespace,
) -> int:
    """Measure cells in processes of their own, and write each down when it is done.

    Args:
        results: where to.
        cells: in the order in which they are begun; ``str(cell)`` is what they are called.
        program: a Python file and options of its own; with ``--cell`` and the values of a cell behind them it measures
            that cell and prints what it found as JSON.
        outcome: what was found, in a few words.
        arguments: of `arguments_of`. The command is kept with every cell.

    Returns:
        How many of the processes crashed. When this one is interrupted it ends them all.
    """
    waiting, running = list(reversed(cells)), dict[Cell, subprocess.Popen[str]]()
    given = [f"--threads={arguments.threads}", f"--device={arguments.device}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
    began, done, crashed = time.monotonic(), 0, 0
    # A request: an exception while a process is made would leave that one running, known to nobody.
    with stop_requests() as stop:
        try:
            while waiting or running:
                if stop.asked:
                    raise KeyboardInterrupt
                while waiting and len(running) < arguments.jobs:
                    cell = waiting.pop()
                    tell(f"[{len(cells) - len(waiting)}/{len(cells)}] {cell}")
                    words = [sys.executable, *program, *given, "--cell", *map(str, cell)]
                    running[cell] = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
                for cell in [cell for cell, process in running.items() if process.poll() is not None]:
                    process = running.pop(cell)
                    out, _ = process.communicate()
                    done += 1
                    if process.returncode and stop.asked:
                        raise KeyboardInterrupt  # Ctrl-C reaches every process: this one was ended by it too.
                    if process.returncode:
                        crashed += 1
                        said = f"its process ended with status {process.returncode}"
                    else:
                        results.add(cell, {"command": arguments.command} | json.loads(out))
                        said = outcome(results.cells[cell])
                    minutes = (time.monotonic() - began) / 60 / done * (len(cells) - done)
                    tell(f"  {cell}: {said}; about {minutes:.0f} min left")
                time.sleep(0.05)
        finally:
            for process in running.values():
                process.kill()
                process.wait()
    return crashed


def show(
    results: CellFile,
    arguments: argparse.Namespace,
    render: Callable[[list[dict[str, Any]]], str],
    draw: Callable[[list[dict[str, Any]], Path], None] | None = None,
) -> None:
    """Write the table of all cells where ``--render`` says, and beside it, as ``.png``, their picture."""
    cells = list(results.cells.values())
    if not arguments.render or not cells:
        return
    write_file(arguments.render, render(cells).encode())
    if draw is not None and can_draw():
        draw(cells, arguments.render.with_suffix(".png"))


def tell(line: str) -> None:
    """Say how it goes."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def answer(measure: Callable[[], dict[str, Any]]) -> int:
    """In a process of `measure_all`: print what ``measure`` finds; the exit status is 0."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one.
    sys.stdout.write(json.dumps(measure()) + "\n")
    return 0


def now_and_then(seconds: float = 30.0) -> Callable[[str], None]:
    """Tells a text when none was told for so many seconds."""
    told = time.monotonic()

    def perhaps(text: str) -> None:
        nonlocal told
        if time.monotonic() - told > seconds:
            told = time.monotonic()
            tell(text)

    return perhaps


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
