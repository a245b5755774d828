"""A set of rules in which every two values of the four choices meet, as far as they may."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from itertools import combinations, product
from typing import Any, NamedTuple

from fastweights.core.algorithm import (
    Algorithm,
    DeltaGradientDescent,
    GradientDescent,
    Hierarchy,
    ImplicitStep,
    Momentum,
    Nesterov,
    NewtonSchulz,
    Steps,
)
from fastweights.core.architecture import MLP, Architecture, GatedMLP, Matrix, Residual, Vector
from fastweights.core.bias import KL, L2, LP, Bias, DotProduct, Huber, Omega, RobustL2
from fastweights.core.conformance import Finding, Report, check_rule
from fastweights.core.features import Polynomial
from fastweights.core.retention import (
    Bounded,
    ElasticNet,
    FDivergence,
    KLDivergence,
    LQNorm,
    NoRetention,
    Reset,
    Retention,
    RowNorm,
    SoftThreshold,
    WeightDecay,
)
from fastweights.core.rule import Rule
from fastweights.errors import UserError

# Corners that are rounded more than the defaults: the float32 loop is the yardstick of rounding, and at an eps of
# 1e-6 it rounds differently at every corner it meets.
ARCHITECTURES: tuple[Architecture, ...] = (
    Vector(),
    Matrix(),
    MLP(1, bias=True),
    MLP(3, 1.5, "silu"),
    GatedMLP(1.5),
    Residual(MLP(2, 1.5), affine=True),
    Residual(Polynomial(Matrix(), 2)),
)
BIASES: tuple[Bias, ...] = (
    L2(),
    DotProduct(),
    LP(3.0),
    LP(1.0, 1e-2),
    Huber("coordinate"),
    Huber("norm"),
    Huber("mixture", eps=1e-2),
    RobustL2(eps=1e-2),
    KL(),
    Omega(L2(False), 3),
    Omega(Huber("norm"), 2),
)
RETENTIONS: tuple[Retention, ...] = (
    NoRetention(),
    WeightDecay(),
    WeightDecay("map"),
    WeightDecay("value"),
    KLDivergence(),
    KLDivergence("value", link_at="token", lag=False),
    LQNorm(eps=1e-2),
    LQNorm(form="printed", link_at="token", eps=1e-2),
    ElasticNet(0.01),
    SoftThreshold(0.01),
    FDivergence("chi2"),
    FDivergence("kl"),
    Bounded(link_at="token"),
    RowNorm(eps=1e-4),
    RowNorm(unit=True, scope="key", eps=1e-4),
    Reset(WeightDecay(), 8),
)
ALGORITHMS: tuple[Algorithm, ...] = (
    GradientDescent(),
    Momentum(),
    Momentum("map"),
    Nesterov(),
    DeltaGradientDescent(),
    DeltaGradientDescent("head"),
    NewtonSchulz(),
    Steps(2),
    ImplicitStep(),
    Hierarchy((2,), 4),
)


class Cover(NamedTuple):
    """Rules that cover every pair of values that may meet, and the pairs that may not, with the reason."""

    rules: tuple[Rule, ...]
    refused: dict[tuple[str, str], str]


def pairwise_cover() -> Cover:
    """Chooses rules greedily: each covers as many pairs that are still missing as it can."""
    made = _all_rules()
    missing = {pair for _, pairs in made for pair in pairs}
    refused = {names: reason for names, reason in _refused_pairs() if names not in missing}
    chosen = []
    while missing:
        rule, pairs = max(made, key=lambda one: len(one[1] & missing))
        chosen.append(rule)
        missing -= pairs
    return Cover(tuple(chosen), refused)


def _all_rules() -> list[tuple[Rule, frozenset[tuple[str, str]]]]:
    """Every combination that may be made, with its pairs of values."""
    made = []
    for values in product(ARCHITECTURES, BIASES, RETENTIONS, ALGORITHMS):
        with suppress(UserError):
            made.append((suited_rule(*values), frozenset(combinations(map(repr, values), 2))))
    return made


def _refused_pairs() -> Iterator[tuple[tuple[str, str], str]]:
    """Pairs that are refused beside the plainest values of the other two choices, with the reason."""
    choices: list[tuple[Any, ...]] = [ARCHITECTURES, BIASES, RETENTIONS, ALGORITHMS]
    for i, j in combinations(range(4), 2):
        for a, b in product(choices[i], choices[j]):
            values: list[Any] = [Matrix(), L2(), WeightDecay(), GradientDescent()]
            values[i], values[j] = a, b
            try:
                suited_rule(*values)
            except UserError as reason:
                yield (repr(a), repr(b)), str(reason)


def suited_rule(architecture: Architecture, bias: Bias, retention: Retention, algorithm: Algorithm) -> Rule:
    """A rule of these four choices with the conventions that they need.

    Raises:
        UserError: there is none.
    """
    waits = retention.link_at == "chunk" or isinstance(algorithm, NewtonSchulz | Hierarchy)
    online = isinstance(algorithm, ImplicitStep | Steps)
    conventions: dict[str, Any] = {
        "chunk_size": 1 if online else 4,
        "read": "chunk" if waits else "after",
        "clip": None if isinstance(algorithm, ImplicitStep) else 1.0,
        "decay_before_grad": isinstance(algorithm, ImplicitStep) and retention.scope is not None,
    }
    return Rule(architecture, bias, retention, algorithm, lr_max=0.3, **conventions)


def check_combinations(cover: Cover, without: Collection[int] = ()) -> Report:
    """Certifies every rule of a cover at its own chunk size; one report for all.

    Args:
        cover: from :func:`pairwise_cover`.
        without: numbers of properties to leave out beside compilation, which depends on the tier alone.
    """
    findings: list[Finding] = []
    for rule in cover.rules:
        grid = [(rule.chunk_size, 2 * rule.chunk_size + 1)]
        report = check_rule(rule, grid=grid, seeds=5, without={10, *without})
        named = f"{rule.architecture}, {rule.bias}, {rule.retention}, {rule.algorithm}: "
        findings += [f._replace(detail=named + f.detail) if f.ok is False else f for f in report.findings]
    title = (
        f"{len(cover.rules)} combinations in which every two values of the four choices meet "
        f"({len(cover.refused)} pairs are refused)"
    )
    return Report(title, tuple(findings))
