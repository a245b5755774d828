"""Recall against the length of the document, for gates that cannot shut, gates that can, and a price on opening them.

    python benchmarks/gate_curve.py [--memories matrix,mlp] [--gates plain,hard,priced] [--facts kept,changing]
        [--lengths 2048 ... 2097152] [--seeds 1] [--jobs 1] [--out results/gate_curve.json] [--runs runs/gate_curve]
        [--render results/gate_curve.md]

Six small models, a matrix and an MLP memory with each kind of gates, are trained on pairs hidden in noise, all with the
same curriculum of rows of at most 2,048 tokens. Then they read streams of up to two million tokens in pieces, the
memory carried from one to the next. Facts that are `kept` stand once in a stream; of those that are `changing` half get
another value further on, and the last one is asked for. Who has forgotten all is not asked at greater lengths. A cell
is a training (0 tokens) or a length. Every cell runs in a process of its own and is written to the file as soon as it
is done; what stands there for the same rule and the same weights is not measured again. A training saves every minute
and goes on from there, so the command can be stopped at any time and called again.
`--seeds 0 --render TABLE.md` only draws the tables, and beside them the curves, as TABLE.png.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from fastweights.core import presets
from fastweights.core.rule import Rule, beyond_defaults
from fastweights.errors import UserError
from fastweights.evaluate.cells import (
    CellFile,
    all_circumstances,
    answer,
    arguments_of,
    chosen,
    circumstances,
    command,
    measure_all,
    now_and_then,
    show,
)
from fastweights.evaluate.compare import markdown
from fastweights.evaluate.picture import draw_curves
from fastweights.models.budget import parameter_count, with_parameters
from fastweights.models.pretrained import load_model
from fastweights.train.config import (
    CheckpointConfig,
    EvaluationConfig,
    OptimiserConfig,
    PriceConfig,
    Probe,
    Stage,
    TrainConfig,
)
from fastweights.train.folder import CONFIG, LOG
from fastweights.train.folder import MODEL as FINISHED
from fastweights.train.learning import MODEL, PARAMETERS
from fastweights.train.loop import train
from fastweights.train.optim import TrainingStopped
from fastweights.train.progress import ProgressLine
from fastweights.train.reading import read_rows
from fastweights.train.recall import RecallTask
from fastweights.train.records import StepRecord, read_log

MEMORIES: dict[str, Rule] = {
    "matrix": presets.titans_linear(),
    "mlp": replace(presets.titans(chunk_size=16), clip=1.0, lr_max=0.1),
}
"""A matrix whose gradients are at the current weights, and an MLP in chunks, clipped: otherwise long rows explode."""

GATES: dict[str, tuple[float, PriceConfig]] = {
    "plain": (0.0, PriceConfig()),
    "hard": (0.05, PriceConfig()),
    "priced": (0.05, PriceConfig(value=1.0, start=0.4, end=0.8)),
}
"""The gates' threshold (0: a sigmoid, which never is 0; otherwise straight-through), and the price on writing."""

FACTS: dict[str, RecallTask] = {
    "kept": RecallTask(symbols=32, pairs=4, queries=8),
    "changing": RecallTask(symbols=32, pairs=4, queries=8, changes=2),
}

LENGTHS = (2048, 8192, 32_768, 131_072, 524_288, 2_097_152)

CURRICULUM = ((300, 64, 32), (200, 256, 8), (200, 512, 8), (300, 1024, 4), (800, 2048, 2))
"""(steps, length, rows): short rows that ask much of their few tokens first."""
OPTIMISER = OptimiserConfig(lr=3e-3, weight_decay=0.01, warmup_steps=50)
FORGOTTEN = 0.1
"""Share of right answers up to which a memory has forgotten; a guess is right in 1 of 32."""

GATE_TITLES = (
    "tokens",
    "write gate exactly 0, % of tokens by layer",
    "forget gate exactly 0",
    "norm before",
    "norm",
    "tokens/s",
    "minutes of training",
)

_TEST_SEED = 1_000_000


class Cell(NamedTuple):
    """What is measured: a training where there are no ``tokens``, else recall in streams of so many."""

    memory: str
    gates: str
    facts: str
    seed: int
    tokens: int

    def __str__(self) -> str:
        """As it is called in messages."""
        what = f"{self.tokens:,} tokens" if self.tokens else "training"
        return f"{self.memory}, {self.gates} gates, {self.facts} facts, seed {self.seed}, {what}"

    @property
    def training(self) -> Cell:
        """The training of the model that is asked."""
        return self._replace(tokens=0)


