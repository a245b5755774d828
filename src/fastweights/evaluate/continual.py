"""What a model keeps of one thing while it reads the next: courses of lessons, and a book that is read twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fastweights.data.tokenizer import Tokenizer
from fastweights.errors import UserError
from fastweights.evaluate.bits import PIECE, pieces_of, read_bits
from fastweights.inference.generation import read_prompt
from fastweights.inference.snapshot import blank, written
from fastweights.models.language_model import LanguageModel, ModelState
from fastweights.tasks.continual import (
    Course,
    Ids,
    Marks,
    Matrix,
    Question,
    Words,
    average_accuracy,
    backward_transfer,
    first_lesson,
    forgetting,
    take_courses,
)

_ASKED_TOGETHER = 64


class ModelReader:
    """A model that takes courses, one a row: it reads lessons in pieces, and answers greedily, each question on a fork.

    An answer is free-running: each token that the model says is what it reads next. Nothing that is asked or said
    reaches the memory that goes on reading.

    Args:
        model: In evaluation mode.
        rows: Courses side by side.
        piece: Tokens of a row that are read at a time; bounds the memory used.
        on_read: Called after each piece with the tokens read by all rows so far.

    Attributes:
        state: What the model knows now.
    """

    def __init__(
        self, model: LanguageModel, rows: int, piece: int = PIECE, on_read: Callable[[int], None] | None = None
    ) -> None:
        self._model, self._piece, self._on_read = model, piece, on_read
        self._now = blank(model, rows)

    @property
    def state(self) -> ModelState:
        """What the model knows now; nothing in it is ever changed in place."""
        return self._now.state

    def read(self, lessons: Sequence[Ids]) -> None:
        """Read one lesson a row; they may differ in length."""
        for start in range(0, max(map(len, lessons)), self._piece):
            pieces = [ids[start : start + self._piece].astype(np.int32) for ids in lessons]
            self._now, _ = written(self._model, self._now, pieces)
            if self._on_read is not None:
                self._on_read(sum(self._now.tokens))

    @torch.no_grad()
    def answer(self, questions: Sequence[Sequence[Question]]) -> list[list[NDArray[np.integer]]]:
        """Continue every prompt by as many tokens as its answer has."""
        pairs = [(row, question) for row, asked in enumerate(questions) for question in asked]
        said: list[NDArray[np.integer]] = []
        for start in range(0, len(pairs), _ASKED_TOGETHER):
            rows, asked = zip(*pairs[start : start + _ASKED_TOGETHER], strict=True)
            tokens = self._continued(self._now.select(rows).state, asked)
            said += [ids[: len(question.answer)] for ids, question in zip(tokens, asked, strict=True)]
        ends = list(accumulate(map(len, questions)))
        return [said[end - len(asked) : end] for end, asked in zip(ends, questions, strict=True)]

    def _continued(self, state: ModelState, asked: Sequence[Question]) -> NDArray[np.int64]:
        """The likeliest tokens after each prompt, `[Q, A]`, A the length of the longest answer."""
        prompts = [question.prompt.astype(np.int32) for question in asked]
        state, logits = read_prompt(self._model, state, prompts, self._piece)
        tokens = [logits.argmax(-1)]
        for _ in range(1, max(len(question.answer) for question in asked)):
            encoded = self._model.encode(tokens[-1][:, None], state)
            state = encoded.state
            tokens.append(self._model.logits(encoded.hidden[:, -1]).argmax(-1))
        return torch.stack(tokens, 1).cpu().numpy()


def learn_courses(
    model: LanguageModel,
    courses: Sequence[Course],
    *,
    words: Words = list,
    piece: int = PIECE,
    on_read: Callable[[int], None] | None = None,
) -> Marks:
    """Let a model take courses side by side, and ask after every lesson: see `take_courses` and `ModelReader`.

    Args:
        model: Put into evaluation mode.
        courses: For example of `tasks.languages.make_course` or `tasks.class_incremental.as_course`.
        words: How an answer is cut into words.
        piece: Tokens of a row that are read at a time.
        on_read: Called after each piece with the tokens read by all rows so far.

    Raises:
        UserError: As in `take_courses`.

    Cost: one reading, and after lesson i all questions of i lessons; the memory used grows with the number of courses.
    """
    return take_courses(ModelReader(model.eval(), len(courses), piece, on_read), courses, words)


def marks_to_dict(marks: Marks) -> dict[str, Any]:
    """Marks as plain JSON values in percent: each matrix, row by row up to its diagonal, and what follows from it.

    ``first_lesson`` is the pair of `tasks.continual.first_lesson`. A single lesson has an average alone.
    """
    return {"asked": marks.asked.tolist(), "exact": _measures(marks.exact), "words": _measures(marks.words)}


def _measures(matrix: Matrix) -> dict[str, Any]:
    found: dict[str, Any] = {
        "matrix": [[_percent(share) for share in row[: after + 1]] for after, row in enumerate(matrix.tolist())],
        "average_accuracy": _percent(average_accuracy(matrix)),
    }
    if len(matrix) == 1:
        return found
    return found | {
        "backward_transfer": _percent(backward_transfer(matrix)),
        "forgetting": _percent(forgetting(matrix)),
        "first_lesson": [_percent(share) for share in first_lesson(matrix)],
    }


def _percent(share: float) -> float:
    return round(100 * share, 2)


class BookReadings(NamedTuple):
    """Bits per byte of books A and B, each predicted token by token while it is read, after what had been read before.

    Attributes:
        a: A, read by a memory that has read nothing: the first reading.
        b: B, the same.
        a_after_a: A, right after A.
        b_after_a: B, after A.
        a_after_b: A, after B alone.
        a_after_a_b: A, after A and B: the second reading, with another book in between.
    """

    a: float
    b: float
    a_after_a: float
    b_after_a: float
    a_after_b: float
    a_after_a_b: float

    @property
    def saved(self) -> float:
        """Bits per byte that a first reading of A saves the second one: beyond what reading any book (B) saves."""
        return self.a_after_b - self.a_after_a_b

    @property
    def forgotten(self) -> float:
        """Bits per byte that B in between costs the second reading."""
        return self.a_after_a_b - self.a_after_a


@torch.no_grad()
def read_twice(
    model: LanguageModel,
    tokenizer: Tokenizer,
    a: Iterable[str],
    b: Iterable[str],
    *,
    piece: int = PIECE,
    on_read: Callable[[int], None] | None = None,
) -> BookReadings:
    """Read book A, then B, then A again, and what there is to compare that with.

    Every book begins with the tokenizer's end-of-text token, as texts are joined in training; it is read, not
    predicted. A byte counts once however it is cut into tokens.

    Args:
        model: Put into evaluation mode.
        tokenizer: The one it was trained with.
        a: A book: its text, or the pieces of it in order.
        b: Another one.
        piece: Tokens that are read at a time; bounds the memory used, beside 4 bytes for each token of the books.
        on_read: Called after each piece with the tokens read so far.

    Raises:
        UserError: A book is empty.

    Cost: four readings of A and two of B.
    """
    model.eval()
    book_a, book_b = _book(tokenizer, a), _book(tokenizer, b)
    done = 0

    def read(book: _Book, after: _Book | None = None, state: ModelState | None = None) -> tuple[float, ModelState]:
        nonlocal done
        bits = 0.0
        # Of the book before, the state has not read the last token.
        first = [*([] if after is None else after.ids[-1:].tolist()), tokenizer.eos]
        for part in read_bits(model, np.split(book.ids, range(piece, len(book.ids), piece)), first, state):
            bits, state, done = bits + float(part.bits.sum()), part.state, done + len(part.ids)
            if on_read is not None:
                on_read(done)
        assert state is not None
        return bits / book.bytes, state

    first_a, after_a = read(book_a)
    again, _ = read(book_a, book_a, after_a)
    b_after_a, after_both = read(book_b, book_a, after_a)
    second, _ = read(book_a, book_b, after_both)
    first_b, after_b = read(book_b)
    other, _ = read(book_a, book_b, after_b)
    return BookReadings(first_a, first_b, again, b_after_a, other, second)


class _Book(NamedTuple):
    ids: NDArray[np.int32]
    bytes: int


def _book(tokenizer: Tokenizer, text: Iterable[str]) -> _Book:
    ids = np.concatenate([*pieces_of(tokenizer, text), np.zeros(0, np.int32)])
    if not len(ids):
        raise UserError("a book is empty: there is nothing to read twice")
    return _Book(ids, sum(len(tokenizer.token_bytes(token)) for token in ids.tolist()))
