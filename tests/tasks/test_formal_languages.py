"""Every prefix has the label that regular expressions, counting and enumerated continuations give it."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from functools import cache
from itertools import product
from typing import get_args

import numpy as np
import pytest

from fastweights.errors import UserError
from fastweights.tasks.formal_languages import BINS, Language, LanguageSpec, make_language, rows_right
from fastweights.tasks.labelled import IGNORE, Labelled, accuracy

LANGUAGES: tuple[Language, ...] = get_args(Language)
SYMBOLS: dict[Language, str] = {
    "parity": "01",
    "aa": "a",
    "abab": "ab",
    "anbn": "ab",
    "anbncn": "abc",
    "shuffle2": "()[]",
}
# The enumeration of continuations is complete for rows up to the first length if it reaches the second.
ENUMERATED: dict[Language, tuple[int, int]] = {"anbn": (10, 12), "anbncn": (6, 9), "shuffle2": (6, 8)}
# Largest share of one class, and the classes there are.
CLASSES: dict[Language, tuple[float, set[int]]] = {
    "parity": (0.55, {0, 1}),
    "aa": (0.5, {0, 1}),
    "abab": (0.75, {0, 1}),
    "anbn": (0.5, {3, 2, 4}),
    "anbncn": (0.34, {3, 2, 4, 8}),
    "shuffle2": (0.6, {21, 7, 13, 15}),
}


def is_word(language: Language, text: str) -> bool:
    if language == "parity":
        return re.fullmatch(r"0*(10*10*)*", text) is not None
    if language == "aa":
        return re.fullmatch(r"(aa)*", text) is not None
    if language == "abab":
        return re.fullmatch(r"(abab)*", text) is not None
    if language == "shuffle2":
        for kind in ("()", "[]"):
            rest = "".join(symbol for symbol in text if symbol in kind)
            while kind in rest:
                rest = rest.replace(kind, "")
            if rest:
                return False
        return True
    pattern = r"(a+)(b+)" if language == "anbn" else r"(a+)(b+)(c+)"
    found = re.fullmatch(pattern, text)
    return found is not None and len({len(block) for block in found.groups()}) == 1


@cache
def beginnings(language: Language) -> set[str]:
    """All that words up to the enumerated length begin with, the words themselves followed by a `$`."""
    words = [
        "".join(symbols)
        for size in range(1, ENUMERATED[language][1] + 1)
        for symbols in product(SYMBOLS[language], repeat=size)
        if is_word(language, "".join(symbols))
    ]
    return {word[:size] for word in words for size in range(1, len(word) + 1)} | {f"{word}$" for word in words}


def text_of(language: Language, row: list[int]) -> str:
    """A row's word, having checked that padding stands at the right alone."""
    size = len(row) - row.count(0)
    assert all(row[:size])
    return "".join(SYMBOLS[language][token - 1] for token in row[:size])


def counted(language: Language, prefix: str) -> int:
    """The label of a prefix of a word, by counting."""
    if language in ("parity", "aa", "abab"):
        return int(is_word(language, prefix))
    symbols = SYMBOLS[language] + "$"
    if language == "shuffle2":
        may = {"(", "["}
        may |= {")"} if prefix.count("(") > prefix.count(")") else set()
        may |= {"]"} if prefix.count("[") > prefix.count("]") else set()
        may |= {"$"} if is_word(language, prefix) else set()
    else:
        counts = [prefix.count(symbol) for symbol in SYMBOLS[language]]
        missing = [symbol for symbol, count in zip(symbols, counts, strict=False) if count < counts[0]]
        may = {"a", "b"} if prefix[-1] == "a" else {missing[0] if missing else "$"}
    return sum(1 << symbols.index(symbol) for symbol in may)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("shortest", "length"), [*BINS, (1, 12)])
def test_rows_are_words_and_every_prefix_is_labelled(language: Language, shortest: int, length: int) -> None:
    spec = LanguageSpec(language, length, shortest)
    ids, labels = make_language(np.random.default_rng(0), 200, spec)
    assert ids.shape == labels.shape == (200, length)
    assert ids.dtype == labels.dtype == np.int64
    assert ids.max() == spec.vocab_size - 1 == len(SYMBOLS[language])
    assert labels.max() < spec.classes
    for row, label in zip(ids.tolist(), labels.tolist(), strict=True):
        word = text_of(language, row)
        assert shortest <= len(word) <= length
        assert is_word(language, word)
        answers = [counted(language, word[: place + 1]) for place in range(len(word))]
        assert label == answers + [IGNORE] * (length - len(word))


@pytest.mark.parametrize("language", ENUMERATED)
def test_sets_are_those_of_all_continuations(language: Language) -> None:
    symbols = SYMBOLS[language] + "$"
    ids, labels = make_language(np.random.default_rng(0), 100, LanguageSpec(language, ENUMERATED[language][0], 1))
    for row, label in zip(ids.tolist(), labels.tolist(), strict=True):
        word = text_of(language, row)
        for place in range(len(word)):
            legal = [symbol for symbol in symbols if word[: place + 1] + symbol in beginnings(language)]
            named = [symbol for bit, symbol in enumerate(symbols) if label[place] >> bit & 1]
            assert named == legal
            assert label[place] < 1 << len(symbols)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("shortest", "length"), BINS)