def training_config(cell: Cell, arguments: argparse.Namespace) -> TrainConfig:
    """The whole training of a cell's model."""
    threshold, price = GATES[cell.gates]
    model = with_parameters(replace(MODEL, rule=MEMORIES[cell.memory], gate_threshold=threshold), PARAMETERS)
    planned = [(max(1, round(steps * arguments.effort)), length, rows) for steps, length, rows in CURRICULUM]
    return TrainConfig(
        model=model,
        task=FACTS[cell.facts],
        stages=tuple(Stage(steps=steps, length=length, batch_size=rows) for steps, length, rows in planned),
        seed=cell.seed,
        optimiser=OPTIMISER,
        price=price,
        checkpoint=CheckpointConfig(every_minutes=1.0, keep=1),
        evaluation=EvaluationConfig(probes=(Probe(name="asked", length=CURRICULUM[-1][1], batch_size=16, batches=4),)),
        device=arguments.device,
        threads=arguments.threads,
        log_every=25,
    )


def settings(effort: float) -> dict[str, Any]:
    """What all cells share, as JSON values."""
    values = {
        "effort": effort,
        "curriculum": [f"{steps} x {rows} x {length}" for steps, length, rows in CURRICULUM],
        "parameters": PARAMETERS,
        "model": beyond_defaults(MODEL),
        "optimiser": beyond_defaults(OPTIMISER),
        "gates": {name: [threshold, beyond_defaults(price)] for name, (threshold, price) in GATES.items()},
        "facts": {name: beyond_defaults(task) for name, task in FACTS.items()},
    }
    return json.loads(json.dumps(values))


def rule_of(memory: str) -> Any:
    """What tells a memory's rule from others, as JSON values."""
    return json.loads(json.dumps(beyond_defaults(MEMORIES[memory])))


def folder_of(cell: Cell, arguments: argparse.Namespace) -> Path:
    """Where the run of a cell's training is: another folder for other settings, so that no two runs meet."""
    content = training_config(cell, arguments).to_json().encode()
    name = f"{cell.memory}-{cell.gates}-{cell.facts}-{cell.seed}-{hashlib.sha256(content).hexdigest()[:8]}"
    return Path(arguments.runs) / name


def measure(cell: Cell, arguments: argparse.Namespace) -> dict[str, Any]:
    """One cell, in this process."""
    found = cell._asdict() | {"rule": rule_of(cell.memory)} | circumstances(arguments.device, arguments.threads)
    return found | (read(cell, arguments) if cell.tokens else trained(cell, arguments))


