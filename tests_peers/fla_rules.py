"""fla-core's plain torch functions, in our convention.

What they have in common: sequences are ``[B, T, H, .]`` (the delta rule's alone ``[B, H, T, .]``), memories
``[B, H, K, V]``, decays are logarithms, and queries are scaled by K^-1/2, which is undone here by a ``scale`` of 1 or
on the query. All but a few compute in float32, whatever they are given.
"""

from __future__ import annotations

from typing import Any

from tests_peers.sources import fla
from tests_peers.trial import Answer, Inputs
from torch import Tensor

CHUNK = 16


def seq_first(*tensors: Tensor) -> tuple[Tensor, ...]:
    """``[B, H, T, ...]`` and ``[B, T, H, ...]`` into each other."""
    return tuple(x.transpose(1, 2) for x in tensors)


def flipped(*memories: Tensor) -> tuple[Tensor, ...]:
    """``[B, H, V, K]`` and ``[B, H, K, V]`` into each other."""
    return tuple(x.transpose(-1, -2) for x in memories)


def unscaled(q: Tensor) -> Tensor:
    """A query that will be multiplied by K^-1/2."""
    return q * q.shape[-1] ** 0.5


def written(given: Inputs) -> Tensor:
    """The values of a peer that has no step size: ours writes lr v k^T."""
    return given.v * given.lr.unsqueeze(-1)


def _answer(y: Tensor, state: Tensor) -> Answer:
    return Answer(y.transpose(1, 2), flipped(state))


def delta_rule_recurrence(given: Inputs) -> Answer:
    # beta = lr; heads come first in this file.
    y, state = fla("delta_rule").delta_rule_recurrence(
        unscaled(given.q), given.k, given.v, given.lr, *flipped(given.memory)
    )
    return Answer(y, flipped(state))


def delta_rule_chunkwise(given: Inputs) -> Answer:
    # As above, but it starts empty and keeps float64.
    y, state = fla("delta_rule").delta_rule_chunkwise(unscaled(given.q), given.k, given.v, given.lr)
    return Answer(y, flipped(state))


def _gated(given: Inputs) -> dict[str, Any]:
    q, k, v, beta, g = seq_first(given.q, given.k, given.v, given.lr, given.retain.log())
    (memory,) = flipped(given.memory)
    return {"q": q, "k": k, "v": v, "beta": beta, "g": g, "initial_state": memory, "output_final_state": True}


def naive_recurrent_gated_delta_rule(given: Inputs) -> Answer:
    # g = log retain, beta = lr; the memory decays before the error is taken.
    return _answer(*fla("gated_delta_rule").naive_recurrent_gated_delta_rule(**_gated(given), scale=1.0))


def naive_chunk_gated_delta_rule(given: Inputs) -> Answer:
    return _answer(*fla("gated_delta_rule").naive_chunk_gated_delta_rule(**_gated(given), scale=1.0, chunk_size=CHUNK))


def naive_recurrent_gated_delta_product(given: Inputs) -> Answer:
    # One Householder factor per token is Gated DeltaNet.
    return _answer(*fla("gated_delta_product").naive_recurrent_gated_delta_product(**_gated(given), scale=1.0))


def naive_recurrent_gated_delta_product_of_two(given: Inputs) -> Answer:
    # Two factors per token: keys, values and betas are twice as many, one after the other; the decay comes first.
    def spread(x: Tensor) -> Tensor:
        return x.unflatten(-1, (2, -1)).flatten(2, 3)

    call = _gated(given._replace(k=spread(given.k), v=spread(given.v), lr=spread(given.lr).squeeze(-1)))
    run = fla("gated_delta_product").naive_recurrent_gated_delta_product
    return _answer(*run(**call, scale=1.0, num_householder=2))


def dplr_recurrence(given: Inputs) -> Answer:
    # S = diag(exp gk) S + beta (alpha S) + k v: alpha is the key that is erased, beta that times -lr. Heads first.
    key, erase = given.k.chunk(2, -1)
    y, state = fla("generalized_delta_rule.dplr").dplr_recurrence(
        unscaled(given.q), key, given.v, erase, -given.lr * erase, given.retain.log(), *flipped(given.memory)
    )
    return Answer(y, flipped(state))


def naive_recurrent_comba(given: Inputs) -> Answer:
    # p is the key that is erased; here it is the key that is written.
    call = _gated(given)
    return _answer(*fla("comba").naive_recurrent_comba(**call, p=call["k"], scale=1.0))


def naive_chunk_comba(given: Inputs) -> Answer:
    call = _gated(given)
    return _answer(*fla("comba").naive_chunk_comba(**call, p=call["k"], scale=1.0, chunk_size=CHUNK))


