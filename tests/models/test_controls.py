"""Controls change what their names say and nothing else, and never the model that they are taken from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastweights.core import presets
from fastweights.core.layout import make_layout
from fastweights.core.rule import Rule
from fastweights.errors import UserError
from fastweights.layers.conformance import memories
from fastweights.layers.memory import MemoryLayer, split_heads
from fastweights.models.baselines import CONTENDERS, contender
from fastweights.models.config import ModelConfig, Wiring
from fastweights.models.controls import CONTROLS, RESET, controlled, defined, forget
from fastweights.models.language_model import LanguageModel

SMALL = ModelConfig(
    vocab_size=20, dim=16, heads=2, window=8, segment=16, convolution=1, gate_threshold=0.0, forget_start=-1.0
)


def model(rule: Rule | None = None, wiring: Wiring = "lmm") -> LanguageModel:
    torch.manual_seed(0)
    config = replace(SMALL, wiring=wiring, rule=rule or replace(presets.titans(chunk_size=4), clip=1.0))
    return LanguageModel(config).double().eval()


def ids(length: int = 24, seed: int = 1) -> Tensor:
    return torch.randint(0, 20, (2, length), generator=torch.Generator().manual_seed(seed))


def first_layer(found: LanguageModel) -> MemoryLayer:
    return next(module for module in found.modules() if isinstance(module, MemoryLayer))


def weights_after(found: LanguageModel, read: Tensor) -> list[Tensor]:
    return [w for memory in memories(found(read).state) for w in memory.dual]


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.parametrize("wiring", ["lmm", "mac", "mag", "mal"])
@torch.no_grad()
def test_a_control_changes_the_answers_and_not_the_model(name: str, wiring: Wiring) -> None:
    plain = model(wiring=wiring)
    before = plain.fingerprint()
    if defined(name, plain) and name != RESET:
        assert not torch.equal(controlled(name, plain)(ids()).logits, plain(ids()).logits)
    assert plain.fingerprint() == before


@torch.no_grad()
def test_off_leaves_each_token_alone() -> None:
    off, other = controlled("off", model()), ids()
    other[:, 3] = (other[:, 3] + 1) % 20
    changed = (off(ids()).logits != off(other).logits).any(-1)
    assert changed.any(0).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("rule", [presets.titans(chunk_size=4), presets.gated_deltanet(), presets.linear_attention()])
@torch.no_grad()
def test_frozen_memories_stay_as_they_began(rule: Rule) -> None:
    frozen = controlled("frozen", model(rule))
    start = [w for memory in memories(frozen.init_state(2)) for w in memory.dual]
    for now, before in zip(weights_after(frozen, ids()), start, strict=True):
        torch.testing.assert_close(now, before, rtol=0, atol=0)
    assert any(bool((now != w).any()) for now, w in zip(weights_after(model(rule), ids()), start, strict=True))


@torch.no_grad()
def test_ascent_makes_the_same_first_step_the_other_way() -> None:
    plain = model(presets.deltanet())
    first = ids(1)
    start = memories(plain.init_state(2))[0].dual[0]
    down, up = (memories(found(first).state)[0].dual[0] for found in (plain, controlled("ascent", plain)))
    assert bool((down != start).any())
    torch.testing.assert_close(up - start, start - down)


@torch.no_grad()
def test_a_query_is_a_key() -> None:
    layer = first_layer(controlled("query is key", model()))
    x, state = torch.randn(2, 5, 16, dtype=torch.float64), layer.init_state(2)
    mixed, _ = layer.convolution(layer.qkv(x), state.tail, make_layout(layer.position(state), 5))
    q, k, _ = split_heads(mixed, layer.heads, layer.parts, layer.rule.normalise_qk)
    torch.testing.assert_close(q, k, rtol=0, atol=0)


@pytest.mark.parametrize("wiring", ["lmm", "mac"])
@torch.no_grad()
def test_after_a_reset_only_what_stands_beside_the_memory_remembers(wiring: Wiring) -> None:
    plain = model(wiring=wiring)
    state = forget(plain, plain(ids(32)).state)
    assert plain.position(state).tolist() == [32, 32]
    fresh = memories(plain.init_state(2))
    for now, new in zip(memories(state), fresh, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(now.dual + now.momentum, new.dual + new.momentum, strict=True))
    if wiring == "lmm":  # A chunk begins here, and there is no convolution: the next tokens are read as the first ones.
        torch.testing.assert_close(plain(ids(9, 2), state).logits, plain(ids(9, 2)).logits)
    else:
        assert torch.equal(state[0].start[0], plain.init_state(2)[0].start[0])


def test_where_controls_say_nothing_they_are_refused() -> None:
    found = {name: LanguageModel(contender(name, SMALL)) for name in CONTENDERS}
    where = {control: {name for name in found if not defined(control, found[name])} for control in CONTROLS}
    none = {"transformer++", "sliding_window", "lstm", "mamba"}
    assert where["off"] == none | {"mac", "mag", "hope_attention"}
    assert where[RESET] == where["frozen"] == where["ascent"] == none
    assert where["query is key"] == none | {"hope", "hope_attention"}
    assert not defined("query is key", model(presets.rwkv7()))
    assert not defined("query is key", model(presets.hgrn2()))
    with pytest.raises(UserError, match="there is no control 'on'"):
        defined("on", found["lmm"])
    with pytest.raises(UserError, match="not defined for a model of wiring 'mag'"):
        controlled("off", found["mag"])


def hope(**changes: object) -> LanguageModel:
    torch.manual_seed(0)
    shape = replace(SMALL, wiring="self_modifying", rule=presets.hope(4), generator_chunk=4, levels="4,8")
    return LanguageModel(replace(shape, **changes)).double().eval()  # type: ignore[arg-type]


@torch.no_grad()
def test_a_frozen_hope_keeps_its_memories_and_its_levels() -> None:
    frozen = controlled("frozen", hope())
    start, end = frozen.init_state(2), frozen(ids()).state
    for now, before in zip(memories(end), memories(start), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(now.dual, before.dual, strict=True))
    assert frozen.learner is not None
    assert frozen.learner.moved(end) == [0.0, 0.0]
    plain = hope()
    assert plain.learner is not None
    assert min(plain.learner.moved(plain(ids()).state)) > 0.0


@torch.no_grad()
def test_levels_climb_under_ascent() -> None:
    """After the first window a level stands on the other side of where it began, and the memory beside it as well."""
    for config in ({"wiring": "attention", "rule": ModelConfig.rule}, {}):
        down, up = hope(**config), controlled("ascent", hope(**config))
        first = ids(5)
        moved = [m(first).state.blocks[-1].offsets[1] for m in (down, up)]
        assert bool(moved[0].any())
        if config:
            torch.testing.assert_close(moved[0], -moved[1], rtol=1e-9, atol=1e-12)
        assert float((moved[0] * moved[1]).sum()) < 0.0


@torch.no_grad()
def test_a_reset_takes_the_levels_back_too() -> None:
    plain = hope()
    state = forget(plain, plain(ids(32)).state)
    assert plain.learner is not None
    assert plain.learner.moved(state) == [0.0, 0.0]  # type: ignore[arg-type]
    assert not any(bool(x.any()) for x in state.learner.sums)  # type: ignore[attr-defined]
    assert plain.position(state).tolist() == [32, 32]
    assert bool(torch.isfinite(plain(ids(9), state).logits).all())
    # Nothing is learned from what was read before: not when the window ends, nor from a window that had begun.
    for before in (32, 30):
        short = hope(levels="8,16")
        state = forget(short, short(ids(before)).state)
        assert short.learner is not None
        assert short.learner.moved(short(ids(3), state).state) == [0.0, 0.0]
        assert short.learner.moved(short(ids(20), state).state)[0] > 0
    attention = hope(wiring="attention", rule=ModelConfig.rule)
    before = attention(ids(32)).state
    after = forget(attention, before)
    for now, old in zip(memories(after[0]), memories(before[0]), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(now.extra, old.extra, strict=True))
