"""Properties of anything that reads a stream: a rule, a layer, a block or a whole model.

A *stream* is a callable ``(x [B, T, ...], state, mask, cu_seqlens) -> (y [B, T, ...], state)`` whose state is a tree of
tensors (tuples, NamedTuples, dicts) with B rows. Each function tests one property on given data and returns a
:class:`Verdict`; none knows what the stream computes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Stream = Callable[[Tensor, Any, Tensor | None, Tensor | None], tuple[Tensor, Any]]

FLOOR = 1e-4
"""Errors are relative to the largest entry of a tensor plus this: an exact 0 has no relative error."""


class Verdict(NamedTuple):
    """Whether a property holds (``None``: it does not apply), in words, and the error as a share of what is allowed."""

    ok: bool | None
    detail: str
    margin: float = 0.0


def not_applicable(reason: str) -> Verdict:
    """A property that says nothing about this rule."""
    return Verdict(None, f"n/a: {reason}")


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The first that failed, else the one nearest to its limit; "not applicable" only where all are."""
    found = list(verdicts)
    failed = [v for v in found if v.ok is False]
    passed = [v for v in found if v.ok]
    return failed[0] if failed else max(passed or found, key=lambda v: v.margin)


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of a tree of tuples, lists, dicts and ``None``, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    if tree is None:
        return []
    parts = tree.values() if isinstance(tree, dict) else tree
    return [leaf for part in parts for leaf in tensors(part)]


