"""Self-modifying Titans against the paper's loop, token by token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.layers.wirings import floats
from torch import Tensor

from fastweights.core import presets
from fastweights.core.algorithm import DeltaGradientDescent, GradientDescent
from fastweights.core.architecture import Matrix, Skip
from fastweights.core.bias import L2, DotProduct, Huber
from fastweights.core.retention import NoRetention, WeightDecay
from fastweights.core.rule import Rule
from fastweights.core.self_modifying import Made
from fastweights.errors import UserError
from fastweights.layers.conformance import check_layer, stirred
from fastweights.layers.gates import exact_gate
from fastweights.layers.norm import SHORTEST
from fastweights.layers.self_modifying import GENERATORS, SelfModifyingTitans, Values
from fastweights.models.config import ModelConfig

Weights = dict[str, Tensor]


def answer(weights: Weights, x: Tensor, skip: bool) -> Tensor:
    """``W x``, ``x + W x`` or ``x + W_2 gelu(W_1 x)``."""
    if "layer1" in weights:
        return x + weights["layer2"] @ F.gelu(weights["layer1"] @ x)
    return skip * x + weights["matrix"] @ x


def direction(x: Tensor) -> Tensor:
    """Length 1, where there is a hundredth of that at least."""
    return x / x.norm().clip(min=SHORTEST)


def value_of(layer: SelfModifyingTitans, k: Tensor, made: Tensor) -> Tensor:
    """Of length 1; or twice that and held along the key and across it, to less where it points against the key."""
    v = direction(made)
    if layer.values == "unit":
        return v
    p = 2 * (v @ k)
    across = 2 * v - p * k
    most = max(1e-12, 1 - min(0.0, max(-1.0, p.item())) ** 2) ** 0.5
    across = most * across / across.norm() if across.norm() > most else across
    return (p + (p.clip(-1, 1) - p).detach()) * k + across


def written(
    weights: Weights, anchor: Weights, k: Tensor, target: Tensor, lr: Tensor, retain: Tensor, rule: Rule
) -> Weights:
    """Eq. 88 per linear map, each with its own input; the inner gradient by autograd."""
    leaves = {name: w.detach().requires_grad_() if not w.requires_grad else w * 1 for name, w in anchor.items()}
    with torch.enable_grad():
        found = answer(leaves, k, rule.architecture != Matrix())
        weight = 1.0 if rule.chunk_size == 1 else 0.5
        error = -(found @ target) if rule.bias == DotProduct() else 0.5 * weight * (found - target).square().sum()
        grads = torch.autograd.grad(error, list(leaves.values()), create_graph=True)
    inputs = {"matrix": k, "layer1": k, "layer2": F.gelu(leaves["layer1"] @ k) if "layer1" in leaves else k}
    new = {}
    for (name, w), g in zip(weights.items(), grads, strict=True):
        x = inputs[name]
        erased = (w @ x)[:, None] * x / x.square().sum().clamp_min(1.0)
        new[name] = retain * w - lr * erased - lr * g
    return new


def paper_loop(layer: SelfModifyingTitans, x: Tensor) -> tuple[Tensor, list[list[Weights]]]:
    """Answers of one row ``x [T, dim]``, and the weights of every memory of every head at the end."""
    rule, skip = layer.rule, layer.rule.architecture != Matrix()
    kernel = layer.convolution.weight.flip(0).T.unsqueeze(1)
    padded = F.pad(layer.qu(x).T[None], (layer.convolution.size - 1, 0))
    q, u = F.silu(F.conv1d(padded, kernel, groups=len(kernel))[0].T).unflatten(-1, (2, layer.heads, -1)).unbind(1)
    count = len(layer.names) + 1
    first = {name: w.unflatten(0, (count, layer.heads)) for name, w in layer.initial.items()}
    heads, ends = [], []
    for h in range(layer.heads):
        now = [{name: w[i, h] for name, w in first.items()} for i in range(count)]
        anchors, answers = list(now), []
        for t in range(len(x)):
            for i in range(count):
                chunk = rule.chunk_size if i == count - 1 else layer.memories.generator_chunk
                anchors[i] = now[i] if t % chunk == 0 else anchors[i]
            made = {name: answer(anchors[i], u[t, h], skip) for i, name in enumerate(layer.names)}
            query = q[t, h] + made["query"] - skip * u[t, h] if "query" in made else q[t, h]
            gates = {
                name: exact_gate(
                    direction(made[name]) * layer.head_dim**0.5 @ layer.readouts[name][h] + layer.biases[name][h],
                    layer.threshold,
                )
                for name in ("lr", "retain")
                if name in layer.readouts
            }
            retain = 1.0 - gates["retain"] if "retain" in gates else torch.ones(1, dtype=x.dtype)
            top = layer.memories.carried.stable_lr(retain, own_targets=True)
            k = direction(made["key"])
            v = value_of(layer, k, made["value"])
            targets = [answer(anchor, v, skip) for anchor in anchors]
            before = now[-1]
            for i, moves in enumerate(layer.memories.moving):
                if moves:
                    share = gates["lr"] * rule.lr_max
                    lr = (share + (share.clip(max=1) - share).detach()) * top
                    now[i] = written(now[i], anchors[i], k, targets[i], lr, retain, rule)
            read = now[-1] if rule.read == "after" else before
            answers.append(answer(read, direction(query), skip))
        heads.append(torch.stack(answers))
        ends.append(now)
    y = torch.stack(heads, 1)
    y = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.norm.weight
    return layer.out(y.flatten(1) * F.silu(layer.out_gate(x))), ends


COUNTS = replace(presets.hope(1, bias=DotProduct()), architecture=Matrix(), lr_max=1.5)
"""A plain matrix whose gates reach the largest step before they are wide open."""

CASES: dict[str, tuple[Rule, int, tuple[str, ...]]] = {
    "a matrix, online": (presets.hope(1), 1, GENERATORS),
    "a matrix, two chunk sizes": (presets.hope(4), 2, GENERATORS),
    "slow generators": (presets.hope(2), 8, GENERATORS),
    "a network": (replace(presets.hope(4, 2.0), clip=None), 4, GENERATORS),
    "queries too": (presets.hope(2), 2, (*GENERATORS, "query")),
    "only keys move": (presets.hope(4), 4, ("key",)),
    "read before the write": (replace(presets.hope(4), read="before"), 2, GENERATORS),
    "nothing is forgotten": (replace(presets.hope(2), retention=NoRetention()), 2, GENERATORS),
    "bounded values": (COUNTS, 1, GENERATORS),
    "bounded values in chunks": (replace(COUNTS, chunk_size=4), 2, GENERATORS),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_states_and_outer_gradients_are_those_of_the_papers_loop(case: str) -> None:
    torch.manual_seed(0)
    values: Values = "bounded" if case.startswith("bounded") else "unit"
    layer = stirred(SelfModifyingTitans(8, 2, *CASES[case], values=values).double())
    x = floats(1, 11, 8)
    reading = layer(x, surprise=True)
    want, ends = paper_loop(layer, x[0])
    kept = reading.surprise[0].retain
    assert bool((kept < 0.9).all()) == (layer.rule.retention.scope is not None)
    torch.testing.assert_close(reading.y[0], want, rtol=1e-10, atol=1e-10)
    for n, name in enumerate(layer.initial):
        found = reading.state.memory.dual[n][0].unflatten(0, (-1, layer.heads))
        for h, memories in enumerate(ends):
            for i, weights in enumerate(memories):
                torch.testing.assert_close(found[i, h], weights[name], rtol=1e-10, atol=1e-10)
    weighing = floats(11, 8)
    leaves = list(layer.parameters())
    ours = torch.autograd.grad((reading.y[0] * weighing).sum(), leaves)
    theirs = torch.autograd.grad((want * weighing).sum(), leaves)
    for name, a, b in zip(dict(layer.named_parameters()), ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-10), name
        assert a.any(), name


@pytest.mark.parametrize(
    ("rule", "chunk", "adaptive"),
    [
        (presets.hope(1), 1, GENERATORS),
        (presets.hope(4), 2, ("key", "query")),
        (presets.hope(2, 2.0, momentum=True), 8, GENERATORS),
        (replace(presets.hope(16), algorithm=GradientDescent()), 16, GENERATORS),
        (COUNTS, 1, GENERATORS),
    ],
)
def test_the_whole_suite(rule: Rule, chunk: int, adaptive: tuple[str, ...]) -> None:
    without = () if chunk == 2 else (10,)
    values: Values = "bounded" if rule == COUNTS else "unit"
    layer = SelfModifyingTitans(8, 2, rule, chunk, adaptive, values=values)
    report = check_layer(layer, lengths=(1, 7, 33), without=without)
    assert report.ok, report.table()


def test_every_memory_that_may_move_does_and_the_others_stay() -> None:
    layer = SelfModifyingTitans(8, 2, presets.hope(2), 2, ("key", "retain"))
    before, after = layer.init_state(3).memory.dual[0], layer(torch.randn(3, 20, 8)).state.memory.dual[0]
    moved = (after - before).unflatten(1, (5, 2)).square().sum((0, 2, 3, 4)) > 0
    assert moved.tolist() == [True, False, False, True, True]


@pytest.mark.parametrize("negative", [False, True])
def test_eigenvalues_along_a_key_stay_in_their_range(negative: bool) -> None:
    """A matrix at chunk size 1 keeps ``retain - 2 lr`` along the key: from 0 or -1 up to retain, whatever the gates."""
    rule = presets.hope(1, negative=negative)
    retain = torch.linspace(0, 1, 11)[:, None]
    for share in (0.0, 0.5, 1.0):
        kept = retain - 2.0 * share * rule.lr_max * rule.stable_lr(retain)
        assert kept.min() >= (-1.0 if negative else 0.0)
        assert bool((kept <= retain + 1e-6).all())
    lowest = retain - 2.0 * rule.stable_lr(retain)
    torch.testing.assert_close(lowest, torch.full_like(retain, -1.0 if negative else 0.0))


@pytest.mark.parametrize("bias", [L2(), L2(half=False), DotProduct()], ids=str)
@pytest.mark.parametrize("negative", [False, True])
def test_own_targets_keep_eigenvalues_in_range_for_any_key_and_value(bias: L2 | DotProduct, negative: bool) -> None:
    """Of ``W <- W (retain - lr ((1 + slope) k - gain v) k^T)``, what a step makes of what the weights hold."""
    rule, affine = presets.hope(1, negative=negative, bias=bias), bias.affine()
    assert affine is not None
    retain, cosine = torch.linspace(0, 1, 11)[:, None], torch.linspace(-1, 1, 9)
    for share in (0.0, 0.5, 1.0):
        lr = share * rule.stable_lr(retain, own_targets=True)
        kept = retain - lr * (1.0 + affine.slope - affine.gain * cosine)
        assert kept.min() >= (-1.0 if negative else 0.0) - 1e-6
        assert kept.max() <= 1.0
    torch.testing.assert_close(kept.min(1).values, torch.full((11,), -1.0 if negative else 0.0))
    open_wide = ModelConfig(wiring="self_modifying", rule=rule, generator_chunk=1)
    assert open_wide.largest_lr == pytest.approx((float(rule.stable_lr(torch.ones(1), own_targets=True)),) * 4)


STEPS = [
    (algorithm, bias)
    for algorithm in (DeltaGradientDescent(), DeltaGradientDescent(negative=True), GradientDescent())
    for bias in (L2(), L2(half=False), L2(weight=0.5), DotProduct())
    if algorithm.erases or bias != DotProduct()  # Without erasing it can only grow, and is refused.
]


@pytest.mark.parametrize("chunk", [1, 2, 3, 16, 64])
@pytest.mark.parametrize(("algorithm", "bias"), STEPS, ids=str)
def test_a_chunk_of_one_token_again_and_again_does_not_overshoot(
    chunk: int, bias: L2 | DotProduct, algorithm: DeltaGradientDescent | GradientDescent
) -> None:
    """Of ``w <- retain w - lr (erased w + (slope - gain <k, v>) w0)``, w0 that of the chunk's start, what is left."""
    rule, affine = replace(presets.hope(chunk, bias=bias), algorithm=algorithm), bias.affine()
    assert affine is not None
    retain, cosine = torch.linspace(0, 1, 41).double()[:, None], torch.linspace(-1, 1, 41).double()
    for own_targets, gain in ((True, affine.gain), (False, 0.0)):
        if not own_targets and not rule.algorithm.erases:
            continue
        for share in torch.linspace(0, 1, 11).tolist():
            lr = share * rule.stable_lr(retain, own_targets)
            w = torch.ones(41, 41).double()
            for _ in range(chunk):
                w = retain * w - lr * (rule.algorithm.erases * w + affine.slope - gain * cosine)
            assert w.abs().max() <= 1.0 + 1e-9
        if own_targets and algorithm != DeltaGradientDescent() and affine.slope + affine.gain > 1:
            assert w[-1].min() == pytest.approx(-1.0)  # The step is as long as it can be where nothing is forgotten.


