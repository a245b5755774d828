"""Sentences do not depend on how the text arrives, keep every word, and stay short."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastweights.data.sentences as module
from fastweights.data.sentences import MAX_CHARS, sentences

TEXTS = st.text(alphabet='abM r.!?"”)\n\t é', max_size=120)


def test_sentences_end_after_their_mark_and_closing_quotes() -> None:
    text = 'One. Two!  "Three?" said he.\nFour (yes.) Five… six 3.14 e.g.x end'
    expected = ["One.", "Two!", '"Three?"', "said he.", "Four (yes.)", "Five… six 3.14 e.g.x end"]
    assert list(sentences([text])) == expected


def test_titles_do_not_end_a_sentence_and_blank_lines_do() -> None:
    text = "CHAPTER I.\n\nTHE BOY\r\n\r\nMr. Toots met Mrs. Pipchin and\nDr. Blimber. He ran."
    expected = ["CHAPTER I.", "THE BOY", "Mr. Toots met Mrs. Pipchin and Dr. Blimber.", "He ran."]
    assert list(sentences([text])) == expected


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CHARS", 20)
    monkeypatch.setattr(module, "_STEP", 30)


@pytest.mark.usefixtures("_short")
@given(text=TEXTS, places=st.lists(st.integers(0, 120), max_size=8))
def test_how_the_text_arrives_makes_no_difference(text: str, places: list[int]) -> None:
    borders = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    whole = list(sentences([text]))
    assert list(sentences(text[a:b] for a, b in itertools.pairwise(borders))) == whole
    assert list(sentences(text)) == whole
    assert "".join(whole).replace(" ", "") == "".join(text.split())
    assert all(sentence == " ".join(sentence.split()) and len(sentence) <= 20 for sentence in whole)


@pytest.mark.parametrize("unit", ["a", " ", "\n", "word ", ".", '"'])
def test_text_without_sentences_is_cut_in_bounded_memory(unit: str) -> None:
    tracemalloc.start()
    found = 0
    for sentence in sentences(unit * 10_000 for _ in range(20)):
        assert 0 < len(sentence) <= MAX_CHARS
        found += 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found > 20 or unit.isspace()
    assert peak < 1e6
