"""Named sizes, from 0.1M parameters up to the configurations of the Titans paper.

Exact parameter counts, with Titans' own rule and separate embedding and head:

=====  ====  =====  =====  ==========  =============  =============  =============  =============
name   dim   depth  heads  vocabulary  lmm            mac            mag            mal
=====  ====  =====  =====  ==========  =============  =============  =============  =============
0.1m   48    2      2      264         106,296        139,608        129,912        125,208
0.4m   64    4      4      264         293,600        411,104        377,056        360,416
1m     96    3      4      4,096       1,212,336      1,409,040      1,352,304      1,324,368
2m     128   4      4      4,096       2,067,808      2,532,192      2,398,560      2,332,512
4m     192   4      4      4,096       3,814,368      4,858,080      4,559,328      4,411,104
10m    256   6      4      4,096       8,079,120      10,866,960     10,072,848     9,678,096
30m    384   8      6      8,192       23,354,528     31,731,872     29,357,216     28,174,496
90m    512   12     8      32,000      77,387,584     99,843,904     93,521,728     90,369,856
170m   768   12     16     32,000      145,719,744    196,509,120    182,307,264    175,220,160
340m   1024  24     16     32,000      408,376,064    587,854,592    537,400,064    512,209,664
760m   1536  24     16     32,000      866,777,088    1,268,115,456  1,154,684,928  1,098,024,960
1.3b   2048  18     8      32,000      1,191,509,344  1,724,968,288  1,573,789,024  1,498,254,688
=====  ====  =====  =====  ==========  =============  =============  =============  =============

The last four are the paper's (arXiv 2501.00663, camera-ready, table 5: 170M, 340M, 760M, 1.3B), which does not say what
its counts include; segment 512, window 2048, 128 persistent and 256 memory tokens are its own as well.
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import NamedTuple

from fastweights.core import presets
from fastweights.core.rule import Rule
from fastweights.errors import UserError
from fastweights.models.config import ModelConfig, Wiring


class Size(NamedTuple):
    """The numbers that make a model small or large; fields as in :class:`~fastweights.models.config.ModelConfig`."""

    dim: int
    depth: int
    heads: int
    vocab_size: int
    window: int
    segment: int
    persistent: int
    memory_tokens: int


SIZES: dict[str, Size] = {
    "0.1m": Size(48, 2, 2, 264, 64, 64, 4, 16),
    "0.4m": Size(64, 4, 4, 264, 64, 64, 4, 16),
    "1m": Size(96, 3, 4, 4096, 64, 64, 4, 16),
    "2m": Size(128, 4, 4, 4096, 64, 64, 4, 16),
    "4m": Size(192, 4, 4, 4096, 128, 128, 8, 32),
    "10m": Size(256, 6, 4, 4096, 256, 128, 16, 64),
    "30m": Size(384, 8, 6, 8192, 512, 256, 32, 128),
    "90m": Size(512, 12, 8, 32000, 1024, 512, 64, 256),
    "170m": Size(768, 12, 16, 32000, 2048, 512, 128, 256),
    "340m": Size(1024, 24, 16, 32000, 2048, 512, 128, 256),
    "760m": Size(1536, 24, 16, 32000, 2048, 512, 128, 256),
    "1.3b": Size(2048, 18, 8, 32000, 2048, 512, 128, 256),
}
"""Sizes by name."""


def sized(name: str, *, wiring: Wiring = "mag", rule: Rule | None = None, vocab_size: int | None = None) -> ModelConfig:
    """The configuration of a named size; change anything else with :func:`dataclasses.replace`.

    Args:
        name: one of :data:`SIZES`.
        wiring: ``lmm``, ``mac``, ``mag`` or ``mal``.
        rule: the memory rule; by default Titans' (two-layer residual MLP, chunks of 16) with its gradients clipped.
        vocab_size: entries of the tokenizer, where it is not the size's own (264 are bytes, 4096 the shipped BPE).

    Raises:
        UserError: a size that does not exist.

    Example:
        >>> sized("0.1m", wiring="lmm").dim
        48
    """
    if name not in SIZES:
        near = difflib.get_close_matches(name.lower(), SIZES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(SIZES)}"
        raise UserError(f"there is no model size {name!r}; {hint}")
    size = SIZES[name]
    return ModelConfig(
        vocab_size=vocab_size or size.vocab_size,
        dim=size.dim,
        depth=size.depth,
        heads=size.heads,
        wiring=wiring,
        rule=rule or replace(presets.titans(), clip=1.0),
        window=size.window,
        segment=size.segment,
        persistent=size.persistent,
        memory_tokens=size.memory_tokens,
    )
