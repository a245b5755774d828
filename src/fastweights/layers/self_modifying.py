"""Self-modifying Titans: a memory whose keys, values, gates and targets are made by memories (Nested Learning 8.1)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastweights.core.architecture import Matrix, Residual, Skip
from fastweights.core.bias import DotProduct
from fastweights.core.rule import Rule, require_rule
from fastweights.core.self_modifying import Made, SelfModifying, begin, require_self_modifying, run_self_modifying
from fastweights.core.types import Gates, MemoryState
from fastweights.layers.convolution import OWN, ShortConvolution, one_token_back
from fastweights.layers.gates import exact_gate, held, reached
from fastweights.layers.memory import GateStart, gated
from fastweights.layers.norm import RMSNorm, unit
from fastweights.layers.stream import Plan, Reading, StreamLayer, checked

Generator = Literal["key", "value", "lr", "retain", "query"]
GENERATORS: tuple[Generator, ...] = ("key", "value", "lr", "retain")
"""The paper's: the query comes from a static projection."""
Values = Literal["unit", "bounded"]


class SelfModifyingState(NamedTuple):
    """All memories of all heads, generators first, and the last tokens before the convolution."""

    memory: MemoryState
    tail: Tensor


class SelfModifyingTitans(StreamLayer[SelfModifyingState]):
    """Keys, values, step sizes and decays are answers of memories that learn in context as well (eqs. 86-91).

    With u and q two projections of the token (short convolution, SiLU) and every ``M`` one memory of each head:
    ``k = unit(M_k(u))``, ``v = unit(M_v(u))``, lr and retain are exact gates on a learned readout of the directions of
    ``M_lr(u)`` and ``M_retain(u)``, ``q`` has unit length. Every memory then learns key k with its own target ``M(v)``,
    and the answer is the memory's to q, through norm, gate and projection. That values and what gates are read from
    have one length the paper does not print: without it values grow by their square, since a target is a memory's
    answer to a memory's answer, and gates drift with what their memories have added up.

    Args:
        dim: D.
        heads: independent sets of memories.
        rule: of all of them; see :func:`~fastweights.core.presets.hope`. A step is ``lr_max`` times the gate, at most
            1, times the largest stable step: with an ``lr_max`` above 1 the gate reaches it before it is wide open.
            Heads may reach less far (`GateStart.lr_last`).
        generator_chunk: tokens that share one anchor of the generators; the rule's chunk size is the memory's.
        adaptive: which generators learn in context; another stays what training made of it. ``query`` adds a memory
            for queries, in front of which the paper's main form has a static projection alone.
        head_dim: size of keys and values, ``dim // heads`` by default.
        convolution: taps of the short convolution.
        gates: where the gates start.
        values: of length 1 (``unit``), or no longer than 1 along the key and across it (``bounded``); see
            :func:`bounded_value`.

    Attributes:
        direction: of every step, 1; -1 goes up the gradients.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        rule: Rule,
        generator_chunk: int = 16,
        adaptive: Collection[str] = GENERATORS,
        head_dim: int | None = None,
        convolution: int = 4,
        gates: GateStart | None = None,
        values: Values = "unit",
    ) -> None:
        super().__init__()
        require_rule(rule)
        gates = gates or GateStart()
        gates = replace(gates, lr=gates.lr / max(1.0, rule.lr_max))
        checked(values in get_args(Values), f"values must be unit or bounded, not {values!r}")
        checked(head_dim is not None or dim % heads == 0, f"dim {dim} is not divisible by {heads} heads")
        known = get_args(Generator)
        checked(set(adaptive) <= set(known), f"adaptive names some of {', '.join(known)}, not {adaptive!r}")
        self.dim, self.heads, self.head_dim = dim, heads, head_dim or dim // heads
        self.names: tuple[str, ...] = (*GENERATORS, "query") if "query" in adaptive else GENERATORS
        moving = tuple(name in adaptive for name in self.names)
        self.memories = SelfModifying(rule, generator_chunk, (*moving, True))
        require_self_modifying(self.memories)
        self._carried = self.memories.carried
        self.threshold, self.direction, self.values = gates.threshold, 1.0, values
        self.reaches = gates.reaches(heads)
        inner = heads * self.head_dim
        self.qu = nn.Linear(dim, 2 * inner, bias=False)
        self.convolution = ShortConvolution(2 * inner, convolution)
        lr, momentum, forget, *_ = gates.biases(rule, heads)
        kinds = {"lr": lr, "retain": None if rule.retention.scope is None else forget}
        kinds["momentum"] = momentum if rule.has_momentum else None
        self.readouts = nn.ParameterDict(
            {name: torch.randn(heads, self.head_dim) * 0.02 for name, bias in kinds.items() if bias is not None}
        )
        self.biases = nn.ParameterDict({name: bias for name, bias in kinds.items() if bias is not None})
        self.initial = nn.ParameterDict(self._initial(rule))
        self.norm = RMSNorm(self.head_dim)
        self.out_gate = nn.Linear(dim, inner, bias=False)
        self.out = nn.Linear(inner, dim, bias=False)

    def _initial(self, rule: Rule) -> dict[str, Tensor]:
        """Random generators: were they all the same, keys, values and queries would be, too."""
        found: dict[str, Tensor] = {}
        for m in rule.maps(self.head_dim, self.head_dim):
            spreads = torch.full((len(self.names) + 1, 1, 1, 1), m.inputs**-0.5)
            spreads[-1] = rule.initial_spread(m)
            w = torch.randn(len(self.names) + 1, self.heads, m.outputs, m.inputs) * spreads
            found[m.name] = w.flatten(0, 1)
        return found

    def start_induction(self) -> None:
        """Starts keys as the queries of the token before, as `MemoryLayer.start_induction` does.

        Key and value are made of the same input, so half of its channels are the query of the token before, the other
        half the token itself, and the generators begin by taking out the half that is not theirs. They can where they
        are matrices with a skip; networks begin as they are.
        """
        half = (self.head_dim + 1) // 2
        with torch.no_grad():
            for layer in (self.qu, self.out_gate, self.out):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            q, u = self.qu.weight.view(2, self.heads, self.head_dim, self.dim)
            q[:, half:] = 0.0
            u[:, :half] = q[:, :half]
            one_token_back(self.convolution.weight.view(-1, 2, self.heads, self.head_dim)[:, 1, :, :half], OWN)
            if self.rule.architecture == Skip(Matrix()):
                own = self.initial["matrix"].unflatten(0, (-1, self.heads))
                first = (torch.arange(self.head_dim) < half).to(own)
                own[self.names.index("key")] = torch.diag(first - 1.0)
                own[self.names.index("value")] = -torch.diag(first)

    def start_counting(self) -> None:
        """Starts all heads but the first as counters: nearly as linear attention, which nothing fades in.

        Keys and queries lie in the first half of a head's channels, what generators are asked with in the second. A
        token's value is its key and about as much of the second half. So writing it adds under its key what the memory,
        random there and 0 elsewhere, answers to the second half; it takes nothing away from most tokens, and leaves the
        generators as they were. Training may mix the halves; the shorter a head's steps (`GateStart.lr_last`), the
        less that bends its counts.

        Raises:
            UserError: the layer cannot count; see :func:`require_counting`.
        """
        require_counting(self.rule, self.values, self.heads, self.names)
        half = (self.head_dim + 1) // 2
        with torch.no_grad():
            q, u = self.qu.weight.view(2, self.heads, self.head_dim, self.dim)[:, 1:]
            q[:, half:], u[:, :half] = 0.0, 0.0
            own = self.initial["matrix"].unflatten(0, (-1, self.heads))[:, 1:]
            key, value = own[self.names.index("key")], own[self.names.index("value")]
            key[:, half:] = 0.0
            value[:, :half] = key[:, :half]
            own[-1][:, :, half:].normal_()

    @property
    def rule(self) -> Rule:
        """Of every memory."""
        return self.memories.rule

    def gate_parameters(self) -> list[nn.Parameter]:
        """What opens and shuts the gates."""
        return [*self.readouts.values(), *self.biases.values()]

    def initial_weights(self) -> tuple[Tensor, ...]:
        """The weights that every document starts from, ``[memories x heads, outputs, inputs]`` per map."""
        return tuple(self.initial.values())

    def init_state(self, batch: int) -> SelfModifyingState:
        memory = begin(self.memories, self.initial_weights(), batch)
        return SelfModifyingState(memory, self.convolution.init_state(batch))

    def position(self, state: SelfModifyingState) -> Tensor:
        return state.memory.position

    def prepare(self, plan: Plan) -> None:
        plan.grid(self.memories.least_chunk)

    def mix(self, x: Tensor, state: SelfModifyingState, plan: Plan, surprise: bool) -> Reading[SelfModifyingState]:
        mixed, tail = self.convolution(self.qu(x), state.tail, plan.layout)
        q, u = F.silu(mixed).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        result = run_self_modifying(
            self.memories,
            self.initial_weights(),
            q,
            u,
            self.make,
            state.memory,
            plan.layout,
            plan.grid(self.memories.least_chunk),
            surprise,
        )
        y = self.out(gated(self.norm, result.y.to(x.dtype), self.out_gate(x)))
        felt = () if result.surprise is None else (result.surprise,)
        return Reading(y, SelfModifyingState(result.state, tail), felt)

    def make(self, q: Tensor, u: Tensor, answers: Tensor) -> Made:
        """Keys, values and gates of a chunk; see :data:`~fastweights.core.self_modifying.Maker`."""
        made = dict(zip(self.names, answers.unbind(1), strict=True))
        if "query" in made:
            # What the memory's skip passes on is the token itself.
            q = q + made["query"] - (u if isinstance(self.rule.architecture, Skip | Residual) else 0.0)

        def gate(name: str, source: Tensor) -> Tensor | None:
            if name not in self.readouts:
                return None
            z = torch.einsum("bhwd,hd->bhw", source, self.readouts[name].to(source.dtype))
            return exact_gate(z + self.biases[name].to(source.dtype), self.threshold).unsqueeze(-1)

        # Of one length, sqrt(d): otherwise a gate drifts open or shut with all that its memory has added up.
        tells_lr, tells_retain = (unit(made[name]) * self.head_dim**0.5 for name in ("lr", "retain"))
        forget = gate("retain", tells_retain)
        retain = None if forget is None else 1.0 - forget
        lr = gate("lr", tells_lr)
        assert lr is not None
        most = self._carried.stable_lr(retain, own_targets=True)
        lr = reached(held(self.rule.lr_max * lr, 0.0, 1.0) * most, self.reaches) * self.direction
        key, value = unit(made["key"]), unit(made["value"])
        if self.values == "bounded":
            value = bounded_value(key, value)
        return Made(unit(q), key, value, Gates(lr, gate("momentum", tells_lr), retain))


def bounded_value(key: Tensor, value: Tensor) -> Tensor:
    """Twice the parts of a value along its key and across it, the first at most 1 long, and the whole where it is < 0.

    Both have length 1 and are ``[..., d]``. A part half as long as the whole is 1 long exactly, and stays so when
    training moves it a little. Where the dot product teaches a matrix of its own targets, such a value with the part
    along the key at 1 adds M of the part across under the key, at most 1 long, and lets nothing fade; at -1, where no
    part across is left, it is the opposite of the key, and with the largest step the token turns M round. Where the
    part along the key is not above 0, random tokens make nothing longer. Backward is straight-through along the key,
    and takes the bound on the part across as given. Note (37) of ``docs/equations.md``.
    """
    along = 2.0 * (key * value).sum(-1, keepdim=True)
    across = 2.0 * value - along * key
    along = held(along, -1.0, 1.0)
    most = (1.0 - along.detach().clamp_max(0.0).square()).clamp_min(1e-12)
    return along * key + across * (across.square().sum(-1, keepdim=True) / most).clamp_min(1.0).rsqrt()


def require_counting(rule: Rule, values: str, heads: int, made: Collection[str]) -> None:
    """Refuses layers whose heads cannot start as counters.

    Args:
        rule: of the memories; a plain matrix with the dot product and chunks of one token can.
        values: ``bounded`` can.
        heads: of the layer; 2 or more.
        made: what memories make; all but ``query`` can be made.

    Raises:
        UserError: with what is wrong.
    """
    needs = "start='counting' needs"
    for name, fits in (("architecture", Matrix()), ("bias", DotProduct()), ("chunk_size", 1)):
        given = getattr(rule, name)
        checked(given == fits, f"{needs} a rule whose {name} is {fits!r}, not {given!r}")
    checked(values == "bounded", f"{needs} values='bounded', not {values!r}")
    checked(heads > 1, f"{needs} 2 memory heads or more, not {heads}")
    checked("query" not in made, f"{needs} static queries: leave query out of adaptive")
