"""What needles are hidden in: RULER's noise, the shipped novels, or any text files."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import repeat
from typing import NamedTuple

from fastweights.data.documents import novels, open_novel
from fastweights.data.sentences import sentences
from fastweights.data.text import Source, read_text
from fastweights.errors import UserError

NOISE_LINE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
"""The line that RULER's noise haystack repeats."""


class Haystack(NamedTuple):
    """Sentences, and what stands between them.

    Attributes:
        sentences: Without white space at either end; usually endless, read once.
        separator: A space for prose, a line end for noise.
    """

    sentences: Iterable[str]
    separator: str = " "


class _Text(NamedTuple):
    size: int
    pieces: Callable[[], Iterator[str]]


def noise() -> Haystack:
    """Return RULER's noise, without end."""
    return Haystack(repeat(NOISE_LINE), "\n")


def novel_haystack(rng: random.Random, names: Sequence[str] | None = None) -> Haystack:
    """Return the shipped novels in random order, from a random place on, without end.

    All ten are 2.34 million tokens of the 4,096-entry BPE, after which the text repeats.

    Args:
        rng: Chooses order and place.
        names: Which novels; all by default.

    Raises:
        UserError: No novel of that name.
    """
    known = {novel.name: novel for novel in novels()}
    chosen = list(known) if names is None else list(names)
    for name in chosen:
        open_novel(name)
    rng.shuffle(chosen)
    return _from_texts([_Text(known[name].characters, partial(open_novel, name)) for name in chosen], rng)


def text_haystack(sources: Sequence[Source], rng: random.Random) -> Haystack:
    """Return the sentences of files in order, from a random place on, without end.

    Args:
        sources: From `find_sources`; read again when they end, as RULER repeats a haystack that is too short.
        rng: Chooses the place.

    Raises:
        UserError: Standard input or a pipe, which cannot be read twice; while reading, a file without any sentence.
    """
    texts = []
    for source in sources:
        if source.size is None:
            raise UserError(f"{source.name} can be read only once: save it to a file to hide needles in it.")
        texts.append(_Text(source.size, partial(read_text, source)))
    return _from_texts(texts, rng)


def _from_texts(texts: Sequence[_Text], rng: random.Random) -> Haystack:
    place = rng.random() * sum(text.size for text in texts)
    return Haystack(_endless(texts, place))


def _endless(texts: Sequence[_Text], place: float) -> Iterator[str]:
    """Yield sentences from the first one that begins after `place`, texts in a circle."""
    first = 0
    while place > texts[first].size and first + 1 < len(texts):
        place -= texts[first].size
        first += 1
    later = sentences(_skip(texts[first].pieces(), int(place)))
    next(later, None)
    yield from later
    while True:
        found = False
        for text in [*texts[first + 1 :], *texts[: first + 1]]:
            for sentence in sentences(text.pieces()):
                found = True
                yield sentence
        if not found:
            raise UserError("the text to hide needles in holds no words.")


def _skip(pieces: Iterator[str], characters: int) -> Iterator[str]:
    for piece in pieces:
        if characters < len(piece):
            yield piece[characters:]
        characters = max(0, characters - len(piece))
