"""The memory layer: slow weights around a memory rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastweights.core.compiled import compilable
from fastweights.core.engine import init_state, run
from fastweights.core.rule import Rule, require_rule
from fastweights.core.types import Gates, MemoryState
from fastweights.layers.convolution import OWN, ShortConvolution, one_token_back
from fastweights.layers.gates import exact_gate, gate_bias, reached
from fastweights.layers.norm import RMSNorm, unit
from fastweights.layers.stream import Plan, Reading, StreamLayer, checked


class MemoryLayerState(NamedTuple):
    """The memory of every head, and the last tokens before the convolution ``[B, conv - 1, 3 x heads x head_dim]``."""

    memory: MemoryState
    tail: Tensor


@dataclass(frozen=True)
class GateStart:
    """Where the gates of a new layer start, as shares of their range, and how far its heads reach.

    Attributes:
        threshold: the gates' threshold; below it a gate is exactly 0.
        lr: share of the largest lr; an lr that starts small learns slowly.
        momentum: of the momentum gate.
        forget: bias of the forget gate (before the sigmoid); -4 starts shut: a memory should first of all keep. Rules
            that write what they forget (``tied``) start at 0 instead.
        lr_last: the longest step of the last of several heads, as a share of the first one's, with those between
            geometrically apart; 0: all heads reach equally far.

    The gates ``threshold`` and ``importance`` start wide open, at 0.9 of their range.
    """

    threshold: float = 0.05
    lr: float = 0.5
    momentum: float = 0.1
    forget: float = -4.0
    lr_last: float = 0.0

    def __post_init__(self) -> None:
        checked(0 <= self.threshold < 1, f"the gates' threshold must lie in [0, 1), not {self.threshold}")
        checked(0 < self.lr < 1, f"the lr gate must start inside (0, 1), not at {self.lr}")
        checked(0 <= self.lr_last <= 1, f"lr_last must lie in [0, 1], not be {self.lr_last}")
        checked(0 < self.momentum < 1, f"the momentum gate must start inside (0, 1), not at {self.momentum}")

    def biases(self, rule: Rule, heads: int) -> tuple[Tensor, ...]:
        """What each gate's number before the sigmoid starts from, in the order of the gates: ``[heads, 1]`` each."""
        lr, momentum, open_wide = (gate_bias(share, self.threshold) for share in (self.lr, self.momentum, 0.9))
        starts = lr, momentum, 0.0 if rule.tied else self.forget, open_wide, open_wide
        return tuple(torch.full((heads, 1), bias) for bias in starts)

    def reaches(self, heads: int) -> tuple[float, ...]:
        """The longest step of each head, as a share of the first one's; empty where all reach equally far."""
        return tuple(self.lr_last ** (head / max(1, heads - 1)) for head in range(heads)) if self.lr_last else ()


