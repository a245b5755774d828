"""The values that pass between the engine and its callers: maps, gates, state and surprise.

Shapes: B batch, H heads, T time, K key, V value, N chunks, W slots of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

Scope = Literal["head", "map", "key", "value"]


class Map(NamedTuple):
    """One map of a memory: its name and its sizes.

    Attributes:
        name: unique in its memory.
        inputs: numbers it takes.
        outputs: numbers it gives; 1 for an elementwise map, whose weights ``[1, inputs]`` scale its input.
        elementwise: ``x * w`` instead of ``x W^T``.
        learned: its initial weights are learned; otherwise they are 0.
    """

    name: str
    inputs: int
    outputs: int
    elementwise: bool = False
    learned: bool = True


class Gates(NamedTuple):
    """The per-token gates of a rule, each ``[B, H, T]`` (scope ``head``) or ``[B, H, T, n]`` (other scopes).

    ``lr`` is the step size (>= 0), ``momentum`` and ``retain`` lie in [0, 1]. ``None`` where the rule has no such gate.
    Titans calls them theta, eta and 1 - alpha. ``threshold`` (>= 0) is the bias's own, Yaad's delta; ``importance`` in
    [0, 1] is how much a token counts when a window writes it again, Atlas' gamma.
    """

    lr: Tensor | None
    momentum: Tensor | None = None
    retain: Tensor | None = None
    threshold: Tensor | None = None
    importance: Tensor | None = None


class MemoryState(NamedTuple):
    """All that a memory remembers; a fork is a second reference, since nothing is changed in place.

    ``dual``, ``momentum`` and ``anchor`` hold one tensor ``[B, H, outputs, inputs]`` per map (``momentum`` and
    ``anchor`` are empty where the rule needs none). ``anchor`` is the weights at the first token of the chunk being
    read. ``position`` is int64 ``[B]``: real tokens read since the row's document began. ``extra`` is what else the
    rule keeps: the last tokens of an Omega window, or the pairs of softmax attention, which alone grows.
    """

    dual: tuple[Tensor, ...]
    momentum: tuple[Tensor, ...]
    anchor: tuple[Tensor, ...]
    position: Tensor
    extra: tuple[Tensor, ...] = ()


class Surprise(NamedTuple):
    """What a memory felt at each token, every field ``[B, H, T]``.

    ``loss`` is the inner loss at the anchor, ``gradient_norm`` the norm of the whole inner gradient before clipping;
    ``lr``, ``momentum`` and ``retain`` are the gates in force (averaged over maps or channels where their scope is
    finer than a head; momentum is 0, retain and lr 1 for rules without them). ``rejected`` marks tokens that wrote
    nothing: those whose key, value or gate was not finite left no trace at all, while for those whose inner gradient
    overflowed the gates momentum and retain still acted.
    """

    loss: Tensor
    gradient_norm: Tensor
    lr: Tensor
    momentum: Tensor
    retain: Tensor
    rejected: Tensor


def gate_width(scope: Scope, maps: Sequence[Map]) -> int:
    """Numbers a gate of this scope needs per head and token (and step of the token)."""
    if scope == "head":
        return 1
    if scope == "map":
        return len(maps)
    return sum(m.inputs if scope == "key" else m.outputs for m in maps)
