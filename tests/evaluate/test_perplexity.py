"""What documents cost is what one long call says, wherever they are cut, and survives interruptions."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.small_model import build

from fastweights.data.tokenizer import ByteTokenizer
from fastweights.errors import FastweightsError, UserError
from fastweights.evaluate import perplexity
from fastweights.evaluate.bits import pieces_of, read_bits
from fastweights.evaluate.perplexity import (
    FIRST_BUCKET,
    Document,
    DocumentStep,
    bits_per_byte,
    evaluate_documents,
    interval_of,
    novel_documents,
    score_document,
    text_documents,
    wikitext_documents,
)
from fastweights.models.language_model import LanguageModel

BYTES = ByteTokenizer()
TEXT = "The cook was not in the kitchen, naïve as he was. " * 14


def small() -> LanguageModel:
    """In float64: random memories amplify what float32 rounds away."""
    return build().double().eval()


def document(text: str = TEXT, name: str = "a") -> Document:
    return Document(name, lambda: [text[:9], text[9:]])


@torch.no_grad()
def by_hand(text: str) -> list[float]:
    """Bits of every token, from one call."""
    ids = torch.tensor([[BYTES.eos, *BYTES.encode_array(text).tolist()]])
    log_p = torch.log_softmax(small()(ids[:, :-1]).logits.double(), -1)
    return (-log_p.gather(-1, ids[:, 1:, None])[0, :, 0] / math.log(2)).tolist()


@pytest.mark.parametrize("piece", [1, 7, 1024])
def test_every_token_is_predicted_from_all_before_it(piece: int) -> None:
    parts = list(read_bits(small(), pieces_of(BYTES, [TEXT[:5], TEXT[5:]], piece), [BYTES.eos]))
    assert b"".join(BYTES.token_bytes(token) for part in parts for token in part.ids.tolist()).decode() == TEXT
    assert {len(part.ids) for part in parts[:-1]} <= {piece}
    bits = torch.cat([part.bits for part in parts])
    torch.testing.assert_close(bits, torch.tensor(by_hand(TEXT), dtype=torch.float64), rtol=1e-6, atol=1e-5)


def test_a_document_is_its_tokens_and_falls_into_buckets_by_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perplexity, "PIECE", 100)
    found, bits = score_document(small(), BYTES, document()), by_hand(TEXT)
    assert found["bits"] == pytest.approx(sum(bits), rel=1e-6)
    assert (found["tokens"], found["bytes"], found["words"]) == (714, 714, 155)
    assert [bucket[0] for bucket in found["buckets"]] == [256, 256, 202]
    for (_, cost, size), (start, end) in zip(found["buckets"], ((0, 256), (256, 512), (512, 714)), strict=True):
        assert cost == pytest.approx(sum(bits[start:end]), rel=1e-6)
        assert size == end - start


@pytest.mark.parametrize("every", [50, 100, 300])
def test_a_reset_begins_anew(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 70 tokens do not fit the windows."""
    monkeypatch.setattr(perplexity, "PIECE", 70)
    raw = TEXT.encode()
    windows = [raw[start : start + every].decode("latin-1") for start in range(0, len(raw), every)]
    expected = 0.0
    with torch.no_grad():
        for window in windows:
            ids = torch.tensor([[BYTES.eos, *(byte + 8 for byte in window.encode("latin-1"))]])
            log_p = torch.log_softmax(small()(ids[:, :-1]).logits.double(), -1)
            expected -= float(log_p.gather(-1, ids[:, 1:, None]).sum()) / math.log(2)
    found = score_document(small(), BYTES, document(), reset_every=every)
    assert found["bits"] == pytest.approx(expected, rel=1e-6)
    assert found["tokens"] == len(raw)


def test_a_cut_document_counts_what_was_read() -> None:
    found = score_document(small(), BYTES, document(), max_tokens=100)
    assert (found["tokens"], found["bytes"]) == (100, 100)
    assert found["bits"] == pytest.approx(sum(by_hand(TEXT)[:100]), rel=1e-6)


def test_a_document_cut_inside_a_character_has_the_bytes_of_its_tokens() -> None:
    found = score_document(small(), BYTES, document("aé" * 20), max_tokens=2)
    assert (found["tokens"], found["bytes"], found["words"]) == (2, 2, 1)


@pytest.mark.parametrize("limit", [0, 30, 1000])
def test_a_limit_that_cuts_nothing_changes_nothing(limit: int) -> None:
    page = Document("page", lambda: ["a, b. " * 5], lambda: [" a , b . " * 5])
    found = score_document(small(), BYTES, page, limit)
    assert (found["tokens"], found["bytes"], found["words"]) == (30, 45, 22)
    assert score_document(small(), BYTES, page, 29)["bytes"] == 29


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_words_are_counted_the_same_in_any_pieces(size: int) -> None:
    text = "  One two\n\nthree\u2003 four.\t"
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    found = score_document(small(), BYTES, Document("a", lambda: pieces))
    assert (found["words"], found["bytes"]) == (len(re.split(r"\s+", text)), len(text.encode()))


