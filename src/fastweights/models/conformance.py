"""The properties of :mod:`fastweights.layers.conformance` for a whole model, and the suite over all wirings."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastweights.core import presets
from fastweights.core.compiled import compiler
from fastweights.core.conformance import Report
from fastweights.core.conformance_equality import EXACT
from fastweights.core.properties import Verdict, identical, quiet_compiler, tensors, values_and_gradients, within, worst
from fastweights.core.rule import Rule
from fastweights.layers.conformance import (
    LENGTHS,
    Subject,
    check_layer,
    check_subject,
    grows,
    narrow_reading,
    stirred,
)
from fastweights.models.config import ModelConfig, Recall, Wiring
from fastweights.models.hope import HopeState
from fastweights.models.language_model import LanguageModel
from fastweights.models.titans import build_block

QUICK = (7, 33)
"""Lengths of the quick suite."""


def check_model(
    model: LanguageModel, *, lengths: Sequence[int] = LENGTHS, without: Collection[int] = (), title: str = "model"
) -> Report:
    """Certifies a whole model: properties 3 to 11, on a float64 copy with random numbers added to its parameters.

    Args:
        model: the model; its chunks, windows and segments should be small.
        lengths: tokens of the calls; the longest should be more than two chunks, windows and segments.
        without: numbers of properties to leave out (10, compilation, takes the most time); the report says so.
        title: of the report.

    Returns:
        The findings; ``report.ok`` says whether all is well and ``report.table()`` shows it.
    """
    tested = stirred(copy.deepcopy(model).double())

    def stream(x: Tensor, state: Any, mask: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Any]:
        logits, state, _ = tested(x, state, mask=mask, cu_seqlens=cu_seqlens)
        return logits, state

    def draw(batch: int, time: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, model.config.vocab_size, (batch, time), generator=generator)

    own: dict[str, Callable[[], Verdict]] = {
        "8 bfloat16, memory in float32": lambda: narrow_model(
            copy.deepcopy(tested).bfloat16(), draw(2, max(lengths), 5)
        ),
        "10 compiled parts": lambda: compiled_parts(tested, draw(2, 9, 4)),
        "10 activation checkpointing": lambda: recomputed(tested, draw(2, 9, 4)),
    }
    parameters = dict(tested.named_parameters())
    return check_subject(
        Subject(stream, tested.init_state, draw, 0.0, parameters, own, grows(tested)), lengths, without, title
    )


def narrow_model(model: LanguageModel, ids: Tensor) -> Verdict:
    """What a bfloat16 model answers, and its memories in float32; also what its levels have learned."""
    read = model(ids)
    if not isinstance(read.state, HopeState):
        return narrow_reading(read)
    parts = [block.offsets for block in read.state.blocks]
    learned = read.state.learner
    dtypes = {x.dtype for x in tensors((parts, learned.sums, learned.momenta, learned.bases))}
    return worst([narrow_reading(read), Verdict(dtypes == {torch.float32}, f"levels {dtypes}")])


def compiled_parts(model: LanguageModel, ids: Tensor) -> Verdict:
    """With its parts compiled (backend ``aot_eager``) a model reads, steps and trains as before."""

    def read_and_step(ids: Tensor, *parameters: Tensor) -> Any:
        read = model(ids[:, :-1])
        return read[:2], model(ids[:, -1:], read.state)[:2]

    arguments = ids, *model.parameters()
    want = values_and_gradients(read_and_step, arguments)
    torch.compiler.reset()
    try:
        with compiler("aot_eager") as works, quiet_compiler():
            if not works:
                return Verdict(False, "torch.compile does not work here")
            return within(values_and_gradients(read_and_step, arguments), want, EXACT)
    finally:
        torch.compiler.reset()


def recomputed(model: LanguageModel, ids: Tensor) -> Verdict:
    """With activation checkpointing the gradients of all parameters are bit-identical."""
    found = []
    for recompute in (False, True):
        tested = copy.deepcopy(model)
        tested.recompute = recompute
        found.append(torch.autograd.grad(tested(ids).logits.square().sum(), list(tested.parameters())))
    return identical(found[1], found[0])


def small_config(wiring: Wiring, rule: Rule, recall: Recall = "aligned") -> ModelConfig:
    """A model whose chunks, windows and segments are small enough to test, with all gates open."""
    return ModelConfig(
        vocab_size=50,
        dim=16,
        heads=2,
        wiring=wiring,
        rule=rule,
        window=5,
        segment=8,
        recall=recall,
        memory_tokens=4,
        forget_start=0.0,
    )


def wirings(quick: bool = False) -> dict[str, Callable[[], Report]]:
    """The suite over the blocks of all wirings of a memory and over whole models, by name.

    Args:
        quick: two lengths instead of five, and no compilation.
    """
    lengths, without = (QUICK, (10,)) if quick else (LENGTHS, ())
    titans = presets.titans(expansion=2.0, chunk_size=4)
    configs: dict[str, ModelConfig] = {
        "lmm": small_config("lmm", titans),
        "mac": small_config("mac", titans),
        "mac_pooled": small_config("mac", titans, "pooled"),
        "mag": small_config("mag", titans),
        "mal": small_config("mal", titans),
        "self_modifying": replace(small_config("self_modifying", presets.hope(4)), generator_chunk=2),
    }
    models: dict[str, ModelConfig] = {
        "model": small_config("mac", presets.titans_linear()),
        "hope": replace(configs["self_modifying"], levels="4,8"),
        "hope_attention": replace(small_config("attention", ModelConfig.rule), levels="4,8"),
    }

    def block(name: str) -> Report:
        return check_layer(build_block(configs[name]), lengths=lengths, without=without, title=f"block {name}")

    def model(name: str) -> Report:
        return check_model(LanguageModel(models[name]), lengths=lengths, without=without, title=name)

    suite: dict[str, Callable[[], Report]] = {name: partial(block, name) for name in configs}
    return suite | {name: partial(model, name) for name in models}
