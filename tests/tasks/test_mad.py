"""Rows of MAD's tasks are read by readers of their own, which find every answer and nothing else asked."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastweights.errors import UserError
from fastweights.tasks.labelled import IGNORE, accuracy
from fastweights.tasks.mad import (
    BASELINES,
    CompressionSpec,
    CopyingSpec,
    FuzzyRecallSpec,
    MADSpec,
    MemorizationSpec,
    RecallSpec,
    make_mad,
    memorized,
)

NOISY = RecallSpec(vocab_size=32, noise=0.2, noise_tokens=16)


def rows_of(spec: MADSpec, rows: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    ids, labels = make_mad(np.random.default_rng(seed), rows, spec)
    assert ids.shape == labels.shape == (rows, spec.length)
    assert ids.dtype == labels.dtype == np.int64
    assert ids.size == 0 or (ids.min() >= 0 and ids.max() < spec.vocab_size)
    return list(zip(ids.tolist(), labels.tolist(), strict=True))


def next_of(row: list[int]) -> list[int]:
    return [*row[1:], IGNORE]


def recalled(row: list[int], keys: int) -> list[int]:
    """Labels of a row of recall by a reader who remembers; tokens from 2·keys on are noise."""
    memory: dict[int, int] = {}
    labels = [IGNORE] * len(row)
    for place in range(0, len(row), 2):
        key, value = row[place : place + 2]
        if key >= 2 * keys:
            assert value >= 2 * keys
            continue
        assert key < keys <= value < 2 * keys
        if key in memory:
            labels[place] = value
        assert memory.setdefault(key, value) == value
    return labels


def motifs(row: list[int], spec: FuzzyRecallSpec) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cut a row into pairs: a pair begins where a token of a key follows one of a value or the padding."""
    size = row.count(spec.vocab_size - 1)
    assert set(row[:size]) <= {spec.vocab_size - 1}
    pairs: list[tuple[list[int], list[int]]] = []
    for token in row[size:]:
        if token < spec.keys:
            if not pairs or pairs[-1][1]:
                pairs.append(([], []))
            pairs[-1][0].append(token)
        else:
            pairs[-1][1].append(token)
    return [(tuple(key), tuple(value)) for key, value in pairs]


@given(
    pairs=st.integers(2, 20),
    keys=st.integers(1, 8),
    noise=st.sampled_from([0.0, 0.2, 0.8, 0.99]),
    seed=st.integers(0, 1000),
)
def test_a_reader_who_remembers_recalls_every_answer(pairs: int, keys: int, noise: float, seed: int) -> None:
    spec = RecallSpec(2 * pairs, 2 * keys + 4, noise, 4)
    assert spec.keys == keys
    for row, label in rows_of(spec, 3, seed):
        assert label == recalled(row, keys)
        assert label[-2] == row[-1], "the last pair is always asked"
        assert noise > 0 or max(row) < 2 * keys


def test_noise_has_its_share_and_keys_and_values_are_even() -> None:
    drawn = make_mad(np.random.default_rng(0), 2000, NOISY).ids
    noisy = drawn[:, :-2:2] >= 16
    np.testing.assert_allclose(noisy.mean(), 0.2 * 62 / 63, atol=0.005)
    np.testing.assert_allclose(np.bincount(drawn[drawn >= 16] - 16) * 16 / (drawn >= 16).sum(), 1, atol=0.1)
    for tokens in (drawn[:, ::2], drawn[:, 1::2] - 8):
        kept = tokens[(tokens >= 0) & (tokens < 8)]
        np.testing.assert_allclose(np.bincount(kept) * 8 / len(kept), 1, atol=0.1)
    quiet = make_mad(np.random.default_rng(0), 2000, RecallSpec()).ids
    assert quiet.max() == 15
    pairings = Counter(map(tuple, quiet.reshape(-1, 2).tolist()))
    assert len(pairings) == 64, "any key may have any value"


