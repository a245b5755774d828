"""The reference: token by token, plain autograd, no formula shared with the fast tiers. The oracle of every test.

Cost per token: one forward and one backward of the memory per token written; slow on purpose.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from fastweights.core.algorithm import ImplicitStep
from fastweights.core.checks import Call
from fastweights.core.reference_solvers import attend_row, erase_step, implicit_step, least_squares_row
from fastweights.core.rule import Rule
from fastweights.core.types import Gates, MemoryState, Scope, Surprise

Weights = tuple[Tensor, ...]


class Row(NamedTuple):
    """One row of a call: q, k, v and gates ``[H, T, .]``, the state before, and which tokens are refused ``[H, T]``."""

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Gates
    dual: Weights
    momentum: Weights
    anchor: Weights
    extra: Weights
    rejected: Tensor
    position: list[int]
    reset: list[bool]
    start: int


class Ended(NamedTuple):
    """What a row gives: answers ``[H, T, V]``, the state, and loss, gradient norm and refused tokens ``[H, T]``."""

    y: Tensor
    memory: tuple[Weights, Weights, Weights, Weights]
    loss: Tensor
    norm: Tensor
    rejected: Tensor


def run_reference(call: Call) -> tuple[Tensor, MemoryState, Surprise]:
    """Runs a rule one token at a time; see :func:`fastweights.core.engine.run`."""
    walk = {"least squares": least_squares_row, "attention": attend_row}.get(call.rule.tiers[0], _run_row)
    ended = [walk(call, _row(call, b)) for b in range(call.q.shape[0])]
    time = call.q.shape[2]
    fields = [[e.y for e in ended], [e.loss for e in ended], [e.norm for e in ended], [e.rejected for e in ended]]
    y, loss, norm, rejected = (torch.stack([_padded(x, time) for x in field]) for field in fields)
    parts = [_stacked([e.memory[i] for e in ended]) for i in range(4)]
    zero = torch.zeros_like(loss)
    lr, momentum, retain = (
        zero + fill if g is None else g.mean(-1) for g, fill in zip(call.gates[:3], (1.0, 0.0, 1.0), strict=True)
    )
    state = MemoryState(parts[0], parts[1], parts[2], call.layout.end.clone(), parts[3])
    return y, state, Surprise(loss, norm, lr, momentum, retain, rejected | call.refused())


def _stacked(rows: list[Weights]) -> Weights:
    """Rows of equal sizes; those of a growing memory are filled up with zeros."""
    found = []
    for tensors in zip(*rows, strict=True):
        longest = max(w.shape[-2] for w in tensors)
        found.append(torch.stack([_padded(w, longest) if w.shape[-2] < longest else w for w in tensors]))
    return tuple(found)


def _padded(x: Tensor, length: int) -> Tensor:
    """``x [H, t, ...]`` with zeros behind, ``[H, length, ...]``."""
    return torch.cat([x, x.new_zeros(x.shape[0], length - x.shape[1], *x.shape[2:])], 1)


def _row(call: Call, b: int) -> Row:
    length = int(call.layout.length[b])
    reset = call.layout.reset
    return Row(
        call.q[b, :, :length],
        call.k[b, :, :length],
        call.v[b, :, :length],
        Gates(*[None if g is None else g[b, :, :length] for g in call.gates]),
        tuple(w[b] for w in call.state.dual),
        tuple(w[b] for w in call.state.momentum),
        tuple(w[b] for w in call.state.anchor),
        tuple(w[b] for w in call.state.extra),
        call.refused()[b, :, :length],
        call.layout.position[b, :length].tolist(),
        [False] * length if reset is None else reset[b, :length].tolist(),
        int(call.state.position[b]),
    )


class _Token(NamedTuple):
    """What one token writes: ``[H, .]`` each."""

    k: Tensor
    v: Tensor
    threshold: Tensor | None
    importance: Tensor | None


def _run_row(call: Call, row: Row) -> Ended:
    rule, names = call.rule, [m.name for m in call.rule.maps(*call.sizes)]
    constants = call.constants()
    initial = tuple(rule.retention.begin(w) for w in call.initial[: len(names)])
    dual, momentum, anchor = row.dual, row.momentum, row.anchor
    window = _kept(rule, row)
    answers: list[Tensor] = []
    felt_by_token: list[tuple[Tensor, Tensor, Tensor]] = []
    for t, position in enumerate(row.position):
        if row.reset[t]:
            dual, momentum, window = initial, tuple(torch.zeros_like(w) for w in momentum), []
        opens = row.reset[t] or position % rule.chunk_size == 0
        if opens:
            dual, momentum = _settled(rule, initial, dual, momentum, anchor, position)
            anchor = _linked(rule, dual)
        gates = [None if g is None else g[:, t] for g in row.gates]
        token = _Token(row.k[:, t], row.v[:, t], gates[3], gates[4])
        window = [*window, token][-rule.bias.window :]
        spread = [
            None if g is None else gates_of_maps(g, scope, [w.shape[1:] for w in dual])
            for g, scope in zip(gates[:3], rule.scopes[:3], strict=True)
        ]
        memory = _Inner(rule, names, constants, spread, ~row.rejected[:, t, None, None])
        earlier, (dual, momentum, felt) = dual, memory.write(dual, momentum, anchor, window)
        if rule.retention.lag and opens:
            anchor = _linked(rule, dual)
        weights = {"after": dual, "before": earlier, "chunk": anchor}[rule.read]
        linked = _linked(rule, weights) if rule.retention.link_at == "token" and rule.read != "chunk" else weights
        answers.append(apply_weights(rule, names, constants, linked, row.q[:, t])[0])
        felt_by_token.append(felt)
    loss, norm, refused = (_over_time([felt[i] for felt in felt_by_token], row) for i in range(3))
    y = torch.stack(answers, 1) if answers else row.v
    extra = _kept_after(rule, row, window)
    return Ended(y, (dual, momentum, anchor if call.state.anchor else (), extra), loss, norm, refused.bool())


def _over_time(found: list[Tensor], row: Row) -> Tensor:
    return torch.stack(found, 1) if found else row.q[:, :, 0]


def _settled(
    rule: Rule, initial: Weights, dual: Weights, momentum: Weights, anchor: Weights, position: int
) -> tuple[Weights, Weights]:
    """What happens between two chunks."""
    if position == 0:
        return dual, momentum
    if rule.algorithm.coupling == "deferred":
        dual = tuple(rule.algorithm.settle(w, s) for w, s in zip(dual, momentum, strict=True))
    if rule.retention.projects:
        dual = tuple(rule.retention.project(w, a, f) for w, a, f in zip(dual, anchor, initial, strict=True))
    if rule.retention.every is not None and position % rule.retention.every == 0:
        return initial, tuple(torch.zeros_like(w) for w in momentum)
    return dual, momentum


def _linked(rule: Rule, dual: Weights) -> Weights:
    return dual if rule.retention.link_at is None else tuple(rule.retention.link(w) for w in dual)


def _kept(rule: Rule, row: Row) -> list[_Token]:
    """The tokens of the state's window that exist."""
    if not row.extra:
        return []
    kept = rule.bias.window - 1
    found = [[x[:, j] for x in row.extra] for j in range(max(0, kept - row.start), kept)]
    return [_Token(k, v, rest[0] if rest else None, importance) for k, v, importance, *rest in found]


