"""Needles in a haystack, as RULER asks for them: the sentences, the questions, the hiding and the score.

Strings, keys, values and the score are those of RULER's S-NIAH family (Hsieh et al. 2024; `scripts/synthetic.yaml`,
`constants.py` and `niah.py` of NVIDIA/RULER). Two things differ: keys come from the single-word part of the same word
lists (6.0 instead of 6.2 million pairs), and a document's length and its needles' depths are measured in tokens, so
that one of any length can be streamed.
"""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from typing import Literal, NamedTuple

from fastweights.data.tokenizer import Ids, Tokenizer
from fastweights.data.words import Split, adjectives, nouns
from fastweights.errors import UserError
from fastweights.tasks.haystack import Haystack

Kind = Literal["numbers", "uuids", "words"]
"""What is hidden: 7-digit numbers, UUIDs (version 4), or `adjective-noun` pairs."""

DEPTHS = tuple(round(100 * step / 39) for step in range(40))
"""RULER's 40 depths in percent, 0 to 100."""

_NEEDLE = "One of the special magic {kind} for {key} is: {value}."
_INTRO = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards."
)
_QUESTION = "What are all the special magic {kind} for {keys} mentioned in the provided text?"
_ANSWER_PREFIX = " The special magic {kind} for {keys} mentioned in the provided text are"
_CONTROL = re.compile(r"[\x00-\x1f]")
_BLOCK = 64  # sentences tokenised together


class Needle(NamedTuple):
    """A key and the value to recall for it.

    Attributes:
        key: `adjective-noun` or a UUID.
        value: What is to be recalled.
        kind: Kind of the value.
    """

    key: str
    value: str
    kind: Kind = "numbers"

    @property
    def sentence(self) -> str:
        """The sentence that is hidden. Its kind is plural even when one needle is hidden, as in RULER."""
        return _NEEDLE.format(kind=self.kind, key=self.key, value=self.value)


class Passage(NamedTuple):
    """A stretch of a document that `hide` makes.

    Attributes:
        text: Its text, separator in front included; the texts of all passages joined are the document.
        ids: Its tokens; all passages' ids joined are the tokens of the document.
        needle: Index of the needle that this passage is, or -1.
    """

    text: str
    ids: Ids
    needle: int = -1


def make_needles(
    rng: random.Random,
    count: int,
    kind: Kind = "numbers",
    *,
    keys: Literal["words", "uuids"] = "words",
    split: Split = "all",
    digits: int = 7,
    similar: float = 0.0,
) -> list[Needle]:
    """Draw needles with distinct keys and distinct values.

    Args:
        rng: Source of all randomness.
        count: How many, at least 1.
        kind: What the values are.
        keys: What the keys are.
        split: Which words keys (and values of kind "words") are made of; use "train" to train and "eval" to measure
            recall of words never seen in training.
        digits: Digits of a number; RULER has 7.
        similar: Probability in [0, 1] that a key shares its adjective or its noun with an earlier needle's, so that
            only the whole key tells them apart. RULER has 0.
    """
    found: dict[str, str] = {}
    values: set[str] = set()
    while len(found) < count:
        key = _key(rng, keys, split)
        if found and keys == "words" and rng.random() < similar:
            other = rng.choice(list(found)).split("-")
            key = f"{other[0]}-{key.split('-')[1]}" if rng.random() < 0.5 else f"{key.split('-')[0]}-{other[1]}"
        value = _value(rng, kind, split, digits)
        if key not in found and value not in values:
            found[key] = value
            values.add(value)
    return [Needle(key, value, kind) for key, value in found.items()]


def _key(rng: random.Random, keys: Literal["words", "uuids"], split: Split) -> str:
    return _value(rng, keys, split, 7)


def _value(rng: random.Random, kind: Kind, split: Split, digits: int) -> str:
    if kind == "numbers":
        return str(rng.randint(10 ** (digits - 1), 10**digits - 1))
    if kind == "uuids":
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))
    return f"{rng.choice(adjectives(split))}-{rng.choice(nouns(split))}"


def draw_depths(rng: random.Random, count: int) -> list[int]:
    """Draw RULER's depths for `count` needles: distinct ones of `DEPTHS` in percent, sorted; beyond 40, repeated."""
    rounds, rest = divmod(count, len(DEPTHS))
    return sorted([*DEPTHS * rounds, *rng.sample(DEPTHS, rest)])


def intro(kind: Kind = "numbers", answers: int = 1) -> str:
    """Return the sentences before the document; `answers` is how many values the question will ask for."""
    return _singular(_INTRO, answers).format(kind=_noun(kind, answers))


def question(needle: Needle) -> str:
    """Return the question for one needle, up to where the answer begins: " 1234567." should follow."""
    return question_for([needle.key], needle.kind)


def question_for(keys: Sequence[str], kind: Kind = "numbers", answers: int = 1) -> str:
    """Return RULER's question and answer prefix for one or several keys; see `question_parts`."""
    return "".join(question_parts(keys, kind, answers))


def question_parts(keys: Sequence[str], kind: Kind = "numbers", answers: int = 1) -> tuple[str, str]:
    """Return RULER's question for one or several keys, and the answer prefix that follows it.

    Args:
        keys: The keys asked for, in order.
        kind: What the values are.
        answers: How many values are expected in all: keys times values for each. 1 gives the singular form.
    """
    joined = ", ".join(keys) if len(keys) == 1 else f"{', '.join(keys[:-1])}, and {keys[-1]}"
    asked, prefix = (
        _singular(template, answers).format(kind=_noun(kind, answers), keys=joined)
        for template in (_QUESTION, _ANSWER_PREFIX)
    )
    return asked, prefix


