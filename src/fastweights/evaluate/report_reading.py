"""What documents cost models, and what surprises them, in Markdown and in pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastweights.evaluate.compare import markdown
from fastweights.evaluate.picture import can_draw, draw_along, draw_curves

Named = Sequence[tuple[str, dict[str, Any]]]
"""Results by the name of their file."""


def perplexity_report(found: Named, folder: Path) -> str:
    """Files over what they hold, and bits per byte over the place in the document."""
    rows, curves = {}, {}
    for stem, content in found:
        interval = content["interval"]
        between = "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"
        memory = f"reset every {content['reset_every']:,}" if content["reset_every"] else "carried"
        words = f"{content['word_perplexity']:,.6g}"
        rows[stem] = [Path(content["model"]).name, memory, content["done"], f"{content['bits_per_byte']:.3f}{between}"]
        rows[stem].append(words)
        curves[stem] = [(place["below"], place["bits_per_byte"]) for place in content["places"]]
    titles = ["model", "memory", "documents", "bits per byte, 95 % interval", "perplexity per word"]
    table = markdown(titles, {name: [str(entry) for entry in row] for name, row in rows.items()})
    lines = ["## Documents\n", table]
    if can_draw():
        labels = "tokens before the end of the bucket", "bits per byte"
        draw_curves({"by place": curves}, folder / "perplexity.png", *labels, logarithmic=True, shares=False)
        lines.append("![bits per byte by place](perplexity.png)\n")
    return "\n".join(lines)


def surprise_report(found: Named, folder: Path) -> str:
    """Layers over what their surprise goes with, and its decay when a passage is repeated."""
    rows, curves = {}, {}
    for stem, content in found:
        layers = zip(content["correlation"], content["switches"], content["repetitions"], strict=True)
        for number, (correlation, switches, repeated) in enumerate(layers):
            name = f"{stem}, layer {number}"
            shown = "-" if correlation is None else f"{correlation:.2f}"
            rows[name] = [shown, *(_around(switches[part]) for part in ("surprise", "write", "forget"))]
            curves[name] = [(reading + 1, mean / max(repeated[0], 1e-30)) for reading, mean in enumerate(repeated)]
    titles = [
        "rank correlation with bits",
        "surprise before / behind a switch / elsewhere",
        "write gate",
        "forget gate",
    ]
    lines = [
        "## Surprise\n",
        "Norm of the inner gradient at a token; means over windows with half of their 95 % interval.\n",
    ]
    lines.append(markdown(titles, rows))
    if can_draw():
        labels = "reading of the same passage", "surprise, share of the first reading"
        draw_curves({"repetition": curves}, folder / "surprise.png", *labels, shares=False)
        lines.append("![surprise when a passage is repeated](surprise.png)\n")
        lines += [_along(stem, content["along"], folder) for stem, content in found if "along" in content]
    return "\n".join(lines)


def _along(stem: str, along: dict[str, Any], folder: Path) -> str:
    """Two texts in turns as the memory felt them."""
    layers = range(len(along["surprise"]))
    panels = {"bits a token": {"": along["bits"]}}
    for part, label in (("surprise", "surprise"), ("write", "write gate"), ("forget", "forget gate")):
        panels[label] = {f"layer {layer}": along[part][layer] for layer in layers}
    end, path = len(along["bits"]) * along["window"], folder / f"surprise-along-{stem}.png"
    marks = range(along["topic"], end, along["topic"])
    draw_along(panels, path, f"{stem}: two texts in turns, switches dotted", along["window"], marks)
    return f"![surprise and gates along two texts in turns, {stem}]({path.name})\n"


def _around(response: dict[str, dict[str, Any]]) -> str:
    means = (response[where] for where in ("before", "behind", "elsewhere"))
    return " / ".join(f"{one['mean']:.3g} ± {one['half']:.2g}" for one in means)
