"""What learning at test time costs: our memory layer against titans-pytorch, whole layers on both sides, in one run.

    python benchmarks/speed.py [--out results/speed.json] [--rounds 5] [--peer-compiled]

Same input, threads and precision (float32, CPU): T = 2048, dim 256, 4 heads of 64, an MLP memory of depth 2 and
expansion 2, one row. Ours reads in chunks of 64: gradients at the chunk's start, lr, momentum and decay of every token
exact. The peer runs twice, eagerly, as its package does: with per-token semantics (chunk_size=1, batch_size=64) and
with one update per 64 tokens (64, 64). On top are the figures of ours with its parts compiled, as a training run may
(`fastweights.core.compiled`), or eager where no C++ compiler is found; `ours` and `peer` say which. `eager` always has
those of both sides eager. With `--peer-compiled` the peer with one update per 64 tokens is also compiled as a whole, in
about ten minutes, and `both_compiled` has what that gives.

The contenders run in turn, once a round, and the best time of each counts, so that a machine that is busy for a moment
does not decide. Refuses to report while the suite that certifies the rule is red.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fastweights import __version__
from fastweights.core.algorithm import Momentum
from fastweights.core.architecture import MLP
from fastweights.core.bias import L2
from fastweights.core.compiled import use_compiler
from fastweights.core.conformance import check_rule
from fastweights.core.engine import init_state, run
from fastweights.core.retention import WeightDecay
from fastweights.core.rule import Rule
from fastweights.core.types import Gates
from fastweights.layers.memory import MemoryLayer

TIME, DIM, HEADS, HEAD_DIM, EXPANSION, CHUNK = 2048, 256, 4, 64, 2, 64
RULE = Rule(MLP(2, float(EXPANSION)), L2(), WeightDecay(), Momentum(), chunk_size=CHUNK, lr_max=0.01, clip=None)


def core_operations() -> float:
    """Floating-point operations of the memory's own products in one forward pass (2 per multiply-add).

    Per token and head, with K = V = 64, F = 128, W = 64 and both maps of K F weights each: the anchor's forward (two
    maps) and the one product of its backward; reading through dual and momentum (two maps each); per map the scores
    against the chunk's inputs and the sum over its gradients; per map the update of dual and of momentum.
    """
    key, hidden, width = HEAD_DIM, HEAD_DIM * EXPANSION, CHUNK
    anchor = 3 * key * hidden
    read = 4 * key * hidden
    scores = 2 * width * (key + hidden)
    update = 4 * key * hidden
    return 2.0 * TIME * HEADS * (anchor + read + scores + update)


def products() -> tuple[Callable[[], None], float]:
    """The batched products of :func:`core_operations` at the same shapes and nothing else, and their operations."""
    key, hidden, chunks = HEAD_DIM, HEAD_DIM * EXPANSION, TIME // CHUNK
    tokens_key, tokens_hidden = torch.randn(HEADS, CHUNK, key), torch.randn(HEADS, CHUNK, hidden)
    weights, square = torch.randn(HEADS, key, hidden), torch.randn(HEADS, CHUNK, CHUNK)

    def once() -> None:
        for _ in range(chunks):
            for _ in range(4):
                torch.bmm(tokens_key, weights)
            for _ in range(3):
                torch.bmm(tokens_hidden, weights.transpose(1, 2))
            torch.bmm(tokens_key, tokens_key.transpose(1, 2))
            torch.bmm(tokens_hidden, tokens_hidden.transpose(1, 2))
            torch.bmm(square, tokens_hidden)
            torch.bmm(square, tokens_key)
            for _ in range(4):
                torch.bmm(tokens_key.transpose(1, 2), tokens_hidden)

    return once, core_operations()


def ours() -> tuple[MemoryLayer, Callable[[Tensor], Tensor]]:
    """Our layer and its forward."""
    layer = MemoryLayer(DIM, HEADS, RULE)
    return layer, lambda x: layer(x).y


def peer(chunk: int, batch: int) -> tuple[torch.nn.Module, Callable[[Tensor], Tensor]]:
    """The peer's layer and its forward."""
    from titans_pytorch import MemoryMLP, NeuralMemory

    layer = NeuralMemory(
        dim=DIM,
        heads=HEADS,
        dim_head=HEAD_DIM,
        chunk_size=chunk,
        batch_size=batch,
        model=MemoryMLP(HEAD_DIM, depth=2, expansion_factor=float(EXPANSION)),
        qk_rmsnorm=True,
    )
    return layer, lambda x: layer(x)[0]


