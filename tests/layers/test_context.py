from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.layers.test_attention import spin
from tests.layers.wirings import RULES, floats
from torch import Tensor

from fastweights.core.engine import init_state, read
from fastweights.core.rule import Rule
from fastweights.errors import UserError
from fastweights.layers.conformance import stirred
from fastweights.layers.context import MAC
from fastweights.layers.memory import MemoryLayer

SEGMENT = 8


def layer_of(rule: Rule, pooled: int | None = None, persistent: int = 3, memory_heads: int = 2) -> MAC:
    return stirred(MAC(MemoryLayer(12, memory_heads, rule), 2, SEGMENT, persistent, pooled).double())


def queries_by_hand(layer: MAC, x: Tensor) -> Tensor:
    """Recall queries ``[T, H, key_dim]`` of one document."""
    recall = layer.recall
    kernel = recall.convolution.weight.flip(0).T.unsqueeze(1)
    before = F.pad(recall.query(x).T, (recall.convolution.size - 1, 0))
    mixed = F.silu(F.conv1d(before.unsqueeze(0), kernel, groups=kernel.shape[0])[0].T).unflatten(-1, recall.shape)
    return mixed / mixed.norm(dim=-1, keepdim=True)


def by_hand(layer: MAC, x: Tensor, pooled: int | None) -> Tensor:
    """Titans eqs. 21-25 for one row, one token and one head at a time; recalled tokens are seen from their own on."""
    heads, size = layer.heads.heads, layer.heads.head_dim
    queries = queries_by_hand(layer, x)
    memory = layer.memory.init_state(1)
    start, answers, group = memory.memory.dual, [], SEGMENT // (pooled or SEGMENT)

    def parts(rows: Tensor) -> list[Tensor]:
        return [part.unflatten(-1, (heads, size)) for part in layer.heads.qkv(rows).chunk(3, -1)]

    def recalled(q: Tensor) -> Tensor:
        said = read(layer.memory.rule, layer.memory.initial_weights(), start, q.transpose(0, 1).unsqueeze(0))[0]
        said = said.transpose(0, 1).flatten(1)
        token = layer.recall.out(said)
        scale = (token.square().mean(-1, keepdim=True) + layer.recall.norm.eps).sqrt()
        return token / scale * layer.recall.norm.weight

    for t in range(x.shape[0]):
        segment, slot = divmod(t, SEGMENT)
        first = segment * SEGMENT
        if slot == 0:
            start = memory.memory.dual
        if pooled is None:
            tokens, places = recalled(queries[first : t + 1]), list(range(slot + 1))
        elif segment == 0:
            tokens, places = x[:0], []
        else:
            means = queries[first - SEGMENT : first].unflatten(0, (pooled, group)).mean(1)
            tokens = recalled(means / means.norm(dim=-1, keepdim=True))
            places = list(range(-pooled, 0))
        seen = torch.cat([tokens, x[first : t + 1]])
        places += range(slot + 1)
        (q, _, _), (_, k, v) = parts(x[t : t + 1]), parts(seen)
        _, fixed_k, fixed_v = parts(layer.heads.persistent) if layer.heads.persistent is not None else parts(x[:0])
        mixed = []
        for h in range(heads):
            scores = [spin(q[0, h], slot) @ spin(k[j, h], place) for j, place in enumerate(places)]
            scores += list(fixed_k[:, h] @ q[0, h])
            weights = torch.softmax(torch.stack(scores) / size**0.5, 0)
            mixed.append(weights @ torch.cat([v[:, h], fixed_v[:, h]]))
        y = layer.heads.out(torch.cat(mixed))
        written = layer.memory(y[None, None], memory)
        memory = written.state
        answers.append(layer.gate(y, written.y[0, 0]))
    return torch.stack(answers)


@pytest.mark.parametrize("persistent", [0, 3])
@pytest.mark.parametrize("pooled", [None, 4])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_it_equals_the_equations_written_by_hand(rule: Rule, pooled: int | None, persistent: int) -> None:
    layer = layer_of(rule, pooled, persistent)
    x = floats(2, 21, 12)
    torch.testing.assert_close(
        layer(x).y, torch.stack([by_hand(layer, row, pooled) for row in x]), rtol=1e-9, atol=1e-9
    )


def test_memory_and_attention_may_have_different_numbers_of_heads() -> None:
    layer = layer_of(RULES["titans"], pooled=2, memory_heads=3)
    x = floats(1, 21, 12)
    torch.testing.assert_close(layer(x).y[0], by_hand(layer, x[0], 2), rtol=1e-9, atol=1e-9)


def test_the_memory_of_the_segments_before_is_what_reaches_a_segment() -> None:
    """Without its recall a segment would answer the same whatever was read before it, but for the gate's memory."""
    layer = layer_of(RULES["titans_linear"])
    x = floats(2, 16, 12)
    x[1, SEGMENT:] = x[0, SEGMENT:]
    attended: list[Tensor] = []
    layer.gate.register_forward_hook(lambda module, given, result: attended.append(given[0].detach()))
    layer(x)
    assert (attended[1][0] - attended[1][1]).abs().max() > 1e-6
    attended.clear()
    layer.recall.out.weight.data.zero_()
    layer(x)
    torch.testing.assert_close(attended[1][0, 4:], attended[1][1, 4:])


def test_the_first_segment_of_a_document_has_no_pooled_tokens() -> None:
    layer = layer_of(RULES["titans"], pooled=4)
    x = floats(1, 2 * SEGMENT, 12)
    before = layer(x).y
    layer.recall.out.weight.data.add_(1.0)
    after = layer(x).y
    assert torch.equal(after[:, :SEGMENT], before[:, :SEGMENT])
    assert not torch.equal(after[:, SEGMENT:], before[:, SEGMENT:])


def test_the_state_holds_the_memory_at_the_segment_s_start_and_nothing_of_an_old_document() -> None:
    layer = layer_of(RULES["titans"])
    x = floats(1, 19, 12)
    start = layer(x[:, :16]).state.memory.memory.dual
    for got, want in zip(layer(x).state.start, start, strict=True):
        torch.testing.assert_close(got, want)
    state = layer(x, cu_seqlens=torch.tensor([0, 18, 19])).state
    assert not state.segment.keys[:, :, 1:].any()
    assert not state.recalled.tokens.keys[:, :, 1:].any()
    for got, want in zip(
        state.start, init_state(layer.memory.rule, layer.memory.initial_weights(), 1).dual, strict=True
    ):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("segment", "pooled", "words"),
    [
        (6, None, "segment 6 must be a multiple of the rule's chunk size 4"),
        (0, None, "segment 0"),
        (8, 3, "must divide the segment 8; it is 3"),
        (8, 0, "must divide"),
        (8, 16, "must divide"),
    ],
)
def test_sizes_that_do_not_divide_each_other_are_refused(segment: int, pooled: int | None, words: str) -> None:
    with pytest.raises(UserError, match=words):
        MAC(MemoryLayer(12, 2, RULES["titans"]), 2, segment, 3, pooled)


def test_recall_starts_out_asking_as_the_memory_itself_does() -> None:
    memory = MemoryLayer(12, 3, RULES["titans"])
    layer = MAC(memory, 2, SEGMENT)
    assert torch.equal(layer.recall.query.weight, memory.qkv.weight[:12])
    assert layer.recall.query.weight.data_ptr() != memory.qkv.weight.data_ptr()
