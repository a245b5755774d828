"""How the documentation is built: Markdown pages, and reference pages made from the docstrings of every module."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from sphinx.application import Sphinx

import fastweights

project = "fastweights"
author = "The fastweights authors"
copyright = "2026, The fastweights authors"  # noqa: A001 - Sphinx reads this name
release = fastweights.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
# `api/modules.rst` only lists the pages once more.
exclude_patterns = ["_build", "api/modules.rst"]
html_theme = "furo"
html_title = "fastweights"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Backticks in docstrings mean code, as they do in Markdown.
default_role = "code"
napoleon_numpy_docstring = False
# Attributes as a list inside the class: autodoc documents the fields themselves, and twice would be a warning.
napoleon_use_ivar = True

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True, "show-inheritance": True, "ignore-module-all": True}

# Reference pages are written anew at each build, one per package, so no module can be missing from them.
apidoc_modules = [
    {
        "path": "../src/fastweights",
        "destination": "api",
        "max_depth": 2,
        "module_first": True,
        "automodule_options": {"members", "show-inheritance"},
    }
]


def write_commands(app: Sphinx) -> None:
    """A page of what every command says to ``--help``, made at each build."""
    program = Path(sys.executable).with_name("fastweights")
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}

    def help_of(*words: str) -> str:
        said = subprocess.run([program, *words, "--help"], capture_output=True, text=True, check=True, env=environment)
        return f"```text\n{said.stdout.strip()}\n```\n"

    first = help_of()
    parts = ["# Commands\n", first]
    for name in re.findall(r"• (\w+)", first):
        parts += [f"## `fastweights {name}`\n", help_of(name)]
    parts += ["### `fastweights evaluate niah_single_1`, and every other task\n", help_of("evaluate", "niah_single_1")]
    page = app.srcdir / "api" / "commands.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text("\n".join(parts), encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Before Sphinx looks for pages."""
    app.connect("builder-inited", write_commands)
