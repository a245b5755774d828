"""The examples run, and the choices that they define work wherever the library's own do."""

from __future__ import annotations

import json

import pytest
import torch
from examples import own_architecture, own_retention

from fastweights.core.explanation import explain_rule
from fastweights.core.rule import Rule, rule_from_dict
from fastweights.models.config import ModelConfig
from fastweights.models.language_model import LanguageModel

RULES = {"retention": own_retention.RULE, "architecture": own_architecture.RULE}


def test_a_retention_gate_is_certified_and_trained(capsys: pytest.CaptureFixture[str]) -> None:
    assert 0.0 <= own_retention.main(steps=2, grid=[(4, 7)]) <= 1.0
    out = capsys.readouterr().out
    assert out.startswith("Ball: ok")
    assert "recalled" in out.splitlines()[-1]


def test_an_architecture_without_a_backward_is_certified_and_learns(capsys: pytest.CaptureFixture[str]) -> None:
    losses = own_architecture.main(rounds=6, grid=[(4, 7)])
    assert losses[-1] < 0.5 * losses[0]
    out = capsys.readouterr().out
    assert out.startswith("tier: dual, autograd\nSlots: ok")


@pytest.mark.parametrize("name", RULES)
def test_a_choice_of_ones_own_survives_json(name: str) -> None:
    rule = RULES[name]
    assert rule_from_dict(json.loads(json.dumps(rule.to_dict()))) == rule
    assert explain_rule(rule).summary == "a rule of your own"


@pytest.mark.parametrize("name", RULES)
def test_a_choice_of_ones_own_works_in_a_model(name: str) -> None:
    rule: Rule = RULES[name]
    config = ModelConfig(vocab_size=16, dim=16, depth=1, heads=2, wiring="lmm", rule=rule)
    assert ModelConfig.from_json(config.to_json()) == config
    model = LanguageModel(config)
    ids = torch.randint(16, (2, 2 * rule.chunk_size + 1))
    whole = model(ids)
    whole.logits.sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    first = model(ids[:, :3])
    second = model(ids[:, 3:], first.state)
    torch.testing.assert_close(second.logits, whole.logits[:, 3:], atol=1e-4, rtol=1e-4)


def test_the_retention_gate_fits_on_one_screen() -> None:
    source = own_retention.__file__
    assert source is not None
    with open(source, encoding="utf-8") as file:
        lines = file.read().split("@dataclass(frozen=True)")[1].split("\n\n\n")[0].splitlines()
    assert len(lines) < 30
