"""Needles are hidden where it is said, asked by their keys, and counted right only when the answer is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.small_model import build

from fastweights.data.text import find_sources
from fastweights.data.tokenizer import load_tokenizer
from fastweights.errors import UserError
from fastweights.evaluate import needle
from fastweights.evaluate.needle import Found, make_documents, needle_curve, recall_needles
from fastweights.inference.generation import Answer
from fastweights.inference.session import Progress, Session

FIELDS = [
    "tokens",
    "documents",
    "needles",
    "right",
    "answers",
    "tokens_per_second",
    "state_bytes_start",
    "state_bytes_end",
    "peak_rss_bytes",
    "largest_norm",
    "non_finite",
    "rejected",
]


class Oracle(Session):
    """Reads like any session, and answers by looking at the text: some answers right, the rest wrong."""

    wrong: frozenset[str] = frozenset()

    def read_rows(self, texts: Sequence[Any], **options: Any) -> int:
        self.texts = [self.tokenizer.decode(np.concatenate(list(text.pieces))) for text in texts]
        return super().read_rows(self.texts, **options)

    def fork(self, rows: Sequence[int] | None = None) -> Session:
        forked = Oracle(self.model, self.tokenizer, rows=len(rows or []))
        forked.texts = [self.texts[row] for row in rows or []]
        return forked

    def ask_each(self, questions: Sequence[str], **options: Any) -> list[Answer]:
        answers = []
        for text, question in zip(self.texts, questions, strict=True):
            assert question.startswith("What is the special magic number for ")
            key = re.findall(r"for ([a-z-]+) mentioned in the provided text is$", question)[0]
            value = re.findall(rf"for {key} is: (\d+)\.", text)[0]
            answers.append(Answer(f" {value[::-1] if key in self.wrong else value}", (), "stop", 0.0))
        return answers


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer("bpe4096")


@pytest.fixture(scope="module")
def model() -> Any:
    return build(tokenizer="bpe4096")


def test_right_answers_are_those_that_contain_the_value(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needle, "Session", Oracle)
    documents = make_documents(0, 3, 4)
    result = recall_needles(model, tokenizer, documents, 700)
    assert result.right == 12
    assert [(f.document, f.key, f.expected) for f in result.answers] == [
        (index, hidden.key, hidden.value) for index, document in enumerate(documents) for hidden in document.needles
    ]
    monkeypatch.setattr(Oracle, "wrong", frozenset({documents[1].needles[2].key}))
    result = recall_needles(model, tokenizer, make_documents(0, 3, 4), 700)
    assert result.right == 11
    assert [(f.document, f.depth) for f in result.answers if not f.right] == [(1, 66.67)]


def test_a_reading_tells_everything(model: Any, tokenizer: Any) -> None:
    seen: list[Progress] = []
    result = recall_needles(model, tokenizer, make_documents(0, 2, 2), 1500, on_progress=seen.append)
    assert list(result.to_dict()) == FIELDS
    assert result.state_bytes_start == result.state_bytes_end > 0
    assert result.peak_rss_bytes > 10**7
    assert result.largest_norm == max(step.norm for step in seen) > 0
    assert (result.non_finite, result.rejected) == (0, 0)
    assert 2900 < seen[-1].tokens <= 3000
    assert result.tokens_per_second > 0
    assert len(result.curves) == 2
    intro = len(tokenizer.encode(needle_intro()))
    assert result.answers[0].position == intro
    assert 1350 < result.answers[1].position < 1500
    assert list(Found._fields) == list(result.to_dict()["answers"][0])


def needle_intro() -> str:
    from fastweights.tasks.needle import intro

    return intro("numbers")


def test_documents_depend_on_the_seed_and_their_number_alone() -> None:
    one, same, other = make_documents(5, 2, 3), make_documents(5, 4, 3), make_documents(6, 2, 3)
    begin = [[list(islice(document.haystack.sentences, 3)) for document in made] for made in (one, same, other)]
    assert [document.needles for document in one] == [document.needles for document in same[:2]]
    assert begin[0] == begin[1][:2]
    assert begin[0][0] != begin[0][1]
    assert one[0].needles != other[0].needles
    assert begin[0] != begin[2]


def test_depths_are_spread() -> None:
    assert make_documents(0, 1, 5)[0].depths == (0, 25, 50, 75, 100)
    assert [document.depths for document in make_documents(0, 3, 1)] == [(0,), (50,), (100,)]
    alone = {make_documents(seed, 1, 1)[0].depths[0] for seed in range(20)}
    assert len(alone) > 10
    assert all(0 <= depth <= 100 for depth in alone)


def test_own_text_and_noise(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("A sentence of my own. " * 50, encoding="utf-8")
    own = make_documents(0, 1, 1, find_sources([str(tmp_path)]))[0].haystack
    assert set(islice(own.sentences, 99)) == {"A sentence of my own."}
    noise = make_documents(0, 1, 1, ())[0].haystack
    assert "The grass is green." in next(iter(noise.sentences))


@pytest.mark.parametrize(("documents", "needles"), [(0, 1), (1, 0)])
def test_nothing_to_do_is_refused(documents: int, needles: int) -> None:
    with pytest.raises(UserError, match="at least one"):
        make_documents(0, documents, needles)


def test_needles_that_do_not_fit_are_refused(model: Any, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="do not fit"):
        recall_needles(model, tokenizer, make_documents(0, 1, 4), 50)


def test_the_curve_goes_through_lengths_and_seeds(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needle, "Session", Oracle)
    points = list(needle_curve(model, tokenizer, [300, 600], 2, 2, [0, 1]))
    assert [(seed, point.tokens, point.right) for seed, point in points] == [
        (0, 300, 4), (1, 300, 4), (0, 600, 4), (1, 600, 4)
    ]  # fmt: skip