def test_texts_in_memory_cost_what_documents_do(tmp_path: Path) -> None:
    texts = {"a": TEXT, "b": "Another book. " * 9, "c": "No. " * 50}
    written = evaluate(tmp_path / "out.json", texts, max_tokens=200, reset_every=60)
    found = bits_per_byte(small().train(), BYTES, list(texts.values()), max_tokens=200, reset_every=60)
    assert found.bits_per_byte == pytest.approx(written["bits_per_byte"], abs=1e-4)
    assert (found.low, found.high) == pytest.approx(tuple(written["interval"]), abs=1e-4)
    assert (found.tokens, found.size) == (200 + 126 + 200, 200 + 126 + 200)
    with pytest.raises(UserError, match="at least one text"):
        bits_per_byte(small(), BYTES, [])
    for negative in ({"max_tokens": -1}, {"reset_every": -1}):
        with pytest.raises(UserError, match="must be 0 or more"):
            bits_per_byte(small(), BYTES, [TEXT], **negative)


def test_a_model_that_diverged_is_told_from_one_that_is_bad(tmp_path: Path) -> None:
    bad = small()
    with torch.no_grad():
        bad.head.weight.mul_(1e6)
    found = evaluate_documents(bad, BYTES, "bad", [document()], tmp_path / "bad.json")
    assert found["token_perplexity"] == found["word_perplexity"] == float(f"{2.0**1000:.6g}")
    with torch.no_grad():
        bad.head.weight.fill_(math.nan)
    with pytest.raises(FastweightsError, match="not finite"):
        evaluate_documents(bad, BYTES, "worse", [document()], tmp_path / "worse.json")
    assert json.loads((tmp_path / "worse.json").read_bytes())["done"] == 0


def evaluate(output: Path, texts: dict[str, str], **options: Any) -> dict[str, Any]:
    documents = [document(text, name) for name, text in texts.items()]
    return evaluate_documents(small(), BYTES, "small", documents, output, **options)


def test_the_file_has_all_there_is_to_know(tmp_path: Path) -> None:
    texts = {"a": TEXT, "b": "Another book. " * 9, "c": "No. " * 50}
    steps: list[DocumentStep] = []
    found = evaluate(tmp_path / "out.json", texts, command="x", on_step=steps.append)
    bits = {name: sum(by_hand(text)) for name, text in texts.items()}
    size = sum(len(text.encode()) for text in texts.values())
    assert found["bits_per_byte"] == pytest.approx(sum(bits.values()) / size, abs=1e-3)
    assert found["interval"][0] < found["bits_per_byte"] < found["interval"][1]
    assert found["token_perplexity"] == pytest.approx(2 ** (sum(bits.values()) / size), rel=1e-3)
    words = sum(result["words"] for result in found["results"])
    assert math.log2(found["word_perplexity"]) == pytest.approx(sum(bits.values()) / words, rel=1e-3)
    assert [place["below"] for place in found["places"]] == [FIRST_BUCKET, 512, 1024]
    assert [place["tokens"] for place in found["places"]] == [256 + 126 + 200, 256, 202]
    assert found["runs"][0]["command"] == "x"
    assert json.loads((tmp_path / "out.json").read_bytes()) == found
    assert (steps[-1].done, steps[-1].tokens) == (3, size)


def test_an_interrupted_evaluation_goes_on_and_others_are_refused(tmp_path: Path) -> None:
    texts, out = {"a": TEXT, "b": "Another book. " * 9}, tmp_path / "out.json"

    def stop(step: DocumentStep) -> None:
        if step.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(out, texts, on_step=stop)
    assert json.loads(out.read_bytes())["done"] == 1
    steps: list[DocumentStep] = []
    whole = evaluate(out, texts, on_step=steps.append)
    assert whole == evaluate(tmp_path / "other.json", texts)
    assert steps[-1].tokens == 126
    with pytest.raises(UserError, match="another reset_every"):
        evaluate(out, texts, reset_every=10)
    with pytest.raises(UserError, match="another documents"):
        evaluate(out, {"a": TEXT})
    with pytest.raises(UserError, match="different names"):
        evaluate(out, {})
    with pytest.raises(UserError, match="'a' is empty"):
        evaluate(tmp_path / "empty.json", {"a": ""})


def test_the_interval_is_that_of_documents() -> None:
    rng = np.random.default_rng(1)
    results = [{"bits": 1000 * cost, "bytes": 1000} for cost in rng.normal(2.0, 0.1, 400)]
    low, high = interval_of(results)
    assert low < 2.0 < high
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.15)


def test_documents_are_novels_files_or_pages(tmp_path: Path) -> None:
    assert len(novel_documents()) == 10
    assert "Holmes" in "".join(next(one for one in novel_documents() if "Doyle" in one.name).open())
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"text {name}")
    found = text_documents([str(tmp_path)])
    assert ["".join(one.open()) for one in found] == ["text a.txt", "text b.txt"]
    assert ["".join(one.open()) for one in found] == ["text a.txt", "text b.txt"]
    (tmp_path / "wiki.raw").write_text(" = A = \n\n a , b \n\n = B = \n\n c . d \n", encoding="utf-8")
    pages = wikitext_documents(tmp_path / "wiki.raw")
    assert [page.name for page in pages] == ["0 A", "1 B"]
    scored = score_document(small(), BYTES, pages[0])
    assert scored["bytes"] == len(" = A = \n\n a , b \n")
    assert scored["tokens"] == len("= A =\n\na, b\n") + 1
