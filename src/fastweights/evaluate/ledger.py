"""Results that survive any interruption: one JSON file, replaced atomically every few seconds."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastweights.errors import UserError
from fastweights.models.durable import write_file

FORMAT = 1
_SAVE_SECONDS = 2.0

Result = dict[str, Any]


class Ledger(ABC):
    """The results so far, in memory and on the disk.

    The file is one JSON object: ``format``, the facts, a summary, and ``results``, a list of objects that have a
    ``key`` each.

    Args:
        path: The file. What it holds already is taken up; a new one is written at once, so that an output that cannot
            be written is found out before the work.
        facts: What all results share; those that are None are not written. Another value in the file is refused, but
            for that of ``model``: a model is known by its ``fingerprint``.

    Attributes:
        results: By key.

    Raises:
        UserError: The file is something else, holds results with other facts, or cannot be written.
    """

    what: str
    """What the results are of, for messages."""

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path, self.facts = path, facts
        self.results: dict[str, Result] = {}
        self.saved = time.monotonic()
        if path.exists():
            self._resume()
        else:
            self.save()

    @abstractmethod
    def taken_up(self, found: dict[str, Result], content: dict[str, Any]) -> dict[str, Result] | None:
        """Which of the results in a file count, by key; None if it holds something else. ``content`` is all of it."""

    @abstractmethod
    def in_order(self) -> Sequence[Result]:
        """The results as they are to stand in the file."""

    @abstractmethod
    def summary(self, results: Sequence[Result]) -> dict[str, Any]:
        """What stands in front of them."""

    def add(self, result: Result) -> None:
        """Take up a result."""
        self.results[result["key"]] = result
        if time.monotonic() - self.saved >= _SAVE_SECONDS:
            self.save()

    def save(self) -> dict[str, Any]:
        """Write everything; the file is the old or the new one at every moment."""
        done = list(self.in_order())
        facts = {name: value for name, value in self.facts.items() if value is not None}
        content = {"format": FORMAT, **facts, **self.summary(done), "results": done}
        write_results(self.path, content)
        self.saved = time.monotonic()
        return content

    def _resume(self) -> None:
        other = f"'{self.path}' holds something else than the results of {self.what}: choose another file"
        try:
            found = json.loads(self.path.read_bytes())
            results = {result["key"]: result for result in found["results"]}
            mine = self.taken_up(results, found) if found["format"] == FORMAT else None
        except OSError as error:
            raise UserError(f"cannot read '{self.path}': {(error.strerror or str(error)).lower()}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(other) from error
        if mine is None:
            raise UserError(other)
        for name, value in self.facts.items():
            if name != "model" and found.get(name) != value:
                raise UserError(f"'{self.path}' holds results with another {name}: choose another file")
        self.results = mine


def write_results(path: Path, content: dict[str, Any]) -> None:
    """Write results as JSON; the file is the old or the new one at every moment.

    Raises:
        UserError: It cannot be written.
    """
    try:
        write_file(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(
            f"the results cannot be written to '{path}': {(error.strerror or str(error)).lower()}"
        ) from error


class RecordedLedger(Ledger):
    """Results that also say from which runs they are: command, date, machine and versions of each that added some.

    Args:
        path: As for `Ledger`.
        facts: The same.
        run: This one.

    Attributes:
        runs: All of them; a subclass puts them into its summary.
    """

    def __init__(self, path: Path, facts: dict[str, Any], run: dict[str, Any]) -> None:
        self.run, self.runs = run, list[dict[str, Any]]()
        super().__init__(path, facts)

    def add(self, result: Result) -> None:
        """Take up a result, and the run that it is from."""
        if self.run not in self.runs:
            self.runs.append(self.run)
        super().add(result)

    def taken_up(self, found: dict[str, Result], content: dict[str, Any]) -> dict[str, Result] | None:
        """All that are whole."""
        self.runs = list(content["runs"])
        return found if all(map(self.is_whole, found.values())) else None

    @abstractmethod
    def is_whole(self, result: Result) -> bool:
        """Whether a result in a file is one of this kind."""
