"""Languages that nobody has ever seen, learned in context one after the other, and asked for again.

After the experiment of Behrouz et al. 2025, "Nested Learning" (arXiv 2512.24695), where two languages that a model
cannot know are given in context, one after the other, and translation into each is asked; which is in turn after MTOB
(Tanzer et al. 2024, "A Benchmark for Learning to Translate a New Language from One Grammar Book"). Here the languages
are drawn at random (`fastweights.tasks.tongues`), so small models can be trained to learn such languages, and nothing
but a lesson tells what is right.

A course has a lesson for each language: pairs of a sentence in the known tongue, whose words are always the same, and
its translation. The words of all languages of a course are different ones of one stock. What is asked are other
sentences (those of a single word may be the same), and only such as follow from the lesson: a reader that tries every
grammar, with a dictionary for each, finds exactly one translation.

In symbols, a pair is the ids of the known words, the mark of the language, the ids of the new words, and the end. A row
of one lesson of two pairs and one question; the mark is 2, the end 1, known words are 4 to 19, the language says verbs
first and adjectives last::

    ids:      6  9 16  2 31 44 22  1  9 16  2 31 44  1  6  9  2 44 22  1
    labels:   .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  . 44 22  .  .

Shapes: B rows, T tokens, L languages, M words of the known tongue.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from fastweights.data.tokenizer import Tokenizer
from fastweights.errors import UserError
from fastweights.tasks.continual import Course, Ids, Lesson, Question
from fastweights.tasks.labelled import IGNORE, Labelled
from fastweights.tasks.tongues import GRAMMARS, TEMPLATES, Pair, Sentence, Tongue, TongueReader, draw_sentences

PADDING, END = 0, 1
"""Ids of what stands behind a row, and of the end of a pair."""

_LESSONS = 20  # draws of a lesson for one that tells enough
_DRAWS = 200  # of a sentence for one that can be asked

_ADJECTIVES = "old young red blue big little good bad wise rich cold quiet"
_NOUNS = (
    "dog cat horse bird fish king queen child mother brother doctor friend tree stone house river ship sword book "
    "letter mountain garden town fire"
)
_VERBS = "sees finds knows loves follows takes hears leaves holds calls makes carries"
_NAMES = ("Anoma", "Belari", "Corund", "Dastri", "Elvet", "Fenna", "Gorsk", "Halui")
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
_SPELLINGS = len(_SYLLABLES) ** 2
_STRIDE = 1847  # has no divisor in common with the number of spellings, so neighbours in the stock look different


@dataclass(frozen=True)
class LanguagesSpec:
    """What courses in new languages look like.

    Attributes:
        languages: L, lessons of a course.
        pairs: Of a lesson.
        questions: About each language of a course; in a row of `make_languages`, in all.
        adjectives: Words of the known tongue; M is the sum of the three.
        nouns: The same, at least two.
        verbs: The same.
        words: Size of the stock, at least L·M.
        shortest: Words of a sentence, from 1.
        longest: At most 5.
        grammars: How many of `GRAMMARS` a language may have; with 1 all say everything in the known order.
    """

    languages: int = 2
    pairs: int = 16
    questions: int = 8
    adjectives: int = 4
    nouns: int = 8
    verbs: int = 4
    words: int = 64
    shortest: int = 2
    longest: int = 4
    grammars: int = 12

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if min(self.languages, self.pairs, self.questions) < 1:
            raise UserError("a course needs at least one language, one pair and one question.")
        if min(self.adjectives, self.verbs) < 1 or self.nouns < 2:
            raise UserError("the known tongue needs at least one adjective, two nouns and one verb.")
        least = self.languages * self.meanings
        if self.words < least:
            raise UserError(
                f"{self.languages} languages share {least} different words, but the stock has {self.words}."
            )
        if not 1 <= self.shortest <= self.longest <= max(TEMPLATES):
            raise UserError(
                f"shortest and longest must lie in 1 to {max(TEMPLATES)}, not be {self.shortest} and {self.longest}."
            )
        if not 1 <= self.grammars <= len(GRAMMARS):
            raise UserError(f"grammars must lie in 1 to {len(GRAMMARS)}, not be {self.grammars}.")

    @property
    def meanings(self) -> int:
        """M."""
        return self.adjectives + self.nouns + self.verbs

    @property
    def kinds(self) -> dict[str, range]:
        """The meanings that are adjectives (A), nouns (N) and verbs (V)."""
        verbs = self.adjectives + self.nouns
        return {"A": range(self.adjectives), "N": range(self.adjectives, verbs), "V": range(verbs, self.meanings)}

    @property
    def vocab_size(self) -> int:
        """Padding and end, L marks, M known words, and the stock."""
        return 2 + self.languages + self.meanings + self.words

    @property
    def row_tokens(self) -> int:
        """Tokens of the longest row of `make_languages`."""
        return (self.languages * self.pairs + self.questions) * (2 * self.longest + 2)


def make_course(rng: random.Random, spec: LanguagesSpec) -> Course:
    """Draw a course in symbols: a lesson for each language, with `spec.questions` questions. Answers have no end mark.

    Args:
        rng: All randomness; equal generators give equal courses.
        spec: What it looks like.

    Raises:
        UserError: Lessons of so few pairs do not tell enough to ask that much.

    Cost: about a millisecond.
    """
    stock = rng.sample(range(spec.words), spec.languages * spec.meanings)
    lexicons = [tuple(stock[start : start + spec.meanings]) for start in range(0, len(stock), spec.meanings)]
    return tuple(_lesson(rng, spec, number, lexicon) for number, lexicon in enumerate(lexicons))


def make_languages(
    rng: random.Random, rows: int, spec: LanguagesSpec, length: int, *, lessons: int = 0, about: int = 0
) -> Labelled:
    """Draw rows: the first lessons of a course, then questions with their answers.

    Args:
        rng: All randomness; equal generators give equal rows.
        rows: B.
        spec: What they look like.
        length: T, at least `spec.row_tokens`.
        lessons: How many lessons are read; 0 draws 1 to L for each row.
        about: Which language is asked, from 1; 0 asks all that were read, mixed.

    Returns:
        Rows whose labels are the words of the answers: the first is to be said after reading the mark, the second after
        reading the first, and so on. `labelled.accuracy` is the share of words that are right at their place.

    Raises:
        UserError: Rows that are too short, no such lesson, or as in `make_course`.
    """
    if length < spec.row_tokens:
        raise UserError(f"rows of {length} tokens are too short for these courses: they need {spec.row_tokens}.")
    if not 0 <= lessons <= spec.languages or not 0 <= about <= (lessons or 1):
        raise UserError(f"of {spec.languages} languages, {lessons} cannot be given and number {about} be asked about.")
    ids = np.full((rows, length), PADDING, np.int64)
    labels = np.full((rows, length), IGNORE, np.int64)
    for row in range(rows):
        given = make_course(rng, spec)[: lessons or rng.randint(1, spec.languages)]
        asked = [
            question for lesson in given[about - 1 if about else 0 : about or None] for question in lesson.questions
        ]
        rng.shuffle(asked)
        read = np.concatenate([lesson.ids for lesson in given])
        place = len(read)
        ids[row, :place] = read
        for prompt, answer in asked[: spec.questions]:
            said = place + len(prompt)
            after = said + len(answer)
            ids[row, place:said], ids[row, said:after], ids[row, after] = prompt, answer, END
            labels[row, said - 1 : after - 1] = answer
            place = after + 1
    return Labelled(ids, labels)


def _lesson(rng: random.Random, spec: LanguagesSpec, number: int, lexicon: tuple[int, ...]) -> Lesson:
    """Draw the lesson of a language, and what is asked of it."""
    grammars = GRAMMARS[: spec.grammars]
    tongue = Tongue(lexicon, rng.choice(grammars))
    for _ in range(_LESSONS):
        sentences = draw_sentences(rng, spec.kinds, spec.shortest, spec.longest)
        pairs = [Pair(sentence, tongue.translate(sentence)) for sentence in islice(sentences, spec.pairs)]
        asked = _asked(rng, spec, pairs, TongueReader(pairs, grammars))
        if len(asked) == spec.questions:
            break
    else:
        raise UserError(
            f"{spec.pairs} pairs tell too little for {spec.questions} new sentences: give more or ask less."
        )
    first_known, first_new = 2 + spec.languages, 2 + spec.languages + spec.meanings

    def question(sentence: Sentence) -> Question:
        known = [first_known + meaning for meaning in sentence.meanings]
        new = [first_new + word for word in tongue.translate(sentence)]
        return Question(_array([*known, 2 + number]), _array(new))

    shown = [question(pair.sentence) for pair in pairs]
    read = np.concatenate([part for prompt, answer in shown for part in (prompt, answer, _array([END]))])
    return Lesson(read, tuple(question(sentence) for sentence in asked))


def _asked(rng: random.Random, spec: LanguagesSpec, pairs: Sequence[Pair], reader: TongueReader) -> list[Sentence]:
    """Draw new sentences that a reader of the pairs can translate; fewer than asked for where none are found."""
    given = {pair.sentence for pair in pairs}
    found: list[Sentence] = []
    sentences = draw_sentences(rng, spec.kinds, spec.shortest, spec.longest)
    for sentence in islice(sentences, _DRAWS * spec.questions):
        if len(found) == spec.questions:
            break
        new = len(sentence.meanings) == 1 or sentence not in given
        if new and reader.translate(sentence) is not None:
            found.append(sentence)
            given.add(sentence)
    return found


def _array(tokens: Sequence[int]) -> Ids:
    return np.array(tokens, np.int64)


def in_text(course: Course, spec: LanguagesSpec, tokenizer: Tokenizer) -> Course:
    """Write a course in English words, and in words of two syllables for the new languages.

    A pair reads ``old king sees dog in Anoma: rize bato vuni foka`` and ends in a line end; answers have the space in
    front of their first word, and the line end. Words are compared by ``lambda ids: tokenizer.decode(ids).split()``.

    Args:
        course: Of `make_course`.
        spec: What it was made with.
        tokenizer: Makes the ids.

    Raises:
        UserError: More languages or words than there are spellings for.
    """
    spelled = _spellings(spec)

    def text(ids: Ids) -> Ids:
        # The end mark needs no space in front of it, and no line begins with one.
        words = " ".join(spelled[token] for token in ids.tolist())
        return tokenizer.encode_array(words.replace(" \n ", "\n").replace(" \n", "\n")).astype(np.int64)

    def answer(ids: Ids) -> Ids:
        words = " ".join(spelled[token] for token in ids.tolist())
        return tokenizer.encode_array(f" {words}\n").astype(np.int64)

    return tuple(
        Lesson(text(lesson.ids), tuple(Question(text(q.prompt), answer(q.answer)) for q in lesson.questions))
        for lesson in course
    )


def _spellings(spec: LanguagesSpec) -> list[str]:
    """The text of every id."""
    adjectives, nouns, verbs = (words.split() for words in (_ADJECTIVES, _NOUNS, _VERBS))
    lists = [_NAMES, adjectives, nouns, verbs, range(_SPELLINGS)]
    sizes = [spec.languages, spec.adjectives, spec.nouns, spec.verbs, spec.words]
    if any(size > len(known) for size, known in zip(sizes, lists, strict=True)):
        most = ", ".join(str(len(known)) for known in lists)
        raise UserError(f"in text there are at most {most} languages, adjectives, nouns, verbs and new words.")
    marks = [f"in {name}:" for name in _NAMES[: spec.languages]]
    known = adjectives[: spec.adjectives] + nouns[: spec.nouns] + verbs[: spec.verbs]
    pairs = [divmod(word * _STRIDE % _SPELLINGS, len(_SYLLABLES)) for word in range(spec.words)]
    return ["", "\n", *marks, *known, *(_SYLLABLES[first] + _SYLLABLES[second] for first, second in pairs)]
