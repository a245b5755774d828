"""Tongues order their words as their grammar says, and a reader knows exactly what follows from the pairs."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from fastweights.tasks.tongues import (
    GRAMMARS,
    TEMPLATES,
    Grammar,
    Pair,
    Sentence,
    Tongue,
    TongueReader,
    draw_sentences,
    word_order,
)

KINDS = {"A": range(3), "N": range(3, 8), "V": range(8, 10)}


@pytest.mark.parametrize(
    ("template", "grammar", "said"),
    [
        ("ANVAN", Grammar("SVO", True), "old king sees red dog"),
        ("ANVAN", Grammar("SVO", False), "king old sees dog red"),
        ("ANVAN", Grammar("OVS", True), "red dog sees old king"),
        ("ANVAN", Grammar("VSO", False), "sees king old dog red"),
        ("NVAN", Grammar("SOV", False), "king dog red sees"),
        ("NV", Grammar("VSO", True), "sees king"),
        ("AN", Grammar("OSV", False), "king old"),
        ("V", Grammar("OSV", False), "sees"),
    ],
)
def test_words_stand_where_the_grammar_puts_them(template: str, grammar: Grammar, said: str) -> None:
    subject, _, rest = template.partition("V")
    known = ["old"] * ("A" in subject) + ["king"] * ("N" in subject)
    known += ["sees"] * ("V" in template) + ["red"] * ("A" in rest) + ["dog"] * ("N" in rest)
    assert [known[place] for place in word_order(template, grammar)] == said.split()


def test_every_grammar_differs_from_every_other() -> None:
    assert len({word_order("ANVAN", grammar) for grammar in GRAMMARS}) == len(GRAMMARS) == 12
    assert word_order("ANVAN", GRAMMARS[0]) == (0, 1, 2, 3, 4)


def test_sentences_are_of_the_known_tongue() -> None:
    drawn = list(islice(draw_sentences(random.Random(0), KINDS, 1, 5), 2000))
    templates = [template for length in TEMPLATES.values() for template in length]
    assert {sentence.template for sentence in drawn} == set(templates)
    for template, meanings in drawn:
        assert all(meaning in KINDS[kind] for kind, meaning in zip(template, meanings, strict=True))
        assert len(set(meanings)) == len(meanings)
    lengths = [len(sentence.meanings) for sentence in drawn]
    assert all(330 < lengths.count(length) < 470 for length in TEMPLATES)


def test_words_come_in_rounds() -> None:
    for seed in range(20):
        drawn = islice(draw_sentences(random.Random(seed), KINDS, 3, 3), 6)
        nouns = [m for sentence in drawn for m in sentence.meanings if m in KINDS["N"]]
        assert set(nouns) == set(KINDS["N"])
        assert max(map(nouns.count, nouns)) <= 3


def test_a_single_adjective_is_said_twice() -> None:
    sentence = next(draw_sentences(random.Random(0), {"A": range(1), "N": range(1, 3), "V": range(3, 4)}, 5, 5))
    assert sorted(sentence.meanings) == [0, 0, 1, 2, 3]


def pairs_of(tongue: Tongue, *sentences: Sentence) -> list[Pair]:
    return [Pair(sentence, tongue.translate(sentence)) for sentence in sentences]


def test_a_reader_knows_what_follows_and_no_more() -> None:
    tongue = Tongue(tuple(range(100, 110)), Grammar("VSO", False))
    one = pairs_of(tongue, Sentence("NV", (3, 8)))
    # Either word may be either meaning.
    assert TongueReader(one).translate(Sentence("NV", (3, 8))) == (108, 103)
    assert TongueReader(one).translate(Sentence("N", (3,))) is None
    assert TongueReader(one, [tongue.grammar]).translate(Sentence("N", (3,))) == (103,)
    # A second sentence with the same verb tells which word it is.
    two = one + pairs_of(tongue, Sentence("NV", (4, 8)))
    assert TongueReader(two).translate(Sentence("N", (4,))) == (104,)
    assert TongueReader(two).translate(Sentence("N", (5,))) is None
    # Verbs come first, but where adjectives stand is not known yet, and whether a subject comes before an object.
    three = two + pairs_of(tongue, Sentence("A", (0,)))
    assert TongueReader(three).translate(Sentence("AN", (0, 3))) is None
    assert TongueReader(three).translate(Sentence("NVN", (3, 8, 4))) is None
    four = three + pairs_of(tongue, Sentence("NVN", (4, 8, 3)), Sentence("AN", (0, 4)))
    assert TongueReader(four).translate(Sentence("ANVN", (0, 3, 8, 4))) == (108, 103, 100, 104)


def test_pairs_that_no_tongue_says_tell_nothing() -> None:
    sentence = Sentence("N", (3,))
    assert TongueReader([Pair(sentence, (1,)), Pair(sentence, (2,))]).translate(sentence) is None
    assert TongueReader([Pair(sentence, (1,)), Pair(Sentence("N", (4,)), (1,))]).translate(sentence) is None
