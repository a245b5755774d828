"""Text files of any size as pieces of text: found, checked, decompressed, decoded, counted and hashed while read."""

from __future__ import annotations

import codecs
import glob
import gzip
import hashlib
import os
import re
import stat
import sys
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from fastweights.errors import UserError

SUFFIXES = (".txt", ".md", ".py", ".gz", ".zst")
"""What is taken from a folder. A file named by itself may have any suffix; all but `.gz` and `.zst` are plain text."""

STDIN = "-"
BLOCK_BYTES = 65_536

_ESCAPED = re.compile("[\udc80-\udcff]")
# Control characters that text does not have; tab, line ends, form feed and the escape of terminal colours are fine.
_CONTROL = bytes(sorted({*range(32), 127} - {8, 9, 10, 11, 12, 13, 27}))


@dataclass(frozen=True)
class Source:
    """Something to read.

    Attributes:
        name: How to call it: the path as given or found, or "standard input".
        path: Where it is; None for standard input.
        size: Bytes on disk, compressed if it is; None where that is unknown (standard input, pipes).
    """

    name: str
    path: Path | None
    size: int | None


class TextPiece(NamedTuple):
    """A stretch of text and how far reading has come.

    Attributes:
        text: At most 64 Ki characters.
        bytes_read: Bytes of the source consumed so far, on the scale of `Source.size`.
        replaced: Bytes so far that were not UTF-8, each replaced by U+FFFD.
    """

    text: str
    bytes_read: int
    replaced: int


def find_sources(paths: Sequence[str]) -> list[Source]:
    """Resolve what a user named into sources, each checked to be readable text.

    Args:
        paths: Files; folders, searched recursively for `SUFFIXES`; patterns of files with `*`, `?`, `[...]` and `**`;
            or "-" for standard input. Hidden and empty files are left out of folders and patterns.

    Returns:
        The sources, in the order named; inside a folder or pattern sorted by path, each file once.

    Raises:
        UserError: Nothing there, or it is empty, unreadable, damaged or not text; one sentence that names it.
    """
    sources: list[Source] = []
    for name in paths:
        if not name:
            raise UserError("an empty name is no file.")
        if name == STDIN:
            if any(source.path is None for source in sources):
                raise UserError('standard input ("-") can be read only once: name it once.')
            sources.append(Source("standard input", None, None))
        elif os.path.lexists(name) or not glob.has_magic(name):
            sources.extend(_named(Path(name)))
        else:
            sources.extend(_several(glob.glob(name, recursive=True), f"no file with text matches {name!r}."))
    if not sources:
        raise UserError('nothing to read: name files, folders, patterns, or "-" for standard input.')
    return sources


def _named(path: Path) -> list[Source]:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise UserError(f"{str(path)!r} does not exist.") from error
    except OSError as error:
        raise _unreadable(str(path), error) from error
    if stat.S_ISDIR(mode):
        return _in_folder(path)
    if not stat.S_ISREG(mode):
        return [Source(str(path), path, None)]
    return [_checked(path)]


