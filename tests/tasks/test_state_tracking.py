"""Running products, parities and values are what plain Python says, one element, bit and expression at a time."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from itertools import permutations, product
from typing import Literal, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastweights.errors import UserError
from fastweights.tasks.labelled import IGNORE, Labelled, accuracy
from fastweights.tasks.state_tracking import (
    SYMBOLS,
    ArithmeticSpec,
    Group,
    ParitySpec,
    WordProblemSpec,
    group_table,
    make_arithmetic,
    make_parity,
    make_word_problem,
    scaled_accuracy,
)

GROUPS: tuple[Group, ...] = get_args(Group)
ORDERS: dict[Group, int] = {"S3": 6, "S4": 24, "A5": 60, "S5": 120, "Z60": 60, "A4xZ5": 60}
SUM = r"-?\d([+*-]\d)*"


def cycles(p: tuple[int, ...]) -> int:
    seen: set[int] = set()
    count = 0
    for start in p:
        count += start not in seen
        while start not in seen:
            seen.add(start)
            start = p[start]
    return count


def permuted(n: int, even: bool) -> list[tuple[int, ...]]:
    """In lexicographic order; a permutation of n things with c cycles is even if n - c is."""
    return sorted(p for p in permutations(range(n)) if not even or (n - cycles(p)) % 2 == 0)


def elements(group: Group) -> list[tuple[int, ...]]:
    """Each element as numbers: images of a permutation, a residue, or both."""
    if group == "Z60":
        return [(residue,) for residue in range(60)]
    if group == "A4xZ5":
        return [(*p, residue) for p in permuted(4, True) for residue in range(5)]
    return permuted(int(group[1]), group[0] == "A")


def times(group: Group, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """What a does first and b then."""
    if group == "Z60":
        return ((a[0] + b[0]) % 60,)
    if group == "A4xZ5":
        return (*(b[a[i]] for i in range(4)), (a[4] + b[4]) % 5)
    return tuple(b[a[i]] for i in range(len(a)))


def words(batch: Labelled) -> list[tuple[str, int]]:
    """Expressions as text and the digits asked, having checked that each is asked once, at its only `=`."""
    found = []
    for row, label in zip(batch.ids.tolist(), batch.labels.tolist(), strict=True):
        text = "".join(SYMBOLS[token] for token in row)
        assert [place for place, answer in enumerate(label) if answer != IGNORE] == [text.index("=")]
        assert re.fullmatch(r"[^ =]+= *", text)
        found.append((text.strip(), int(SYMBOLS[max(label)])))
    return found


def is_expression(text: str) -> bool:
    inner = None
    while inner != text:
        inner, text = text, re.sub(rf"\({SUM}\)", "0", text)
    return re.fullmatch(SUM, text) is not None


@pytest.mark.parametrize("group", GROUPS)
def test_a_table_is_a_group_of_its_order(group: Group) -> None:
    table = group_table(group)
    every = np.arange(ORDERS[group])
    assert table.shape == (ORDERS[group], ORDERS[group])
    assert table.dtype == np.int64
    assert (table[0] == every).all()
    assert (table[:, 0] == every).all()
    assert (np.sort(table, 0) == every[:, None]).all()
    assert (np.sort(table, 1) == every).all()
    assert (table[table] == table[every[:, None, None], table]).all()
    assert (table == table.T).all() == (group == "Z60")
    with pytest.raises(ValueError, match="read-only"):
        table[0, 0] = 1


@pytest.mark.parametrize(("group", "left"), [("S3", 1), ("S4", 1), ("A5", 60), ("S5", 60), ("Z60", 1), ("A4xZ5", 1)])
def test_only_a5_and_s5_are_not_solvable(group: Group, left: int) -> None:
    """Commutators of commutators and so on end at the identity, or at A5, which is its own commutator group."""
    table = group_table(group)
    inverse = (table == 0).argmax(1)
    subgroup = np.arange(len(table))
    for _ in range(5):
        a, b = subgroup[:, None], subgroup
        subgroup = np.unique(table[table[a, b], table[inverse[a], inverse[b]]])
        while len(larger := np.unique(table[subgroup[:, None], subgroup])) > len(subgroup):
            subgroup = larger
    assert len(subgroup) == left


@pytest.mark.parametrize("group", GROUPS)
def test_labels_are_products_composed_one_at_a_time(group: Group) -> None:
    spec = WordProblemSpec(group, 60)
    ids, labels = make_word_problem(np.random.default_rng(0), 20, spec)
    assert ids.shape == labels.shape == (20, 60)
    assert ids.dtype == labels.dtype == np.int64
    known = elements(group)
    assert len(known) == spec.vocab_size == ORDERS[group]
    for row, label in zip(ids.tolist(), labels.tolist(), strict=True):
        acc = known[0]
        for element, answer in zip(row, label, strict=True):
            acc = times(group, acc, known[element])
            assert known[answer] == acc


def test_the_row_of_the_docstring() -> None:
    acc, labels = 0, []
    for element in [1, 2, 0, 4, 5]:
        acc = int(group_table("S3")[acc, element])
        labels.append(acc)
    assert labels == [1, 3, 3, 0, 5]


@pytest.mark.parametrize("group", GROUPS)
def test_elements_and_products_are_even_and_guessing_one_is_chance(group: Group) -> None:
    order = ORDERS[group]
    ids, labels = make_word_problem(np.random.default_rng(0), 500, WordProblemSpec(group, 128))
    for tokens in (ids, labels):
        np.testing.assert_allclose(np.bincount(tokens.ravel(), minlength=order) * order / tokens.size, 1, atol=0.2)
    assert accuracy(labels, labels) == 1
    assert accuracy(np.zeros_like(labels), labels) == pytest.approx(1 / order, rel=0.2)


@given(length=st.integers(1, 12), data=st.data(), every=st.booleans(), seed=st.integers(0, 1000))
def test_parity_is_counted(length: int, data: st.DataObject, every: bool, seed: int) -> None:
    shortest = data.draw(st.integers(1, length))
    spec = ParitySpec(length, shortest, "every" if every else "last")
    ids, labels = make_parity(np.random.default_rng(seed), 4, spec)
    assert ids.shape == labels.shape == (4, length)
    assert ids.dtype == labels.dtype == np.int64
    for row, label in zip(ids.tolist(), labels.tolist(), strict=True):
        size = length - row.count(0)
        assert size >= shortest
        assert set(row[:size]) <= {1, 2}
        answers = [2 if row[: place + 1].count(2) % 2 else 1 for place in range(size)]
        if not every:
            answers[:-1] = [IGNORE] * (size - 1)
        assert label == answers + [IGNORE] * (length - size)


@pytest.mark.parametrize("asked", ["every", "last"])
def test_parity_has_all_lengths_and_guessing_is_chance(asked: Literal["every", "last"]) -> None:
    ids, labels = make_parity(np.random.default_rng(0), 4000, ParitySpec(40, 3, asked))
    sizes = Counter((ids > 0).sum(1).tolist())
    assert set(sizes) == set(range(3, 41))
    assert min(sizes.values()) > 60
    assert accuracy(labels, labels) == 1
    assert accuracy(np.full_like(labels, 2), labels) == pytest.approx(0.5, abs=0.03)
    assert np.isin(ids, [1, 2]).sum() == (ids > 0).sum()
    assert (ids == 2).sum() / (ids > 0).sum() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("brackets", [False, True])
def test_values_are_those_of_python(brackets: bool) -> None:
    spec = ArithmeticSpec(60, 2, brackets)
    batch = make_arithmetic(np.random.default_rng(0), 1500, spec)
    assert batch.ids.shape == batch.labels.shape == (1500, 60)
    assert batch.ids.dtype == batch.labels.dtype == np.int64
    assert batch.ids.max() == spec.vocab_size - 1 == (11 if brackets else 9)
    drawn = words(batch)
    assert {len(text) for text, _ in drawn} == set(range(2, 61))
    for text, answer in drawn:
        assert is_expression(text[:-1])
        assert answer == eval(text[:-1]) % 5
        assert brackets or (text[0] == "-") == (len(text) % 2 == 1)


def test_precedence_decides_in_many_rows() -> None:
    """Read from left to right, or with the brackets left out, half of the long rows or more have another value."""

    def from_left(text: str) -> int:
        parts = re.findall(r"[+*-]|\d", text if text[0] == "-" else f"+{text}")
        value = 0
        for operator, digit in zip(parts[::2], parts[1::2], strict=True):
            value = {"+": value + int(digit), "-": value - int(digit), "*": value * int(digit)}[operator]
        return value

    flat = words(make_arithmetic(np.random.default_rng(0), 500, ArithmeticSpec(40, 20)))
    assert np.mean([from_left(text[:-1]) % 5 == answer for text, answer in flat]) < 0.4
    nested = words(make_arithmetic(np.random.default_rng(0), 500, ArithmeticSpec(40, 20, True)))
    bare = [re.sub(r"[()]", "", text[:-1]) for text, _ in nested]
    assert np.mean([eval(text) % 5 == answer for text, (_, answer) in zip(bare, nested, strict=True)]) < 0.55


@pytest.mark.parametrize("brackets", [False, True])
def test_every_short_expression_is_drawn(brackets: bool) -> None:
    symbols = "+-*0123()4" if brackets else "+-*01234"
    possible = {
        "".join(tokens)
        for size in range(1, 5)
        for tokens in product(symbols, repeat=size)
        if is_expression("".join(tokens))
    }
    drawn = {
        text[:-1]
        for text, _ in words(make_arithmetic(np.random.default_rng(0), 40_000, ArithmeticSpec(5, 2, brackets)))
    }
    if not brackets:
        possible = {text for text in possible if (text[0] == "-") == (len(text) % 2 == 0)}
    assert drawn == possible


@pytest.mark.parametrize("brackets", [False, True])
def test_digits_operators_and_values_are_spread_and_guessing_is_chance(brackets: bool) -> None:
    ids, labels = make_arithmetic(np.random.default_rng(0), 2000, ArithmeticSpec(40, 3, brackets))
    counts = np.bincount(ids.ravel(), minlength=12)
    np.testing.assert_allclose(counts[5:10] * 5 / counts[5:10].sum(), 1, atol=0.05)
    assert counts[1] == pytest.approx(counts[3], rel=0.05)
    assert accuracy(labels, labels) == 1
    for value in range(5):
        assert accuracy(np.full_like(labels, 5 + value), labels) == pytest.approx(0.2, abs=0.05)
    depth = ((ids == 10).cumsum(1) - (ids == 11).cumsum(1)).max(1)
    assert set(depth.tolist()) >= ({0, 1, 2, 3, 4} if brackets else {0})
    assert (counts[10] > 0) == (counts[11] > 0) == brackets


@pytest.mark.parametrize(
    ("batch", "digest"),
    [
        (make_word_problem(np.random.default_rng(7), 3, WordProblemSpec("S5", 64)), "4cc9e7db40540fbd"),
        (make_word_problem(np.random.default_rng(7), 3, WordProblemSpec("A4xZ5", 64)), "503278154f137097"),
        (make_parity(np.random.default_rng(7), 3, ParitySpec()), "329e5f8535bd7073"),
        (make_parity(np.random.default_rng(7), 3, ParitySpec(asked="last")), "2b68c8797c9622f0"),
        (make_arithmetic(np.random.default_rng(7), 3, ArithmeticSpec()), "35866a0074740ad3"),
        (make_arithmetic(np.random.default_rng(7), 3, ArithmeticSpec(brackets=True)), "1dcd3fdbb9cc75e7"),
    ],
    ids=["S5", "A4xZ5", "parity", "parity-last", "arithmetic", "brackets"],
)
def test_rows_stay_what_they_were(batch: Labelled, digest: str) -> None:
    """Results of different versions may only be compared if they were asked the same."""
    assert hashlib.sha256(batch.ids.tobytes() + batch.labels.tobytes()).hexdigest()[:16] == digest


def test_equal_generators_give_equal_rows() -> None:
    def batches(seed: int) -> list[object]:
        rng = np.random.default_rng(seed)
        made = [
            make_word_problem(rng, 2, WordProblemSpec()),
            make_parity(rng, 2, ParitySpec()),
            make_arithmetic(rng, 2, ArithmeticSpec(brackets=True)),
        ]
        return [(batch.ids.tolist(), batch.labels.tolist()) for batch in made]

    assert batches(1) == batches(1)
    assert all(one != other for one, other in zip(batches(1), batches(2), strict=True))


def test_no_rows_are_an_empty_batch() -> None:
    rng = np.random.default_rng(0)
    assert make_word_problem(rng, 0, WordProblemSpec()).ids.shape == (0, 64)
    assert make_parity(rng, 0, ParitySpec()).ids.shape == (0, 40)
    assert make_arithmetic(rng, 0, ArithmeticSpec(brackets=True)).labels.shape == (0, 40)


def test_unknown_groups_and_empty_words_are_refused() -> None:
    with pytest.raises(UserError, match=r"^group must be one of S3, S4, A5, S5, Z60, A4xZ5, not S6\.$"):
        WordProblemSpec("S6")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^a word has at least one element: length must not be 0\.$"):
        WordProblemSpec("S3", 0)


@pytest.mark.parametrize(("length", "shortest"), [(40, 0), (40, 41), (0, 0)])
def test_parity_without_bits_is_refused(length: int, shortest: int) -> None:
    with pytest.raises(UserError, match=rf"^shortest must lie in 1 to the length of {length}, not be {shortest}\.$"):
        ParitySpec(length, shortest)


def test_parity_is_asked_everywhere_or_at_the_end() -> None:
    with pytest.raises(UserError, match=r"^parity can be asked at every bit or at the last, not at first\.$"):
        ParitySpec(asked="first")  # type: ignore[arg-type]


@pytest.mark.parametrize(("length", "shortest"), [(40, 1), (40, 41), (1, 1)])
def test_arithmetic_without_expressions_is_refused(length: int, shortest: int) -> None:
    with pytest.raises(UserError, match=rf"^shortest must lie in 2 to the length of {length}, not be {shortest}\.$"):
        ArithmeticSpec(length, shortest)


def test_scaled_accuracy_is_0_at_chance_and_1_at_the_top() -> None:
    assert scaled_accuracy(0.2, 5) == 0
    assert scaled_accuracy(1.0, 5) == 1
    assert scaled_accuracy(0.6, 5) == pytest.approx(0.5)
    assert scaled_accuracy(0.0, 2) == -1
