from __future__ import annotations

from pathlib import Path

import pytest

from fastweights.data.documents import novels, open_novel
from fastweights.errors import UserError
from fastweights.train.config import Probe, Stage, TrainConfig
from fastweights.train.recipes import RecipeError, find_recipe, list_recipes, load_recipe

GOOD = """
from __future__ import annotations
from dataclasses import dataclass, replace
from fastweights.train.config import apply_overrides
from fastweights.train.recall import RecallTask
from tests.train.runs import TINY

@dataclass(frozen=True, kw_only=True)
class OwnTask(RecallTask):
    twist: int = 3

def recipe():
    return replace(TINY, task=OwnTask(symbols=8, pairs=2, queries=2))
"""


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_gives_a_configuration_that_survives_json(name: str) -> None:
    config = load_recipe(name)
    assert TrainConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("name", list_recipes())
def test_every_batch_of_a_recipe_can_be_made(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each stage and probe; the books that a recipe reads are stood in for by a shipped novel."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "one.txt").write_text("".join(open_novel(novels()[0].name))[:200_000], encoding="utf-8")
    config = load_recipe(name)
    parts: list[Stage | Probe] = [*config.stages, *config.evaluation.probes]
    for part in parts:
        task = part.task or config.task
        batch = task.batch(config.seed, 0, part.batch_size, part.length)
        batch.check(part.batch_size, part.length, config.model.vocab_size)


def test_a_recipe_file_may_bring_its_own_task(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    config = load_recipe(path)
    assert type(config.task).__name__ == "OwnTask"
    assert TrainConfig.from_json(config.to_json()) == config


def test_recipes_are_found_by_name() -> None:
    assert "recall" in list_recipes()
    assert "train_tokenizer" not in list_recipes()
    assert find_recipe("recall").name == "recall.py"


@pytest.mark.parametrize(
    ("name", "says"),
    [("recal", "did you mean recall?"), ("nothing.py", "no recipe file nothing.py"), ("zzz", "or give a .py file")],
)
def test_unknown_recipes_are_refused(name: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        find_recipe(name)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def recipe(:", "SyntaxError"),
        ("import nothing_of_this_name", "ModuleNotFoundError"),
        ("x = 1", "defines no function recipe"),
        ("def recipe(): return 3", "gave a int, not a TrainConfig"),
        ("def recipe(): return 1 / 0", "ZeroDivisionError"),
        ("def recipe(x): return x", "TypeError"),
    ],
)
def test_a_recipe_that_fails_is_one_sentence(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(text + "\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "bad.py")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_users_mistake_inside_a_recipe_keeps_its_own_sentence(tmp_path: Path) -> None:
    text = "from fastweights.train.config import Stage\ndef recipe(): return Stage(steps=0, length=1, batch_size=1)\n"
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(UserError, match="a stage's steps must be at least 1"):
        load_recipe(tmp_path / "bad.py")