def test_the_last_pair_repeats_any_key_of_the_row() -> None:
    ranks = Counter[int]()
    for row, _ in rows_of(RecallSpec(20, 8), 3000):
        shown = list(dict.fromkeys(row[:-2:2]))
        if len(shown) == 4:
            ranks[shown.index(row[-2])] += 1
    assert sorted(ranks) == [0, 1, 2, 3]
    assert min(ranks.values()) > 0.2 * ranks.total()


@given(
    key_tokens=st.integers(1, 3),
    value_tokens=st.integers(1, 4),
    spare=st.integers(0, 40),
    train=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_reader_of_motifs_recalls_every_answer(
    key_tokens: int, value_tokens: int, spare: int, train: bool, seed: int
) -> None:
    longest = key_tokens + value_tokens
    spec = FuzzyRecallSpec(2 * longest + spare, 9, key_tokens, value_tokens, "train" if train else "test")
    for row, label in rows_of(spec, 3, seed):
        pairs = motifs(row, spec)
        memory: dict[tuple[int, ...], tuple[int, ...]] = {}
        answers = [IGNORE] * row.count(8)
        assert len(answers) < 2 * longest
        for key, value in pairs:
            assert len(set(key)) == len(key) <= key_tokens
            assert len(set(value)) == len(value)
            assert 1 <= len(value) <= value_tokens
            assert train or len(key) == key_tokens
            known = key in memory
            assert memory.setdefault(key, value) == value
            answers += [IGNORE] * (len(key) - 1)
            answers += value if known else [IGNORE] * len(value)
            answers.append(IGNORE)
        assert pairs[-1][0] in [key for key, _ in pairs[:-1]]
        asked = [IGNORE if token == 8 else token for token in next_of(row)] if train else answers
        assert label == asked


def test_motifs_have_all_lengths_and_all_tokens() -> None:
    for phase, sizes in (("train", {1, 2, 3}), ("test", {3})):
        spec = FuzzyRecallSpec(phase=phase)  # type: ignore[arg-type]
        pairs = [pair for row, _ in rows_of(spec, 300) for pair in motifs(row, spec)[:-1]]
        keys, values = Counter(len(key) for key, _ in pairs), Counter(len(value) for _, value in pairs)
        assert set(keys) == sizes
        assert set(values) == {1, 2, 3}
        assert min(keys.values()) > 0.8 * len(pairs) / len(keys)
        assert min(values.values()) > 0.8 * len(pairs) / 3
        assert {token for key, _ in pairs for token in key} == set(range(7))
        assert {token for _, value in pairs for token in value} == set(range(7, 15))


@pytest.mark.parametrize("spec", [RecallSpec(phase="train"), RecallSpec(64, 32, 0.4, 16, "train")])
def test_recall_is_trained_on_every_next_token(spec: RecallSpec) -> None:
    for row, label in rows_of(spec, 20):
        recalled(row, spec.keys)
        assert label == next_of(row)


@given(copies=st.integers(1, 9), spare=st.integers(0, 30), seed=st.integers(0, 1000))
def test_what_is_no_blank_is_copied_in_order(copies: int, spare: int, seed: int) -> None:
    spec = CopyingSpec(2 * copies + 1 + spare, 8, copies)
    for row, label in rows_of(spec, 3, seed):
        end = copies + spare
        tokens = [token for token in row[:end] if token != 6]
        assert len(tokens) == copies
        assert max(tokens) < 6
        assert row[end:] == [7] + [6] * copies
        assert row[end - 1] != 6
        assert label == [IGNORE] * (end + 1) + tokens


def test_blanks_stand_anywhere_before_the_last_token() -> None:
    ids = make_mad(np.random.default_rng(0), 2000, CopyingSpec(64, 8, 4)).ids
    places = np.nonzero(ids[:, :59] < 6)[1].reshape(2000, 4)
    gaps = np.diff(places, axis=1, prepend=-1) - 1
    np.testing.assert_allclose(gaps.mean(0), 55 / 4, rtol=0.05)
    np.testing.assert_allclose(gaps.var(0), 55 * 3 / 16, rtol=0.15)


def test_compression_asks_for_the_whole_row() -> None:
    for row, label in rows_of(CompressionSpec(), 100):
        assert row == label
        assert row[-1] == 15
        assert max(row[:-1]) < 15
    ids = make_mad(np.random.default_rng(0), 2000, CompressionSpec()).ids[:, :-1]
    np.testing.assert_allclose(np.bincount(ids.ravel()) * 15 / ids.size, 1, atol=0.05)


@pytest.mark.parametrize("spec", [MemorizationSpec(), MemorizationSpec(10, 9), MemorizationSpec(10, 10, 3)])
def test_values_of_memorized_keys_never_change(spec: MemorizationSpec) -> None:
    keys = (spec.vocab_size - 1) // 2
    values: dict[int, int] = {}
    for seed in range(30):
        for row, label in rows_of(spec, 20, seed):
            assert row[1::2] == [spec.vocab_size - 1] * (spec.length // 2)
            assert label[::2] == [IGNORE] * (spec.length // 2)
            for key, value in zip(row[::2], label[1::2], strict=True):
                assert values.setdefault(key, value) == value
    assert sorted(values) == list(range(keys))
    assert len(set(values.values())) == keys
    assert min(values.values()) >= keys
    assert max(values.values()) < spec.vocab_size - 1
    assert [values[key] for key in range(keys)] == memorized(spec).tolist()
    other = MemorizationSpec(spec.length, spec.vocab_size, spec.seed + 1)
    assert memorized(other).tolist() != memorized(spec).tolist()
    with pytest.raises(ValueError, match="read-only"):
        memorized(spec)[0] = 0


# The best that one token for all positions can do; compression also asks for the token at the end.
CHANCE = {
    "in-context-recall": 1 / 8,
    "fuzzy-in-context-recall": 1 / 8,
    "noisy-in-context-recall": 1 / 8,
    "selective-copying": 1 / 14,
    "compression": 31 / 32 / 15,
    "memorization": 1 / 127,
}


def test_the_baselines_are_the_published_ones() -> None:
    shapes = {name: (spec.vocab_size, spec.length) for name, spec in BASELINES.items()}
    assert shapes == {
        "in-context-recall": (16, 128),
        "fuzzy-in-context-recall": (16, 128),
        "noisy-in-context-recall": (32, 128),
        "selective-copying": (16, 256),
        "compression": (16, 32),
        "memorization": (256, 32),
    }
    assert set(CHANCE) == set(BASELINES)
    assert BASELINES["noisy-in-context-recall"] == NOISY


@pytest.mark.parametrize("name", CHANCE)
def test_an_oracle_is_always_right_and_one_guess_is_near_chance(name: str) -> None:
    _, labels = make_mad(np.random.default_rng(0), 1000, BASELINES[name])
    assert accuracy(labels, labels) == 1
    guesses = np.unique(labels[labels != IGNORE])
    if name == "compression":
        guesses = guesses[:-1]
    shares = [accuracy(np.full_like(labels, guess), labels) for guess in guesses.tolist()]
    assert np.mean(shares) == pytest.approx(CHANCE[name], rel=0.01)
    assert max(shares) < 1.4 * CHANCE[name]


@pytest.mark.parametrize(
    ("spec", "digest"),
    [
        (BASELINES["in-context-recall"], "baa8f9f4f9d1a5dc"),
        (BASELINES["fuzzy-in-context-recall"], "90499bf62b3898ae"),
        (BASELINES["noisy-in-context-recall"], "7eeed2f6c49e5f9d"),
        (BASELINES["selective-copying"], "6409b25a3c384941"),
        (BASELINES["compression"], "842a1c78c708c21d"),
        (BASELINES["memorization"], "addcc0e419d0ec20"),
        (RecallSpec(phase="train"), "449139e41cf9de0c"),
        (FuzzyRecallSpec(phase="train"), "6303be9a6cb930a0"),
    ],
    ids=str,
)
def test_rows_stay_what_they_were(spec: MADSpec, digest: str) -> None:
    """Results of different versions may only be compared if they were asked the same."""
    ids, labels = make_mad(np.random.default_rng(7), 3, spec)
    assert hashlib.sha256(ids.tobytes() + labels.tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("name", BASELINES)
def test_equal_generators_give_equal_rows(name: str) -> None:
    assert rows_of(BASELINES[name], 2, 1) == rows_of(BASELINES[name], 2, 1) != rows_of(BASELINES[name], 2, 2)
    assert rows_of(BASELINES[name], 0) == []


@pytest.mark.parametrize(
    ("length", "vocab_size", "noise", "noise_tokens", "says"),
    [
        (127, 16, 0.0, 0, "a key must return, so length must be even and at least 4, not 127."),
        (2, 16, 0.0, 0, "a key must return, so length must be even and at least 4, not 2."),
        (128, 16, 1.0, 8, "noise must lie in [0, 1) and have tokens of its own: not 1.0 of 8 tokens."),
        (128, 16, 0.2, 0, "noise must lie in [0, 1) and have tokens of its own: not 0.2 of 0 tokens."),
        (
            128,
            17,
            0.0,
            0,
            "vocab_size must be even and hold keys, values and an even number of noise tokens, "
            "not be 17 with 0 of noise.",
        ),
        (
            128,
            16,
            0.2,
            16,
            "vocab_size must be even and hold keys, values and an even number of noise tokens, "
            "not be 16 with 16 of noise.",
        ),
    ],
)
def test_recall_that_cannot_be_built_is_refused(
    length: int, vocab_size: int, noise: float, noise_tokens: int, says: str
) -> None:
    with pytest.raises(UserError) as caught:
        RecallSpec(length, vocab_size, noise, noise_tokens)
    assert str(caught.value) == says


@pytest.mark.parametrize(
    ("length", "vocab_size", "key_tokens", "value_tokens", "says"),
    [
        (
            128,
            16,
            8,
            3,
            "key_tokens must lie in 1 to 7, the tokens that a vocab_size of 16 has for them, not be 8.",
        ),
        (
            128,
            16,
            3,
            0,
            "value_tokens must lie in 1 to 8, the tokens that a vocab_size of 16 has for them, not be 0.",
        ),
        (11, 16, 3, 3, "two pairs of 6 tokens do not fit into a length of 11."),
    ],
)
def test_fuzzy_recall_that_cannot_be_built_is_refused(
    length: int, vocab_size: int, key_tokens: int, value_tokens: int, says: str
) -> None:
    with pytest.raises(UserError) as caught:
        FuzzyRecallSpec(length, vocab_size, key_tokens, value_tokens)
    assert str(caught.value) == says


def test_other_rows_that_cannot_be_built_are_refused() -> None:
    with pytest.raises(UserError, match=r"^phase must be train or test, not eval\.$"):
        RecallSpec(phase="eval")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^phase must be train or test, not eval\.$"):
        FuzzyRecallSpec(phase="eval")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^16 tokens, twice, and a copy token do not fit into a length of 32\.$"):
        CopyingSpec(32)
    with pytest.raises(UserError, match=r"something is copied: vocab_size must not be 2\.$"):
        CopyingSpec(vocab_size=2)
    with pytest.raises(UserError, match=r"length and vocab_size must be at least 2, not 1 and 16\.$"):
        CompressionSpec(1)
    with pytest.raises(UserError, match=r"so length must be even and at least 2, not 31\.$"):
        MemorizationSpec(31)
    with pytest.raises(UserError, match=r"^vocab_size must hold a key, a value and the insert token, not be 2\.$"):
        MemorizationSpec(vocab_size=2)
    with pytest.raises(UserError, match=r"^seed must be 0 or more, not -1\.$"):
        MemorizationSpec(seed=-1)
