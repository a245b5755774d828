"""DNA: what the next base is, and which species a stretch is from.

A genome is cut into blocks of `BLOCK` bases; one block in `HELD_BACK` is for tests, chosen by a hash of its species,
record and place, so that the same files give the same parts everywhere. A stretch never crosses the border of a block,
and stretches of more than a tenth of unknown bases are not drawn. Either strand is read, as likely.

One row of species classification, 8 bases of the second species, whose label is asked behind the question token 5::

    ids:      0 3 3 2 1 0 2 3 5
    labels:   . . . . . . . . 7

Stretches whose classes others have named are read from tables of intervals: those of GenomicBenchmarks (Grešová et al.
2023), one table a class, in folders of their own for training and for tests.

Shapes: B rows, L positions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastweights.data.fasta import BASES, UNKNOWN, read_fasta, read_intervals, reverse_complement
from fastweights.data.text import find_sources
from fastweights.errors import UserError
from fastweights.tasks.labelled import IGNORE, Labelled

Part = Literal["train", "test"]

BLOCK, HELD_BACK = 10_000, 5

QUESTION = len(BASES)
"""Behind which the species or class is said; these are the ids after it."""

_MOST_UNKNOWN = 0.1
_DRAWS = 100


class Genome(NamedTuple):
    """The blocks of a species that belong to one part.

    Attributes:
        name: Of the species: its file's.
        blocks: uint8 arrays of bases.
    """

    name: str
    blocks: tuple[NDArray[np.uint8], ...]


def read_genomes(paths: Sequence[str], part: Part, shortest: int = 1) -> tuple[Genome, ...]:
    """Read genomes, each file a species.

    Args:
        paths: FASTA files, folders or patterns.
        part: Which blocks.
        shortest: Blocks of fewer bases are left out.

    Raises:
        UserError: As `read_fasta`, and for a genome without a block.
    """
    found = []
    for source in find_sources(paths):
        name = source.name.rsplit("/", 1)[-1].split(".")[0]
        blocks = tuple(
            record.bases[start : start + BLOCK]
            for record in read_fasta(source)
            for start in range(0, len(record.bases), BLOCK)
            if _part(name, record.name, start) == part and len(record.bases) - start >= shortest
        )
        if not blocks:
            raise UserError(f"{source.name} has no block of {shortest} bases for the part {part}: give a longer genome")
        found.append(Genome(name, blocks))
    return tuple(found)


class Stretch(NamedTuple):
    """A stretch of a genome whose class is known.

    Attributes:
        bases: uint8, ids of `BASES`.
        label: Its class, from 0.
    """

    bases: NDArray[np.uint8]
    label: int


def read_classes(tables: Sequence[str], genome: Sequence[str]) -> Iterator[Stretch]:
    """Yield what tables of intervals name, each table a class: 0 for the first, and so on.

    Args:
        tables: CSV files; see `data.fasta.read_intervals`. Name the classes of both parts of a benchmark in one order.
        genome: FASTA files, folders or patterns; held in memory, a byte for each base. Records may also be called by
            their names without a version (``ENST00000456328`` for ``ENST00000456328.2``).

    Raises:
        UserError: As `read_fasta` and `read_intervals`, where nothing is named, and for two records of one name.
    """
    if not tables:
        raise UserError("there is no table of intervals to read: name one for each class")
    records = _by_name(genome)
    for label, table in enumerate(tables):
        for bases in read_intervals(table, records):
            # A copy, or the last stretch that is kept would keep the genome.
            yield Stretch(bases.copy(), label)


def _by_name(genome: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
    """Records by name, and without their version where only one of them is called so."""
    records: dict[str, NDArray[np.uint8]] = {}
    shorter: dict[str, list[str]] = {}
    for source in find_sources(genome):
        for record in read_fasta(source):
            if record.name in records:
                raise UserError(f"two records are called {record.name!r}, one in {source.name}: give one genome")
            records[record.name] = record.bases
            shorter.setdefault(record.name.rpartition(".")[0], []).append(record.name)
    alone = {short: names[0] for short, names in shorter.items() if short and len(names) == 1}
    return {short: records[name] for short, name in alone.items()} | records


def _part(species: str, record: str, start: int) -> Part:
    digest = hashlib.sha256(f"{species}\n{record}\n{start // BLOCK}".encode()).digest()
    return "test" if int.from_bytes(digest[:4], "big") % HELD_BACK == 0 else "train"


def draw(rng: np.random.Generator, genome: Genome, length: int) -> NDArray[np.uint8]:
    """Draw a stretch of a genome, of either strand.

    Args:
        rng: All randomness.
        genome: Whose.
        length: Bases.

    Raises:
        UserError: No block is so long, or hardly a base is known.
    """
    blocks = [block for block in genome.blocks if len(block) >= length]
    if not blocks:
        raise UserError(f"{genome.name} has no block of {length:,} bases: blocks end after {BLOCK:,}, ask for fewer")
    for _ in range(_DRAWS):
        block = blocks[int(rng.integers(len(blocks)))]
        start = int(rng.integers(len(block) - length + 1))
        bases = block[start : start + length]
        if (bases == UNKNOWN).mean() <= _MOST_UNKNOWN:
            return reverse_complement(bases) if rng.integers(2) else bases
    raise UserError(f"hardly a base of {genome.name} is known: more than a tenth of every stretch drawn is N")


def make_next_base(rng: np.random.Generator, rows: int, genomes: Sequence[Genome], length: int) -> Labelled:
    """Draw rows of L bases, each asked for after the one before it; unknown ones are read and never asked.

    The mean loss in nats over ln 2 is bits per base; four bases that are as likely cost 2.
    """
    bases = np.stack([draw(rng, genomes[int(rng.integers(len(genomes)))], length + 1) for _ in range(rows)])
    wide = bases.astype(np.int64)
    return Labelled(wide[:, :-1], np.where(wide[:, 1:] == UNKNOWN, IGNORE, wide[:, 1:]))


def make_species(rng: np.random.Generator, rows: int, genomes: Sequence[Genome], length: int) -> Labelled:
    """Draw rows of L - 1 bases and the question which species they are from, each species as likely."""
    species = rng.integers(len(genomes), size=rows)
    ids = np.full((rows, length), QUESTION, np.int64)
    for row, number in enumerate(species.tolist()):
        ids[row, :-1] = draw(rng, genomes[number], length - 1)
    labels = np.full((rows, length), IGNORE, np.int64)
    labels[:, -1] = QUESTION + 1 + species
    return Labelled(ids, labels)


def make_classes(rng: np.random.Generator, rows: int, stretches: Sequence[Stretch], length: int) -> Labelled:
    """Draw rows of a stretch, in its own direction, and the question which class it is of, each stretch as likely.

    Of a stretch that is longer than L - 1 bases the first ones are read; a shorter row ends in unknown bases, which
    nobody is asked about.
    """
    ids = np.full((rows, length), UNKNOWN, np.int64)
    labels = np.full((rows, length), IGNORE, np.int64)
    for row, number in enumerate(rng.integers(len(stretches), size=rows).tolist()):
        bases, label = stretches[number]
        end = min(len(bases), length - 1)
        ids[row, :end] = bases[:end]
        ids[row, end], labels[row, end] = QUESTION, QUESTION + 1 + label
    return Labelled(ids, labels)
