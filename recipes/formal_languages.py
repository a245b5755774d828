"""The six formal languages of the Hope paper: trained on words of 2 to 50 symbols, tested on 51 to 100 as well.

    fastweights compare formal_languages --out results/formal_languages

Hope is asked here without levels: what they learn is the next token, and these tasks ask for something else. Its chunks
are one token long, since only there can a memory turn round what it holds, and its steps start small. All models have
one block and equally many parameters. The Transformer has rotary positions, where the paper's has none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from fastweights.core import presets
from fastweights.core.bias import DotProduct
from fastweights.evaluate.contest import Comparison
from fastweights.evaluate.contests import language
from fastweights.models.baselines import CONTENDERS
from fastweights.models.config import ModelConfig
from fastweights.tasks.formal_languages import Language


def hope(like: ModelConfig) -> ModelConfig:
    """Self-modifying Titans, token by token."""
    rule = presets.hope(1, bias=DotProduct())
    return replace(like, wiring="self_modifying", rule=rule, generator_chunk=1, lr_start=0.1)


def comparison() -> Comparison:
    """Hope beside an LSTM, Titans, a Transformer++, linear attention and DeltaNet with both ranges of eigenvalues."""
    names = ("lstm", "lmm", "transformer++", "linear_attention", "deltanet", "gated_deltanet_negative")
    models = {"hope": hope} | {name: CONTENDERS[name] for name in names}
    return Comparison(models=models, contests={name: language(name) for name in get_args(Language)}, controls=())
