"""Parts of the engine and of the layers that ``torch.compile`` fuses, each on its own, when asked to.

A graph of a whole layer repeats the same step for every chunk, so it takes minutes to compile and grows with the
length of the call. Compiled part by part, the steps through a few chunks are one small graph for calls of any length.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, TypeVarTuple

import torch

from fastweights.core.second_order import second_order_wanted
from fastweights.errors import UserError

Given = TypeVarTuple("Given")
Returned = TypeVar("Returned")
Backend = str | Callable[..., Any]

_backend: Backend | None = None


def use_compiler(backend: Backend | None = "inductor", device: torch.device | str = "cpu") -> bool:
    """Compiles the parts with :func:`torch.compile` from now on, in this process; ``None`` stops it.

    Each part is compiled when it first meets a shape: about a minute in all for a layer that trains, and seconds when
    torch finds them in its cache on disk. After torch's limit of graphs for a part
    (``torch._dynamo.config.recompile_limit``) it runs other shapes eagerly: read in calls of one length.

    Args:
        backend: of ``torch.compile``.
        device: where it must work.

    Returns:
        Whether parts are compiled now: where the backend does not work (no C++ compiler on this machine) everything
        stays eager.

    Raises:
        UserError: there is no such backend.
    """
    global _backend
    if isinstance(backend, str) and backend not in torch.compiler.list_backends(exclude_tags=()):
        raise UserError(f"torch.compile has no backend {backend!r}; 'inductor' is its usual one")
    works = backend is not None
    if backend is not None:
        try:
            _compiled(torch.neg, backend)(torch.zeros(2, device=device))
        except torch._dynamo.exc.TorchDynamoException:
            works = False
    _backend = backend if works else None
    return works


@contextmanager
def compiler(backend: Backend | None = "inductor", device: torch.device | str = "cpu") -> Iterator[bool]:
    """:func:`use_compiler` inside the block; afterwards all is as it was before."""
    global _backend
    before = _backend
    try:
        yield use_compiler(backend, device)
    finally:
        _backend = before


def compilable(function: Callable[[*Given], Returned]) -> Callable[[*Given], Returned]:
    """Makes a function one of the parts.

    It computes tensors from what it is given, by position, and has no side effects; arguments that are not tensors
    are constants of the graph. It runs as it is where gradients of gradients are wanted: compiled graphs have none.
    """

    @functools.wraps(function)
    def call(*given: *Given) -> Returned:
        backend = _backend
        if torch.compiler.is_compiling() or backend is None or second_order_wanted():
            return function(*given)
        return _compiled(function, backend)(*given)

    return call


@functools.cache
def _compiled(function: Callable[..., Any], backend: Backend) -> Callable[..., Any]:
    # A step is many small kernels: called from C++ instead of Python, they run in a tenth less time.
    if backend == "inductor" and not torch.cuda.is_available():
        return torch.compile(function, dynamic=False, backend=backend, options={"cpp_wrapper": True})
    return torch.compile(function, dynamic=False, backend=backend)
