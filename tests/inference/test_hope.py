"""A session with a model whose networks learn: what they have learned is part of the memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastweights.core import presets
from fastweights.data.tokenizer import ByteTokenizer
from fastweights.inference.session import Session
from fastweights.models.config import ModelConfig
from fastweights.models.hope import HopeState
from fastweights.models.language_model import LanguageModel

TEXT = "It was the best of times, it was the worst of times. " * 8
PLAIN = ModelConfig(264, dim=16, depth=2, heads=2, window=12, levels="8,32")
CONFIGS = {
    "hope": replace(PLAIN, wiring="self_modifying", rule=presets.hope(4), generator_chunk=4),
    "levels alone": replace(PLAIN, wiring="window"),
}


def session(name: str) -> Session:
    torch.manual_seed(0)
    return Session(LanguageModel(CONFIGS[name]), ByteTokenizer(), piece=64)


def moved(of: Session) -> list[float]:
    state = of.snapshot().state
    assert isinstance(state, HopeState)
    assert of.model.learner is not None
    return of.model.learner.moved(state)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_levels_have_learned_is_in_the_file_and_in_a_fork(name: str, tmp_path: Path) -> None:
    first = session(name)
    first.read(TEXT)
    assert min(moved(first)) > 0
    fork = first.fork()
    first.save(tmp_path / "a.memory")
    again = Session.load(tmp_path / "a.memory", first.model, ByteTokenizer())
    assert moved(again) == moved(first)
    for reader in (first, again):
        reader.read("It was the age of wisdom, it was the age of foolishness.")
    assert moved(again) == moved(first) != moved(fork)
    assert again.ask("What was it?").log_probability == first.ask("What was it?").log_probability


@pytest.mark.parametrize("name", CONFIGS)
def test_asking_teaches_the_levels_nothing(name: str) -> None:
    asked = session(name)
    asked.read(TEXT)
    before = moved(asked)
    asked.ask("What was it? " * 8)
    assert moved(asked) == before


def test_the_norms_of_a_session_count_what_levels_have_learned() -> None:
    read = session("levels alone")
    read.read(TEXT[:384])  # Whole pieces: nothing waits to be read.
    found = read.health().norms
    total = sum((norm[0] or 0.0) ** 2 for norm in found.values())
    assert total**0.5 == pytest.approx(sum(x**2 for x in moved(read)) ** 0.5, rel=1e-4)