def _singular(template: str, answers: int) -> str:
    if answers != 1:
        return template
    return template.replace("Some", "A").replace("are all", "is").replace("are", "is").replace("answers", "answer")


def _noun(kind: Kind, answers: int) -> str:
    return kind.removesuffix("s") if answers == 1 else kind


def hide(
    tokenizer: Tokenizer,
    needles: Sequence[Needle],
    depths: Sequence[float],
    haystack: Haystack,
    tokens: int,
    *,
    introduce: bool = True,
) -> Iterator[Passage]:
    """Stream a document of a given length with needles in it; only a few sentences are ever in memory.

    A needle at depth d stands before the first sentence that begins at or after d % of the haystack's tokens. The
    document is the intro, a line end, and the sentences; ask with `question(needle)` after another line end.

    Args:
        tokenizer: Measures, and makes the passages' ids.
        needles: What to hide.
        depths: One per needle, in percent, 0 to 100.
        haystack: Sentences to hide them in, at least `tokens` tokens of them.
        tokens: Length of the document: never more, and less by under one word.
        introduce: Whether the document begins with `intro`.

    Yields:
        The passages in order. Deterministic: all randomness is in the arguments.

    Raises:
        UserError: The needles alone are longer than `tokens`, or the haystack ends too soon.

    Cost: one tokenisation of the document, plus less than one block of sentences.
    """
    if len(needles) != len(depths) or not all(0 <= depth <= 100 for depth in depths):
        raise ValueError(f"{len(needles)} needles need as many depths from 0 to 100, not {list(depths)}")
    opening = [intro(needles[0].kind if needles else "numbers")] if introduce else []
    lead = "\n" if introduce else ""
    order = sorted(range(len(needles)), key=lambda index: depths[index])
    needle_first = bool(order) and depths[order[0]] == 0
    texts = [haystack.separator + needles[index].sentence for index in order]
    if needle_first:
        texts[0] = lead + needles[order[0]].sentence
    passages = [Passage(text, tokenizer.encode_array(text)) for text in opening]
    hidden = [Passage(t, tokenizer.encode_array(t), index) for t, index in zip(texts, order, strict=True)]
    room = tokens - sum(len(passage.ids) for passage in passages + hidden)
    if room < 0:
        raise UserError(f"{len(needles)} needles do not fit into {tokens} tokens: hide fewer or ask for a longer text.")
    yield from passages
    due = [depths[index] * room / 100 for index in order]
    used, next_needle = 0, 0
    for passage in _fill(tokenizer, haystack, room, None if needle_first else lead):
        while next_needle < len(hidden) and used >= due[next_needle]:
            yield hidden[next_needle]
            next_needle += 1
        yield passage
        used += len(passage.ids)
    yield from hidden[next_needle:]


def _fill(tokenizer: Tokenizer, haystack: Haystack, room: int, lead: str | None) -> Iterator[Passage]:
    """Yield sentences up to `room` tokens, the last one cut at a word; `lead` stands before the first if given."""
    stream = iter(haystack.sentences)
    while room:
        block = [haystack.separator + sentence for sentence in islice(stream, _BLOCK)]
        if not block:
            raise UserError(f"the haystack ends {room} tokens too soon: give more text or ask for a shorter document.")
        if lead is not None:
            block[0] = lead + block[0].removeprefix(haystack.separator)
            lead = None
        for text, ids in zip(block, tokenizer.encode_many(block), strict=True):
            if len(ids) > room:
                words = _words_that_fit(tokenizer, text, room)
                if words:
                    yield Passage(words, tokenizer.encode_array(words))
                return
            yield Passage(text, ids)
            room -= len(ids)


def _words_that_fit(tokenizer: Tokenizer, text: str, room: int) -> str:
    # Tokens never reach over white space, so the words' lengths add up.
    words = re.findall(r"\s*\S+", text)
    ends = accumulate(len(ids) for ids in tokenizer.encode_many(words))
    return "".join(word for word, end in zip(words, ends, strict=True) if end <= room)


def postprocess(prediction: str) -> str:
    """Return a prediction as RULER scores it: stripped, control characters turned into line ends, stripped again."""
    return _CONTROL.sub("\n", prediction.strip()).strip()


def match_all(prediction: str, references: Sequence[str]) -> float:
    """Return the share of references that the prediction contains, whatever their case: 0.0 to 1.0."""
    text = postprocess(prediction).lower()
    return sum(reference.lower() in text for reference in references) / len(references)


def string_match_all(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return RULER's score of S-NIAH: the mean of `match_all` over the samples, in percent, to two decimals."""
    pairs = zip(predictions, references, strict=True)
    return round(100 * sum(match_all(prediction, wanted) for prediction, wanted in pairs) / len(predictions), 2)


def string_match_part(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return RULER's score where one reference is enough: the share of samples that hold any, in percent."""
    pairs = zip(predictions, references, strict=True)
    return round(100 * sum(match_all(prediction, wanted) > 0 for prediction, wanted in pairs) / len(predictions), 2)
