"""Combinations of choices that have no meaning, and why: refused when a rule is made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastweights.core.algorithm import (
    Attention,
    ConjugateGradient,
    DeltaGradientDescent,
    GradientDescent,
    Hierarchy,
    ImplicitStep,
    NewtonSchulz,
    Steps,
)
from fastweights.core.architecture import Matrix
from fastweights.core.bias import L2, DotProduct
from fastweights.core.retention import NoRetention, Retention, WeightDecay
from fastweights.errors import UserError

if TYPE_CHECKING:
    from fastweights.core.rule import Rule


def refuse(rule: Rule) -> None:
    """Raises the first reason why a rule has no meaning.

    Raises:
        UserError: with that reason.
    """
    for wrong, reason in (*_conventions(rule), *_retentions(rule), *_algorithms(rule)):
        if wrong:
            raise UserError(reason)


def _conventions(rule: Rule) -> Iterator[tuple[bool, str]]:
    yield rule.decay_before_grad and not rule.online, "decay_before_grad is only defined online: set chunk_size=1"
    yield (
        rule.decay_before_grad
        and (rule.bias.window > 1 or rule.retention.link_at is not None or rule.retention.lag or rule.algorithm.erases),
        "decay_before_grad is only defined for plain gradients at the current weights: no window, link, lag token or "
        "erasing step",
    )
    matrix = isinstance(rule.architecture, Matrix) and not rule.architecture.bias
    yield (
        rule.tied and not (rule.retention.scope == "key" and matrix and rule.keys == 1),
        "tied keys are 1 - retain: a plain matrix with one key a token, whose retain gate has the scope 'key'",
    )
    yield (
        rule.erase_key
        and not (
            rule.online
            and matrix
            and isinstance(rule.bias, L2)
            and not rule.decay_before_grad
            and rule.clip is None
            and type(rule.algorithm) is GradientDescent
            and isinstance(rule.retention, NoRetention | WeightDecay)
            and rule.retention.scope in (None, "head", "key")
        ),
        "an erase key is only defined for a matrix with squared error, online gradient descent and no clip",
    )


def _retentions(rule: Rule) -> Iterator[tuple[bool, str]]:
    retention = rule.retention
    kind = type(retention).__name__
    for hook, flag in (("project", "projects"), ("link", "link_at")):
        yield (
            _overrides(retention, hook) and not getattr(retention, flag),
            f"{kind} has a {hook} of its own that nothing would call: declare {flag} beside it",
        )
    yield (
        retention.scope in retention.refused_scopes,
        f"{kind} normalises along a row: a retain gate of scope {retention.scope!r} would be another rule",
    )
    yield (
        retention.link_at == "chunk" and rule.read != "chunk",
        f"the link of {kind} acts at the chunk's start: set read='chunk', or link_at='token'",
    )
    yield (
        retention.every is not None and retention.every % rule.chunk_size != 0,
        f"a reset every {retention.every} tokens is not at the border of a chunk of {rule.chunk_size}",
    )
    yield (
        retention.every == rule.chunk_size and rule.read == "chunk",
        "a memory that starts again in every chunk and is read at its start never answers with what it has read",
    )
    yield retention.lag and rule.bias.window > 1, "a lag token and a window over tokens contradict each other"
    yield (
        retention.lag and rule.algorithm.coupling == "deferred",
        "a lag token needs a step at every token; Newton-Schulz acts where a chunk opens",
    )


def _algorithms(rule: Rule) -> Iterator[tuple[bool, str]]:
    algorithm, plain = rule.algorithm, isinstance(rule.retention, NoRetention | WeightDecay)
    matrix = isinstance(rule.architecture, Matrix) and not rule.architecture.bias
    yield (
        isinstance(algorithm, ImplicitStep) and any(scope not in (None, "head") for scope in rule.scopes),
        "an implicit step has one lr and one retain gate a head",
    )
    yield (
        isinstance(algorithm, ImplicitStep) and not (matrix and isinstance(rule.bias, L2) and plain and rule.online),
        "an implicit step has a closed form only for a matrix with squared error, online: others must be solved for",
    )
    yield (
        isinstance(algorithm, ImplicitStep)
        and (rule.clip is not None or (rule.retention.scope is not None and not rule.decay_before_grad)),
        "an implicit step starts from the decayed memory and has no clip: set decay_before_grad=True and clip=None",
    )
    yield (
        isinstance(algorithm, Steps) and not (rule.online and plain),
        "several steps a token follow one another: set chunk_size=1, with no retention or weight decay",
    )
    yield (
        isinstance(algorithm, Steps) and (rule.bias.window > 1 or rule.bias.threshold_scope is not None),
        "several steps a token are defined for biases without gates of their own",
    )
    yield (
        isinstance(algorithm, DeltaGradientDescent | NewtonSchulz) and bool(rule.architecture.elementwise),
        f"{type(algorithm).__name__} is defined for linear maps, not for elementwise weights",
    )
    yield (
        isinstance(algorithm, DeltaGradientDescent) and rule.bias.window > 1,
        "delta gradient descent erases the key of one token, a window writes several",
    )
    yield (
        isinstance(algorithm, DeltaGradientDescent) and (rule.retention.link_at is not None or rule.retention.lag),
        "delta gradient descent erases from the weights in force, a link keeps another quantity",
    )
    yield (
        isinstance(algorithm, DeltaGradientDescent) and rule.lr_scope not in ("head", "map"),
        "delta gradient descent takes one lr per map: its eigenvalue 1 - lr |x|^2 is a number",
    )
    yield (
        algorithm.coupling == "deferred" and rule.read != "chunk",
        "a step that waits for the chunk's end is taken where the next one opens: set read='chunk'",
    )
    yield (
        algorithm.coupling == "deferred" and rule.decay_before_grad,
        "decay_before_grad has no meaning where the step waits for the chunk's end",
    )
    yield from _solvers(rule)


def _solvers(rule: Rule) -> Iterator[tuple[bool, str]]:
    algorithm, plain = rule.algorithm, isinstance(rule.retention, NoRetention | WeightDecay)
    heads = all(scope in (None, "head") for scope in rule.scopes)
    matrix = isinstance(rule.architecture, Matrix) and not rule.architecture.bias
    solved = isinstance(algorithm, ConjugateGradient)
    yield (
        solved and not (matrix and isinstance(rule.bias, L2) and plain and heads and rule.clip is None),
        "conjugate gradients solve for a matrix with squared error, gates per head, no clip, at most weight decay",
    )
    yield solved and rule.read != "after", "a least-squares memory is read after the write"
    yield (
        solved and (rule.chunk_size != 1 or rule.decay_before_grad),
        "a least-squares memory takes no gradients, so it has neither chunks nor an anchor: set chunk_size=1",
    )
    attends = isinstance(algorithm, Attention)
    yield (
        attends and not (matrix and isinstance(rule.bias, L2 | DotProduct) and isinstance(rule.retention, NoRetention)),
        "softmax attention keeps every pair: it is made with Matrix(), L2() and NoRetention()",
    )
    yield (
        attends and (rule.read != "after" or not rule.online or rule.clip is not None),
        "softmax attention has neither chunks, gradients nor an earlier read: chunk_size=1, clip=None, read='after'",
    )
    layered = isinstance(algorithm, Hierarchy)
    yield (
        layered and not (plain and heads),
        "a hierarchy is defined for gates per head and no retention or weight decay",
    )
    yield layered and rule.bias.window > 1, "a hierarchy of memories and a window over tokens contradict each other"
    yield (
        isinstance(algorithm, Hierarchy) and algorithm.shard % rule.chunk_size != 0,
        f"the shard of a hierarchy must be a multiple of its chunk size {rule.chunk_size}",
    )
    yield (
        layered and rule.read != "chunk",
        "the global memory of a hierarchy is read at its chunk's start: read='chunk'",
    )
    yield layered and rule.decay_before_grad, "decay_before_grad is not defined for a hierarchy of memories"


def _overrides(retention: Retention, hook: str) -> bool:
    return getattr(type(retention), hook) is not getattr(Retention, hook)
