"""What a memory says about itself: which model it belongs to, what it has read, how it is, what surprised it most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

T = TypeVar("T")

QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999)
"""The levels at which `Health.surprise` is given."""


class HeaderError(ValueError):
    """A header whose fields are missing or of another type."""


def _take(data: Any, name: str, kind: type[T]) -> T:
    """`data[name]`, which must be of exactly `kind`, or a whole number where a float is asked for."""
    value = data.get(name) if isinstance(data, Mapping) else None
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise HeaderError(f"its header has no {kind.__name__} '{name}'")
    return value


def _take_list(data: Any, name: str, kind: type[T]) -> tuple[T, ...]:
    values = _take(data, name, list)
    return tuple(_take({name: value}, name, kind) for value in values)


def _take_table(data: Any, name: str) -> dict[str, tuple[float | None, ...]]:
    table = _take(data, name, dict)
    return {
        key: tuple(None if value is None else _take({key: value}, key, float) for value in _list(table, key))
        for key in table
    }


def _list(data: Any, name: str) -> list[Any]:
    return _take(data, name, list)


@dataclass(frozen=True)
class Source:
    """One thing that was read into one row of a memory.

    Attributes:
        name: How it was called, usually a path.
        row: The row of the memory that read it.
        tokens: How many of its tokens were read.
        bytes: Length of what was read, in bytes; 0 until it was read to its end.
        sha256: SHA-256 of those bytes in hexadecimal; empty until it was read to its end.
        ids_sha256: SHA-256 of the tokens that were read, as little-endian int32; known at any moment, so that a reader
            who goes on later can make sure that the text has not changed.
        complete: Whether it was read to its end.
    """

    name: str
    row: int
    tokens: int
    bytes: int
    sha256: str
    ids_sha256: str
    complete: bool

    @staticmethod
    def from_dict(data: Any) -> Source:
        """The record that `dataclasses.asdict` made `data` from."""
        return Source(
            _take(data, "name", str),
            _take(data, "row", int),
            _take(data, "tokens", int),
            _take(data, "bytes", int),
            _take(data, "sha256", str),
            _take(data, "ids_sha256", str),
            _take(data, "complete", bool),
        )


@dataclass(frozen=True)
class Passage:
    """A short window of text that surprised the memory.

    Attributes:
        row: The row that read it.
        position: Tokens that the row had read before it.
        tokens: Its length in tokens.
        surprise: Mean surprise of its tokens (see `fastweights.inference.surprise`).
        text: What it says.
    """

    row: int
    position: int
    tokens: int
    surprise: float
    text: str

    @staticmethod
    def from_dict(data: Any) -> Passage:
        """The record that `dataclasses.asdict` made `data` from."""
        return Passage(
            _take(data, "row", int),
            _take(data, "position", int),
            _take(data, "tokens", int),
            _take(data, "surprise", float),
            _take(data, "text", str),
        )


@dataclass(frozen=True)
class Health:
    """Whether a memory is well.

    Attributes:
        norms: Frobenius norm of the fast weights by layer, one number per row; None where it is not finite.
        non_finite: Numbers of the state that are not finite; 0 in a healthy memory.
        rejected: Per row, tokens that a layer left out because a key, value, gate or gradient was not finite.
        surprise: Quantiles of the surprise by level ("0.5" is the median), one number per row, good to 5 %.
    """

    norms: dict[str, tuple[float | None, ...]]
    non_finite: int
    rejected: tuple[int, ...]
    surprise: dict[str, tuple[float | None, ...]]

    @staticmethod
    def from_dict(data: Any) -> Health:
        """The record that `dataclasses.asdict` made `data` from."""
        return Health(
            _take_table(data, "norms"),
            _take(data, "non_finite", int),
            _take_list(data, "rejected", int),
            _take_table(data, "surprise"),
        )


def finite(value: float) -> float | None:
    """`value`, or None where JSON has no number for it."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class MemoryHeader:
    """The header of a memory file.

    Attributes:
        library: Version of the library that wrote it.
        model: Name of the model.
        fingerprint: SHA-256 of the model's configuration and parameters, in hexadecimal.
        tokenizer: Name of the tokenizer.
        vocabulary: SHA-256 of the tokenizer's entries: what has to agree, whatever the name.
        rule: The memory rule, as in the model's configuration.
        piece: Tokens that were read at a time.
        tokens: Tokens read, per row.
        pending: Per row, how many of those tokens wait in the file to fill the next piece.
        sources: What was read, in order.
        health: Norms, counts and quantiles at the moment of saving.
        passages: The most surprising passages, most surprising first.
    """

    library: str
    model: str
    fingerprint: str
    tokenizer: str
    vocabulary: str
    rule: dict[str, Any]
    piece: int
    tokens: tuple[int, ...]
    pending: tuple[int, ...]
    sources: tuple[Source, ...]
    health: Health
    passages: tuple[Passage, ...]

    @property
    def rows(self) -> int:
        """How many streams the memory has read side by side."""
        return len(self.tokens)

    def source_at(self, position: int, row: int = 0) -> tuple[Source, int] | None:
        """The source in which token `position` of `row` lies, and its place there; None past the end."""
        for source in self.sources:
            if source.row != row:
                continue
            if 0 <= position < source.tokens:
                return source, position
            position -= source.tokens
        return None

    def to_dict(self) -> dict[str, Any]:
        """The header as plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Any) -> MemoryHeader:
        """The header that `to_dict` made `data` from.

        Raises:
            HeaderError: A field is missing, of another type, or contradicts another one.
        """
        header = MemoryHeader(
            library=_take(data, "library", str),
            model=_take(data, "model", str),
            fingerprint=_take(data, "fingerprint", str),
            tokenizer=_take(data, "tokenizer", str),
            vocabulary=_take(data, "vocabulary", str),
            rule=_take(data, "rule", dict),
            piece=_take(data, "piece", int),
            tokens=_take_list(data, "tokens", int),
            pending=_take_list(data, "pending", int),
            sources=tuple(Source.from_dict(item) for item in _list(data, "sources")),
            health=Health.from_dict(_take(data, "health", dict)),
            passages=tuple(Passage.from_dict(item) for item in _list(data, "passages")),
        )
        if header.piece < 1 or not header.tokens or len(header.pending) != header.rows:
            raise HeaderError("the numbers of rows and tokens in its header contradict each other")
        if any(
            not 0 <= pending < header.piece or pending > tokens
            for pending, tokens in zip(header.pending, header.tokens, strict=True)
        ):
            raise HeaderError("its header says that more tokens wait than fit in one piece")
        return header
