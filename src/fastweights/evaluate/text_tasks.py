"""Tasks whose samples are a text and a question about it: RULER's, and BABILong's by its prompts."""

from __future__ import annotations

import difflib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from typing import NamedTuple

from fastweights.data.text import Source, find_sources
from fastweights.data.tokenizer import Tokenizer
from fastweights.errors import UserError
from fastweights.tasks import babi, babilong, ruler
from fastweights.tasks.babilong_score import TASK_LABELS, compare_answers, contains_answer
from fastweights.tasks.needle import match_all

Scores = dict[str, float]
"""Shares of what is right, 0.0 to 1.0, by the name of the score; the task's own score comes first."""

_BABILONG = "babilong_"
_FEWEST_IN = 1000  # questions among which one must have few enough facts for the length


class Asked(NamedTuple):
    """One sample.

    Attributes:
        context: What is read before the question, in passages.
        question: What is continued, from a line end on.
        references: What is right.
        max_tokens: Limit on the tokens of the answer.
        score: What an answer is worth.
        depths: Where in the context the answer stands, in percent; empty where it has no single place.
    """

    context: Iterable[str]
    question: str
    references: tuple[str, ...]
    max_tokens: int
    score: Callable[[str], Scores]
    depths: tuple[float, ...] = ()


Maker = Callable[[int], Asked]
"""Makes sample number i, the same one whatever else is made."""


_RULER = {
    "niah_single_1": "a number hidden in noise",
    "niah_single_2": "a number hidden in prose",
    "niah_single_3": "a UUID hidden in prose",
    "niah_single_words": "two words hidden in prose (not in RULER's table)",
    "niah_multikey_1": "one of four numbers hidden in prose",
    "niah_multikey_2": "one of as many numbers as fit",
    "niah_multikey_3": "one of as many UUIDs as fit, by another UUID",
    "niah_multivalue": "four numbers with one key, hidden in prose",
    "niah_multiquery": "four numbers with four keys, hidden in prose",
    "vt": "variables that were assigned one value, by way of others",
    "cwe": "the ten most common words of a list",
    "fwe": "the three most frequent words of a coded text",
}
_BABI = {
    "qa1": "where a person is",
    "qa2": "where an object is",
    "qa3": "where an object was before",
    "qa4": "what lies in which direction",
    "qa5": "who gave what to whom",
    "qa6": "whether a person is in a place",
    "qa7": "how many objects a person carries",
    "qa8": "which objects a person carries",
    "qa9": "whether a person is in a place, with denials",
    "qa10": "whether a person is in a place, with doubts",
}
TASKS = {
    **{name: f"RULER: {asked}" for name, asked in _RULER.items()},
    **{alias: f"the papers' name of {name}" for alias, name in ruler.ALIASES.items()},
    **{f"{_BABILONG}{name}": f"BABILong: {asked}" for name, asked in _BABI.items()},
}
"""All tasks, and what is asked for: RULER's, their names in the papers of Titans, and BABILong's."""


def samples_of(task: str, tokenizer: Tokenizer, tokens: int, seed: int, paths: Sequence[str] = ()) -> Maker:
    """How the samples of a task are made.

    Args:
        task: Of `TASKS`.
        tokenizer: Counts the tokens.
        tokens: Most tokens of a sample: of prompt and answer for RULER's tasks, of the prompt for BABILong's.
        seed: Which set of samples.
        paths: Text that stands around what is asked for, as `find_sources` takes it; by default the shipped novels.

    Raises:
        UserError: No such task, a text that cannot be read; and when a sample is made, a length that is too short.
    """
    if task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(TASKS)}"
        raise UserError(f"there is no task {task!r}; {hint}")
    if task.startswith(_BABILONG):
        return _babilong(babi.TASKS[babi.TASKS.index(task.removeprefix(_BABILONG))], tokenizer, tokens, seed, paths)
    return partial(_ruler, task, tokenizer, tokens, seed, find_sources(paths) if paths else ())


def _ruler(task: str, tokenizer: Tokenizer, tokens: int, seed: int, sources: Sequence[Source], index: int) -> Asked:
    sample = ruler.make_sample(task, tokenizer, tokens, index, seed=seed, sources=sources)

    def score(answer: str) -> Scores:
        return {"string_match_all": match_all(answer, sample.references)}

    prompt = sample.question + sample.answer_prefix
    return Asked(sample.context, prompt, sample.references, sample.max_new_tokens, score, sample.depths)


def _babilong(task: babi.Task, tokenizer: Tokenizer, tokens: int, seed: int, paths: Sequence[str]) -> Maker:
    measure = babilong.measured_by(tokenizer)

    def fitting() -> Iterator[tuple[babi.Question, int]]:
        """Questions with few enough facts, and the tokens that are left to their contexts."""
        waited = 0
        for question in chain.from_iterable(map(babi.questions, babi.make_stories(seed, task))):
            room = babilong.context_tokens(task, question.text, tokens, measure)
            waited = 0 if babilong.fits(question, room) else waited + 1
            if waited == 0:
                yield question, room
            elif waited == _FEWEST_IN:
                raise UserError(f"the facts of {task} do not fit into {tokens} tokens: ask for a longer text")

    drawn: list[tuple[babi.Question, int]] = []
    more = fitting()

    def make(index: int) -> Asked:
        drawn.extend(islice(more, max(0, index + 1 - len(drawn))))
        question, room = drawn[index]
        before, after = babilong.prompt(task, question.text)
        place = babilong.background(f"{seed} {index} background", paths)
        document = babilong.hide_facts(random.Random(f"{seed} {index}"), question.facts, place, room, measure)

        def score(answer: str) -> Scores:
            own = compare_answers(question.answer, answer, question.text, TASK_LABELS[task])
            return {"compare_answers": float(own), "substring": float(contains_answer(question.answer, answer))}

        context = chain([before], (passage.text for passage in document.passages()))
        return Asked(context, after, (question.answer,), babilong.ANSWER_TOKENS, score)

    return make