def error(got: Tensor, want: Tensor) -> float:
    """Largest difference relative to the largest entry; infinite where shape, dtype or a finite value is missing."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return float("inf")
    if not got.is_floating_point():
        return 0.0 if torch.equal(got, want) else float("inf")
    if not bool(torch.isfinite(got).all() and torch.isfinite(want).all()):
        return float("inf")
    if got.numel() == 0:
        return 0.0
    return ((got - want).abs().max() / (want.abs().max() + FLOOR)).item()


def within(got: Any, want: Any, tolerance: float, what: str = "") -> Verdict:
    """Every tensor of two trees is finite and agrees to ``tolerance``."""
    found, wanted = tensors(got), tensors(want)
    if len(found) != len(wanted):
        return Verdict(False, f"{what}{len(found)} tensors instead of {len(wanted)}")
    largest = max(map(error, found, wanted))
    return Verdict(largest <= tolerance, f"{what}error {largest:.1e} (limit {tolerance:.0e})", largest / tolerance)


def identical(got: Any, want: Any, what: str = "") -> Verdict:
    """Every tensor of two trees has the same bits (NaN equals NaN)."""
    found, wanted = tensors(got), tensors(want)
    same = len(found) == len(wanted) and all(map(_same_bits, found, wanted))
    return Verdict(same, f"{what}{'bit-identical' if same else 'not bit-identical'}")


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


def finite(tree: Any, what: str = "") -> Verdict:
    """No tensor of the tree holds an infinity or a NaN."""
    ok = all(bool(torch.isfinite(t).all()) for t in tensors(tree))
    return Verdict(ok, f"{what}{'finite' if ok else 'not finite'}")


def split_equality(stream: Stream, start: Any, x: Tensor, cuts: Sequence[int], tolerance: float) -> Verdict:
    """Reading ``x [B, T, ...]`` in pieces that end at ``cuts`` gives the answers and the state of one call."""
    whole, want = stream(x, start, None, None)
    state, answers = start, []
    for piece in torch.tensor_split(x, list(cuts), dim=1):
        if piece.shape[1]:
            y, state = stream(piece, state, None, None)
            answers.append(y)
    return within((torch.cat(answers, 1), state), (whole, want), tolerance)


def ragged_equality(
    stream: Stream, start: Any, x: Tensor, calls: int, tolerance: float, seed: int, filler: float = 0.0
) -> Verdict:
    """Dealing each row's tokens to calls of its own lengths, among padding, gives the answers and state of one call.

    The rows come to stand at different phases, and a call may hold no token of some row.

    Args:
        stream: reads ``x``.
        start: the state before.
        x: ``[B, T, ...]``.
        calls: number of calls.
        tolerance: largest relative error.
        seed: of the lengths and places.
        filler: what the padding slots hold; they must not matter.
    """
    generator = torch.Generator().manual_seed(seed)
    batch, time = x.shape[:2]
    whole, want = stream(x, start, None, None)
    answers = torch.zeros_like(whole)
    ends = torch.randint(0, time + 1, (batch, calls - 1), generator=generator).sort(1).values
    ends = torch.cat([torch.zeros(batch, 1, dtype=ends.dtype), ends, torch.full((batch, 1), time)], 1)
    state = start
    for begin, end in zip(ends.T[:-1], ends.T[1:], strict=True):
        width = int((end - begin).max()) + int(torch.randint(1, 3, (), generator=generator))
        padded = torch.full((batch, width, *x.shape[2:]), filler, dtype=x.dtype)
        mask = torch.zeros(batch, width, dtype=torch.bool)
        for row in range(batch):
            count = int(end[row] - begin[row])
            mask[row, torch.randperm(width, generator=generator)[:count]] = True
            padded[row, mask[row]] = x[row, begin[row] : end[row]]
        y, state = stream(padded, state, mask, None)
        for row in range(batch):
            answers[row, begin[row] : end[row]] = y[row, mask[row]]
    return within((answers, state), (whole, want), tolerance)


def causality(stream: Stream, start: Any, x: Tensor, other: Tensor, at: int) -> Verdict:
    """Replacing ``x`` by ``other`` from token ``at`` on leaves the answers before it bit-identical."""
    changed = torch.cat([x[:, :at], other[:, at:]], 1)
    before, after = stream(x, start, None, None)[0], stream(changed, start, None, None)[0]
    if torch.equal(before[:, at:], after[:, at:]):
        return Verdict(False, f"a change of token {at} changes nothing")
    return identical(after[:, :at], before[:, :at], f"token {at}: ")


def independence(stream: Stream, start: Any, x: Tensor, other: Tensor, axis: int, index: int) -> Verdict:
    """Replacing all but ``index`` along ``axis`` of ``x`` leaves its answers bit-identical (axis 0: rows)."""
    changed = other.clone()
    changed.select(axis, index).copy_(x.select(axis, index))
    kept, replaced = stream(x, start, None, None)[0], stream(changed, start, None, None)[0]
    if torch.equal(kept, replaced):
        return Verdict(False, "the answers do not depend on the input")
    return identical(replaced.select(axis, index), kept.select(axis, index), f"axis {axis}: ")


def answers_of(stream: Stream) -> Stream:
    """The stream without the state it returns."""

    def reading(x: Tensor, state: Any, mask: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Any]:
        return stream(x, state, mask, cu_seqlens)[0], ()

    return reading


def row_equality(stream: Stream, start: Any, x: Tensor, tolerance: float) -> Verdict:
    """Every row read alone gives the answers and the state it gets in the batch."""
    y, state = stream(x, start, None, None)
    verdicts = []
    for row in range(x.shape[0]):
        alone = stream(x[row : row + 1], one_row(start, row), None, None)
        verdicts.append(within(alone, (y[row : row + 1], one_row(state, row)), tolerance, f"row {row} alone: "))
    return worst(verdicts)


def one_row(state: Any, row: int) -> Any:
    """The state of one row as a batch of its own."""
    if isinstance(state, Tensor):
        return state[row : row + 1].clone()
    if isinstance(state, dict):
        return {name: one_row(part, row) for name, part in state.items()}
    if state is None:
        return None
    parts = [one_row(part, row) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)


def padding_irrelevance(stream: Stream, start: Any, x: Tensor, tolerance: float, filler: float = 0.0) -> Verdict:
    """Padding on the left, on the right, on both sides and between any two tokens changes neither answers nor state."""
    want = stream(x, start, None, None)
    time = x.shape[1]
    apart = torch.arange(time)
    places = {"left ": apart + 3, "right ": apart, "sides ": apart + 1, "interior ": 2 * apart + 1}
    verdicts = []
    for side, place in places.items():
        width = time + 3 if side in ("left ", "right ", "sides ") else 2 * time + 1
        padded = torch.full((x.shape[0], width, *x.shape[2:]), filler, dtype=x.dtype).index_copy(1, place, x)
        mask = torch.zeros(x.shape[0], width, dtype=torch.bool).index_fill(1, place, True)
        y, state = stream(padded, start, mask, None)
        verdicts.append(within((y[:, place], state), want, tolerance, side))
    nothing = torch.zeros(x.shape[0], time, dtype=torch.bool)
    verdicts.append(within(stream(torch.full_like(x, filler), start, nothing, None)[1], start, tolerance, "all "))
    return worst(verdicts)


def document_equality(
    stream: Stream, start: Any, fresh: Any, x: Tensor, borders: Sequence[int], tolerance: float
) -> Verdict:
    """Documents packed into the one row of ``x [1, T, ...]`` answer as if each were read alone.

    Args:
        stream: reads ``x``.
        start: the state the first document continues.
        fresh: the state every later document starts from.
        x: the packed documents.
        borders: where documents begin, and T: ``0 = c_0 < ... < c_n = T``.
        tolerance: largest relative error.
    """
    y, state = stream(x, start, None, torch.tensor(list(borders)))
    answers, alone = [], start
    for i, (begin, end) in enumerate(pairwise(borders)):
        answer, alone = stream(x[:, begin:end], start if i == 0 else fresh, None, None)
        answers.append(answer)
    return within((y, state), (torch.cat(answers, 1), alone), tolerance)


def reload_equality(stream: Stream, start: Any, x: Tensor) -> Verdict:
    """A state that went through bytes reads on to the same bits: everything remembered is in its tensors."""
    _, state = stream(x, start, None, None)
    kept, reloaded = (_copied(state, copy) for copy in (_contiguous, _through_bytes))
    return identical(stream(x, reloaded, None, None), stream(x, kept, None, None))


def _contiguous(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _through_bytes(tensor: Tensor) -> Tensor:
    data = bytearray(_contiguous(tensor).view(-1).view(torch.uint8).tolist())
    return torch.frombuffer(data, dtype=tensor.dtype).reshape(tensor.shape).clone() if data else tensor.clone()


def _copied(tree: Any, copy: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return copy(tree)
    parts = [_copied(part, copy) for part in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)


def fork_safety(stream: Stream, start: Any, x: Tensor, other: Tensor) -> Verdict:
    """Reading on from a state, twice and with different tokens, changes neither the state nor each other's answers."""
    before = [t.detach().clone() for t in tensors(start)]
    first = stream(x, start, None, None)
    kept = [t.detach().clone() for t in tensors(first)]
    stream(other, start, None, None)
    stream(other, first[1], None, None)
    again = stream(x, start, None, None)
    return worst(
        [
            identical(tensors(start), before, "parent: "),
            identical(first, kept, "first fork: "),
            identical(again, kept, "second fork: "),
        ]
    )


