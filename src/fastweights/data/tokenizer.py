"""Text to token ids and back: bytes, or a byte-level BPE of 4,096 entries; whole strings or streams of any length.

Both tokenizers share one layout: ids 0 to 7 are special (`pad`, `bos`, `eos` and five reserved) and never come out of
text, whatever the text says. Every other id stands for one or more bytes, so every string round-trips.

The BPE cuts text into *units* first (`UNIT_PATTERN`) and merges inside a unit only. Every unit is short and decided
by at most `LOOKAHEAD` characters, which is what makes streaming exact: up to a unit border that is far enough from
the end of what has been read, no later text can change the ids.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from fastweights.errors import UserError

Ids = NDArray[np.int32]

SPECIALS = ("<pad>", "<bos>", "<eos>", "<r3>", "<r4>", "<r5>", "<r6>", "<r7>")
"""Names of ids 0 to 7. They are entries of the vocabulary, never of the text: the string "<pad>" is five characters."""

UNIT_PATTERN = (
    r"['’](?:s|t|d|m|ll|ve|re)(?!\p{L})"  # the tail of a contraction, but not the start of a quoted word
    r"| ?[\p{L}\p{M}]{1,24}"
    r"|\p{N}"  # one digit, without its space: a number is the same tokens wherever it stands
    r"| ?[^\s\p{L}\p{M}\p{N}]{1,8}"
    r"|[\r\n]{1,8}"
    r"|[^\S\r\n]{1,16}(?!\S)"
    r"|\s"
)
"""Every character belongs to exactly one unit, and no unit looks further than 26 characters from its start."""

LOOKAHEAD = 64
"""Characters after a unit's start that surely decide the unit (the pattern needs 26)."""

PIECE_CHARS = 65_536
"""Characters encoded at a time: tens of milliseconds of work."""

# The library's own 10,000 fill up over half a million tokens: megabytes that only a long text would take.
_CACHED_UNITS = 1024

_SURROGATES = re.compile("[\ud800-\udfff]")
_WORD_BORDER = re.compile(r"[A-Za-z](?= [A-Za-z])")


class Tokenizer(ABC):
    """A reversible map between text and token ids.

    Attributes:
        name: What `load_tokenizer` accepts to build it again.
        vocab_size: Number of ids, special ones included; ids run from 0 to `vocab_size - 1`.
    """

    name: str
    vocab_size: int
    pad = 0
    bos = 1
    eos = 2

    @abstractmethod
    def _encode_piece(self, text: str) -> Ids:
        """Encode text that starts and ends at unit borders."""

    @abstractmethod
    def _cut(self, text: str) -> int:
        """Return a unit border in `text` (which starts at one) that no later text can move, or 0 if there is none."""

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """Return the UTF-8 bytes that a token stands for: possibly a part of a character, empty for a special token.

        Raises:
            UserError: The id is outside the vocabulary.
        """

    def encode_stream(self, pieces: Iterable[str]) -> Iterator[Ids]:
        """Encode a text that arrives in pieces; the ids are those of `encode` on the joined text.

        Holds at most one incoming piece and `PIECE_CHARS` characters, and works in steps of tens of milliseconds.
        A surrogate that is not half of a pair (no text holds one, a Python string may) becomes U+FFFD.

        Args:
            pieces: The text, cut anywhere, pieces of any length.

        Yields:
            int32 arrays, none empty.
        """
        parts: list[str] = []
        held = 0
        for piece in pieces:
            for start in range(0, len(piece), PIECE_CHARS):
                parts.append(piece[start : start + PIECE_CHARS])
                held += len(parts[-1])
                if held < PIECE_CHARS:
                    continue
                text = "".join(parts)
                cut = self._cut(text)
                if cut:
                    yield self._encode_piece(_SURROGATES.sub("\ufffd", text[:cut]))
                parts, held = [text[cut:]], len(text) - cut
        if held:
            yield self._encode_piece(_SURROGATES.sub("\ufffd", "".join(parts)))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what makes it count as it does, in hexadecimal digits."""
        return hashlib.sha256(self.definition().encode()).hexdigest()

    def definition(self) -> str:
        """All that makes it what it is, as text: here its name."""
        return self.name

    def encode(self, text: str) -> list[int]:
        """Encode a whole text. No special ids are added, and none can be forged by the text."""
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> Ids:
        """Encode a whole text as one int32 array."""
        parts = list(self.encode_stream([text]))
        return np.concatenate(parts) if parts else np.empty(0, np.int32)

    def encode_many(self, texts: Sequence[str]) -> list[Ids]:
        """Encode many short texts, each on its own; faster than a loop where the tokenizer allows it."""
        return [self.encode_array(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`: special ids vanish, bytes that are not UTF-8 become U+FFFD.

        For a stream of tokens, feed `token_bytes` to an incremental UTF-8 decoder instead: one token may hold half a
        character.
        """
        return b"".join(self.token_bytes(int(token)) for token in ids).decode("utf-8", "replace")

    def _check_id(self, token: int) -> None:
        if not 0 <= token < self.vocab_size:
            raise UserError(f"token {token} is outside the vocabulary of {self.name!r} (0 to {self.vocab_size - 1}).")


