"""Layouts and grids against a plain walk over the tokens, for random masks, documents, positions and sizes."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastweights.core.layout import Layout, from_grid, make_grid, make_layout, pack, to_grid, unpack
from fastweights.errors import UserError


class Call(NamedTuple):
    """One call: where its rows stand, which slots hold tokens, and where documents begin."""

    position: list[int]
    mask: list[list[bool]]
    borders: list[int] | None

    @property
    def time(self) -> int:
        return len(self.mask[0])

    def layout(self) -> Layout:
        borders = None if self.borders is None else torch.tensor(self.borders)
        return make_layout(torch.tensor(self.position), self.time, torch.tensor(self.mask), borders)


class Token(NamedTuple):
    """A real token: its slot in the array, its position in its document, and whether a document begins with it."""

    slot: int
    position: int
    begins: bool


def walk(call: Call) -> list[list[Token]]:
    """The real tokens of every row, one after the other."""
    rows = []
    for row, mask in enumerate(call.mask):
        position, document, found = call.position[row], 0, []
        for slot, real in enumerate(mask):
            if not real:
                continue
            # The document that this slot lies in; a document without a real token is nobody's.
            here = 0 if call.borders is None else sum(border <= slot for border in call.borders[1:])
            begins = here != document
            position, document = (0 if begins else position), here
            found.append(Token(slot, position, begins))
            position += 1
        rows.append(found)
    return rows


@st.composite
def calls(draw: st.DrawFn, may_hold_documents: bool = True) -> Call:
    documents = may_hold_documents and draw(st.booleans())
    batch = 1 if documents else draw(st.integers(1, 3))
    time = draw(st.integers(1, 12))
    position = draw(st.lists(st.integers(0, 9), min_size=batch, max_size=batch))
    mask = draw(st.lists(st.lists(st.booleans(), min_size=time, max_size=time), min_size=batch, max_size=batch))
    if draw(st.booleans()):
        mask = [[True] * time for _ in mask]
    borders = sorted({0, time, *draw(st.lists(st.integers(1, time), max_size=3))}) if documents else None
    return Call(position, mask, borders)


@given(calls())
def test_layout_packs_the_real_tokens(call: Call) -> None:
    layout, rows = call.layout(), walk(call)
    slots = torch.arange(call.time).expand(len(rows), -1).unsqueeze(-1)
    packed = pack(layout, slots + 1)[..., 0]
    for row, tokens in enumerate(rows):
        count = len(tokens)
        assert layout.length[row] == count
        assert packed[row].tolist() == [token.slot + 1 for token in tokens] + [0] * (call.time - count)
        assert layout.position[row, :count].tolist() == [token.position for token in tokens]
        assert layout.end[row] == (tokens[-1].position + 1 if tokens else call.position[row])
        if layout.reset is not None:
            assert layout.reset[row, :count].tolist() == [token.begins for token in tokens]
        else:
            assert not any(token.begins for token in tokens)
        if layout.real is not None:
            assert layout.real[row].tolist() == [True] * count + [False] * (call.time - count)


@given(calls())
def test_unpack_undoes_pack(call: Call) -> None:
    layout = call.layout()
    x = torch.arange(len(call.mask) * call.time * 2).reshape(len(call.mask), call.time, 2) + 1
    want = torch.where(torch.tensor(call.mask).unsqueeze(-1), x, 0)
    assert torch.equal(unpack(layout, pack(layout, x)), want)


@given(calls(), st.integers(1, 6), st.booleans())
def test_a_grid_holds_every_token_once_in_its_chunk(call: Call, size: int, blocks: bool) -> None:
    layout, rows = call.layout(), walk(call)
    grid = make_grid(layout, size, blocks)
    packed = torch.arange(call.time).expand(len(rows), 1, -1)
    cells = to_grid(grid, packed)[:, :, 0].movedim(0, 1)
    slot = torch.ones_like(cells, dtype=torch.bool) if grid.slot is None else grid.slot
    assert cells.shape == (len(rows), grid.chunks, grid.width) == slot.shape
    assert grid.width <= size
    for row, tokens in enumerate(rows):
        chunks = [cells[row, n][slot[row, n]].tolist() for n in range(grid.chunks)]
        assert [i for chunk in chunks for i in chunk] == list(range(len(tokens)))
        assert cells[row][~slot[row]].tolist() == [0] * int((~slot[row]).sum())
        for n, chunk in enumerate(chunks):
            # Real slots come first, so that a chunk's first slot says where it stands.
            assert slot[row, n].tolist() == [True] * len(chunk) + [False] * (grid.width - len(chunk))
            first = tokens[chunk[0]] if chunk else None
            opens = first is not None and (first.begins or (not blocks and first.position % size == 0))
            if not blocks:
                assert bool(grid.fresh[row, n]) == opens
                assert len({tokens[i].position // size for i in chunk}) <= 1
            assert bool(grid.reset is not None and grid.reset[row, n]) == (first is not None and first.begins)
            assert not any(tokens[i].begins for i in chunk[1:])
            assert not grid.aligned or blocks or opens


@given(calls(), st.integers(1, 6), st.booleans())
def test_from_grid_undoes_to_grid(call: Call, size: int, blocks: bool) -> None:
    layout = call.layout()
    grid = make_grid(layout, size, blocks)
    batch = len(call.mask)
    x = torch.arange(batch * 2 * call.time * 3).reshape(batch, 2, call.time, 3) + 1
    back = from_grid(grid, to_grid(grid, x))
    for row in range(batch):
        count = int(layout.length[row])
        assert torch.equal(back[row, :, :count], x[row, :, :count])


@given(calls(may_hold_documents=False), st.data())
def test_any_split_ends_at_the_same_position(call: Call, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, call.time))
    mask = torch.tensor(call.mask)
    first = make_layout(torch.tensor(call.position), cut, mask[:, :cut])
    second = make_layout(first.end, call.time - cut, mask[:, cut:])
    assert torch.equal(second.end, call.layout().end)


@given(calls(), st.integers(1, 6))
def test_a_chunk_that_is_not_full_is_a_boundary_of_the_call(call: Call, size: int) -> None:
    """Inside a document, chunks between two others are full: borders are counted in real tokens, not in slots."""
    grid = make_grid(call.layout(), size)
    for row, tokens in enumerate(walk(call)):
        counts = [grid.width] * grid.chunks if grid.slot is None else grid.slot[row].sum(1).tolist()
        counts = [count for count in counts if count]
        begins = [token.begins for token in tokens]
        for n, count in enumerate(counts[1:-1], start=1):
            end = sum(counts[: n + 1])
            assert count == size or begins[end]


def test_a_full_call_at_a_chunk_border_is_a_plain_reshape() -> None:
    grid = make_grid(make_layout(torch.tensor([4, 8]), 8), 4)
    assert grid.source is None
    assert grid.slot is None
    assert grid.inverse is None
    assert grid.aligned
    x = torch.arange(2 * 8).reshape(2, 1, 8, 1)
    assert torch.equal(to_grid(grid, x), x.reshape(2, 1, 2, 4, 1).movedim(2, 0))


def test_a_mask_of_all_tokens_costs_nothing() -> None:
    layout = make_layout(torch.tensor([0]), 3, torch.ones(1, 3, dtype=torch.bool))
    assert layout.real is None
    assert layout.order is None
    assert layout.present is None


def test_right_padding_needs_no_permutation() -> None:
    layout = make_layout(torch.tensor([0]), 3, torch.tensor([[True, True, False]]))
    assert layout.order is None
    assert layout.real is not None


def test_what_padding_holds_never_reaches_the_packed_stream() -> None:
    layout = make_layout(torch.tensor([0]), 3, torch.tensor([[False, True, False]]))
    x = torch.tensor([[[torch.nan], [1.0], [torch.inf]]])
    assert pack(layout, x)[0, :, 0].tolist() == [1.0, 0.0, 0.0]
    assert unpack(layout, torch.full((1, 3, 1), torch.nan))[0, ::2, 0].tolist() == [0.0, 0.0]


def borders(*values: int) -> Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize(
    ("batch", "mask", "cu_seqlens", "words"),
    [
        (2, torch.ones(2, 3, dtype=torch.bool), None, "it must be [batch, time] = [2, 4]"),
        (1, torch.ones(4, dtype=torch.bool), None, "mask has shape (4,)"),
        (2, None, borders(0, 4), "the batch has 2 rows, not 1"),
        (1, None, borders(0), "must rise from 0 to 4"),
        (1, None, borders(0, 3), "must rise from 0 to 4"),
        (1, None, borders(1, 4), "must rise from 0 to 4"),
        (1, None, borders(0, 2, 2, 4), "must rise from 0 to 4"),
        (1, None, borders(0, 3, 2, 4), "must rise from 0 to 4"),
    ],
)
def test_shapes_and_borders_that_make_no_sense_are_refused(
    batch: int, mask: Tensor | None, cu_seqlens: Tensor | None, words: str
) -> None:
    with pytest.raises(UserError) as refusal:
        make_layout(torch.zeros(batch, dtype=torch.int64), 4, mask, cu_seqlens)
    assert words in str(refusal.value)
