"""English adjectives and nouns for made-up keys, with a part that training never uses."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import Literal

Split = Literal["all", "train", "eval"]
"""Which words: every one, the four fifths for training, or the fifth that is held out of it."""


def adjectives(split: Split = "all") -> tuple[str, ...]:
    """Return the adjectives of a split, sorted: 900 lower-case words in all."""
    return _words("adjectives", split)


def nouns(split: Split = "all") -> tuple[str, ...]:
    """Return the nouns of a split, sorted: 6,663 lower-case words in all."""
    return _words("nouns", split)


@cache
def _words(name: str, split: Split) -> tuple[str, ...]:
    text = (resources.files("fastweights.data") / "assets" / f"{name}.txt").read_text("ascii")
    words = tuple(text.split())
    if split == "all":
        return words
    return tuple(word for word in words if _held_out(word) == (split == "eval"))


def _held_out(word: str) -> bool:
    # The word alone decides, so a longer list in a later version moves no word to the other side.
    return hashlib.sha256(word.encode()).digest()[0] % 5 == 0
