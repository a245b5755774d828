"""What is measured reads contexts and answers questions; what it cannot read is refused before it reads anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from tests.small_model import build

from fastweights.data.tokenizer import ByteTokenizer
from fastweights.errors import UserError
from fastweights.evaluate.answerer import Answered, Answerer, ModelAnswerer, ReadingProgress
from fastweights.evaluate.runner import SampleStep, evaluate_task
from fastweights.evaluate.text_tasks import samples_of
from fastweights.inference.session import Session, on_own_line

TEXTS = ["The sky is blue. " * 80, "Green."]
QUESTIONS = ["What is the sky?", "\nWhich colour?"]


def test_a_model_answers_as_its_session_does() -> None:
    model, tokenizer = build(), ByteTokenizer()
    session = Session(model, tokenizer, rows=2)
    session.read_rows(TEXTS)
    expected = [answer.text for answer in session.ask_each(QUESTIONS, max_tokens=6)]
    reads: list[ReadingProgress] = []
    small = ModelAnswerer(model, tokenizer, "small")
    # In passages, of which a session sees the joined text alone.
    found = list(small.answer([iter(TEXTS[:1]), iter(["Gr", "een."])], QUESTIONS, 6, reads.append))
    assert [answer.text for answer in found] == expected
    assert any(expected)
    assert [answer.tokens for answer in found] == [len(text) for text in TEXTS]
    assert reads[-1].tokens == sum(map(len, TEXTS))
    assert [read.tokens for read in reads] == sorted(read.tokens for read in reads)
    assert (small.fingerprint, small.device, small.longest) == (model.fingerprint(), "cpu", None)


def test_a_question_stands_on_a_line_of_its_own() -> None:
    assert [on_own_line(question) for question in QUESTIONS] == ["\nWhat is the sky?", "\nWhich colour?"]


def test_speed_is_tokens_over_seconds() -> None:
    assert ReadingProgress(10, 4.0).tokens_per_second == 2.5
    assert ReadingProgress(0, 0.0).tokens_per_second == 0.0


class Short(Answerer):
    """Reads bytes up to a limit; says the last word of the question, or stops at the n-th one."""

    def __init__(self, longest: int, stop_at: int = 1_000) -> None:
        self.name, self.tokenizer, self.device, self.longest = "short", ByteTokenizer(), "cpu", longest
        self.versions = {"made-up": "1.2"}
        self.stop_at, self.heard = stop_at, list[str]()

    @property
    def fingerprint(self) -> str:
        return "0" * 64

    def answer(
        self,
        contexts: Sequence[Iterable[str]],
        questions: Sequence[str],
        max_tokens: int,
        on_read: Callable[[ReadingProgress], None] | None = None,
    ) -> Iterator[Answered]:
        for context, question in zip(contexts, questions, strict=True):
            if len(self.heard) == self.stop_at:
                raise KeyboardInterrupt
            self.heard.append("".join(context))
            if on_read is not None:
                on_read(ReadingProgress(len(self.heard[-1]), 1.0))
            yield Answered(question.split()[-1], len(self.heard[-1]))


def test_room_is_needed_for_context_question_and_answer() -> None:
    context, question = ["12345", "678"], "90"
    assert Short(99).length(context, question) == 8 + 1 + 2
    Short(15).require_room(context, question, 4)
    with pytest.raises(UserError, match="'short' reads at most 14 tokens, and a sample has 15 with its answer"):
        Short(14).require_room(context, question, 4)


def test_nothing_is_read_where_any_sample_of_any_length_is_too_long(tmp_path: Path) -> None:
    out, short = tmp_path / "out.json", Short(2048)
    with pytest.raises(UserError, match="reads at most 2,048 tokens"):
        evaluate_task(short, "niah_single_1", (1024, 4096), 2, out)
    assert not short.heard
    assert not out.exists()
    evaluate_task(short, "niah_single_1", (1024, 2048), 2, out)
    assert len(short.heard) == 4


def test_every_sample_is_looked_at_and_not_the_first_alone(tmp_path: Path) -> None:
    """The limit is such that the first sample fits, and the longest of the others does not."""
    make = samples_of("niah_single_1", ByteTokenizer(), 2048, 42)
    sizes = [Short(1).length(make(i).context, make(i).question) + make(i).max_tokens for i in range(8)]
    assert sizes[0] < max(sizes)
    short = Short(max(sizes) - 1)
    with pytest.raises(UserError, match=f"a sample has {max(sizes):,} with its answer"):
        evaluate_task(short, "niah_single_1", (2048,), 8, tmp_path / "out.json")
    assert not short.heard


def test_an_answer_is_kept_as_soon_as_it_is_known(tmp_path: Path) -> None:
    """Also within the samples that are handed over together; and the step says how many are done."""
    out, steps = tmp_path / "out.json", list[SampleStep]()
    with pytest.raises(KeyboardInterrupt):
        evaluate_task(Short(4096, stop_at=3), "niah_single_1", (1024,), 5, out, on_step=steps.append)
    kept = json.loads(out.read_text(encoding="utf-8"))
    assert [result["key"] for result in kept["results"]] == ["1024/0", "1024/1", "1024/2"]
    assert [step.done for step in steps] == [0, 1, 2]
    assert kept["runs"][0]["versions"].items() >= {"made-up": "1.2"}.items()
