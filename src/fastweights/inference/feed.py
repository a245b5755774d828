"""A text as a stream of tokens that knows what it is called, how far it was read, and its hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastweights.data.tokenizer import Tokenizer
from fastweights.errors import UserError
from fastweights.inference.header import Source

Ids = NDArray[np.int32]


class Tokens(NamedTuple):
    """A text that is in tokens already, in pieces of any length: nothing is tokenised a second time.

    As a source it is its tokens as little-endian int32: these are the bytes that are counted and hashed.
    """

    pieces: Iterable[Ids]


Text = str | Iterable[str] | Tokens
"""A whole text, or its pieces in order, cut anywhere, or its tokens."""

Digest = Callable[[], tuple[str, int]]
"""SHA-256 (hexadecimal) and number of bytes of a source; called once it has been read to its end."""


class Feed:
    """One text for one row, in tokens.

    Args:
        tokenizer: Cuts the text into tokens while it is read.
        text: What to read.
        name: What to call it.
        row: The row that reads it.
        digest: Where the text was decoded from something else: what to record of that. By default the SHA-256 and
            number of bytes of the text in UTF-8.
    """

    def __init__(self, tokenizer: Tokenizer, text: Text, name: str, row: int, digest: Digest | None = None) -> None:
        self._text_hash = hashlib.sha256()
        self._text_bytes = 0
        self._digest = digest or self._own_digest
        if isinstance(text, Tokens):
            self._digest = digest or (lambda: (self._ids_hash.hexdigest(), 4 * self.tokens))
            self._incoming = iter(text.pieces)
        else:
            pieces = [text] if isinstance(text, str) else text
            self._incoming = tokenizer.encode_stream(self._hashed(pieces) if digest is None else pieces)
        self._held: Ids = np.empty(0, np.int32)
        self._ids_hash = hashlib.sha256()
        self._name, self._row = name, row
        self.tokens = 0
        self.complete = False

    def _hashed(self, pieces: Iterable[str]) -> Iterator[str]:
        for piece in pieces:
            data = piece.encode("utf-8", "surrogatepass")
            self._text_hash.update(data)
            self._text_bytes += len(data)
            yield piece

    def _own_digest(self) -> tuple[str, int]:
        return self._text_hash.hexdigest(), self._text_bytes

    def take(self, count: int) -> Ids:
        """The next `count` tokens, int32; fewer at the end of the text, which is then `complete`."""
        parts: list[Ids] = []
        missing = count
        while missing and not self.complete:
            if not len(self._held):
                following = next(self._incoming, None)
                self.complete = following is None
                self._held = self._held if following is None else following
                continue
            part, self._held = self._held[:missing], self._held[missing:]
            parts.append(part)
            missing -= len(part)
        ids = np.concatenate(parts) if parts else np.empty(0, np.int32)
        self._ids_hash.update(ids.astype("<i4").tobytes())
        self.tokens += len(ids)
        return ids

    def skip(self, source: Source) -> None:
        """Pass over what an earlier reader has read of the same text.

        Raises:
            UserError: The text is not the one that was read.
        """
        while self.tokens < source.tokens and not self.complete:
            self.take(min(65_536, source.tokens - self.tokens))
        if self._ids_hash.hexdigest() != source.ids_sha256:
            raise UserError(
                f"cannot go on with '{source.name}': its first {source.tokens:,} tokens are not those that were read"
            )

    def source(self) -> Source:
        """What has been read so far, for the record."""
        digest, size = self._digest() if self.complete else ("", 0)
        return Source(self._name, self._row, self.tokens, size, digest, self._ids_hash.hexdigest(), self.complete)
