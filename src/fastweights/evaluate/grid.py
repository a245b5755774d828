"""Running a comparison: one cell after the other in one process, each in a file of its own as soon as it is done."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from fastweights.errors import UserError
from fastweights.evaluate.cells import circumstances
from fastweights.evaluate.contest import Cell, Comparison, run_cell
from fastweights.evaluate.ledger import write_results
from fastweights.train.config import TrainConfig
from fastweights.train.recipes import RecipeError, call_recipe, find_recipe
from fastweights.train.records import StepRecord

KIND = "comparison"
"""What the file of a cell calls itself."""


class GridStep(NamedTuple):
    """How a comparison goes.

    Attributes:
        done: cells that are done.
        cells: cells in all.
        cell: the one that is being trained.
        record: the last step of its training.
    """

    done: int
    cells: int
    cell: Cell
    record: StepRecord


def load_comparison(name: str | Path) -> Comparison:
    """What a recipe compares.

    Args:
        name: of a recipe that has a function ``comparison()``, or the path of a ``.py`` file. The file is executed.

    Raises:
        RecipeError: there is no such recipe, or it compares nothing.
        UserError: what it compares cannot be made.
    """
    path = find_recipe(name, "comparison")
    found = call_recipe(path, "comparison")
    if not isinstance(found, Comparison):
        raise RecipeError(f"comparison() in {path} gave a {type(found).__name__}, not a Comparison")
    for contest, model in found.minutes:
        if contest not in found.contests or model not in found.models:
            raise UserError(f"minutes in {path} names ({contest!r}, {model!r}), which is no contest and model of it")
    return found


def run_grid(
    comparison: Comparison,
    out: Path,
    runs: Path,
    command: str,
    *,
    on_step: Callable[[GridStep], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Train and ask what is not done yet.

    A cell's file is ``out/CONTEST/MODEL-SEED.json``. An interrupt at any point loses at most a minute of training: the
    same call goes on from the last checkpoint.

    Args:
        comparison: the grid.
        out: folder of the results.
        runs: folder of the training runs.
        command: kept in the files, with the date, the machine and the versions.
        on_step: called after every step of training.
        on_note: called with a sentence for every cell that begins or ends.

    Returns:
        The contents of all cells' files, in the order of the grid.

    Raises:
        UserError: results in ``out`` were found with other settings; a folder that cannot be written.
        KeyboardInterrupt: interrupted.
    """
    note = on_note or (lambda text: None)
    cells = list(comparison.cells())
    done = dict(finished(comparison, out))
    for cell in cells:
        if cell in done:
            continue

        def tell(record: StepRecord, cell: Cell = cell) -> None:
            if on_step is not None:
                on_step(GridStep(len(done), len(cells), cell, record))

        note(f"[{len(done) + 1}/{len(cells)}] {cell}")
        folder = runs / cell.contest / f"{cell.model}-{cell.seed}"
        found = run_cell(comparison, cell, folder, tell, note)
        where = circumstances("cpu", comparison.threads)
        content = {"kind": KIND, **comparison.facts(cell), "command": command, **where, **found}
        path = file_of(cell, out)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the folder '{path.parent}' cannot be made: {(error.strerror or '').lower()}") from error
        write_results(path, content)
        done[cell] = content
        note(f"  {cell}: {outcome(content)}")
    return [done[cell] for cell in cells]


def finished(comparison: Comparison, out: Path) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """The cells of a grid that are done, and what their files hold; a training cut off too early for now is not done.

    Raises:
        UserError: a file was written with other settings, or is none of these files.
    """
    for cell in comparison.cells():
        path = file_of(cell, out)
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_bytes())
        except ValueError as error:
            raise UserError(f"'{path}' is not a result of a comparison: choose another folder") from error
        if not isinstance(content, dict) or content.get("kind") != KIND:
            raise UserError(f"'{path}' is not a result of a comparison: choose another folder")
        facts = comparison.facts(cell)
        if content.get("capped") and content["minutes"] < facts["minutes"]:
            continue
        for name, now in facts.items():
            if _what_counts(name, content.get(name), content) != _what_counts(name, now, content):
                raise UserError(
                    f"'{path}' was found with other settings ({name} differs): choose another folder, or remove it"
                )
        yield cell, content


def _what_counts(name: str, value: Any, content: Mapping[str, Any]) -> Any:
    """What of a setting decides the result in a file.

    A training is read through its classes, so that settings which the file knew nothing of have their defaults; how
    many threads it had is a fact of the machine. Minutes decided nothing when they were enough.
    """
    if name == "minutes" and not content.get("capped"):
        return None
    if name != "training":
        return value
    try:
        return replace(TrainConfig.from_json(json.dumps(value)), threads=0)
    except UserError:
        return value


def file_of(cell: Cell, out: Path) -> Path:
    """Where a cell's result goes."""
    return out / cell.contest / f"{cell.model}-{cell.seed}.json"


def outcome(content: dict[str, Any]) -> str:
    """A cell in a few words."""
    if content["stopped"]:
        return f"gave up, {content['stopped']}"
    first, last = content["scores"][0], content["scores"][-1]
    numbers = " and ".join(
        f"{score['value']:.3f} bits" if content["measure"] == "bits" else f"{score['value']:.1%} right"
        for score in (first, last)
    )
    cut = ", cut off" if content["capped"] else ""
    return f"{numbers} at {first['tokens']:,} and {last['tokens']:,} tokens, {content['wall_seconds']:.0f} s{cut}"
