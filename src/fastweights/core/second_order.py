"""Whether gradients of gradients are wanted: the hand-derived outer gradients have none, tensor expressions do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

# Not a ContextVar, which torch.compile cannot read.
_wanted = False


@contextmanager
def second_order(wanted: bool = True) -> Iterator[None]:
    """Inside, what layers and the engine compute can be differentiated twice, at some cost of time and memory."""
    global _wanted
    before = _wanted
    _wanted = wanted
    try:
        if wanted:
            with sdpa_kernel(SDPBackend.MATH):
                yield
        else:
            yield
    finally:
        _wanted = before


def second_order_wanted() -> bool:
    """Whether gradients of gradients are wanted here."""
    return _wanted


def by_expressions() -> bool:
    """Whether to compute by tensor expressions where there is also a loop with a gradient derived by hand.

    A compiler would unroll the loop; a function without one it compiles as it stands.
    """
    return _wanted or torch.compiler.is_compiling()
