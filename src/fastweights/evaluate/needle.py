"""Recall of needles: documents made while they are read, read once, then asked free-running.

Nothing here keeps a document: needles are hidden in a stream, so the memory used does not depend on the length.
"""

from __future__ import annotations

import random
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from fastweights.data.text import Source
from fastweights.data.tokenizer import Ids, Tokenizer
from fastweights.data.words import Split
from fastweights.errors import UserError
from fastweights.inference.feed import Tokens
from fastweights.inference.session import Progress, Session
from fastweights.inference.surprise import SurpriseCurve
from fastweights.models.language_model import LanguageModel
from fastweights.tasks.haystack import Haystack, noise, novel_haystack, text_haystack
from fastweights.tasks.needle import Needle, hide, make_needles, match_all, question

PIECE = 1024
"""Tokens of one document that are read at a time, at most."""

_CALL_TOKENS = 8192  # of all documents together in one call of the model: this bounds the memory used
_ASKED_TOGETHER = 8
_ANSWER_TOKENS = 24
_STOP = (".", "\n")


class HiddenDocument(NamedTuple):
    """A document before it is read.

    Attributes:
        needles: What is hidden, in the order of the depths.
        depths: One per needle, in percent.
        haystack: What they are hidden in.
    """

    needles: tuple[Needle, ...]
    depths: tuple[float, ...]
    haystack: Haystack


class Found(NamedTuple):
    """One needle after it has been asked for.

    Attributes:
        document: Index of the document.
        depth: In percent.
        position: Tokens of the document in front of it.
        key: What was asked for.
        expected: Its value.
        answer: What the model said, without the full stop.
        right: Whether the answer contains the value.
    """

    document: int
    depth: float
    position: int
    key: str
    expected: str
    answer: str
    right: bool


