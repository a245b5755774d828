"""A memory rule: four independent choices and the conventions that make them exact."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, get_args

from fastweights.core.algorithm import Algorithm, GradientDescent, Momentum
from fastweights.core.architecture import MLP, Architecture, GatedMLP, Matrix, Residual
from fastweights.core.bias import L2, Bias, DotProduct
from fastweights.core.retention import NoRetention, Retention, WeightDecay
from fastweights.core.types import Map, Scope
from fastweights.errors import UserError

Read = Literal["after", "before", "chunk"]
Tier = Literal["dual", "materialised", "delta", "reference"]

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

    Raises:
        UserError: choices that contradict each other.
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

    def __post_init__(self) -> None:
        if self.chunk_size < 1:
            raise UserError(f"chunk_size must be at least 1, not {self.chunk_size}")
        if self.read not in get_args(Read):
            raise UserError(f"read must be one of {', '.join(get_args(Read))}, not {self.read!r}")
        if self.clip is not None and not 0 < self.clip < float("inf"):
            raise UserError(f"clip must be above 0, or None for no bound; it is {self.clip}")
        if not 0 < self.lr_max < float("inf"):
            raise UserError(f"lr_max must be above 0 and finite, not {self.lr_max}")
        for name, kind in _CHOICE_OF.items():
            if not isinstance(getattr(self, name), kind):
                raise UserError(f"{name} must be a {kind.__name__}, not {getattr(self, name)!r}")
        for name, scope in zip(("lr", "momentum", "retain"), self.scopes, strict=True):
            if scope not in get_args(Scope) and (scope is not None or name == "lr"):
                raise UserError(f"the scope of {name} must be one of {', '.join(get_args(Scope))}, not {scope!r}")
        if self.decay_before_grad and self.chunk_size != 1:
            raise UserError("decay_before_grad is only defined online: set chunk_size=1")

    @property
    def scopes(self) -> tuple[Scope | None, Scope | None, Scope | None]:
        """Scopes of the gates lr, momentum, retain; ``None`` where the rule has no such gate."""
        return self.lr_scope, self.algorithm.scope, self.retention.scope

    @property
    def has_momentum(self) -> bool:
        """Whether the state holds a momentum."""
        return self.algorithm.scope is not None

    @property
    def online(self) -> bool:
        """Whether every gradient is taken at the current weights, so that no anchor has to be remembered."""
        return self.chunk_size == 1

    @property
    def tier(self) -> Tier:
        """The fastest exact way to run this rule; see :mod:`fastweights.core.engine`."""
        return self.tiers[0]

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Every exact way to run this rule, the fastest first."""
        channels = any(scope in ("key", "value") for scope in self.scopes)
        affine = isinstance(self.architecture, Matrix) and self.bias.affine() is not None
        found: list[Tier] = []
        if self.online and not channels and self.clip is None and affine:
            found.append("delta")
        if not self.decay_before_grad:
            found += ["materialised"] if channels else ["dual", "materialised"]
        return (*found, "reference")

    @property
    def learns(self) -> bool:
        """Whether repeating a chunk must lower its inner loss."""
        return True

    def maps(self, key_dim: int, value_dim: int) -> tuple[Map, ...]:
        """The linear maps of one head's memory."""
        return self.architecture.maps(key_dim, value_dim)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; :func:`rule_from_dict` is its inverse."""
        return _describe(self)


_CHOICES: dict[str, type] = {
    c.__name__: c
    for c in (Matrix, MLP, GatedMLP, Residual, L2, DotProduct, NoRetention, WeightDecay, GradientDescent, Momentum)
}


def _describe(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        named = {} if isinstance(value, Rule) else {"kind": type(value).__name__}
        return named | {f.name: _describe(getattr(value, f.name)) for f in fields(value)}
    return value


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
    values: dict[str, Any] = {}
    for name, value in description.items():
        if name == "kind":
            continue
        if name not in known:
            raise UserError(f"{kind.__name__} has no field {name!r}; it has {', '.join(sorted(known))}")
        if isinstance(value, dict):
            choice = value.get("kind")
            if choice not in _CHOICES:
                raise UserError(f"{name} is of unknown kind {choice!r}; known are {', '.join(_CHOICES)}")
            value = _build(_CHOICES[choice], value)
        values[name] = value
    return kind(**values)
