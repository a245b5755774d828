"""The functions that transformers falls back to without a GPU, in our convention.

What they have in common: sequences are ``[B, T, H, .]``, decays are logarithms, delta rules keep memories as
``[B, H, K, V]`` and scale queries by K^-1/2, and all compute in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from tests_peers.fla_rules import CHUNK, flipped, seq_first, unscaled
from tests_peers.sources import transformers
from tests_peers.trial import Answer, Inputs
from torch import Tensor


def _gated(given: Inputs) -> dict[str, Any]:
    query, key, value = seq_first(unscaled(given.q), given.k, given.v)
    g, beta = seq_first(given.retain.log(), given.lr)
    (memory,) = flipped(given.memory)
    call = {"query": query, "key": key, "value": value, "g": g, "beta": beta}
    return call | {"initial_state": memory, "output_final_state": True}


def _answer(y: Tensor, state: Tensor) -> Answer:
    return Answer(y.transpose(1, 2), flipped(state))


def torch_chunk_gated_delta_rule(given: Inputs) -> Answer:
    # g = log retain, beta = lr; keys and queries are normalised outside unless asked for.
    run = transformers("qwen3_next").torch_chunk_gated_delta_rule
    return _answer(*run(**_gated(given), chunk_size=CHUNK))


def torch_recurrent_gated_delta_rule(given: Inputs) -> Answer:
    return _answer(*transformers("qwen3_next").torch_recurrent_gated_delta_rule(**_gated(given)))


def chunk_kimi_delta_attention(given: Inputs) -> Answer:
    # As above, with g per key channel.
    run = transformers("kimi_linear").chunk_kimi_delta_attention
    return _answer(*run(**_gated(given), chunk_size=CHUNK))


def recurrent_kimi_delta_attention(given: Inputs) -> Answer:
    return _answer(*transformers("kimi_linear").recurrent_kimi_delta_attention(**_gated(given)))


def mamba2_chunk_scan(given: Inputs) -> Answer:
    # x = v, B = k, C = q, dt = lr, retain = exp(dt A): A is given per token here, so that retain is free. Memories are
    # [B, H, V, K] as ours; no scale.
    x, dt, key, query, retain = seq_first(given.v, given.lr, given.k, given.q, given.retain)
    run = transformers("mamba2").mamba2_chunk_scan
    y, state = run(x, dt, retain.log() / dt, key, query, CHUNK, initial_states=given.memory, return_final_states=True)
    return Answer(y.transpose(1, 2), (state,))


def mamba2_selective_state_update(given: Inputs) -> Answer:
    # One token a call; the state is changed in place. dt is the same for every channel of a head.
    update = transformers("mamba2").mamba2_selective_state_update
    state, answers = given.memory.clone(), []
    for t in range(given.q.shape[2]):
        q, k, v, lr, retain = (x[:, :, t] for x in (given.q, given.k, given.v, given.lr, given.retain))
        decay = (retain.log() / lr)[..., None, None]
        answers.append(update(state, v, lr[..., None].expand_as(v), decay, k, q))
    return Answer(torch.stack(answers, 2), (state,))
