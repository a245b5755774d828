"""DNA as something to train on; `fastweights.tasks.dna` says what rows look like."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from fastweights.errors import UserError
from fastweights.tasks.dna import (
    QUESTION,
    Genome,
    Part,
    Stretch,
    make_classes,
    make_next_base,
    make_species,
    read_classes,
    read_genomes,
)
from fastweights.train.task import Batch, Task, rng


@dataclass(frozen=True, kw_only=True)
class DNATask(Task):
    """Rows of stretches of DNA.

    Attributes:
        paths: FASTA files, folders or patterns.
    """

    paths: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.paths:
            raise UserError("a task on DNA needs genomes: name FASTA files in task.paths")


@dataclass(frozen=True, kw_only=True)
class GenomeTask(DNATask):
    """Stretches from anywhere in genomes, each file a species.

    Attributes:
        part: of the genomes; the two share no base.
    """

    part: Part = "train"

    @property
    def genomes(self) -> tuple[Genome, ...]:
        """Read once."""
        return _genomes(self.paths, self.part)


@dataclass(frozen=True, kw_only=True)
class NextBaseTask(GenomeTask):
    """The next base; a probe's loss over ln 2 is bits per base."""

    @property
    def vocab_size(self) -> int:
        """What a model's vocabulary must hold at least."""
        return QUESTION

    def batch(self, seed: int, index: int, batch_size: int, length: int) -> Batch:
        return Batch.from_labels(*make_next_base(rng(seed, index), batch_size, self.genomes, length))


@dataclass(frozen=True, kw_only=True)
class SpeciesTask(GenomeTask):
    """Which species a stretch is from; asked once a row, at its end."""

    @property
    def vocab_size(self) -> int:
        """What a model's vocabulary must hold at least."""
        return QUESTION + 1 + len(self.genomes)

    def batch(self, seed: int, index: int, batch_size: int, length: int) -> Batch:
        return Batch.from_labels(*make_species(rng(seed, index), batch_size, self.genomes, length))


@dataclass(frozen=True, kw_only=True)
class IntervalTask(DNATask):
    """Which class a stretch is of that a table names, as in GenomicBenchmarks; asked once a row, behind its last base.

    Attributes:
        tables: CSV files, one for each class, such as ``train/negative.csv.gz`` and ``train/positive.csv.gz``. A probe
            names those of ``test`` in the same order.
    """

    tables: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tables:
            raise UserError("a task on intervals needs a table for each class: name CSV files in task.tables")

    @property
    def vocab_size(self) -> int:
        """What a model's vocabulary must hold at least."""
        return QUESTION + 1 + len(self.tables)

    def batch(self, seed: int, index: int, batch_size: int, length: int) -> Batch:
        stretches = _stretches(self.tables, self.paths)
        return Batch.from_labels(*make_classes(rng(seed, index), batch_size, stretches, length))


@lru_cache(maxsize=4)
def _genomes(paths: tuple[str, ...], part: Part) -> tuple[Genome, ...]:
    return read_genomes(paths, part)


@lru_cache(maxsize=4)
def _stretches(tables: tuple[str, ...], paths: tuple[str, ...]) -> tuple[Stretch, ...]:
    found = tuple(read_classes(tables, paths))
    if not found:
        raise UserError(f"the tables name no interval: {', '.join(tables)}")
    return found
