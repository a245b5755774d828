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


def test_ratios_are_the_peers_times_over_ours() -> None:
    best = {"peer_exact_forward": 8.0, "peer_exact_train": 12.0, "peer_chunk64_forward": 4.0, "peer_chunk64_train": 6.0}
    best |= {"eager_forward": 2.0, "eager_train": 3.0, "eager_core": 0.5, "products": 0.25}
    assert speed.ratios(best, "eager") == {
        "forward_vs_peer_exact": 4.0,
        "train_vs_peer_exact": 4.0,
        "forward_vs_peer_chunk64": 2.0,
        "train_vs_peer_chunk64": 2.0,
        "core_share_of_peak": pytest.approx(0.5),
    }


def test_readme_says_what_was_measured() -> None:
    results = json.loads((ROOT / "results" / "speed.json").read_text())
    readme = (ROOT / "README.md").read_text()
    for peer, title in (("exact", "per-token semantics"), ("chunk64", "one update per 64 tokens")):
        found = re.search(rf"^\| {title} \|(.*)\|$", readme, re.MULTILINE)
        assert found is not None
        measured = [
            part[f"{what}_vs_peer_{peer}"] for part in (results, results["compiled"]) for what in ("forward", "train")
        ]
        assert [cell.strip() for cell in found[1].split("|")] == [
            f"{x:.2g}" if x < 10 else f"{x:.0f}" for x in measured
        ]
    assert results["date"] in readme
