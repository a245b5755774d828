"""The properties every rule must have, as a public suite: ``check_rule`` certifies yours as it certifies ours.

==  =====================================================================================================
 1  every tier equals the autograd loop: reads, state, surprise, outer gradients; float32 and bfloat16 close
 2  hand-derived inner gradients equal autograd's
 3  any split of a stream equals one call, also with rows at different phases
 4  causal: a token changes no answer before it, to the bit
 5  rows and heads are independent, padding is irrelevant, documents are separate
 6  it learns: the inner loss of a repeated chunk falls
 7  every input, gate and initial weight gets a gradient
 8  finite at gates of 0 and 1, on zeros and huge values, over 10,000 repeats; non-finite tokens leave no trace
 9  the state keeps its bytes, and its leaves do not alias
10  compiles to one graph; works under activation checkpointing
11  a fork never changes its parent
==  =====================================================================================================

What does not apply is reported with the reason. Oracles are autograd and the reference loop, never the code under test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, product
from typing import Literal, NamedTuple

import torch

from fastweights.core import conformance_equality as equality
from fastweights.core import conformance_limits as limits
from fastweights.core.conformance_trial import Trial, make_trial, value_size
from fastweights.core.presets import PRESETS
from fastweights.core.properties import (
    Verdict,
    causality,
    constant_state,
    document_equality,
    fork_safety,
    independence,
    not_applicable,
    padding_irrelevance,
    ragged_equality,
    row_equality,
    split_equality,
    worst,
)
from fastweights.core.rule import Rule

FULL: tuple[tuple[int, int], ...] = tuple(product((1, 4, 7, 16), (1, 3, 7, 16, 33)))
"""Pairs of chunk size and length of the full grid."""

QUICK: tuple[tuple[int, int], ...] = ((1, 7), (4, 16), (7, 33))
"""Pairs of the quick grid."""

EXACT = equality.EXACT


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

    name: str
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
        lines = [f"{self.name}: {'ok' if self.ok else 'FAILED'}"]
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
    name: str = "rule",
) -> Report:
    """Certifies a rule: properties 1 to 11 at every pair of chunk size and length.

    Args:
        rule: the rule; its own chunk size is replaced by those of the grid.
        grid: pairs (chunk size, length), such as :data:`FULL`, :data:`QUICK` or ``itertools.product(sizes, lengths)``.
        seeds: draws whose median error decides in float32 and bfloat16.
        key_dim: K.
        value_dim: V; by default one less than K, or K for rules that need it.
        name: of the report.

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
    value_dim = value_dim or value_size(rule, key_dim)
    findings = [_finding("2 inner gradients", None, None, equality.inner_gradients(rule, key_dim, value_dim, 3))]
    for chunk, pairs in groupby(sorted(set(grid)), key=lambda pair: pair[0]):
        lengths = [length for _, length in pairs]
        if rule.decay_before_grad and chunk > 1:
            verdict = not_applicable("decay_before_grad is only defined online, at chunk size 1")
            findings.append(_finding("1-11 chunk sizes above 1", chunk, None, verdict))
            continue
        trial = make_trial(replace(rule, chunk_size=chunk), key_dim, value_dim)
        for length in lengths:
            found = _at_length(trial, length)
            findings += [_finding(name, chunk, length, verdict) for name, verdict in found]
        many = make_trial(trial.rule, key_dim, value_dim, heads=seeds)
        found = _at_chunk(trial, many, max(lengths))
        findings += [_finding(name, chunk, max(lengths), verdict) for name, verdict in found]
    return Report(name, tuple(sorted(findings, key=lambda f: int(f.property.partition(" ")[0].partition("-")[0]))))


def check_presets(grid: Literal["full", "quick"] = "full") -> Iterator[Report]:
    """Runs :func:`check_rule` over every preset, one report at a time as they are done."""
    for name, preset in PRESETS.items():
        yield check_rule(preset(), grid=FULL if grid == "full" else QUICK, name=name)


def _finding(name: str, chunk: int | None, length: int | None, verdict: Verdict) -> Finding:
    return Finding(name, chunk, length, *verdict)


def _at_length(trial: Trial, time: int) -> Iterator[tuple[str, Verdict]]:
    """Properties 1, 3, 4, 5, 9 and 11 at one chunk size and length."""
    chunk = trial.rule.chunk_size
    x, other, state = trial.draw(2, time, 1), trial.draw(2, time, 2), trial.midway(2, 3)
    nan = float("nan")
    yield "1 tiers = reference, float64", equality.tiers_agree(trial, time, time)
    with torch.no_grad():
        cuts = ([1], [chunk - 1, chunk], [time // 3, 2 * time // 3], list(range(1, time)))
        splits = [split_equality(trial, state, x, sorted(cut), EXACT) for cut in cuts]
        splits += [ragged_equality(trial, state, x, calls, EXACT, calls, nan) for calls in (2, 5)]
        yield "3 any split = one call", worst(splits)
        places = sorted({0, 1, chunk - 1, chunk, time // 2, time - 1} & set(range(time)))
        yield "4 causal", worst(causality(trial, state, x, other, at) for at in places)
        yield (
            "5 rows and heads independent",
            worst(
                [
                    *[independence(trial, state, x, other, axis, index) for axis in (0, 2) for index in (0, 1)],
                    row_equality(trial, state, x, EXACT),
                ]
            ),
        )
        yield "5 padding irrelevant", padding_irrelevance(trial, state, x, EXACT, nan)
        one, fresh, borders = trial.midway(1, 3), trial.fresh(1), equality.borders(time)
        yield "5 documents separate", document_equality(trial, one, fresh, x[:1], borders, EXACT)
        yield "9 constant state", constant_state(trial, state, [x, x[:, :1], torch.cat([x, other], 1)])
        yield "11 forks", fork_safety(trial, state, x, other)


def _at_chunk(trial: Trial, many: Trial, time: int) -> Iterator[tuple[str, Verdict]]:
    """The properties that are tested once per chunk size; ``many`` has a head for every draw."""
    yield "1 float32 as the loop's", equality.rounding(many, time, 4, torch.float32, 3.0)
    yield "1 bfloat16 as the loop's", equality.rounding(many, time, 5, torch.bfloat16, 2.0)
    checks: dict[str, Callable[[Trial, int], Verdict]] = {
        "6 it learns": limits.learns,
        "7 gradients reach everything": limits.gradients_reach,
        "8 gates at 0 and 1": limits.gates_at_limits,
        "8 zeros": limits.zeros,
        "8 huge values": limits.huge_values,
        "8 non-finite tokens": limits.non_finite_tokens,
        "8 10,000 repeats": limits.repeated_token,
        "10 one graph": limits.one_graph,
        "10 activation checkpointing": limits.checkpointing,
    }
    for name, check in checks.items():
        yield name, check(trial, 6)