class ByteTokenizer(Tokenizer):
    """One token per UTF-8 byte: byte b is id b + 8; 264 ids in all."""

    def __init__(self) -> None:
        """Build it; there is nothing to load."""
        self.name = "bytes"
        self.vocab_size = len(SPECIALS) + 256

    def _encode_piece(self, text: str) -> Ids:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32) + len(SPECIALS)

    def _cut(self, text: str) -> int:
        return len(text)

    def token_bytes(self, token: int) -> bytes:
        """Return the one byte of `token`, or nothing for a special id."""
        self._check_id(token)
        return bytes([token - len(SPECIALS)]) if token >= len(SPECIALS) else b""


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding: common words and word parts are one token, anything else falls back to bytes.

    Reads the JSON that `recipes/train_tokenizer.py` writes (the format of the `tokenizers` library). Digits are single
    tokens without their space, so numbers of any length are learnable and look the same everywhere. About 3.6 bytes
    a token on English prose with the shipped 4,096 entries.
    """

    def __init__(self, definition: str, name: str = "bpe") -> None:
        """Build from a definition.

        Args:
            definition: The JSON text.
            name: Name to show and to load it by.

        Raises:
            UserError: Not such a JSON, other units than `UNIT_PATTERN` (streams would not be exact), or no full byte
                alphabet (text could be lost).
        """
        self.name = name
        self._backend, vocab = _checked_backend(definition, name)
        self._backend.model._resize_cache(_CACHED_UNITS)
        self._units = tokenizers.pre_tokenizers.Split(tokenizers.Regex(UNIT_PATTERN), "isolated")
        self.vocab_size = len(vocab)
        from_symbol = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        self._bytes = [b""] * self.vocab_size
        for token, index in vocab.items():
            if index >= len(SPECIALS):
                self._bytes[index] = bytes(from_symbol[symbol] for symbol in token)

    def definition(self) -> str:
        """The JSON text that builds it."""
        return str(self._backend.to_str())

    def _encode_piece(self, text: str) -> Ids:
        return np.array(self._backend.encode(text, add_special_tokens=False).ids, np.int32)

    def _cut(self, text: str) -> int:
        # Between a letter and a space there is always a border, whatever surrounds them. Only text without any such
        # place near the end (no spaces, another script) pays for finding its units.
        borders = [match.end() for match in _WORD_BORDER.finditer(text, max(0, len(text) - 1024))]
        if borders:
            return borders[-1]
        clean = _SURROGATES.sub("\ufffd", text)
        starts = [start for _, (start, _) in self._units.pre_tokenize_str(clean)]
        return max((start for start in starts if start + LOOKAHEAD <= len(text)), default=0)

    def encode_many(self, texts: Sequence[str]) -> list[Ids]:
        """Encode many short texts, each on its own, on all cores."""
        clean = [_SURROGATES.sub("\ufffd", text) for text in texts]
        encodings = self._backend.encode_batch_fast(clean, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of `token`, or nothing for a special id."""
        self._check_id(token)
        return self._bytes[token]


def byte_symbols() -> list[str]:
    """Return the printable character that stands for each byte 0 to 255 in a byte-level vocabulary (as in GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _checked_backend(definition: str, name: str) -> tuple[tokenizers.Tokenizer, dict[str, int]]:
    """Build the library's tokenizer and return it with its vocabulary, or say why this definition will not do."""
    refusal = f"{name!r} is not a tokenizer of this package (recipes/train_tokenizer.py makes one): "
    try:
        spec: Any = json.loads(definition)
        pattern = spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        vocab = {str(token): int(index) for token, index in spec["model"]["vocab"].items()}
        plain = not (spec["added_tokens"] or spec["normalizer"] or spec["post_processor"])
        backend = tokenizers.Tokenizer.from_str(definition)
    except Exception as error:  # the library raises bare Exception for a malformed definition
        raise UserError(refusal + f"it cannot be read ({type(error).__name__}).") from error
    if pattern != UNIT_PATTERN or not plain:
        raise UserError(refusal + "it cuts text in another way.")
    if sorted(vocab.values()) != list(range(len(vocab))) or [vocab.get(s) for s in SPECIALS] != [*range(len(SPECIALS))]:
        raise UserError(refusal + "its ids are not 0 to n - 1 with the special ones first.")
    symbols = set(byte_symbols())
    if not symbols <= vocab.keys() or any(set(t) - symbols for t, i in vocab.items() if i >= len(SPECIALS)):
        raise UserError(refusal + "its alphabet is not the 256 bytes.")
    return backend, vocab


SHIPPED = ("bytes", "bpe4096")
"""Names of the tokenizers that come with the package."""


def load_tokenizer(name_or_path: str | Path) -> Tokenizer:
    """Return the tokenizer "bytes", "bpe4096" (shipped), or the one in a JSON file.

    Raises:
        UserError: No such name or file, or not a tokenizer of this package.
    """
    name = str(name_or_path)
    if name == "bytes":
        return ByteTokenizer()
    if name == "bpe4096":
        asset = resources.files("fastweights.data") / "assets" / "bpe4096.json"
        return BPETokenizer(asset.read_text("utf-8"), name)
    path = Path(name_or_path)
    if not path.is_file():
        raise UserError(f'no tokenizer {name!r}: choose "bytes", "bpe4096" or the path of a tokenizer\'s JSON file.')
    try:
        return BPETokenizer(path.read_text("utf-8"), name)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the tokenizer {name!r}: {type(error).__name__}.") from error
