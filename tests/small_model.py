"""A model small enough for tests: random weights, so its answers mean nothing, but everything else does."""

from __future__ import annotations

from pathlib import Path

import torch

from fastweights.core.architecture import MLP
from fastweights.core.rule import Rule
from fastweights.models.config import ModelConfig
from fastweights.models.language_model import LanguageModel
from fastweights.models.pretrained import save_model


def build(seed: int = 0, chunk_size: int = 16, tokenizer: str = "bytes") -> LanguageModel:
    torch.manual_seed(seed)
    size = {"bytes": 264, "bpe4096": 4096}[tokenizer]
    rule = Rule(MLP(), chunk_size=chunk_size)
    return LanguageModel(ModelConfig(vocab_size=size, dim=16, depth=1, heads=2, wiring="lmm", rule=rule))


def save(folder: Path, seed: int = 0, chunk_size: int = 16, tokenizer: str = "bytes") -> str:
    """Save such a model; returns its folder as one would type it."""
    card = "# Small\n\nRandom weights, for tests.\n"
    save_model(build(seed, chunk_size, tokenizer), folder, tokenizer=tokenizer, card=card)
    return str(folder)
