"""The six formal languages of the Hope paper: trained on words of 2 to 50 symbols, tested on 51 to 100 as well.

    fastweights compare formal_languages --out results/formal_languages

Hope is asked here without levels: what they learn is the next token, and these tasks ask for something else. Its chunks
are one token long, since only there can a memory turn round what it holds. It has the dot product, a plain matrix, and
three heads of 16: one starts with the longest steps, which turn round, the others as counters, with steps of at most
0.07 and 0.005, so short that what they add up stays a sum. All models have one block and equally many parameters. The
Transformer has rotary positions, where the paper's has none. As in the paper, training ends when both tests are passed
in full.

Labels are smoothed: without that, nothing in the loss of short words draws a model to counts that are exact in longer
ones. Words of shuffle2 differ, where those of the other counting languages have one form for each length: they are
learned longer, and four times as many are asked, since a model that errs rarely may have 256 of them right by chance.
"""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from fastweights.core import presets
from fastweights.core.architecture import Matrix
from fastweights.core.bias import DotProduct
from fastweights.evaluate.contest import Comparison, Contest
from fastweights.evaluate.contests import language
from fastweights.models.baselines import CONTENDERS
from fastweights.models.config import ModelConfig
from fastweights.tasks.formal_languages import Language


def hope(config: ModelConfig) -> ModelConfig:
    """Self-modifying Titans, token by token, with the dot product (eq. 93)."""
    rule = replace(presets.hope(1, bias=DotProduct()), architecture=Matrix(), lr_max=1.1)
    online = replace(config, wiring="self_modifying", rule=rule, generator_chunk=1, lr_start=0.99, lr_last=0.005)
    return replace(online, memory_heads=3, memory_head_dim=16, values="bounded", start="counting")


def contest(name: Language) -> Contest:
    """One language, with smoothed labels, a lower rate than other contests, and a look every 25 steps."""
    steps, batches = (2000, 16) if name == "shuffle2" else (600, 4)
    plain = language(name, steps)
    asked = tuple(replace(question, batches=batches) for question in plain.questions)
    rate = replace(plain.optimiser, lr=2e-3)
    return replace(plain, questions=asked, optimiser=rate, label_smoothing=0.1, look_every=25)


def comparison() -> Comparison:
    """Hope, an LSTM, Titans, a Transformer++, linear attention, DeltaNet, and one with negative eigenvalues."""
    names = ("lstm", "lmm", "transformer++", "linear_attention", "deltanet", "gated_deltanet_negative")
    models = {"hope": hope} | {name: CONTENDERS[name] for name in names}
    contests = {name: contest(name) for name in get_args(Language)}
    return Comparison(models=models, contests=contests, controls=(), threads=1)
