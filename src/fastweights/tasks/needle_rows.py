"""Rows that teach a language model to recall needles: short documents with needles, then questions with their answers.

A row reads exactly as `needle.hide` and `needle.question` would write it, so what is learned on rows of a thousand
tokens is what a document of a million asks for.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastweights.data.sentences import sentences
from fastweights.data.text import find_sources, read_text
from fastweights.data.tokenizer import Ids, Tokenizer
from fastweights.data.words import Split, nouns
from fastweights.errors import UserError
from fastweights.tasks.haystack import NOISE_LINE
from fastweights.tasks.needle import DEPTHS, Kind, Needle, intro, make_needles, question

KeyForm = Literal["pair", "token"]
"""Keys of rows: RULER's `adjective-noun`, or a noun that is a single token (the first lesson in binding a value)."""

_BLOCK = 1024  # sentences tokenised together
_WORD = re.compile(r"\s?[^\s\d-]+|[\s\d-]")


class SentenceBank:
    """Texts cut into sentences and tokenised once.

    Attributes:
        ids: uint16 or int32 `[N]`, all sentences one after the other, each with the space in front of it.
        starts: int64 `[S + 1]`, where each sentence starts, and N.
    """

    def __init__(self, ids: NDArray[np.integer], starts: NDArray[np.int64]) -> None:
        """Wrap arrays made by `from_texts`."""
        self.ids = ids
        self.starts = starts

    @classmethod
    def from_texts(cls, tokenizer: Tokenizer, texts: Iterable[Iterable[str]]) -> SentenceBank:
        """Tokenise texts, each given in pieces. About 0.4 million tokens a second and core.

        Raises:
            UserError: No sentence in all of them.
        """
        stream = chain.from_iterable(sentences(pieces) for pieces in texts)
        kind = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
        parts: list[NDArray[np.integer]] = []
        lengths: list[int] = []
        while block := [" " + sentence for sentence in islice(stream, _BLOCK)]:
            encoded = tokenizer.encode_many(block)
            lengths += [len(ids) for ids in encoded]
            parts.append(np.concatenate(encoded).astype(kind))
        if not parts:
            raise UserError("the texts to hide needles in hold no words.")
        return cls(np.concatenate(parts), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

    @classmethod
    def from_paths(cls, tokenizer: Tokenizer, *paths: str) -> SentenceBank:
        """Tokenise files, folders or patterns, as `data.text.find_sources` takes them."""
        sources = find_sources(paths)
        return cls.from_texts(tokenizer, map(read_text, sources))

    def save(self, path: Path) -> None:
        """Write to an `.npz` file, so that the next run need not tokenise again."""
        np.savez(path, ids=self.ids, starts=self.starts)

    @classmethod
    def load(cls, path: Path) -> SentenceBank:
        """Read what `save` wrote; the caller makes sure that it was made with the same tokenizer."""
        with np.load(path) as arrays:
            return cls(arrays["ids"], arrays["starts"])

    def window(self, rng: random.Random, tokens: int) -> Ids:
        """Return a stretch of plain text, from a random place on: int32 `[tokens]`."""
        start = rng.randrange(len(self.ids))
        return np.take(self.ids, range(start, start + tokens), mode="wrap").astype(np.int32)

    def units(self, rng: random.Random) -> Iterator[Ids]:
        """Yield neighbouring sentences from a random one on, without end."""
        index = rng.randrange(len(self.starts) - 1)
        while True:
            yield self.ids[self.starts[index] : self.starts[index + 1]].astype(np.int32)
            index = (index + 1) % (len(self.starts) - 1)


@dataclass(frozen=True)
class RowSpec:
    """What one row holds.

    Attributes:
        haystack: What stands between the needles: RULER's noise, or sentences of the bank.
        needles: How many are hidden; None for as many as fill three quarters of what the questions leave ("dense").
        questions: How many times one of them, drawn anew each time, is asked for. (Asking for each once would let the
            later answers be told by exclusion.)
        kind: Kind of the values.
        digits: Digits of a number.
        similar: Probability that a needle's key shares a word with another's; see `make_needles`.
        split: Which words keys are made of.
        introduce: Whether the row begins with RULER's intro.
        keys: What the keys are.
        short: Leave the first of RULER's two sentences out of each question.
    """

    haystack: Literal["noise", "text"] = "text"
    needles: int | None = 4
    questions: int = 4
    kind: Kind = "numbers"
    digits: int = 7
    similar: float = 0.0
    split: Split = "train"
    introduce: bool = True
    keys: KeyForm = "pair"
    short: bool = False


class NeedleRow(NamedTuple):
    """A row.

    Attributes:
        ids: int32 `[T]`, the tokens.
        answers: int32 `[T]`: 1, 2, ... on the tokens of the first, second, ... answer (from the space before the value
            to the `eos` after its full stop), 0 elsewhere. It speaks of tokens, not of predictions: shift both by one.
        needles: int32 `[T]`: i + 1 on the tokens of the needle that is number i of `hidden`, 0 elsewhere.
        hidden: The needles.
        asked: Indices into `hidden`, in the order of the questions.
        keys: int32 `[T]`, 1 on the tokens of a key where a question repeats it: they can be told from what was just
            read.
    """

    ids: Ids
    answers: Ids
    keys: Ids
    needles: Ids
    hidden: tuple[Needle, ...]
    asked: tuple[int, ...]


class RowMaker:
    """Makes rows; holds what can be tokenised once."""

    def __init__(self, tokenizer: Tokenizer, bank: SentenceBank | None = None) -> None:
        """Prepare.

        Args:
            tokenizer: Makes the ids.
            bank: Sentences for the haystack "text"; without it only "noise" works.
        """
        self.tokenizer = tokenizer
        self.bank = bank
        self._noise = tokenizer.encode_array("\n" + NOISE_LINE)
        self._eos = np.array([tokenizer.eos], np.int32)
        self._digits = np.array([tokenizer.encode(str(digit))[-1] for digit in range(10)])
        self._words: dict[str, list[int]] = {}
        self._short: dict[Split, list[str]] = {}

    def row(self, rng: random.Random, tokens: int, spec: RowSpec) -> NeedleRow:
        """Make a row of exactly `tokens` tokens.

        Where not everything fits, questions are left out first (down to one), then needles.

        Args:
            rng: All randomness; equal generators give equal rows.
            tokens: T, at least room for one needle and one question: about 110 with the shipped BPE.
            spec: What it holds.

        Raises:
            UserError: One needle and one question do not fit, or text is asked for without a bank.

        Cost: about 1 ms for 2,048 tokens with 8 needles and 4 questions.
        """
        head = self.tokenizer.encode_array(intro(spec.kind)) if spec.introduce else np.empty(0, np.int32)
        contents = self._contents(rng, tokens - len(head), spec)
        fixed = [head, *contents.needle_ids, *(part for ask, _, answer in contents.tails for part in (ask, answer))]
        room = tokens - sum(map(len, fixed))
        ids = [head]
        needles = [np.zeros(len(head), np.int32)]
        for number, part in self._weave(rng, contents, room, spec):
            ids.append(part)
            needles.append(np.full(len(part), number, np.int32))
        answers = [np.zeros(sum(map(len, ids)), np.int32)]
        keys = [answers[0]]
        for number, (ask, key, answer) in enumerate(contents.tails, start=1):
            ids += [ask, answer]
            answers += [np.zeros(len(ask), np.int32), np.full(len(answer), number, np.int32)]
            keys += [key, np.zeros(len(answer), np.int32)]
        needles.append(np.zeros(tokens - sum(map(len, needles)), np.int32))
        return NeedleRow(
            np.concatenate(ids),
            np.concatenate(answers),
            np.concatenate(keys),
            np.concatenate(needles),
            tuple(contents.hidden),
            tuple(contents.asked),
        )

    def hints(self, row: NeedleRow) -> NDArray[np.int32]:
        """The tokens of the key that each digit of a number belongs to: int32 `[T, 8]`, -1 for none.

        It speaks of tokens: what should be known when a token, in a needle or in an answer, is predicted.
        """
        hints = np.full((len(row.ids), 8), -1, np.int32)
        digit = np.isin(row.ids, self._digits)
        for number, needle in enumerate(row.hidden, start=1):
            asked = [place for place, index in enumerate(row.asked, start=1) if index == number - 1]
            key = self._encode(" " + needle.key)[:8]
            hints[np.flatnonzero(digit & ((row.needles == number) | np.isin(row.answers, asked))), : len(key)] = key
        return hints

    def _contents(self, rng: random.Random, room: int, spec: RowSpec) -> _Contents:
        """Draw needles, depths and questions that fit into `room` tokens."""
        # A needle is about as long as a line of noise, so no more than this fill three quarters of the room.
        count = spec.needles if spec.needles is not None else 1 + room // len(self._noise)
        drawn = self._draw(rng, count, spec)
        needle_ids = [self._encode(_separator(spec) + needle.sentence) for needle in drawn]
        opening = self._encode(_lead(spec) + drawn[0].sentence)
        tails = [self._tail(needle, spec) for needle in drawn]
        tail_tokens = [len(ask) + len(answer) for ask, _, answer in tails]
        ends = np.cumsum([len(ids) for ids in needle_ids]) + max(0, len(opening) - len(needle_ids[0]))
        kept = int(np.searchsorted(ends, room - max(tail_tokens), side="right"))
        if kept == 0:
            raise UserError(f"a needle and its question need {ends[0] + max(tail_tokens)} tokens, {room} are left.")
        if spec.needles is None:
            dense = 0.75 * max(room - spec.questions * max(tail_tokens), room / 2)
            kept = max(1, min(kept, int(np.searchsorted(ends, dense, side="right"))))
        depths = sorted(rng.choices(DEPTHS, k=kept))
        if depths[0] == 0:
            needle_ids[0] = opening
        asked = rng.choices(range(kept), k=spec.questions)
        fitting = np.cumsum([tail_tokens[index] for index in asked]) <= room - ends[kept - 1]
        asked = asked[: int(fitting.sum())]
        return _Contents(drawn[:kept], depths, needle_ids[:kept], asked, [tails[index] for index in asked])

    def _draw(self, rng: random.Random, count: int, spec: RowSpec) -> list[Needle]:
        drawn = make_needles(rng, count, spec.kind, split=spec.split, digits=spec.digits, similar=spec.similar)
        if spec.keys == "pair":
            return drawn
        if spec.split not in self._short:
            self._short[spec.split] = [w for w in nouns(spec.split) if len(self.tokenizer.encode(" " + w)) == 1]
        words = rng.sample(self._short[spec.split], count)
        return [needle._replace(key=word) for needle, word in zip(drawn, words, strict=True)]

    def _tail(self, needle: Needle, spec: RowSpec) -> tuple[Ids, Ids, Ids]:
        """The question, 1 where it repeats the key, and the answer."""
        text = question(needle)
        if spec.short:
            text = text.rpartition("? ")[2]
        ask = self._encode("\n" + text)
        key = np.zeros(len(ask), np.int32)
        if not spec.short:
            end = len(self._encode("\n" + text.rpartition(needle.key)[0] + needle.key))
            key[end - len(self._encode(" " + needle.key)) : end] = 1
        return ask, key, np.append(self._encode(f" {needle.value}."), self._eos)

    def _encode(self, text: str) -> Ids:
        """Encode a needle, a question or an answer: the same words over and over, so from what is remembered of them.

        Exact, as no token reaches over the borders between words, digits and hyphens.
        """
        ids: list[int] = []
        for word in _WORD.findall(text):
            if word not in self._words:
                self._words[word] = self.tokenizer.encode(word)
            ids += self._words[word]
        return np.array(ids, np.int32)

    def _weave(self, rng: random.Random, contents: _Contents, room: int, spec: RowSpec) -> Iterator[tuple[int, Ids]]:
        """Yield needles (numbered from 1) and stretches of haystack (number 0), these of `room` tokens in all."""
        due = [depth * room / 100 for depth in contents.depths]
        used, hidden = 0, 0
        for unit in self._units(rng, spec, first=contents.depths[0] > 0):
            while hidden < len(due) and used >= due[hidden]:
                hidden += 1
                yield hidden, contents.needle_ids[hidden - 1]
            if used == room:
                return
            yield 0, unit[: room - used]
            used += len(unit[: room - used])

    def _units(self, rng: random.Random, spec: RowSpec, *, first: bool) -> Iterator[Ids]:
        """Yield sentences of haystack without end; `first` if they begin the document."""
        if spec.haystack == "noise":
            units: Iterator[Ids] = repeat(self._noise)
        elif self.bank is None:
            raise UserError('rows with the haystack "text" need texts: give a bank, or use "noise".')
        else:
            units = self.bank.units(rng)
        if first:
            text = self.tokenizer.decode(next(units)).strip()
            yield self.tokenizer.encode_array(_lead(spec) + text)
        yield from units


class _Contents(NamedTuple):
    hidden: list[Needle]
    depths: list[int]
    needle_ids: list[Ids]
    asked: list[int]
    tails: list[tuple[Ids, Ids, Ids]]


def _separator(spec: RowSpec) -> str:
    return "\n" if spec.haystack == "noise" else " "


def _lead(spec: RowSpec) -> str:
    return "\n" if spec.introduce else ""


@dataclass(frozen=True)
class RowMix:
    """Chances of the kinds of rows; a chance of 0 leaves a kind out.

    Attributes:
        noise: Chance of a row in noise, relative to the others.
        text: Chance of a row in sentences of the bank.
        dense: Chance of a row that is mostly needles, between lines of noise or sentences as the two above.
        max_needles: Rows that are not dense hide `min_needles` to this many needles, each number as likely.
        questions: Questions in a row, where it has as many needles.
        kinds: Kinds of values, each as likely.
        digits: Digits of a number.
        similar: Probability that a needle's key shares a word with another's.
        introduce: Probability that a row begins with RULER's intro.
        split: Which words keys are made of.
        tokens: Probability that a row's keys are single tokens.
        short: Probability that a row's questions are short ones.
        min_needles: See `max_needles`.
    """

    noise: float = 1.0
    text: float = 1.0
    dense: float = 1.0
    max_needles: int = 8
    questions: int = 4
    kinds: tuple[Kind, ...] = ("numbers",)
    digits: int = 7
    similar: float = 0.0
    introduce: float = 1.0
    split: Split = "train"
    tokens: float = 0.0
    short: float = 0.0
    min_needles: int = 1

    def draw(self, rng: random.Random) -> RowSpec:
        """Draw what the next row holds."""
        haystacks: tuple[Literal["noise", "text"], ...] = ("noise", "text")
        dense = rng.random() * (self.noise + self.text + self.dense) < self.dense
        chances = (self.noise, self.text) if self.noise + self.text else (1.0, 0.0)
        return RowSpec(
            haystack=rng.choices(haystacks, chances)[0],
            needles=None if dense else rng.randint(self.min_needles, self.max_needles),
            questions=self.questions,
            kind=rng.choice(self.kinds),
            digits=self.digits,
            similar=self.similar,
            introduce=rng.random() < self.introduce,
            split=self.split,
            keys="token" if rng.random() < self.tokens else "pair",
            short=rng.random() < self.short,
        )
