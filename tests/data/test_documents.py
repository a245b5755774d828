"""The shipped novels and word lists are there, whole and small."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest

from fastweights.data.documents import CITATION, novels, open_novel
from fastweights.data.tokenizer import load_tokenizer
from fastweights.data.words import adjectives, nouns
from fastweights.errors import UserError


def test_ten_novels_open_and_have_their_length() -> None:
    assert len(novels()) == 10
    for novel in novels():
        pieces = list(open_novel(novel.name))
        assert sum(map(len, pieces)) == novel.characters
        assert max(map(len, pieces)) <= 65_536
        assert 1840 <= novel.year <= 1920
    assert "10.5281/zenodo.3462536" in CITATION


def test_a_novel_is_what_it_says() -> None:
    assert "Sherlock Holmes" in next(open_novel("ENG18900_Doyle"))
    with pytest.raises(UserError, match="choose one of ENG18400_Trollope"):
        open_novel("ENG1")


def test_the_assets_are_small_and_name_their_sources() -> None:
    folder = Path(str(resources.files("fastweights.data"))) / "assets"
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 4e6
    notice = (folder / "README.md").read_text("utf-8")
    for words in ("10.5281/zenodo.3462536", "CC BY 4.0", "wonderwords", "bpe4096.json"):
        assert words in notice
    assert "MIT License" in (folder / "LICENSE-wonderwords").read_text("utf-8")


def test_the_novels_hold_the_tokens_they_are_said_to() -> None:
    tokenizer = load_tokenizer("bpe4096")
    tokens = sum(len(ids) for ids in tokenizer.encode_stream(open_novel("ENG18900_Doyle")))
    assert 60_000 < tokens < 70_000


@pytest.mark.parametrize("words", [adjectives, nouns])
def test_held_out_words_are_a_fifth_and_never_in_training(words: Callable[..., tuple[str, ...]]) -> None:
    everything, train, held_out = words("all"), words("train"), words("eval")
    assert list(everything) == sorted(set(everything))
    assert sorted(train + held_out) == list(everything)
    assert 0.15 < len(held_out) / len(everything) < 0.25
    assert all(word.isascii() and word.isalpha() and word.islower() for word in everything)


def test_there_are_enough_words_for_keys() -> None:
    assert len(adjectives()) == 900
    assert len(nouns()) == 6663
