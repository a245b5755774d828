"""What a call to the engine brings: checked, widened, and without tokens that hold numbers that are not finite."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastweights.core.algorithm import Hierarchy
from fastweights.core.gradient import all_finite
from fastweights.core.layout import Layout
from fastweights.core.rule import Rule, Tier
from fastweights.core.types import Gates, MemoryState
from fastweights.errors import UserError

_SILENT = (0.0, 1.0, 1.0, 1.0, 0.0)
"""Gates of a rejected token: finite. It is masked besides, which no gate value can do."""


class Call(NamedTuple):
    """The arguments of :func:`fastweights.core.engine.run`; ``rejected`` bool ``[B, H, T]``, ``None`` for nowhere."""

    rule: Rule
    initial: tuple[Tensor, ...]
    q: Tensor
    k: Tensor
    v: Tensor
    gates: Gates
    state: MemoryState
    layout: Layout
    surprise: bool
    tier: Tier
    rejected: Tensor | None = None

    @property
    def sizes(self) -> tuple[int, int]:
        """K and V."""
        return self.q.shape[-1], self.v.shape[-1] // self.rule.values

    def refused(self) -> Tensor:
        """``rejected``, in full."""
        shape = self.q.shape[:3]
        return torch.zeros(shape, dtype=torch.bool, device=self.q.device) if self.rejected is None else self.rejected

    def constants(self) -> dict[str, Tensor]:
        """The rule's constants by name, ``[H, 1, n]``."""
        maps = self.rule.constants(*self.sizes)
        return dict(zip([m.name for m in maps], self.initial[len(self.initial) - len(maps) :], strict=True))


def wide(w: Tensor) -> Tensor:
    """Memories are kept in float32 or wider, whatever the model's dtype."""
    return w.to(torch.promote_types(w.dtype, torch.float32))


def require_state(state: object, gates: object) -> None:
    """Refuses what is no state or no gates, such as a whole result.

    Raises:
        UserError: with what to give instead.
    """
    if not isinstance(state, MemoryState) or not isinstance(gates, Gates):
        raise UserError("the engine takes Gates, and a MemoryState from init_state or an earlier result's .state")


def checked(call: Call) -> Call:
    """The call with every tensor in the state's dtype and every gate ``[B, H, T, n]``.

    Raises:
        UserError: shapes that do not fit the rule.
    """
    rule, q, k, v = call.rule, call.q, call.k, call.v
    fits = q.dim() == k.dim() == v.dim() == 4 and q.shape[:3] == k.shape[:3] == v.shape[:3]
    if not fits or k.shape[-1] != rule.keys * q.shape[-1] or v.shape[-1] % rule.values:
        keys, values = (f"{n} x {x}" if n > 1 else x for n, x in ((rule.keys, "K"), (rule.values, "V")))
        raise UserError(
            f"queries must be [B, H, T, K], keys [B, H, T, {keys}] and values [B, H, T, {values}]; "
            f"they are {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    if q.shape[2] == 0:
        raise UserError("a call must bring at least one token slot")
    maps = (*rule.maps(*call.sizes), *rule.constants(*call.sizes))
    want = [(q.shape[1], m.outputs, m.inputs) for m in maps]
    found = [tuple(w.shape) for w in call.initial]
    if found != want:
        raise UserError(f"the initial weights and constants of this rule have the shapes {want}, not {found}")
    _check_state(call)
    dtype = wide(call.initial[0]).dtype
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    gates = Gates(*[None if g is None else g.to(dtype) for g in _checked_gates(call)])
    return call._replace(initial=tuple(wide(w) for w in call.initial), q=q, k=k, v=v, gates=gates)


def _check_state(call: Call) -> None:
    maps = call.rule.maps(*call.sizes)
    want = [(*call.q.shape[:2], m.outputs, m.inputs) for m in maps]
    found = [tuple(w.shape) for w in call.state.dual]
    momenta, anchors = len(call.state.momentum), len(call.state.anchor)
    plain = not isinstance(call.rule.algorithm, Hierarchy)
    whole = found == want and len(call.state.position) == call.q.shape[0]
    if plain:
        whole &= momenta == len(maps) * call.rule.has_momentum and anchors == len(maps) * call.rule.keeps_anchor
    if not whole:
        raise UserError(
            f"the state was not made for this rule and these inputs: its memory has the shapes {found} (with {momenta} "
            f"momenta and {anchors} anchors), where this rule's has {want}"
        )


def _checked_gates(call: Call) -> list[Tensor | None]:
    found: list[Tensor | None] = []
    described = zip(Gates._fields, call.gates, call.rule.scopes, call.rule.gate_widths(*call.sizes), strict=True)
    for name, gate, scope, width in described:
        if (gate is None) != (scope is None):
            raise UserError(f"this rule {'has no' if scope is None else 'needs a'} gate {name!r}")
        if gate is None or scope is None:
            found.append(None)
            continue
        gate = gate.unsqueeze(-1) if gate.dim() == 3 else gate
        if tuple(gate.shape) != (*call.q.shape[:3], width):
            want = [*call.q.shape[:3], width]
            raise UserError(f"gate {name!r} of scope {scope!r} must have shape {want}, not {list(gate.shape)}")
        found.append(gate)
    return found


def rejecting(call: Call) -> Call:
    """Masks tokens whose gates, or squared lengths of key or value, are not finite: that row, head and token alone.

    It is the squared length that counts, because inner gradients are products of such lengths; where conjugate
    gradients square those products again, the fourth power.
    """
    k, v, gates = call.k, call.v, call.gates
    given = [x.detach() for x in gates if x is not None]
    power = 4 if call.rule.tiers[0] == "least squares" else 2
    lengths = [torch.linalg.vector_norm(x.detach()) ** power for x in (k, v)]
    if not torch.compiler.is_compiling() and all_finite([*lengths, *given]):
        return call
    squares = [x.detach().square().sum(-1, keepdim=True) ** (power // 2) for x in (k, v)]
    finite = torch.stack([torch.isfinite(x).all(-1) for x in (*squares, *given)]).all(0)
    keep = finite.unsqueeze(-1)
    kept = [None if g is None else torch.where(keep, g, fill) for g, fill in zip(gates, _SILENT, strict=True)]
    k, v = torch.where(keep, k, 0.0), torch.where(keep, v, 0.0)
    return call._replace(k=k, v=v, gates=Gates(*kept), rejected=~finite)
