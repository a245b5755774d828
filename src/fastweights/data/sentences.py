"""Cut a stream of text into sentences, in bounded memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

MAX_CHARS = 2000
"""A longer sentence is cut at its last white space before this many characters, or just there."""

_STEP = 4096  # characters looked at together: twice the longest sentence
_ABBREVIATIONS = ("Mr", "Mrs", "Ms", "Dr", "St", "Messrs", "Hon", "Rev", "Col", "Capt", "Prof")
_NOT_AFTER = "".join(rf"(?<!\b{word}\.)" for word in _ABBREVIATIONS)
_BORDER = re.compile(rf"[.!?]{_NOT_AFTER}[\"'”’)\]]{{0,4}}\s+|\n[^\S\n]*\n\s*")
_BORDER_CHARS = 16  # more than a border needs to be recognised, its mark, closing quotes and first white space


def sentences(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the sentences of a text that arrives in pieces; where it is cut makes no difference.

    A sentence ends after `.`, `!` or `?` (and closing quotes or brackets) followed by white space, but not after
    "Mr." and its like, and at every blank line. White space is collapsed to single spaces, as in RULER's haystack.

    Args:
        pieces: The text, cut anywhere, pieces of any length.

    Yields:
        Sentences without white space at either end, none empty, none longer than `MAX_CHARS`.
    """
    held = ""
    for piece in pieces:
        for at in range(0, len(piece), _STEP):
            held += piece[at : at + _STEP]
            while True:
                start = 0
                for border in _BORDER.finditer(held):
                    yield from _bounded(held[start : border.end()])
                    start = border.end()
                held = held[start:].lstrip()
                if len(held) <= MAX_CHARS + _BORDER_CHARS:
                    break
                cut = _cut(held)
                yield " ".join(held[:cut].split())
                held = held[cut:]
    yield from _bounded(held)


def _bounded(text: str) -> Iterator[str]:
    """Yield one sentence, or the parts of one that is too long, each part looked at as a stream would see it."""
    if len(text.strip()) > MAX_CHARS:
        text = text.lstrip()
        cut = _cut(text)
        yield " ".join(text[:cut].split())
        yield from sentences((text[cut:].lstrip(),))
    elif words := text.split():
        yield " ".join(words)


def _cut(text: str) -> int:
    """Return where to cut a text of more than `MAX_CHARS` characters that starts with no white space."""
    return next((at for at in range(MAX_CHARS, 0, -1) if text[at].isspace()), MAX_CHARS)
