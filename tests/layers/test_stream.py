from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.layers.wirings import RULES, WIRINGS, floats, mixer
from torch import Tensor

from fastweights.core.layout import make_layout
from fastweights.core.properties import ragged_equality, split_equality, within
from fastweights.errors import UserError
from fastweights.layers.attention import SlidingWindowAttention
from fastweights.layers.conformance import stirred
from fastweights.layers.memory import MemoryLayer
from fastweights.layers.stream import Plan, StreamLayer

EXACT = 1e-10


def streamed(layer: StreamLayer[Any]) -> Any:
    def stream(x: Tensor, state: Any, mask: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Any]:
        reading = layer(x, state, mask=mask, cu_seqlens=cu_seqlens)
        return reading.y, reading.state

    return stream


@pytest.mark.parametrize("wiring", WIRINGS)
@settings(max_examples=12)
@given(data=st.data())
def test_any_split_of_a_stream_is_one_call(wiring: str, data: st.DataObject) -> None:
    layer = mixer(wiring, data.draw(st.sampled_from(sorted(RULES))))
    time = data.draw(st.integers(1, 28))
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, time - 1)), max_size=6)))
    x = floats(3, time, 16)
    with torch.no_grad():
        assert split_equality(streamed(layer), layer.init_state(3), x, cuts, EXACT).ok
        calls, seed = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 1000))
        verdict = ragged_equality(streamed(layer), layer.init_state(3), x, calls, EXACT, seed, float("nan"))
    assert verdict.ok, verdict.detail


@pytest.mark.parametrize("wiring", WIRINGS)
@settings(max_examples=12)
@given(data=st.data())
def test_documents_among_padding_and_across_calls_are_read_as_if_alone(wiring: str, data: st.DataObject) -> None:
    layer = mixer(wiring, data.draw(st.sampled_from(sorted(RULES))))
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    owner = [i for i, length in enumerate(lengths) for _ in range(length)]
    inside = [t for t in range(1, len(owner)) if owner[t] == owner[t - 1]]
    cuts = sorted(data.draw(st.sets(st.sampled_from(inside), max_size=3))) if inside else []
    x = floats(1, len(owner), 16)
    with torch.no_grad():
        documents = [layer(piece) for piece in x.split(lengths, 1)]
        state, answers = layer.init_state(1), []
        for begin, end in zip([0, *cuts], [*cuts, len(owner)], strict=True):
            places: list[int] = []
            borders, width = [0], 0
            for t in range(begin, end):
                width += data.draw(st.integers(0, 2))
                if t > begin and owner[t] != owner[t - 1]:
                    borders.append(data.draw(st.integers(max(places[-1], borders[-1]) + 1, width)))
                places.append(width)
                width += 1
            padded = torch.full((1, width, 16), float("nan"), dtype=x.dtype)
            mask = torch.zeros(1, width, dtype=torch.bool)
            padded[0, places], mask[0, places] = x[0, begin:end], True
            reading = layer(padded, state, mask=mask, cu_seqlens=torch.tensor([*borders, width]))
            state = reading.state
            answers.append(reading.y[:, places])
    verdict = within(
        (torch.cat(answers, 1), state), (torch.cat([d.y for d in documents], 1), documents[-1].state), EXACT
    )
    assert verdict.ok, verdict.detail


@pytest.mark.parametrize("wiring", WIRINGS)
def test_padding_slots_answer_zero_and_surprise_lies_where_its_token_does(wiring: str) -> None:
    layer = mixer(wiring)
    x, places = floats(2, 9, 16), torch.tensor([1, 2, 4, 5, 6, 9, 10, 11, 13])
    padded, mask = torch.zeros(2, 14, 16, dtype=x.dtype), torch.zeros(2, 14, dtype=torch.bool)
    padded[:, places], mask[:, places] = x, True
    plain, apart = layer(x, surprise=True), layer(padded, mask=mask, surprise=True)
    assert not apart.y[~mask].any()
    for want, got in zip(plain.surprise[0], apart.surprise[0], strict=True):
        assert want.shape == (2, 2, 9)
        assert got.shape == (2, 2, 14)
        torch.testing.assert_close(got[:, :, places], want)
        assert not got[:, :, ~mask[0]].any()


