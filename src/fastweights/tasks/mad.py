"""MAD: six small tasks that tell architectures apart.

Poli et al. 2024, "Mechanistic Design and Scaling of Hybrid Architectures"; the constructions are those of
athms/mad-lab, and `BASELINES` holds its settings. There 12,800 rows are trained on (memorization: 256), and 1,280 are
tested.

All labels stand where the answer is to be predicted, *after* reading the token of the same position.

**In-context recall, noisy in-context recall** (`RecallSpec`). Pairs of a key, drawn evenly, and its value, drawn once a
row and key. When a key returns, its value is asked; that of the last pair always is. Noise replaces pairs, never all in
front of the last. One row with keys 0 to 2, values 3 to 5 and noise 6 and 7::

    ids:      1  4  7  6  0  5  1  4  2  4  0  5
    labels:   .  .  .  .  .  .  4  .  .  .  5  .

**Fuzzy in-context recall** (`FuzzyRecallSpec`). The same with keys and values of several different tokens each, padded
at the left with the last token of the vocabulary, here 10. Keys 0 to 4, values 5 to 9::

    ids:     10  2  0  8  4  1  5  9  7  4  1  5  9  7
    labels:   .  .  .  .  .  .  .  .  .  .  5  9  7  .

**Selective copying** (`CopyingSpec`). Tokens, blanks among them, the copy token and as many blanks as there are tokens,
where the tokens are asked in order. Vocabulary 8, so 6 is the blank, 7 the copy token::

    ids:      6  3  6  6  0  3  7  6  6  6
    labels:   .  .  .  .  .  .  .  3  0  3

**Compression** (`CompressionSpec`). Random tokens and the compression token. The whole row is asked, each place at its
own position, but *only the state after the last token may be used*: the published model decodes each token with a small
network from that state plus an encoding of the place. Read as a language model's labels the task is trivial. ::

    ids:      4  0  4  2  6  1  3  7
    labels:   4  0  4  2  6  1  3  7

**Memorization** (`MemorizationSpec`). Keys, each followed by the insert token, where the key's value is asked. No value
is ever shown: the map from keys to values is the same in all rows. Vocabulary 9, keys 0 to 3, insert token 8::

    ids:      3  8  0  8  3  8
    labels:   .  5  .  7  .  5

Shapes: B rows, L tokens, P pairs of positions, K keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from fastweights.errors import UserError
from fastweights.tasks.labelled import IGNORE, Labelled

Phase = Literal["train", "test"]
"""Recall is trained to predict every next token and tested where the answer is known: `labels` differ."""


def _require_phase(phase: str) -> None:
    """Refuse what is neither training nor test."""
    if phase not in get_args(Phase):
        raise UserError(f"phase must be train or test, not {phase}.")


@dataclass(frozen=True)
class RecallSpec:
    """What a row of (noisy) in-context recall looks like.

    Attributes:
        length: L, even. All L tokens are kept (the published rows are one shorter, as the last asks nothing).
        vocab_size: V, even; K = (V - noise_tokens) / 2 keys from 0 on, then as many values, then the noise.
        noise: Share of pairs that are two random noise tokens instead, each with this probability.
        noise_tokens: How many tokens are noise, even.
        phase: "test" asks for values of keys that return, "train" for every next token.
    """

    length: int = 128
    vocab_size: int = 16
    noise: float = 0.0
    noise_tokens: int = 0
    phase: Phase = "test"

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        _require_phase(self.phase)
        if self.length < 4 or self.length % 2:
            raise UserError(f"a key must return, so length must be even and at least 4, not {self.length}.")
        if not 0 <= self.noise < 1 or (self.noise > 0 and self.noise_tokens < 2):
            raise UserError(
                f"noise must lie in [0, 1) and have tokens of its own: not {self.noise} of {self.noise_tokens} tokens."
            )
        if self.noise_tokens < 0 or self.noise_tokens % 2 or self.vocab_size % 2 or self.keys < 1:
            raise UserError(
                f"vocab_size must be even and hold keys, values and an even number of noise tokens, "
                f"not be {self.vocab_size} with {self.noise_tokens} of noise."
            )

    @property
    def keys(self) -> int:
        """K, the number of keys and of values."""
        return (self.vocab_size - self.noise_tokens) // 2


@dataclass(frozen=True)
class FuzzyRecallSpec:
    """What a row of fuzzy in-context recall looks like.

    The tokens of one key or value differ; of those of one length all are equally likely. A key is asked at its last
    token and at all of the value's but the last. Pairs are written as long as the longest two more fit; the last pair
    repeats one of the keys before it, drawn evenly.

    Attributes:
        length: L; all L tokens are kept, as in `RecallSpec`.
        vocab_size: V; (V - 1) // 2 tokens of keys from 0 on, then those of values, then the padding.
        key_tokens: Length of keys; with phase "train" lengths from 1 to this are drawn evenly.
        value_tokens: Values have lengths from 1 to this, drawn evenly.
        phase: "test" asks for values of keys that return, "train" for every next token that is not padding.
    """

    length: int = 128
    vocab_size: int = 16
    key_tokens: int = 3
    value_tokens: int = 3
    phase: Phase = "test"

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        _require_phase(self.phase)
        for name, tokens, room in (("key", self.key_tokens, self.keys), ("value", self.value_tokens, self.values)):
            if not 1 <= tokens <= room:
                raise UserError(
                    f"{name}_tokens must lie in 1 to {room}, the tokens that a vocab_size of {self.vocab_size} has "
                    f"for them, not be {tokens}."
                )
        if self.length < 2 * self.pair:
            raise UserError(f"two pairs of {self.pair} tokens do not fit into a length of {self.length}.")

    @property
    def keys(self) -> int:
        """How many tokens keys are made of."""
        return (self.vocab_size - 1) // 2

    @property
    def values(self) -> int:
        """How many tokens values are made of."""
        return self.vocab_size - 1 - self.keys

    @property
    def pair(self) -> int:
        """Tokens of the longest pair."""
        return self.key_tokens + self.value_tokens


@dataclass(frozen=True)
class CopyingSpec:
    """What a row of selective copying looks like.

    As published, each blank stands in front of one of the tokens, drawn evenly, so none stands behind the last.

    Attributes:
        length: L.
        vocab_size: V; the blank is V - 2, the copy token V - 1.
        copies: How many tokens are to be copied.
    """

    length: int = 256
    vocab_size: int = 16
    copies: int = 16

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.vocab_size < 3:
            raise UserError(
                f"beside blank and copy token something is copied: vocab_size must not be {self.vocab_size}."
            )
        if self.copies < 1 or self.length < 2 * self.copies + 1:
            raise UserError(f"{self.copies} tokens, twice, and a copy token do not fit into a length of {self.length}.")


@dataclass(frozen=True)
class CompressionSpec:
    """What a row of compression looks like.

    Attributes:
        length: L, with the compression token.
        vocab_size: V; the compression token is V - 1.
    """

    length: int = 32
    vocab_size: int = 16

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.length < 2 or self.vocab_size < 2:
            raise UserError(
                f"a row is a token and the compression token or more: "
                f"length and vocab_size must be at least 2, not {self.length} and {self.vocab_size}."
            )


@dataclass(frozen=True)
class MemorizationSpec:
    """What a row of memorization looks like.

    Attributes:
        length: L, even.
        vocab_size: V; K = (V - 1) // 2 keys from 0 on, then the values, each of one key at most, and the insert token
            V - 1.
        seed: Of the map from keys to values, which is not the published one but drawn in the same way.
    """

    length: int = 32
    vocab_size: int = 256
    seed: int = 12345

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.length < 2 or self.length % 2:
            raise UserError(f"every key has an insert token, so length must be even and at least 2, not {self.length}.")
        if self.vocab_size < 3:
            raise UserError(f"vocab_size must hold a key, a value and the insert token, not be {self.vocab_size}.")
        if self.seed < 0:
            raise UserError(f"seed must be 0 or more, not {self.seed}.")


MADSpec: TypeAlias = RecallSpec | FuzzyRecallSpec | CopyingSpec | CompressionSpec | MemorizationSpec

BASELINES: dict[str, MADSpec] = {
    "in-context-recall": RecallSpec(),
    "fuzzy-in-context-recall": FuzzyRecallSpec(),
    "noisy-in-context-recall": RecallSpec(vocab_size=32, noise=0.2, noise_tokens=16),
    "selective-copying": CopyingSpec(),
    "compression": CompressionSpec(),
    "memorization": MemorizationSpec(),
}
"""The published settings by the published names, in their test phase."""


def make_mad(rng: np.random.Generator, rows: int, spec: MADSpec) -> Labelled:
    """Draw `rows` rows of the task that the kind of `spec` stands for.

    Args:
        rng: All randomness, except for what memorization maps to what; equal generators give equal rows.
        rows: B.
        spec: What they look like.
    """
    match spec:
        case RecallSpec():
            return _recall(rng, rows, spec)
        case FuzzyRecallSpec():
            return _fuzzy_recall(rng, rows, spec)
        case CopyingSpec():
            return _copying(rng, rows, spec)
        case CompressionSpec():
            tokens = rng.integers(spec.vocab_size - 1, size=(rows, spec.length))
            tokens[:, -1] = spec.vocab_size - 1
            return Labelled(tokens, tokens.copy())
        case MemorizationSpec():
            values = memorized(spec)
            keys = rng.integers(len(values), size=(rows, spec.length // 2))
            return Labelled(_pairs(keys, spec.vocab_size - 1), _pairs(np.full_like(keys, IGNORE), values[keys]))


@cache
def memorized(spec: MemorizationSpec) -> NDArray[np.int64]:
    """The value of each key in all rows of memorization: int64 `[K]`, read-only."""
    keys = (spec.vocab_size - 1) // 2
    values = np.random.default_rng(spec.seed).permutation(np.arange(keys, spec.vocab_size - 1))[:keys]
    values.flags.writeable = False
    return values


def _recall(rng: np.random.Generator, rows: int, spec: RecallSpec) -> Labelled:
    """Draw pairs, put noise in place of some, and ask for the values of keys that return."""
    pairs = spec.length // 2
    value_of = spec.keys + rng.integers(spec.keys, size=(rows, spec.keys))
    keys = rng.integers(spec.keys, size=(rows, pairs))
    noisy = rng.random((rows, pairs)) < spec.noise
    noisy[:, -1] = False
    every = np.arange(rows)
    noisy[every, rng.integers(pairs - 1, size=rows)] = False
    # Where each key comes first, noise apart; the last pair repeats one of those keys.
    first = np.full((rows, spec.keys), pairs)
    row, pair = np.nonzero(~noisy[:, :-1])
    np.minimum.at(first, (row, keys[row, pair]), pair)
    keys[:, -1] = np.where(first < pairs, rng.random(first.shape), -1).argmax(1)
    values = np.take_along_axis(value_of, keys, 1)
    ids = _pairs(keys, values)
    if spec.noise:
        drawn = 2 * spec.keys + rng.integers(spec.noise_tokens, size=ids.shape)
        ids = np.where(np.repeat(noisy, 2, axis=1), drawn, ids)
    if spec.phase == "train":
        return Labelled(ids, _next_tokens(ids))
    returns = ~noisy & (np.take_along_axis(first, keys, 1) < np.arange(pairs))
    return Labelled(ids, _pairs(np.where(returns, values, IGNORE), IGNORE))


def _fuzzy_recall(rng: np.random.Generator, rows: int, spec: FuzzyRecallSpec) -> Labelled:
    """Draw keys and values of several tokens and write as many pairs as fit, row by row."""
    padding = spec.vocab_size - 1
    ids = np.full((rows, spec.length), padding, np.int64)
    labels = np.full_like(ids, IGNORE)
    shape = (rows, spec.length // 2)
    shortest = 1 if spec.phase == "train" else spec.key_tokens
    keys = _motifs(rng, shape, np.arange(spec.keys), shortest, spec.key_tokens)
    values = _motifs(rng, shape, np.arange(spec.keys, padding), 1, spec.value_tokens)
    for row, choice in enumerate(rng.random(rows).tolist()):
        tokens, answers = _fuzzy_row(keys[row], values[row], choice, spec)
        ids[row, -len(tokens) :] = tokens
        labels[row, -len(tokens) :] = answers
    if spec.phase == "train":
        labels = np.where(_next_tokens(ids) == padding, IGNORE, _next_tokens(ids))
    return Labelled(ids, labels)


def _fuzzy_row(
    keys: list[tuple[int, ...]], values: list[tuple[int, ...]], choice: float, spec: FuzzyRecallSpec
) -> tuple[list[int], list[int]]:
    """Write the pairs that fit and once more the key at `choice` of all different ones; label keys that return."""
    value_of: dict[tuple[int, ...], tuple[int, ...]] = {}
    tokens: list[int] = []
    answers: list[int] = []
    waiting = list(zip(keys, values, strict=True))
    last = False
    while not last:
        last = len(tokens) + 2 * spec.pair > spec.length
        key, value = (list(value_of)[int(choice * len(value_of))], ()) if last else waiting.pop(0)
        known = key in value_of
        value = value_of.setdefault(key, value)
        tokens += key + value
        answers += [IGNORE] * (len(key) - 1) + list(value if known else [IGNORE] * len(value)) + [IGNORE]
    return tokens, answers


def _copying(rng: np.random.Generator, rows: int, spec: CopyingSpec) -> Labelled:
    """Draw tokens and how many blanks stand in front of each."""
    copies = spec.copies
    tokens = rng.integers(spec.vocab_size - 2, size=(rows, copies))
    ids = np.full((rows, spec.length), spec.vocab_size - 2, np.int64)
    before = rng.integers(copies, size=(rows, spec.length - 2 * copies - 1))
    places = np.stack([place + (before <= place).sum(1) for place in range(copies)], 1)
    np.put_along_axis(ids, places, tokens, 1)
    ids[:, -copies - 1] = spec.vocab_size - 1
    labels = np.full_like(ids, IGNORE)
    labels[:, -copies:] = tokens
    return Labelled(ids, labels)


def _motifs(
    rng: np.random.Generator, shape: tuple[int, int], vocabulary: NDArray[np.int64], shortest: int, longest: int
) -> list[list[tuple[int, ...]]]:
    """Draw sequences of different tokens, all lengths equally likely and all of one length: lists of `shape`."""
    order = rng.random((*shape, len(vocabulary))).argsort(2)[..., :longest]
    sizes = rng.integers(shortest, longest + 1, size=shape)
    return [
        [tuple(motif[:size]) for motif, size in zip(motifs, row, strict=True)]
        for motifs, row in zip(vocabulary[order].tolist(), sizes.tolist(), strict=True)
    ]


def _pairs(first: NDArray[np.int64], second: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Write two arrays in turn: `[B, P]` to `[B, 2·P]`."""
    both = np.empty((len(first), 2 * first.shape[1]), np.int64)
    both[:, ::2] = first
    both[:, 1::2] = second
    return both


def _next_tokens(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """What is predicted at each position by a language model; nothing at the last."""
    return np.concatenate([ids[:, 1:], np.full_like(ids[:, :1], IGNORE)], 1)
