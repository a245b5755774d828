"""The peers' tests run alone, in an environment of their own; what they measured goes to a file."""

from __future__ import annotations

import datetime
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from tests_peers.sources import peer_version
from tests_peers.trial import MEASURED

from fastweights import __version__

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", type=Path, help="write what was measured to this file, if every test passes")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the results; those of a peer that was not run this time stay as they are, with their date."""
    path: Path | None = session.config.getoption("--results")
    if path is None or exitstatus != pytest.ExitCode.OK:
        return
    peers: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["peers"] if path.exists() else {}
    for peer in {measured.peer for measured in MEASURED}:
        found = [asdict(measured) for measured in MEASURED if measured.peer == peer]
        peers[peer] = {
            "version": peer_version(peer),
            "date": datetime.date.today().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
            "versions": {"fastweights": __version__, "torch": torch.__version__},
            "comparisons": [{k: v for k, v in line.items() if k != "peer" and v != ""} for line in found],
        }
    ordered = {peer: peers[peer] for peer in sorted(peers)}
    path.write_text(json.dumps({"peers": ordered}, indent=2) + "\n", encoding="utf-8")