def constant_state(stream: Stream, start: Any, pieces: Sequence[Tensor]) -> Verdict:
    """After pieces of any length the state has the same shapes, dtypes and bytes, and no two leaves share memory."""

    def spec(state: Any) -> list[tuple[torch.Size, torch.dtype, int]]:
        return [(t.shape, t.dtype, t.untyped_storage().nbytes()) for t in tensors(state)]

    want, state = spec(start), start
    for x in pieces:
        _, state = stream(x, state, None, None)
        if spec(state) != want:
            return Verdict(False, f"the state changes its size after {x.shape[1]} tokens")
        if shares_memory(state):
            return Verdict(False, f"leaves of the state share memory after {x.shape[1]} tokens")
    return Verdict(not shares_memory(start), f"{sum(size for _, _, size in want)} bytes")


def shares_memory(state: Any) -> bool:
    """Whether two tensors of a tree live in one storage."""
    places = [t.untyped_storage().data_ptr() for t in tensors(state) if t.numel()]
    return len(set(places)) < len(places)


def compiles(function: Callable[..., Any], arguments: tuple[Any, ...], tolerance: float) -> Verdict:
    """``function`` compiles to one graph (``fullgraph=True``, backend ``aot_eager``) and computes the same.

    Where the arguments require gradients, the gradients of the sum of squares of all results are compared as well.
    """
    torch.compiler.reset()
    try:
        with quiet_compiler():
            compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
            got = values_and_gradients(compiled, arguments)
    except torch._dynamo.exc.TorchDynamoException as reason:
        return Verdict(False, f"does not compile: {str(reason).strip().splitlines()[0]}")
    finally:
        torch.compiler.reset()
    return within(got, values_and_gradients(function, arguments), tolerance)


@contextmanager
def quiet_compiler() -> Iterator[None]:
    """Silences what the compiler warns about in its own code: deprecated uses, and looking at every ``grad``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "The .grad attribute")
        yield


def survives_checkpointing(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Verdict:
    """Under non-reentrant activation checkpointing values and gradients are bit-identical."""

    def checkpointed(*given: Any) -> Any:
        return checkpoint(function, *given, use_reentrant=False)

    return identical(values_and_gradients(checkpointed, arguments), values_and_gradients(function, arguments))


def values_and_gradients(function: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Tensor]:
    """The results of ``function``, and the gradients of their sum of squares with respect to the arguments' leaves."""
    results = tensors(function(*arguments))
    moving = [r for r in results if r.requires_grad]
    if not moving:
        return results
    leaves = [t for t in tensors(arguments) if t.requires_grad]
    total = torch.stack([r.square().sum() for r in moving]).sum()
    return results + list(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))
