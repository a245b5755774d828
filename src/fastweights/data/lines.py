"""Text files line by line, and tables in CSV row by row, plain or compressed."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from fastweights.data.text import Source, read_pieces
from fastweights.errors import UserError


def read_lines(source: Source) -> Iterator[str]:
    """Yield the lines of a source without their ends; one line and a piece of the source are in memory at a time.

    Args:
        source: Of `data.text.find_sources`.

    Raises:
        UserError: As in `data.text.read_pieces`.
    """
    parts: list[str] = []
    with read_pieces(source) as pieces:
        for piece in pieces:
            first, *others = piece.text.split("\n")
            parts.append(first)
            for other in others:
                yield "".join(parts).removesuffix("\r")
                parts = [other]
    if last := "".join(parts):
        yield last.removesuffix("\r")


def read_rows(path: str | Path) -> Iterator[list[str]]:
    """Yield the rows of a table in CSV, that of the titles first; blank lines are left out.

    Args:
        path: The file, ``.csv`` or compressed as ``.csv.gz``.

    Raises:
        UserError: It cannot be read, is empty, or is no table.
    """
    try:
        yield from filter(None, csv.reader(read_lines(Source(str(path), Path(path), None)), strict=True))
    except csv.Error as error:
        raise UserError(f"'{path}' is not a table in CSV: {error}") from error
