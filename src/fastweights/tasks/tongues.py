"""Invented tongues: a lexicon and a grammar, sentences to be said in them, and what follows from examples.

The known tongue has adjectives, nouns and verbs; a sentence is a part of ``adjective noun verb adjective noun`` of one
to five words. A new tongue says every word of it by a word of its own, and orders them by a grammar of its own.

Shapes: M meanings, the words of the known tongue, numbered from 0: adjectives, then nouns, then verbs.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import permutations
from typing import NamedTuple

TEMPLATES = {1: ("A", "N", "V"), 2: ("AN", "NV"), 3: ("ANV", "NVN"), 4: ("ANVN", "NVAN"), 5: ("ANVAN",)}
"""Which kinds of words make a sentence in the known tongue, by its length; adjectives, nouns and verbs."""


class Grammar(NamedTuple):
    """How a tongue orders its words.

    Attributes:
        order: A permutation of "SVO": subject, verb and object.
        adjective_first: Whether adjectives stand in front of their nouns.
    """

    order: str
    adjective_first: bool


GRAMMARS = tuple(Grammar("".join(order), first) for order in permutations("SVO") for first in (True, False))
"""All twelve; the first is that of the known tongue."""


@cache
def word_order(template: str, grammar: Grammar) -> tuple[int, ...]:
    """Places in a sentence of the known tongue, in the order in which another says them."""
    verb = template.find("V") if "V" in template else len(template)
    places = range(len(template))
    phrases = {"S": places[:verb], "V": places[verb : verb + 1], "O": places[verb + 1 :]}
    return tuple(
        place
        for part in grammar.order
        for place in (phrases[part] if grammar.adjective_first else reversed(phrases[part]))
    )


class Sentence(NamedTuple):
    """A sentence in the known tongue.

    Attributes:
        template: Kinds of its words.
        meanings: Its words.
    """

    template: str
    meanings: tuple[int, ...]


class Tongue(NamedTuple):
    """A new tongue.

    Attributes:
        lexicon: Its word for each of the M meanings, a number; no two the same.
        grammar: How it orders them.
    """

    lexicon: tuple[int, ...]
    grammar: Grammar

    def translate(self, sentence: Sentence) -> tuple[int, ...]:
        """The words for a sentence."""
        order = word_order(sentence.template, self.grammar)
        return tuple(self.lexicon[sentence.meanings[place]] for place in order)


class Pair(NamedTuple):
    """A sentence and its translation."""

    sentence: Sentence
    words: tuple[int, ...]


class TongueReader:
    """Learns a tongue from pairs as well as can be done: a dictionary for each grammar that agrees with all of them.

    Args:
        pairs: Of one tongue.
        grammars: Those that the tongue may have.
    """

    def __init__(self, pairs: Sequence[Pair], grammars: Sequence[Grammar] = GRAMMARS) -> None:
        made = [(grammar, _dictionary(pairs, grammar)) for grammar in grammars]
        self._known = [(grammar, words) for grammar, words in made if words is not None]

    def translate(self, sentence: Sentence) -> tuple[int, ...] | None:
        """The translation, or None where the pairs do not tell it."""
        said = set()
        for grammar, words in self._known:
            order = word_order(sentence.template, grammar)
            said.add(tuple(words.get(sentence.meanings[place]) for place in order))
        only = said.pop() if len(said) == 1 else (None,)
        found = tuple(word for word in only if word is not None)
        return found if len(found) == len(only) else None


def _dictionary(pairs: Sequence[Pair], grammar: Grammar) -> dict[int, int] | None:
    """The word for each meaning, if a tongue of this grammar can say these pairs."""
    words: dict[int, int] = {}
    for sentence, said in pairs:
        for place, word in zip(word_order(sentence.template, grammar), said, strict=True):
            if words.setdefault(sentence.meanings[place], word) != word:
                return None
    return words if len(set(words.values())) == len(words) else None


def draw_sentences(rng: random.Random, kinds: dict[str, range], shortest: int, longest: int) -> Iterator[Sentence]:
    """Yield sentences without end.

    The words of a kind come in rounds, each in an order of its own, so that few sentences have all of them.

    Args:
        rng: All randomness.
        kinds: Meanings of each kind, by the letters of `TEMPLATES`; at least two nouns, as no sentence says one twice.
        shortest: Words of a sentence, each number as likely.
        longest: At most 5.
    """
    rounds: dict[str, list[int]] = {kind: [] for kind in kinds}
    while True:
        template = rng.choice(TEMPLATES[rng.randint(shortest, longest)])
        meanings: list[int] = []
        for kind in template:
            if not set(rounds[kind]) - set(meanings):
                rounds[kind] += rng.sample(kinds[kind], len(kinds[kind]))
            # With a single adjective, both nouns of a sentence have it.
            place = next((i for i, word in enumerate(rounds[kind]) if word not in meanings), 0)
            meanings.append(rounds[kind].pop(place))
        yield Sentence(template, tuple(meanings))
