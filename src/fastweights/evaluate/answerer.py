"""What is measured on text tasks: something that reads texts and answers a question about each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from fastweights.data.tokenizer import Tokenizer
from fastweights.errors import UserError
from fastweights.inference.session import Progress, Session, on_own_line
from fastweights.models.language_model import LanguageModel

_PIECE = 1024


class ReadingProgress(NamedTuple):
    """How the reading of some contexts goes.

    Attributes:
        tokens: Read so far, all contexts together.
        seconds: Since the reading began.
    """

    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Mean speed."""
        return self.tokens / self.seconds if self.seconds else 0.0


class Answered(NamedTuple):
    """What became of one question.

    Attributes:
        text: The answer.
        tokens: Of the context that was read for it.
    """

    text: str
    tokens: int


class Answerer(ABC):
    """Reads contexts and answers a question about each, greedily and free-running.

    Attributes:
        name: What to call it; what opens it again, if anything does.
        tokenizer: Counts tokens, as they are those of its own.
        device: Where it computes, as torch writes it.
        longest: Most tokens of context, question and answer together; None where any number can be read.
        versions: Of the packages it computes with, beside this one and torch.
    """

    name: str
    tokenizer: Tokenizer
    device: str
    longest: int | None = None
    versions: Mapping[str, str] = {}

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of what makes it answer as it does, in hexadecimal digits."""

    def length(self, context: Iterable[str], question: str) -> int:
        """Tokens of a context, in passages, and of the question behind it."""
        return sum(len(ids) for ids in self.tokenizer.encode_stream(chain(context, [on_own_line(question)])))

    def require_room(self, context: Iterable[str], question: str, max_tokens: int) -> None:
        """Refuse what cannot be read. Costs nothing where any number of tokens can be.

        Raises:
            UserError: Context, question and an answer of so many tokens are longer than `longest`.
        """
        if self.longest is None:
            return
        needed = self.length(context, question) + max_tokens
        if needed > self.longest:
            raise UserError(
                f"'{self.name}' reads at most {self.longest:,} tokens, and a sample has {needed:,} with its answer: "
                "ask for a shorter length"
            )

    @abstractmethod
    def answer(
        self,
        contexts: Sequence[Iterable[str]],
        questions: Sequence[str],
        max_tokens: int,
        on_read: Callable[[ReadingProgress], None] | None = None,
    ) -> Iterator[Answered]:
        """Read each context into an empty memory and continue its question.

        Args:
            contexts: Each in passages, which are joined without anything between them.
            questions: One for each; stands on a line of its own: it is put behind a line end unless it begins with one.
            max_tokens: Limit on the tokens of an answer.
            on_read: Called as it goes.

        Yields:
            The answers in order, each as soon as it is known.

        Raises:
            UserError: Not one question for each context, an empty one, or a limit below 1; and, before anything is
                read, more tokens than `longest`.
        """


class ModelAnswerer(Answerer):
    """A model of this library; the contexts are read side by side.

    Args:
        model: Reads and answers; put into evaluation mode.
        tokenizer: The one it was trained with.
        name: What to call it.
    """

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, name: str) -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.device = str(next(model.parameters()).device)

    @property
    def fingerprint(self) -> str:
        return self.model.fingerprint()

    def answer(
        self,
        contexts: Sequence[Iterable[str]],
        questions: Sequence[str],
        max_tokens: int,
        on_read: Callable[[ReadingProgress], None] | None = None,
    ) -> Iterator[Answered]:
        def report(progress: Progress) -> None:
            if on_read is not None:
                on_read(ReadingProgress(progress.tokens, progress.seconds))

        session = Session(self.model, self.tokenizer, rows=len(contexts), piece=_PIECE)
        session.read_rows(contexts, on_progress=report)
        answers = session.ask_each(questions, max_tokens=max_tokens)
        for answer, tokens in zip(answers, session.tokens, strict=True):
            yield Answered(answer.text, tokens)