class MemoryLayer(StreamLayer[MemoryLayerState]):
    """A neural long-term memory as a layer over any ``[B, T, dim]`` (Titans section 3, with 4.4's details).

    Projections to q, k, v; short causal convolution; SiLU; unit-length q and k (where the rule says so); gates from the
    token; the rule, from learned initial weights; per-head RMSNorm and a SiLU gate; output projection. Rules that need
    more of a token (several keys, an erased key, a window's importance) get it from the same projections.

    Args:
        dim: D.
        heads: independent memories.
        rule: the memory rule.
        head_dim: size of keys and values, ``dim // heads`` by default.
        convolution: taps of the short convolution.
        gates: where the gates start.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        rule: Rule,
        head_dim: int | None = None,
        convolution: int = 4,
        gates: GateStart = GateStart(),
    ) -> None:
        super().__init__()
        require_rule(rule)
        checked(head_dim is not None or dim % heads == 0, f"dim {dim} is not divisible by {heads} heads")
        self.dim, self.heads, self.rule, self.grows = dim, heads, rule, rule.grows
        self.head_dim = head_dim or dim // heads
        self.threshold = gates.threshold
        inner = self.heads * self.head_dim
        self.parts = 1, 0 if rule.tied else rule.keys, rule.values
        self.qkv = nn.Linear(dim, sum(self.parts) * inner, bias=False)
        self.convolution = ShortConvolution(sum(self.parts) * inner, convolution)
        self.maps = rule.maps(self.head_dim, self.head_dim)
        self.constants = rule.constants(self.head_dim, self.head_dim)
        self._make_gates(gates)
        self.reaches = gates.reaches(heads)
        self.initial = nn.ParameterDict(
            {m.name: torch.randn(heads, m.outputs, m.inputs) * rule.initial_spread(m) for m in self.maps if m.learned}
            | {c.name: torch.tensor(rule.initial_constant(c)).expand(heads, 1, -1).clone() for c in self.constants}
        )
        self.norm = RMSNorm(self.head_dim)
        self.out_gate = nn.Linear(dim, inner, bias=False)
        self.out = nn.Linear(inner, dim, bias=False)

    def _make_gates(self, start: GateStart) -> None:
        """One number per gate and token from a projection, and those gates that are the same for all tokens."""
        self.widths = self.rule.gate_widths(self.head_dim, self.head_dim)
        *others, threshold, importance = self.rule.ranges
        self.ranges = (*others, threshold * self.head_dim**0.5, importance)
        fixed = [name in self.rule.fixed for name in Gates._fields]
        self.moving = [0 if still else width for width, still in zip(self.widths, fixed, strict=True)]
        self.still = [width if still else 0 for width, still in zip(self.widths, fixed, strict=True)]
        self.gates = nn.Linear(self.dim, self.heads * sum(self.moving)) if any(self.moving) else None
        self.fixed_gates = nn.Parameter(torch.empty(self.heads, sum(self.still))) if any(self.still) else None
        biases = start.biases(self.rule, self.heads)
        with torch.no_grad():
            if self.gates is not None:
                nn.init.normal_(self.gates.weight, std=0.02)
                parts = self.gates.bias.view(self.heads, -1).split(self.moving, 1)
                for part, bias in zip(parts, biases, strict=True):
                    part.copy_(bias.expand_as(part))
            if self.fixed_gates is not None:
                lr, momentum, retain, *rest = self.fixed_gates.split(self.still, 1)
                for part, bias in zip((lr, momentum, *rest), (*biases[:2], *biases[3:]), strict=True):
                    part.copy_(bias.expand_as(part))
                # RetNet's decays 1 - 2^(-5 - h), a longer memory for every further head.
                shares = [gate_bias(2.0 ** (-5 - h), self.threshold) for h in range(self.heads)]
                retain.copy_(torch.tensor(shares).unsqueeze(1).expand_as(retain))

    def gate_parameters(self) -> list[nn.Parameter]:
        """What opens and shuts the gates."""
        found = [] if self.gates is None else list(self.gates.parameters())
        return found if self.fixed_gates is None else [*found, self.fixed_gates]

    def start_induction(self) -> None:
        """Starts keys as the queries of the token before, and a little of the token itself if they get unit length.

        From the first step on a query then finds what followed the last token like it (an induction head).
        """
        inner = self.heads * self.head_dim
        with torch.no_grad():
            for layer in (self.qkv, self.out_gate, self.out):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            keys = slice(inner, inner * (1 + self.parts[1]))
            self.qkv.weight[keys] = self.qkv.weight[:inner].repeat(self.parts[1], 1)
            directed = self.rule.normalise_qk or self.rule.erase_key
            one_token_back(self.convolution.weight[:, keys], OWN if directed else 0.0)

    def initial_weights(self) -> tuple[Tensor, ...]:
        """The weights W_0 that every document starts from and the rule's constants, ``[heads, outputs, inputs]``."""
        zeros = self.norm.weight.new_zeros
        own = [self.initial[m.name] if m.learned else zeros(self.heads, m.outputs, m.inputs) for m in self.maps]
        return (*own, *[self.initial[c.name] for c in self.constants])

    def init_state(self, batch: int) -> MemoryLayerState:
        memory = init_state(self.rule, self.initial_weights(), batch, (self.head_dim, self.head_dim))
        return MemoryLayerState(memory, self.convolution.init_state(batch))

    def position(self, state: MemoryLayerState) -> Tensor:
        return state.memory.position

    def prepare(self, plan: Plan) -> None:
        plan.for_rule(self.rule)

    def mix(self, x: Tensor, state: MemoryLayerState, plan: Plan, surprise: bool) -> Reading[MemoryLayerState]:
        mixed, tail = self.convolution(self.qkv(x), state.tail, plan.layout)
        q, k, v = split_heads(mixed, self.heads, self.parts, self.rule.normalise_qk)
        if self.rule.erase_key:
            written, erased = k.chunk(2, -1)
            k = torch.cat([written, unit(erased)], -1)
        gates = self.open_gates(x)
        if self.rule.tied and gates.retain is not None:
            k = 1.0 - gates.retain
        result = run(
            self.rule,
            self.initial_weights(),
            q,
            k,
            v,
            gates,
            state.memory,
            plan.layout,
            plan.for_rule(self.rule),
            surprise,
        )
        return Reading(
            self.project(x, result.y.to(v.dtype)),
            MemoryLayerState(result.state, tail),
            () if result.surprise is None else (result.surprise,),
        )

    def open_gates(self, x: Tensor) -> Gates:
        """The gates of every token, ``[B, heads, T, n]`` each, from ``x [B, T, dim]``; float32 or wider."""
        wide = torch.promote_types(x.dtype, torch.float32)
        found: list[Tensor | None] = [None] * len(self.widths)
        if self.gates is not None:
            z = self.gates(x).to(wide).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            self._open(found, z, self.moving)
        if self.fixed_gates is not None:
            z = self.fixed_gates.to(wide)[None, :, None].expand(len(x), -1, x.shape[1], -1)
            self._open(found, z, self.still)
        lr, momentum, forget, threshold, importance = (
            gate if gate is None or largest == 1.0 else gate * largest
            for gate, largest in zip(found, self.ranges, strict=True)
        )
        retain = None if forget is None else 1.0 - forget
        lr = None if lr is None else reached(lr * self.rule.stable_lr(retain), self.reaches)
        return Gates(lr, momentum, retain, threshold, importance)

    def _open(self, found: list[Tensor | None], z: Tensor, widths: list[int]) -> None:
        for i, gate in enumerate(exact_gate(z, self.threshold).split(widths, -1)):
            found[i] = gate if widths[i] else found[i]

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """Output norm, gate and projection of the answers ``y [B, heads, T, head_dim]`` of tokens ``x [B, T, dim]``."""
        return self.out(gated(self.norm, y, self.out_gate(x)))


