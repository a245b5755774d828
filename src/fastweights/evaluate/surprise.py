"""Whether surprise is what its name says: does it go with what is hard to predict, with new topics, with what is new?

Surprise is the norm of the inner gradient at a token, for every memory layer the mean over its heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastweights.core.types import Surprise
from fastweights.data.tokenizer import Ids, Tokenizer
from fastweights.errors import UserError
from fastweights.evaluate.bits import PIECE, pieces_of, read_bits
from fastweights.models.language_model import LanguageModel
from fastweights.train.loss import opened

Floats = NDArray[np.float64]


class Stream(NamedTuple):
    """A text as a model felt it; T tokens, L memory layers.

    Attributes:
        bits: float64 ``[T]``, what each token cost before it was read.
        surprise: float64 ``[L, T]``, norm of the inner gradient when it was read.
        write: float64 ``[L, T]``, the write gate, as a share of its head's largest step, mean over heads.
        forget: float64 ``[L, T]``, one less the gate that retains.
    """

    bits: Floats
    surprise: Floats
    write: Floats
    forget: Floats


class Mean(NamedTuple):
    """A mean over windows and half of its 95 % interval, as if windows were independent.

    Tokens are not: neighbours resemble each other, and an interval over them would be several times too narrow.
    """

    mean: float
    half: float
    number: int


class Response(NamedTuple):
    """A quantity around switches.

    Attributes:
        before: in the last window of each topic.
        behind: in the first one of the next.
        elsewhere: in windows that touch no switch.
        change: from before to behind, switch by switch.
    """

    before: Mean
    behind: Mean
    elsewhere: Mean
    change: Mean


class Switches(NamedTuple):
    """What a layer did around switches: its surprise, its write gate, its forget gate."""

    surprise: Response
    write: Response
    forget: Response


class Along(NamedTuple):
    """A reading of two texts in turns, window by window; W windows.

    Attributes:
        topic: tokens between two switches.
        window: tokens of a window.
        means: ``[W]`` and ``[L, W]``, the mean of each quantity in each window.
    """

    topic: int
    window: int
    means: Stream

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, to four digits."""
        rounded = {name: np.vectorize(lambda x: float(f"{x:.4g}"))(part) for name, part in self.means._asdict().items()}
        return {"topic": self.topic, "window": self.window} | {name: part.tolist() for name, part in rounded.items()}


