"""Streams of classes: groups in order, nothing shown is asked, and readers of known skill score what they should."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastweights.data.tokenizer import Tokenizer, load_tokenizer
from fastweights.errors import UserError
from fastweights.tasks.class_incremental import ClassesSpec, Group, as_course, label_words, make_stream
from fastweights.tasks.continual import Ids, Question, average_accuracy, backward_transfer, forgetting, take_courses

SHOWN = {f"class_{n}": [f"text {i} about {n}" for i in range(9)] for n in range(14)}
ASKED = {label: [text.replace("text", "question") for text in texts] for label, texts in SHOWN.items()}
WORDS = tuple(f"word{chr(97 + n)}" for n in range(20))
SPEC = ClassesSpec(groups=3, classes=4, examples=5, questions=2)


def class_of(text: str) -> str:
    """The class of any text, shown or asked."""
    return f"class_{text.split()[-1]}"


class Dictionary:
    """Knows the class of every text, and keeps what classes are called in the lessons that it remembers.

    Args:
        forgets: how many of the first lessons it forgets as soon as there is a later one.
        constant: says this word whatever is asked, if not empty.
    """

    def __init__(self, tokenizer: Tokenizer, rows: int, forgets: int = 0, constant: str = "") -> None:
        self.tokenizer, self.forgets, self.constant = tokenizer, forgets, constant
        self.lessons: list[list[dict[str, str]]] = [[] for _ in range(rows)]

    def read(self, lessons: Sequence[Ids]) -> None:
        for row, ids in zip(self.lessons, lessons, strict=True):
            lines = [line.split(" -> ") for line in self.tokenizer.decode(ids.tolist()).splitlines()]
            row.append({class_of(text): word for text, word in lines})

    def answer(self, questions: Sequence[Sequence[Question]]) -> list[list[NDArray[np.integer]]]:
        return [[self._answer(row, question) for question in asked] for row, asked in enumerate(questions)]

    def _answer(self, row: int, question: Question) -> NDArray[np.integer]:
        kept = self.lessons[row]
        kept = kept[min(self.forgets, len(kept) - 1) :]
        text = self.tokenizer.decode(question.prompt.tolist()).removesuffix(" ->")
        words = {label: word for lesson in kept for label, word in lesson.items()}
        return self.tokenizer.encode_array(f" {self.constant or words.get(class_of(text), 'nothing')}\n")


def marks_of(streams: Sequence[Sequence[Group]], **reader: Any) -> Any:
    tokenizer = load_tokenizer("bpe4096")
    courses = [as_course(stream, tokenizer) for stream in streams]

    def words(ids: NDArray[np.integer]) -> list[str]:
        return tokenizer.decode(ids.tolist()).split()

    return take_courses(Dictionary(tokenizer, len(streams), **reader), courses, words)


def streams() -> list[tuple[Group, ...]]:
    return [make_stream(random.Random(f"s{n}"), SHOWN, ASKED, SPEC, WORDS) for n in range(5)]


def test_a_dictionary_is_always_right() -> None:
    marks = marks_of(streams())
    below = np.tril_indices(3)
    assert marks.exact[below].tolist() == marks.words[below].tolist() == [1.0] * 6
    assert marks.asked.tolist() == [5 * 4 * 2] * 3


def test_a_reader_that_forgets_the_first_group_scores_as_it_should() -> None:
    matrix = marks_of(streams(), forgets=1).exact
    np.testing.assert_array_equal(matrix, [[1, np.nan, np.nan], [0, 1, np.nan], [0, 1, 1]])
    assert average_accuracy(matrix) == pytest.approx(2 / 3)
    assert forgetting(matrix) == -backward_transfer(matrix) == 0.5


def test_a_constant_is_right_where_its_class_is_and_nowhere_else() -> None:
    stream = streams()[0]
    matrix = marks_of([stream], constant=stream[1].words[2]).exact
    np.testing.assert_array_equal(matrix, [[0, np.nan, np.nan], [0, 0.25, np.nan], [0, 0.25, 0]])


@given(
    seed=st.integers(0, 1000),
    groups=st.integers(1, 4),
    classes=st.integers(1, 3),
    examples=st.integers(1, 5),
    questions=st.integers(1, 4),
    own=st.booleans(),
    apart=st.booleans(),
)
def test_a_stream_is_what_it_is_said_to_be(
    seed: int, groups: int, classes: int, examples: int, questions: int, own: bool, apart: bool
) -> None:
    spec = ClassesSpec(groups, classes, examples, questions)
    stream = make_stream(random.Random(seed), SHOWN, ASKED if apart else SHOWN, spec, None if own else WORDS)
    assert len(stream) == groups
    labels = [label for group in stream for label in group.labels]
    names = [word for group in stream for word in group.words]
    assert len(labels) == len(set(labels)) == len(set(names)) == groups * classes
    assert names == [label.replace("_", " ") for label in labels] if own else set(names) <= set(WORDS)
    called = dict(zip(labels, names, strict=True))
    for group in stream:
        assert [called[label] for label in group.labels] == list(group.words)
        assert all(line.word == called[class_of(line.text)] for line in (*group.lines, *group.questions))
        rounds = [group.lines[start : start + classes] for start in range(0, len(group.lines), classes)]
        assert len(rounds) == examples
        assert all({line.word for line in one} == set(group.words) for one in rounds)
        shown, asked = [line.text for line in group.lines], [line.text for line in group.questions]
        assert set(shown).isdisjoint(asked)
        assert len(set(shown)) == len(shown)
        assert len(set(asked)) == len(asked) == classes * questions
        assert all((text in ASKED[class_of(text)]) == apart for text in asked)


@pytest.mark.parametrize("tokenizer_name", ["bytes", "bpe4096"])
def test_a_course_is_the_text_of_its_lines(tokenizer_name: str) -> None:
    tokenizer = load_tokenizer(tokenizer_name)
    texts = {"a": ["why not?", "2 of 3?"], "b": ['it\'s "so"', "how: -> come"]}
    (group,) = make_stream(random.Random(0), texts, texts, ClassesSpec(1, 2, 1, 1), ("maple", "tower"))
    (lesson,) = as_course([group], tokenizer)
    text = "".join(f"{line.text} -> {line.word}\n" for line in group.lines)
    assert lesson.ids.tolist() == tokenizer.encode(text)
    for line, question in zip(group.questions, lesson.questions, strict=True):
        assert tokenizer.decode(question.prompt.tolist()) == f"{line.text} ->"
        assert np.concatenate(question).tolist() == tokenizer.encode(f"{line.text} -> {line.word}\n")


def test_equal_texts_of_a_class_are_one() -> None:
    texts = {"a": ["same", "same", "other"], "b": ["x", "y", "y"]}
    for seed in range(20):
        (group,) = make_stream(random.Random(seed), texts, texts, ClassesSpec(1, 2, 1, 1))
        assert sorted(line.text for line in (*group.lines, *group.questions)) == ["other", "same", "x", "y"]
    with pytest.raises(UserError, match="but there are 0"):
        make_stream(random.Random(0), texts, texts, ClassesSpec(1, 1, 2, 1))


def test_streams_stay_what_they_were() -> None:
    """Results of different versions may only be compared if they were asked the same."""
    stream = make_stream(random.Random("7/1"), SHOWN, ASKED, SPEC, WORDS)
    assert hashlib.sha256(repr(stream).encode()).hexdigest()[:16] == "b9a8b102930b3f6d"


def test_the_order_of_classes_in_a_file_makes_no_difference() -> None:
    turned = dict(reversed(SHOWN.items()))
    one, other = (make_stream(random.Random(0), shown, ASKED, SPEC, WORDS) for shown in (SHOWN, turned))
    assert one == other


def test_words_for_classes_are_short_and_different() -> None:
    tokenizer = load_tokenizer("bpe4096")
    words = label_words(tokenizer, 64)
    assert list(words) == sorted(set(words))
    assert len(words) == 64
    assert {len(tokenizer.encode(f" {word}")) for word in words} == {1}
    assert words[0][0] == "a"
    assert words[-1][0] > "s"
    assert len(label_words(tokenizer, 1)) == 1
    assert len(set(label_words(load_tokenizer("bytes"), 100))) == 100
    assert len(set(label_words(tokenizer, 6663))) == 6663
    for count in (0, 6664):
        with pytest.raises(UserError, match=f"1 to 6663 different nouns, not by {count}"):
            label_words(tokenizer, count)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(UserError, match="at least one group"):
        ClassesSpec(examples=0)
    with pytest.raises(UserError, match=r"needs 15 classes .* there are 14"):
        make_stream(random.Random(0), SHOWN, ASKED, ClassesSpec(5, 3, 1, 1), WORDS)
    with pytest.raises(UserError, match="needs 1 classes with 8 texts to show and 2 others to ask, but there are 0"):
        make_stream(random.Random(0), SHOWN, SHOWN, ClassesSpec(1, 1, 8, 2), WORDS)
    with pytest.raises(UserError, match="12 classes need as many different words, but there are 2"):
        make_stream(random.Random(0), SHOWN, ASKED, SPEC, ("a", "b", "a"))