def _kept_after(rule: Rule, row: Row, window: list[_Token]) -> Weights:
    if not row.extra:
        return ()
    kept = rule.bias.window - 1
    last = window[max(0, len(window) - kept) :] if kept else []
    found = []
    for i, empty in zip((0, 1, 3, 2), row.extra, strict=False):
        given = [token[i] for token in last]
        early = [torch.zeros_like(empty[:, 0])] * (kept - len(given)) if kept else []
        found.append(torch.stack([*early, *cast(list[Tensor], given)], 1) if kept else empty)
    return tuple(found)


class _Inner(NamedTuple):
    """One token's write: the gates spread over the maps, and which heads it may change, ``[H, 1, 1]``."""

    rule: Rule
    names: list[str]
    constants: dict[str, Tensor]
    gates: list[list[Tensor] | None]
    alive: Tensor

    def write(
        self, dual: Weights, momentum: Weights, anchor: Weights, window: list[_Token]
    ) -> tuple[Weights, Weights, tuple[Tensor, Tensor, Tensor]]:
        """Dual and momentum after the token, and its loss, gradient norm and whether it was refused, ``[H]`` each."""
        rule, (lr, fade, keep) = self.rule, self.gates
        assert lr is not None
        at = dual if rule.retention.link_at is None and rule.online else anchor
        if rule.decay_before_grad and keep is not None:
            at = tuple(a * w for a, w in zip(keep, dual, strict=True))
        if rule.erase_key:
            new, felt = erase_step(rule, dual[0], keep, lr[0], window[-1])
            refused = ~self.alive[:, 0, 0] | felt[2]
            return (torch.where(self.alive, new, dual[0]),), momentum, (felt[0], felt[1], refused)
        kept = dual if keep is None else tuple(a * w for a, w in zip(keep, dual, strict=True))
        loss, grads, norm, overflown = self.gradient(at, window)
        felt = loss, norm, ~self.alive[:, 0, 0] | overflown
        if isinstance(rule.algorithm, ImplicitStep):
            k, v = (torch.where(overflown[:, None], 0.0, x) for x in window[-1][:2])
            new = implicit_step(rule, kept[0], lr[0], window[-1]._replace(k=k, v=v))
            return (torch.where(self.alive, new, dual[0]),), momentum, felt
        if rule.algorithm.erases:
            k = torch.where(overflown[:, None], 0.0, window[-1].k)
            grads = tuple(g + e for g, e in zip(grads, self.held(at, dual, k), strict=True))
        moved = pushed = [-step * grad for step, grad in zip(lr, grads, strict=True)]
        if fade is not None:
            pushed = [f * s + p for f, s, p in zip(fade, momentum, moved, strict=True)]
            if rule.algorithm.coupling == "nesterov":
                moved = [f * s + p for f, s, p in zip(fade, pushed, moved, strict=True)]
            else:
                moved = [0.0 * p for p in pushed] if rule.algorithm.coupling == "deferred" else pushed
            momentum = tuple(torch.where(self.alive, p, s) for p, s in zip(pushed, momentum, strict=True))
        pairs = zip(kept, moved, dual, strict=True)
        return tuple(torch.where(self.alive, w + p, old) for w, p, old in pairs), momentum, felt

    def gradient(self, at: Weights, window: list[_Token]) -> tuple[Tensor, Weights, Tensor, Tensor]:
        """Loss of the newest token, the gradient of the whole window, and the newest token's norm."""
        total: Weights | None = None
        for token in window:
            loss, grads, norm, overflown = inner_gradient(self.rule, self.names, self.constants, at, token)
            if token.importance is not None:
                grads = tuple(token.importance[:, :, None] * g for g in grads)
            total = grads if total is None else tuple(a + b for a, b in zip(total, grads, strict=True))
        assert total is not None
        return loss, total, norm, overflown

    def held(self, at: Weights, dual: Weights, k: Tensor) -> Weights:
        """What the present weights hold at each map's input, ``A x x^T / max(1, |x|^2)``."""
        inputs = apply_weights(self.rule, self.names, self.constants, at, k)[1]
        found = []
        for name, w in zip(self.names, dual, strict=True):
            x = inputs[name].unsqueeze(-1)
            found.append((w @ x) @ x.transpose(1, 2) / x.square().sum((1, 2), keepdim=True).clamp_min(1.0))
        return tuple(found)


