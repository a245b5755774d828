"""Pieces of the engine and of the layers that ``torch.compile`` fuses, each on its own, when asked to.

A graph of a whole layer repeats the same step for every chunk, so it takes minutes to compile and grows with the
length of the call. Compiled piece by piece, a step is one small graph for calls of any length.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple

import torch

Given = TypeVarTuple("Given")
Returned = TypeVar("Returned")
Backend = str | Callable[..., Any]

_backend: Backend | None = None


def use_compiler(backend: Backend | None = "inductor") -> bool:
    """Compiles the pieces with :func:`torch.compile` from now on, in this process; ``None`` stops it.

    Each piece is compiled when it first meets a shape: some two minutes in all for a layer that trains, and seconds
    when torch finds them in its cache on disk. After torch's limit of graphs for a piece
    (``torch._dynamo.config.recompile_limit``) it runs other shapes eagerly: read in calls of one length.

    Args:
        backend: of ``torch.compile``.

    Returns:
        Whether it does: where the backend does not work (no C++ compiler on this machine) everything stays eager.
    """
    global _backend
    _backend = None
    if backend is None:
        return True
    try:
        torch.compile(torch.neg, backend=backend)(torch.zeros(2))
    except torch._dynamo.exc.TorchDynamoException:
        return False
    _backend = backend
    return True


def piece(function: Callable[[*Given], Returned]) -> Callable[[*Given], Returned]:
    """Makes a function of tensors, without side effects, a piece; its arguments are given by position."""

    @functools.wraps(function)
    def call(*given: *Given) -> Returned:
        if torch.compiler.is_compiling() or _backend is None:
            return function(*given)
        return _compiled(function, _backend)(*given)

    return call


@functools.cache
def _compiled(function: Callable[..., Any], backend: Backend) -> Callable[..., Any]:
    # A step is many small kernels: called from C++ instead of Python, they run in a tenth less time.
    if backend == "inductor" and not torch.cuda.is_available():
        return torch.compile(function, dynamic=False, backend=backend, options={"cpp_wrapper": True})
    return torch.compile(function, dynamic=False, backend=backend)
