from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.layers.wirings import RULES, WIRINGS, config

from fastweights.core.properties import tensors
from fastweights.errors import UserError
from fastweights.layers.conformance import memories, stirred
from fastweights.layers.context import MAC
from fastweights.models.config import ModelConfig
from fastweights.models.language_model import LanguageModel, detach_state, flatten_state, unflatten_state


def model_of(wiring: str, rule: str = "titans") -> LanguageModel:
    return stirred(LanguageModel(config(wiring, rule)))


def tokens(batch: int, time: int) -> torch.Tensor:
    return torch.randint(0, 50, (batch, time))


@pytest.mark.parametrize("wiring", WIRINGS)
def test_encode_then_logits_is_forward(wiring: str) -> None:
    model, ids = model_of(wiring), tokens(2, 9)
    encoded, output = model.encode(ids, surprise=True), model(ids, surprise=True)
    assert encoded.hidden.shape == (2, 9, 16)
    assert torch.equal(model.logits(encoded.hidden), output.logits)
    assert len(output.surprise) == 2
    assert output.surprise[0].loss.shape == (2, 2, 9)
    assert model(ids).surprise == ()
    assert model.position(output.state).tolist() == [9, 9]


def test_surprise_streams_of_a_padded_call_lie_where_their_tokens_do() -> None:
    model, ids = model_of("mag"), tokens(1, 6)
    mask = torch.tensor([[False, True, True, False, True, True, False, True, True]])
    padded = torch.zeros(1, 9, dtype=torch.int64)
    padded[mask] = ids[0]
    want, got = model(ids, surprise=True).surprise, model(padded, mask=mask, surprise=True).surprise
    torch.testing.assert_close(got[1].loss[:, :, mask[0]], want[1].loss)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_state_can_be_taken_apart_saved_and_put_together(wiring: str) -> None:
    model, ids = model_of(wiring), tokens(2, 25)
    state = model(ids[:, :11]).state
    flat = flatten_state(state)
    assert all(name.split(".")[0] in "01" for name in flat)
    bytes_before = {name: t.detach().numpy().tobytes() for name, t in flat.items()}
    saved = {
        name: torch.frombuffer(bytearray(data), dtype=flat[name].dtype).reshape(flat[name].shape)
        for name, data in bytes_before.items()
    }
    again = unflatten_state(model.init_state(2), saved)
    assert type(again[0]) is type(state[0])
    assert torch.equal(model(ids[:, 11:], again).logits, model(ids[:, 11:], state).logits)
    after = {name: t.detach().numpy().tobytes() for name, t in flatten_state(state).items()}
    assert after == bytes_before
    assert not any(t.requires_grad for t in tensors(detach_state(state)))


