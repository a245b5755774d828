"""How answers to BABILong are scored: its own score, lm-eval's beside it, and what a constant answer reaches.

The first two differ a lot (qa5 in 64 thousand tokens: 55.0 against 69.0 % on published outputs of Phi-3-mini), so a
report needs both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fastweights.errors import UserError
from fastweights.tasks.babi import Question, Task, check_task
from fastweights.tasks.babi_world import GIVERS, OBJECTS, ROOMS

TASK_LABELS: dict[Task, tuple[str, ...]] = {
    "qa1": ROOMS,
    "qa2": ROOMS,
    "qa3": ROOMS,
    "qa4": ROOMS,
    "qa5": (*GIVERS, *OBJECTS),
    "qa6": ("no", "yes"),
    "qa7": ("none", "one", "three", "two"),
    "qa8": (*OBJECTS, "nothing"),
    "qa9": ("no", "yes"),
    "qa10": ("maybe", "no", "yes"),
}
"""Words that can be answers, as `compare_answers` takes them."""


def exact_match(target: str, output: str) -> bool:
    """Whether a fine-tuned model's text after `GEN` is the answer and nothing else."""
    return output.strip() == target.strip()


def compare_answers(target: str, output: str, question: str, task_labels: Iterable[str]) -> bool:
    """Whether an output names the target and no other answer, as BABILong scores it.

    Of the output counts what stands before the first full stop, `<context>` or `<example>`, in lower case. The labels
    in it, without those that the question names, must be the target, or for a list the set of its parts. A label
    counts wherever its letters stand: "none" holds "one", so that qa7's answer "none" is never right.

    The published code also cuts at "Question", which lower-cased text never holds.

    Args:
        target: The answer.
        output: What the model wrote.
        question: What was asked.
        task_labels: Of `TASK_LABELS`.
    """
    said = output.lower()
    for end in (".", "<context>", "<example>"):
        said = said.split(end)[0]
    labels = {label.lower() for label in task_labels}
    named = {label for label in labels if label in said and label not in question.lower()}
    target = target.lower()
    # The published length test tells a list of objects from one of directions, such as "n,e" of qa19.
    parts = target.split(",") if "," in target and len(target) > 3 else [target]
    return named.issuperset(parts) and len(named) == len(parts)


def contains_answer(target: str, output: str) -> bool:
    """Whether the output holds the target, whatever its case and whatever else it holds: lm-eval's score."""
    return target.lower() in output.lower()


class Scores(NamedTuple):
    """Shares of right outputs by both scores, 0.0 to 1.0.

    Attributes:
        labels: By `compare_answers`, BABILong's own.
        substring: By `contains_answer`.
    """

    labels: float
    substring: float


def score(task: Task, asked: Sequence[Question], outputs: Sequence[str]) -> Scores:
    """Score outputs to questions of a task.

    Raises:
        UserError: No such task, or nothing to score.
    """
    check_task(task)
    if not asked:
        raise UserError("there must be at least one question to score.")
    pairs = list(zip(asked, outputs, strict=True))
    labels = sum(compare_answers(question.answer, said, question.text, TASK_LABELS[task]) for question, said in pairs)
    substring = sum(contains_answer(question.answer, said) for question, said in pairs)
    return Scores(labels / len(pairs), substring / len(pairs))


def majority(asked: Sequence[Question]) -> tuple[str, float]:
    """Return the most frequent answer and its share: what always saying the same thing can reach."""
    answer, count = Counter(question.answer for question in asked).most_common(1)[0]
    return answer, count / len(asked)
