"""A picture of surprise along documents, with the needles marked. Needs the extra package `plot`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

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
    if not can_draw():
        raise UserError("a picture needs an extra package: pip install 'fastweights[plot]'")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = result.curves[:_MOST_DOCUMENTS]
    figure = Figure(figsize=(10, 1 + 2 * len(curves)), layout="constrained")
    # A canvas of its own: `pyplot` would look for a display.
    FigureCanvasAgg(figure)
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
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"the picture cannot be written to '{path}': {reason}") from error
