"""DNA as something to train on; `fastweights.tasks.dna` says what rows look like."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from fastweights.errors import UserError
from fastweights.tasks.dna import QUESTION, Genome, Part, make_next_base, make_species, read_genomes
from fastweights.train.task import Batch, Task, rng


@dataclass(frozen=True, kw_only=True)
class GenomeTask(Task):
    """Rows of stretches of genomes.

    Attributes:
        paths: FASTA files, folders or patterns, each file a species.
        part: of the genomes; the two share no base.
    """

    paths: tuple[str, ...] = ()
    part: Part = "train"

    def __post_init__(self) -> None:
        if not self.paths:
            raise UserError("a task on DNA needs genomes: name FASTA files in task.paths")

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


@lru_cache(maxsize=4)
def _genomes(paths: tuple[str, ...], part: Part) -> tuple[Genome, ...]:
    return read_genomes(paths, part)
