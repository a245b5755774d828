from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.layers.wirings import RULES, WIRINGS, clipped, config
from torch import Tensor

from fastweights.layers.attention import SlidingWindowAttention
from fastweights.layers.conformance import check_layer
from fastweights.layers.memory import MemoryLayer
from fastweights.layers.stream import Plan, Reading, StreamLayer
from fastweights.models.titans import build_block


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("wiring", WIRINGS)
def test_every_block_has_every_property(wiring: str, rule: str) -> None:
    report = check_layer(build_block(config(wiring, rule)), lengths=[1, 7, 33], without=[10], title=f"{wiring}, {rule}")
    assert report.ok, report.table()
    assert {f.property for f in report.findings if f.ok is None} == {"10 one graph", "10 activation checkpointing"}


@pytest.mark.parametrize(("wiring", "rule"), [("mac_pooled", "titans_swiglu"), ("lmm", "titans_linear")])
def test_blocks_compile_to_one_graph_and_can_be_recomputed(wiring: str, rule: str) -> None:
    report = check_layer(build_block(config(wiring, rule)), lengths=[7], without=range(3, 10), title=wiring)
    assert report.ok, report.table()


@pytest.mark.parametrize("persistent", [0, 3])
def test_attention_alone_has_every_property(persistent: int) -> None:
    report = check_layer(SlidingWindowAttention(16, 2, window=6, persistent=persistent), without=[10])
    assert report.ok, report.table()


@pytest.mark.parametrize("taps", [1, 4])
def test_memory_layers_with_a_clip_and_other_head_sizes_have_every_property(taps: int) -> None:
    layer = MemoryLayer(10, 3, clipped("titans_linear"), head_dim=6, convolution=taps)
    report = check_layer(layer, without=[10])
    assert report.ok, report.table()


class Mean(StreamLayer[Tensor]):
    """A layer that sees the future: every token gets the mean of its call."""

    dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(4))

    def init_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, dtype=torch.int64)

    def position(self, state: Tensor) -> Tensor:
        return state

    def mix(self, x: Tensor, state: Tensor, plan: Plan, surprise: bool) -> Reading[Any]:
        return Reading((x + x.mean(1, keepdim=True)) * self.scale, plan.layout.end.clone())


def test_a_layer_that_sees_the_future_is_found_out() -> None:
    report = check_layer(Mean(), lengths=[7], without=[8, 10])
    failed = {f.property for f in report.failures}
    assert {"3 any split = one call", "4 causal", "5 padding irrelevant", "5 documents separate"} <= failed
    assert "FAILED" in report.table()


def test_the_layer_under_test_is_not_touched() -> None:
    layer = MemoryLayer(8, 2, RULES["titans_linear"])
    before = {name: p.clone() for name, p in layer.state_dict().items()}
    check_layer(layer, lengths=[3], without=[10])
    assert all(torch.equal(p, before[name]) for name, p in layer.state_dict().items())
