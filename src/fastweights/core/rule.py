"""A memory rule: four independent choices and the conventions that make them exact."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from inspect import isabstract
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fastweights.core.algorithm import (
    Algorithm,
    Attention,
    ConjugateGradient,
    DeltaGradientDescent,
    GradientDescent,
    Hierarchy,
    ImplicitStep,
    Momentum,
    Nesterov,
    NewtonSchulz,
    Steps,
)
from fastweights.core.architecture import MLP, Architecture, Matrix
from fastweights.core.bias import L2, Affine, Bias
from fastweights.core.refusals import refuse
from fastweights.core.retention import Retention, WeightDecay
from fastweights.core.types import Map, Scope, gate_width
from fastweights.errors import UserError, is_positive

Read = Literal["after", "before", "chunk"]
Tier = Literal["dual", "materialised", "delta", "least squares", "attention", "reference"]

_CHOICE_OF: dict[str, type] = {
    "architecture": Architecture,
    "bias": Bias,
    "retention": Retention,
    "algorithm": Algorithm,
}


@dataclass(frozen=True)
class Rule:
    """One model of the family (MIRAS section 3): architecture, attentional bias, retention gate, memory algorithm.

    Gradients are taken at the weights of the chunk's first token; lr, momentum and retention act per token, exactly.

    Args:
        architecture: what stores the memory.
        bias: what it tries to get right.
        retention: what it keeps.
        algorithm: how it learns.
        chunk_size: tokens that share one anchor; 1 is the fully sequential rule. Part of the rule: never changed
            silently.
        read: which weights answer token t: those ``after`` its write, ``before`` it, or at the ``chunk``'s start.
        clip: bound on the norm of a token's whole inner gradient, or ``None``.
        lr_max: the lr gate lies in [0, lr_max].
        lr_scope: scope of the lr gate.
        decay_before_grad: take the gradient at the decayed memory ``retain_t A_{t-1}`` as Gated DeltaNet does; Titans
            takes it at ``A_{t-1}``. Chunk size 1 only.
        normalise_qk: layers normalise queries and keys to unit length per head.
        tied: layers take ``1 - retain`` as the key (HGRN2); ``retain`` is then per key channel.
        fixed: gates that layers keep the same for all tokens, one learned number each (RetNet's decay).
        erase_key: keys are ``[B, H, T, 2 K]``, the key that is written and another that is erased (RWKV-7):
            ``A_t = A_{t-1} diag(retain) - slope (A_{t-1} erase) (lr * erase)^T + v key^T``. Layers give it unit length.

    Raises:
        UserError: choices that contradict each other, with the reason.
    """

    architecture: Architecture = MLP()
    bias: Bias = L2()
    retention: Retention = WeightDecay()
    algorithm: Algorithm = Momentum()
    chunk_size: int = 16
    read: Read = "after"
    clip: float | None = 1.0
    lr_max: float = 1.0
    lr_scope: Scope = "head"
    decay_before_grad: bool = False
    normalise_qk: bool = True
    tied: bool = False
    fixed: tuple[str, ...] = ()
    erase_key: bool = False

    def __post_init__(self) -> None:
        if type(self.chunk_size) is not int or self.chunk_size < 1:
            raise UserError(f"chunk_size must be a whole number of at least 1, not {self.chunk_size!r}")
        if self.read not in get_args(Read):
            raise UserError(f"read must be one of {', '.join(get_args(Read))}, not {self.read!r}")
        if self.clip is not None and not is_positive(self.clip):
            raise UserError(f"clip must be above 0, or None for no bound; it is {self.clip!r}")
        if not is_positive(self.lr_max):
            raise UserError(f"lr_max must be above 0 and finite, not {self.lr_max!r}")
        for name, kind in _CHOICE_OF.items():
            _check_part(name, kind, getattr(self, name))
        for name, scope in (("lr", self.lr_scope), *list(zip(_GATES, self.scopes, strict=True))[1:]):
            if scope not in get_args(Scope) and (scope is not None or name == "lr"):
                raise UserError(f"the scope of {name} must be one of {', '.join(get_args(Scope))}, not {scope!r}")
        if not isinstance(self.fixed, tuple):
            raise UserError(f"fixed is a tuple of names, not {self.fixed!r}")
        for name in self.fixed:
            if name not in _GATES or self.scopes[_GATES.index(name)] is None:
                raise UserError(f"fixed names gates that the rule has; {name!r} is none of them")
        refuse(self)

    @property
    def scopes(self) -> tuple[Scope | None, ...]:
        """Scopes of the gates lr, momentum, retain, threshold, importance; ``None`` where the rule has no such gate."""
        lr = None if self.grows else self.lr_scope
        own = self.bias.threshold_scope, self.bias.importance_scope
        return lr, self.algorithm.scope, self.retention.scope, *((None, None) if self.grows else own)

    @property
    def ranges(self) -> tuple[float, ...]:
        """Largest value of each gate, that of the threshold in units of sqrt(V); the smallest is 0."""
        return self.lr_max, 1.0, 1.0, self.bias.threshold_max, 1.0

    @property
    def has_momentum(self) -> bool:
        """Whether the state holds a momentum."""
        return self.algorithm.coupling != "none"

    @property
    def online(self) -> bool:
        """Whether every gradient is taken at the current weights, so that no anchor has to be remembered."""
        return self.chunk_size == 1

    @property
    def settles(self) -> bool:
        """Whether the memory changes where a chunk opens, before anything is written."""
        return (
            self.algorithm.coupling == "deferred"
            or self.retention.projects
            or self.retention.every is not None
            or isinstance(self.algorithm, Hierarchy)
        )

    @property
    def keeps_anchor(self) -> bool:
        """Whether the state holds the weights in force at the chunk's start."""
        return not self.grows and (not self.online or self.retention.projects)

    @property
    def keys(self) -> int:
        """Keys that a token brings: k is ``[B, H, T, keys x K]``."""
        return self.algorithm.steps * (2 if self.erase_key else 1)

    @property
    def values(self) -> int:
        """Values that a token brings: v is ``[B, H, T, values x V]``."""
        return self.algorithm.steps

    @property
    def tier(self) -> str:
        """The fastest exact way to run this rule, see :mod:`fastweights.core.engine`.

        It says so where inner gradients come from autograd, since the architecture has no backward of its own.
        """
        return self.tiers[0] if self.architecture.closed_form else f"{self.tiers[0]}, autograd"

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Every exact way to run this rule, the fastest first."""
        if isinstance(self.algorithm, Attention):
            return ("attention", "reference")
        if isinstance(self.algorithm, ConjugateGradient):
            return ("least squares", "reference")
        if isinstance(self.algorithm, Hierarchy):
            return ("dual", "materialised", "reference")
        if isinstance(self.algorithm, Steps):
            return replace(self, algorithm=GradientDescent()).tiers
        found: list[Tier] = []
        if self._triangular:
            found.append("delta")
        scopes = self.scopes[:3]
        if not (self.erase_key or isinstance(self.algorithm, ImplicitStep)):
            per_token = self.retention.link_at == "token" or any(scope in ("key", "value") for scope in scopes)
            if not per_token:
                found.append("dual")
            if not self.decay_before_grad:
                found.append("materialised")
        return (*found, "reference")

    @property
    def _triangular(self) -> bool:
        """Whether the errors of many tokens solve one triangular system."""
        plain = self.retention.link_at is None and not self.retention.projects and self.retention.every is None
        simple = isinstance(self.algorithm, GradientDescent | Momentum | Nesterov | ImplicitStep)
        linear = isinstance(self.architecture, Matrix) and not self.architecture.bias and self.bias.affine() is not None
        allowed = {None, "head"} if self.has_momentum else {None, "head", "key"}
        return self.online and self.clip is None and plain and simple and linear and set(self.scopes[:3]) <= allowed

    @property
    def learns(self) -> bool:
        """Whether repeating a chunk must lower its inner loss.

        Not where the memory is no descent on that loss: attention and least squares solve it outright, an
        orthogonalised step has a length of its own, and what is erased beside a step is not asked for by every loss.
        """
        other = isinstance(self.algorithm, Attention | ConjugateGradient | NewtonSchulz | DeltaGradientDescent)
        return self.retention.descends and not (other or self.erase_key)

    def stable_lr(self, retain: Tensor | None, own_targets: bool = False) -> Tensor | float:
        """What layers multiply the lr gate with beside ``lr_max``, so that no step overshoots; 1 for most rules.

        A token of unit length that comes again and again then leaves a matrix bounded, without momentum.

        Args:
            retain: the gate, ``None`` where the rule has none.
            own_targets: what a token is to be answered with is the memory's own answer to a value of unit length, so
                that the weights are in the target, too. Different tokens in turn may then still make them grow, see
                note (37) of ``docs/equations.md``.
        """
        if not self.algorithm.erases and not own_targets:
            return 1.0
        affine = self.bias.affine() or Affine(1.0, 1.0)
        least = torch.ones((), dtype=torch.float64) if retain is None else retain.amin(-1, keepdim=True)
        slope = affine.slope + (affine.gain if own_targets else 0.0)
        return self.algorithm.stable_lr(least, slope, self.chunk_size)

    @property
    def grows(self) -> bool:
        """Whether the state grows with the document."""
        return isinstance(self.algorithm, Attention)

    def gate_widths(self, key_dim: int, value_dim: int) -> tuple[int, ...]:
        """Numbers that each gate needs per head and token, 0 where the rule has no such gate."""
        maps = self.maps(key_dim, value_dim)
        widths = [0 if scope is None else gate_width(scope, maps) for scope in self.scopes]
        return (widths[0] * self.algorithm.steps, *widths[1:])

    def maps(self, key_dim: int, value_dim: int) -> tuple[Map, ...]:
        """The maps of one head's memory, in the order of its state and of its initial weights."""
        own = self.architecture.maps(key_dim, value_dim)
        if isinstance(self.algorithm, Attention):
            return ()
        if isinstance(self.algorithm, ConjugateGradient):
            return (*own, Map("keys", key_dim, key_dim, learned=False))
        if isinstance(self.algorithm, Hierarchy):
            every = range(len(self.algorithm.local_chunks))
            local = [m._replace(name=f"local{i}_{m.name}") for i in every for m in own]
            return (*own, *local, *[Map(f"span{i}", key_dim, key_dim, learned=False) for i in every])
        return own

    def constants(self, key_dim: int, value_dim: int) -> tuple[Map, ...]:
        """Learned elementwise weights that no token changes; their values follow those of the maps in ``initial``."""
        own = self.architecture.constants(key_dim, value_dim)
        if isinstance(self.algorithm, Attention):
            return (Map("scale", 1, 1, True),)
        if isinstance(self.algorithm, ConjugateGradient):
            return (*own, Map("ridge", key_dim, 1, True))
        return own

    def initial_spread(self, of: Map) -> float:
        """Standard deviation that a map's learned initial weights start from."""
        name = of.name.partition("_")[2] if isinstance(self.algorithm, Hierarchy) and "_" in of.name else of.name
        return self.retention.initial_spread(self.architecture.initial_gain(name), of.inputs)

    def initial_constant(self, of: Map) -> list[float]:
        """The values that a constant starts from."""
        return [self.architecture.initial_constant(of.name, i) for i in range(of.inputs)]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; :func:`rule_from_dict` is its inverse."""
        return _describe(self)


ANY_SIZE = 64
"""A size for which every memory's maps can be counted and named: neither depends on it."""

_GATES = ("lr", "momentum", "retain", "threshold", "importance")


def require_rule(rule: object) -> None:
    """Refuses what is no rule, such as a preset that was not called.

    Raises:
        UserError: with what to give instead.
    """
    if not isinstance(rule, Rule):
        name = getattr(rule, "__name__", None)
        raise UserError(f"a rule is needed, not {rule!r}" + (f": call the preset, {name}()" if name else ""))


def _check_part(name: str, kind: type, part: object) -> None:
    """What a choice of one's own has to be, so that rules with it are values that can be compared and saved."""
    own = type(part)
    if not isinstance(part, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise UserError(f"{name} must be {article} {kind.__name__}, not {part!r}")
    parameters = own.__dict__.get("__dataclass_params__")
    if parameters is None or not parameters.frozen:
        raise UserError(f"{own.__name__} must be a frozen dataclass: put @dataclass(frozen=True) in front of it")
    if not own.__module__.startswith("fastweights.core.") and _choices()[own.__name__] is not own:
        raise UserError(
            f"there is another choice called {own.__name__}, and rules are saved by the names of their parts: "
            "give yours a name of its own, or make the part again from its newest definition"
        )


def _choices() -> dict[str, type]:
    """Every choice by name: those shipped and those of the user's own that have been defined."""
    found: dict[str, type] = {}
    waiting = list(_CHOICE_OF.values())
    while waiting:
        kind = waiting.pop(0)
        waiting += kind.__subclasses__()
        if not is_dataclass(kind) or isabstract(kind):
            continue
        # Of classes defined again at the same place, such as a cell run twice, the newest counts; else the first.
        known = found.get(kind.__name__, kind)
        if (known.__module__, known.__qualname__) == (kind.__module__, kind.__qualname__):
            found[kind.__name__] = kind
    return found


def _describe(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        named = {} if isinstance(value, Rule) else {"kind": type(value).__name__}
        return named | {f.name: _describe(getattr(value, f.name)) for f in fields(value)}
    return list(value) if isinstance(value, tuple) else value


def beyond_defaults(value: Any) -> Any:
    """A description of a configuration that names only what differs from the defaults of its classes.

    A field that a later version adds, with a default that changes nothing, leaves it as it is: so it can tell models
    apart over versions.
    """
    if not is_dataclass(value) or isinstance(value, type):
        return value
    changed = {f.name: beyond_defaults(v) for f in fields(value) if (v := getattr(value, f.name)) != f.default}
    return {"kind": type(value).__name__} | changed


def rule_from_dict(description: dict[str, Any]) -> Rule:
    """Builds the rule that :meth:`Rule.to_dict` described.

    Raises:
        UserError: a choice or field this version does not know.
    """
    return _build(Rule, description)


def _build(kind: type, description: dict[str, Any]) -> Any:
    known = {f.name for f in fields(kind)}
    choices = _choices()
    values: dict[str, Any] = {}
    for name, value in description.items():
        if name == "kind":
            continue
        if name not in known:
            raise UserError(f"{kind.__name__} has no field {name!r}; it has {', '.join(sorted(known))}")
        if isinstance(value, dict):
            choice = value.get("kind")
            if choice not in choices:
                raise UserError(f"{name} is of unknown kind {choice!r}; known are {', '.join(sorted(choices))}")
            value = _build(choices[choice], value)
        values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)
