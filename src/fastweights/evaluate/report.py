"""A folder of results as one page: tables in Markdown, and pictures beside it.

It knows the files of comparisons (`fastweights.evaluate.grid`), of tasks (`fastweights.evaluate.runner`), of documents
(`fastweights.evaluate.perplexity`) and of surprise (`fastweights.evaluate.surprise`); others are left alone, and named.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastweights.errors import UserError
from fastweights.evaluate.compare import markdown
from fastweights.evaluate.grid import KIND
from fastweights.evaluate.picture import can_draw, draw_curves, draw_heat_map
from fastweights.evaluate.report_comparison import comparison_report
from fastweights.evaluate.report_reading import perplexity_report, surprise_report
from fastweights.models.durable import write_file

PAGE = "report.md"
"""What the page is called."""

_DEPTH_BINS = 10


class ReportMade(NamedTuple):
    """What a report was made of.

    Attributes:
        page: its file.
        used: how many files of results it shows.
        others: JSON files that it knows nothing of.
    """

    page: Path
    used: int
    others: tuple[Path, ...]


def make_report(results: Path, out: Path) -> ReportMade:
    """Show all results in a folder and in the folders below it.

    Args:
        results: the folder.
        out: folder of the page and of its pictures; made if need be.

    Raises:
        UserError: no folder, no results in it, or nowhere to write.
    """
    if not results.is_dir():
        raise UserError(f"there is no folder '{results}' with results")
    comparisons: dict[str, list[dict[str, Any]]] = {}
    tasks: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    reading: dict[str, list[tuple[str, dict[str, Any]]]] = {"perplexity": [], "surprise": []}
    others = []
    for path in sorted(results.rglob("*.json")):
        content, name = _content(path), "-".join(path.relative_to(results).with_suffix("").parts)
        if content.get("kind") == KIND:
            comparisons.setdefault(path.parent.parent.name, []).append(content)
        elif {"task", "lengths", "results", "model"} <= content.keys():
            tasks.setdefault(content["task"], []).append((name, content))
        elif content.get("kind") in reading and (content["kind"] == "surprise" or content["done"]):
            reading[content["kind"]].append((name, content))
        else:
            others.append(path)
    if not comparisons and not tasks and not any(reading.values()):
        raise UserError(f"'{results}' holds no results of a comparison, of a task or of documents")
    try:
        out.mkdir(parents=True, exist_ok=True)
        parts = [comparison_report(name, cells, out) for name, cells in comparisons.items()]
        parts += [_task_report(name, found, out) for name, found in tasks.items()]
        parts += [perplexity_report(reading["perplexity"], out)] if reading["perplexity"] else []
        parts += [surprise_report(reading["surprise"], out)] if reading["surprise"] else []
        write_file(out / PAGE, ("# Results\n\n" + "\n".join(parts)).encode())
    except OSError as error:
        raise UserError(f"the report cannot be written to '{out}': {(error.strerror or str(error)).lower()}") from error
    used = sum(len(found) for kind in (comparisons, tasks, reading) for found in kind.values())
    return ReportMade(out / PAGE, used, tuple(others))


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _task_report(task: str, found: Sequence[tuple[str, dict[str, Any]]], folder: Path) -> str:
    """Models over lengths, a curve for each, and for tasks with a needle where it was found."""
    lines = [f"## {task}\n", "Mean in percent and its 95 % interval; `n`: samples.\n"]
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name in dict.fromkeys(score for _, content in found for one in content["lengths"] for score in one["scores"]):
        lengths = sorted({one["tokens"] for _, content in found for one in content["lengths"]})
        rows = {}
        for own, content in found:
            at = {one["tokens"]: one for one in content["lengths"] if name in one["scores"]}
            label = _label(own, content, found)
            rows[label] = [_entry(at[tokens], name) if tokens in at else "" for tokens in lengths]
            panels.setdefault(name, {})[label] = [
                (tokens, at[tokens]["scores"][name]["mean"] / 100) for tokens in lengths if tokens in at
            ]
        lines += [f"`{name}`:\n", markdown([f"{tokens:,}" for tokens in lengths], rows)]
    if can_draw():
        draw_curves(panels, folder / f"{task}.png", "tokens", "score", logarithmic=True)
        lines.append(f"![{task}]({task}.png)\n")
        for own, content in found:
            if any(result["depths"] for result in content["results"]):
                label = _label(own, content, found)
                path = folder / f"{task}-depth-{label.replace('/', '-')}.png"
                draw_heat_map(*depth_table(content["results"]), path, f"{task}, {label}", "tokens", "depth, %")
                lines.append(f"![where {label} found it]({path.name})\n")
    return "\n".join(lines)


def _label(own: str, content: dict[str, Any], found: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """The model's name, and the file's own where two files are of one model."""
    model = Path(content["model"]).name
    same = sum(Path(other["model"]).name == model for _, other in found)
    return model if same == 1 else f"{model} ({own})"


def _entry(one: dict[str, Any], name: str) -> str:
    score = one["scores"][name]
    low, high = score["interval"]
    return f"{score['mean']:.1f} ({low:.1f} to {high:.1f}, n {one['samples']})"


def depth_table(results: Sequence[dict[str, Any]]) -> tuple[list[str], list[str], list[list[float | None]]]:
    """Mean score of the samples with a depth: titles of columns (lengths), of rows (depths), and the shares.

    A share is None where there is no sample. A sample with several needles counts at each of their depths.
    """
    lengths = sorted({result["tokens"] for result in results})
    width = 100 // _DEPTH_BINS
    table: list[list[list[float]]] = [[[] for _ in lengths] for _ in range(_DEPTH_BINS)]
    for result in results:
        first = next(iter(result["scores"].values()))
        for depth in result["depths"]:
            table[min(_DEPTH_BINS - 1, int(depth // width))][lengths.index(result["tokens"])].append(first)
    rows = [f"{start} to {start + width}" for start in range(0, 100, width)]
    shares = [[sum(cell) / len(cell) if cell else None for cell in row] for row in table]
    return [f"{tokens:,}" for tokens in lengths], rows, shares
