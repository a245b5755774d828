"""FASTA files, plain or compressed: genomes as arrays of bases, one record at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastweights.data.lines import read_lines, read_rows
from fastweights.data.text import Source
from fastweights.errors import UserError

BASES = "ACGTN"
"""Ids 0 to 4. N is any base; other letters that stand for several bases are N too, and case does not matter."""

UNKNOWN = BASES.index("N")

_CODES = np.full(256, 255, np.uint8)
for _letter in "ACGTUNRYSWKMBDHV":
    _code = BASES.find(_letter.replace("U", "T"))
    _CODES[[ord(_letter), ord(_letter.lower())]] = _code if _code >= 0 else UNKNOWN

_COMPLEMENT = np.array([BASES.index(base) for base in "TGCAN"], np.uint8)


class Record(NamedTuple):
    """A sequence.

    Attributes:
        name: The first word of its line.
        bases: uint8 ``[n]``, ids of `BASES`; may be empty.
    """

    name: str
    bases: NDArray[np.uint8]


def read_fasta(source: Source) -> Iterator[Record]:
    """Yield the records of a file; one is in memory at a time.

    Args:
        source: Of `data.text.find_sources`.

    Raises:
        UserError: It cannot be read, does not begin with ``>``, or has a letter that stands for no base.
    """
    name = ""
    parts: list[NDArray[np.uint8]] = []
    for line in filter(None, map(str.strip, read_lines(source))):
        if line.startswith(">"):
            if name:
                yield Record(name, _joined(parts))
            name, parts = (line[1:].split() or ["?"])[0], []
        elif not name:
            raise UserError(f"{source.name} is not a FASTA file: its first line must begin with '>'")
        else:
            parts.append(encode(line, f"{source.name}, record {name}"))
    if not name:
        raise UserError(f"{source.name} is not a FASTA file: it has no record")
    yield Record(name, _joined(parts))


def encode(letters: str, where: str = "a sequence") -> NDArray[np.uint8]:
    """The ids of letters.

    Raises:
        UserError: One of them stands for no base; ``where`` is named.
    """
    codes = _CODES[np.frombuffer(letters.encode("ascii", "replace"), np.uint8)]
    if (codes == 255).any():
        wrong = letters[int(np.argmax(codes == 255))]
        raise UserError(
            f"{where} has {wrong!r}, which stands for no base: FASTA files hold {BASES} and codes of several"
        )
    return codes


def reverse_complement(bases: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The other strand, read in its own direction."""
    return _COMPLEMENT[bases[::-1]]


def read_intervals(table: str | Path, records: Mapping[str, NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """Yield the stretches that a table names, each in the direction of its strand.

    Args:
        table: A CSV file with a header, plain or compressed, as GenomicBenchmarks has them: the record in a column
            ``region``, ``chrom`` or ``chr``, then ``start`` (from 0), ``end`` (behind the last base) and ``strand``
            (``+`` or ``-``).
        records: The genome by the names of its records. ``chr1`` may be called ``1`` there, as it is by Ensembl.

    Raises:
        UserError: The table cannot be read, lacks a column, or names what the genome does not have.
    """
    rows = read_rows(table)
    titles = next(rows, [])
    region = next((name for name in ("region", "chrom", "chr") if name in titles), "")
    if not region or not {"start", "end", "strand"} <= set(titles):
        raise UserError(f"'{table}' needs columns region (or chrom, chr), start, end and strand")
    places = [titles.index(name) for name in (region, "start", "end", "strand")]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(titles):
            raise UserError(f"row {number} of '{table}' has {len(row)} cells where its columns are {len(titles)}")
        name, start, end, strand = (row[place] for place in places)
        yield _interval(records, name, start, end, strand, f"row {number} of '{table}'")


def _interval(
    records: Mapping[str, NDArray[np.uint8]], name: str, start: str, end: str, strand: str, where: str
) -> NDArray[np.uint8]:
    bases = records.get(name, records.get(name.removeprefix("chr")))
    sound = start.isdecimal() and end.isdecimal() and strand in ("+", "-")
    if bases is None or not sound or not int(start) < int(end) <= len(bases):
        raise UserError(f"{where} names what is not in the genome: {name} {start} to {end}, strand {strand}")
    found = bases[int(start) : int(end)]
    return found if strand == "+" else reverse_complement(found)


def _joined(parts: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.concatenate(parts) if parts else np.zeros(0, np.uint8)
