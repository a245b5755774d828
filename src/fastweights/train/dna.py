"""DNA as something to train on; `fastweights.tasks.dna` says what rows look like."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from fastweights.errors import UserError
from fastweights.tasks.dna import QUESTION, Genome, Part, make_next_base, make_species, read_genomes
from fastweights.train.task import Batch, Task, rng


@dataclass(frozen=True, kw_only=True)
class NextBaseTask(Task):
    """The next base of stretches of genomes; a probe's loss over ln 2 is bits per base.

    Attributes:
        paths: FASTA files, folders or patterns, each file a species.
        part: of the genomes; the two share no base.
    """

    paths: tuple[str, ...] = ()
    part: Part = "train"

    def __post_init__(self) -> None:
        _require_paths(self.paths)

    @property
    def vocab_size(self) -> int:
        """What a model's vocabulary must hold at least."""
        return QUESTION

    def batch(self, seed: int, index: int, batch_size: int, length: int) -> Batch:
        return Batch.from_labels(*make_next_base(rng(seed, index), batch_size, _genomes(self.paths, self.part), length))


@dataclass(frozen=True, kw_only=True)
class SpeciesTask(Task):
    """Which species a stretch is from; asked once a row, at its end.

    Attributes:
        paths: FASTA files, folders or patterns, each file a species.
        part: of the genomes; the two share no base.
    """

    paths: tuple[str, ...] = ()
    part: Part = "train"

    def __post_init__(self) -> None:
        _require_paths(self.paths)

    @property
    def vocab_size(self) -> int:
        """What a model's vocabulary must hold at least."""
        return QUESTION + 1 + len(_genomes(self.paths, self.part))

    def batch(self, seed: int, index: int, batch_size: int, length: int) -> Batch:
        return Batch.from_labels(*make_species(rng(seed, index), batch_size, _genomes(self.paths, self.part), length))


def _require_paths(paths: tuple[str, ...]) -> None:
    if not paths:
        raise UserError("a task on DNA needs genomes: name FASTA files in task.paths")


@lru_cache(maxsize=4)
def _genomes(paths: tuple[str, ...], part: Part) -> tuple[Genome, ...]:
    return read_genomes(paths, part)
