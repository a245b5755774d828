"""Cases are checked before anything is read, contexts are read once, and results survive any end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.small_model import build

from fastweights.data.tokenizer import ByteTokenizer
from fastweights.errors import UserError
from fastweights.evaluate import cases
from fastweights.evaluate.cases import Step, evaluate_cases, read_cases
from fastweights.inference.generation import Answer
from fastweights.inference.session import Session

GOOD = {"context": "The sky is blue.", "question": "What colour?", "answer": "blue"}


class Parrot(Session):
    """Answers with what it was told: the text it has read, in capitals."""

    readings: list[str] = []  # noqa: RUF012 - counted over all sessions

    def read(self, text: Any, **options: Any) -> int:
        self.heard = getattr(self, "heard", "") + "".join(text)
        self.readings.append(options["name"])
        return super().read(self.heard, **options)

    def ask(self, question: str, **options: Any) -> Answer:
        if question == "interrupt":
            raise KeyboardInterrupt
        return Answer(f" {self.heard.upper()}", (), "eos", 0.0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cases, "Session", Parrot)
    monkeypatch.setattr(Parrot, "readings", [])
    return tmp_path


def write(lines: Sequence[object], path: str = "cases.jsonl") -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    Path(path).write_text(text + "\n", encoding="utf-8")
    return Path(path)


def evaluate(path: Path, output: str = "out.json", **options: Any) -> dict[str, Any]:
    return evaluate_cases(build(), ByteTokenizer(), "small", path, Path(output), **options)


def test_answers_are_right_when_they_contain_an_expected_one(folder: Path) -> None:
    Path("sea.txt").write_text("The sea is green.\n", encoding="utf-8")
    found = evaluate(
        write(
            [
                GOOD,
                GOOD | {"answer": ["red", "BLUE"]},
                GOOD | {"answer": "red"},
                "",
                {"context_files": ["sea.txt"], "question": "What colour?", "answer": "green", "note": "ignored"},
                GOOD,
            ]
        )
    )
    assert [result["right"] for result in found["results"]] == [True, True, False, True, True]
    assert [result["line"] for result in found["results"]] == [1, 2, 3, 5, 6]
    assert (found["cases"], found["done"], found["right"], found["accuracy"]) == (5, 5, 4, 0.8)
    assert json.loads(Path("out.json").read_text(encoding="utf-8")) == found
    assert found["results"][0]["answer"] == "THE SKY IS BLUE."
    assert found["results"][0]["context_tokens"] == 16
    # Neighbours with one context share a reading.
    assert Parrot.readings == ["context", "sea.txt", "context"]


def test_files_of_a_case_are_found_beside_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("set").mkdir()
    Path("set/sea.txt").write_text("The sea is green.\n", encoding="utf-8")
    Path("set/sky.txt").write_text("The sky is blue.", encoding="utf-8")
    files = ["sky.txt", "sea.txt"]
    path = write([{"context_files": files, "question": "?", "answer": "blue.\nThe sea"}], "set/cases.jsonl")
    assert evaluate(path)["right"] == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ({"question": "?", "answer": "x"}, "one of context and context_files"),
        (GOOD | {"context_files": ["a"]}, "one of context and context_files"),
        (GOOD | {"context": 3}, "context is not a text"),
        (GOOD | {"context": " "}, "context is not a text"),
        ({"context_files": [], "question": "?", "answer": "x"}, "not a list of paths"),
        ({"context_files": "a.txt", "question": "?", "answer": "x"}, "not a list of paths"),
        ({"context_files": ["absent.txt"], "question": "?", "answer": "x"}, r"'absent\.txt' does not exist"),
        (GOOD | {"answer": []}, "answer is not a text"),
        (GOOD | {"answer": ["", "x"]}, "answer is not a text"),
        (GOOD | {"answer": None}, "answer is not a text"),
        (GOOD | {"question": ""}, "question is not a text"),
        ({"context": "x", "answer": "x"}, "question is not a text"),
    ],
)
def test_bad_lines_are_refused_with_their_number_before_anything_is_read(
    folder: Path, line: object, reason: str
) -> None:
    with pytest.raises(UserError, match=rf"line 3 of 'cases\.jsonl' is not a case: .*{reason}"):
        evaluate(write([GOOD, "", line]))
    assert not Parrot.readings
    assert not Path("out.json").exists()


def test_a_line_that_is_not_text_is_refused(folder: Path) -> None:
    Path("cases.jsonl").write_bytes(b'{"context": "\xff"}\n')
    with pytest.raises(UserError, match="line 1 of"):
        list(read_cases(Path("cases.jsonl")))


@pytest.mark.parametrize("name", ["absent.jsonl", "."])
def test_files_that_cannot_be_read_are_refused(folder: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot read the cases"):
        list(read_cases(Path(name)))


def test_a_file_without_cases_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="holds no cases"):
        list(read_cases(write(["", " "])))


def test_an_interrupted_evaluation_goes_on_where_it_was(folder: Path) -> None:
    lines = [GOOD, GOOD | {"context": "It is red."}, GOOD | {"question": "interrupt"}, GOOD | {"context": "Blue."}]
    path = write(lines)
    with pytest.raises(KeyboardInterrupt):
        evaluate(path)
    kept = json.loads(Path("out.json").read_text(encoding="utf-8"))
    assert (kept["done"], kept["right"], kept["cases"]) == (2, 1, 4)
    lines[2] = GOOD | {"question": "What colour now?"}
    Parrot.readings.clear()
    seen: list[Step] = []
    found = evaluate(write(lines), on_step=seen.append)
    assert (found["done"], found["right"]) == (4, 3)
    assert found["results"][:2] == kept["results"]
    assert len(Parrot.readings) == 2
    assert (seen[0].done, seen[-1].done, seen[-1].right) == (2, 4, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "something else"),
        ("text", "something else"),
        ('{"format": 1, "results": [{"key": "other", "right": true}]}', "something else"),
        ('{"format": 1, "results": [], "max_tokens": 64, "fingerprint": "other"}', "another fingerprint"),
    ],
)
def test_an_output_that_holds_something_else_is_left_alone(folder: Path, content: str, reason: str) -> None:
    Path("out.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=reason):
        evaluate(write([GOOD]))
    assert Path("out.json").read_text(encoding="utf-8") == content


def test_an_output_that_cannot_be_written_is_found_out_before_reading(folder: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be written to 'nowhere/out\.json'"):
        evaluate(write([GOOD]), "nowhere/out.json")
    assert not Parrot.readings


def test_a_real_session_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = evaluate(write([GOOD, GOOD | {"question": "And \ud800?"}]), max_tokens=4)
    assert found["done"] == 2
    assert all(isinstance(result["answer"], str) for result in found["results"])


def test_a_case_whose_file_changed_is_evaluated_again(folder: Path) -> None:
    Path("sea.txt").write_text("The sea is green.\n", encoding="utf-8")
    case = {"context_files": ["sea.txt"], "question": "What colour?", "answer": "green"}
    assert evaluate(write([case]))["right"] == 1
    Path("sea.txt").write_text("The sea is blue today.\n", encoding="utf-8")
    again = evaluate(write([case]))
    assert (again["done"], again["right"]) == (1, 0)


def test_blanks_around_an_expected_answer_do_not_count(folder: Path) -> None:
    assert evaluate(write([GOOD | {"answer": " blue \n"}]))["right"] == 1
