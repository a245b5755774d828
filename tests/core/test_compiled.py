from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from fastweights.core import compiled
from fastweights.core.algorithm import Momentum
from fastweights.core.architecture import MLP
from fastweights.core.bias import L2
from fastweights.core.compiled import piece, use_compiler
from fastweights.core.conformance_trial import make_trial
from fastweights.core.properties import values_and_gradients
from fastweights.core.retention import WeightDecay
from fastweights.core.rule import Rule

RULE = Rule(MLP(2, 2.0), L2(), WeightDecay(), Momentum(), chunk_size=4, clip=None)

# TorchDynamo makes a context object when it traces an autograd function without gradients, and looks at every .grad.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]


@pytest.fixture(autouse=True)
def eager_again() -> Iterator[None]:
    torch.compiler.reset()
    yield
    use_compiler(None)
    torch.compiler.reset()


def read(time: int, spoil: bool = False) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A call of ``time`` tokens from a fresh state, and its arguments; spoilt, one token's inner gradient overflows."""
    trial = make_trial(RULE, 3, 4)
    x = trial.draw(1, time, 0)
    if spoil:
        trial.split(x)["k"][0, 1, 0] *= 1e120
    return lambda x: trial.read(x, trial.fresh(1)).y, (x.requires_grad_(),)


@pytest.mark.parametrize("spoil", [False, True])
def test_compiled_pieces_compute_the_same(spoil: bool) -> None:
    function, arguments = read(11, spoil)
    want = values_and_gradients(function, arguments)
    assert use_compiler("aot_eager")
    got = values_and_gradients(function, arguments)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_a_step_is_one_graph_for_calls_of_any_length() -> None:
    graphs = []

    def counting(graph: Any, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    assert use_compiler(counting)
    counts = []
    for chunks in (4, 8, 12):
        function, (x,) = read(4 * chunks)
        with torch.no_grad():
            function(x)
        counts.append(len(graphs))
    # Coefficients are computed for all chunks at once, so they alone depend on the length.
    assert counts[1] - counts[0] == counts[2] - counts[1] == 1


def test_without_a_working_backend_everything_stays_eager() -> None:
    def broken(graph: Any, inputs: Any) -> Callable[..., Any]:
        raise RuntimeError("no compiler here")

    assert not use_compiler(broken)
    function, arguments = read(5)
    values_and_gradients(function, arguments)


def test_a_piece_is_compiled_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **named: object) -> Any:
        raise AssertionError("compiled")

    @piece
    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    monkeypatch.setattr(compiled, "_compiled", refuse)
    assert double(torch.ones(1)).item() == 2.0
    monkeypatch.setattr(compiled, "_backend", "eager")
    with pytest.raises(AssertionError, match="compiled"):
        double(torch.ones(1))
