"""Every two values of the four choices meet in some rule, or are refused for a reason; and those rules are right."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from fastweights.core.combinations import (
    ALGORITHMS,
    ARCHITECTURES,
    BIASES,
    RETENTIONS,
    Cover,
    check_combinations,
    pairwise_cover,
    suited_rule,
)
from fastweights.errors import UserError

PARTS = 8


@pytest.fixture(scope="module")
def cover() -> Cover:
    return pairwise_cover()


def test_every_pair_is_covered_or_refused_wherever_it_stands(cover: Cover) -> None:
    covered = set()
    for rule in cover.rules:
        values = (rule.architecture, rule.bias, rule.retention, rule.algorithm)
        covered |= set(combinations(map(repr, values), 2))
    choices = (ARCHITECTURES, BIASES, RETENTIONS, ALGORITHMS)
    pairs = {(repr(a), repr(b)) for one, other in combinations(choices, 2) for a, b in product(one, other)}
    assert covered <= pairs
    missing = pairs - covered
    assert missing
    for values in product(*choices):
        if not missing.isdisjoint(combinations(map(repr, values), 2)):
            with pytest.raises(UserError):
                suited_rule(*values)


def test_refusals_say_why(cover: Cover) -> None:
    assert len(cover.refused) > 50
    assert all(len(reason.split()) > 6 for reason in cover.refused.values())


@pytest.mark.parametrize("part", range(PARTS))
def test_a_share_of_the_combinations_conforms(cover: Cover, part: int) -> None:
    """Exactness, streams and gradients of every eighth rule of each part; `fastweights check` certifies them all."""
    some = Cover(cover.rules[part :: 4 * PARTS], {})
    report = check_combinations(some, without=(6, 8, 9, 11))
    assert report.ok, report.table()
