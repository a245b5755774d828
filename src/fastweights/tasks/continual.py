"""Learning one thing after another: courses of lessons, who takes them, and what is kept of each.

A course is a sequence of lessons, each read once and in order. After every lesson the questions of all lessons so far
are asked, each with a memory that has read these lessons and nothing else: asking never teaches. What comes of it is
the matrix of Lopez-Paz & Ranzato 2017 ("Gradient Episodic Memory for Continual Learning"): `matrix[i, j]` is the share
of right answers about lesson j after lesson i.

Shapes: N lessons of a course.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fastweights.errors import UserError

Ids = NDArray[np.int64]
Matrix = NDArray[np.float64]
"""float64 `[N, N]`, shares in [0, 1]; NaN above the diagonal, where a lesson was not given yet."""


class Question(NamedTuple):
    """What is asked, and what is right.

    Attributes:
        prompt: int64 `[P]`, at least one token.
        answer: int64 `[A]`, at least one token: how the prompt goes on.
    """

    prompt: Ids
    answer: Ids


class Lesson(NamedTuple):
    """What is read, and what is asked about it.

    Attributes:
        ids: int64 `[T]`.
        questions: About this lesson alone.
    """

    ids: Ids
    questions: tuple[Question, ...]


Course = tuple[Lesson, ...]


class Reader(Protocol):
    """Whoever takes R courses side by side."""

    def read(self, lessons: Sequence[Ids]) -> None:
        """Learn from R arrays of tokens, one for each row."""

    def answer(self, questions: Sequence[Sequence[Question]]) -> Sequence[Sequence[NDArray[np.integer]]]:
        """Continue the prompts of each row's questions, by as many tokens as the answers have, and learn nothing.

        Args:
            questions: R sequences. A reader looks at an answer's length alone.
        """


class Marks(NamedTuple):
    """What came of some courses of N lessons.

    Attributes:
        exact: Share of answers that are right as a whole.
        words: Share of an answer's words that are right at their place, the mean over answers.
        asked: int64 `[N]`, questions about each lesson, all courses together, each time that they are asked.
    """

    exact: Matrix
    words: Matrix
    asked: NDArray[np.int64]


Words = Callable[[NDArray[np.integer]], Sequence[Any]]
"""Cuts the tokens of an answer into words."""


def take_courses(reader: Reader, courses: Sequence[Course], words: Words = list) -> Marks:
    """Give courses to a reader, side by side, and ask after every lesson.

    Args:
        reader: Has as many rows as there are courses.
        courses: All of equally many lessons, each with at least one question.
        words: How an answer is cut into words; by default every token is one.

    Raises:
        UserError: No course, courses of different lengths, or a lesson that nothing is asked about.
    """
    if len({len(course) for course in courses}) != 1 or not courses[0]:
        raise UserError("courses must be given side by side with equally many lessons, at least one")
    if not all(lesson.questions for course in courses for lesson in course):
        raise UserError("nothing is asked about some lesson: give every lesson a question")
    lessons = len(courses[0])
    exact, right = np.full((lessons, lessons), np.nan), np.full((lessons, lessons), np.nan)
    asked = np.array([sum(len(course[about].questions) for course in courses) for about in range(lessons)])
    for after in range(lessons):
        reader.read([course[after].ids for course in courses])
        for about in range(after + 1):
            questions = [course[about].questions for course in courses]
            marks = [
                _mark(question.answer, said, words)
                for row, answers in zip(questions, reader.answer(questions), strict=True)
                for question, said in zip(row, answers, strict=True)
            ]
            exact[after, about], right[after, about] = np.mean(marks, axis=0)
    return Marks(exact, right, asked)


def _mark(answer: Ids, said: NDArray[np.integer], words: Words) -> tuple[bool, float]:
    """Whether all of an answer is right, and the share of its words that are right at their place."""
    wanted, found = words(answer), words(said)
    right = sum(one == other for one, other in zip(wanted, found, strict=False))
    return bool(np.array_equal(answer, said)), right / len(wanted)


def average_accuracy(matrix: Matrix) -> float:
    """Mean over all lessons after the last one: `mean_j matrix[N-1, j]` (ACC of Lopez-Paz & Ranzato 2017)."""
    return float(matrix[-1].mean())


def backward_transfer(matrix: Matrix) -> float:
    """What later lessons did to earlier ones: `mean_{j<N-1} matrix[N-1, j] - matrix[j, j]`.

    BWT of Lopez-Paz & Ranzato 2017, in [-1, 1]; negative where lessons were forgotten.

    Raises:
        UserError: A single lesson.
    """
    _require_later_lessons(matrix)
    return float((matrix[-1] - matrix.diagonal())[:-1].mean())


def forgetting(matrix: Matrix) -> float:
    """How far earlier lessons lie below their best: `mean_{j<N-1} max_{j<=i<N-1} matrix[i, j] - matrix[N-1, j]`.

    The average forgetting of Chaudhry et al. 2018 ("Riemannian Walk for Incremental Learning", arXiv 1801.10112), in
    [-1, 1]; negative where lessons became better. Their maximum also runs over the times before lesson j, at which
    nothing is asked about it here.

    Raises:
        UserError: A single lesson.
    """
    _require_later_lessons(matrix)
    best = np.nanmax(matrix[:-1, :-1], axis=0)
    return float((best - matrix[-1, :-1]).mean())


class Kept(NamedTuple):
    """What is kept of the first lesson.

    Attributes:
        at_once: Share of right answers about it right after it.
        at_last: The same after the last lesson.
    """

    at_once: float
    at_last: float


def first_lesson(matrix: Matrix) -> Kept:
    """What is kept of the first lesson, `matrix[0, 0]` and `matrix[N-1, 0]`."""
    return Kept(float(matrix[0, 0]), float(matrix[-1, 0]))


def _require_later_lessons(matrix: Matrix) -> None:
    if len(matrix) < 2:
        raise UserError("a single lesson cannot be forgotten for another one: give at least two")
