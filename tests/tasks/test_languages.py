"""Courses in new languages: what is asked is new, follows from the lesson alone, and is answered by a dictionary."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastweights.data.tokenizer import load_tokenizer
from fastweights.errors import UserError
from fastweights.tasks.continual import Course, Ids, Question, first_lesson, forgetting, take_courses
from fastweights.tasks.labelled import IGNORE, accuracy
from fastweights.tasks.languages import END, PADDING, LanguagesSpec, in_text, make_course, make_languages

SPECS = [
    LanguagesSpec(),
    LanguagesSpec(languages=3, pairs=12, questions=5, words=48),
    LanguagesSpec(languages=1, pairs=20, shortest=1, longest=5),
    LanguagesSpec(pairs=12, questions=4, longest=3, grammars=2),
    LanguagesSpec(pairs=12, questions=6, shortest=1, longest=1, grammars=1),
]


class Dictionary:
    """Reads pairs of symbols; keeps, for each language and order of words, a dictionary as long as it fits.

    Args:
        holds: how many of the newest lessons it remembers.
    """

    def __init__(self, spec: LanguagesSpec, rows: int, holds: int = 9) -> None:
        self.spec, self.holds = spec, holds
        self.pairs: list[list[tuple[int, list[int], list[int]]]] = [[] for _ in range(rows)]
        self.lessons: list[list[int]] = [[] for _ in range(rows)]

    def read(self, lessons: Sequence[Ids]) -> None:
        for row, lesson in enumerate(lessons):
            for pair in " ".join(map(str, lesson.tolist())).removesuffix(f" {END}").split(f" {END} "):
                tokens = [int(token) for token in pair.split()]
                mark = next(token for token in tokens if 2 <= token < 2 + self.spec.languages)
                place = tokens.index(mark)
                self.pairs[row].append((mark, tokens[:place], tokens[place + 1 :]))
            self.lessons[row].append(mark)

    def answer(self, questions: Sequence[Sequence[Question]]) -> list[list[NDArray[np.integer]]]:
        return [[self._answer(row, question) for question in asked] for row, asked in enumerate(questions)]

    def _answer(self, row: int, question: Question) -> NDArray[np.integer]:
        *sentence, mark = question.prompt.tolist()
        if mark not in self.lessons[row][-self.holds :]:
            return question.answer + 1000
        found = set()
        for order in permutations("SVO"):
            for adjective_first in (True, False):
                words: dict[int, int] = {}
                fits = True
                for language, known, new in self.pairs[row]:
                    if language == mark:
                        for meaning, word in zip(self._ordered(known, order, adjective_first), new, strict=True):
                            fits = fits and words.setdefault(meaning, word) == word
                fits = fits and len(set(words.values())) == len(words)
                if fits and (self.spec.grammars == 12 or self._possible(order, adjective_first)):
                    found.add(tuple(words[meaning] for meaning in self._ordered(sentence, order, adjective_first)))
        assert len(found) == 1
        return np.array(found.pop(), np.int64)

    def _possible(self, order: tuple[str, ...], adjective_first: bool) -> bool:
        return "".join(order) == "SVO" and (adjective_first or self.spec.grammars == 2)

    def _ordered(self, known: list[int], order: tuple[str, ...], adjective_first: bool) -> list[int]:
        first = 2 + self.spec.languages
        verbs = [place for place, token in enumerate(known) if token >= first + self.spec.adjectives + self.spec.nouns]
        verb = verbs[0] if verbs else len(known)
        phrases = {"S": known[:verb], "V": known[verb : verb + 1], "O": known[verb + 1 :]}
        for part in "SO":
            adjectives = [token for token in phrases[part] if token < first + self.spec.adjectives]
            nouns = [token for token in phrases[part] if token >= first + self.spec.adjectives]
            phrases[part] = adjectives + nouns if adjective_first else nouns + adjectives
        return [token for part in order for token in phrases[part]]


def courses_of(spec: LanguagesSpec, count: int = 6) -> list[Course]:
    return [make_course(random.Random(f"course {index}"), spec) for index in range(count)]


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_a_dictionary_answers_everything(spec: LanguagesSpec) -> None:
    courses = courses_of(spec)
    marks = take_courses(Dictionary(spec, len(courses)), courses)
    below = np.tril_indices(spec.languages)
    assert marks.exact[below].tolist() == marks.words[below].tolist() == [1.0] * len(below[0])
    assert marks.asked.tolist() == [6 * spec.questions] * spec.languages


def test_a_reader_that_forgets_the_first_language_scores_as_it_should() -> None:
    spec = SPECS[0]
    courses = courses_of(spec)
    marks = take_courses(Dictionary(spec, len(courses), holds=1), courses)
    np.testing.assert_array_equal(marks.exact, [[1, np.nan], [0, 1]])
    assert first_lesson(marks.words) == (1, 0)
    assert forgetting(marks.exact) == 1


@given(seed=st.integers(0, 1000), spec=st.sampled_from(SPECS))
def test_lessons_and_questions_are_what_they_are_said_to_be(seed: int, spec: LanguagesSpec) -> None:
    course = make_course(random.Random(seed), spec)
    first_known, first_new = 2 + spec.languages, 2 + spec.languages + spec.meanings
    stocks = []
    for number, lesson in enumerate(course):
        assert lesson.ids.dtype == np.int64
        assert lesson.ids[-1] == END
        pairs = np.split(lesson.ids, np.flatnonzero(lesson.ids == END) + 1)[:-1]
        assert len(pairs) == spec.pairs
        given = set()
        for pair in pairs:
            half = (len(pair) - 2) // 2
            known, mark, new = pair[:half], pair[half], pair[half + 1 : -1]
            assert spec.shortest <= half == len(new) <= spec.longest
            assert mark == 2 + number
            assert all(first_known <= token < first_new for token in known)
            assert all(first_new <= token < spec.vocab_size for token in new)
            given.add(tuple(known.tolist()))
        stocks.append({int(token) for token in lesson.ids if token >= first_new})
        assert len(lesson.questions) == spec.questions
        asked = [tuple(question.prompt[:-1].tolist()) for question in lesson.questions]
        new_ones = [sentence for sentence in asked if len(sentence) > 1]
        assert given.isdisjoint(new_ones)
        assert len(set(new_ones)) == len(new_ones)
        assert all(question.prompt[-1] == 2 + number for question in lesson.questions)
        assert {int(token) for q in lesson.questions for token in q.answer} <= stocks[-1]
    assert sum(map(len, stocks)) == len(set.union(*stocks))


@pytest.mark.parametrize("lessons", [0, 1, 2])
@pytest.mark.parametrize("about", [0, 1, 2])
def test_rows_hold_lessons_and_questions(lessons: int, about: int) -> None:
    if about > (lessons or 1):
        with pytest.raises(UserError, match=f"{lessons} cannot be given and number {about}"):
            make_languages(random.Random(0), 1, SPECS[0], 400, lessons=lessons, about=about)
        return
    spec = SPECS[0]
    ids, labels = make_languages(random.Random(0), 12, spec, 420, lessons=lessons, about=about)
    assert ids.shape == labels.shape == (12, 420)
    read_of = []
    for row, label in zip(ids.tolist(), labels.tolist(), strict=True):
        ends = [place for place, token in enumerate(row) if token == END]
        asked = [place for place, wanted in enumerate(label) if wanted != IGNORE]
        assert len(ends) % spec.pairs == spec.questions % spec.pairs
        read = len(ends) - spec.questions
        read_of.append(read // spec.pairs)
        start = ends[read - 1] + 1
        assert min(asked) > start
        # What is asked is what comes next, and each answer is followed by the end.
        assert [row[place + 1] for place in asked] == [label[place] for place in asked]
        assert all(
            row[place + 1] == END or label[place] != IGNORE or row[place + 1] < 20 for place in range(start, 419)
        )
        marks = {row[place] for place in asked if row[place] in (2, 3)}
        assert marks <= ({about + 1} if about else {2, 3})
        assert set(row[ends[-1] + 1 :]) <= {PADDING}
    assert set(read_of) == ({1, 2} if lessons == 0 else {lessons})


def test_rows_are_answered_by_a_dictionary() -> None:
    spec = SPECS[0]
    ids, labels = make_languages(random.Random(1), 8, spec, 400)
    predictions = np.full_like(labels, PADDING)
    for row in range(8):
        ends = np.flatnonzero(ids[row] == END)
        start = int(ends[len(ends) - spec.questions - 1]) + 1
        reader = Dictionary(spec, 1)
        reader.read([ids[row, :start]])
        reader.lessons[0] = [2, 3]
        for before, end in zip(ends[-spec.questions - 1 : -1] + 1, ends[-spec.questions :], strict=True):
            half = (end - before - 1) // 2
            prompt, answer = ids[row, before : before + half + 1], ids[row, before + half + 1 : end]
            said = reader.answer([[Question(prompt, answer)]])[0][0]
            predictions[row, before + half : end - 1] = said
    assert accuracy(predictions, labels) == 1.0


@pytest.mark.parametrize(
    ("spec", "digest"), [(SPECS[0], "783d80ae0569b4b6"), (SPECS[1], "4b09da84f6da41aa"), (SPECS[4], "012ee42480c49082")]
)
def test_rows_stay_what_they_were(spec: LanguagesSpec, digest: str) -> None:
    """Results of different versions may only be compared if they were asked the same."""
    ids, labels = make_languages(random.Random("7/1"), 3, spec, spec.row_tokens)
    assert hashlib.sha256(ids.tobytes() + labels.tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("tokenizer_name", ["bytes", "bpe4096"])
def test_text_says_what_the_symbols_say(tokenizer_name: str) -> None:
    spec, tokenizer = LanguagesSpec(words=4900), load_tokenizer(tokenizer_name)
    course = make_course(random.Random(0), spec)
    written = in_text(course, spec, tokenizer)
    spelled: dict[int, str] = {}
    for lesson, text in zip(course, written, strict=True):
        lines = tokenizer.decode(text.ids.tolist())
        assert lines.endswith("\n")
        said = lines.replace(" in Anoma:", " <2>").replace(" in Belari:", " <3>").replace("\n", " <end> ").split()
        for token, word in zip(lesson.ids.tolist(), said, strict=True):
            assert spelled.setdefault(token, word) == word
        for question, asked in zip(lesson.questions, text.questions, strict=True):
            prompt, answer = tokenizer.decode(asked.prompt.tolist()), tokenizer.decode(asked.answer.tolist())
            assert (prompt[-1], answer[0], answer[-1]) == (":", " ", "\n")
            assert [spelled[token] for token in question.answer.tolist()] == answer.split()
            whole = tokenizer.encode_array(prompt + answer)
            assert np.concatenate([asked.prompt, asked.answer]).tolist() == whole.tolist()
    assert len(set(spelled.values())) == len(spelled)
    assert "  " not in lines


def test_text_has_spellings_for_so_many() -> None:
    spec = LanguagesSpec(words=4901)
    with pytest.raises(UserError, match="at most 8, 12, 24, 12, 4900"):
        in_text(make_course(random.Random(0), spec), spec, load_tokenizer("bytes"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pairs": 0}, "at least one language, one pair"),
        ({"nouns": 1}, "two nouns"),
        ({"words": 31}, "2 languages share 32 different words, but the stock has 31"),
        ({"shortest": 4, "longest": 3}, "in 1 to 5, not be 4 and 3"),
        ({"longest": 6}, "in 1 to 5"),
        ({"grammars": 13}, "1 to 12, not be 13"),
    ],
)
def test_what_cannot_be_built_is_refused(change: dict[str, int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        LanguagesSpec(**change)


def test_lessons_that_tell_too_little_are_refused() -> None:
    with pytest.raises(UserError, match="1 pairs tell too little for 8 new sentences"):
        make_course(random.Random(0), LanguagesSpec(pairs=1))
    with pytest.raises(UserError, match=r"rows of 399 tokens are too short .* need 400"):
        make_languages(random.Random(0), 1, LanguagesSpec(), 399)