class SurpriseReport(NamedTuple):
    """What surprise goes with.

    Attributes:
        tokens: of the text that bits were compared on.
        correlation: for each layer, Spearman's rank correlation of surprise and bits, -1 to 1.
        switches: for each layer.
        repetitions: for each layer, mean surprise of a passage at its first, second, ... reading in a row.
        along: surprise and gates along the text that switches.
    """

    tokens: int
    correlation: tuple[float, ...]
    switches: tuple[Switches, ...]
    repetitions: tuple[tuple[float, ...], ...]
    along: Along

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; None for a correlation that there is none of, since something never changed."""
        return {
            "tokens": self.tokens,
            "correlation": [None if math.isnan(one) else round(one, 4) for one in self.correlation],
            "switches": [
                {
                    part: {where: mean._asdict() for where, mean in response._asdict().items()}
                    for part, response in layer._asdict().items()
                }
                for layer in self.switches
            ],
            "repetitions": [[float(f"{mean:.5g}") for mean in layer] for layer in self.repetitions],
            "along": self.along.to_dict(),
        }


def surprise_report(
    model: LanguageModel,
    tokenizer: Tokenizer,
    first: Iterable[str],
    second: Iterable[str],
    *,
    tokens: int = 16_384,
    topic: int = 1024,
    window: int = 64,
    passage: int = 256,
    repetitions: int = 8,
    on_read: Callable[[int], None] | None = None,
) -> SurpriseReport:
    """Read two texts in three ways.

    The first one as it is: do surprise and bits go together? Both in turns, ``topic`` tokens of each: what happens
    around a switch? And the first ``passage`` tokens of it again and again.

    Args:
        model: has a memory with gates; put into evaluation mode.
        tokenizer: the one it was trained with.
        first: a text in pieces.
        second: another one.
        tokens: to read of the first text, and of both in turns.
        topic: tokens between two switches, at least three windows.
        window: tokens that count as "before a switch" and as "behind" it.
        passage: tokens that are repeated.
        repetitions: readings of them in a row.
        on_read: called with the tokens read so far.

    Raises:
        UserError: the model has no memory, a text is too short, or numbers make no sense.

    Cost: two readings of ``tokens``, one of ``passage * repetitions``.
    """
    if not model.config.has_memory:
        raise UserError(f"a model of wiring {model.config.wiring!r} has no memory, so nothing surprises it")
    if not 0 < 3 * window <= topic or 4 * topic > tokens or not 1 <= passage <= tokens or repetitions < 2:
        raise UserError(
            f"surprise needs three windows in a topic, four topics ({4 * topic:,}) and a passage in the {tokens:,} "
            "tokens, and two repetitions"
        )
    whole, other = _taken(tokenizer, first, tokens), _taken(tokenizer, second, tokens // 2)
    done = 0

    def felt(ids: Ids) -> Stream:
        nonlocal done

        def read(count: int) -> None:
            nonlocal done
            done += count
            if on_read is not None:
                on_read(done)

        return feel(model, tokenizer, ids, read)

    plain = felt(whole)
    turns = [part for pair in zip(_turns(whole, topic), _turns(other, topic), strict=False) for part in pair]
    mixed = felt(np.concatenate(turns))
    again = felt(np.tile(whole[:passage], repetitions))
    layers = range(len(plain.surprise))
    return SurpriseReport(
        tokens=len(plain.bits),
        correlation=tuple(rank_correlation(plain.surprise[layer], plain.bits) for layer in layers),
        switches=tuple(_switches(mixed, layer, topic, window) for layer in layers),
        repetitions=tuple(
            tuple(again.surprise[layer].reshape(repetitions, passage).mean(1).tolist()) for layer in layers
        ),
        along=_along(mixed, topic, window),
    )


def feel(
    model: LanguageModel, tokenizer: Tokenizer, ids: Ids, on_read: Callable[[int], None] = lambda count: None
) -> Stream:
    """Read tokens, each predicted before it is read.

    Args:
        model: put into evaluation mode.
        tokenizer: the one it was trained with.
        ids: int32 ``[T]``.
        on_read: called with the tokens of each piece.
    """
    model.eval()
    bits, streams = [], []
    # One token more at the end, so that the last one is read as well as predicted; what it cost is left out.
    padded = np.append(ids, ids[-1:])
    for part in read_bits(model, np.split(padded, range(PIECE, len(padded), PIECE)), [tokenizer.eos], surprise=True):
        bits.append(part.bits.numpy())
        gates = [[_norm(felt), opened(felt.lr, model.config.largest_lr), 1.0 - felt.retain] for felt in part.surprise]
        streams.append(np.array([[field[0].double().mean(0).cpu().numpy() for field in layer] for layer in gates]))
        on_read(len(part.ids))
    # The piece's surprise is that of the tokens before its own: it begins with `eos`.
    found = np.concatenate(streams, -1)[:, :, 1:]
    return Stream(np.concatenate(bits)[:-1], found[:, 0], found[:, 1], found[:, 2])


def _norm(felt: Surprise) -> Tensor:
    """The norm of the gradient; of tokens that were rejected 0, as in `fastweights.inference.surprise`."""
    return felt.gradient_norm.masked_fill(felt.rejected | ~felt.gradient_norm.isfinite(), 0)


def _taken(tokenizer: Tokenizer, text: Iterable[str], count: int) -> Ids:
    """The first tokens of a text."""
    found = np.concatenate([*islice(pieces_of(tokenizer, text), -(-count // PIECE)), np.zeros(0, np.int32)])
    if len(found) < count:
        raise UserError(
            f"a text has {len(found):,} tokens, too few to read {count:,}: give a longer one or ask for less"
        )
    return found[:count]


def _turns(ids: Ids, topic: int) -> Iterator[Ids]:
    return iter([ids[start : start + topic] for start in range(0, len(ids) - topic + 1, topic)])


def _along(stream: Stream, topic: int, window: int) -> Along:
    """The last window may be shorter, and is left out."""
    tokens = len(stream.bits) // window * window
    return Along(
        topic, window, Stream(*(part[..., :tokens].reshape(*part.shape[:-1], -1, window).mean(-1) for part in stream))
    )


def _switches(stream: Stream, layer: int, topic: int, window: int) -> Switches:
    parts = (stream.surprise, stream.write, stream.forget)
    return Switches(*(_response(part[layer].reshape(-1, topic), window) for part in parts))


def _response(topics: Floats, window: int) -> Response:
    """From ``[topics, tokens of a topic]``. The very first topic is no switch, and its beginning is left out."""
    before, behind = topics[:-1, -window:].mean(1), topics[1:, :window].mean(1)
    middle = topics[:, window:-window]
    whole = middle[:, : middle.shape[1] // window * window].reshape(-1, window)
    return Response(_mean(before), _mean(behind), _mean(whole.mean(1)), _mean(behind - before))


def _mean(values: Floats) -> Mean:
    half = 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Mean(float(f"{values.mean():.5g}"), float(f"{half:.3g}"), len(values))


def rank_correlation(one: Sequence[float] | Floats, other: Sequence[float] | Floats) -> float:
    """Spearman's rank correlation, -1 to 1; equal values share the mean of their ranks. NaN if one never changes."""
    a, b = _ranks(np.asarray(one)), _ranks(np.asarray(other))
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a * b).sum()) / scale if scale else math.nan


def _ranks(values: NDArray[Any]) -> Floats:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]
