"""The matrix of a course is what a reader says, and the measures are those computed by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from fastweights.errors import UserError
from fastweights.tasks.continual import (
    Course,
    Ids,
    Lesson,
    Question,
    average_accuracy,
    backward_transfer,
    first_lesson,
    forgetting,
    take_courses,
)

NAN = np.nan
BY_HAND = np.array([[0.8, NAN, NAN], [0.9, 0.6, NAN], [0.5, 0.7, 1.0]])


def test_measures_equal_those_computed_by_hand() -> None:
    assert average_accuracy(BY_HAND) == pytest.approx((0.5 + 0.7 + 1.0) / 3)
    assert backward_transfer(BY_HAND) == pytest.approx(((0.5 - 0.8) + (0.7 - 0.6)) / 2)
    # The first lesson was best after the second one.
    assert forgetting(BY_HAND) == pytest.approx(((0.9 - 0.5) + (0.6 - 0.7)) / 2)
    assert first_lesson(BY_HAND) == (0.8, 0.5)


def test_the_best_of_a_lesson_is_looked_for_before_the_last() -> None:
    better_at_last = np.array([[0.2, NAN], [1.0, 0.0]])
    assert forgetting(better_at_last) == pytest.approx(-0.8)
    assert backward_transfer(better_at_last) == pytest.approx(0.8)


def test_a_single_lesson_cannot_be_forgotten() -> None:
    one = np.array([[0.5]])
    assert average_accuracy(one) == 0.5
    for measure in (forgetting, backward_transfer):
        with pytest.raises(UserError, match="at least two"):
            measure(one)


def ids(*tokens: int) -> Ids:
    return np.array(tokens, np.int64)


class Notebook:
    """Knows the answers of lesson n if number n was read; each row remembers `holds` lessons, the newest ones."""

    def __init__(self, courses: Sequence[Course], holds: int) -> None:
        self.courses, self.holds = courses, holds
        self.read_so_far: list[list[int]] = [[] for _ in courses]
        self.asked: list[tuple[int, ...]] = []

    def read(self, lessons: Sequence[Ids]) -> None:
        for row, lesson in zip(self.read_so_far, lessons, strict=True):
            row.append(int(lesson[0]))

    def answer(self, questions: Sequence[Sequence[Question]]) -> list[list[NDArray[np.integer]]]:
        self.asked.append(tuple(len(asked) for asked in questions))
        said = []
        for row, asked in zip(self.read_so_far, questions, strict=True):
            known = row[-self.holds :]
            said.append([q.answer if int(q.prompt[0]) in known else np.array([q.answer[0], 0]) for q in asked])
        return said


def courses() -> list[Course]:
    """Two courses of three lessons; lesson n is the token n, and its questions begin with n."""
    return [
        tuple(Lesson(ids(n, 99), (Question(ids(n), ids(7, 8)),) * (row + n)) for n in (1, 2, 3)) for row in range(2)
    ]


def test_a_reader_that_keeps_everything_is_always_right() -> None:
    marks = take_courses(Notebook(courses(), 3), courses())
    expected = np.array([[1.0, NAN, NAN], [1.0, 1.0, NAN], [1.0, 1.0, 1.0]])
    np.testing.assert_array_equal(marks.exact, expected)
    np.testing.assert_array_equal(marks.words, expected)
    assert marks.asked.tolist() == [1 + 2, 2 + 3, 3 + 4]
    assert forgetting(marks.exact) == 0


def test_a_reader_that_keeps_one_lesson_forgets_all_others() -> None:
    notebook = Notebook(courses(), 1)
    marks = take_courses(notebook, courses())
    np.testing.assert_array_equal(marks.exact, [[1, NAN, NAN], [0, 1, NAN], [0, 0, 1]])
    # The first of the two words of a forgotten answer is right.
    np.testing.assert_array_equal(marks.words, [[1, NAN, NAN], [0.5, 1, NAN], [0.5, 0.5, 1]])
    assert (forgetting(marks.exact), backward_transfer(marks.exact)) == (1, -1)
    assert average_accuracy(marks.exact) == pytest.approx(1 / 3)
    assert first_lesson(marks.words) == (1, 0.5)
    assert notebook.read_so_far == [[1, 2, 3]] * 2
    assert notebook.asked == [(1, 2), (1, 2), (2, 3), (1, 2), (2, 3), (3, 4)]


def test_words_may_have_several_tokens() -> None:
    """Answers 7 8 are one word here: half a word is none."""
    marks = take_courses(Notebook(courses(), 1), courses(), words=lambda said: [said.tolist()])
    np.testing.assert_array_equal(marks.words, marks.exact)


def test_what_is_no_course_is_refused() -> None:
    long, short = courses()[0], courses()[1][:2]
    silent = (Lesson(ids(1), ()),)
    for given in ([], [()], [long, short]):
        with pytest.raises(UserError, match="equally many lessons"):
            take_courses(Notebook(given, 1), given)
    with pytest.raises(UserError, match="nothing is asked"):
        take_courses(Notebook([silent], 1), [silent])
