"""Recipes: Python files with a function ``recipe() -> TrainConfig``.

They live in one place, the repository's ``recipes/`` folder; a built package carries the same files as
``fastweights/train/recipes/``.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from fastweights.errors import UserError
from fastweights.train.config import TrainConfig

_PACKAGED = Path(__file__).parent / "recipes"
_CHECKOUT = Path(__file__).parents[3] / "recipes"


class RecipeError(UserError):
    """A recipe that does not exist or does not give a configuration."""


def list_recipes(function: str = "recipe") -> list[str]:
    """Names of all recipes that are found without a path: of a training run, or what else has such a function."""
    folder = _folder()
    if folder is None:
        return []
    # Read, not run: a name must not cost the import of every file.
    marked = f"\ndef {function}("
    return sorted(path.stem for path in folder.glob("*.py") if marked in path.read_text(encoding="utf-8"))


def load_recipe(name: str | Path) -> TrainConfig:
    """Run a recipe.

    Args:
        name: one of `list_recipes`, or the path of a ``.py`` file. The file is executed.

    Raises:
        RecipeError: when there is no such recipe, its file fails, or it gives no `TrainConfig`.
        UserError: when the configuration itself cannot be run.
    """
    path = find_recipe(name)
    config = call_recipe(path, "recipe")
    if not isinstance(config, TrainConfig):
        raise RecipeError(f"recipe() in {path} gave a {type(config).__name__}, not a TrainConfig")
    return config


def call_recipe(path: Path, name: str) -> Any:
    """Execute a file and call a function of it, without arguments.

    Raises:
        RecipeError: when the file fails or has no such function.
        UserError: when what it makes cannot be made.
    """
    # A module name of its own for each file, so that two recipes may define tasks of the same name.
    module_name = f"fastweights_recipe_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
        function = getattr(module, name, None)
        if not callable(function):
            raise RecipeError(f"the recipe {path} defines no function {name}()")
        return function()
    except UserError:
        raise
    except Exception as error:
        raise RecipeError(f"the recipe {path} failed: {type(error).__name__}: {error}") from error


def find_recipe(name: str | Path, function: str = "recipe") -> Path:
    """The file of a recipe; by name, one that has the function.

    Raises:
        RecipeError: with the nearest known name.
    """
    text = str(name)
    if text.endswith(".py"):
        if Path(text).is_file():
            return Path(text)
        raise RecipeError(f"there is no recipe file {text}")
    known = list_recipes(function)
    folder = _folder()
    if folder is not None and text in known:
        return folder / f"{text}.py"
    near = difflib.get_close_matches(text, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none'}; or give a .py file"
    raise RecipeError(f"there is no recipe named {text!r}; {hint}")


def _folder() -> Path | None:
    return next((folder for folder in (_PACKAGED, _CHECKOUT) if folder.is_dir()), None)
