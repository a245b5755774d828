"""What a memory is compared with, all in the same block and, by :func:`contender`, at the same number of parameters.

A contender differs from the others in what mixes tokens and in nothing else: embeddings, norms, feed-forward networks,
head and training are the same. The width of the feed-forward networks makes up for what a mixer has more or less.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace

from fastweights.core import presets
from fastweights.core.rule import Rule
from fastweights.errors import UserError
from fastweights.models.budget import with_parameters
from fastweights.models.config import ModelConfig, Wiring

# Without a clip a deep memory's gradients explode over long rows; with that of 1, which models have by default, steps
# of this lr_max are so short that nothing is learned. With 30 recall is learned as without.
_TITANS = replace(presets.titans(), clip=30.0)


def _memory(rule: Rule, wiring: Wiring = "lmm") -> Callable[[ModelConfig], ModelConfig]:
    return lambda config: replace(config, wiring=wiring, rule=rule)


def _other(wiring: Wiring) -> Callable[[ModelConfig], ModelConfig]:
    # The rule of a model that has none is the default one, so that equal models have equal configurations.
    return lambda config: replace(config, wiring=wiring, rule=ModelConfig.rule, persistent=0, start="plain")


_LEVELS = "32,128"


def hope(config: ModelConfig, chunk_size: int = 16, levels: str = _LEVELS) -> ModelConfig:
    """Hope: self-modifying Titans, then a continuum memory system (Nested Learning eqs. 94-97).

    Its levels are trained to the first order, which is cheaper.

    Args:
        config: all else.
        chunk_size: of every memory.
        levels: of the continuum.
    """
    rule = presets.hope(chunk_size)
    shape = replace(config, wiring="self_modifying", rule=rule, generator_chunk=chunk_size)
    return replace(shape, levels=levels, level_order=1)


def hope_attention(config: ModelConfig) -> ModelConfig:
    """Hope-Attention: softmax attention, then a continuum memory system."""
    return replace(_other("attention")(config), levels=_LEVELS, level_order=1)


OURS: dict[str, Callable[[ModelConfig], ModelConfig]] = {
    "lmm": _memory(_TITANS, "lmm"),
    "mac": _memory(_TITANS, "mac"),
    "mag": _memory(_TITANS, "mag"),
    "mal": _memory(_TITANS, "mal"),
    "moneta": _memory(presets.moneta()),
    "yaad": _memory(presets.yaad()),
    "memora": _memory(presets.memora()),
    "hope": hope,
    "hope_attention": hope_attention,
}
"""The four Titans, MIRAS' three as a memory alone, and both forms of Hope."""

BASELINES: dict[str, Callable[[ModelConfig], ModelConfig]] = {
    "transformer++": _other("attention"),
    "sliding_window": _other("window"),
    "mamba": _other("mamba"),
    "mamba2": _memory(presets.mamba2()),
    "gated_deltanet": _memory(presets.gated_deltanet()),
    "gated_deltanet_negative": _memory(presets.gated_deltanet(negative=True)),
    "deltanet": _memory(presets.deltanet()),
    "linear_attention": _memory(presets.linear_attention()),
    "retnet": _memory(presets.retnet()),
    "ttt_linear": _memory(presets.ttt_linear()),
    "ttt_mlp": _memory(presets.ttt_mlp()),
    "lstm": _other("lstm"),
    "samba": _memory(presets.mamba2(), "mal"),
}
"""What others use: attention over everything and over a window, linear recurrences, learning at test time, an LSTM.

``gated_deltanet_negative`` has eigenvalues in [-1, 1] instead of [0, 1]; ``samba`` is a hybrid after Samba (arXiv
2406.07522): in every block a Mamba-2 memory, then attention over a sliding window, with one feed-forward network after
both, where Samba has one after each.
"""

CONTENDERS = OURS | BASELINES
"""All of them by name."""


def contender(name: str, like: ModelConfig, parameters: int = 0) -> ModelConfig:
    """The configuration of a contender.

    Args:
        name: of `CONTENDERS`.
        like: what all contenders share: vocabulary, width, depth, heads, sizes of windows and segments, start of gates.
        parameters: the feed-forward networks are made as wide as this number asks for, 2 % more or less; 0 leaves them.

    Raises:
        UserError: no such contender, or no width comes near enough to that number.
    """
    if name not in CONTENDERS:
        near = difflib.get_close_matches(name, CONTENDERS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(CONTENDERS)}"
        raise UserError(f"there is no contender {name!r}; {hint}")
    config = CONTENDERS[name](like)
    return with_parameters(config, parameters) if parameters else config
