"""Both tokenizers: every string comes back, streams equal whole texts, and nothing in a text is special."""

from __future__ import annotations

import itertools
import json
import time
import tracemalloc
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipes.train_tokenizer import train
from tokenizers import Tokenizer as Backend

import fastweights.data.tokenizer as module
from fastweights.data.documents import novels, open_novel
from fastweights.data.tokenizer import SPECIALS, BPETokenizer, ByteTokenizer, Tokenizer, byte_symbols, load_tokenizer
from fastweights.errors import UserError

BYTES = load_tokenizer("bytes")
BPE = load_tokenizer("bpe4096")
BOTH = pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=lambda t: t.name)
ASSET = resources.files("fastweights.data") / "assets" / "bpe4096.json"
BACKEND = Backend.from_str(ASSET.read_text("utf-8"))

# Letters that merge, what contractions, digits, spaces and line ends are made of, and characters of 2 to 4 bytes.
AWKWARD = st.text(alphabet="aethsT'’ \t\r\n.,-0123\"é\u0301\u00a0\u2028中🙂\x00\ufeff<pad>", max_size=400)
TEXTS = st.one_of(AWKWARD, st.text(st.characters(exclude_categories=["Cs"])), AWKWARD.map(lambda text: text * 7))


def cut(text: str, places: list[int]) -> list[str]:
    borders = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:stop] for start, stop in itertools.pairwise(borders)]


def whole(text: str) -> list[int]:
    """The oracle: the library on the text as one string, without any of our streaming."""
    return list(BACKEND.encode(text, add_special_tokens=False).ids)


@pytest.fixture
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_CHARS", 128)


@BOTH
@given(text=TEXTS)
def test_every_string_round_trips(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(len(SPECIALS) <= token < tokenizer.vocab_size for token in ids)


@pytest.mark.usefixtures("_small_pieces")
@given(text=TEXTS, places=st.lists(st.integers(0, 3000), max_size=12))
def test_a_stream_gives_the_ids_of_the_whole_text(text: str, places: list[int]) -> None:
    for tokenizer, expected in ((BPE, whole(text)), (BYTES, BYTES.encode(text))):
        parts = list(tokenizer.encode_stream(cut(text, places)))
        assert [token for part in parts for token in part.tolist()] == expected
        assert all(part.dtype == np.int32 and len(part) for part in parts)


@pytest.mark.usefixtures("_small_pieces")
@given(
    st.integers(1, 40), st.sampled_from(["\r\n", "\n", "e", "’", "🙂", "x'll", " ", "1", "ab c"]), st.integers(0, 90)
)
def test_runs_without_any_space_stream_exactly(size: int, unit: str, offset: int) -> None:
    text = "a" * offset + unit * 200
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert np.concatenate(list(BPE.encode_stream(pieces))).tolist() == whole(text)


def test_a_real_book_streams_exactly_in_pieces_of_the_real_size() -> None:
    text = "".join(open_novel("ENG18850_Rutherford"))
    assert len(text) > 3 * module.PIECE_CHARS
    assert BPE.encode(text) == whole(text)
    assert np.concatenate(list(BPE.encode_stream(cut(text, [70_001, 70_002, 190_000])))).tolist() == whole(text)


@BOTH
@pytest.mark.parametrize("unit", ["a", "中", "a b"])
def test_endless_text_is_encoded_in_bounded_memory_and_short_steps(tokenizer: Tokenizer, unit: str) -> None:
    def text() -> Iterator[str]:
        for _ in range(2):
            yield unit * 100_000

    total, longest, before = 0, 0.0, time.process_time()
    tracemalloc.start()
    for ids in tokenizer.encode_stream(text()):
        longest = max(longest, time.process_time() - before)
        total += len(ids)
        before = time.process_time()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total > 5_000
    assert peak < 40e6
    assert longest < 2.0


@BOTH
def test_no_text_can_forge_a_special_token(tokenizer: Tokenizer) -> None:
    for name in SPECIALS:
        assert min(tokenizer.encode(f"a{name} {name}")) >= len(SPECIALS)
    assert (tokenizer.pad, tokenizer.bos, tokenizer.eos) == (0, 1, 2)
    assert tokenizer.decode([1, *tokenizer.encode("a<eos>"), 2, 0]) == "a<eos>"


@BOTH
def test_half_a_character_decodes_to_a_replacement_and_its_bytes_are_at_hand(tokenizer: Tokenizer) -> None:
    ids = BYTES.encode("é") if tokenizer is BYTES else BPE.encode("\U0001f642")
    assert len(ids) > 1
    assert tokenizer.decode(ids[:-1]) == "\ufffd"
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() in {"é", "\U0001f642"}


@BOTH
def test_a_lone_surrogate_becomes_a_replacement_character(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode("\udc80" * 10)) == "\ufffd" * 10


@BOTH
def test_many_texts_at_once_equal_one_at_a_time(tokenizer: Tokenizer) -> None:
    texts = ["", " One of the", "12", "it's\r\n", "🙂"]
    together = tokenizer.encode_many(texts)
    assert [ids.tolist() for ids in together] == [tokenizer.encode(text) for text in texts]
    assert all(ids.dtype == np.int32 for ids in together)
    assert tokenizer.encode_array("").shape == (0,)


@BOTH
@pytest.mark.parametrize("token", [-1, 5000])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer: Tokenizer, token: int) -> None:
    with pytest.raises(UserError, match="outside the vocabulary"):
        tokenizer.decode([token])


