"""What holds for every test: one torch thread, a fixed seed, and NaN in memory that nobody has written."""

from __future__ import annotations

import os

# Before torch is imported, and inherited by every process a test starts: the test runner already uses every core.
os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
# `torch.empty` is then filled with NaN, so a read of memory that was never written cannot pass by luck.
torch.use_deterministic_algorithms(True)

# The same examples on every run, and no time limit: a busy machine must not fail a property.
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("suite")


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    """Make every test's random numbers the same, in any order and on any worker."""
    torch.manual_seed(0)
