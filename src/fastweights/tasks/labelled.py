"""What all tasks in symbols give: rows of tokens, and what is asked of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IGNORE = -100
"""Label of positions where nothing is asked."""


class Labelled(NamedTuple):
    """Rows of tokens and what is asked of them.

    Attributes:
        ids: int64 `[B, L]`; rows that are shorter are padded at the right.
        labels: int64 `[B, L]`: what is to be said after reading each token, `IGNORE` where nothing is asked.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]


def accuracy(predictions: NDArray[np.integer], labels: NDArray[np.integer]) -> float:
    """Return the share of labelled positions that are predicted right: 0.0 to 1.0."""
    asked = labels != IGNORE
    return float((predictions[asked] == labels[asked]).mean())
