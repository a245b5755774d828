"""The continuum memory system: what its levels learn, when, and that nothing else changes."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastweights.core import presets
from fastweights.errors import UserError
from fastweights.layers.continuum import Continuum
from fastweights.models.config import ModelConfig
from fastweights.models.conformance import check_model, small_config
from fastweights.models.hope import HopeState, stack_levels
from fastweights.models.language_model import LanguageModel, detach_state, flatten_state
from fastweights.train.reading import memory_norm

PLAIN = replace(small_config("lmm", presets.deltanet()), vocab_size=20)
HOPE = replace(small_config("self_modifying", presets.hope(4)), vocab_size=20, generator_chunk=2)
ATTENTION = replace(PLAIN, wiring="attention", rule=ModelConfig.rule)


def ids(rows: int, time: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 20, (rows, time), generator=torch.Generator().manual_seed(seed))


def moved(model: LanguageModel, state: Any) -> list[float]:
    assert model.learner is not None
    return model.learner.moved(state)


SUITES: dict[str, ModelConfig] = {
    "hope": replace(HOPE, levels="4,8"),
    "hope, every token": replace(HOPE, levels="1"),
    "hope, four levels": replace(HOPE, levels="2,4,8,0", depth=1),
    "hope, a long chunk": replace(HOPE, rule=presets.hope(16), generator_chunk=16, levels="64", depth=1),
    "attention, every token": replace(ATTENTION, levels="1", depth=1),
    "attention, a long chunk": replace(ATTENTION, levels="64", depth=1),
    "attention, four levels, momentum": replace(ATTENTION, levels="2,4,8,0", level_optimiser="momentum"),
    "titans, nested": replace(PLAIN, rule=presets.titans(chunk_size=4), levels="3,6,12", level_form="nested"),
    "gate, side by side, muon": replace(
        PLAIN, wiring="mag", levels="5,20", level_form="headwise", level_optimiser="muon"
    ),
    "context": replace(PLAIN, wiring="mac", levels="4,8"),
    "lstm": replace(PLAIN, wiring="lstm", rule=ModelConfig.rule, levels="6", depth=1),
    "mamba": replace(PLAIN, wiring="mamba", rule=ModelConfig.rule, levels="6", depth=1),
    "first order": replace(PLAIN, rule=presets.titans(chunk_size=4), levels="4,8", level_order=1),
    "a long chunk": replace(PLAIN, levels="64,128", depth=1),
}


@pytest.mark.parametrize("name", SUITES)
def test_the_whole_suite(name: str) -> None:
    last = max(SUITES[name].level_chunks)
    lengths = (65, 130) if "long" in name else (5, 9) if "every" in name else (7, 2 * last + 1)
    report = check_model(LanguageModel(SUITES[name]), lengths=lengths, without=[10])
    assert report.ok, report.table()


def test_compiled_parts_and_recomputing_change_nothing() -> None:
    model = LanguageModel(replace(PLAIN, levels="4,8", depth=1))
    report = check_model(model, lengths=(9,), without=range(3, 10))
    assert report.ok, report.table()


def reading_by_hand(model: LanguageModel, text: Tensor) -> tuple[Tensor, list[list[Tensor]]]:
    """One row, window by window, with a plain copy of the model for each: logits, and the weights at the end.

    Only for mixers whose answers need no state from before the window, so of chunks that are as long as the text.
    """
    assert model.learner is not None
    chunks, least = model.learner.chunks, model.learner.least
    weights = [[w.detach().clone() for w in block.continuum.weights()] for block in model.blocks]  # type: ignore[operator,union-attr]
    sums, momenta = ([[torch.zeros_like(w) for w in own] for own in weights] for _ in range(2))
    starts, taken = [list(own) for own in weights], [[[] for _ in own] for own in weights]  # type: ignore[var-annotated]
    sizes = model.config.level_step * torch.sigmoid(model.learner.steps)
    state, out = None, []
    still = LanguageModel(replace(model.config, levels=",".join("0" for _ in chunks))).double()
    still.load_state_dict(model.state_dict())
    for start in range(0, len(text), least):
        for block, own in zip(still.blocks, weights, strict=True):
            for p, w in zip(block.continuum.weights(), own, strict=True):  # type: ignore[operator,union-attr]
                p.data.copy_(w)
        window = text[None, start : start + least]
        labels = text[start + 1 : start + least + 1]
        read = still(window, state)
        out.append(read.logits[0].detach())
        if len(labels) == least:
            loss = F.cross_entropy(read.logits[0], labels, reduction="sum")
            leaves = [p for block in still.blocks for p in block.continuum.weights()]  # type: ignore[operator,union-attr]
            grads = torch.autograd.grad(loss, leaves)
            per = 2 * len(chunks)
            for i, g in enumerate(grads):
                sums[i // per][i % per] += g
            for level, chunk in enumerate(chunks):
                if (start + least) % chunk:
                    continue
                own = [(b, m) for b in range(len(weights)) for m in (2 * level, 2 * level + 1)]
                norm = torch.stack([(sums[b][m] / chunk).square().sum() for b, m in own]).sum().sqrt()
                scale = min(1.0, model.config.level_clip / norm.item())
                for b, m in own:
                    move = scale * sums[b][m] / chunk
                    if model.config.level_optimiser == "momentum":
                        move = momenta[b][m] = 0.9 * momenta[b][m] + move
                    elif model.config.level_optimiser == "muon":
                        move = orthogonal(move)
                    taken[b][m].append(sizes[b, level].item() * move)
                    weights[b][m] = weights[b][m] - taken[b][m][-1]
                    sums[b][m].zero_()
            for b, m in product(range(len(weights)), range(per)):
                slower = (*chunks, 0)[m // 2 + 1]
                if model.config.level_form == "nested" and slower and (start + least) % slower == 0:
                    starts[b][m] = weights[b][m] = starts[b][m] - torch.stack(taken[b][m]).mean(0)
                    taken[b][m].clear()
                    momenta[b][m].zero_()
        state = read.state
        detached = HopeState(*read.state)
        state = type(detached)(*[detach_state(part) for part in detached])
    return torch.cat(out), weights


def orthogonal(m: Tensor) -> Tensor:
    """Newton-Schulz's five steps with Muon's coefficients."""
    x = m.T if m.shape[0] > m.shape[1] else m
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if m.shape[0] > m.shape[1] else x


@pytest.mark.parametrize(
    ("wiring", "options"),
    [
        ("lmm", {}),
        ("lmm", {"level_clip": 0.01}),
        ("lmm", {"level_optimiser": "momentum"}),
        ("lmm", {"level_optimiser": "muon"}),
        ("lmm", {"level_form": "headwise"}),
        ("lmm", {"level_form": "nested"}),
        ("lmm", {"level_form": "nested", "level_optimiser": "momentum", "levels": "4,8,16"}),
        ("self_modifying", {}),
        ("self_modifying", {"level_form": "nested", "level_clip": 0.01}),
    ],
    ids=str,
)
def test_levels_learn_as_eq_71_says(wiring: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    base = PLAIN if wiring == "lmm" else HOPE
    config = replace(base, levels="4,12", gate_threshold=0.0, level_clip=1e9)
    model = LanguageModel(replace(config, **options)).double()
    text = ids(1, 37)[0]
    want, weights = reading_by_hand(model, text)
    with torch.no_grad():
        output = model(text[None])
    torch.testing.assert_close(output.logits[0], want, rtol=1e-10, atol=1e-10)
    for block, own, state in zip(model.blocks, weights, output.state.blocks, strict=True):
        for start, w, offset in zip(block.continuum.weights(), own, state.offsets, strict=True):  # type: ignore[operator,union-attr]
            torch.testing.assert_close(start + offset[0], w, rtol=1e-10, atol=1e-10)


def test_after_reading_every_level_has_moved_and_a_chunk_of_0_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    for config in (HOPE, ATTENTION, PLAIN):
        model = LanguageModel(replace(config, levels="1,4,16,0"))
        with torch.no_grad():
            found = moved(model, model(ids(2, 40)).state)
        with capsys.disabled():
            sys.stdout.write(
                f"\n{config.wiring}: levels of 1, 4, 16 and 0 tokens moved by {[f'{x:.3g}' for x in found]}\n"
            )
        assert min(found[:3]) > 1e-4
        assert found[3] == 0.0


def test_the_first_order_changes_gradients_alone() -> None:
    torch.manual_seed(0)
    model = LanguageModel(replace(PLAIN, levels="4,8")).double()
    other = LanguageModel(replace(PLAIN, levels="4,8", level_order=1)).double()
    other.load_state_dict(model.state_dict())
    text = ids(2, 33)
    found = [m(text).logits for m in (model, other)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)
    for m, logits in zip((model, other), found, strict=True):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), text[:, 1:].flatten()).backward()
        assert m.learner is not None
        assert m.learner.steps.grad is not None
        assert bool(m.learner.steps.grad.all())
    ours, theirs = (m.blocks[0].continuum.networks[0].down.weight.grad for m in (model, other))  # type: ignore[union-attr,index]
    assert not torch.allclose(ours, theirs, rtol=1e-3)


def test_levels_of_step_0_are_networks_that_never_change_bit_for_bit() -> None:
    for form in ("sequential", "nested", "headwise"):
        config = replace(PLAIN, levels="4,8", level_form=form)
        model = LanguageModel(config)
        with torch.no_grad():
            model.learner.steps.fill_(-1e4)  # type: ignore[union-attr]
        still = LanguageModel(replace(config, levels="0,0"))
        still.load_state_dict(model.state_dict())
        text = ids(2, 37)
        with torch.no_grad():
            assert torch.equal(model(text).logits, still(text).logits)
        # Windows that are read one after the other round differently, and nothing else.
        reading = model.double()(text)
        torch.testing.assert_close(reading.logits, still.double()(text).logits, rtol=1e-12, atol=1e-12)
        assert moved(model, reading.state) == [0.0, 0.0]


@pytest.mark.parametrize("wiring", ["lmm", "mac", "mag", "self_modifying", "attention"])
def test_levels_learn_under_autocast(wiring: Any) -> None:
    base = {"self_modifying": HOPE, "attention": ATTENTION}.get(wiring, replace(PLAIN, wiring=wiring))
    rule = presets.titans(chunk_size=4) if wiring in ("lmm", "mac", "mag") else base.rule
    for order in (1, 2):
        model = LanguageModel(replace(base, rule=rule, levels="4,8", level_order=order))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(ids(2, 19))
            loss = output.logits.float().square().mean()
        loss.backward()
        assert min(moved(model, output.state)) > 0
        assert {x.dtype for x in flatten_state(output.state).values() if x.is_floating_point()} <= {torch.float32}
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_stacking_levels_on_a_trained_model_leaves_its_answers_as_they_are() -> None:
    for config in (PLAIN, ATTENTION, replace(PLAIN, wiring="mag", dim=20, heads=2)):
        model = LanguageModel(config)
        stacked = stack_levels(model, "4,16", step=0.0)
        text = ids(2, 37)
        assert stack_levels(model, "4,8,16").config.hidden == config.hidden
        learning = stack_levels(model, "4,16")
        with torch.no_grad():
            assert torch.equal(model(text).logits, stacked(text).logits)
            output = learning(text)
            assert torch.equal(model(text[:, :4]).logits, output.logits[:, :4])
        assert min(moved(learning, output.state)) > 0
    with pytest.raises(UserError, match="already has levels"):
        stack_levels(learning, "4")
    for other, levels in ((PLAIN, ""), (replace(PLAIN, level_form="headwise"), "4")):
        with pytest.raises(UserError, match="first of a chain"):
            stack_levels(LanguageModel(other), levels)
    model = LanguageModel(PLAIN).eval()
    model.recompute = True
    stacked = stack_levels(model, "4,16")
    assert (stacked.training, stacked.recompute) == (False, True)


@pytest.mark.parametrize("levels", ["", "4,8"])
def test_hope_that_starts_by_copying_reads_and_trains(levels: str) -> None:
    """Also through the levels' gradients, at the first token's key, which is next to nothing."""
    model = LanguageModel(replace(HOPE, start="induction", levels=levels))
    model(ids(2, 19)).logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_generators_may_be_named_with_spaces() -> None:
    spaced = LanguageModel(replace(HOPE, adaptive="key, value"))
    assert spaced.blocks[0].mixer.memories.moving == (True, True, False, False, True)  # type: ignore[union-attr]


def test_the_norm_of_what_was_learned_counts_levels_too() -> None:
    model = LanguageModel(replace(ATTENTION, levels="4"))
    before, after = model.init_state(2), model(ids(2, 9)).state
    assert memory_norm(before).tolist() == [0.0, 0.0]
    torch.testing.assert_close(memory_norm(after).square().sum().sqrt().item(), moved(model, after)[0])
    assert memory_norm(LanguageModel(HOPE).init_state(1)).item() > 0


def test_a_text_that_repeats_is_learned() -> None:
    """Levels lower the loss of what they have read, with a model that was never trained."""
    torch.manual_seed(1)
    text = ids(1, 16).repeat(1, 40)

    def bits(levels: str) -> float:
        torch.manual_seed(1)
        model = LanguageModel(replace(PLAIN, levels=levels, level_step=2.0))
        with torch.no_grad():
            logits = model(text).logits
        return F.cross_entropy(logits[0, -65:-1], text[0, -64:]).item()

    assert bits("16,64") < bits("0,0") - 1.0


def test_only_full_windows_are_learned_and_only_when_their_last_label_is_known() -> None:
    model = LanguageModel(replace(PLAIN, levels="8"))
    text = ids(1, 20)
    with torch.no_grad():
        states = [model(text[:, :n]).state for n in (7, 8, 9, 16, 17)]
    found = [moved(model, state)[0] for state in states]
    assert found[0] == found[1] == 0.0
    assert 0.0 < found[2] == found[3] < found[4]


def test_a_token_that_is_not_finite_teaches_nothing_and_spoils_nothing_later() -> None:
    model = LanguageModel(replace(PLAIN, levels="4,8")).eval()
    text = ids(2, 40) % 19
    broken = text.clone()
    broken[0, 5] = 19
    model.embedding.weight.data[19] = torch.nan
    with torch.no_grad():
        whole, output = model(text), model(broken)
    assert torch.equal(output.logits[1], whole.logits[1])
    assert bool(torch.isfinite(output.logits[0, 9:]).all())
    assert all(bool(torch.isfinite(x).all()) for x in flatten_state(output.state).values() if x.is_floating_point())
    assert min(moved(model, output.state)) > 0


def test_inference_mode_is_refused_and_so_is_a_solver_to_the_second_order() -> None:
    model = LanguageModel(replace(PLAIN, levels="4"))
    with torch.inference_mode(), pytest.raises(UserError, match=r"use torch.no_grad"):
        model(ids(1, 9))
    with pytest.raises(UserError, match="level_order=1"):
        replace(PLAIN, rule=presets.mesa(), levels="4")
    mesa = LanguageModel(replace(PLAIN, rule=presets.mesa(), levels="4", level_order=1))
    mesa(ids(1, 9)).logits.sum().backward()


def test_nested_levels_start_again_from_a_start_that_has_learned() -> None:
    model = LanguageModel(replace(PLAIN, levels="4,8", level_form="nested"))
    text = ids(1, 9)
    with torch.no_grad():
        state = model(text).state
    fast = [o for block in state.blocks for o in block.offsets[:2]]
    for offset, base in zip(fast, state.learner.bases, strict=True):
        assert torch.equal(offset, base)
        assert base.any()


def test_the_levels_are_part_of_the_flat_state() -> None:
    model = LanguageModel(replace(PLAIN, levels="4,8"))
    names = flatten_state(model.init_state(1))
    assert "blocks.0.offsets.3" in names
    assert "learner.sums.0" in names
    assert names["learner.window"].shape == (1, 4)


BAD = {
    "words": ("fast", "chunk sizes with commas"),
    "order": ("16,4", "multiple of the faster"),
    "no multiple": ("4,6", "multiple of the faster"),
    "0 first": ("0,4", "chunk sizes with commas"),
}


@pytest.mark.parametrize("case", BAD)
def test_levels_that_make_no_sense_are_refused(case: str) -> None:
    levels, message = BAD[case]
    with pytest.raises(UserError, match=message):
        ModelConfig(levels=levels)
    with pytest.raises(UserError, match="at least 1 level"):
        Continuum(8, 8, 0)
    with pytest.raises(UserError, match="sequential, nested, headwise"):
        ModelConfig(levels="4", level_form="deep")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("form", "optimiser", "wiring"),
    [
        ("sequential", "sgd", "lmm"),
        ("nested", "momentum", "attention"),
        ("headwise", "muon", "lmm"),
        ("sequential", "momentum", "self_modifying"),
    ],
)
def test_outer_gradients_through_the_steps_of_levels_are_true(form: Any, optimiser: Any, wiring: Any) -> None:
    """The derivative along random directions in all parameters at once, against differences of the loss."""
    torch.manual_seed(2)
    rule = presets.hope(2) if wiring == "self_modifying" else PLAIN.rule
    config = replace(PLAIN, wiring=wiring, rule=rule, generator_chunk=2, depth=1, levels="2,4")
    model = LanguageModel(replace(config, level_form=form, level_optimiser=optimiser, level_clip=0.3)).double()
    text, parameters = ids(2, 14), list(model.parameters())

    def loss() -> Tensor:
        logits = model(text[:, :-1]).logits
        return F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())

    gradients = torch.autograd.grad(loss(), parameters)
    assert model.learner is not None
    assert gradients[[p is model.learner.steps for p in parameters].index(True)].all()
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        want = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
        ends = []
        with torch.no_grad():
            for size in (1e-6, -2e-6, 1e-6):
                for p, d in zip(parameters, direction, strict=True):
                    p.add_(d, alpha=size)
                ends.append(loss())
        torch.testing.assert_close((ends[0] - ends[1]) / 2e-6, want, rtol=1e-5, atol=1e-7)
