"""A model takes courses: asking never teaches, pieces and neighbours change nothing, and books are counted in bits."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.small_model import build

from fastweights.core import presets
from fastweights.data.tokenizer import ByteTokenizer
from fastweights.errors import UserError
from fastweights.evaluate.continual import ModelReader, learn_courses, marks_to_dict, read_twice
from fastweights.models.config import ModelConfig
from fastweights.models.language_model import LanguageModel, flatten_state
from fastweights.tasks.class_incremental import ClassesSpec, as_course, make_stream
from fastweights.tasks.continual import Course, Lesson, Marks, Question
from fastweights.tasks.languages import LanguagesSpec, make_course

SPEC = LanguagesSpec(languages=2, pairs=8, questions=3, adjectives=2, nouns=4, verbs=2, words=16, longest=3)
TEXTS = {f"c{n}": [f"{i} of {n}" for i in range(6)] for n in range(4)}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return build().eval()


def growing() -> LanguageModel:
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=264, dim=16, depth=1, heads=2, rule=presets.softmax_attention(), wiring="lmm")
    return LanguageModel(config).eval()


def sliding() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(ModelConfig(vocab_size=264, dim=16, depth=1, heads=2, wiring="window", window=8)).eval()


def courses(count: int = 3) -> list[Course]:
    return [make_course(random.Random(f"course {index}"), SPEC) for index in range(count)]


def tensors(reader: ModelReader) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in flatten_state(reader.state).items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@torch.no_grad()
def continued(model: LanguageModel, tokens: Sequence[int], count: int) -> list[int]:
    """The likeliest continuation, the whole text read anew for every token."""
    text = list(tokens)
    for _ in range(count):
        text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
    return text[len(tokens) :]


@pytest.mark.parametrize("make", [build, growing, sliding])
def test_asking_changes_no_bit_of_what_is_known(make: Callable[[], LanguageModel]) -> None:
    model, given = make().eval(), courses()
    asked, silent = ModelReader(model, 3), ModelReader(model, 3)
    for number in range(2):
        lessons = [course[number].ids for course in given]
        asked.read(lessons)
        silent.read(lessons)
        before = tensors(asked)
        first = asked.answer([course[0].questions for course in given])
        again = asked.answer([course[0].questions for course in given])
        assert same(before, tensors(asked))
        assert same(before, tensors(silent))
        for row, other in zip(first, again, strict=True):
            assert [said.tolist() for said in row] == [said.tolist() for said in other]


def test_answers_are_the_likeliest_continuations(model: LanguageModel) -> None:
    given = courses(2)
    reader = ModelReader(model, 2, piece=13)
    for number in range(2):
        reader.read([course[number].ids for course in given])
    answers = reader.answer([course[0].questions for course in given])
    for course, row in zip(given, answers, strict=True):
        read = np.concatenate([lesson.ids for lesson in course]).tolist()
        for question, said in zip(course[0].questions, row, strict=True):
            assert said.tolist() == continued(model, read + question.prompt.tolist(), len(question.answer))


def test_rows_of_different_lengths_do_not_touch_each_other(model: LanguageModel) -> None:
    given = courses(4)
    # Some rows have more questions than others, so that they are asked in different calls.
    given[1] = tuple(lesson._replace(questions=lesson.questions * 30) for lesson in given[1])
    assert len({len(course[0].ids) for course in given}) > 1
    together = ModelReader(model, 4)
    together.read([course[0].ids for course in given])
    answers = together.answer([course[0].questions for course in given])
    for course, row in zip(given, answers, strict=True):
        alone = ModelReader(model, 1, piece=7)
        alone.read([course[0].ids])
        expected = alone.answer([course[0].questions])[0]
        assert [said.tolist() for said in row] == [said.tolist() for said in expected]


def test_a_model_that_says_what_was_expected_is_right(model: LanguageModel) -> None:
    """The questions are given the answers that the model gives: all of them after lesson 1, none of lesson 2's."""
    first, second = courses(1)[0]
    said = {}
    for number, read in enumerate((first.ids, np.concatenate([first.ids, second.ids]))):
        for question in (first, second)[number].questions:
            answer = continued(model, read.tolist() + question.prompt.tolist(), 3)
            said[number, tuple(question.prompt.tolist())] = np.array(answer)

    def lesson(number: int, lesson: Lesson, shift: int) -> Lesson:
        asked = [Question(q.prompt, said[number, tuple(q.prompt.tolist())] + shift) for q in lesson.questions]
        return lesson._replace(questions=tuple(asked))

    marks = learn_courses(model, [(lesson(0, first, 0), lesson(1, second, 1))])
    assert marks.exact[0, 0] == marks.words[0, 0] == 1
    assert marks.exact[1, 1] == marks.words[1, 1] == 0


