"""What goes where: data to standard output, progress and notes to standard error."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

_SECONDS_BETWEEN_LINES = 10.0
_CONTROL = dict.fromkeys({*range(32), *range(127, 160)} - {9, 10}, "\ufffd")
# Wider than any table: what is read by a program must not be wrapped.
_PIPE_WIDTH = 100_000


def typed() -> str:
    """The command as it was typed, to be kept with what it found."""
    return shlex.join(["fastweights", *sys.argv[1:]])


@cache
def _errors() -> Console:
    # Imported late: `--help` needs no rich.
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def note(text: str) -> None:
    """Say something on standard error, above a progress line if there is one."""
    from rich.text import Text

    _errors().print(Text(text), soft_wrap=True)


def say(text: str = "") -> None:
    """Write a line of data, at once. Control characters of texts that were read must not reach a terminal."""
    print(text.translate(_CONTROL) if sys.stdout.isatty() else text, flush=True)


def emit(value: Any) -> None:
    """Write one JSON value, the whole output of a command that was asked for ``--json``."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """Write a table; numbers stand on the right. Lines are only wrapped for a person at a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    person = sys.stdout.isatty()
    console = Console(width=None if person else _PIPE_WIDTH, highlight=False)
    grid = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        numbers = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        grid.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(_cell(value)) for value in row))
    if person:
        console.print(grid)
        return
    with console.capture() as written:
        console.print(grid)
    for line in written.get().splitlines():
        print(line.rstrip())


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value).translate(_CONTROL)


def bytes_text(count: int) -> str:
    """``1536`` as ``1.5 KiB``."""
    size, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"


class Meter:
    """A line of progress: a bar at a terminal, a line of text every ten seconds elsewhere.

    Example:
        with Meter("reading") as meter:
            meter.show(0.5, "6,100 tokens/s")
    """

    def __init__(self, title: str) -> None:
        """Name what is going on; nothing is shown yet."""
        self._title = title
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._shown = time.monotonic()

    def __enter__(self) -> Meter:
        if _errors().is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn

            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[status]}", markup=False),
                console=_errors(),
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._progress.start()
            self._task = self._progress.add_task(self._title, total=None, status="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, done: float | None, status: str) -> None:
        """Show the share that is done, 0 to 1 (None where that is unknown), and how it goes."""
        if self._progress is not None and self._task is not None:
            total = None if done is None else 1.0
            self._progress.update(self._task, completed=done or 0.0, total=total, status=status)
        elif time.monotonic() - self._shown >= _SECONDS_BETWEEN_LINES:
            self._shown = time.monotonic()
            share = "" if done is None else f" {done:.0%}"
            note(f"{self._title}{share} · {status}")
