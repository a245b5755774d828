"""The properties every rule must have, as a public suite: ``check_rule`` certifies yours as it certifies ours.

==  =====================================================================================================
 1  every tier equals the autograd loop: reads, state, surprise, outer gradients; float32 and bfloat16 close
 2  hand-derived inner gradients equal autograd's
 3  any split of a stream equals one call, also with rows at different phases
 4  causal: a token changes no answer before it, to the bit
 5  rows and heads are independent, padding is irrelevant, documents are separate
 6  it learns: the inner loss of a repeated chunk falls
 7  every input, gate and initial weight gets a gradient
 8  finite at gates of 0 and 1, on zeros and huge values, over 10,000 repeats; non-finite tokens write nothing
 9  the state keeps its bytes, and its leaves do not alias
10  compiles to one graph; works under activation checkpointing
11  a fork never changes its parent; a state that was saved and loaded goes on to the same bits
==  =====================================================================================================

What does not apply is reported with the reason. Oracles are autograd and the reference loop, never the code under test.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, product
from typing import Literal, NamedTuple

import torch

from fastweights.core import conformance_equality as equality
from fastweights.core import conformance_limits as limits
from fastweights.core import conformance_stream as stream
from fastweights.core.algorithm import Hierarchy
from fastweights.core.conformance_trial import Trial, make_trial, value_size
from fastweights.core.delta import BLOCK
from fastweights.core.presets import PRESETS
from fastweights.core.properties import Verdict, not_applicable
from fastweights.core.retention import Reset
from fastweights.core.rule import Rule, Tier, require_rule
from fastweights.errors import UserError

FULL: tuple[tuple[int, int], ...] = tuple(product((1, 4, 7, 16), (1, 3, 7, 16, 33)))
"""Pairs of chunk size and length of the full grid."""

QUICK: tuple[tuple[int, int], ...] = ((1, 7), (4, 16), (7, 33))
"""Pairs of the quick grid."""

PER_LENGTH: Mapping[str, Callable[[Trial, int], Verdict]] = {
    "1 tiers = reference, float64": equality.tiers_agree,
    "3 any split = one call": stream.any_split,
    "4 causal": stream.causal,
    "5 rows and heads independent": stream.independent,
    "5 padding irrelevant": stream.padded,
    "5 documents separate": stream.separate,
    "9 constant state": stream.constant,
    "11 forks": stream.forks,
    "11 saved and loaded": stream.reloaded,
}
"""Tested at every pair of chunk size and length."""

_ACROSS_BLOCKS = ("1 tiers = reference, float64", "3 any split = one call")
"""Tested at a length of several blocks too where a tier works in blocks of its own."""

PER_CHUNK: Mapping[str, Callable[[Trial], Verdict]] = {
    "6 it learns": limits.learns,
    "7 gradients reach everything": limits.gradients_reach,
    "8 gates at 0 and 1": limits.gates_at_limits,
    "8 zeros": limits.zeros,
    "8 huge values": limits.huge_values,
    "8 non-finite tokens": limits.non_finite_tokens,
    "10 activation checkpointing": limits.checkpointing,
}
"""Tested once per chunk size."""


class Finding(NamedTuple):
    """One property at one chunk size and length (``None``: at all of them).

    ``ok`` is ``None`` where the property does not apply; ``margin`` is the error as a share of what is allowed.
    """

    property: str
    chunk: int | None
    length: int | None
    ok: bool | None
    detail: str
    margin: float


@dataclass(frozen=True)
class Report:
    """What was found about a rule."""

    title: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no property failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings that failed."""
        return tuple(f for f in self.findings if f.ok is False)

    def table(self) -> str:
        """Plain text: one line per property with the case nearest to its limit, then every failure on a line."""
        lines = [f"{self.title}: {'ok' if self.ok else 'FAILED'}"]
        for name in dict.fromkeys(f.property for f in self.findings):
            found = [f for f in self.findings if f.property == name]
            failed, passed = [f for f in found if f.ok is False], [f for f in found if f.ok]
            result = "FAILED" if failed else "ok" if passed else "n/a"
            shown = max(failed or passed or found, key=lambda f: f.margin)
            count = f"{len(passed)}/{len(passed) + len(failed)}" if passed or failed else "-"
            lines.append(f"  {name:<34}{result:<8}{count:>6}  {shown.detail}")
            reasons = {f.detail for f in found if f.ok is None and (passed or failed)}
            lines += [f"  {'':<34}{'':<8}{'':>6}  {reason}" for reason in sorted(reasons)]
        lines += [f"  FAILED {f.property}, chunk {f.chunk}, length {f.length}: {f.detail}" for f in self.failures]
        return "\n".join(lines)