def naive_recurrent_kda(given: Inputs) -> Answer:
    # As the gated delta rule, with g per key channel.
    return _answer(*fla("kda").naive_recurrent_kda(**_gated(given), scale=1.0))


def naive_chunk_kda(given: Inputs) -> Answer:
    return _answer(*fla("kda").naive_chunk_kda(**_gated(given), scale=1.0, chunk_size=CHUNK))


def _gdn2(given: Inputs) -> dict[str, Any]:
    call = _gated(given)
    beta = call.pop("beta").unsqueeze(-1)
    return call | {"b": beta.expand_as(call["k"]), "w": beta.expand_as(call["v"]), "scale": 1.0}


def naive_recurrent_gdn2(given: Inputs) -> Answer:
    # With the erase gate b and the write gate w equal to lr in every channel it is KDA.
    return _answer(*fla("gdn2").naive_recurrent_gdn2(**_gdn2(given)))


def naive_chunk_gdn2(given: Inputs) -> Answer:
    return _answer(*fla("gdn2").naive_chunk_gdn2(**_gdn2(given), chunk_size=CHUNK))


def naive_recurrent_linear_attn(given: Inputs) -> Answer:
    # Without its normaliser.
    q, k, v = seq_first(given.q, given.k, written(given))
    (memory,) = flipped(given.memory)
    run = fla("linear_attn").naive_recurrent_linear_attn
    return _answer(*run(q, k, v, scale=1.0, initial_state=memory, output_final_state=True))


def naive_chunk_linear_attn(given: Inputs) -> Answer:
    # Starts empty, returns no state, keeps float64.
    q, k, v = seq_first(given.q, given.k, written(given))
    return Answer(fla("linear_attn").naive_chunk_linear_attn(q, k, v, scale=1.0).transpose(1, 2))


def naive_retention(given: Inputs) -> Answer:
    # Starts empty, returns no state; retain is 1 - 2^(-5 - head), the same at every token, and lr is 1.
    return Answer(fla("retention").naive_retention(unscaled(given.q), given.k, given.v))


def _simple_gla(given: Inputs) -> dict[str, Any]:
    q, k, v, g = seq_first(given.q, given.k, written(given), given.retain.log())
    (memory,) = flipped(given.memory)
    return {"q": q, "k": k, "v": v, "g": g, "initial_state": memory, "output_final_state": True, "scale": 1.0}


def naive_recurrent_simple_gla(given: Inputs) -> Answer:
    return _answer(*fla("simple_gla").naive_recurrent_simple_gla(**_simple_gla(given)))


def naive_chunk_simple_gla(given: Inputs) -> Answer:
    # It returns answers with time first, [B, T, H, V], as all others do.
    return _answer(*fla("simple_gla").naive_chunk_simple_gla(**_simple_gla(given), chunk_size=CHUNK))


def naive_recurrent_gla(given: Inputs) -> Answer:
    # gk = log retain, per key channel.
    q, k, v, gk = seq_first(unscaled(given.q), given.k, written(given), given.retain.log())
    (memory,) = flipped(given.memory)
    return _answer(*fla("gla").naive_recurrent_gla(q, k, v, gk, initial_state=memory, output_final_state=True))


def _momentum(given: Inputs) -> dict[str, Any]:
    q, k, v, beta = seq_first(given.q, given.k, given.v, given.lr.new_ones(given.lr.shape))
    eta, log_alpha, log_mu = seq_first(given.lr, given.retain.log(), given.momentum.log())
    memory, surprise = flipped(given.memory, -given.surprise)
    call = {"q": q, "k": k, "v": v, "p": k, "beta": beta, "eta": eta, "log_alpha": log_alpha, "log_mu": log_mu}
    return call | {"scale": 1.0, "initial_S": memory, "initial_M": surprise, "output_final_state": True}


def _titans(y: Tensor, state: Tensor) -> Answer:
    memory, surprise = flipped(*state)
    return Answer(y.transpose(1, 2), (memory, -surprise))


def recurrent_momentum_delta_rule_ref(given: Inputs) -> Answer:
    # S is our memory and M our momentum with the other sign: M = mu M + eta k (p S - v), S = alpha S - beta M. So with
    # p = k and beta = 1 it is linear Titans: eta = lr, mu = momentum, alpha = retain, gradient before the decay.
    return _titans(*fla("momentum_delta_rule").recurrent_momentum_delta_rule_ref(**_momentum(given)))


def chunk_momentum_delta_rule_ref(given: Inputs) -> Answer:
    run = fla("momentum_delta_rule").chunk_momentum_delta_rule_ref
    return _titans(*run(**_momentum(given), chunk_size=CHUNK))
