"""The benchmark of speed: what it counts, what it divides by what, and what README says of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from benchmarks import speed
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[2]


def test_operations_are_those_of_the_products() -> None:
    run, operations = speed.products()
    with FlopCounterMode(display=False) as counter:
        run()
    assert counter.get_total_flops() == operations == speed.core_operations()


PEER = {"peer_exact_forward": 8.0, "peer_exact_train": 12.0, "peer_chunk64_forward": 4.0, "peer_chunk64_train": 6.0}
EAGER = {"eager_forward": 2.0, "eager_train": 3.0, "eager_core": 0.5, "products": 0.25}
COMPILED = {"compiled_forward": 1.0, "compiled_train": 1.5, "compiled_core": 0.25}


def test_ratios_are_the_peers_times_over_ours() -> None:
    assert speed.ratios(PEER | EAGER, "eager") == {
        "forward_vs_peer_exact": 4.0,
        "train_vs_peer_exact": 4.0,
        "forward_vs_peer_chunk64": 2.0,
        "train_vs_peer_chunk64": 2.0,
        "core_share_of_peak": pytest.approx(0.5),
    }


def test_every_figure_says_who_was_compiled() -> None:
    alone = speed.compared(PEER | EAGER)
    assert (alone["ours"], alone["peer"], alone["both_compiled"]) == ("eager", "eager", None)
    assert alone["train_vs_peer_exact"] == 4.0
    peer = {"peer_chunk64_compiled_forward": 0.5, "peer_chunk64_compiled_train": 1.5}
    found = speed.compared(PEER | EAGER | COMPILED | peer)
    assert (found["ours"], found["peer"]) == ("parts compiled", "eager")
    assert found["train_vs_peer_exact"] == 8.0
    assert found["eager"] == speed.ratios(PEER | EAGER, "eager")
    assert found["both_compiled"] == {"forward_vs_peer_chunk64": 0.5, "train_vs_peer_chunk64": 1.0}


def test_readme_says_what_was_measured() -> None:
    results = json.loads((ROOT / "results" / "speed.json").read_text())
    readme = (ROOT / "README.md").read_text()
    modes = results["eager"], results
    rows: dict[str, list[float | str]] = {
        "per-token semantics": [m[f"{job}_vs_peer_exact"] for m in modes for job in ("forward", "train")],
        "one update per 64 tokens": [m[f"{job}_vs_peer_chunk64"] for m in modes for job in ("forward", "train")],
    }
    assert results["both_compiled"], "results/speed.json was written without --peer-compiled"
    both = [results["both_compiled"][f"{job}_vs_peer_chunk64"] for job in ("forward", "train")]
    rows["the same, the peer compiled too"] = ["", "", *both]
    for title, measured in rows.items():
        found = re.search(rf"^\| {title} \|(.*)\|$", readme, re.MULTILINE)
        assert found is not None
        cells = [cell.strip() for cell in found[1].split("|")]
        assert cells == [x if isinstance(x, str) else f"{x:.2g}" if x < 10 else f"{x:.0f}" for x in measured]
    assert results["date"] in readme
