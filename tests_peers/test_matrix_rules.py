"""Memories of one matrix: our engine's answers, states and gradients are those of fla-core's and transformers'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from tests_peers import fla_rules, transformers_rules
from tests_peers.rules import rule
from tests_peers.trial import (
    HEADS,
    TOLERANCE,
    Answer,
    Inputs,
    answer,
    compare,
    compare_outer_gradients,
    draw,
    outer_gradients,
)


def as_given(given: Inputs) -> Inputs:
    return given


def fixed_decay(given: Inputs) -> Inputs:
    """RetNet's gates: retain is 1 - 2^(-5 - head) and lr is 1."""
    decay = 1 - 2.0 ** (-5 - torch.arange(HEADS, dtype=given.q.dtype))
    retain = decay[:, None].expand_as(given.retain)
    return given._replace(retain=retain, lr=torch.ones_like(given.lr))


def tied_key(given: Inputs) -> Inputs:
    """HGRN2's key: what is not kept."""
    return given._replace(k=1 - given.retain, lr=torch.ones_like(given.lr))


def with_two_keys(given: Inputs) -> Inputs:
    """DeltaProduct's tokens: two keys, values and step sizes each."""
    return given._replace(
        k=torch.cat([given.k, given.k.roll(1, -1)], -1),
        v=torch.cat([given.v, given.v.roll(1, -1)], -1),
        lr=torch.stack([given.lr, 1 - given.lr], -1),
    )


def with_erase_key(given: Inputs) -> Inputs:
    """RWKV-7's tokens: a key that is written, another that is erased, and a step size per key channel."""
    lr = given.lr.unsqueeze(-1) * (0.5 + given.q.abs() / 2)
    return given._replace(k=torch.cat([given.k, given.k.roll(1, -1)], -1), lr=lr)


@dataclass(frozen=True)
class Case:
    """A rule and a peer's function that must give the same.

    Args:
        rule: name of our rule.
        peer: name of the peer's distribution.
        function: the peer's function in our convention.
        dtype: that the peer computes in.
        channels: ``retain`` is drawn per key channel.
        empty: the peer can only start from an empty memory.
        prepare: what the published model ties in its inputs.
        differentiable: the peer does not change its state in place.
    """

    rule: str
    peer: str
    function: Callable[[Inputs], Answer]
    dtype: torch.dtype = torch.float32
    channels: bool = False
    empty: bool = False
    prepare: Callable[[Inputs], Inputs] = as_given
    differentiable: bool = True


CASES = (
    Case("linear_attention", "fla-core", fla_rules.naive_recurrent_linear_attn),
    Case("linear_attention", "fla-core", fla_rules.naive_chunk_linear_attn, torch.float64, empty=True),
    Case("deltanet", "fla-core", fla_rules.delta_rule_recurrence),
    Case("deltanet", "fla-core", fla_rules.delta_rule_chunkwise, torch.float64, empty=True),
    Case("gated_deltanet", "fla-core", fla_rules.naive_recurrent_gated_delta_rule),
    Case("gated_deltanet", "fla-core", fla_rules.naive_chunk_gated_delta_rule),
    Case("gated_deltanet", "fla-core", fla_rules.naive_recurrent_gated_delta_product),
    Case("gated_deltanet", "fla-core", fla_rules.naive_recurrent_comba),
    Case("gated_deltanet", "transformers", transformers_rules.torch_recurrent_gated_delta_rule),
    Case("gated_deltanet", "transformers", transformers_rules.torch_chunk_gated_delta_rule),
    Case("titans_linear", "fla-core", fla_rules.recurrent_momentum_delta_rule_ref),
    Case("retnet", "fla-core", fla_rules.naive_retention, empty=True, prepare=fixed_decay),
    Case("retnet", "fla-core", fla_rules.naive_recurrent_simple_gla),
    Case("mamba2", "fla-core", fla_rules.naive_chunk_simple_gla),
    Case("mamba2", "transformers", transformers_rules.mamba2_chunk_scan),
    Case("mamba2", "transformers", transformers_rules.mamba2_selective_state_update, differentiable=False),
    Case("gla", "fla-core", fla_rules.naive_recurrent_gla, channels=True),
    Case("hgrn2", "fla-core", fla_rules.naive_recurrent_gla, channels=True, prepare=tied_key),
    Case("kda", "fla-core", fla_rules.naive_recurrent_kda, channels=True),
    Case("kda", "fla-core", fla_rules.naive_chunk_kda, channels=True),
    Case("kda", "fla-core", fla_rules.naive_recurrent_gdn2, channels=True),
    Case("kda", "fla-core", fla_rules.naive_chunk_gdn2, channels=True),
    Case("kda", "transformers", transformers_rules.recurrent_kimi_delta_attention, channels=True),
    Case("kda", "transformers", transformers_rules.chunk_kimi_delta_attention, channels=True),
    Case("rwkv7", "fla-core", fla_rules.dplr_recurrence, channels=True, prepare=with_erase_key),
    Case("deltaproduct", "fla-core", fla_rules.naive_recurrent_gated_delta_product_of_two, prepare=with_two_keys),
)


def name(case: Case) -> str:
    return f"{case.rule}-{case.peer}-{case.function.__name__}"


@pytest.mark.parametrize("case", CASES, ids=name)
def test_the_same_as(case: Case) -> None:
    given = case.prepare(draw(case.dtype, channels=case.channels, empty=case.empty))
    theirs = case.function(given)
    compare(case.peer, case.function.__name__, case.rule, answer(rule(case.rule), given), theirs)


@pytest.mark.parametrize("case", [case for case in CASES if case.differentiable], ids=name)
def test_the_same_outer_gradients_as(case: Case) -> None:
    leaves = Inputs(*[x.requires_grad_() for x in draw(case.dtype, channels=case.channels, empty=case.empty)])
    wanted = leaves[:6] if case.empty else leaves  # without the memory and its momentum
    theirs = outer_gradients(case.function(case.prepare(leaves)).y, wanted)
    ours = outer_gradients(answer(rule(case.rule), case.prepare(leaves)).y, wanted)
    compare_outer_gradients(case.peer, case.function.__name__, case.rule, ours, theirs, TOLERANCE[case.dtype])
