"""A session: a model, a memory, and what one does with them: read, ask, generate, fork, save."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fastweights.data.tokenizer import Tokenizer
from fastweights.errors import UserError
from fastweights.inference import binding
from fastweights.inference.feed import Digest, Feed, Ids, Text
from fastweights.inference.generation import Answer, Choose, continue_rows
from fastweights.inference.header import Health, MemoryHeader, Passage, Source
from fastweights.inference.memory_file import load_memory, save_memory
from fastweights.inference.sampling import Sampling
from fastweights.inference.snapshot import Snapshot, blank, health, total_norm, written
from fastweights.inference.surprise import SurpriseCurve
from fastweights.models.language_model import LanguageModel

PIECE = 1024
"""Tokens read at a time, by default."""


@dataclass(frozen=True)
class Progress:
    """How reading goes, after each piece.

    Attributes:
        tokens: Read so far by this call, all rows together.
        seconds: Since this call began.
        surprise: Mean surprise of the newest piece.
        norm: Frobenius norm of all fast weights, the mean over rows.
    """

    tokens: int
    seconds: float
    surprise: float
    norm: float

    @property
    def tokens_per_second(self) -> float:
        """Mean speed of this call."""
        return self.tokens / self.seconds if self.seconds else 0.0


class Session:
    """A memory that reads, and answers from what it has read.

    Reading is exact whatever happens in between: a row is written in pieces whose borders are the multiples of `piece`
    in its own count of tokens. Tokens that do not fill a piece wait; questions see them all the same, on a fork. So a
    session that was saved anywhere and loaded again arrives at the same bits as one that read on without a break (on
    the same machine, with the same number of threads); and asking, saving or forking changes nothing.

    The memory used does not depend on how much is read.

    Args:
        model: Reads and answers; put into evaluation mode. Its parameters must not change while the session lives.
        tokenizer: The one that the model was trained with.
        rows: Streams that are read side by side, each with its own memory.
        piece: Tokens read at a time. Part of the memory: rounding differs with it.
        model_name: What to call the model in memory files.

    Raises:
        UserError: No rows, no tokens in a piece, or a tokenizer that does not fit the model.

    Example:
        session = Session(model, tokenizer)
        session.read(open("book.txt"))
        print(session.ask("Who killed the cook?").text)
        session.save("book.memory")
    """

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, rows: int = 1, piece: int = PIECE, model_name: str = "unnamed"
    ) -> None:
        if rows < 1 or piece < 1:
            raise UserError(f"a session needs at least one row and one token a piece, not {rows} and {piece}")
        if tokenizer.vocab_size > model.config.vocab_size:
            raise UserError(
                f"the tokenizer '{tokenizer.name}' has {tokenizer.vocab_size:,} entries where the model has "
                f"{model.config.vocab_size:,}: use the tokenizer that the model was trained with"
            )
        self.model, self.tokenizer, self.rows, self.piece, self.model_name = model, tokenizer, rows, piece, model_name
        model.eval()
        self._now = blank(model, rows)
        self._settled: tuple[Snapshot, Snapshot] | None = None

    # -- what it knows

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens read, per row."""
        return self._now.tokens

    @property
    def sources(self) -> tuple[Source, ...]:
        """What has been read, in order."""
        return self._now.sources

    @property
    def unfinished(self) -> Source | None:
        """The source that was not read to its end, if the last one was not; in a session of one row."""
        last = self._now.sources[-1:]
        return last[0] if self.rows == 1 and last and not last[0].complete else None

    def state_bytes(self) -> int:
        """Size of the model's state; the same after any number of tokens."""
        return self._now.state_bytes()

    def health(self) -> Health:
        """Norms, non-finite numbers, rejected tokens and quantiles of the surprise."""
        return health(self._settle())

    def passages(self) -> tuple[Passage, ...]:
        """The most surprising passages, row by row, most surprising first."""
        return binding.passages(self._settle(), self.tokenizer)

    def curve(self, row: int = 0) -> SurpriseCurve:
        """Surprise along a row, in at most 512 points."""
        return self._settle().log.curve(row)

    # -- reading

    def read(
        self,
        text: Text,
        *,
        name: str = "text",
        digest: Digest | None = None,
        resume: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> int:
        """Read a text or a stream of pieces of text into the memory of a session of one row.

        A stop or an exception in the middle (Ctrl-C too) leaves the session as it was after the last whole step.

        Args:
            text: The text, or its pieces in order, cut anywhere; any length.
            name: What to call it in the list of sources.
            digest: Where the text was decoded from something else: what to record as its SHA-256 and size.
            resume: Go on with the last source, which was not read to its end: `text` is that source from its beginning.
            on_progress: Called after each piece.
            should_stop: Asked before each piece; True ends the reading, and the source stays open.

        Returns:
            The number of tokens read by this call.

        Raises:
            UserError: More than one row; nothing to read; nothing to resume, or the text is not the one read before.
        """
        self._require_one_row("read_rows")
        unfinished = self.unfinished
        if resume and unfinished is None:
            raise UserError("there is nothing to resume: every source was read to its end")
        feed = Feed(self.tokenizer, text, name, 0, digest)
        before = self._now.sources
        if resume and unfinished is not None:
            feed.skip(unfinished)
            before = before[:-1]
        tokens = self._read([feed], before, on_progress, should_stop)
        if feed.complete and not feed.tokens:
            raise UserError(f"there is nothing to read in '{name}': it is empty")
        return tokens

    def read_rows(
        self,
        texts: Sequence[Text],
        *,
        names: Sequence[str] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> int:
        """Read one text per row, side by side; rows may differ in length, and a row's text may be empty.

        Args:
            texts: One for each row, as in `read`.
            names: What to call them.
            on_progress: Called after each piece.
            should_stop: Asked before each piece; True ends the reading.

        Returns:
            The number of tokens read by this call, all rows together.

        Raises:
            UserError: Not one text and name for each row.
        """
        names = [f"text {row}" for row in range(self.rows)] if names is None else names
        if isinstance(texts, str) or len(texts) != self.rows or len(names) != self.rows:
            raise UserError(f"this session has {self.rows} rows: give one text (and name) for each")
        feeds = [Feed(self.tokenizer, text, names[row], row) for row, text in enumerate(texts)]
        return self._read(feeds, self._now.sources, on_progress, should_stop)

    def _read(
        self,
        feeds: Sequence[Feed],
        before: tuple[Source, ...],
        on_progress: Callable[[Progress], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> int:
        """Read `feeds`, one per row, to their ends; `before` are the sources that stay as they are."""
        began, already, surprise = time.monotonic(), sum(feed.tokens for feed in feeds), 0.0
        while not all(feed.complete for feed in feeds):
            if should_stop is not None and should_stop():
                break
            now = self._now
            held = [
                np.concatenate([waiting, feed.take(self.piece - len(waiting))])
                for waiting, feed in zip(now.waiting, feeds, strict=True)
            ]
            full = [ids if len(ids) == self.piece else ids[:0] for ids in held]
            if any(map(len, full)):
                now, surprise = written(self.model, now, full)
            waiting = tuple(ids[len(done) :] for ids, done in zip(held, full, strict=True))
            sources = tuple(feed.source() for feed in feeds if feed.tokens)
            # One assignment: an interrupt finds the session before this step or after it.
            self._now = replace(now, waiting=waiting, sources=(*before, *sources))
            tokens = sum(feed.tokens for feed in feeds) - already
            if on_progress is not None:
                on_progress(Progress(tokens, time.monotonic() - began, surprise, total_norm(now.state)))
        return sum(feed.tokens for feed in feeds) - already

    def _settle(self) -> Snapshot:
        """What the session would know if the waiting tokens were written too."""
        now = self._now
        if not any(map(len, now.waiting)):
            return now
        if self._settled is None or self._settled[0] is not now:
            self._settled = now, written(self.model, now, now.waiting)[0]
        return self._settled[1]

    # -- asking

    def ask(self, question: str, *, max_tokens: int = 32, stop: Sequence[str] = (), learn: bool = False) -> Answer:
        """Continue a question greedily, free-running, from what a session of one row has read.

        The question and the answer are read by a fork, so the memory stays as it is. Greedy means that each token is
        the likeliest one; nothing of a true answer is ever shown to the model.

        Args:
            question: The question, of any length, with whatever beginning of an answer the model expects at its end.
                It is asked on a line of its own: a line break is put in front of it unless it begins with one.
            max_tokens: Limit on the tokens of the answer.
            stop: Strings that end the answer and are cut off.
            learn: Read the question and the answer into the memory afterwards, as if they stood in the text.

        Raises:
            UserError: An empty question, or more than one row.
        """
        self._require_one_row("ask_each")
        return self.ask_each([question], max_tokens=max_tokens, stop=stop, learn=learn)[0]

    def ask_each(
        self, questions: Sequence[str], *, max_tokens: int = 32, stop: Sequence[str] = (), learn: bool = False
    ) -> list[Answer]:
        """Ask one question of each row, all at once; else as `ask`.

        Args:
            questions: One for each row. For many questions about one row, ask a fork: `session.fork([0] * n)`.
            max_tokens: Limit on the tokens of an answer.
            stop: Strings that end an answer and are cut off.
            learn: Read each question and answer into its row afterwards.

        Raises:
            UserError: An empty question, or not one for each row.
        """
        if isinstance(questions, str) or len(questions) != self.rows:
            raise UserError(f"this session has {self.rows} rows: ask one question of each")
        if not all(questions):
            raise UserError("the question is empty: ask something")
        questions = [on_own_line(text) for text in questions]
        prompts = [self.tokenizer.encode_array(text) for text in questions]
        answers = self._continue(prompts, Sampling().choose, max_tokens, stop)
        if learn:
            said = [text + self.tokenizer.decode(answer.ids) for text, answer in zip(questions, answers, strict=True)]
            feeds = [Feed(self.tokenizer, text, "question and answer", row) for row, text in enumerate(said)]
            self._read(feeds, self._now.sources, None, None)
        return answers

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = 200,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Answer:
        """Continue a prompt by chance, from what has been read; the memory stays as it is.

        Args:
            prompt: What to continue.
            max_tokens: Limit on the tokens.
            temperature: See `Sampling`.
            top_p: See `Sampling`.
            seed: The same seed gives the same text.
            stop: Strings that end the text and are cut off.

        Raises:
            UserError: An empty prompt, more than one row, or a value outside its range.
        """
        self._require_one_row("a fork of one row, as in fork([0]),")
        if not 0 <= seed < 2**63:
            raise UserError(f"the seed must lie in [0, 2**63), not {seed}")
        sampling, generator = Sampling(temperature, top_p), torch.Generator().manual_seed(seed)
        ids = self.tokenizer.encode_array(prompt)
        if not len(ids):
            raise UserError("the prompt is empty: give the text to continue")
        return self._continue([ids], lambda logits: sampling.choose(logits, generator), max_tokens, stop)[0]

    def _continue(self, prompts: list[Ids], choose: Choose, max_tokens: int, stop: Sequence[str]) -> list[Answer]:
        if max_tokens < 1:
            raise UserError(f"the limit on tokens must be at least 1, not {max_tokens}")
        if isinstance(stop, str) or not all(stop):
            raise UserError("stop strings are given as a list of texts, none of them empty")
        with torch.no_grad():
            return continue_rows(
                self.model, self.tokenizer, self._settle().state, prompts, choose,
                max_tokens=max_tokens, stop=stop, piece=self.piece,
            )  # fmt: skip

    def _require_one_row(self, instead: str) -> None:
        if self.rows != 1:
            raise UserError(f"this session has {self.rows} rows: use {instead} instead")

    # -- forks and snapshots

    def snapshot(self) -> Snapshot:
        """All that the session knows now; `rollback` brings it back. Costs nothing."""
        return self._now

    def rollback(self, snapshot: Snapshot) -> None:
        """Return to an earlier moment of this session."""
        if len(snapshot.waiting) != self.rows:
            raise UserError(f"the snapshot has {len(snapshot.waiting)} rows where the session has {self.rows}")
        self._now = snapshot

    def fork(self, rows: Sequence[int] | None = None) -> Session:
        """A second session that knows the same; neither changes the other.

        Args:
            rows: Which rows the fork has, in order, each any number of times; by default all, without copying anything.
        """
        forked = copy.copy(self)
        if rows is not None:
            if not rows or not all(0 <= row < self.rows for row in rows):
                raise UserError(f"cannot fork rows {list(rows)} of a session whose rows are 0 to {self.rows - 1}")
            forked.rows, forked._now = len(rows), self._now.select(rows)
        return forked

    # -- files

    def save(self, path: str | os.PathLike[str]) -> MemoryHeader:
        """Write everything to a memory file: `path` holds the old file or the whole new one at every moment.

        Returns:
            What the file says about itself.

        Raises:
            MemoryFileError: The disk is full, or the folder is missing or not writable; an existing file is unchanged.
        """
        now, settled = self._now, self._settle()
        header = binding.header_of(self.model, self.model_name, self.tokenizer, self.piece, now, settled)
        save_memory(path, binding.tensors_of(now, self.piece), header)
        return header

    @staticmethod
    def load(path: str | os.PathLike[str], model: LanguageModel, tokenizer: Tokenizer) -> Session:
        """The session that was saved; it goes on, on the same machine, bit for bit as that one would have.

        Raises:
            MemoryFileError: Not a memory file, damaged, newer, or of another model, rule or tokenizer.
        """
        name = str(path)
        header, tensors = load_memory(path, lambda header: binding.expected(header, model, tokenizer, name))
        session = Session(model, tokenizer, header.rows, header.piece, header.model)
        session._now = binding.restored(header, tensors, model, tokenizer, name)
        return session


def on_own_line(question: str) -> str:
    """A question behind a line end; behind no second one if it begins with one."""
    return question if question.startswith("\n") else "\n" + question
