"""Next-token prediction on text files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np

from fastweights.data.documents import open_novel
from fastweights.data.text import find_sources, read_text
from fastweights.data.tokenizer import Ids, load_tokenizer
from fastweights.errors import UserError
from fastweights.train.task import Batch, Task, rng


@dataclass(frozen=True, kw_only=True)
class TextTask(Task):
    """Rows cut at random places out of texts, every token predicted.

    All texts are held in memory as token ids, 4 bytes each, joined by the tokenizer's end-of-text id.

    Attributes:
        tokenizer: ``bytes``, ``bpe4096`` or the path of a tokenizer's JSON file.
        paths: files, folders, patterns (see `fastweights.data.text.find_sources`).
        novels: names of shipped novels (see `fastweights.data.documents.novels`), read after the paths.
    """

    tokenizer: str = "bytes"
    paths: tuple[str, ...] = ()
    novels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.paths and not self.novels:
            raise UserError("a text task needs paths: name files or folders, as in task.paths=book.txt,notes/")

    def batch(self, seed: int, index: int, batch_size: int, length: int) -> Batch:
        ids = _tokens(self.tokenizer, self.paths, self.novels)
        if len(ids) <= length:
            raise UserError(
                f"the texts hold {len(ids)} tokens, too few for rows of {length}: give more or shorten them"
            )
        starts = rng(seed, index).integers(0, len(ids) - length, size=batch_size)
        rows = ids[starts[:, None] + np.arange(length + 1)]
        return Batch.from_tokens(rows, np.ones(rows.shape))


@lru_cache(maxsize=4)
def _tokens(tokenizer_name: str, paths: tuple[str, ...], novels: tuple[str, ...]) -> Ids:
    tokenizer = load_tokenizer(tokenizer_name)
    parts: list[Ids] = []
    for text in chain(map(read_text, find_sources(paths) if paths else ()), map(open_novel, novels)):
        parts.extend(tokenizer.encode_stream(text))
        parts.append(np.array([tokenizer.eos], dtype=np.int32))
    return np.concatenate(parts)