@pytest.mark.parametrize("wiring", WIRINGS)
def test_truncated_backpropagation_carries_a_detached_state(wiring: str) -> None:
    layer = mixer(wiring)
    x = floats(2, 24, 16)
    whole, state = layer(x).y, None
    for piece, want in zip(x.split(8, 1), whole.split(8, 1), strict=True):
        reading = layer(piece, state)
        torch.testing.assert_close(reading.y, want, rtol=1e-9, atol=1e-9)
        layer.zero_grad()
        reading.y.square().sum().backward()
        assert all(
            p.grad is not None and torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None
        )
        assert layer.get_parameter("qkv.weight" if wiring == "lmm" else "memory.qkv.weight").grad is not None
        state = detached(reading.state)


def detached(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach()
    parts = [detached(part) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def test_rows_may_join_and_leave_a_batch() -> None:
    """A state is a tree of tensors with a row for each stream, so rows can be picked out of it."""
    layer = mixer("mac")
    x = floats(3, 20, 16)
    batch = layer(x[:, :11]).state
    alone = layer(x[1:2, :11]).state

    def pick(state: Any) -> Any:
        if isinstance(state, Tensor):
            return state[1:2]
        parts = [pick(part) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)

    got, want = layer(x[1:2, 11:], pick(batch)), layer(x[1:2, 11:], alone)
    torch.testing.assert_close(got.y, want.y)


@pytest.mark.parametrize(
    ("shape", "words"),
    [((2, 5), "must be"), ((2, 0, 16), "time >= 1"), ((2, 5, 8), "16"), ((1, 2, 5, 16), "must be")],
)
def test_input_of_a_wrong_shape_is_refused(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        mixer("lmm")(floats(*shape))


def test_states_masks_and_borders_that_do_not_fit_are_refused() -> None:
    layer = mixer("mac")
    x = floats(2, 5, 16)
    with pytest.raises(UserError, match="3 rows and the input 2"):
        layer(x, layer.init_state(3))
    with pytest.raises(UserError, match="mask has shape"):
        layer(x, mask=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(UserError, match="packed into one row"):
        layer(x, cu_seqlens=torch.tensor([0, 5]))
    with pytest.raises(UserError, match="must rise from 0 to 5"):
        layer(x[:1], cu_seqlens=torch.tensor([0, 3, 3, 5]))


def test_a_plan_is_cut_once_and_shared() -> None:
    plan = Plan(make_layout(torch.zeros(2, dtype=torch.int64), 20))
    rule = RULES["titans"]
    assert plan.for_rule(rule) is plan.for_rule(rule)
    assert plan.pieces(8) is plan.pieces(8)
    assert [piece.plan.layout.length.tolist() for piece in plan.pieces(8).parts] == [[8, 8], [8, 8], [4, 4]]


def test_pieces_hold_what_lies_in_each_row_s_next_segment() -> None:
    plan = Plan(make_layout(torch.tensor([6, 3]), 9))
    first, second = plan.pieces(8).parts
    assert first.plan.layout.length.tolist() == [2, 5]
    assert second.plan.layout.length.tolist() == [7, 4]
    assert (first.fresh.tolist(), second.fresh.tolist()) == ([False, False], [True, True])
    assert (first.opens, second.opens) == (False, True)
    assert [piece.plan.layout.end.tolist() for piece in (first, second)] == [[8, 8], [15, 12]]
    x = floats(2, 3, 9, 4)
    torch.testing.assert_close(plan.pieces(8).join(plan.pieces(8).cut(x)), x)


def test_layers_read_any_floats_not_only_tokens() -> None:
    """A sensor's samples, straight into a memory and into an attention."""
    time = torch.linspace(0, 6, 50)
    signal = torch.stack([time.sin(), time.cos(), time], -1).expand(2, -1, -1)
    for layer in (MemoryLayer(3, 1, RULES["titans_linear"], head_dim=4), SlidingWindowAttention(3, 1, 8)):
        reading = stirred(layer)(signal)
        assert reading.y.shape == signal.shape
        assert reading.y.isfinite().all()
