"""FASTA files are read as they come: wrapped, compressed, in small letters, with unknown bases."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from fastweights.data.fasta import BASES, encode, read_fasta, read_intervals, reverse_complement
from fastweights.data.text import find_sources
from fastweights.errors import UserError

FASTA = ">one a genome\nACGT\nacgtn\n\n>two\n>three\nRYA\n"


def letters(bases: np.ndarray) -> str:
    return "".join(BASES[base] for base in bases)


def records(path: Path) -> dict[str, str]:
    (source,) = find_sources([str(path)])
    return {record.name: letters(record.bases) for record in read_fasta(source)}


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("compressed", [False, True])
def test_records(ends: str, compressed: bool, tmp_path: Path) -> None:
    path = tmp_path / ("a.fa.gz" if compressed else "a.fa")
    content = FASTA.replace("\n", ends).encode()
    path.write_bytes(gzip.compress(content) if compressed else content)
    assert records(path) == {"one": "ACGTACGTN", "two": "", "three": "NNA"}


def test_a_last_line_without_an_end_and_lines_over_pieces(tmp_path: Path) -> None:
    bases = "ACGT" * 40_000
    (tmp_path / "a.fa").write_text(f">x\n{bases[:100_001]}\n{bases[100_001:]}")
    assert records(tmp_path / "a.fa") == {"x": bases}


@pytest.mark.parametrize(
    ("content", "says"),
    [("ACGT\n", "must begin with '>'"), ("\n\n", "it has no record"), (">x\nAC-T\n", "record x has '-'")],
)
def test_other_files_are_refused(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_text(content)
    with pytest.raises(UserError, match=says):
        records(tmp_path / "a.fa")


def test_the_other_strand() -> None:
    assert letters(reverse_complement(encode("AACGTN"))) == "NACGTT"
    assert letters(encode("uUtT")) == "TTTT"


@pytest.mark.parametrize("compressed", [False, True])
def test_intervals_of_a_table(compressed: bool, tmp_path: Path) -> None:
    genome = {"chr1": encode("ACGTTGCA"), "2": encode("GGGC")}
    table = tmp_path / ("positive.csv.gz" if compressed else "positive.csv")
    content = b"id,region,start,end,strand\r\n0,chr1,0,3,+\r\n\r\n1,chr1,0,3,-\r\n2,chr2,1,4,+\r\n"
    table.write_bytes(gzip.compress(content) if compressed else content)
    assert [letters(bases) for bases in read_intervals(table, genome)] == ["ACG", "CGT", "GGC"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("region,start,end,strand\nchr1,0,4,+\nchr1,0,5,+\n", "row 2 of .* not in the genome: chr1 0 to 5"),
        ("chr,start,end,strand\nchr3,0,2,+\n", "row 1 of .* not in the genome: chr3"),
        ("chrom,start,end,strand\nchr1,2,2,+\n", "chr1 2 to 2"),
        ("chrom,start,end,strand\nchr1,-1,2,+\n", "chr1 -1 to 2"),
        ("chrom,start,end,strand\nchr1,0,2,.\n", "strand ."),
        ("chrom,start,end,strand\nchr1,0,2\n", "row 1 of .* has 3 cells where its columns are 4"),
        ("a,b\n1,2\n", "needs columns region"),
    ],
)
def test_other_tables_are_refused(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(UserError, match=says):
        list(read_intervals(tmp_path / "a.csv", {"chr1": encode("ACGT")}))


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.csv"):
        list(read_intervals(tmp_path / "none.csv", {}))
