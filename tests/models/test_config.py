from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from fastweights.core import presets
from fastweights.core.architecture import MLP, Residual
from fastweights.errors import UserError
from fastweights.models.config import ModelConfig
from fastweights.models.language_model import LanguageModel


@pytest.mark.parametrize("preset", presets.PRESETS.values(), ids=presets.PRESETS)
def test_a_configuration_survives_json(preset: Any) -> None:
    config = ModelConfig(dim=32, heads=2, wiring="mac", recall="pooled", rule=preset(), segment=64, tied=True)
    again = ModelConfig.from_json(config.to_json())
    assert again == config
    assert hash(again) == hash(config)
    assert ModelConfig.from_dict(json.loads(config.to_json())) == config


def test_defaults_keep_the_memory_stable() -> None:
    rule = ModelConfig().rule
    assert rule.architecture == Residual(MLP())
    assert (rule.clip, rule.normalise_qk) == (1.0, True)


def test_an_older_file_without_newer_fields_still_loads() -> None:
    assert ModelConfig.from_dict({"dim": 32, "heads": 2}) == ModelConfig(dim=32, heads=2)


def test_the_size_of_a_memory_head_is_free_of_the_width() -> None:
    config = ModelConfig(dim=16, heads=4, memory_heads=3, memory_head_dim=8, rule=presets.deltanet())
    state = LanguageModel(config).init_state(1)
    assert [block.memory.memory.dual[0].shape for block in state] == [(1, 3, 8, 8)] * config.depth


def test_whole_numbers_may_stand_for_fractions() -> None:
    assert ModelConfig.from_json('{"expansion": 2}').hidden == 256


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dim": 10, "heads": 4}, "dim 10 is not divisible by 4 heads"),
        ({"dim": 16, "heads": 4, "memory_heads": 3}, "not divisible by 3 memory heads"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"window": -1}, "window must be at least 1"),
        ({"persistent": -1}, "persistent must be 0 or more"),
        ({"memory_heads": -1}, "memory_heads must be 0 or more"),
        ({"memory_head_dim": -1}, "memory_head_dim must be 0 or more"),
        ({"expansion": 0.0}, "expansion must be above 0"),
        ({"embedding_std": -1.0}, "embedding_std must be above 0"),
        ({"wiring": "gau"}, "one of lmm, mac, mag, mal, self_modifying, attention, window, lstm, mamba, not 'gau'"),
        ({"recall": "all"}, "aligned or pooled, not 'all'"),
        ({"start": "warm"}, "not 'warm'"),
        ({"wiring": "mac", "segment": 24}, "multiple of the rule's chunk size 16"),
        ({"wiring": "mac", "recall": "pooled", "memory_tokens": 7}, "must divide the segment 64; it is 7"),
        ({"dim": 16.0}, "dim must be of type int; it is 16.0"),
        ({"depth": True}, "depth must be of type int"),
        ({"tied": 1}, "tied must be of type bool"),
        ({"rule": "titans"}, "rule must be of type Rule"),
        ({"adaptive": "key, values"}, "adaptive names some of key, value, lr, retain, query"),
    ],
)
def test_values_that_make_no_sense_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        replace(ModelConfig(), **changes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[1]", "must be a JSON object"),
        ('{"dimension": 3}', "no field 'dimension'"),
        ('{"rule": {"chunk": 3}}', "Rule has no field 'chunk'"),
        ('{"rule": {"bias": {"kind": "L7"}}}', "unknown kind 'L7'"),
        ('{"rule": {"chunk_size": "three"}}', "must be a whole number"),
        ('{"rule": {"architecture": {"kind": "MLP", "depth": "two"}}}', "wrong type"),
        ('{"rule": 5}', "rule must be of type Rule"),
    ],
)
def test_text_that_is_no_configuration_is_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        ModelConfig.from_json(text)
