"""Every Titans and MIRAS model beside every baseline: recall, a hidden number, parity, prose.

    fastweights compare compare_small --out results/compare_small

All models of a contest have equally many parameters (2 % more or less) and read the same tokens in the same order. A
cell takes at most five minutes on one core: training ends after four, or earlier where a model takes long to be asked.
The whole grid takes about four hours. Stop it and go on as you like. With `--contests` or `--models`, a second process
can do another part of the grid into the same folder.
"""

from __future__ import annotations

from fastweights.evaluate.contest import Comparison
from fastweights.evaluate.contests import books, mqar, needle, parity
from fastweights.models.baselines import CONTENDERS

SHORTER = {("needle", "hope"): 2.3, ("needle", "hope_attention"): 2.3, ("books", "hope"): 3.5}
"""Minutes of training where levels learn from all that is asked, and under every control again."""


def comparison() -> Comparison:
    """All contenders in four contests, one seed, every control."""
    contests = {"mqar": mqar(), "needle": needle(), "parity": parity(), "books": books()}
    return Comparison(models=CONTENDERS, contests=contests, threads=1, minutes=SHORTER)
