"""Every Titans and MIRAS model beside every baseline: recall, a hidden number, parity, prose.

    fastweights compare compare_small --out results/compare_small

All models of a contest have equally many parameters (2 % more or less) and read the same tokens in the same order. A
cell takes at most five minutes on one core. For that the training of MAC and of both forms of Hope is cut off on the
hidden number: they are asked slowly there, Hope because its levels learn while they are asked. The whole grid takes
about three hours. Stop it and go on as you like. With `--contests` or `--models`, a second process can do another part
of the grid into the same folder.
"""

from __future__ import annotations

from dataclasses import replace

from fastweights.evaluate.contest import Comparison
from fastweights.evaluate.contests import books, mqar, needle, parity
from fastweights.models.baselines import CONTENDERS

SHORTER = {("needle", "mac"): 3.0, ("needle", "hope"): 2.0, ("needle", "hope_attention"): 2.0}
"""Minutes of training of those that take the rest of five to be asked, under every control again."""


def comparison() -> Comparison:
    """All contenders in four contests, one seed, every control."""
    contests = {"mqar": mqar(), "needle": needle(), "parity": parity(), "books": books()}
    unhurried = {name: replace(contest, minutes=20.0) for name, contest in contests.items()}
    return Comparison(models=CONTENDERS, contests=unhurried, threads=1, minutes=SHORTER)
