"""Mixers from a configuration: the four Titans, and those without a memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fastweights.layers.attention import Heads, SlidingWindowAttention
from fastweights.layers.blocks import MAG, MAL, Block
from fastweights.layers.context import MAC
from fastweights.layers.continuum import ContinuumBlock
from fastweights.layers.feedforward import SwiGLU
from fastweights.layers.full_attention import FullAttention
from fastweights.layers.lstm import LSTM
from fastweights.layers.memory import GateStart, MemoryLayer
from fastweights.layers.selective import SelectiveSSM
from fastweights.layers.self_modifying import SelfModifyingTitans
from fastweights.layers.stream import StreamLayer
from fastweights.models.config import ModelConfig


def build_block(config: ModelConfig) -> Block | ContinuumBlock:
    """One block of the model."""
    mixer = build_mixer(config)
    if config.level_chunks:
        return ContinuumBlock(mixer, config.hidden, len(config.level_chunks), config.level_form)
    return Block(mixer, config.hidden)


def build_mixer(config: ModelConfig) -> StreamLayer[Any]:
    """What mixes tokens: the memory, wired as the configuration says, or what stands in its place."""
    if config.wiring == "attention":
        return FullAttention(config.dim, config.heads)
    if config.wiring == "lstm":
        return LSTM(config.dim)
    if config.wiring == "mamba":
        return SelectiveSSM(config.dim)
    if config.wiring == "window":
        return SlidingWindowAttention(config.dim, config.heads, config.window, config.persistent)
    starts = config.lr_start, config.momentum_start, config.forget_start
    gates = GateStart(config.gate_threshold, *starts, lr_last=config.lr_last)
    heads = config.memory_heads or config.heads
    if config.wiring == "self_modifying":
        return SelfModifyingTitans(
            config.dim,
            heads,
            config.rule,
            config.generator_chunk,
            [part.strip() for part in config.adaptive.split(",")],
            config.memory_head_dim or None,
            config.convolution,
            gates,
            config.values,
        )
    memory = MemoryLayer(
        config.dim, heads, config.rule, config.memory_head_dim or None, convolution=config.convolution, gates=gates
    )
    if config.wiring == "lmm":
        return memory
    if config.wiring == "mac":
        pooled = config.memory_tokens if config.recall == "pooled" else None
        return MAC(memory, config.heads, config.segment, config.persistent, pooled)
    attention = SlidingWindowAttention(config.dim, config.heads, config.window, config.persistent)
    return MAG(memory, attention) if config.wiring == "mag" else MAL(memory, attention)


def start_by_copying(blocks: Sequence[Block | ContinuumBlock]) -> None:
    """Initial values of ``ModelConfig.start = "induction"``, beside those of the memory layers themselves.

    Attention starts by copying the tokens it sees (output projection = twice the value projection, transposed), so that
    a position begins as the sum of the words before it; memories and networks of all but the last block start small, so
    that this sum reaches the last memory. Measured in ``docs/log.md``: what binds a value to a key of several tokens
    within hundreds of steps instead of not at all.
    """
    with torch.no_grad():
        for block in blocks:
            for module in block.modules():
                if isinstance(module, Heads):
                    nn.init.normal_(module.qkv.weight, std=block.dim**-0.5)
                    module.out.weight.copy_(2.0 * module.qkv.weight[-block.dim :].T)
                elif isinstance(module, MemoryLayer | SelfModifyingTitans):
                    module.start_induction()
            if isinstance(block.mixer, MAC):
                block.mixer.recall.ask_as(block.mixer.memory)
        for block in blocks[:-1]:
            for module in block.modules():
                if isinstance(module, SwiGLU):
                    module.down.weight.mul_(0.3)
                if isinstance(module, MemoryLayer | SelfModifyingTitans):
                    module.out.weight.mul_(0.3)


def start_by_counting(blocks: Sequence[Block | ContinuumBlock]) -> None:
    """Initial values of ``ModelConfig.start = "counting"``, which those memories have that modify themselves."""
    for block in blocks:
        for module in block.modules():
            if isinstance(module, SelfModifyingTitans):
                module.start_counting()
