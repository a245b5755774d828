"""Reading files into a memory file: in order, with saves on the way, so that no end of the process loses much."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fastweights.data.text import Source, TextReader, read_pieces
from fastweights.errors import UserError
from fastweights.inference.binding import require_constant_size
from fastweights.inference.header import MemoryHeader
from fastweights.inference.memory_file import MemoryFileError
from fastweights.inference.session import Progress, Session

Note = Callable[[str], None]

_SAMPLE = 8192  # characters of a source by which the bytes of a token are estimated


class Reading(NamedTuple):
    """How far the reading of several sources has come.

    Attributes:
        source: What is being read.
        tokens: Tokens read by this call, of all sources.
        seconds: Since this call began.
        bytes_read: Bytes of all sources that the memory has read so far, about, on the scale of `Source.size`.
        bytes_total: Bytes of all sources; None where one of them does not tell.
        surprise: Mean surprise of the newest tokens.
        norm: Norm of the fast weights.
        seconds_left: Estimate of the time to the end, where there is one.
    """

    source: str
    tokens: int
    seconds: float
    bytes_read: int
    bytes_total: int | None
    surprise: float
    norm: float
    seconds_left: float | None


class Outcome(NamedTuple):
    """What a call has done.

    Attributes:
        header: Of the file that was written.
        tokens: Tokens read by this call.
        seconds: How long that took.
        replaced: Bytes that were not UTF-8, by source, for sources with any.
        finished: False where it was interrupted; what had been read until then is in the file.
    """

    header: MemoryHeader
    tokens: int
    seconds: float
    replaced: dict[str, int]
    finished: bool


def check_output(path: Path, sources: Sequence[Source], *, resume: bool, force: bool) -> None:
    """Find out before hours of reading whether the result could not be written, or would overwrite what is read.

    Raises:
        MemoryFileError: The file is one of the sources, exists and may not be overwritten, is missing where it should
            be resumed, or its folder cannot be written to.
    """
    if path.exists() and any(source.path is not None and source.path.samefile(path) for source in sources):
        raise MemoryFileError(f"'{path}' is among the texts to read: give the memory another name")
    if resume and force:
        raise MemoryFileError("resuming and forcing contradict each other: go on with the file, or overwrite it")
    if resume and not path.exists():
        raise MemoryFileError(f"there is no '{path}' to go on from: leave --resume out to start it")
    if path.is_dir():
        raise MemoryFileError(f"'{path}' is a folder: give the name of a file in it")
    if path.exists() and not resume and not force:
        raise MemoryFileError(f"'{path}' exists already: go on from it with --resume, or overwrite it with --force")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise MemoryFileError(f"the folder '{folder}' does not exist: make it, or choose another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise MemoryFileError(f"the folder '{folder}' cannot be written to: choose another place")


def remaining(session: Session, sources: Sequence[Source], note: Note) -> list[Source]:
    """Which of `sources` a session that has read some of them before still has to read.

    A source is known by its name. One that was read to its end is passed over once it has been shown to be unchanged,
    and so is a file of another name with the same text; one that was not read to its end is the first of the rest.

    Raises:
        UserError: A source has changed since it was read, or the one that was left off is not among `sources`.
    """
    rest, records = list(sources), [record for record in session.sources if record.row == 0]
    for record in (record for record in records if record.complete):
        again = next((source for source in rest if source.name == record.name and source.path is not None), None)
        if again is None:
            continue
        if _sha256(again) != record.sha256:
            raise UserError(f"'{record.name}' has changed since it was read: give it another name, or start anew")
        note(f"'{record.name}' has been read already")
        rest.remove(again)
    texts = {record.sha256: record.name for record in records if record.complete}
    for source in [source for source in rest if texts and source.path is not None]:
        if (name := texts.get(_sha256(source))) is not None:
            note(f"'{source.name}' has been read already, as '{name}'")
            rest.remove(source)
    unfinished = session.unfinished
    if unfinished is None:
        return rest
    again = next((source for source in rest if source.name == unfinished.name), None)
    if again is None:
        raise UserError(f"reading stopped inside '{unfinished.name}', so it has to be named again to go on from there")
    note(f"going on in '{unfinished.name}' after its first {unfinished.tokens:,} tokens")
    rest.remove(again)
    return [again, *rest]


def memorize(
    session: Session,
    sources: Sequence[Source],
    path: Path,
    *,
    save_every: float = 60.0,
    on_progress: Callable[[Reading], None] | None = None,
    note: Note | None = None,
) -> Outcome:
    """Read sources one after the other into the memory of a session, and save it.

    A line break is put in front of each source but the first, so that every source begins a line.

    An interrupt (Ctrl-C) ends the reading, and what was read is saved; where that is nothing, it is passed on. A source
    that turns out to be unreadable is taken back whole; what was read before it is saved and the error passed on. Where
    saving fails on the way, it is tried again later.

    Args:
        session: One row; where it has an unfinished source, that is the first of `sources`.
        sources: What to read.
        path: The memory file; at every moment the old one or a whole new one.
        save_every: Seconds from one save to the next; 0 saves at the end only.
        on_progress: Called after each piece.
        note: Told what is worth saying.

    Raises:
        UserError: A source that cannot be read, or a memory that cannot be saved.
    """
    require_constant_size(session.model)
    reader = _Reader(session, sources, path, save_every, on_progress, note or (lambda text: None))
    finished, before = True, session.snapshot()
    try:
        for source in sources:
            before = session.snapshot()
            reader.read(source)
    except KeyboardInterrupt:
        if not reader.tokens:
            raise  # nothing new is known, and a file that was there is worth more
        finished = False
    except UserError:
        session.rollback(before)
        # The file may hold a part of the source that was taken back; and an empty memory is not worth a file.
        if any(session.tokens) and (reader.earlier_tokens or reader.saved_on_the_way):
            session.save(path)
            reader.note(f"what was read before is saved in '{path}'")
        raise
    header = session.save(path)
    return Outcome(header, reader.tokens, reader.seconds, reader.replaced, finished)


class _Reader:
    """The sums of one call of `memorize`."""

    def __init__(
        self,
        session: Session,
        sources: Sequence[Source],
        path: Path,
        save_every: float,
        on_progress: Callable[[Reading], None] | None,
        note: Note,
    ) -> None:
        self.session, self.path, self.save_every = session, path, save_every
        self.on_progress, self.note = on_progress, note
        sizes = [source.size for source in sources]
        self.total = None if None in sizes else sum(size or 0 for size in sizes)
        self.began = self.saved = time.monotonic()
        self.tokens, self.earlier_tokens, self.earlier_bytes = 0, 0, 0
        self.replaced: dict[str, int] = {}
        self.saved_on_the_way = False
        self.first: tuple[float, float] | None = None
        self.bytes_per_token, self.skipped_tokens = 1.0, 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def read(self, source: Source) -> None:
        """Read one source to its end."""
        unfinished = self.session.unfinished
        is_first = len(self.session.sources) == (0 if unfinished is None else 1)
        self.skipped_tokens = 0 if unfinished is None else unfinished.tokens
        with read_pieces(source) as text:
            pieces = self._measured(text)

            def progress(step: Progress) -> None:
                self._progress(text, step)

            try:
                self.session.read(
                    pieces if is_first else itertools.chain(["\n"], pieces),
                    name=source.name,
                    digest=lambda: (text.sha256, text.text_bytes),
                    resume=unfinished is not None,
                    on_progress=progress,
                )
            finally:
                if text.replaced:
                    self.replaced[source.name] = text.replaced
            self.earlier_tokens, self.earlier_bytes = self.tokens, self.earlier_bytes + text.bytes_read

    def _progress(self, text: TextReader, step: Progress) -> None:
        self.tokens = self.earlier_tokens + step.tokens
        if self.save_every and time.monotonic() - self.saved >= self.save_every:
            self._save_on_the_way()
        if self.on_progress is not None:
            done, seconds = self.earlier_bytes + self._bytes_done(text, step), self.seconds
            left = self._seconds_left(done, seconds)
            name = text.source.name
            self.on_progress(Reading(name, self.tokens, seconds, done, self.total, step.surprise, step.norm, left))

    def _measured(self, text: TextReader) -> Iterator[str]:
        for index, piece in enumerate(text):
            if index == 0:
                sample = piece.text[:_SAMPLE]
                self.bytes_per_token = len(sample.encode()) / len(self.session.tokenizer.encode_array(sample))
            yield piece.text

    def _bytes_done(self, text: TextReader, step: Progress) -> int:
        # The file is read some hundred kilobytes ahead of the memory: of a short one, all before the first token.
        if self.session.unfinished is None or not text.text_bytes:
            return text.bytes_read
        share = (self.skipped_tokens + step.tokens) * self.bytes_per_token / text.text_bytes
        return int(min(1.0, share) * text.bytes_read)

    def _seconds_left(self, done: int, seconds: float) -> float | None:
        # What an earlier reader has read is passed over fast and says nothing about the speed of reading.
        self.first = self.first or (seconds, done)
        if self.total is None or done <= self.first[1]:
            return None
        return (seconds - self.first[0]) * max(0, self.total - done) / (done - self.first[1])

    def _save_on_the_way(self) -> None:
        try:
            self.session.save(self.path)
            self.saved_on_the_way = True
        except MemoryFileError as error:
            self.note(f"{error}; reading goes on, and saving is tried again in {self.save_every:.0f} seconds")
        # The clock starts after the save: a slow disk must not turn reading into saving.
        self.saved = time.monotonic()


def _sha256(source: Source) -> str:
    with read_pieces(source) as text:
        for _ in text:
            pass
        return text.sha256
