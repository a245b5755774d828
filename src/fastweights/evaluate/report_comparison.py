"""A comparison in Markdown and in pictures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastweights.evaluate.cells import all_circumstances
from fastweights.evaluate.compare import Bits, Measured, Shares, comparison, markdown
from fastweights.evaluate.picture import can_draw, draw_curves

LEGEND = """\
Right answers in percent, or bits a token; of several seeds: smallest / median / largest. Bold is what ties with the
best of its column: it differs by no more than the spread over seeds, or than two standard errors of what was counted.
A model that is worse than the given bound on the first question, at the length of training, did not learn. †: cut off
by the clock. –: not defined, or not asked.
"""

_COUNTED = {"right": "tokens of answers", "exact": "whole answers", "bits": "bits a token"}

Cells = Sequence[dict[str, Any]]


def comparison_report(title: str, cells: Cells, folder: Path) -> str:
    """The tables of a comparison; curves go into ``folder`` where pictures can be drawn.

    Args:
        title: of the whole.
        cells: the contents of its files.
        folder: where pictures go; it exists.
    """
    lines = [f"## {title}\n", LEGEND]
    for contest in dict.fromkeys(found["contest"] for found in cells):
        own = [found for found in cells if found["contest"] == contest]
        lines += _contest(contest, own, title, folder)
    return "\n".join([*lines, *all_circumstances(cells)])


def _contest(contest: str, cells: Cells, title: str, folder: Path) -> list[str]:
    first = cells[0]
    bound = f"{first['learned']:g} bits" if first["measure"] == "bits" else f"{first['learned']:.0%}"
    guess = f"{first['guess']:g} bits" if first["measure"] == "bits" else f"{first['guess']:.1%}"
    lines = [f"### {contest}\n", f"Counted: {_COUNTED[first['measure']]}. Learned: {bound}. A guess: {guess}.\n"]
    asked = [found for found in cells if "scores" in found]
    if asked:
        lines.append(_scores(asked))
        if controls := _controls(asked):
            lines += ["What is left of it under a control, on the first and on the last question:\n", controls]
        if can_draw():
            name = f"{title}-{contest}.png"
            _draw(asked, folder / name)
            lines.append(f"![{contest}]({name})\n")
    lines += [
        f"`{found['model']}`, seed {found['seed']}: training gave up, {found['stopped']}.\n"
        for found in cells
        if found["stopped"]
    ]
    return lines


def _scores(cells: Cells) -> str:
    rows = list(dict.fromkeys(found["model"] for found in cells))
    of_model = {row: [found for found in cells if found["model"] == row] for row in rows}
    titles = [_title(found) for found in cells[0]["questions"]]
    columns = {
        title: {row: _measured(same, [found["scores"][index] for found in same]) for row, same in of_model.items()}
        for index, title in enumerate(titles)
    }
    facts = {
        "parameters": {row: f"{same[0]['parameters']:,}" for row, same in of_model.items()},
        "state, bytes": {row: f"{same[0]['state_bytes']:,}" for row, same in of_model.items()},
        "training, s": {
            row: f"{statistics.median(found['seconds'] for found in same):.0f}" for row, same in of_model.items()
        },
    }
    return comparison(rows, columns, facts)


def _title(question: dict[str, Any]) -> str:
    """A question's name, with its length where the name does not say it."""
    name, length = question["name"], question["length"]
    return name if str(length) in name else f"{name}, {length:,}"


def _measured(cells: Cells, scores: Sequence[dict[str, Any]], learned: bool | None = None) -> Measured:
    """The scores of all seeds of a model."""
    values = tuple(score["value"] for score in scores)
    mark = " †" if any(found["capped"] for found in cells) else ""
    known = statistics.median(found["is learned"] for found in cells) >= 0.5 if learned is None else learned
    if cells[0]["measure"] == "bits":
        return Bits(values, max((score["high"] - score["low"]) / 3.92 for score in scores), known, mark)
    return Shares(values, scores[0]["asked"], known, mark)


def _controls(cells: Cells) -> str:
    """Models over controls: numbers without one and under each, first / last question; medians over seeds."""
    names = list(dict.fromkeys(name for found in cells for name in found["controls"]))
    if not names:
        return ""
    rows = {}
    for model in dict.fromkeys(found["model"] for found in cells):
        same = [found for found in cells if found["model"] == model]
        if not all(found["is learned"] for found in same):
            continue
        ends = [[found["scores"][0], found["scores"][-1]] for found in same]
        entries = [_pair(same, ends)]
        for name in names:
            under = [found["controls"][name] for found in same if name in found["controls"]]
            entries.append(_pair(same, under) if under else "–")
        rows[model] = entries
    return markdown(["no control", *names], rows) if rows else ""


def _pair(cells: Cells, scores: Sequence[Sequence[dict[str, Any]]]) -> str:
    medians = [_measured(cells, at, True) for at in zip(*scores, strict=True)]
    return " / ".join(measured.shown(measured.median) for measured in medians)


def _draw(cells: Cells, path: Path) -> None:
    """Every model's median over the length of the rows."""
    bits = cells[0]["measure"] == "bits"
    curves: dict[str, list[tuple[float, float]]] = {}
    for model in dict.fromkeys(found["model"] for found in cells):
        same = [found for found in cells if found["model"] == model]
        points: dict[int, list[float]] = {}
        for found in same:
            for score in found["scores"]:
                points.setdefault(score["tokens"], []).append(score["value"])
        curves[model] = [(tokens, statistics.median(values)) for tokens, values in sorted(points.items())]
    title = f"{cells[0]['contest']}, {_COUNTED[cells[0]['measure']]}"
    draw_curves({title: curves}, path, "tokens a row", "bits" if bits else "share", logarithmic=True, shares=not bits)
