"""The memory layer: slow weights around a memory rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastweights.core.compiled import compilable
from fastweights.core.engine import init_state, run
from fastweights.core.rule import Rule
from fastweights.core.types import Gates, MemoryState, gate_width
from fastweights.layers.convolution import ShortConvolution
from fastweights.layers.gates import exact_gate, gate_bias
from fastweights.layers.norm import RMSNorm, unit
from fastweights.layers.stream import Plan, Reading, StreamLayer, checked


class MemoryLayerState(NamedTuple):
    """The memory of every head, and the last tokens before the convolution ``[B, conv - 1, 3 x heads x head_dim]``."""

    memory: MemoryState
    tail: Tensor


@dataclass(frozen=True)
class GateStart:
    """Where the gates of a new layer start, as shares of their range.

    Attributes:
        threshold: the gates' threshold; below it a gate is exactly 0.
        lr: share of ``lr_max``; an lr that starts small learns slowly.
        momentum: of the momentum gate.
        forget: bias of the forget gate (before the sigmoid); -4 starts shut: a memory should first of all keep.
    """

    threshold: float = 0.05
    lr: float = 0.5
    momentum: float = 0.1
    forget: float = -4.0

    def __post_init__(self) -> None:
        checked(0 <= self.threshold < 1, f"the gates' threshold must lie in [0, 1), not {self.threshold}")
        checked(0 < self.lr < 1, f"the lr gate must start inside (0, 1), not at {self.lr}")
        checked(0 < self.momentum < 1, f"the momentum gate must start inside (0, 1), not at {self.momentum}")


class MemoryLayer(StreamLayer[MemoryLayerState]):
    """A neural long-term memory as a layer over any ``[B, T, dim]`` (Titans section 3, with 4.4's details).

    Projections to q, k, v; short causal convolution; SiLU; unit-length q and k (where the rule says so); gates from the
    token; the rule, from learned initial weights; per-head RMSNorm and a SiLU gate; output projection.

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
        checked(head_dim is not None or dim % heads == 0, f"dim {dim} is not divisible by {heads} heads")
        self.dim, self.heads, self.rule = dim, heads, rule
        self.head_dim = head_dim or dim // heads
        self.threshold = gates.threshold
        inner = self.heads * self.head_dim
        self.qkv = nn.Linear(dim, 3 * inner, bias=False)
        self.convolution = ShortConvolution(3 * inner, convolution)
        self.maps = rule.maps(self.head_dim, self.head_dim)
        self.widths = [0 if scope is None else gate_width(scope, self.maps) for scope in rule.scopes]
        self.gates = nn.Linear(dim, heads * sum(self.widths))
        self.initial = nn.ParameterDict(
            {m.name: torch.randn(heads, m.outputs, m.inputs) * self._spread(m.name, m.inputs) for m in self.maps}
        )
        self.norm = RMSNorm(self.head_dim)
        self.out_gate = nn.Linear(dim, inner, bias=False)
        self.out = nn.Linear(inner, dim, bias=False)
        self._start_gates(gates)

    def _spread(self, name: str, inputs: int) -> float:
        return self.rule.architecture.initial_gain(name) / inputs**0.5

    def _start_gates(self, start: GateStart) -> None:
        biases = [gate_bias(start.lr, start.threshold), gate_bias(start.momentum, start.threshold), start.forget]
        nn.init.normal_(self.gates.weight, std=0.02)
        with torch.no_grad():
            for part, bias in zip(self.gates.bias.view(self.heads, -1).split(self.widths, 1), biases, strict=True):
                part.fill_(bias)

    def start_induction(self) -> None:
        """Starts keys as the queries of the token before.

        From the first step on a query then finds what followed the last token like it (an induction head).
        """
        inner = self.heads * self.head_dim
        with torch.no_grad():
            for layer in (self.qkv, self.out_gate, self.out):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            self.qkv.weight[inner : 2 * inner] = self.qkv.weight[:inner]
            taps = self.convolution.weight[:, inner : 2 * inner]
            taps.zero_()
            taps[min(1, self.convolution.size - 1)] = 1.0

    def initial_weights(self) -> tuple[Tensor, ...]:
        """The learned weights W_0 that every document starts from, ``[heads, outputs, inputs]`` per map."""
        return tuple(self.initial[m.name] for m in self.maps)

    def init_state(self, batch: int) -> MemoryLayerState:
        return MemoryLayerState(
            init_state(self.rule, self.initial_weights(), batch), self.convolution.init_state(batch)
        )

    def position(self, state: MemoryLayerState) -> Tensor:
        return state.memory.position

    def prepare(self, plan: Plan) -> None:
        plan.for_rule(self.rule)

    def mix(self, x: Tensor, state: MemoryLayerState, plan: Plan, surprise: bool) -> Reading[MemoryLayerState]:
        mixed, tail = self.convolution(self.qkv(x), state.tail, plan.layout)
        q, k, v = split_heads(mixed, self.heads, self.rule.normalise_qk)
        result = run(
            self.rule,
            self.initial_weights(),
            q,
            k,
            v,
            self.open_gates(x),
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
        z = self.gates(x).to(torch.promote_types(x.dtype, torch.float32))
        z = z.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        lr, momentum, forget = exact_gate(z, self.threshold).split(self.widths, -1)
        return Gates(
            lr * self.rule.lr_max,
            momentum if self.widths[1] else None,
            1.0 - forget if self.widths[2] else None,
        )

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """Output norm, gate and projection of the answers ``y [B, heads, T, head_dim]`` of tokens ``x [B, T, dim]``."""
        return self.out(gated(self.norm, y, self.out_gate(x)))


@compilable
def split_heads(mixed: Tensor, heads: int, normalise: bool) -> tuple[Tensor, Tensor, Tensor]:
    """SiLU, and one ``[B, heads, T, head_dim]`` each for q, k and v, from ``[B, T, 3 x heads x head_dim]``."""
    q, k, v = F.silu(mixed).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return (unit(q), unit(k), v) if normalise else (q, k, v)


@compilable
def gated(norm: RMSNorm, y: Tensor, gate: Tensor) -> Tensor:
    """The normed answers ``[B, heads, T, head_dim]`` times SiLU of ``gate [B, T, heads x head_dim]``, in its shape."""
    return norm(y).transpose(1, 2).flatten(2) * F.silu(gate)