@pytest.mark.parametrize("wiring", WIRINGS)
def test_activation_checkpointing_gives_identical_gradients(wiring: str) -> None:
    model, ids = model_of(wiring), tokens(2, 19)
    again = copy.deepcopy(model)
    again.recompute = True
    for one in (model, again):
        one(ids, one.init_state(2), surprise=True).logits.square().mean().backward()
    for (name, p), q in zip(model.named_parameters(), again.parameters(), strict=True):
        assert p.grad is not None, name
        assert q.grad is not None, name
        assert torch.equal(p.grad, q.grad), name


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_bfloat16_model_keeps_its_memory_in_float32_and_trains(wiring: str) -> None:
    model, ids = model_of(wiring, "titans_swiglu").bfloat16(), tokens(2, 19)
    output = model(ids)
    assert output.logits.dtype == torch.bfloat16
    assert {t.dtype for m in memories(output.state) for t in tensors(m)} == {torch.float32, torch.int64}
    step = model(ids[:, :1], output.state)
    torch.nn.functional.cross_entropy(step.logits[:, 0].float(), ids[:, 1]).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_truncated_backpropagation_learns_across_batches() -> None:
    model, ids = model_of("mac"), tokens(2, 40)
    optimizer = torch.optim.AdamW(model.parameter_groups(0.1), lr=1e-3)
    state = model.init_state(2)
    for piece in ids.split(10, 1):
        output = model(piece, state)
        loss = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), piece[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state = detach_state(output.state)
    assert model.position(state).tolist() == [40, 40]


def test_weight_decay_spares_gates_initial_memories_norms_and_embeddings() -> None:
    model = model_of("mac")
    decayed, kept = model.parameter_groups(0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    inside = {names[id(p)] for p in decayed["params"]}
    outside = {names[id(p)] for p in kept["params"]}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert inside | outside == set(names.values())
    assert not inside & outside
    for part in ("initial", "gates", "norm", "convolution", "embedding", "head.weight", "persistent"):
        assert not [name for name in inside if part in name], part
    for part in ("qkv.weight", "feedforward.down.weight", "recall.query.weight", "gate.out.weight"):
        assert [name for name in inside if part in name], part


@pytest.mark.parametrize(
    ("wiring", "decays", "spared"),
    [
        ("lstm", {"cell.weight_ih_l0", "cell.weight_hh_l0", "out.weight"}, {"cell.bias_ih_l0"}),
        ("mamba", {"into.weight", "select.weight", "step.weight", "out.weight"}, {"log_decay", "skip", "step.bias"}),
        ("attention", {"heads.qkv.weight", "heads.out.weight"}, set()),
    ],
)
def test_weight_decay_of_mixers_without_a_memory(wiring: Any, decays: set[str], spared: set[str]) -> None:
    model = LanguageModel(ModelConfig(vocab_size=9, dim=16, depth=1, heads=2, wiring=wiring))
    decayed, kept = model.parameter_groups(0.1)
    names = {id(p): name.removeprefix("blocks.0.mixer.") for name, p in model.named_parameters()}
    inside, outside = ({names[id(p)] for p in group["params"]} for group in (decayed, kept))
    assert decays == {name for name in inside if not name.startswith("blocks.")}
    assert spared <= outside


def test_tied_models_share_one_table() -> None:
    model = LanguageModel(replace(config("lmm"), tied=True))
    assert model.head.weight is model.embedding.weight
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in model_of("lmm").parameters()) - 50 * 16


def test_a_fingerprint_names_the_configuration_and_every_parameter() -> None:
    model = model_of("lmm")
    before = model.fingerprint()
    assert copy.deepcopy(model).fingerprint() == before
    assert len(before) == 64
    with torch.no_grad():
        model.blocks[1].get_parameter("mixer.out.weight")[3, 5] += 1e-3
    assert model.fingerprint() != before


@pytest.mark.parametrize(
    ("ids", "words"),
    [(torch.zeros(3, dtype=torch.int64), "batch, time"), (torch.zeros(2, 0, dtype=torch.int64), ">= 1")],
)
def test_ids_of_a_wrong_shape_are_refused(ids: torch.Tensor, words: str) -> None:
    with pytest.raises(UserError, match=words):
        model_of("lmm")(ids)


def test_a_state_of_other_rows_is_refused() -> None:
    model = model_of("mal")
    with pytest.raises(UserError, match="3 rows and the input 2"):
        model(tokens(2, 4), model.init_state(3))


def test_rules_of_every_tier_are_tried() -> None:
    assert {rule.tier for rule in RULES.values()} == {"dual", "delta"}


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_model_that_starts_by_copying_reads_and_trains(wiring: str) -> None:
    model = LanguageModel(replace(config(wiring, "titans_linear"), start="induction"))
    model(tokens(2, 19)).logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    # The first token's key is the query of no token: next to nothing, which must not be felt more than all the rest.
    assert max(float(p.grad.norm()) for p in model.parameters() if p.grad is not None) < 50
    for block in model.blocks:
        mixer = block.get_submodule("mixer")
        if isinstance(mixer, MAC):
            assert torch.equal(mixer.recall.query.weight, mixer.memory.qkv.weight[:16])