def test_all_lengths_of_the_language_are_drawn_evenly(language: Language, shortest: int, length: int) -> None:
    spec = LanguageSpec(language, length, shortest)
    ids, _ = make_language(np.random.default_rng(0), 3000, spec)
    sizes = Counter((ids > 0).sum(1).tolist())
    alphabet = SYMBOLS[language]
    step = {"parity": 1, "abab": 4, "anbncn": 3}.get(language, 2)
    assert len(alphabet) == spec.vocab_size - 1
    assert sorted(sizes) == list(spec.lengths) == [size for size in range(shortest, length + 1) if size % step == 0]
    assert min(sizes.values()) > 0.5 * 3000 / len(sizes)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("shortest", "length"), BINS)
def test_classes_occur_and_one_guess_for_all_is_never_a_row(language: Language, shortest: int, length: int) -> None:
    _, labels = make_language(np.random.default_rng(0), 1000, LanguageSpec(language, length, shortest))
    most, classes = CLASSES[language]
    assert set(np.unique(labels[labels != IGNORE]).tolist()) == classes
    assert accuracy(labels, labels) == 1
    assert rows_right(labels, labels).all()
    shares = [accuracy(np.full_like(labels, guess), labels) for guess in classes]
    assert max(shares) <= most + 1e-9
    assert min(shares) > 0.005
    for guess in classes:
        assert rows_right(np.full_like(labels, guess), labels).mean() < 0.02


def test_parity_and_brackets_are_random_words() -> None:
    ids, _ = make_language(np.random.default_rng(0), 2000, LanguageSpec("parity", 10, 10))
    assert len(np.unique(ids, axis=0)) > 400
    np.testing.assert_allclose((ids == 2).mean(0), 0.5, atol=0.05)
    ids, _ = make_language(np.random.default_rng(0), 2000, LanguageSpec("shuffle2", 4, 4))
    words = {text_of("shuffle2", row) for row in ids.tolist()}
    assert words == {"".join(w) for w in product("()[]", repeat=4) if is_word("shuffle2", "".join(w))}
    ids, _ = make_language(np.random.default_rng(0), 500, LanguageSpec("shuffle2", 100, 100))
    depth = (ids % 2 * 2 - 1).cumsum(1).max(1)
    assert np.median(depth) > 6
    np.testing.assert_allclose((ids < 3).mean(), 0.5, atol=0.02)
    assert 0.1 < (ids[:, 1:] // 2 != ids[:, :-1] // 2).mean() < 0.9


@pytest.mark.parametrize(
    ("language", "ids", "labels"),
    [
        ("anbn", [1, 1, 1, 2, 2, 2], [3, 3, 3, 2, 2, 4]),
        ("parity", [1, 2, 2, 1], [1, 0, 1, 1]),
        ("shuffle2", [1, 3, 2, 1, 4, 2], [7, 15, 13, 15, 7, 21]),
    ],
)
def test_the_rows_of_the_docstring(language: Language, ids: list[int], labels: list[int]) -> None:
    batch = make_language(np.random.default_rng(0), 5000, LanguageSpec(language, len(ids), len(ids)))
    found = [label for row, label in zip(batch.ids.tolist(), batch.labels.tolist(), strict=True) if row == ids]
    assert found
    assert all(label == labels for label in found)


@pytest.mark.parametrize(
    ("language", "digest"),
    [
        ("parity", "6a93a66f9076ecce"),
        ("aa", "804fefe3ef8d3c9e"),
        ("abab", "e190be52997c7453"),
        ("anbn", "767ab535c3741349"),
        ("anbncn", "a8a6c6882367ed31"),
        ("shuffle2", "3eac6634a7083589"),
    ],
)
def test_rows_stay_what_they_were(language: Language, digest: str) -> None:
    """Results of different versions may only be compared if they were asked the same."""
    ids, labels = make_language(np.random.default_rng(7), 3, LanguageSpec(language))
    assert hashlib.sha256(ids.tobytes() + labels.tobytes()).hexdigest()[:16] == digest


def test_equal_generators_give_equal_rows() -> None:
    def batch(seed: int) -> Labelled:
        return make_language(np.random.default_rng(seed), 2, LanguageSpec("shuffle2"))

    assert batch(1).ids.tolist() == batch(1).ids.tolist() != batch(2).ids.tolist()


def test_a_row_is_right_only_if_all_its_steps_are() -> None:
    labels = np.array([[1, 0, 1, IGNORE], [1, 0, 1, 1], [1, 0, IGNORE, IGNORE]])
    predictions = np.array([[1, 0, 1, 7], [1, 0, 1, 0], [0, 0, 7, 7]])
    assert rows_right(predictions, labels).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("language", "length", "shortest", "says"),
    [
        ("dyck2", 50, 2, "language must be one of parity, aa, abab, anbn, anbncn, shuffle2, not dyck2."),
        ("parity", 50, 0, "shortest must lie in 1 to the length of 50, not be 0."),
        ("parity", 50, 51, "shortest must lie in 1 to the length of 50, not be 51."),
        ("abab", 7, 5, "words of abab have lengths that 4 divides, and none lies in 5 to 7."),
        ("anbncn", 2, 1, "words of anbncn have lengths that 3 divides, and none lies in 1 to 2."),
    ],
)
def test_what_cannot_be_built_is_refused(language: Language, length: int, shortest: int, says: str) -> None:
    with pytest.raises(UserError) as caught:
        LanguageSpec(language, length, shortest)
    assert str(caught.value) == says
