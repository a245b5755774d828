"""Streams of labelled texts whose classes come in groups, as something to train on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from fastweights.data.intents import read_banking77, read_clinc150
from fastweights.data.tokenizer import Ids, Tokenizer, load_tokenizer
from fastweights.data.words import Split
from fastweights.errors import UserError
from fastweights.tasks.class_incremental import ClassesSpec, Group, Line, label_words, make_stream
from fastweights.train.task import Batch, Task


@dataclass(frozen=True, kw_only=True)
class ClassIncrementalTask(Task):
    """Rows of `fastweights.tasks.class_incremental`: groups of labelled texts, then texts to be labelled.

    A row reads 1 to ``stream.groups`` groups, each number as likely, and asks about all of them, in random order and as
    often as fits. Where it is too short for all examples every class has fewer, and then there are fewer groups. The
    answers of a batch are the classes of what is asked, without the line ends; `exact` is the share that is right.

    Two thirds of the classes are for training (`Intents.of`). A probe with ``split="eval"`` asks about the others,
    whose texts training never sees.

    Attributes:
        tokenizer: name or path of the tokenizer.
        clinc150: path of CLINC150's ``data_full.json``, of which the part for training is taken, or empty.
        banking77: path of Banking77's ``train.csv``, or empty. With both, classes of one name are one.
        split: which classes.
        stream: groups, classes, examples and questions.
        words: how many nouns classes may be called by, at least as many as there are classes in a row; fewer are
            learned sooner.
        longest: texts of more tokens are left out.
        lesson_weight: loss weight of the class of every example but the first of its class.
        text_weight: of the texts themselves, which teach what words go together.
    """

    tokenizer: str = "bpe4096"
    clinc150: str = ""
    banking77: str = ""
    split: Split = "train"
    stream: ClassesSpec = field(default_factory=ClassesSpec)
    words: int = 64
    longest: int = 32
    lesson_weight: float = 0.5
    text_weight: float = 0.05

    def __post_init__(self) -> None:
        if not self.clinc150 and not self.banking77:
            raise UserError("class-incremental rows need texts: name a file in task.clinc150 or task.banking77")
        classes = self.stream.groups * self.stream.classes
        if self.words < classes:
            raise UserError(f"{classes} classes of a row need as many nouns: task.words must not be {self.words}")

    def batch(self, seed: int, index: int, batch_size: int, length: int) -> Batch:
        writer = _writer(self.tokenizer, self.clinc150, self.banking77, self.split, self.longest)
        least = (self.stream.classes + 1) * writer.longest_line(self.words) - 1
        if length < least:
            raise UserError(
                f"rows of {length} tokens are too short to show {self.stream.classes} classes and ask for one: "
                f"they must have {least}"
            )
        rng = random.Random(f"{seed}/{index}")
        rows = [self._row(writer, rng, length + 1) for _ in range(batch_size)]
        ids, weights, answers = (np.stack(part) for part in zip(*rows, strict=True))
        return Batch.from_tokens(ids, weights, answers=answers)

    def _row(self, writer: _Writer, rng: random.Random, tokens: int) -> tuple[Ids, np.ndarray, Ids]:
        """Ids, weights and answers ``[tokens]``."""
        words = label_words(writer.tokenizer, self.words)
        stream = make_stream(rng, writer.texts, writer.texts, self.stream, words)[: rng.randint(1, self.stream.groups)]
        lines, groups = self._shown(writer, stream, tokens - writer.longest_line(self.words))
        asked = [line for group in groups for line in group.questions]
        rng.shuffle(asked)
        ids, weights, answers = np.zeros(tokens, np.int32), np.zeros(tokens), np.zeros(tokens, np.int32)
        place, seen = 0, set[str]()
        for number, line in enumerate(lines + asked, start=1 - len(lines)):
            text, word = writer.encode(line.asked), writer.encode(line.said)
            said, after = place + len(text), place + len(text) + len(word)
            if after > tokens:
                break
            ids[place:said], ids[said:after] = text, word
            weights[place:said] = self.text_weight
            weights[said:after] = 1.0 if number > 0 else self.lesson_weight * (line.word in seen)
            answers[said : after - 1] = max(0, number)
            seen.add(line.word)
            place = after
        return ids, weights, answers

    def _shown(self, writer: _Writer, stream: Sequence[Group], room: int) -> tuple[list[Line], Sequence[Group]]:
        """As many groups, and rounds of them all, as fit into ``room`` tokens."""
        for groups in range(len(stream), 0, -1):
            for rounds in range(self.stream.examples, 0, -1):
                lines = [line for group in stream[:groups] for line in group.lines[: rounds * self.stream.classes]]
                if sum(map(writer.size, lines)) <= room:
                    return lines, stream[:groups]
        raise AssertionError("a row has room for the longest lines of a group")


class _Writer:
    """Texts by class, and their tokens, each made once."""

    def __init__(self, tokenizer: Tokenizer, texts: dict[str, tuple[str, ...]], longest: int) -> None:
        self.tokenizer, self.longest = tokenizer, longest
        self._ids: dict[str, Ids] = {}
        self.texts = {
            label: tuple(text for text in found if len(tokenizer.encode_array(text)) <= longest)
            for label, found in texts.items()
        }

    def encode(self, text: str) -> Ids:
        if text not in self._ids:
            self._ids[text] = self.tokenizer.encode_array(text)
        return self._ids[text]

    def size(self, line: Line) -> int:
        return len(self.encode(line.asked)) + len(self.encode(line.said))

    def longest_line(self, words: int) -> int:
        """Tokens of the longest line, where classes are called by so many nouns."""
        return self.longest + max(self.size(Line("", word)) for word in label_words(self.tokenizer, words))


@lru_cache(maxsize=4)
def _writer(tokenizer_name: str, clinc150: str, banking77: str, split: Split, longest: int) -> _Writer:
    texts: dict[str, tuple[str, ...]] = {}
    for path, read in ((clinc150, read_clinc150), (banking77, read_banking77)):
        found = read(path).of(split).by_label() if path else {}
        texts |= {label: texts.get(label, ()) + found[label] for label in found}
    return _Writer(load_tokenizer(tokenizer_name), texts, longest)