class NeedleResult(NamedTuple):
    """What came of reading several documents and asking for every needle.

    Attributes:
        tokens: Length of each document, as asked for.
        documents: Number of documents.
        needles: Needles in each of them.
        answers: Every needle, by document and depth.
        seconds: Time of the reading.
        tokens_per_second: Of all documents together, while reading.
        state_bytes_start: Size of the memory of all documents before the first token.
        state_bytes_end: The same after the last one.
        peak_rss_bytes: Largest size of this process so far.
        largest_norm: Largest Frobenius norm of all fast weights of a document while reading, the mean over documents.
        non_finite: Numbers of the memories that are not finite after the last token.
        rejected: Tokens that some layer left out as not finite.
        curves: Surprise along each document.
    """

    tokens: int
    documents: int
    needles: int
    answers: tuple[Found, ...]
    seconds: float
    tokens_per_second: float
    state_bytes_start: int
    state_bytes_end: int
    peak_rss_bytes: int
    largest_norm: float
    non_finite: int
    rejected: int
    curves: tuple[SurpriseCurve, ...]

    @property
    def right(self) -> int:
        """Right answers."""
        return sum(found.right for found in self.answers)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON values, without the curves."""
        return {
            "tokens": self.tokens,
            "documents": self.documents,
            "needles": self.needles,
            "right": self.right,
            "answers": [found._asdict() for found in self.answers],
            "tokens_per_second": round(self.tokens_per_second, 1),
            "state_bytes_start": self.state_bytes_start,
            "state_bytes_end": self.state_bytes_end,
            "peak_rss_bytes": self.peak_rss_bytes,
            "largest_norm": round(self.largest_norm, 4),
            "non_finite": self.non_finite,
            "rejected": self.rejected,
        }


def make_documents(
    seed: int, documents: int, needles: int, sources: Sequence[Source] | None = None, split: Split = "all"
) -> list[HiddenDocument]:
    """Draw documents: needles, depths, and where in the text each begins.

    Several needles of one document stand at depths spread evenly over 0-100 %. A single needle's depth is spread evenly
    over the documents, or drawn where there is one document.

    Args:
        seed: Decides everything. Document i is the same whatever the number of documents, but for a single needle's
            depth.
        documents: How many.
        needles: In each of them.
        sources: Text to hide the needles in; by default the shipped novels. An empty sequence stands for RULER's noise.
        split: Which words the keys are made of; see `make_needles`.

    Raises:
        UserError: No document, no needle, or a source that can be read only once.
    """
    if documents < 1 or needles < 1:
        raise UserError(f"at least one document and one needle are needed, not {documents} and {needles}")
    made = []
    for index in range(documents):
        rng = random.Random(f"needle document {seed}/{index}")
        hidden = tuple(make_needles(rng, needles, split=split))
        if sources is None:
            haystack = novel_haystack(rng)
        else:
            haystack = text_haystack(sources, rng) if sources else noise()
        if needles > 1:
            depths = tuple(100 * place / (needles - 1) for place in range(needles))
        else:
            depths = (100 * index / (documents - 1) if documents > 1 else float(rng.randint(0, 100)),)
        made.append(HiddenDocument(hidden, depths, haystack))
    return made


def recall_needles(
    model: LanguageModel,
    tokenizer: Tokenizer,
    documents: Sequence[HiddenDocument],
    tokens: int,
    *,
    on_progress: Callable[[Progress], None] | None = None,
) -> NeedleResult:
    """Read every document once, side by side as rows of one batch, then ask for each needle by its key.

    Args:
        model: Reads and answers, greedily and free-running.
        tokenizer: The one it was trained with.
        documents: All with the same number of needles.
        tokens: Length of each.
        on_progress: Called after each piece that was read.

    Raises:
        UserError: The needles do not fit into `tokens`, or a text that cannot be read.

    Cost: the memory used depends on the number of documents, not on their length.
    """
    piece = min(PIECE, max(1, _CALL_TOKENS // len(documents)))
    session = Session(model, tokenizer, rows=len(documents), piece=piece)
    places = [[0] * len(document.needles) for document in documents]
    streams = [
        Tokens(_stream(document, tokenizer, tokens, marks)) for document, marks in zip(documents, places, strict=True)
    ]
    names = [f"document {index}" for index in range(len(documents))]
    norms = [0.0]

    def watch(step: Progress) -> None:
        norms[0] = max(norms[0], step.norm)
        if on_progress is not None:
            on_progress(step)

    start, began = session.state_bytes(), time.monotonic()
    read = session.read_rows(streams, names=names, on_progress=watch)
    seconds = time.monotonic() - began
    health = session.health()
    answers = _ask(session, documents, places)
    return NeedleResult(
        tokens=tokens,
        documents=len(documents),
        needles=len(documents[0].needles),
        answers=tuple(answers),
        seconds=seconds,
        tokens_per_second=read / seconds,
        state_bytes_start=start,
        state_bytes_end=session.state_bytes(),
        peak_rss_bytes=peak_rss_bytes(),
        largest_norm=norms[0],
        non_finite=health.non_finite,
        rejected=sum(health.rejected),
        curves=tuple(session.curve(row) for row in range(len(documents))),
    )


def needle_curve(
    model: LanguageModel,
    tokenizer: Tokenizer,
    lengths: Sequence[int],
    needles: int,
    documents: int,
    seeds: Sequence[int],
    *,
    split: Split = "all",
    sources: Sequence[Source] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Iterator[tuple[int, NeedleResult]]:
    """Measure recall at growing lengths.

    Args:
        model: Reads and answers.
        tokenizer: The one it was trained with.
        lengths: Tokens of a document.
        needles: In each document.
        documents: For each length and seed.
        seeds: Of the documents; the same ones at every length.
        split: Which words the keys are made of.
        sources: See `make_documents`.
        on_progress: See `recall_needles`.

    Yields:
        The seed and the result, for each length and, within it, each seed. The peak size is that of the process so far.
    """
    for length in lengths:
        for seed in seeds:
            made = make_documents(seed, documents, needles, sources, split)
            yield seed, recall_needles(model, tokenizer, made, length, on_progress=on_progress)


def peak_rss_bytes() -> int:
    """The largest resident size that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _stream(document: HiddenDocument, tokenizer: Tokenizer, tokens: int, places: list[int]) -> Iterator[Ids]:
    """The tokens of a document; `places` is filled on the way with the tokens in front of each needle."""
    read = 0
    for passage in hide(tokenizer, document.needles, document.depths, document.haystack, tokens):
        if passage.needle >= 0:
            places[passage.needle] = read
        read += len(passage.ids)
        yield passage.ids


def _ask(session: Session, documents: Sequence[HiddenDocument], places: Sequence[Sequence[int]]) -> Iterator[Found]:
    pairs = [(row, index) for row, document in enumerate(documents) for index in range(len(document.needles))]
    for start in range(0, len(pairs), _ASKED_TOGETHER):
        group = pairs[start : start + _ASKED_TOGETHER]
        asked = [documents[row].needles[index] for row, index in group]
        answers = session.fork([row for row, _ in group]).ask_each(
            [question(needle) for needle in asked], max_tokens=_ANSWER_TOKENS, stop=_STOP
        )
        for (row, index), needle, answer in zip(group, asked, answers, strict=True):
            text = answer.text.strip()
            right = match_all(text, [needle.value]) == 1
            depth, place = documents[row].depths[index], places[row][index]
            yield Found(row, round(depth, 2), place, needle.key, needle.value, text, right)
