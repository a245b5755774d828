r"""Puts a trained model into the package, with a model card written from the record of the runs that made it.

    python recipes/ship_model.py runs/needle runs/needle_long runs/needle_many runs/needle_quiet runs/needle_crowd \
        [--results results/needle.json]

The last run holds the model. The card holds what each run's configuration and log say, and the recall measured by
benchmarks/needle_curve.py where a results file is given.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fastweights.models.pretrained import SHIPPED, save_model
from fastweights.train.config import TrainConfig
from fastweights.train.folder import model_from_run
from fastweights.train.needle import NeedleTask  # noqa: F401 - makes the task's name known to the configurations

CARD = """# {name}

{parameters:,} parameters. Recalls numbers hidden in English text by their keys: the pass-keys of RULER's S-NIAH, in
books and in noise. It was trained for this alone and knows nothing else.

| | |
| --- | --- |
| wiring | {wiring}: memory, then sliding-window attention over {window} tokens, then a SwiGLU network; {depth} blocks |
| memory | {memory_heads} heads of {head_dim} x {head_dim} a block, written online |
| rule | {rule} |
| width | {dim} |
| tokenizer | {tokenizer} |
{training}
| data | sentences of 89 public-domain novels (ELTeC-eng, DOI 10.5281/zenodo.3462536) and RULER's noise, with needles |
| recipes | in `recipes/`: `needle.py`, `needle_long.py`, `needle_many.py`, `needle_quiet.py`, `needle_crowd.py` |

Last line of the training log: {last}

{results}

Limits: keys of the form adjective-noun and values of seven digits, in RULER's words. A question should end where the
answer begins (" The special magic number for KEY mentioned in the provided text is"). Keys were made of four fifths of
the word lists; the numbers above use the other fifth, and books that training never saw.
"""


def recall_table(path: Path) -> str:
    """The measured recall as a table, one line a length."""
    record = json.loads(path.read_text(encoding="utf-8"))
    rows: dict[tuple[int, int], list[int]] = {}
    for point in record["points"]:
        right, asked = rows.setdefault((point["tokens"], point["needles"]), [0, 0])
        rows[point["tokens"], point["needles"]] = [right + point["right"], asked + point["asked"]]
    lines = ["| tokens | needles a document | recalled |", "| --- | --- | --- |"]
    lines += [f"| {t:,} | {n} | {right} of {asked} |" for (t, n), (right, asked) in sorted(rows.items())]
    return "\n".join(lines)


def read_config(run: Path) -> TrainConfig:
    """What a run was told to do."""
    return TrainConfig.from_json((run / "config.json").read_text(encoding="utf-8"))


def last_line(run: Path) -> dict[str, Any]:
    """The last line of a run's log that speaks of steps."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    found: dict[str, Any] = [line for line in lines if line["kind"] == "steps"][-1]
    return found


def training_row(run: Path) -> str:
    """A run as a row of the card."""
    config, last = read_config(run), last_line(run)
    lengths = [stage.length for stage in config.stages[: last["stage"] + 1]]
    return (
        f"| training | {last['step']:,} of {config.steps:,} steps, "
        f"{config.tokens - config.tokens_after(last['step']):,} tokens in rows of {min(lengths)} to {max(lengths)}, "
        f"{last['seconds'] / 60:.0f} minutes, price up to {last['price_weight']}, seed {config.seed} |"
    )


def card(runs: list[Path], name: str, results: Path | None) -> str:
    """The text of the card."""
    run = runs[-1]
    config, last, model = read_config(run), last_line(run), read_config(run).model
    heads = model.memory_heads or model.heads
    return CARD.format(
        name=name,
        parameters=sum(p.numel() for p in model_from_run(run).parameters()),
        wiring=model.wiring.upper(),
        window=model.window,
        depth=model.depth,
        memory_heads=heads,
        head_dim=model.memory_head_dim or model.dim // heads,
        rule=model.rule,
        dim=model.dim,
        tokenizer=config.task.tokenizer,
        training="\n".join(map(training_row, runs)),
        last=json.dumps({key: last[key] for key in ("loss", "exact", "write", "forget", "shut")}),
        results=recall_table(results) if results else "",
    )


def main() -> None:
    """Writes the model and its card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--name", default="needle")
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args()
    run = arguments.runs[-1]
    save_model(
        model_from_run(run),
        SHIPPED / arguments.name,
        tokenizer=read_config(run).task.tokenizer,
        card=card(arguments.runs, arguments.name, arguments.results),
        overwrite=True,
    )
    print(SHIPPED / arguments.name)


if __name__ == "__main__":
    main()
