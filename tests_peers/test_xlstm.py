"""xLSTM's matrix memory: transformers' mLSTM is Mamba-2's rule with a normaliser, which is one more value channel."""

from __future__ import annotations

import pytest
import torch
from tests_peers.fla_rules import CHUNK, flipped, unscaled
from tests_peers.rules import rule
from tests_peers.sources import transformers
from tests_peers.trial import KEY, VALUE, Answer, answer, compare, draw


@pytest.mark.parametrize("function", ["mlstm_recurrent_sequence_native", "mlstm_chunkwise_native_autograd"])
def test_mlstm(function: str) -> None:
    # igate = log lr, so a step may be longer than 1; fgate is retain before the sigmoid. The last of our value channels
    # is always written 1: it is mLSTM's normaliser n, and h = y / max(|n q|, 1). mLSTM keeps C and n divided by exp(m).
    given = draw(torch.float64, value=VALUE + 1)
    given = given._replace(lr=(4 * given.lr - 2).exp())
    given.v[..., -1] = 1.0
    ours = answer(rule("mamba2"), given)
    ours = ours._replace(y=ours.y[..., :-1] / ours.y[..., -1:].abs().clamp_min(1.0))

    largest = torch.full((*given.q.shape[:2], 1), 0.3, dtype=torch.float64)
    (memory,) = flipped(given.memory / largest[..., None].exp())
    sizes = {"chunk_size": CHUNK} if "chunk" in function else {"dtype_state": torch.float64}
    h, (memory, normaliser, largest) = getattr(transformers("xlstm"), function)(
        unscaled(given.q),
        given.k,
        given.v[..., :-1],
        given.lr.log(),
        given.retain.logit(),
        c_initial=memory[..., :-1],
        n_initial=memory[..., -1],
        m_initial=largest,
        return_last_states=True,
        eps=0.0,
        **sizes,
    )
    state = torch.cat([memory, normaliser.reshape(*memory.shape[:2], KEY, 1)], -1) * largest[..., None].exp()
    compare("transformers", function, "mamba2 with a normaliser", ours, Answer(h, flipped(state)))
