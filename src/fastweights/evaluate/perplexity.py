"""Bits per byte and perplexity of documents, by the place in the document, the memory carried along or reset."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fastweights.data.documents import novels, open_novel
from fastweights.data.text import find_sources, read_text
from fastweights.data.tokenizer import Ids, Tokenizer
from fastweights.data.wikitext import read_wikitext
from fastweights.errors import UserError
from fastweights.evaluate.bits import PIECE, pieces_of, read_bits
from fastweights.evaluate.cells import circumstances
from fastweights.evaluate.ledger import RecordedLedger, Result
from fastweights.models.language_model import LanguageModel

FIRST_BUCKET = 256
"""Tokens of the first bucket; every further one ends at twice the place."""

_RESAMPLED = 1000
_SPACE = re.compile(r"\s+")


class Document(NamedTuple):
    """Something to read.

    Attributes:
        name: What to call it; no two have the same.
        open: Gives its text in pieces.
        raw: Gives the text that words and bytes are counted on; None for the same.
    """

    name: str
    open: Callable[[], Iterable[str]]
    raw: Callable[[], Iterable[str]] | None = None


class TextCost(NamedTuple):
    """What texts cost a model.

    Attributes:
        bits_per_byte: Of all of them together.
        low: End of its 95 % interval; see `interval_of`.
        high: The other end.
        tokens: That were predicted.
        size: Bytes that they stand for.
    """

    bits_per_byte: float
    low: float
    high: float
    tokens: int
    size: int


class DocumentStep(NamedTuple):
    """How an evaluation goes.

    Attributes:
        done: Documents that are done.
        documents: In all.
        tokens: Read of all documents in this call.
        seconds: Of reading.
        bits_per_byte: Of the documents that are done; None before the first.
    """

    done: int
    documents: int
    tokens: int
    seconds: float
    bits_per_byte: float | None


def novel_documents() -> list[Document]:
    """The shipped novels."""
    return [Document(novel.name, partial(open_novel, novel.name)) for novel in novels()]


def text_documents(paths: Sequence[str]) -> list[Document]:
    """Files, folders and patterns, each file a document.

    Raises:
        UserError: Nothing is found, or something that cannot be read twice.
    """
    found = find_sources(paths)
    for source in found:
        if source.size is None:
            raise UserError(f"{source.name} can be read only once: save it to a file to measure a model on it")
    return [Document(source.name, partial(read_text, source)) for source in found]


def wikitext_documents(path: str | Path) -> list[Document]:
    """The pages of a raw file of WikiText, read as plain text, their words and bytes counted as they stand there.

    Raises:
        UserError: The file cannot be read or has no pages.
    """
    return [
        Document(f"{number} {page.title}", partial(list, [page.text]), partial(list, [page.raw]))
        for number, page in enumerate(read_wikitext(path))
    ]


def evaluate_documents(
    model: LanguageModel,
    tokenizer: Tokenizer,
    model_name: str,
    documents: Sequence[Document],
    output: Path,
    *,
    max_tokens: int = 0,
    reset_every: int = 0,
    command: str = "",
    on_step: Callable[[DocumentStep], None] | None = None,
) -> dict[str, Any]:
    """Read documents one after the other and count what every token costs; results in `output` are kept.

    Args:
        model: Reads; put into evaluation mode.
        tokenizer: The one it was trained with.
        model_name: What to call it.
        documents: Each begins with an empty memory.
        output: The results: bits per byte, perplexity per word and per token, all that by place in the document, and
            the same of every document.
        max_tokens: Documents are cut there; 0 reads all. Words and bytes of a document that was cut are those of the
            tokens that were read.
        reset_every: The model forgets everything after so many tokens, and begins again behind an end-of-text token; 0
            carries the memory to the document's end.
        command: What was typed; kept with date, machine and versions of every run that added documents.
        on_step: Called after each piece.

    Returns:
        What is in `output` at the end. ``bits_per_byte`` has a 95 % interval: documents drawn again with replacement.

    Raises:
        UserError: No documents, two of one name, an empty one; a negative number; an `output` that belongs to another
            model or other documents, or cannot be written.
        FastweightsError: The model's predictions are not finite.
    """
    _check(max_tokens, reset_every)
    names = [document.name for document in documents]
    if not names or len(set(names)) < len(names):
        raise UserError("bits are counted over documents with different names, at least one")
    facts = {
        "kind": "perplexity",
        "model": model_name,
        "fingerprint": model.fingerprint(),
        "documents": names,
        "max_tokens": max_tokens,
        "reset_every": reset_every,
    }
    run = {"command": command} | circumstances(str(next(model.parameters()).device), torch.get_num_threads())
    ledger = _Documents(output, facts, run)
    began, tokens = time.monotonic(), 0
    model.eval()

    def report(read: int = 0) -> None:
        nonlocal tokens
        tokens += read
        if on_step is not None:
            done = list(ledger.in_order())
            mean = _bits_per_byte(done) if done else None
            on_step(DocumentStep(len(done), len(names), tokens, time.monotonic() - began, mean))

    report()
    try:
        for document in documents:
            if document.name not in ledger.results:
                ledger.add(score_document(model, tokenizer, document, max_tokens, reset_every, report))
                report()
    finally:
        written = ledger.save()
    return written


def bits_per_byte(
    model: LanguageModel, tokenizer: Tokenizer, texts: Sequence[str], *, max_tokens: int = 0, reset_every: int = 0
) -> TextCost:
    """What texts cost a model; nothing is written.

    Args:
        model: Reads; put into evaluation mode.
        tokenizer: The one it was trained with.
        texts: Each begins with an empty memory.
        max_tokens: As for `evaluate_documents`.
        reset_every: The same.

    Raises:
        UserError: No texts, an empty one, or a negative number.
        FastweightsError: The model's predictions are not finite.
    """
    if not texts:
        raise UserError("bits are counted over at least one text")
    model.eval()
    documents = [Document(f"text {number}", partial(list, [text])) for number, text in enumerate(texts)]
    results = [score_document(model, tokenizer, document, max_tokens, reset_every) for document in documents]
    tokens, size = (sum(result[name] for result in results) for name in ("tokens", "bytes"))
    return TextCost(_bits_per_byte(results), *interval_of(results), tokens, size)


def score_document(
    model: LanguageModel,
    tokenizer: Tokenizer,
    document: Document,
    max_tokens: int = 0,
    reset_every: int = 0,
    on_read: Callable[[int], None] = lambda tokens: None,
) -> Result:
    """What one document costs; see `evaluate_documents`. Held in memory are a piece, and ``max_tokens`` ids.

    Returns:
        ``bits``, ``tokens``, ``bytes`` and ``words``, and ``buckets``: ``[tokens, bits, bytes]`` of the tokens before
        place `FIRST_BUCKET`, from there to twice that place, and so on.

    Raises:
        UserError: The document is empty, or a number is negative.
        FastweightsError: The model's predictions are not finite.
    """
    _check(max_tokens, reset_every)
    buckets: list[list[float]] = []
    read: list[Ids] = []
    state, first, cut = None, [tokenizer.eos], False
    for start, ids in _cut(pieces_of(tokenizer, document.open(), PIECE), max_tokens, reset_every):
        if max_tokens and start >= max_tokens:
            cut = True
            break
        if reset_every and start % reset_every == 0:
            state, first = None, [tokenizer.eos]
        (part,) = read_bits(model, [ids], first, state)
        state, first = part.state, ids[-1:].tolist()
        _fill(buckets, start, part.bits.numpy(), tokenizer, ids)
        if max_tokens:
            read.append(ids)
        on_read(len(ids))
    if not buckets:
        raise UserError(f"'{document.name}' is empty: there is nothing to predict")
    tokens, bits, size = (sum(column) for column in zip(*buckets, strict=True))
    raw_size, words = _counts([_text(tokenizer, read)] if cut else (document.raw or document.open)())
    return {
        "key": document.name,
        "tokens": tokens,
        "bits": round(bits, 3),
        # The text of a document that was cut inside a character has another size than its tokens.
        "bytes": size if cut else raw_size,
        "words": words,
        "buckets": [[count, round(cost, 3), size] for count, cost, size in buckets],
    }


def _cut(pieces: Iterable[Ids], max_tokens: int, reset_every: int) -> Iterator[tuple[int, Ids]]:
    """The pieces and the places where they start, also cut where the model forgets and where the limit is.

    What is behind the limit is for the caller to leave.
    """
    place = 0
    for piece in pieces:
        while len(piece):
            room = reset_every - place % reset_every if reset_every else len(piece)
            room = min(room, max_tokens - place) if place < max_tokens else room
            yield place, piece[:room]
            place += len(piece[:room])
            piece = piece[room:]


def _fill(buckets: list[list[float]], start: int, bits: np.ndarray, tokenizer: Tokenizer, ids: Ids) -> None:
    """Add tokens that stand from `start` on to the buckets of their places."""
    places = np.arange(start, start + len(ids))
    numbers = np.ceil(np.log2((places + 1) / FIRST_BUCKET)).clip(0).astype(int)
    sizes = np.array([len(tokenizer.token_bytes(token)) for token in ids.tolist()])
    while len(buckets) <= numbers[-1]:
        buckets.append([0, 0.0, 0])
    for number in np.unique(numbers).tolist():
        here = numbers == number
        buckets[number][0] += int(here.sum())
        buckets[number][1] += float(bits[here].sum())
        buckets[number][2] += int(sizes[here].sum())


def _check(max_tokens: int, reset_every: int) -> None:
    if min(max_tokens, reset_every) < 0:
        raise UserError("the most tokens of a document, and those between two resets, must be 0 or more")


def _counts(pieces: Iterable[str]) -> tuple[int, int]:
    """Bytes and words of a text in pieces. Words are what stands between white space, an empty one at either end too.

    So counts lm-evaluation-harness.
    """
    size, words, after_space = 0, 1, False
    for piece in pieces:
        if piece:
            size += len(piece.encode("utf-8", "surrogatepass"))
            words += len(_SPACE.findall(piece)) - (after_space and piece[0].isspace())
            after_space = piece[-1].isspace()
    return size, words


def _text(tokenizer: Tokenizer, read: Sequence[Ids]) -> str:
    return b"".join(tokenizer.token_bytes(token) for ids in read for token in ids.tolist()).decode("utf-8", "replace")


class _Documents(RecordedLedger):
    """The results of documents."""

    what = "these documents"

    def is_whole(self, result: Result) -> bool:
        return "buckets" in result

    def in_order(self) -> Sequence[Result]:
        return [self.results[name] for name in self.facts["documents"] if name in self.results]

    def summary(self, results: Sequence[Result]) -> dict[str, Any]:
        return {"runs": self.runs, "done": len(results)} | (_summary(results) if results else {})


def _summary(results: Sequence[Result]) -> dict[str, Any]:
    bits, tokens, words = (sum(result[name] for result in results) for name in ("bits", "tokens", "words"))
    depth = max(len(result["buckets"]) for result in results)
    places = []
    for number in range(depth):
        here = [result["buckets"][number] for result in results if number < len(result["buckets"])]
        count, cost, size = (sum(column) for column in zip(*here, strict=True))
        places.append(
            {"below": FIRST_BUCKET << number, "tokens": count, "bits_per_byte": round(cost / max(size, 1), 4)}
        )
    return {
        "bits_per_byte": round(_bits_per_byte(results), 4),
        "interval": [round(end, 4) for end in interval_of(results)] if len(results) > 1 else None,
        "token_perplexity": _perplexity(bits / tokens),
        "word_perplexity": _perplexity(bits / words),
        "places": places,
    }


def _perplexity(bits: float) -> float:
    """To six digits; what is beyond all floats ends at 2 ** 1000."""
    return float(f"{2.0 ** min(bits, 1000.0):.6g}")


def _bits_per_byte(results: Sequence[Result]) -> float:
    return sum(result["bits"] for result in results) / max(1, sum(result["bytes"] for result in results))


def interval_of(results: Sequence[Result]) -> tuple[float, float]:
    """95 % interval of bits per byte: of means over as many documents, drawn again with replacement.

    A single document says nothing of others; for it both ends are its own number.
    """
    bits, sizes = (np.array([result[name] for result in results], dtype=float) for name in ("bits", "bytes"))
    drawn = np.random.default_rng(0).integers(0, len(results), size=(_RESAMPLED, len(results)))
    means = bits[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
