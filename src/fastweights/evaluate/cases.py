"""Cases of one's own: a context, a question and its answers per line, with results that survive any interruption."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from fastweights.data.text import Source, find_sources, read_text
from fastweights.data.tokenizer import Tokenizer
from fastweights.errors import UserError
from fastweights.evaluate.ledger import Ledger, Result
from fastweights.inference.session import Progress, Session
from fastweights.models.language_model import LanguageModel
from fastweights.tasks.needle import match_all

_FIELDS = ("context", "context_files", "question", "answer")


class Case(NamedTuple):
    """One line of a file of cases.

    Attributes:
        line: Its number, from 1.
        key: SHA-256 of the line, size and date of its files (and how many equal cases stood before it), by which its
            result is known.
        context: Text to read, or None where files are named.
        files: Files to read, one after the other.
        question: What to ask.
        answers: Any of them is right.
    """

    line: int
    key: str
    context: str | None
    files: tuple[Source, ...]
    question: str
    answers: tuple[str, ...]


class Step(NamedTuple):
    """How an evaluation goes.

    Attributes:
        done: Cases with a result.
        cases: Cases in all.
        right: Right answers among those done.
        reading: How the reading of the present context goes, or None between contexts.
    """

    done: int
    cases: int
    right: int
    reading: Progress | None


def read_cases(path: Path) -> Iterator[Case]:
    """Yield the cases of a JSON-lines file; one line is in memory at a time, blank lines and other fields are ignored.

    Files named in a case are looked for from the current folder, then from the folder of the file of cases.

    Raises:
        UserError: The file cannot be read, holds no case, or has a bad line; the sentence names the line.
    """
    seen: Counter[str] = Counter()
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    case = _case(line, number, path)
                    digest = _digest(line, case.files)
                    seen[digest] += 1
                    yield case._replace(key=digest if seen[digest] == 1 else f"{digest} again {seen[digest]}")
    except OSError as error:
        raise UserError(f"cannot read the cases '{path}': {(error.strerror or str(error)).lower()}") from error
    if not seen:
        raise UserError(f"'{path}' holds no cases: each line is a JSON object with {', '.join(_FIELDS)}")


def _digest(line: bytes, sources: Sequence[Source]) -> str:
    """What a case is known by: its line, and size and date of the files that it names."""
    stamps = [source.path.stat() for source in sources if source.path is not None]
    dated = "".join(f" {stamp.st_size} {stamp.st_mtime_ns}" for stamp in stamps)
    return hashlib.sha256(line.strip()).hexdigest() + dated


def _case(line: bytes, number: int, path: Path) -> Case:
    def refuse(reason: str) -> UserError:
        return UserError(f"line {number} of '{path}' is not a case: {reason}")

    try:
        data = json.loads(line)
    except ValueError as error:
        raise refuse(f"it is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise refuse("it is not a JSON object")
    if ("context" in data) == ("context_files" in data):
        raise refuse("it needs one of context and context_files")
    context, files = data.get("context"), _texts_in(data.get("context_files"))
    if "context" in data and not (isinstance(context, str) and context.strip()):
        raise refuse("its context is not a text")
    if "context_files" in data and not files:
        raise refuse("its context_files is not a list of paths")
    answers = _texts_in([data["answer"]] if isinstance(data.get("answer"), str) else data.get("answer"))
    if not answers:
        raise refuse("its answer is not a text or a list of texts")
    if not (isinstance(data.get("question"), str) and data["question"].strip()):
        raise refuse("its question is not a text")
    try:
        sources = find_sources([_located(name, path) for name in files]) if files else []
    except UserError as error:
        raise refuse(str(error)) from error
    if any(source.size is None for source in sources):
        raise refuse("its context_files must be files that can be read more than once")
    answers = tuple(answer.strip() for answer in answers)
    return Case(number, "", context, tuple(sources), data["question"], answers)


def _texts_in(value: Any) -> tuple[str, ...]:
    """The texts of a list of texts, none of them blank; nothing for anything else."""
    good = isinstance(value, list) and all(isinstance(item, str) and item.strip() for item in value)
    return tuple(value) if good else ()


def _located(name: str, path: Path) -> str:
    beside = path.parent / name
    return str(beside) if not Path(name).exists() and beside.exists() else name


def evaluate_cases(
    model: LanguageModel,
    tokenizer: Tokenizer,
    model_name: str,
    path: Path,
    output: Path,
    *,
    max_tokens: int = 64,
    on_step: Callable[[Step], None] | None = None,
) -> dict[str, Any]:
    """Ask every case and write the results; those that are in `output` already are kept.

    A context is streamed into an empty memory, its files on lines of their own, and the question, on a line of its own
    too, is continued greedily. An answer is right when it contains one of the expected ones, in capitals or not.
    Neighbouring cases with the same context share one reading. The output is one JSON object, replaced atomically every
    few seconds and at any end, also by an interrupt.

    Args:
        model: Reads and answers.
        tokenizer: The one it was trained with.
        model_name: What to call it.
        path: The cases.
        output: The results.
        max_tokens: Limit on the tokens of an answer.
        on_step: Called as it goes.

    Returns:
        What is in `output` at the end.

    Raises:
        UserError: A bad line (all are checked before the first is asked), an `output` that is something else or belongs
            to another model or other cases, or one that cannot be written.
    """
    keys = [case.key for case in read_cases(path)]
    facts = {"model": model_name, "fingerprint": model.fingerprint(), "max_tokens": max_tokens}
    ledger = _Cases(output, facts, keys)

    def report(reading: Progress | None = None) -> None:
        if on_step is not None:
            on_step(Step(len(ledger.results), len(keys), ledger.right, reading))

    reader = _ContextReader(model, tokenizer, report)
    report()
    try:
        for case in read_cases(path):
            if case.key in ledger.results:
                continue
            session = reader.read(case)
            answer = session.ask(case.question, max_tokens=max_tokens)
            ledger.add(_result(case, answer.text.strip(), session.tokens[0]))
            report()
    finally:
        written = ledger.save()
    return written


class _ContextReader:
    """Reads contexts, and keeps the newest one for the case that follows."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, on_progress: Callable[[Progress], None]) -> None:
        self.model, self.tokenizer, self.on_progress = model, tokenizer, on_progress
        self._newest: tuple[object, Session] | None = None

    def read(self, case: Case) -> Session:
        """A session that has read the context of a case."""
        # Of an inline context only the hash is kept: it may be as long as a book.
        inline = (
            "" if case.context is None else hashlib.sha256(case.context.encode("utf-8", "surrogatepass")).hexdigest()
        )
        key = (inline, tuple(source.name for source in case.files))
        if self._newest is not None and self._newest[0] == key:
            return self._newest[1]
        session = Session(self.model, self.tokenizer)
        for name, text in _texts(case):
            session.read(text, name=name, on_progress=self.on_progress)
        self._newest = key, session
        return session


