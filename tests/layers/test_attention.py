from __future__ import annotations

import pytest
import torch
from tests.layers.wirings import floats
from torch import Tensor

from fastweights.errors import UserError
from fastweights.layers.attention import SlidingWindowAttention, rotate
from fastweights.layers.conformance import stirred


def spin(x: Tensor, place: int) -> Tensor:
    """Rotary embedding of one vector, as complex numbers (arXiv 2104.09864, section 3.2)."""
    half = x.shape[-1] // 2
    angle = place * 10_000.0 ** (-torch.arange(half, dtype=x.dtype) / half)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], -1)


def by_hand(layer: SlidingWindowAttention, x: Tensor) -> Tensor:
    """Titans eqs. 27 and 31 for one row, one query and one head at a time."""
    heads, size = layer.heads.heads, layer.heads.head_dim

    def parts(rows: Tensor) -> list[list[Tensor]]:
        return [list(part.unflatten(-1, (heads, size)).unbind(-2)) for part in layer.heads.qkv(rows).chunk(3, -1)]

    q, k, v = parts(x)
    answers = []
    first = [] if layer.heads.persistent is None else [parts(layer.heads.persistent)]
    for t in range(x.shape[0]):
        row = []
        for h in range(heads):
            seen = range(max(0, t - layer.window + 1), t + 1)
            scores = [spin(q[h][t], t) @ spin(k[h][s], s) for s in seen]
            values = [v[h][s] for s in seen]
            for _, keys, theirs in first:
                scores += list(keys[h] @ q[h][t])
                values += list(theirs[h])
            weights = torch.softmax(torch.stack(scores) / size**0.5, 0)
            row.append((weights.unsqueeze(-1) * torch.stack(values)).sum(0))
        answers.append(torch.cat(row))
    return layer.heads.out(torch.stack(answers))


@pytest.mark.parametrize("persistent", [0, 2])
@pytest.mark.parametrize("window", [1, 4, 30])
def test_it_equals_attention_written_by_hand(window: int, persistent: int) -> None:
    layer = stirred(SlidingWindowAttention(12, 2, window, persistent).double())
    x = floats(2, 17, 12)
    torch.testing.assert_close(layer(x).y, torch.stack([by_hand(layer, row) for row in x]))


def test_rotary_scores_depend_on_distance_alone() -> None:
    q, k = floats(1, 8), floats(1, 8)
    scores = [rotate(q, torch.tensor([p + 3])) @ rotate(k, torch.tensor([p])).T for p in (-7, 0, 2, 900)]
    for score in scores[1:]:
        torch.testing.assert_close(score, scores[0])


def test_rotation_takes_an_index_for_each_row() -> None:
    x, index = floats(3, 2, 5, 8), torch.randint(0, 50, (3, 1, 5))
    got = rotate(x, index)
    torch.testing.assert_close(got[1], rotate(x[1], index[1, 0]))


def test_nothing_older_than_the_window_matters() -> None:
    layer = stirred(SlidingWindowAttention(8, 2, window=4).double())
    x = floats(1, 12, 8)
    other = x.clone()
    other[:, :5] = floats(1, 5, 8)
    assert torch.equal(layer(other).y[:, 8:], layer(x).y[:, 8:])
    assert not torch.equal(layer(other).y[:, 7], layer(x).y[:, 7])


@pytest.mark.parametrize(
    ("dim", "heads", "window", "words"), [(10, 3, 4, "not divisible by 3 heads"), (8, 2, 0, "at least 1 token")]
)
def test_sizes_that_make_no_sense_are_refused(dim: int, heads: int, window: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        SlidingWindowAttention(dim, heads, window)
