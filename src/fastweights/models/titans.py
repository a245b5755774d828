"""Mixers of the four Titans from a configuration."""

from __future__ import annotations

from typing import Any

from fastweights.layers.attention import SlidingWindowAttention
from fastweights.layers.blocks import MAG, MAL, Block
from fastweights.layers.context import MAC
from fastweights.layers.memory import GateStart, MemoryLayer
from fastweights.layers.stream import StreamLayer
from fastweights.models.config import ModelConfig


def build_block(config: ModelConfig) -> Block:
    """One block of the model."""
    return Block(build_mixer(config), config.hidden)


def build_mixer(config: ModelConfig) -> StreamLayer[Any]:
    """The memory, wired as the configuration says."""
    gates = GateStart(config.gate_threshold, lr=config.lr_start, forget=config.forget_start)
    memory = MemoryLayer(config.dim, config.heads, config.rule, convolution=config.convolution, gates=gates, start=config.start)
    if config.wiring == "lmm":
        return memory
    if config.wiring == "mac":
        pooled = config.memory_tokens if config.recall == "pooled" else None
        return MAC(memory, config.heads, config.segment, config.persistent, pooled)
    attention = SlidingWindowAttention(config.dim, config.heads, config.window, config.persistent)
    return MAG(memory, attention) if config.wiring == "mag" else MAL(memory, attention)
