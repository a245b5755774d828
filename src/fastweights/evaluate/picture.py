"""Pictures: surprise along documents with the needles marked, and plain curves. They need the extra package `plot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fastweights.errors import UserError
from fastweights.evaluate.needle import NeedleResult

PICTURES = (".png", ".svg", ".pdf")
"""What the name of a picture may end in."""

_MOST_DOCUMENTS = 8


def can_draw() -> bool:
    """Whether the extra package is installed."""
    return find_spec("matplotlib") is not None


def draw_surprise(result: NeedleResult, path: Path, title: str) -> None:
    """Draw the surprise along each document (the first eight) and mark its needles: green where recalled, else red.

    Args:
        result: What to draw.
        path: The picture's file; its suffix chooses the format.
        title: Stands above it.

    Raises:
        UserError: The extra package is missing, the suffix names no format, or the file cannot be written.
    """
    curves = result.curves[:_MOST_DOCUMENTS]
    figure = _figure(10, 1 + 2 * len(curves))
    axes = list(figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0])
    for index, (curve, axis) in enumerate(zip(curves, axes, strict=True)):
        places = curve.width * np.arange(len(curve.mean))
        axis.fill_between(places, curve.mean, curve.peak, color="0.85", linewidth=0, label="up to the peak")
        axis.plot(places, curve.mean, color="0.25", linewidth=0.8, label=f"mean of {curve.width} tokens")
        for found in result.answers:
            if found.document == index:
                color = "tab:green" if found.right else "tab:red"
                axis.axvline(found.position, color=color, linewidth=1, linestyle=":", zorder=0)
                axis.plot(
                    found.position, 1, color=color, marker="v", transform=axis.get_xaxis_transform(), clip_on=False
                )
        axis.set_ylabel("surprise")
        axis.margins(x=0.01)
        axis.xaxis.set_major_formatter(lambda tokens, _: f"{tokens:,.0f}")
    axes[0].legend(loc="upper right", fontsize="small")
    axes[-1].set_xlabel("tokens read (needles: green recalled, red not)")
    figure.suptitle(title)
    _save(figure, path)


def draw_curves(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    path: Path,
    x_label: str,
    y_label: str,
    logarithmic: bool = False,
    shares: bool = True,
) -> None:
    """Draw curves in panels side by side; a curve has the same colour in every panel.

    Args:
        panels: by title, the curves by name: their points (x, y). Empty panels are left out.
        path: The picture's file; its suffix chooses the format.
        x_label: What x is.
        y_label: What y is.
        logarithmic: Doublings of x are equally far apart.
        shares: y lies in [0, 1], all of which is shown.

    Raises:
        UserError: The extra package is missing, the suffix names no format, or the file cannot be written.
    """
    drawn = {title: curves for title, curves in panels.items() if curves}
    figure = _figure(max(1, len(drawn)) * 4.5, 4.5)
    names = list(dict.fromkeys(name for curves in drawn.values() for name in curves))
    color = {name: f"C{index % 10}" for index, name in enumerate(names)}
    style = {name: ("-", "--", ":", "-.")[index // 10 % 4] for index, name in enumerate(names)}
    axes = figure.subplots(1, max(1, len(drawn)), squeeze=False)[0]
    lines = {}
    for axis, (title, curves) in zip(axes, drawn.items(), strict=False):
        for name, points in curves.items():
            x, y = zip(*points, strict=True)
            (lines[name],) = axis.plot(x, y, style[name], color=color[name], marker=".", markersize=3, label=name)
        if logarithmic:
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter(lambda tokens, _: f"{tokens:,.0f}")
            axis.tick_params("x", rotation=45)
        if shares:
            axis.set_ylim(-0.02, 1.02)
        axis.set_title(title, fontsize="medium")
        axis.set_xlabel(x_label)
        axis.set_ylabel(y_label)
        axis.grid(alpha=0.3)
    figure.legend(handles=list(lines.values()), loc="outside lower center", ncols=3, fontsize="small")
    _save(figure, path)


def draw_along(
    panels: Mapping[str, Mapping[str, Sequence[float]]], path: Path, title: str, width: int, marks: Sequence[int]
) -> None:
    """Draw what happens along a document, in panels one above the other.

    Args:
        panels: by title, the curves by name: a value for each window of the document.
        path: The picture's file; its suffix chooses the format.
        title: Stands above it.
        width: Tokens of a window.
        marks: Tokens at which a line is drawn through all panels.

    Raises:
        UserError: The extra package is missing, the suffix names no format, or the file cannot be written.
    """
    figure = _figure(10, 1 + 1.7 * len(panels))
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (label, curves) in zip(axes, panels.items(), strict=True):
        for mark in marks:
            axis.axvline(mark, color="0.7", linewidth=0.8, linestyle=":")
        for name, values in curves.items():
            axis.plot(width * (np.arange(len(values)) + 0.5), values, linewidth=0.9, label=name)
        axis.set_ylabel(label)
        axis.margins(x=0.01)
        axis.xaxis.set_major_formatter(lambda tokens, _: f"{tokens:,.0f}")
        if len(curves) > 1:
            axis.legend(loc="upper right", fontsize="small")
    axes[-1].set_xlabel("tokens read")
    figure.suptitle(title)
    _save(figure, path)


def draw_heat_map(
    columns: Sequence[str],
    rows: Sequence[str],
    shares: Sequence[Sequence[float | None]],
    path: Path,
    title: str,
    x_label: str,
    y_label: str,
) -> None:
    """Draw shares as a table of colours, red for 0 to green for 1, white where there is none.

    Args:
        columns: Titles of the columns.
        rows: Titles of the rows, the first one at the top.
        shares: By row and column.
        path: The picture's file; its suffix chooses the format.
        title: Stands above it.
        x_label: What the columns are.
        y_label: What the rows are.

    Raises:
        UserError: The extra package is missing, the suffix names no format, or the file cannot be written.
    """
    figure = _figure(2 + 0.8 * len(columns), 1.5 + 0.35 * len(rows))
    axis = figure.subplots()
    values = np.array([[np.nan if share is None else share for share in row] for row in shares])
    image = axis.imshow(values, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    axis.set_xticks(range(len(columns)), columns, rotation=45)
    axis.set_yticks(range(len(rows)), rows)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.set_title(title, fontsize="medium")
    figure.colorbar(image)
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    """An empty figure of so many inches.

    Raises:
        UserError: The extra package is missing.
    """
    if not can_draw():
        raise UserError("a picture needs an extra package: pip install 'fastweights[plot]'")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    # A canvas of its own: `pyplot` would look for a display.
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"the picture cannot be written to '{path}': {reason}") from error