def _in_folder(folder: Path) -> list[Source]:
    def refuse(error: OSError) -> None:
        raise _unreadable(str(error.filename), error)

    files: list[str] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [
            os.path.join(parent, name) for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    return _several(files, f"the folder {str(folder)!r} holds no text: {', '.join(SUFFIXES)} files are read.")


def _several(names: Iterable[str], refusal: str) -> list[Source]:
    """Check the files among `names`, each once; a folder or an empty file among others is no mistake."""
    try:
        files = [path for path in sorted(map(Path, set(names))) if path.is_file() and path.stat().st_size]
    except OSError as error:
        raise _unreadable(str(error.filename), error) from error
    if not files:
        raise UserError(refusal)
    return [_checked(path) for path in files]


def _checked(path: Path) -> Source:
    try:
        source = Source(str(path), path, path.stat().st_size)
    except OSError as error:
        raise _unreadable(str(path), error) from error
    with TextReader(source) as reader:
        next(reader)
    return source


def _unreadable(name: str, error: Exception) -> UserError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UserError(f"cannot read {name!r}: {reason}.")


def read_pieces(source: Source) -> TextReader:
    """Read a source from its beginning; the same bytes give the same text on every call.

    To go on after a stop, read again from the beginning and drop as many tokens as were used before.

    Returns:
        An iterator over `TextPiece`, with the totals as attributes once it has ended.

    Raises:
        UserError: While reading: empty, binary, unreadable or damaged; one sentence that names the source.
    """
    return TextReader(source)


def read_text(source: Source) -> Iterator[str]:
    """Yield the text of a source alone, in the pieces of `read_pieces`.

    Raises:
        UserError: As there, while reading.
    """
    with read_pieces(source) as pieces:
        yield from (piece.text for piece in pieces)


class TextReader(Iterator[TextPiece]):
    """Iterator over the pieces of a source, in bounded memory; a context manager that closes the file.

    A leading byte-order mark is dropped; line ends are kept as they are.

    Attributes:
        source: What is read.
        bytes_read: Bytes consumed so far, on the scale of `Source.size`.
        text_bytes: Bytes of text so far, after decompression.
        replaced: Bytes so far that were not UTF-8.
    """

    def __init__(self, source: Source) -> None:
        """Prepare to read `source`; it is opened by the first `next`."""
        self.source = source
        self.bytes_read = 0
        self.text_bytes = 0
        self.replaced = 0
        self._hash = hashlib.sha256()
        self._pieces = self._read()

    @property
    def sha256(self) -> str:
        """SHA-256 of the text's bytes read so far, after decompression: of the whole text once reading has ended."""
        return self._hash.hexdigest()

    def __next__(self) -> TextPiece:
        return next(self._pieces)

    def __enter__(self) -> TextReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. The totals stay."""
        self._pieces.close()

    def _read(self) -> Generator[TextPiece]:
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        for block in self._blocks():
            self._check(block)
            self._hash.update(block)
            text = decoder.decode(block)
            if self.text_bytes == 0:
                text = text.removeprefix("\ufeff")
            self.text_bytes += len(block)
            if text:
                yield self._piece(text)
        if self.text_bytes == 0:
            raise UserError(f"{self.source.name!r} is empty.")
        if text := decoder.decode(b"", True):
            yield self._piece(text)

    def _piece(self, text: str) -> TextPiece:
        text, wrong = _ESCAPED.subn("\ufffd", text)
        self.replaced += wrong
        return TextPiece(text, self.bytes_read, self.replaced)

    def _check(self, block: bytes) -> None:
        """Refuse what is not text: NUL or many control characters at the start, mostly control characters later."""
        control = 1 - len(block.translate(None, _CONTROL)) / len(block)
        if self.text_bytes == 0:
            if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise UserError(f"{self.source.name!r} is UTF-16 text: convert it to UTF-8.")
            binary = b"\0" in block or control > 0.1
        else:
            binary = len(block) >= BLOCK_BYTES // 16 and control > 0.3
        if binary:
            raise UserError(f"{self.source.name!r} is binary, not text.")

    def _blocks(self) -> Iterator[bytes]:
        """Yield the decompressed bytes, none of the blocks empty, keeping `bytes_read`; errors become `UserError`."""
        path = self.source.path
        try:
            if path is None:
                if sys.stdin is None:
                    raise UserError("there is no standard input to read: name a file, or pipe a text in.")
                yield from self._plain(sys.stdin.buffer)
                return
            suffix = path.suffix.lower()
            with path.open("rb") as file:
                if suffix == ".gz":
                    yield from self._gzip(file)
                elif suffix == ".zst":
                    yield from self._zstd(file)
                else:
                    yield from self._plain(file)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{self.source.name!r} is damaged, cut short, or no .gz file.") from error
        except OSError as error:
            raise _unreadable(self.source.name, error) from error

    def _plain(self, file: BufferedIOBase | BinaryIO) -> Iterator[bytes]:
        # What a slow pipe has to give is passed on at once, not collected until a block is full.
        read = file.read if self.source.size is not None else cast(BufferedIOBase, file).read1
        while block := read(BLOCK_BYTES):
            self.bytes_read += len(block)
            yield block

    def _gzip(self, file: BinaryIO) -> Iterator[bytes]:
        with gzip.GzipFile(fileobj=file) as text:
            while block := text.read(BLOCK_BYTES):
                self.bytes_read = file.tell()
                yield block

    def _zstd(self, file: BinaryIO) -> Iterator[bytes]:
        try:
            import zstandard
        except ImportError as error:
            hint = "pip install 'fastweights[zstd]'"
            raise UserError(f"{self.source.name!r} is a .zst file, which needs an extra package: {hint}.") from error
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            # A kibibyte of input is at most some 32 MiB of output, so a malicious file cannot fill the memory.
            while packed := file.read(1024):
                self.bytes_read += len(packed)
                while packed:
                    if frame.eof:
                        frame = zstandard.ZstdDecompressor().decompressobj()
                    text = frame.decompress(packed)
                    yield from (text[at : at + BLOCK_BYTES] for at in range(0, len(text), BLOCK_BYTES))
                    packed = frame.unused_data
        except zstandard.ZstdError as error:
            raise UserError(f"{self.source.name!r} is damaged or no .zst file.") from error
        if self.bytes_read and not frame.eof:
            raise UserError(f"{self.source.name!r} is cut short.")
