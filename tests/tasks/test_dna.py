"""Stretches of genomes: the parts share nothing, unknown bases are never asked, species are told by their label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastweights.data.fasta import UNKNOWN, encode, reverse_complement
from fastweights.errors import UserError
from fastweights.tasks.dna import (
    BLOCK,
    QUESTION,
    Genome,
    Stretch,
    draw,
    make_classes,
    make_next_base,
    make_species,
    read_classes,
    read_genomes,
)
from fastweights.tasks.labelled import IGNORE, accuracy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two species of twenty blocks each."""
    rng = np.random.default_rng(0)
    for name, letters in (("ape", "ACGT"), ("bee", "AT")):
        bases = "".join(rng.choice(list(letters), 20 * BLOCK))
        (tmp_path / f"{name}.fa").write_text(f">{name}1\n{bases}\n")
    return tmp_path


def genomes(folder: Path, part: str = "train") -> tuple[Genome, ...]:
    return read_genomes([str(folder / "ape.fa"), str(folder / "bee.fa")], part)  # type: ignore[arg-type]


def test_the_parts_share_no_base_and_lose_none(folder: Path) -> None:
    train, test = genomes(folder), genomes(folder, "test")
    assert [genome.name for genome in train] == ["ape", "bee"]
    for one, other in zip(train, test, strict=True):
        assert len(one.blocks) + len(other.blocks) == 20
        assert 1 <= len(other.blocks) <= 9
        assert {block.tobytes() for block in one.blocks}.isdisjoint(block.tobytes() for block in other.blocks)
        assert all(len(block) == BLOCK for block in one.blocks)


def test_stretches_are_of_either_strand() -> None:
    genome = Genome("x", (encode("AACCCGTA" * 3),))
    both = {genome.blocks[0].tobytes(), reverse_complement(genome.blocks[0]).tobytes()}
    rng = np.random.default_rng(0)
    assert {draw(rng, genome, 24).tobytes() for _ in range(20)} == both
    with pytest.raises(UserError, match="no block of 25 bases"):
        draw(rng, genome, 25)
    with pytest.raises(UserError, match="hardly a base of x is known"):
        draw(rng, Genome("x", (encode("NNNNACGT"),)), 8)


def test_unknown_bases_are_read_and_never_asked() -> None:
    genome = Genome("x", (encode("ACGTNACGTACGTACGTACGT"),))
    ids, labels = make_next_base(np.random.default_rng(0), 8, [genome], 20)
    assert bool((ids == UNKNOWN).any(1).all())
    assert np.array_equal(labels == IGNORE, np.roll(ids == UNKNOWN, -1, 1) & (np.arange(20) < 19))
    known = labels[:, :-1] != IGNORE
    assert np.array_equal(labels[:, :-1][known], ids[:, 1:][known])


def test_species_are_asked_at_the_end(folder: Path) -> None:
    found = genomes(folder)
    rows = make_species(np.random.default_rng(0), 64, found, 33)
    assert bool((rows.ids[:, -1] == QUESTION).all())
    assert bool((rows.labels[:, :-1] == IGNORE).all())
    assert set(rows.labels[:, -1].tolist()) == {QUESTION + 1, QUESTION + 2}
    # Who counts C and G knows the second species, which has none.
    knows = np.where((rows.ids[:, :-1] == 1).any(1) | (rows.ids[:, :-1] == 2).any(1), QUESTION + 1, QUESTION + 2)
    assert accuracy(np.tile(knows[:, None], 33), rows.labels) == 1.0
    assert 0.3 < accuracy(np.full_like(rows.labels, QUESTION + 1), rows.labels) < 0.7
    again = make_species(np.random.default_rng(0), 64, found, 33)
    assert np.array_equal(again.ids, rows.ids)


def test_a_short_genome_may_have_nothing_to_train_on(tmp_path: Path) -> None:
    """Its only block belongs to one of the parts."""
    (tmp_path / "a.fa").write_text(">x\nACGT\n")
    paths = [str(tmp_path / "a.fa")]
    assert len(read_genomes(paths, "test")[0].blocks) == 1
    with pytest.raises(UserError, match="has no block of 1 bases for the part train"):
        read_genomes(paths, "train")


def test_stretches_of_tables_have_the_class_of_their_table(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_text(">1\nACGTAC\n>ENST07.3 cdna\nGGGTTT\n")
    tables = {"negative": "chr1,0,2,+\nchr1,0,2,-\n", "positive": "ENST07,2,5,+\nENST07.3,0,1,+\n"}
    for name, rows in tables.items():
        (tmp_path / f"{name}.csv").write_text(f"region,start,end,strand\n{rows}")
    named = [str(tmp_path / f"{name}.csv") for name in tables]
    found = [
        ("".join("ACGTN"[base] for base in bases), label)
        for bases, label in read_classes(named, [str(tmp_path / "a.fa")])
    ]
    assert found == [("AC", 0), ("GT", 0), ("GTT", 1), ("G", 1)]
    with pytest.raises(UserError, match="no table of intervals"):
        list(read_classes([], [str(tmp_path / "a.fa")]))


def test_names_of_records_tell_them_apart(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_text(">t.1\nACGT\n>t.2\nGGTT\n>u.1\nCCAA\n")
    (tmp_path / "b.fa").write_text(">t.1\nTTTT\n")
    table = tmp_path / "t.csv"
    for name, bases in (("t.2", "GG"), ("u", "CC"), ("t", None)):
        table.write_text(f"region,start,end,strand\n{name},0,2,+\n")
        if bases is None:
            with pytest.raises(UserError, match="names what is not in the genome: t 0 to 2"):
                list(read_classes([str(table)], [str(tmp_path / "a.fa")]))
        else:
            (stretch,) = read_classes([str(table)], [str(tmp_path / "a.fa")])
            assert "".join("ACGTN"[base] for base in stretch.bases) == bases
    with pytest.raises(UserError, match=r"two records are called 't.1', one in .*b.fa"):
        list(read_classes([str(table)], [str(tmp_path / "a.fa"), str(tmp_path / "b.fa")]))


def test_classes_are_asked_behind_the_last_base() -> None:
    stretches = [Stretch(encode("ACGTACGT"), 0), Stretch(encode("GG"), 1)]
    ids, labels = make_classes(np.random.default_rng(0), 32, stretches, 6)
    rows = {(*row, *asked) for row, asked in zip(ids.tolist(), labels.tolist(), strict=True)}
    none = IGNORE
    assert rows == {
        (0, 1, 2, 3, 0, QUESTION, none, none, none, none, none, QUESTION + 1),
        (2, 2, QUESTION, UNKNOWN, UNKNOWN, UNKNOWN, none, none, QUESTION + 2, none, none, none),
    }
