"""Models of a given size: equal numbers of parameters, equal sizes of memory, so that rules can be compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from fastweights.core.properties import tensors
from fastweights.errors import UserError
from fastweights.layers.conformance import memories
from fastweights.models.config import ModelConfig
from fastweights.models.language_model import LanguageModel
from fastweights.models.titans import build_mixer


def parameter_count(config: ModelConfig) -> int:
    """Numbers that are trained, all of them: embeddings and initial memories included."""
    with torch.random.fork_rng(devices=[]):
        return sum(parameter.numel() for parameter in LanguageModel(config).parameters())


def state_bytes(state: Any) -> int:
    """Size of the memories in a state of a layer or model; tails of convolutions and windows of attention are none."""
    return sum(tensor.nbytes for memory in memories(state) for tensor in tensors(memory))


def with_parameters(config: ModelConfig, count: int, tolerance: float = 0.02) -> ModelConfig:
    """The configuration with feed-forward networks as wide as the number of parameters asks for.

    Args:
        config: all but ``expansion`` is kept.
        count: parameters wanted.
        tolerance: by what share of ``count`` the result may differ from it.

    Raises:
        UserError: no width comes so near.
    """
    step = config.hidden_step
    narrow = replace(config, expansion=step / config.dim)
    least = parameter_count(narrow)
    each = 3 * config.dim * config.depth * step * max(1, len(config.level_chunks))
    more = max(0, round((count - least) / each))
    if abs(least + more * each - count) > tolerance * count:
        raise UserError(
            f"no feed-forward network gives the model {count:,} parameters, {tolerance:.0%} more or less: "
            f"it has {least:,} with the narrowest, and {each:,} come with every {step} units"
        )
    return replace(narrow, expansion=(1 + more) * step / config.dim)


def with_state(
    config: ModelConfig, size: int, tolerance: float = 0.05, heads: Sequence[int] = (2, 1, 4)
) -> Iterator[ModelConfig]:
    """Configurations whose state is near ``size`` bytes a row, by the number and the size of the memory's heads.

    Args:
        config: all but ``memory_heads`` and ``memory_head_dim`` is kept.
        size: bytes wanted, all blocks together, before anything is read.
        tolerance: by what share of ``size`` the state may differ from it.
        heads: numbers of heads to try.

    A memory that grows has no size before it has read, and no configuration; nor has a model without one.

    Yields:
        The nearest first; nothing if none is near enough. Their numbers of parameters differ.
    """
    if config.grows or not config.has_memory:
        return
    found: list[tuple[int, ModelConfig]] = []
    for number in heads:
        for head_dim in range(1, size):
            shape = replace(config, memory_heads=number, memory_head_dim=head_dim)
            with torch.random.fork_rng(devices=[]):
                off = config.depth * state_bytes(build_mixer(shape).init_state(1)) - size
            if abs(off) <= tolerance * size:
                found.append((abs(off), shape))
            if off > tolerance * size:
                break
    found.sort(key=lambda pair: pair[0])
    for _, shape in found:
        yield shape
