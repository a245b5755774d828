from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager

from fastweights.core import compiled
from fastweights.core.algorithm import Algorithm, GradientDescent, Momentum
from fastweights.core.architecture import MLP
from fastweights.core.bias import L2
from fastweights.core.compiled import compilable, compiler, use_compiler
from fastweights.core.conformance_trial import make_trial
from fastweights.core.gradient import Slow, Sources, chunk_gradients
from fastweights.core.properties import values_and_gradients
from fastweights.core.retention import WeightDecay
from fastweights.core.rule import Rule
from fastweights.errors import UserError

RULE = Rule(MLP(2, 2.0), L2(), WeightDecay(), Momentum(), chunk_size=4, clip=None)


@pytest.fixture(autouse=True)
def eager_again() -> Iterator[None]:
    torch.compiler.reset()
    yield
    use_compiler(None)
    torch.compiler.reset()


def read(time: int, rule: Rule = RULE) -> tuple[Callable[..., Any], tuple[Tensor]]:
    """A call of ``time`` tokens from a fresh state, and its argument."""
    trial = make_trial(rule, 3, 4)
    return lambda x: trial.read(x, trial.fresh(1)).y, (trial.draw(1, time, 0).requires_grad_(),)


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("algorithm", [Momentum(), GradientDescent()])
def test_compiled_parts_compute_the_same(algorithm: Algorithm, clip: float | None) -> None:
    """Six chunks: four at once, one, and one that is not full."""
    function, arguments = read(23, replace(RULE, algorithm=algorithm, clip=clip))
    want = values_and_gradients(function, arguments)
    with compiler("aot_eager") as works:
        assert works
        got = values_and_gradients(function, arguments)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_a_token_whose_error_overflows_spoils_no_outer_gradient_when_compiled() -> None:
    """Its value's squared length is finite, so it is let in; its error's is not, and 0 times infinity is NaN."""
    rule = replace(RULE, bias=L2(half=False), clip=1.0)
    trial = make_trial(rule, 3, 4).to(torch.float32)
    found = trial.inputs(trial.draw(1, 4, 0).float())
    anchor = dict(zip(["layer1", "layer2"], trial.initial, strict=True))
    k, v = found.k[0].clone().requires_grad_(), found.v[0].clone()
    v[0, 1, 0] = 1.8e19

    def function(k: Tensor, v: Tensor) -> Any:
        return chunk_gradients(rule, anchor, Slow({}, {}), Sources(k, v, None), True)[:3]

    want = values_and_gradients(function, (k, v))
    got = values_and_gradients(torch.compile(function, backend="aot_eager"), (k, v))
    assert bool(got[-1].isfinite().all())
    torch.testing.assert_close(got, want)


def test_two_graphs_do_for_calls_of_any_length() -> None:
    graphs = []

    def counting(graph: Any, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    counts = []
    with compiler(counting):
        before = len(graphs)
        for chunks in (4, 8, 12, 9, 3):
            function, (x,) = read(4 * chunks)
            with torch.no_grad():
                function(x)
            counts.append(len(graphs) - before)
    # Four chunks at once, and what is left one by one.
    assert counts == [1, 1, 1, 2, 2]


def test_without_a_working_backend_everything_stays_eager() -> None:
    def broken(graph: Any, inputs: Any) -> Callable[..., Any]:
        raise RuntimeError("no compiler here")

    assert not use_compiler(broken)
    function, arguments = read(5)
    values_and_gradients(function, arguments)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(UserError, match="no backend 'inductr'"):
        use_compiler("inductr")


def test_a_part_is_compiled_only_inside_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    @compilable
    def double(x: Tensor) -> Tensor:
        return 2 * x

    def refuse(*given: object) -> Any:
        raise AssertionError("compiled")

    assert double(torch.ones(1)).item() == 2.0
    with compiler("eager"):
        monkeypatch.setattr(compiled, "_compiled", refuse)
        with pytest.raises(AssertionError, match="compiled"):
            double(torch.ones(1))
    assert double(torch.ones(1)).item() == 2.0
