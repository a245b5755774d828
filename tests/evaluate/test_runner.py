"""Samples of any text task are read whole, asked once, scored by the task's own score, and survive any end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.small_model import build

from fastweights.data.tokenizer import ByteTokenizer, load_tokenizer
from fastweights.errors import UserError
from fastweights.evaluate import answerer, runner
from fastweights.evaluate.answerer import ModelAnswerer
from fastweights.evaluate.cases import evaluate_cases
from fastweights.evaluate.runner import SampleStep, evaluate_task, interval
from fastweights.evaluate.text_tasks import TASKS, Asked, samples_of
from fastweights.inference.generation import Answer
from fastweights.inference.session import Session
from fastweights.tasks import babi, ruler

BPE = load_tokenizer("bpe4096")


class Knowing(Session):
    """Answers what the test says; remembers the texts that its rows have read."""

    says: Callable[[str], str]
    heard: list[str] = []  # noqa: RUF012 - of all sessions

    def read_rows(self, texts: Sequence[Any], **options: Any) -> int:
        whole = ["".join(text) for text in texts]
        self.heard.extend(whole)
        return super().read_rows(whole, **options)

    def ask_each(self, questions: Sequence[str], **options: Any) -> list[Answer]:
        return [Answer(Knowing.says(question), (), "eos", 0.0) for question in questions]


@pytest.fixture
def knowing(monkeypatch: pytest.MonkeyPatch) -> type[Knowing]:
    monkeypatch.setattr(answerer, "Session", Knowing)
    monkeypatch.setattr(Knowing, "heard", [])
    monkeypatch.setattr(Knowing, "says", staticmethod(lambda question: "?"), raising=False)
    return Knowing


def evaluate(task: str, output: Path, lengths: Sequence[int] = (2048,), samples: int = 2, **options: Any) -> Any:
    small = ModelAnswerer(build(tokenizer="bpe4096"), BPE, "small")
    return evaluate_task(small, task, lengths, samples, output, **options)


def right_answers(task: str, tokens: int, samples: int, seed: int = 42) -> dict[str, str]:
    """The references by question; two samples with one question share them only if they are the same."""
    make = samples_of(task, BPE, tokens, seed)
    return {(one := make(index)).question: ", ".join(one.references) for index in range(samples)}


def test_every_task_of_both_benchmarks_has_a_name() -> None:
    assert {name for name in TASKS if not name.startswith("babilong_")} == {*ruler.TASKS, *ruler.ALIASES}
    assert {name.removeprefix("babilong_") for name in TASKS if name.startswith("babilong_")} == set(babi.TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_who_knows_has_all_and_who_says_nothing_has_none(
    task: str, knowing: type[Knowing], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nothing,) = evaluate(task, tmp_path / "nothing.json", samples=1)["lengths"]
    known = right_answers(task, 2048, 1)
    monkeypatch.setattr(Knowing, "says", staticmethod(lambda question: f" {known[question]}."))
    (everything,) = evaluate(task, tmp_path / "everything.json", samples=1)["lengths"]
    for name in everything["scores"]:
        assert nothing["scores"][name]["mean"] == 0.0
        # By BABILong's own score "none" is never right, since "one" stands in it.
        never = name == "compare_answers" and set(known.values()) == {"none"}
        assert everything["scores"][name]["mean"] == (0.0 if never else 100.0)


def test_a_sample_is_read_up_to_its_question(knowing: type[Knowing], tmp_path: Path) -> None:
    found = evaluate("niah_single_2", tmp_path / "out.json", samples=3)
    whole = [ruler.make_sample("niah_single_2", BPE, 2048, index) for index in range(3)]
    assert knowing.heard == ["".join(sample.context) for sample in whole]
    assert [result["question"] for result in found["results"]] == [s.question + s.answer_prefix for s in whole]
    assert [result["depths"] for result in found["results"]] == [list(s.depths) for s in whole]
    assert [result["context_tokens"] for result in found["results"]] == [len(BPE.encode(t)) for t in knowing.heard]
    assert found["lengths"][0]["samples"] == 3


def test_more_lengths_and_samples_are_added_to_what_is_there(knowing: type[Knowing], tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    first = evaluate("vt", out, (1024,), 2, command="one")
    assert len(knowing.heard) == 2
    both = evaluate("vt", out, (1024, 2048), 3, command="two")
    assert len(knowing.heard) == 2 + 1 + 3
    assert [result for result in both["results"] if result["key"] in ("1024/0", "1024/1")] == first["results"]
    assert [run["command"] for run in both["runs"]] == ["one", "two"]
    assert {"date", "machine", "versions"} <= both["runs"][0].keys()
    again = evaluate("vt", out, (2048,), 1, command="nothing is missing")
    assert (len(knowing.heard), again) == (6, both)
    assert json.loads(out.read_text(encoding="utf-8")) == both


def test_an_interrupted_evaluation_goes_on(
    knowing: type[Knowing], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, steps = tmp_path / "out.json", list[SampleStep]()
    monkeypatch.setattr(runner, "ROWS", 2)

    def interrupt(question: str) -> str:
        if len(Knowing.heard) > 2:
            raise KeyboardInterrupt
        return "?"

    monkeypatch.setattr(Knowing, "says", staticmethod(interrupt))
    with pytest.raises(KeyboardInterrupt):
        evaluate("fwe", out, (1024,), 5)
    assert [r["key"] for r in json.loads(out.read_text(encoding="utf-8"))["results"]] == ["1024/0", "1024/1"]
    monkeypatch.setattr(Knowing, "says", staticmethod(lambda question: "!"))
    written = evaluate("fwe", out, (1024,), 5, on_step=steps.append)
    assert [r["answer"] for r in written["results"]] == ["?", "?", "!", "!", "!"]
    assert steps[-1] == SampleStep(5, 5, 1024, None)
    assert {step.done for step in steps[:-1]} == {2, 4}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": "fwe"}, "another task"),
        ({"seed": 1}, "another seed"),
        ({"paths": ["book.txt"]}, "another text"),
        ({"count_by": ByteTokenizer()}, "another count_by"),
        ({"samples": 0}, "at least one sample, not 0"),
        ({"lengths": (64,)}, "64 tokens are too few"),
        ({"task": "niah_singel_1"}, "did you mean 'niah_single_1'"),
        ({"task": "babilong_qa3", "lengths": (310,)}, "too short|do not fit|leaves no room"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_lost(
    change: dict[str, Any], said: str, knowing: type[Knowing], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text("A short book. It has two sentences.", encoding="utf-8")
    out = tmp_path / "out.json"
    evaluate("niah_single_2", out, samples=1)
    before = out.read_bytes()
    with pytest.raises(UserError, match=said):
        evaluate(change.pop("task", "niah_single_2"), out, **change)
    assert out.read_bytes() == before


def test_lengths_may_be_counted_by_another_tokenizer(knowing: type[Knowing], tmp_path: Path) -> None:
    """The samples are then those of that tokenizer, the file says so, and a run without it is refused."""
    out, counter = tmp_path / "out.json", ByteTokenizer()
    found = evaluate("niah_single_2", out, samples=1, count_by=counter)
    make = samples_of("niah_single_2", counter, 2048, 42)
    assert knowing.heard == ["".join(make(0).context)]
    assert found["results"][0]["context_tokens"] == len(BPE.encode(knowing.heard[0])) < 1024
    assert found["count_by"] == "bytes"
    with pytest.raises(UserError, match="another count_by"):
        evaluate("niah_single_2", out, samples=1)
    assert "count_by" not in evaluate("niah_single_2", tmp_path / "own.json", samples=1)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    out.write_text('{"format": 1, "results": [{"key": "1/1"}]}', encoding="utf-8")
    with pytest.raises(UserError, match="something else than the results of this task"):
        evaluate("vt", out)


def test_another_model_is_refused(knowing: type[Knowing], tmp_path: Path) -> None:
    evaluate("vt", tmp_path / "out.json", samples=1)
    other = ModelAnswerer(build(1, tokenizer="bpe4096"), BPE, "small")
    with pytest.raises(UserError, match="another fingerprint"):
        evaluate_task(other, "vt", (2048,), 1, tmp_path / "out.json")


def test_the_same_samples_as_cases_get_the_same_answers(tmp_path: Path) -> None:
    """A task and a file of cases made of its samples agree, with a real model and real answers."""
    model, tokenizer = build(), ByteTokenizer()
    small = ModelAnswerer(model, tokenizer, "small")
    found = evaluate_task(small, "niah_single_1", (1024,), 3, tmp_path / "task.json")
    make = samples_of("niah_single_1", tokenizer, 1024, 42)
    lines = []
    for index in range(3):
        one: Asked = make(index)
        lines.append({"context": "".join(one.context), "question": one.question, "answer": list(one.references)})
    cases = tmp_path / "cases.jsonl"
    cases.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    limit = make(0).max_tokens
    asked = evaluate_cases(model, tokenizer, "small", cases, tmp_path / "cases.json", max_tokens=limit)
    assert [r["answer"] for r in asked["results"]] == [r["answer"].strip() for r in found["results"]]
    assert any(r["answer"].strip() for r in found["results"])
    assert [r["right"] for r in asked["results"]] == [r["scores"]["string_match_all"] == 1.0 for r in found["results"]]


def test_intervals_hold_the_share_and_narrow_with_the_count() -> None:
    assert interval(0.0, 10)[0] == 0.0
    assert interval(1.0, 10)[1] == 1.0
    # Wilson's interval of 8 of 10, from Wilson 1927's formula worked by hand.
    assert interval(0.8, 10) == pytest.approx((0.49016, 0.94332), abs=1e-4)
    (low, high), (lower, higher) = interval(0.5, 100), interval(0.5, 10)
    assert lower < low < 0.5 < high < higher
