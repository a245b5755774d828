"""What every memory rule costs: time of a whole memory layer beside Titans' in the same run, and bytes of its state.

    python benchmarks/rule_cost.py [--out results/rule_cost.json] [--rounds 5] [--threads 1] [--presets titans,yaad]

Same input, sizes and precision for all (float32, CPU): 2 rows of 512 tokens, dim 64, 2 heads of 32. Rounds of all rules
are interleaved and the best time of each counts. Ratios are what to compare: times depend on the machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastweights import __version__
from fastweights.core.presets import PRESETS
from fastweights.core.properties import tensors
from fastweights.core.rule import Rule
from fastweights.layers.memory import MemoryLayer
from fastweights.models.durable import write_file

ROWS, TIME, DIM, HEADS = 2, 512, 64, 2


class Contender:
    """A memory layer of one rule, and the best times seen."""

    def __init__(self, rule: Rule) -> None:
        torch.manual_seed(0)
        self.layer = MemoryLayer(DIM, HEADS, rule)
        self.forward = self.train = float("inf")

    def round(self, x: Tensor) -> None:
        """Times one forward pass without gradients, and one with the backward pass."""
        with torch.no_grad():
            self.forward = min(self.forward, clock(lambda: self.layer(x)))
        self.train = min(self.train, clock(lambda: self.layer(x).y.square().mean().backward()))

    def state_bytes(self, x: Tensor) -> int:
        """Bytes of the memory of one row that has read the input."""
        with torch.no_grad():
            return sum(t.nbytes for t in tensors(self.layer(x[:1]).state.memory))


def clock(work: Callable[[], Any]) -> float:
    """Seconds that ``work`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(names: list[str], rounds: int) -> dict[str, Any]:
    """Times, ratios and bytes of each rule."""
    x = torch.randn(ROWS, TIME, DIM, generator=torch.Generator().manual_seed(0))
    found = {name: Contender(PRESETS[name]()) for name in names}
    for i in range(rounds + 1):
        print(f"round {i}/{rounds}", file=sys.stderr)
        for contender in found.values():
            contender.round(x)
    base = found["titans"]
    return {
        name: {
            "train_vs_titans": round(one.train / base.train, 3),
            "forward_vs_titans": round(one.forward / base.forward, 3),
            "train_ms": round(1000 * one.train, 2),
            "forward_ms": round(1000 * one.forward, 2),
            "state_bytes": one.state_bytes(x),
            "tier": one.layer.rule.tier,
            "chunk_size": one.layer.rule.chunk_size,
        }
        for name, one in found.items()
    }


def main() -> None:
    """Measures and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/rule_cost.json"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--presets", default="", help="names with commas between; titans is always among them")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = [name for name in options.presets.split(",") if name] or list(PRESETS)
    unknown = [name for name in names if name not in PRESETS]
    if unknown:
        parser.error(f"there is no preset {unknown[0]!r}; there are {', '.join(PRESETS)}")
    result = {
        "rules": measure(list(dict.fromkeys(["titans", *names])), options.rounds),
        "setting": f"{ROWS} rows of {TIME} tokens, dim {DIM}, {HEADS} heads of {DIM // HEADS}, float32",
        "command": f"python benchmarks/rule_cost.py --rounds {options.rounds} --threads {options.threads}",
        "seed": 0,
        "threads": options.threads,
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {"fastweights": __version__, "torch": torch.__version__},
        "date": datetime.date.today().isoformat(),
    }
    text = json.dumps(result, indent=2) + "\n"
    write_file(options.out, text.encode())
    print(text)


if __name__ == "__main__":
    main()
