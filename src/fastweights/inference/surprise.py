"""What surprised a memory along millions of tokens, in a few kilobytes.

The surprise of a token is ``lr * gradient_norm``, the mean over memory layers and heads: the size of the step that the
token asks of the memory (before any clip). Titans call this gradient the momentary surprise and scale it with the same
gate, so a token that a shut gate keeps out has a surprise of 0 however large its inner loss.

Everything here is per row, of fixed size, and a pure function of the pieces seen, so that a reader who stops and goes
on arrives at the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastweights.inference.header import QUANTILES, Passage, finite
from fastweights.models.language_model import Encoded

Floats = NDArray[np.float64]
Ids = NDArray[np.int32]
Decode = Callable[[list[int]], str]

CURVE = 512
"""Points of the curve along a row; a point stands for 1, 2, 4, ... tokens as the row grows."""

PASSAGES = 16
"""Passages kept per row."""

WINDOW = 48
"""Tokens of a passage."""

_PER_OCTAVE, _LOWEST, _OCTAVES = 8, -32, 48
_BINS = _PER_OCTAVE * _OCTAVES + 2  # below (and zero), the octaves, above
_STRIDE = 32  # one candidate for a passage per so many tokens


class SurpriseCurve(NamedTuple):
    """Surprise along a row: point `i` stands for the `width` tokens from `i * width` on (the last one for fewer).

    Attributes:
        width: Tokens per point, a power of two.
        mean: float64 `[n]`, n at most `CURVE`.
        peak: float64 `[n]`, the largest surprise of any of these tokens.
    """

    width: int
    mean: Floats
    peak: Floats


class SurpriseLog(NamedTuple):
    """Statistics of R rows; arrays are replaced, never changed, so keeping a reference is a snapshot.

    Attributes:
        tokens: int64 `[R]`, tokens seen.
        rejected: int64 `[R]`, of those, tokens that some layer left out as not finite.
        histogram: int64 `[R, bins]`, tokens by the logarithm of their surprise.
        width: int64 `[R]`, tokens per point of the curve.
        sums: float64 `[R, CURVE]`, surprise summed per point.
        peaks: float64 `[R, CURVE]`, largest surprise per point.
        scores: float64 `[R, PASSAGES]`, summed surprise of each passage, largest first; 0 where there is none.
        places: int64 `[R, PASSAGES, 2]`, first token and number of tokens of each passage.
        ids: int32 `[R, PASSAGES, WINDOW]`, tokens of each passage.
    """

    tokens: NDArray[np.int64]
    rejected: NDArray[np.int64]
    histogram: NDArray[np.int64]
    width: NDArray[np.int64]
    sums: Floats
    peaks: Floats
    scores: Floats
    places: NDArray[np.int64]
    ids: Ids

    @staticmethod
    def empty(rows: int) -> SurpriseLog:
        """The log of `rows` rows that have read nothing."""
        return SurpriseLog(
            tokens=np.zeros(rows, np.int64),
            rejected=np.zeros(rows, np.int64),
            histogram=np.zeros((rows, _BINS), np.int64),
            width=np.ones(rows, np.int64),
            sums=np.zeros((rows, CURVE)),
            peaks=np.zeros((rows, CURVE)),
            scores=np.zeros((rows, PASSAGES)),
            places=np.zeros((rows, PASSAGES, 2), np.int64),
            ids=np.zeros((rows, PASSAGES, WINDOW), np.int32),
        )

    def select(self, rows: Sequence[int]) -> SurpriseLog:
        """The log of some of the rows, in the order given; a row may be taken several times."""
        return SurpriseLog._make(part[list(rows)] for part in self)

    def observe(self, pieces: Sequence[Ids], surprise: Floats, rejected: NDArray[np.bool_]) -> SurpriseLog:
        """The log after one more piece.

        Args:
            pieces: The tokens of each row, none or at most T.
            surprise: `[R, T]`, finite, at least 0; of each row the first `len(piece)` numbers count.
            rejected: `[R, T]`.
        """
        after = SurpriseLog._make(part.copy() for part in self)
        for row, ids in enumerate(pieces):
            if len(ids):
                after._observe_row(row, ids, surprise[row, : len(ids)])
                after.rejected[row] += rejected[row, : len(ids)].sum()
        return after

    def _observe_row(self, row: int, ids: Ids, surprise: Floats) -> None:
        start = int(self.tokens[row])
        end = start + len(ids)
        self.histogram[row] += np.bincount(_bins(surprise), minlength=_BINS)
        while end > CURVE * self.width[row]:
            self.width[row] *= 2
            self.sums[row] = _halved(self.sums[row].reshape(-1, 2).sum(1))
            self.peaks[row] = _halved(self.peaks[row].reshape(-1, 2).max(1))
        points = np.arange(start, end) // self.width[row]
        np.add.at(self.sums[row], points, surprise)
        np.maximum.at(self.peaks[row], points, surprise)
        self._collect(row, ids, surprise, start)
        self.tokens[row] = end

    def _collect(self, row: int, ids: Ids, surprise: Floats, start: int) -> None:
        """Keep the best passages of those kept so far and those around the peaks of this piece."""
        kept = [
            (-score, *place, text)
            for score, place, text in zip(
                self.scores[row], self.places[row].tolist(), self.ids[row].copy(), strict=True
            )
            if score > 0
        ]
        least = self.scores[row, -1]
        fresh = []
        total = np.concatenate([[0.0], surprise.cumsum()])
        for block in range(0, len(ids), _STRIDE):
            peak = block + int(surprise[block : block + _STRIDE].argmax())
            first = max(0, min(peak - WINDOW // 2, len(ids) - WINDOW))
            last = min(first + WINDOW, len(ids))
            score = total[last] - total[first]
            if score > least:
                fresh.append((-score, start + first, last - first, ids[first:last]))
        if not fresh:
            return
        chosen: list[tuple[float, int, int, Ids]] = []
        for passage in sorted(kept + fresh, key=lambda passage: passage[:2]):
            apart = all(abs(passage[1] - other[1]) >= WINDOW for other in chosen)
            if apart and len(chosen) < PASSAGES:
                chosen.append(passage)
        self.scores[row], self.places[row], self.ids[row] = 0, 0, 0
        for index, (score, first, size, text) in enumerate(chosen):
            self.scores[row, index] = -score
            self.places[row, index] = first, size
            self.ids[row, index, :size] = text[:size]

    def quantiles(self) -> dict[str, tuple[float | None, ...]]:
        """Surprise by level, one number per row (None before the first token); good to 5 %."""
        return {str(level): tuple(_quantile(counts, level) for counts in self.histogram) for level in QUANTILES}

    def curve(self, row: int = 0) -> SurpriseCurve:
        """Surprise along a row."""
        width, count = int(self.width[row]), int(self.tokens[row])
        points = -(-count // width)
        tokens = np.minimum(width, count - width * np.arange(points))
        return SurpriseCurve(width, self.sums[row, :points] / tokens, self.peaks[row, :points].copy())

    def passages(self, row: int, decode: Decode) -> list[Passage]:
        """The most surprising passages of a row, most surprising first."""
        found = []
        for score, (position, tokens), ids in zip(
            self.scores[row], self.places[row].tolist(), self.ids[row], strict=True
        ):
            if score > 0:
                # A passage may begin or end inside a character, whose bytes decode to U+FFFD.
                text = decode(ids[:tokens].tolist()).strip("\ufffd")
                found.append(Passage(row, position, tokens, float(score) / tokens, text))
        return found


def _halved(merged: NDArray[np.float64]) -> Floats:
    return np.concatenate([merged, np.zeros(CURVE - len(merged))])


def _bins(surprise: Floats) -> NDArray[np.int64]:
    with np.errstate(divide="ignore"):
        octaves = np.log2(surprise) - _LOWEST
    return np.clip(np.floor(octaves * _PER_OCTAVE) + 1, 0, _BINS - 1).astype(np.int64)


def _quantile(counts: NDArray[np.int64], level: float) -> float | None:
    total = int(counts.sum())
    if not total:
        return None
    place = int(np.searchsorted(counts.cumsum(), max(1, np.ceil(level * total))))
    return 0.0 if place == 0 else finite(2.0 ** (_LOWEST + (place - 0.5) / _PER_OCTAVE))


def surprise_of(encoded: Encoded) -> tuple[Floats, NDArray[np.bool_]]:
    """The surprise of every token and whether some layer rejected it, both `[B, T]`.

    Rejected tokens and tokens whose surprise is not finite have surprise 0; a model without memory is never surprised.
    """
    batch, time = encoded.hidden.shape[:2]
    total, bad = np.zeros((batch, time)), np.zeros((batch, time), np.bool_)
    for felt in encoded.surprise:
        asked = (felt.gradient_norm * felt.lr).double()
        wrong = felt.rejected | ~asked.isfinite()
        total += asked.masked_fill(wrong, 0).mean(1).cpu().numpy() / len(encoded.surprise)
        bad |= wrong.any(1).cpu().numpy()
    return total, bad
