"""The properties every layer must have, as a public suite: ``check_layer`` certifies yours as it certifies ours.

Properties 3 to 11 of :mod:`fastweights.core.conformance`, for anything that carries a state along a stream: a memory
layer, an attention, one of the four Titans, a block, and (:mod:`fastweights.models.conformance`) a whole model.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastweights.core.conformance import Finding, Report
from fastweights.core.conformance_equality import EXACT, borders
from fastweights.core.conformance_trial import moving
from fastweights.core.layout import make_layout
from fastweights.core.properties import (
    Stream,
    Verdict,
    answers_of,
    causality,
    compiles,
    constant_state,
    document_equality,
    finite,
    fork_safety,
    independence,
    not_applicable,
    padding_irrelevance,
    ragged_equality,
    reload_equality,
    row_equality,
    split_equality,
    survives_checkpointing,
    tensors,
    within,
    worst,
)
from fastweights.core.types import MemoryState
from fastweights.layers.memory import MemoryLayer
from fastweights.layers.self_modifying import SelfModifyingTitans
from fastweights.layers.stream import Plan, StreamLayer

Module = TypeVar("Module", bound=nn.Module)

LENGTHS = (1, 3, 7, 16, 33)
"""Lengths of the full suite; for chunks, windows and segments of up to 16 tokens."""


@dataclass(frozen=True)
class Subject:
    """Something under test, in float64.

    Attributes:
        stream: reads ``x [B, T, ...]``.
        fresh: the state of so many rows that have read nothing.
        draw: random input for ``(batch, time, seed)``.
        filler: what padding slots hold.
        parameters: by name; each must get a gradient.
        own: properties of this kind of subject, by name.
        grows: its state grows with the document (softmax attention).
    """

    stream: Stream
    fresh: Callable[[int], Any]
    draw: Callable[[int, int, int], Tensor]
    filler: float
    parameters: Mapping[str, Tensor]
    own: Mapping[str, Callable[[], Verdict]]
    grows: bool = False

    @property
    def answers(self) -> Stream:
        """The stream; where its state grows, without it: a batch keeps room for its longest row."""
        return answers_of(self.stream) if self.grows else self.stream


def check_layer(
    layer: StreamLayer[Any],
    *,
    lengths: Sequence[int] = LENGTHS,
    without: Collection[int] = (),
    title: str = "layer",
) -> Report:
    """Certifies a layer: properties 3 to 11.

    The layer itself is not touched: a float64 copy is tested, with random numbers added to its parameters so that no
    zero of a fresh layer hides an error.

    Args:
        layer: the layer; its chunks, windows and segments should be small.
        lengths: tokens of the calls; the longest should be more than two chunks, windows and segments.
        without: numbers of properties to leave out (10, compilation, takes the most time); the report says so.
        title: of the report.

    Returns:
        The findings; ``report.ok`` says whether all is well and ``report.table()`` shows it.

    Example:
        >>> from fastweights.core import presets
        >>> from fastweights.layers.memory import MemoryLayer
        >>> check_layer(MemoryLayer(8, 2, presets.deltanet()), lengths=[7], without=[10]).ok
        True
    """
    tested = stirred(copy.deepcopy(layer).double())

    def stream(x: Tensor, state: Any, mask: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Any]:
        reading = tested(x, state, mask=mask, cu_seqlens=cu_seqlens)
        return reading.y, reading.state

    def draw(batch: int, time: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, time, layer.dim, generator=generator, dtype=torch.float64)

    def narrow() -> Verdict:
        return narrow_reading(copy.deepcopy(tested).bfloat16()(draw(2, max(lengths), 5).bfloat16()))

    own: dict[str, Callable[[], Verdict]] = {
        "8 bfloat16, memory in float32": narrow,
        "8 non-finite tokens": partial(unsound, tested, draw(2, max(lengths), 6)),
        "10 one graph": lambda: compiles(*_mix_arguments(tested, draw(2, 5, 4)), EXACT),
        "10 activation checkpointing": lambda: survives_checkpointing(*_mix_arguments(tested, draw(2, 9, 4))),
    }
    parameters = dict(tested.named_parameters())
    subject = Subject(stream, tested.init_state, draw, math.nan, parameters, own, grows(tested))
    return check_subject(subject, lengths, without, title)


def check_subject(subject: Subject, lengths: Sequence[int], without: Collection[int], title: str) -> Report:
    """Properties 3 to 11 of anything that reads a stream; see :func:`check_layer`."""
    longest = max(lengths)
    checks: list[tuple[str, int, Callable[[], Verdict]]] = [
        (name, time, partial(check, subject, time)) for time in lengths for name, check in PER_LENGTH.items()
    ]
    checks.append(("3 gradients of any split", longest, partial(split_gradients, subject, longest)))
    checks.append(("7 gradients reach everything", longest, partial(gradients_reach, subject, 2 * longest)))
    checks += [(name, longest, check) for name, check in subject.own.items()]
    findings = []
    for name, time, check in sorted(checks, key=lambda one: _number(one[0])):
        left_out = _number(name) in without
        findings.append(Finding(name, None, time, *(not_applicable("left out") if left_out else check())))
    return Report(title, tuple(findings))


def _number(name: str) -> int:
    return int(name.partition(" ")[0])


@torch.no_grad()
def any_split(subject: Subject, time: int) -> Verdict:
    """Property 3: in thirds, token by token, or dealt to calls of each row's own lengths among padding."""
    state, x = midway(subject), subject.draw(2, time, 1)
    cuts = ([1], [time // 3, 2 * time // 3], list(range(1, time)))
    splits = [split_equality(subject.stream, state, x, cut, EXACT) for cut in cuts]
    ragged = [ragged_equality(subject.stream, state, x, calls, EXACT, calls, subject.filler) for calls in (2, 5)]
    return worst([*splits, *ragged])


@torch.no_grad()
def causal(subject: Subject, time: int) -> Verdict:
    """Property 4."""
    state, x, other = midway(subject), subject.draw(2, time, 1), subject.draw(2, time, 2)
    places = sorted({0, 1, time // 2, time - 1} & set(range(time)))
    return worst(causality(subject.stream, state, x, other, at) for at in places)


@torch.no_grad()
def rows(subject: Subject, time: int) -> Verdict:
    """Property 5: rows do not see each other."""
    state, x, other = midway(subject), subject.draw(2, time, 1), subject.draw(2, time, 2)
    alone = [independence(subject.stream, state, x, other, 0, row) for row in (0, 1)]
    return worst([*alone, row_equality(subject.answers, state, x, EXACT)])


@torch.no_grad()
def padding(subject: Subject, time: int) -> Verdict:
    """Property 5: padding is irrelevant."""
    return padding_irrelevance(subject.stream, midway(subject), subject.draw(2, time, 1), EXACT, subject.filler)


@torch.no_grad()
def documents(subject: Subject, time: int) -> Verdict:
    """Property 5: documents are separate."""
    fresh, x = subject.fresh(1), subject.draw(1, time, 1)
    _, state = subject.stream(subject.draw(1, 5, 3), fresh, None, None)
    return document_equality(subject.answers, state, fresh, x, borders(time), EXACT)


@torch.no_grad()
def bytes_stay(subject: Subject, time: int) -> Verdict:
    """Property 9."""
    if subject.grows:
        return not_applicable("the state grows with the document")
    pieces = [subject.draw(2, length, 1) for length in (time, 1, 2 * time)]
    return constant_state(subject.stream, subject.fresh(2), pieces)


@torch.no_grad()
def forks(subject: Subject, time: int) -> Verdict:
    """Property 11."""
    return fork_safety(subject.stream, midway(subject), subject.draw(2, time, 1), subject.draw(2, time, 2))


@torch.no_grad()
def reloaded(subject: Subject, time: int) -> Verdict:
    """Property 11."""
    return reload_equality(subject.stream, midway(subject), subject.draw(2, time, 1))


PER_LENGTH: dict[str, Callable[[Subject, int], Verdict]] = {
    "3 any split = one call": any_split,
    "4 causal": causal,
    "5 rows independent": rows,
    "5 padding irrelevant": padding,
    "5 documents separate": documents,
    "9 constant state": bytes_stay,
    "11 forks": forks,
    "11 saved and loaded": reloaded,
}
"""Tested at every length."""


def midway(subject: Subject) -> Any:
    """The state of two rows in the middle of their documents, at different phases."""
    x = subject.draw(2, 9, 3)
    mask = torch.arange(9) < torch.tensor([[9], [6]])
    return subject.stream(x, subject.fresh(2), mask, None)[1]


def split_gradients(subject: Subject, time: int) -> Verdict:
    """Gradients of every parameter through the state of a stream read in pieces equal those of one call."""

    def gradients(cuts: list[int]) -> tuple[Tensor, ...]:
        state, answers = subject.fresh(2), []
        for piece in torch.tensor_split(subject.draw(2, time, 1), cuts, dim=1):
            if piece.shape[1]:
                y, state = subject.stream(piece, state, None, None)
                answers.append(y)
        total = torch.cat(answers, 1).square().sum()
        leaves = list(subject.parameters.values())
        return torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)

    return within(gradients([1, time // 2]), gradients([]), EXACT)


def gradients_reach(subject: Subject, time: int) -> Verdict:
    """Property 7: from the answers alone, every parameter gets a gradient, and none that is not finite."""
    y, _ = subject.stream(subject.draw(2, time, 6), subject.fresh(2), None, None)
    weighing = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=y.dtype)
    leaves = list(subject.parameters.values())
    grads = torch.autograd.grad((y * weighing).sum(), leaves, allow_unused=True, materialize_grads=True)
    missing = [name for name, g in zip(subject.parameters, grads, strict=True) if not bool(g.any())]
    reached = Verdict(not missing, f"no gradient for {', '.join(missing)}" if missing else "all reached")
    return worst([finite(grads, "gradients: "), reached])


def narrow_reading(result: tuple[Any, ...]) -> Verdict:
    """What a bfloat16 layer or model returned: answers in bfloat16, finite, and every memory in float32."""
    y, state = result[:2]
    dtypes = {t.dtype for memory in memories(state) for t in tensors(memory) if t.is_floating_point()}
    kept = Verdict(dtypes <= {torch.float32} and y.dtype == torch.bfloat16, f"answers {y.dtype}, memory {dtypes}")
    return worst([finite((y, state)), kept])


@torch.no_grad()
def unsound(layer: StreamLayer[Any], x: Tensor) -> Verdict:
    """Property 8: a token that is not finite changes no answer before it or in other rows, and spoils none after it."""
    at = x.shape[1] // 3
    broken = x.clone()
    broken[0, at] = math.nan
    state, want = layer.init_state(x.shape[0]), layer(x).y
    answers = []
    for piece in (broken[:, : at + 2], broken[:, at + 2 :]):
        if piece.shape[1]:
            reading = layer(piece, state)
            answers.append(reading.y)
            state = reading.state
    y = torch.cat(answers, 1)
    others = [finite((y[:, :at], y[:, at + 1 :], memories(state)), "after a token of NaN: ")]
    same = [within(y[:1, :at], want[:1, :at], EXACT, "before it: ")] if at else []
    return worst([*others, *same, within(y[1:], want[1:], EXACT, "other rows: ")])


def grows(module: nn.Module) -> bool:
    """Whether the state of some layer in it grows."""
    return any(isinstance(layer, StreamLayer) and layer.grows for layer in module.modules())


def memories(state: Any) -> list[MemoryState]:
    """Every memory in a tree of states."""
    if isinstance(state, MemoryState):
        return [state]
    return [] if isinstance(state, Tensor) else [memory for part in state for memory in memories(part)]


def stirred(module: Module) -> Module:
    """The module with random numbers added to its parameters, and with all gates half open, in place."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, MemoryLayer) and layer.gates is not None:
                layer.gates.bias.zero_()
            if isinstance(layer, SelfModifyingTitans):
                for bias in layer.biases.values():
                    bias.zero_()
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=0.1)
    return module


def _mix_arguments(layer: StreamLayer[Any], x: Tensor) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """``mix`` as a function of tensors, with the plan made outside, and its arguments."""
    state = layer.init_state(x.shape[0])
    plan = Plan(make_layout(layer.position(state), x.shape[1]))
    layer.prepare(plan)

    def call(x: Tensor, state: Any) -> Any:
        reading = layer.mix(x, state, plan, False)
        return reading.y, reading.state

    return call, (moving(x), moving(state))