@compilable
def split_heads(
    mixed: Tensor, heads: int, parts: tuple[int, int, int], normalise: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """SiLU, and q, k and v ``[B, heads, T, n x head_dim]`` from ``[B, T, sum(parts) x heads x head_dim]``.

    ``parts`` are how many queries, keys and values a token has, side by side; each key of unit length if ``normalise``.
    """
    inner = mixed.shape[-1] // sum(parts)
    q, k, v = mixed.split([count * inner for count in parts], -1)
    return _beside(q, heads, parts[0], normalise), _beside(k, heads, parts[1], normalise), _beside(v, heads, parts[2])


def _beside(x: Tensor, heads: int, count: int, normalise: bool = False) -> Tensor:
    """``[B, T, count x heads x head_dim]`` as ``[B, heads, T, count x head_dim]``."""
    x = F.silu(x).unflatten(-1, (count, heads, x.shape[-1] // max(1, count * heads)))
    return (unit(x) if normalise else x).permute(0, 3, 1, 2, 4).flatten(3).contiguous()


@compilable
def gated(norm: RMSNorm, y: Tensor, gate: Tensor) -> Tensor:
    """The normed answers ``[B, heads, T, head_dim]`` times SiLU of ``gate [B, T, heads x head_dim]``, in its shape."""
    return norm(y).transpose(1, 2).flatten(2) * F.silu(gate)