def core() -> Callable[[], None]:
    """Our engine alone, forward."""
    tokens = [torch.randn(1, HEADS, TIME, HEAD_DIM) for _ in range(3)]
    q, k = (torch.nn.functional.normalize(x, dim=-1) for x in tokens[:2])
    lr, momentum, retain = torch.rand(3, 1, HEADS, TIME)
    gates = Gates(0.1 * lr, momentum, 1 - 0.01 * retain)
    initial = tuple(torch.randn(HEADS, m.outputs, m.inputs) / m.inputs**0.5 for m in RULE.maps(HEAD_DIM, HEAD_DIM))
    state = init_state(RULE, initial, 1)

    def once() -> None:
        with torch.no_grad():
            run(RULE, initial, q, k, tokens[2], gates, state)

    return once


class Job(NamedTuple):
    """What to time, and with which compiler."""

    run: Callable[[], None]
    backend: str | None = None


def jobs(x: Tensor, compiled: bool, peer_compiled: bool) -> dict[str, Job]:
    """Every contender by name."""
    contenders = {"eager": ours(), "peer_chunk64": peer(64, 64), "peer_exact": peer(1, 64)}
    if compiled:
        contenders["compiled"] = ours()
    if peer_compiled:
        layer, forward = peer(64, 64)
        contenders["peer_chunk64_compiled"] = layer, torch.compile(forward)
    made: dict[str, Job] = {}
    for name, (layer, forward) in contenders.items():
        backend = "inductor" if name == "compiled" else None

        def read(forward: Callable[[Tensor], Tensor] = forward) -> None:
            with torch.no_grad():
                forward(x)

        def train(layer: torch.nn.Module = layer, forward: Callable[[Tensor], Tensor] = forward) -> None:
            layer.zero_grad()
            forward(x).sum().backward()

        made[f"{name}_forward"], made[f"{name}_train"] = Job(read, backend), Job(train, backend)
    made["eager_core"] = Job(core())
    if compiled:
        made["compiled_core"] = Job(core(), "inductor")
    made["products"] = Job(products()[0])
    return made


def measure(rounds: int, peer_compiled: bool) -> dict[str, float]:
    """Best time of each contender in seconds; the first round, in which parts are compiled, does not count."""
    compiles = use_compiler()
    table = jobs(torch.randn(1, TIME, DIM), compiles, compiles and peer_compiled)
    best = dict.fromkeys(table, float("inf"))
    for number in range(rounds + 1):
        for name, job in table.items():
            use_compiler(job.backend)
            start = time.perf_counter()
            job.run()
            if number:
                best[name] = min(best[name], time.perf_counter() - start)
        print(f"round {number}/{rounds}", file=sys.stderr)
    return best


def ratios(best: dict[str, float], name: str) -> dict[str, float]:
    """The figures of our layer under a name: how many times as fast as the peer, and the core's share of the peak."""
    peak = products()[1] / best["products"]
    figures = {
        f"{job}_vs_peer_{peer}": best[f"peer_{peer}_{job}"] / best[f"{name}_{job}"]
        for peer in ("exact", "chunk64")
        for job in ("forward", "train")
    }
    return {**figures, "core_share_of_peak": core_operations() / best[f"{name}_core"] / peak}


def compared(best: dict[str, float]) -> dict[str, object]:
    """All figures: on top those of the fastest way that ours runs on this machine, against the peer as it is used."""
    compiled = "compiled_core" in best
    both = {
        f"{job}_vs_peer_chunk64": best[f"peer_chunk64_compiled_{job}"] / best[f"compiled_{job}"]
        for job in ("forward", "train")
        if f"peer_chunk64_compiled_{job}" in best
    }
    return {
        "ours": "parts compiled" if compiled else "eager",
        "peer": "eager",
        **ratios(best, "compiled" if compiled else "eager"),
        "eager": ratios(best, "eager"),
        "both_compiled": both or None,
    }


def main() -> None:
    """Measures, prints and writes the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/speed.json"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--peer-compiled", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    report = check_rule(RULE, grid=((7, 33), (16, 33)), title="the rule under test")
    if not report.ok:
        sys.exit(f"the rule under test is not certified, so its speed means nothing:\n{report.table()}")
    best = measure(arguments.rounds, arguments.peer_compiled)
    result = {
        **compared(best),
        "milliseconds": {name: 1e3 * seconds for name, seconds in best.items()},
        "core_operations": core_operations(),
        "peak_operations_per_second": products()[1] / best["products"],
        "setting": f"T={TIME} dim={DIM} heads={HEADS} expansion={EXPANSION} chunk={CHUNK} float32",
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "seed": 0,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {"fastweights": __version__, "torch": torch.__version__, "titans-pytorch": "0.5.5"},
        "date": datetime.date.today().isoformat(),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
