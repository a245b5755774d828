"""Commands that compare: train and ask a grid of models, and show results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from fastweights.cli.terminal import Meter, emit, note, say, typed

if TYPE_CHECKING:
    from fastweights.evaluate.grid import GridStep


def compare(
    recipe: str,
    /,
    *,
    out: Annotated[Path, arg(metavar="DIR")],
    runs: Annotated[Path | None, arg(metavar="DIR")] = None,
    models: Annotated[str, arg(metavar="A,B,...")] = "",
    contests: Annotated[str, arg(metavar="A,B,...")] = "",
    seeds: int = 0,
    effort: float = 1.0,
    json: bool = False,
) -> None:
    """Train several models on several tasks, ask them all the same, and report who did how well.

    Every cell of the grid is a file as soon as it is done. Ctrl-C at any time; the same command goes on from there.

    Args:
        recipe: the name of a recipe, or a .py file with a function comparison()
        out: where the results and the report go
        runs: where the training runs go, by default a folder of the same name in runs/
        models: only these of the recipe's models, with commas between them
        contests: only these of the recipe's contests
        seeds: how many instead of as many as the recipe says
        effort: times the recipe's steps of training, to see first that all works
        json: print what was found as JSON
    """
    from fastweights.evaluate.cells import chosen
    from fastweights.evaluate.contest import with_effort
    from fastweights.evaluate.grid import load_comparison, run_grid
    from fastweights.evaluate.report import make_report
    from fastweights.train.progress import ProgressLine

    whole = load_comparison(recipe)
    wanted = replace(
        with_effort(whole, effort),
        models={name: whole.models[name] for name in chosen(models, list(whole.models), "model")},
        seeds=seeds or whole.seeds,
    )
    names = chosen(contests, list(whole.contests), "contest")
    wanted = replace(wanted, contests={name: wanted.contests[name] for name in names})
    line = ProgressLine()

    def show(step: GridStep) -> None:
        share = (step.done + step.record.step / step.record.steps) / step.cells
        meter.show(share, f"{step.done + 1} of {step.cells}, {step.cell} · {line.text(step.record)}")

    with Meter("comparing") as meter:
        found = run_grid(
            wanted,
            out,
            runs or Path("runs") / out.name,
            typed(),
            on_step=show,
            on_note=note,
        )
    page = make_report(out, out).page
    if json:
        emit(found)
    else:
        say(f"{page}")


def report(
    results: Annotated[Path, arg(metavar="DIR")],
    /,
    *,
    out: Annotated[Path, arg(metavar="DIR", aliases=["-o"])],
) -> None:
    """Show all results in a folder as one page, with tables and pictures.

    Args:
        results: the folder; what lies in folders below it counts too
        out: where report.md and its pictures go
    """
    from fastweights.evaluate.picture import can_draw
    from fastweights.evaluate.report import make_report

    made = make_report(results, out)
    if made.others:
        note(f"not shown, since a report knows nothing of them: {', '.join(map(str, made.others))}")
    if not can_draw():
        note("no pictures: they need an extra package, pip install 'fastweights[plot]'")
    say(f"{made.page}")