def _texts(case: Case) -> Iterator[tuple[str, Iterator[str]]]:
    if case.context is not None:
        yield "context", iter([case.context])
    for index, source in enumerate(case.files):
        pieces = read_text(source)
        yield source.name, chain(["\n"], pieces) if index else pieces


class _Cases(Ledger):
    """The results of the cases in a file."""

    what = "these cases"

    def __init__(self, path: Path, facts: dict[str, Any], keys: Sequence[str]) -> None:
        self.keys = keys
        super().__init__(path, facts)

    @property
    def right(self) -> int:
        """Right answers so far."""
        return sum(result["right"] for result in self.results.values())

    def taken_up(self, found: dict[str, Result], content: dict[str, Any]) -> dict[str, Result] | None:
        """Results of cases that are asked; there must be none of other cases, but of the same ones at another date."""
        del content
        known = {key: result for key, result in found.items() if isinstance(result["right"], bool)}
        lines, here = ({key.split()[0] for key in keys} for keys in (known, self.keys))
        if not lines <= here:
            return None
        return {key: result for key, result in known.items() if key in set(self.keys)}

    def in_order(self) -> Sequence[Result]:
        return [self.results[key] for key in self.keys if key in self.results]

    def summary(self, results: Sequence[Result]) -> dict[str, Any]:
        accuracy = round(self.right / len(results), 6) if results else None
        return {"cases": len(self.keys), "done": len(results), "right": self.right, "accuracy": accuracy}


def _result(case: Case, answer: str, tokens: int) -> Result:
    return {
        "line": case.line,
        "key": case.key,
        "question": case.question,
        "expected": list(case.answers),
        "answer": answer,
        "right": any(match_all(answer, [wanted]) == 1 for wanted in case.answers),
        "context_tokens": tokens,
    }