@pytest.mark.parametrize("same", [False, True], ids=["random tokens", "one token"])
@pytest.mark.parametrize("chunks", [(1, 1), (4, 4), (16, 16), (16, 1)], ids=str)
@pytest.mark.parametrize("bias", [L2(), DotProduct()], ids=str)
def test_with_all_gates_open_a_memory_of_its_own_targets_does_not_explode(
    bias: L2 | DotProduct, chunks: tuple[int, int], same: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    layer = SelfModifyingTitans(16, 2, presets.hope(chunks[0], bias=bias), chunks[1])
    with torch.no_grad():
        for name, start in (("lr", 10.0), ("retain", -20.0)):
            layer.readouts[name].zero_()
            layer.biases[name].fill_(start)
        x = torch.randn(8, 1 if same else 640, 16, generator=generator).expand(8, 640, 16)
        reading = layer(x, surprise=True)
    assert reading.surprise[0].retain.min() == 1.0
    # The dot product may count: a key and a value of length 1 for every token.
    assert float(reading.state.memory.dual[0].norm(dim=(-2, -1)).max()) < (650 if bias == DotProduct() else 6)


def test_gates_do_not_drift_with_what_is_added_up() -> None:
    """One token that comes again and again: gates come to rest, though what the memories hold grows without end."""
    torch.manual_seed(0)
    layer = stirred(SelfModifyingTitans(8, 2, presets.hope(1, bias=DotProduct()), 1))
    with torch.no_grad():
        layer.biases["retain"].fill_(-20.0)
        layer.readouts["retain"].zero_()
        x = torch.randn(4, 1, 8).expand(4, 400, 8)
        half, whole = layer(x[:, :200]).state.memory.dual[0], layer(x, surprise=True)
    lr = whole.surprise[0].lr
    assert (whole.state.memory.dual[0].norm() - half.norm()) > 10
    torch.testing.assert_close(lr[:, :, 199], lr[:, :, 399], rtol=0.02, atol=0.002)


def test_starting_by_induction_binds_each_token_to_the_query_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of keys and values, and so of answers: a token that comes again finds what followed it."""
    monkeypatch.setattr("fastweights.layers.self_modifying.OWN", 0.0)
    layer = SelfModifyingTitans(16, 2, presets.hope(1), 1)
    layer.start_induction()
    x, made = torch.randn(1, 6, 16), []
    make = layer.make

    def keep(*given: Tensor) -> Made:
        made.append(make(*given))
        return made[-1]

    layer.make = keep  # type: ignore[method-assign,assignment]
    layer(x)
    q, k, v = (torch.cat([getattr(one, name) for one in made], 2) for name in ("q", "k", "v"))
    # The first key is that of an empty convolution; later ones are off by what the generators have learned since.
    torch.testing.assert_close(k[:, :, 1], q[:, :, 0])
    assert F.cosine_similarity(k[:, :, 1:], q[:, :, :-1], -1).min() > 0.9
    assert v[:, :, 1, :4].abs().max() < 0.3
    assert not q[..., 4:].any()


def start_counting(rule: Rule, values: Values, heads: int) -> SelfModifyingTitans:
    layer = SelfModifyingTitans(16, heads, rule, 1, values=values)
    layer.start_counting()
    return layer


REFUSED: dict[str, tuple[Callable[[], SelfModifyingTitans], str]] = {
    "chunks": (lambda: SelfModifyingTitans(8, 2, presets.hope(4), 3), "divide one another"),
    "a link": (lambda: SelfModifyingTitans(8, 2, presets.memora(), 16), "plain steps"),
    "decay first": (
        lambda: SelfModifyingTitans(
            8, 2, Rule(Skip(Matrix()), algorithm=GradientDescent(), chunk_size=1, decay_before_grad=True), 1
        ),
        "no decay before the gradient",
    ),
    "a threshold": (lambda: SelfModifyingTitans(8, 2, replace(presets.hope(), bias=Huber()), 16), "plain steps"),
    "gates of channels": (
        lambda: SelfModifyingTitans(8, 2, replace(presets.hope(), retention=WeightDecay("map")), 16),
        "scope must be 'head'",
    ),
    "an unknown generator": (lambda: SelfModifyingTitans(8, 2, presets.hope(), 16, ("keys",)), "adaptive names some"),
    "keys of any length": (
        lambda: SelfModifyingTitans(8, 2, replace(presets.hope(), normalise_qk=False), 16),
        "normalise_qk must be True",
    ),
    "a fixed gate": (
        lambda: SelfModifyingTitans(8, 2, replace(presets.hope(), fixed=("lr",)), 16),
        "no gate fixed",
    ),
    "values of any length": (
        lambda: SelfModifyingTitans(8, 2, presets.hope(), values="long"),  # type: ignore[arg-type]
        "unit or bounded",
    ),
    "counters with a skip": (lambda: start_counting(presets.hope(1), "bounded", 2), "architecture is Matrix"),
    "counters with unit values": (lambda: start_counting(COUNTS, "unit", 2), "needs values='bounded'"),
    "one head to turn and to count": (lambda: start_counting(COUNTS, "bounded", 1), "2 memory heads or more, not 1"),
    "no head size": (lambda: SelfModifyingTitans(9, 2, presets.hope(), 16), "not divisible by 2 heads"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        make()


def test_autocast_leaves_the_memories_in_float32() -> None:
    x, layer = torch.randn(2, 9, 8), stirred(SelfModifyingTitans(8, 2, presets.hope(4), 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reading = layer(x)
    assert {w.dtype for w in reading.state.memory.dual} == {torch.float32}
    torch.testing.assert_close(reading.y.float(), layer(x).y, rtol=0.1, atol=0.1)
