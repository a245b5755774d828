"""Haystacks go on for ever, start anywhere, and hold the text they are made of."""

from __future__ import annotations

import io
import random
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from fastweights.data.documents import open_novel
from fastweights.data.sentences import sentences
from fastweights.data.text import find_sources
from fastweights.errors import UserError
from fastweights.tasks.haystack import NOISE_LINE, noise, novel_haystack, text_haystack

SHORT = ("ENG18850_Rutherford", "ENG18900_Doyle")


def test_noise_is_rulers_line_for_ever() -> None:
    assert NOISE_LINE == "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
    assert list(islice(noise().sentences, 3)) == [NOISE_LINE] * 3
    assert noise().separator == "\n"


@pytest.mark.parametrize("seed", range(3))
def test_novels_repeat_only_after_all_of_them(seed: int) -> None:
    everything = Counter(sentence for name in SHORT for sentence in sentences(open_novel(name)))
    size = everything.total()
    read = list(islice(novel_haystack(random.Random(seed), SHORT).sentences, 2 * size))
    # The first sentence after a random place is whole, the one before it is dropped, so one circle misses at most it.
    assert Counter(read[:size]) - everything in (Counter(), Counter(read[size - 1 : size]))
    assert set(read) == set(everything)


def test_another_seed_starts_elsewhere_and_the_same_one_does_not() -> None:
    starts = [next(iter(novel_haystack(random.Random(seed)).sentences)) for seed in (0, 0, 1, 2, 3)]
    assert starts[0] == starts[1]
    assert len(set(starts)) == 4
    assert novel_haystack(random.Random(0)).separator == " "


def test_an_unknown_novel_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="no novel"):
        novel_haystack(random.Random(0), ["ENG1"])


def test_files_are_read_in_a_circle(tmp_path: Path) -> None:
    for name, text in (("a.txt", "One. Two. Three."), ("b.txt", "Four. Five. Six.")):
        (tmp_path / name).write_text(text)
    circle = ["One.", "Two.", "Three.", "Four.", "Five.", "Six."]
    sources = find_sources([str(tmp_path)])
    for seed in range(10):
        read = list(islice(text_haystack(sources, random.Random(seed)).sentences, 30))
        begin = next(at for at in range(6) if read[:2] == [*circle, *circle][at : at + 2])
        assert set(read) == set(circle)
        assert read[: 6 - begin] == circle[begin:]
        assert read[-12:] == [*circle, *circle][(first := circle.index(read[-12])) :] + [*circle][:first]


def test_text_without_words_is_refused_and_not_searched_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(" \n" * 100)
    with pytest.raises(UserError, match="holds no words"):
        next(iter(text_haystack(find_sources([str(path)]), random.Random(0)).sentences))


def test_standard_input_cannot_be_a_haystack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"text")))
    with pytest.raises(UserError, match="only once"):
        text_haystack(find_sources(["-"]), random.Random(0))
