"""A rule on trial: random initial weights, inputs and states, and the rule as a stream that reads them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastweights.core.engine import init_state, run
from fastweights.core.layout import make_layout, pack, unpack
from fastweights.core.rule import Rule, Tier
from fastweights.core.types import Gates, Map, MemoryState, Surprise
from fastweights.errors import UserError


class Inputs(NamedTuple):
    """What a memory reads, ``[B, H, T, .]`` each."""

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Gates


class Answer(NamedTuple):
    """What a memory gives: ``y [B, T, H, V]``, the state, and the surprise ``[B, T, H]`` per field."""

    y: Tensor
    state: MemoryState
    surprise: Surprise | None


class Span(NamedTuple):
    """The interval that a gate is drawn from."""

    low: float
    high: float


@dataclass(frozen=True)
class Trial:
    """A rule with initial weights, as a stream of ``x [B, T, H, F]``: q, k, v and the gates of a token side by side.

    Args:
        rule: the rule.
        initial: W_0, ``[H, outputs, inputs]`` per map, then the constants.
        key_dim: K.
        value_dim: V.
        tier: run on this tier instead of the rule's best.
    """

    rule: Rule
    initial: tuple[Tensor, ...]
    key_dim: int
    value_dim: int
    tier: Tier | None = None

    @property
    def heads(self) -> int:
        """H."""
        return self.initial[0].shape[0]

    @property
    def parts(self) -> dict[str, int]:
        """What a token brings, by name, and how many numbers each is."""
        widths = self.rule.gate_widths(self.key_dim, self.value_dim)
        gates = {name: width for name, width in zip(Gates._fields, widths, strict=True) if width}
        k, v = self.rule.keys * self.key_dim, self.rule.values * self.value_dim
        return {"q": self.key_dim, "k": k, "v": v} | gates

    @property
    def gate_names(self) -> list[str]:
        """The gates the rule has."""
        return list(self.parts)[3:]

    def split(self, x: Tensor) -> dict[str, Tensor]:
        """The parts of ``x [..., F]``, as views."""
        return dict(zip(self.parts, x.split(list(self.parts.values()), -1), strict=True))

    def inputs(self, x: Tensor) -> Inputs:
        """``x [B, T, H, F]`` as the engine takes it."""
        found = self.split(x.transpose(1, 2))
        return Inputs(found["q"], found["k"], found["v"], Gates(*[found.get(name) for name in Gates._fields]))

    def read(
        self,
        x: Tensor,
        state: MemoryState,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        surprise: bool = False,
    ) -> Answer:
        """Runs the rule; answers in padding slots are 0."""
        layout = make_layout(state.position, x.shape[1], mask, cu_seqlens)
        q, k, v, gates = self.inputs(pack(layout, x))
        result = run(self.rule, self.initial, q, k, v, gates, state, layout, surprise=surprise, tier=self.tier)
        felt = None
        if result.surprise is not None:
            felt = Surprise(*[unpack(layout, field.transpose(1, 2)) for field in result.surprise])
        return Answer(unpack(layout, result.y.transpose(1, 2)), result.state, felt)

    def __call__(
        self, x: Tensor, state: MemoryState, mask: Tensor | None = None, cu_seqlens: Tensor | None = None
    ) -> tuple[Tensor, MemoryState]:
        """The rule as a stream."""
        return self.read(x, state, mask, cu_seqlens)[:2]

    def draw(self, batch: int, time: int, seed: int, spans: dict[str, Span] | None = None) -> Tensor:
        """Random ``x [B, T, H, F]``; keys of unit length where the rule says so, gates inside their range.

        Args:
            batch: B.
            time: T.
            seed: of the draw.
            spans: intervals of some gates instead of the usual ones.
        """
        usual = {"lr": Span(0.1, 1.0), "momentum": Span(0.1, 0.9), "retain": Span(0.7, 0.99)}
        usual |= {"threshold": Span(0.3, 2.0), "importance": Span(0.2, 1.0)}
        usual["lr"] = Span(*[share * min(0.3, self.rule.lr_max) for share in usual["lr"]])
        generator = torch.Generator().manual_seed(seed)
        found = []
        for name, width in self.parts.items():
            shape = (batch, time, self.heads, width)
            if name in usual:
                low, high = (usual | (spans or {}))[name]
                found.append(low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64))
                continue
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            if name != "v":
                values = values.unflatten(-1, (-1, self.key_dim))
                values = F.normalize(values, dim=-1) if self.rule.normalise_qk else values * self.key_dim**-0.5
                values = values.flatten(-2)
            found.append(values)
        return torch.cat(found, -1).to(self.initial[0].dtype)

    def fresh(self, batch: int) -> MemoryState:
        """The state of ``batch`` rows that have read nothing."""
        return init_state(self.rule, self.initial, batch, (self.key_dim, self.value_dim))

    def midway(self, batch: int, seed: int) -> MemoryState:
        """A state in the middle of a document; row 0 stands at a chunk's start, the others inside one."""
        ahead = 2 * self.rule.chunk_size + 5 * torch.arange(batch)
        x = self.draw(batch, int(ahead.max()), seed + 1000)
        with torch.no_grad():
            return self.on(None)(x, self.fresh(batch), torch.arange(x.shape[1]) < ahead[:, None])[1]

    def on(self, tier: Tier | None) -> Trial:
        """The same trial on another tier."""
        return replace(self, tier=tier)

    def to(self, dtype: torch.dtype) -> Trial:
        """The same trial with initial weights of another dtype."""
        return replace(self, initial=tuple(w.to(dtype) for w in self.initial))


def value_size(rule: Rule, key_dim: int) -> int:
    """A value size unlike the key's, so that a transposed product is seen; the same where the rule needs it."""
    try:
        rule.maps(key_dim, key_dim - 1)
    except UserError:
        return key_dim
    return key_dim - 1


def make_trial(rule: Rule, key_dim: int, value_dim: int, heads: int = 2, seed: int = 0) -> Trial:
    """A trial in float64; initial weights are random and not small, so that no gradient vanishes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(m: Map, spread: float) -> Tensor:
        return spread * torch.randn(heads, m.outputs, m.inputs, generator=generator, dtype=torch.float64)

    maps = [draw(m, 0.6 * m.inputs**-0.5 * m.learned) for m in rule.maps(key_dim, value_dim)]
    constants = [1.0 + draw(m, 0.2) for m in rule.constants(key_dim, value_dim)]
    return Trial(rule, (*maps, *constants), key_dim, value_dim)


def moving(tree: Any) -> Any:
    """A copy of a tree whose floating-point tensors are leaves that require gradients."""
    if isinstance(tree, Tensor):
        return tree.detach().clone().requires_grad_() if tree.is_floating_point() else tree
    if tree is None:
        return None
    if hasattr(tree, "_fields"):
        return type(tree)(*[moving(part) for part in tree])
    return tuple(moving(part) for part in tree)