def test_a_stream_of_classes_is_a_course_like_any_other(model: LanguageModel) -> None:
    tokenizer = ByteTokenizer()
    streams = [
        make_stream(random.Random(seed), TEXTS, TEXTS, ClassesSpec(2, 2, 3, 2), ("a", "bc", "def", "g"))
        for seed in range(3)
    ]
    steps: list[int] = []
    given = [as_course(stream, tokenizer) for stream in streams]
    marks = learn_courses(
        model, given, words=lambda ids: tokenizer.decode(ids.tolist()).split(), piece=20, on_read=steps.append
    )
    assert marks.exact.shape == (2, 2)
    assert math.isnan(marks.exact[0, 1])
    assert np.all((marks.words >= marks.exact) | np.isnan(marks.exact))
    assert marks.asked.tolist() == [12, 12]
    assert steps == sorted(steps)
    assert steps[-1] == sum(len(lesson.ids) for course in given for lesson in course)


def test_marks_are_told_in_percent() -> None:
    nan = math.nan
    exact = np.array([[0.75, nan], [0.5, 1.0]])
    told = marks_to_dict(Marks(exact, np.array([[1.0, nan], [2 / 3, 1.0]]), np.array([8, 8])))
    assert told == {
        "asked": [8, 8],
        "exact": {
            "matrix": [[75.0], [50.0, 100.0]],
            "average_accuracy": 75.0,
            "backward_transfer": -25.0,
            "forgetting": 25.0,
            "first_lesson": [75.0, 50.0],
        },
        "words": {
            "matrix": [[100.0], [66.67, 100.0]],
            "average_accuracy": 83.33,
            "backward_transfer": -33.33,
            "forgetting": 33.33,
            "first_lesson": [100.0, 66.67],
        },
    }
    single = marks_to_dict(Marks(exact[:1, :1], exact[:1, :1], np.array([8])))
    assert single["exact"] == {"matrix": [[75.0]], "average_accuracy": 75.0}


@torch.no_grad()
def bits_per_byte(model: LanguageModel, before: Sequence[str], book: str) -> float:
    """Of a book after others, all in one call."""
    tokenizer = ByteTokenizer()
    read = [token for text in before for token in (tokenizer.eos, *tokenizer.encode(text))]
    ids = tokenizer.encode(book)
    logits = model(torch.tensor([[*read, tokenizer.eos, *ids]])).logits[0, len(read) : -1]
    return float(F.cross_entropy(logits, torch.tensor(ids))) / math.log(2) * len(ids) / len(book.encode())


@pytest.mark.parametrize("piece", [1024, 17])
@pytest.mark.parametrize("make", [build, growing, sliding])
def test_books_are_counted_as_in_one_reading(make: Callable[[], LanguageModel], piece: int) -> None:
    model = make().eval()
    a, b = "The cook was not in the kitchen, naïve as he was.", "A second book, of another kind."
    steps: list[int] = []
    found = read_twice(model, ByteTokenizer(), [a[:9], a[9:]], b, piece=piece, on_read=steps.append)
    expected = {
        "a": ([], a), "b": ([], b), "a_after_a": ([a], a),
        "b_after_a": ([a], b), "a_after_b": ([b], a), "a_after_a_b": ([a, b], a),
    }  # fmt: skip
    for name, (before, book) in expected.items():
        assert getattr(found, name) == pytest.approx(bits_per_byte(model, before, book), rel=1e-4), name
    assert found.saved == found.a_after_b - found.a_after_a_b
    assert found.forgotten == found.a_after_a_b - found.a_after_a
    assert steps[-1] == 4 * len(a.encode()) + 2 * len(b.encode())


def test_a_window_that_is_shorter_than_a_book_saves_nothing() -> None:
    found = read_twice(sliding(), ByteTokenizer(), "abc " * 20, "xyz " * 20)
    assert found.saved == pytest.approx(0, abs=1e-6)
    assert found.a_after_b != pytest.approx(found.a, abs=1e-6)


def test_an_empty_book_is_refused(model: LanguageModel) -> None:
    with pytest.raises(UserError, match="a book is empty"):
        read_twice(model, ByteTokenizer(), "text", [])
