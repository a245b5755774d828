"""Ten complete novels that are shipped with the package: real text without a network.

Public domain, from the ELTeC-eng corpus. They are for demonstrations and tests: nothing shipped with the package is
trained on them.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from importlib import resources
from io import TextIOWrapper
from typing import NamedTuple

from fastweights.errors import UserError

CITATION = (
    "English Novel Corpus (ELTeC-eng), edited by Lou Burnard. In: European Literary Text Collection (ELTeC), COST "
    "Action Distant Reading for European Literary History (CA16204). https://doi.org/10.5281/zenodo.3462536. The texts "
    "are in the public domain; the textual markup, which is not kept here, is licensed CC BY 4.0."
)

_PIECE_CHARS = 65_536


class Novel(NamedTuple):
    """A shipped novel.

    Attributes:
        name: Its identifier in ELTeC-eng, and what `open_novel` takes.
        title: Title.
        author: Author.
        year: Year of the edition that was transcribed.
        characters: Length of the text.
    """

    name: str
    title: str
    author: str
    year: int
    characters: int


_NOVELS = (
    Novel("ENG18400_Trollope", "The Life and Adventures of Michael Armstrong", "Frances Trollope", 1840, 1_143_330),
    Novel("ENG18560_Yonge", "The Daisy Chain", "Charlotte M. Yonge", 1856, 1_631_986),
    Novel("ENG18661_Oliphant", "Miss Marjoribanks", "Margaret Oliphant", 1866, 1_126_602),
    Novel("ENG18670_Ouida", "Under Two Flags", "Ouida", 1867, 1_361_409),
    Novel("ENG18820_Anstey", "Vice Versa", "F. Anstey", 1882, 522_423),
    Novel("ENG18850_Rutherford", "Mark Rutherford's Deliverance", "William Hale White", 1885, 210_358),
    Novel("ENG18860_Hardy", "The Mayor of Casterbridge", "Thomas Hardy", 1886, 653_333),
    Novel("ENG18871_Broughton", "Red as a Rose Is She", "Rhoda Broughton", 1887, 768_547),
    Novel("ENG18900_Doyle", "The Sign of the Four", "Arthur Conan Doyle", 1890, 231_496),
    Novel("ENG18972_Morris", "The Water of the Wondrous Isles", "William Morris", 1897, 757_732),
)


def novels() -> tuple[Novel, ...]:
    """Return the shipped novels, by year: 8.4 million characters, about 2.34 million tokens of the 4,096-entry BPE."""
    return _NOVELS


def open_novel(name: str) -> Iterator[str]:
    """Yield the text of a novel in pieces of at most 64 Ki characters, decompressed as it is read.

    Raises:
        UserError: No novel of that name.
    """
    if name not in {novel.name for novel in _NOVELS}:
        raise UserError(f"no novel {name!r}: choose one of {', '.join(novel.name for novel in _NOVELS)}.")
    return _read(name)


def _read(name: str) -> Iterator[str]:
    asset = resources.files("fastweights.data") / "assets" / "novels" / f"{name}.txt.xz"
    with asset.open("rb") as raw, TextIOWrapper(lzma.LZMAFile(raw), "utf-8", newline="") as text:
        while piece := text.read(_PIECE_CHARS):
            yield piece