def trained(cell: Cell, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train the model, or go on training it."""
    config, folder = training_config(cell, arguments), folder_of(cell, arguments)
    line, perhaps = ProgressLine(), now_and_then()

    def on_step(record: StepRecord) -> None:
        perhaps(f"  {cell}: {line.text(record)}")

    try:
        result = train(config, folder, resume=(folder / CONFIG).is_file(), on_step=on_step)
    except TrainingStopped as error:
        return {"stopped": str(error)}
    if not result.finished:
        raise UserError("the training was stopped")
    last = next(line for line in reversed(read_log(folder / LOG)) if line["kind"] == "steps")
    return {
        "stopped": "",
        "steps": result.step,
        "seconds": last["seconds"],
        "skipped": last["skipped"],
        "parameters": parameter_count(config.model),
        "fingerprint": result.model.fingerprint(),
        "asked": result.metrics["asked/accuracy"],
    }


def read(cell: Cell, arguments: argparse.Namespace) -> dict[str, Any]:
    """Let the trained model read streams; each key is asked for once."""
    model = load_model(str(folder_of(cell, arguments) / FINISHED)).to(arguments.device).eval()
    streams = min(arguments.streams, max(arguments.least, arguments.budget // cell.tokens))
    task = replace(FACTS[cell.facts], queries=FACTS[cell.facts].pairs, once=True)
    batch = task.batch(_TEST_SEED + cell.seed, 0, streams, cell.tokens)
    changed = task.changed(batch)[batch.weights > 0]
    perhaps, device = now_and_then(), next(model.parameters()).device
    rows = read_rows(model, batch.to(device), on_piece=lambda length: perhaps(f"  {cell}: {length:,} read"))
    right = rows.right.cpu()
    return {
        "fingerprint": model.fingerprint(),
        "streams": streams,
        "right": {"unchanged": int(right[~changed].sum()), "changed": int(right[changed].sum())},
        "asked": {"unchanged": int((~changed).sum()), "changed": int(changed.sum())},
        "seconds": round(rows.seconds, 2),
        "tokens_per_second": round(rows.tokens / rows.seconds),
        "norm": float(f"{rows.norm.median():.4g}"),
        "norm_before": float(f"{rows.norm_before:.4g}"),
        **{name: [round(share, 8) for share in layers] for name, layers in rows.gates._asdict().items()},
    }


class Results(CellFile):
    """The file of the cells.

    Raises:
        UserError: the cells that are there were measured with other settings.
    """

    def __init__(self, path: Path, effort: float) -> None:
        super().__init__(path, settings(effort), Cell._fields)

    def lacks(self, cell: Cell) -> bool:
        """Whether a cell is missing, or belongs to another rule or to other weights than those trained last."""
        found, training = self.cells.get(cell), self.cells.get(cell.training)
        if training is None or training["rule"] != rule_of(cell.memory):
            return True
        if training["stopped"]:
            return False  # There is no model to ask.
        return found is None or found["fingerprint"] != training["fingerprint"]

    def forgotten(self, cell: Cell, most: float) -> bool:
        """Whether the model of a cell has given a share of at most ``most`` right answers on a shorter stream."""
        lengths = [one for one in self.cells if one[:-1] == cell[:-1] and 0 < one[-1] < cell.tokens]
        return any(recalled(self.cells[one]) <= most for one in lengths if not self.lacks(Cell(*one)))


def recalled(found: dict[str, Any]) -> float:
    """The share of right answers of a cell, whatever the kind."""
    return sum(found["right"].values()) / sum(found["asked"].values())


def measure_missing(wanted: Sequence[Cell], arguments: argparse.Namespace, results: Results) -> int:
    """Train what lengths are missing for, then measure those, the short ones first; returns how many crashed."""
    names = ("effort", "runs", "streams", "least", "budget")
    given = [f"--{name}={getattr(arguments, name)}" for name in names]

    def measured(cells: Sequence[Cell]) -> int:
        return measure_all(results, cells, [__file__, *given], outcome, arguments)

    def ready(cell: Cell) -> bool:
        return not results.lacks(cell.training) and (folder_of(cell, arguments) / FINISHED).is_dir()

    trainings = dict.fromkeys(cell.training for cell in wanted if results.lacks(cell))
    crashed = measured([cell for cell in trainings if not ready(cell)])
    for tokens in sorted({cell.tokens for cell in wanted}):
        # Where a training crashed there is no model to ask.
        here = [cell for cell in wanted if cell.tokens == tokens and results.lacks(cell) and ready(cell)]
        crashed += measured([cell for cell in here if not results.forgotten(cell, arguments.forgotten)])
    return crashed


def outcome(found: dict[str, Any]) -> str:
    """A cell in a few words."""
    if not found["tokens"]:
        return found["stopped"] or f"{found['asked']:.1%} right, {found['seconds'] / 60:.1f} min"
    shares = [f"{found['right'][kind]} of {asked} {kind}" for kind, asked in found["asked"].items() if asked]
    return f"{' and '.join(shares)} right, {found['tokens_per_second']:,} tokens/s"


def share(cells: Sequence[dict[str, Any]], kind: str) -> float:
    """The share of right answers of all seeds together."""
    return sum(found["right"][kind] for found in cells) / sum(found["asked"][kind] for found in cells)


def parts(cells: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(title, facts, kind of answers) of the tables and panels that there are cells for."""
    titles = {"kept": {"unchanged": "Facts that are kept"}}
    titles["changing"] = {"changed": "Facts that changed", "unchanged": "Facts that did not change, beside those"}
    here = {found["facts"] for found in cells}
    return [(title, facts, kind) for facts in FACTS if facts in here for kind, title in titles[facts].items()]


def render(cells: Sequence[dict[str, Any]]) -> str:
    """The tables in Markdown: recall over lengths, and what the gates did in the longest streams."""
    points = [found for found in cells if found["tokens"]]
    lengths = sorted({found["tokens"] for found in points})
    lines = ["Right answers in percent, and how many were asked for. Empty: next to nothing was right before.\n"]
    for title, facts, kind in parts(points):
        rows = {}
        for name, own in contenders(points, facts).items():
            here = [[found for found in own if found["tokens"] == length] for length in lengths]
            asked = [sum(found["asked"][kind] for found in same) for same in here]
            rows[name] = [
                f"{100 * share(same, kind):.0f} ({n})" if n else "" for same, n in zip(here, asked, strict=True)
            ]
        lines += [f"## {title}\n", markdown([f"{length:,}" for length in lengths], rows)]
    for facts in FACTS:
        if rows := gate_use(cells, facts):
            lines += [f"## Gates, facts {facts}\n", markdown(list(GATE_TITLES), rows)]
    stopped = [found for found in cells if found.get("stopped")]
    lines += [
        f"`{name_of(found)}`, facts {found['facts']}: training gave up, {found['stopped']}.\n" for found in stopped
    ]
    return "\n".join([*lines, *all_circumstances(cells)])


def name_of(found: dict[str, Any]) -> str:
    """The contender of a cell."""
    return f"{found['memory']}, {found['gates']}"


def contenders(cells: Sequence[dict[str, Any]], facts: str) -> dict[str, list[dict[str, Any]]]:
    """The cells of one kind of facts by contender, in order."""
    own = [found for found in cells if found["facts"] == facts]
    names = [f"{memory}, {gates}" for memory in MEMORIES for gates in GATES]
    found = {name: [cell for cell in own if name_of(cell) == name] for name in names}
    return {name: same for name, same in found.items() if same}


def gate_use(cells: Sequence[dict[str, Any]], facts: str) -> dict[str, list[str]]:
    """What the gates and the memory did in the longest streams of the smallest seed, as `GATE_TITLES` says."""
    rows = {}
    for name, own in contenders(cells, facts).items():
        points = [found for found in own if found["tokens"]]
        if not points:
            continue
        last = min(points, key=lambda found: (-found["tokens"], found["seed"]))
        shut, kept = (" / ".join(f"{100 * layer:.6g}" for layer in last[gate]) for gate in ("shut", "kept"))
        minutes = statistics.median(found["seconds"] for found in own if not found["tokens"]) / 60
        norms = f"{last['norm_before']:.3g}", f"{last['norm']:.3g}"
        rows[name] = [f"{last['tokens']:,}", shut, kept, *norms, f"{last['tokens_per_second']:,}", f"{minutes:.1f}"]
    return rows


def draw(cells: Sequence[dict[str, Any]], path: Path) -> None:
    """Recall over the length, all seeds together."""
    points = [found for found in cells if found["tokens"]]
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for title, facts, kind in parts(points):
        panels[title] = {}
        for name, own in contenders(points, facts).items():
            lengths = sorted({found["tokens"] for found in own})
            panels[title][name] = [(n, share([f for f in own if f["tokens"] == n], kind)) for n in lengths]
    draw_curves(panels, path, "tokens read", "answers right", logarithmic=True)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/gate_curve"), help="where trainings are")
    for name, known in (("memories", MEMORIES), ("gates", GATES), ("facts", FACTS)):
        parser.add_argument(f"--{name}", default="", help=f"of {', '.join(known)}; all by default")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens of a stream")
    parser.add_argument("--effort", type=float, default=1.0, help="times the steps of training")
    parser.add_argument("--streams", type=int, default=32, help="of a length, at most")
    parser.add_argument("--least", type=int, default=4, help="streams of a length")
    parser.add_argument("--forgotten", type=float, default=FORGOTTEN, help="share of answers that is as good as none")
    parser.add_argument("--budget", type=int, default=2**21, help="tokens of a length; fewer streams where needed")
    return arguments_of(parser, "results/gate_curve.json", Cell._fields)


def main() -> int:
    """Measure what is missing, write each cell as it comes, and draw the tables and the curves."""
    arguments = parsed()
    if arguments.cell:
        memory, gates, facts, seed, tokens = arguments.cell
        return answer(lambda: measure(Cell(memory, gates, facts, int(seed), int(tokens)), arguments))
    results = Results(arguments.out, arguments.effort)
    wanted = [
        Cell(memory, gates, facts, seed, tokens)
        for seed in range(arguments.seeds)
        for facts in chosen(arguments.facts, list(FACTS), "kind of facts")
        for memory in chosen(arguments.memories, list(MEMORIES), "memory")
        for gates in chosen(arguments.gates, list(GATES), "kind of gates")
        for tokens in sorted(arguments.lengths)
    ]
    crashed = measure_missing(wanted, arguments, results)
    show(results, arguments, render, draw)
    return crashed


if __name__ == "__main__":
    command(main)