def gates_of_maps(gate: Tensor, scope: Scope | None, shapes: list[torch.Size]) -> list[Tensor]:
    """A gate ``[H, n]`` of one token as a factor of each map's weights, ``[H, outputs or 1, inputs or 1]``."""
    if scope == "head":
        return [gate[:, :, None]] * len(shapes)
    if scope == "map":
        return [one[:, None, None] for one in gate.unbind(1)]
    if scope == "key":
        return [part[:, None, :] for part in gate.split([inputs for _, inputs in shapes], 1)]
    return [part[:, :, None] for part in gate.split([outputs for outputs, _ in shapes], 1)]


def apply_weights(
    rule: Rule, names: list[str], constants: dict[str, Tensor], weights: Weights, x: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The memory ``[H, out, in]`` applied to one token per head, ``x [H, K] -> [H, V]``, and each map's input."""
    table = dict(zip(names, weights, strict=True))
    shaped = {m.name: m.elementwise for m in rule.maps(x.shape[-1], x.shape[-1])}
    inputs: dict[str, Tensor] = {}

    def linear(name: str, h: Tensor) -> Tensor:
        if name in constants:
            return h * constants[name]
        inputs[name] = h[:, 0]
        return h * table[name] if shaped[name] else h @ table[name].transpose(1, 2)

    y, _ = rule.architecture.forward(linear, x[:, None, :])
    return y[:, 0], inputs


def inner_gradient(
    rule: Rule, names: list[str], constants: dict[str, Tensor], weights: Weights, token: _Token
) -> tuple[Tensor, Weights, Tensor, Tensor]:
    """Inner loss ``[H]``, its gradient by autograd (clipped as the rule says), and the norm before clipping ``[H]``.

    The last value, bool ``[H]``, marks heads whose gradient is not finite; theirs is zero.
    """
    loss, grads = _differentiate(rule, names, constants, weights, token)
    overflown = ~torch.isfinite(_squared(grads))
    if bool(overflown.any()):
        # Again without those tokens: an infinity that is only masked still makes outer gradients NaN.
        k, v = (torch.where(overflown[:, None], 0.0, x) for x in token[:2])
        loss, grads = _differentiate(rule, names, constants, weights, token._replace(k=k, v=v))
        loss = torch.where(overflown, 0.0, loss)
        grads = tuple(torch.where(overflown[:, None, None], 0.0, g) for g in grads)
    squared = _squared(grads)
    still = squared == 0
    # The square root has no derivative at 0, where tokens without a gradient stand.
    norm = torch.where(still, 1.0, squared).sqrt().masked_fill(still, 0.0)
    if rule.clip is not None:
        scale = rule.clip * torch.rsqrt(squared.clamp_min(rule.clip**2))
        grads = tuple(g * scale[:, None, None] for g in grads)
    return loss, grads, norm, overflown


def _differentiate(
    rule: Rule, names: list[str], constants: dict[str, Tensor], weights: Weights, token: _Token
) -> tuple[Tensor, Weights]:
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = tuple(w if w.requires_grad and differentiable else w.detach().requires_grad_() for w in weights)
        answer = apply_weights(rule, names, constants, leaves, token.k)[0]
        loss = rule.bias.loss(answer, token.v, token.threshold)
        grads = torch.autograd.grad(loss.sum(), leaves, create_graph=differentiable)
    return loss if differentiable else loss.detach(), grads


def _squared(grads: Weights) -> Tensor:
    """Squared norm of the whole gradient of each head, ``[H]``."""
    return torch.stack([g.square().sum((1, 2)) for g in grads]).sum(0)