def test_the_shipped_vocabulary_has_exactly_4096_entries_and_every_byte() -> None:
    assert BPE.vocab_size == 4096
    assert BYTES.vocab_size == 264
    assert sorted(BPE.token_bytes(token) for token in range(8, 264)) == [bytes([byte]) for byte in range(256)]
    assert [BPE.token_bytes(token) for token in range(8)] == [b""] * 8
    assert len({BPE.token_bytes(token) for token in range(8, 4096)}) == 4088


def test_digits_are_single_and_look_the_same_everywhere() -> None:
    digits = [BPE.encode(digit)[0] for digit in "0123456789"]
    assert all(len(BPE.encode(digit)) == 1 for digit in "0123456789")
    for text in ("1234567", " 1234567", "is: 1234567.", "x1234567y"):
        ids = BPE.encode(text)
        start = ids.index(digits[1])
        assert ids[start : start + 7] == digits[1:8]
    for token in range(264, 4096):
        assert not set(BPE.token_bytes(token)) & set(b"0123456789")


def test_a_key_is_the_same_tokens_in_the_needle_and_in_the_question() -> None:
    key = BPE.encode(" wandering-apple")
    for text in ("for wandering-apple is:", "for wandering-apple mentioned"):
        ids = BPE.encode(text)
        assert any(ids[start : start + len(key)] == key for start in range(len(ids)))


def test_english_prose_takes_few_tokens() -> None:
    text = "".join(itertools.islice(open_novel(novels()[0].name), 2))
    assert len(text.encode()) / len(BPE.encode(text)) > 3.4


def test_training_is_deterministic_and_makes_a_loadable_tokenizer(tmp_path: Path) -> None:
    texts = list(itertools.islice(open_novel("ENG18850_Rutherford"), 2))
    definition = train(texts, 500)
    assert train(texts, 500) == definition
    path = tmp_path / "small.json"
    path.write_text(definition, "utf-8")
    tokenizer = load_tokenizer(path)
    assert tokenizer.vocab_size == 500
    assert tokenizer.decode(tokenizer.encode("Über 12 <pad>\r\n")) == "Über 12 <pad>\r\n"
    with pytest.raises(UserError, match="use more text"):
        train(["too little text"], 500)


def broken(change: str) -> str:
    spec = json.loads(ASSET.read_text("utf-8"))
    vocab = spec["model"]["vocab"]
    if change == "units":
        spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+|\W"
    elif change == "normalizer":
        spec["normalizer"] = {"type": "NFC"}
    elif change == "gap":
        vocab["Zebra"] = 9000
    elif change == "specials":
        vocab["<pad>"], vocab["<bos>"] = vocab["<bos>"], vocab["<pad>"]
    elif change == "alphabet":
        vocab["中"] = vocab.pop("ÿ")
    elif change == "model":
        spec["model"] = {"type": "WordPiece"}
    return json.dumps(spec)


@pytest.mark.parametrize("change", ["units", "normalizer", "gap", "specials", "alphabet", "model"])
def test_a_foreign_tokenizer_is_refused_in_one_sentence(change: str) -> None:
    with pytest.raises(UserError, match=r"is not a tokenizer of this package.*\.$"):
        BPETokenizer(broken(change), "x.json")


@pytest.mark.parametrize("text", ["", "{}", "[1]", "not json"])
def test_a_file_that_is_no_tokenizer_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match="is not a tokenizer"):
        load_tokenizer(path)


def test_loading_by_name() -> None:
    assert isinstance(load_tokenizer("bytes"), ByteTokenizer)
    assert isinstance(load_tokenizer("bpe4096"), BPETokenizer)
    for tokenizer in (BYTES, BPE):
        assert load_tokenizer(tokenizer.name).encode("same") == tokenizer.encode("same")
    with pytest.raises(UserError, match='choose "bytes", "bpe4096"'):
        load_tokenizer("bpe")


def test_a_binary_file_is_no_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot read the tokenizer"):
        load_tokenizer(path)


def test_byte_symbols_are_those_of_the_library() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    assert sorted(byte_symbols()) == sorted(ByteLevel.alphabet())
    pieces = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(" é\n")
    assert pieces[0][0] == "".join(byte_symbols()[byte] for byte in " é\n".encode())
