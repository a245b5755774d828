"""Every Titans and MIRAS model beside every baseline: recall, a hidden number, parity, prose.

    fastweights compare compare_small --out results/compare_small

All models of a contest have equally many parameters (2 % more or less) and read the same tokens in the same order. A
cell takes about five minutes at most, the whole grid about five hours on two cores; stop it and go on as you like. What
is slower is cut off after four minutes of training, and marked.
"""

from __future__ import annotations

from fastweights.evaluate.contest import Comparison
from fastweights.evaluate.contests import books, mqar, needle, parity
from fastweights.models.baselines import CONTENDERS


def comparison() -> Comparison:
    """All contenders in four contests, one seed, every control."""
    contests = {"mqar": mqar(), "needle": needle(), "parity": parity(), "books": books()}
    return Comparison(models=CONTENDERS, contests=contests)
