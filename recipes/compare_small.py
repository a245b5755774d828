"""Every Titans and MIRAS model beside every baseline: recall, a hidden number, parity, prose.

    fastweights compare compare_small --out results/compare_small

All models of a contest have equally many parameters (2 % more or less) and read the same tokens in the same order. A
cell takes at most five minutes on one core, but for Hope and Hope-Attention on the hidden number, whose levels learn
while they are asked: up to half an hour. The whole grid takes about four hours. Stop it and go on as you like. With
`--contests` or `--models`, a second process can do another part of the grid into the same folder.
"""

from __future__ import annotations

from dataclasses import replace

from fastweights.evaluate.contest import Comparison
from fastweights.evaluate.contests import books, mqar, needle, parity
from fastweights.models.baselines import CONTENDERS


def comparison() -> Comparison:
    """All contenders in four contests, one seed, every control."""
    contests = {"mqar": mqar(), "needle": needle(), "parity": parity(), "books": books()}
    unhurried = {name: replace(contest, minutes=20.0) for name, contest in contests.items()}
    return Comparison(models=CONTENDERS, contests=unhurried, threads=1)
