"""The six formal languages of the Hope paper: trained on words of 2 to 50 symbols, tested on 51 to 100 as well.

    fastweights compare formal_languages --out results/formal_languages

Hope is asked here without levels: what they learn is the next token, and these tasks ask for something else. Its chunks
are one token long, since only there can a memory turn round what it holds, and it has two heads of 16. With squared
errors its steps start large, which is what turning round needs, and with the dot product small, to count. All models
have one block and equally many parameters. The Transformer has rotary positions, where the paper's has none. As in the
paper, training ends when both tests are passed in full.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

from fastweights.core import presets
from fastweights.core.bias import L2, DotProduct
from fastweights.evaluate.contest import Comparison
from fastweights.evaluate.contests import language
from fastweights.models.baselines import CONTENDERS
from fastweights.models.config import ModelConfig
from fastweights.tasks.formal_languages import Language


def hope(bias: L2 | DotProduct, lr_start: float) -> Callable[[ModelConfig], ModelConfig]:
    """Self-modifying Titans, token by token, with squared errors (eq. 92) or the dot product (eq. 93)."""

    def shape(like: ModelConfig) -> ModelConfig:
        rule = presets.hope(1, bias=bias)
        online = replace(like, wiring="self_modifying", rule=rule, generator_chunk=1, lr_start=lr_start)
        return replace(online, memory_heads=2, memory_head_dim=16)

    return shape


def comparison() -> Comparison:
    """Hope twice, an LSTM, Titans, a Transformer++, linear attention, DeltaNet, and one with negative eigenvalues."""
    names = ("lstm", "lmm", "transformer++", "linear_attention", "deltanet", "gated_deltanet_negative")
    models = {"hope": hope(L2(), 0.9), "hope_dot": hope(DotProduct(), 0.1)} | {name: CONTENDERS[name] for name in names}
    contests = {name: language(name) for name in get_args(Language)}
    return Comparison(models=models, contests=contests, controls=(), threads=1)