def check_rule(
    rule: Rule,
    *,
    grid: Iterable[tuple[int, int]] = FULL,
    seeds: int = 15,
    key_dim: int = 6,
    value_dim: int | None = None,
    without: Collection[int] = (),
    title: str = "rule",
) -> Report:
    """Certifies a rule: properties 1 to 11 at every pair of chunk size and length.

    Args:
        rule: the rule; its own chunk size is replaced by those of the grid, unless it is defined at none of them.
        grid: pairs (chunk size, length), such as :data:`FULL`, :data:`QUICK` or ``itertools.product(sizes, lengths)``.
        seeds: draws whose median error decides in float32 and bfloat16.
        key_dim: K.
        value_dim: V; by default one less than K, or K for rules that need it.
        without: numbers of properties to leave out; the report says so.
        title: of the report.

    Returns:
        The findings; ``report.ok`` says whether all is well and ``report.table()`` shows it.

    Raises:
        UserError: ``value_dim`` does not suit the rule.

    Example:
        >>> from fastweights.core import presets
        >>> check_rule(presets.deltanet(), grid=[(1, 7)]).ok
        True

    Cost: seconds per pair; the reference takes a backward pass per token.
    """
    require_rule(rule)
    value_dim = value_dim or value_size(rule, key_dim)
    findings: list[Finding] = []

    def test(name: str, chunk: int | None, length: int | None, check: Callable[[], Verdict]) -> None:
        left_out = _number(name) in without
        findings.append(Finding(name, chunk, length, *(not_applicable("left out") if left_out else check())))

    test("2 inner gradients", None, None, partial(equality.inner_gradients, rule, key_dim, value_dim))
    tiers: dict[Tier, list[Trial]] = {}
    wanted = set(grid)
    if not any(_defined(rule, chunk) for chunk, _ in wanted):
        wanted |= {(rule.chunk_size, length) for _, length in wanted}
    for chunk, pairs in groupby(sorted(wanted), key=lambda pair: pair[0]):
        try:
            resized = _resized(rule, chunk)
        except UserError as reason:
            test(f"1 defined at chunk size {chunk}", chunk, None, partial(not_applicable, str(reason)))
            continue
        trial = make_trial(resized, key_dim, value_dim)
        tiers.setdefault(trial.rule.tiers[0], []).append(trial)
        longest = 0
        for _, length in pairs:
            longest = length
            for name, at_length in PER_LENGTH.items():
                test(name, chunk, length, partial(at_length, trial, length))
        if trial.rule.tiers[0] in ("delta", "least squares"):
            for name in _ACROSS_BLOCKS:
                test(name, chunk, 2 * BLOCK + 2, partial(PER_LENGTH[name], trial, 2 * BLOCK + 2))
        for name, at_longest in _narrow(seeds).items():
            test(name, chunk, longest, partial(at_longest, trial, longest))
        for name, at_chunk in PER_CHUNK.items():
            test(name, chunk, None, partial(at_chunk, trial))
    for trials in tiers.values():
        test("8 10,000 repeats", trials[-1].rule.chunk_size, None, partial(limits.repeated_token, trials[-1]))
    # On the rule's own tier where the grid has it; at chunk size 1 a graph holds a copy of the loop's body per token.
    for trials in [tiers[rule.tiers[0]]] if rule.tiers[0] in tiers else tiers.values():
        few = min(trials, key=lambda trial: (trial.rule.online, trial.rule.chunk_size))
        test("10 one graph", few.rule.chunk_size, None, partial(limits.one_graph, few))
    return Report(title, tuple(sorted(findings, key=lambda found: _number(found.property))))


def _resized(rule: Rule, chunk: int) -> Rule:
    """The rule at another chunk size; what is counted in chunks keeps its number of them.

    Raises:
        UserError: it is not defined there.
    """
    retention, algorithm = rule.retention, rule.algorithm
    if isinstance(retention, Reset) and chunk != rule.chunk_size:
        retention = replace(retention, every=chunk * min(2, retention.every // rule.chunk_size))
    if isinstance(algorithm, Hierarchy) and chunk != rule.chunk_size:
        algorithm = replace(algorithm, local_chunks=(chunk,), shard=2 * chunk)
    return replace(rule, chunk_size=chunk, retention=retention, algorithm=algorithm)


def _defined(rule: Rule, chunk: int) -> bool:
    try:
        _resized(rule, chunk)
    except UserError:
        return False
    return True


def check_presets(grid: Literal["full", "quick"] = "full") -> Iterator[Report]:
    """Runs :func:`check_rule` over every preset, one report at a time as they are done."""
    for name, preset in PRESETS.items():
        yield check_rule(preset(), grid=FULL if grid == "full" else QUICK, title=name)


def _narrow(seeds: int) -> Mapping[str, Callable[[Trial, int], Verdict]]:
    """Tested once per chunk size, at its greatest length."""
    return {
        "1 float32 as the loop's": partial(equality.rounding, seeds=seeds, dtype=torch.float32, factor=3.0),
        "1 bfloat16 as the loop's": partial(equality.rounding, seeds=seeds, dtype=torch.bfloat16, factor=2.0),
    }


def _number(name: str) -> int:
    """The number that the name of a property begins with."""
    return int(name.partition(" ")[0])
