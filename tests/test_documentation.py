"""What the documentation shows works: Python blocks run, and every command and option in a console block exists."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fastweights.core.presets import PRESETS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: its language, its text, and the line of the page on which the text begins."""

    language: str
    text: str
    line: int


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [Block(m[1], m[2], text[: m.start(2)].count("\n") + 1) for m in FENCE.finditer(text)]
    return [block for block in found if block.language == language]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each `$ fastweights ...` line; a backslash at the end of a line continues it."""
    for block in blocks(page, "console"):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True) if line.startswith("$ ") else []
            if words[:1] == ["fastweights"]:
                yield words[1:]


def title(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of one page share a namespace, in order, and start in an empty folder."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        # Blank lines in front make a traceback name the page's own line.
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        exec(code, namespace)


def test_the_table_of_equations_names_what_exists() -> None:
    """`core/decay.py` followed by names in backticks: that file defines those names."""
    page = (ROOT / "docs" / "equations.md").read_text(encoding="utf-8")
    named = re.findall(r"`(\w+/\w+\.py)`((?:,? `\w+`)*)", page)
    assert named
    for file, names in named:
        body = ast.parse((ROOT / "src" / "fastweights" / file).read_text(encoding="utf-8")).body
        defined = {n.name for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
        missing = set(re.findall(r"`(\w+)`", names)) - defined
        assert not missing, f"{file} does not define {sorted(missing)}"


def test_every_preset_is_in_the_readme_and_in_the_equations() -> None:
    for page in ("README.md", "docs/equations.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert [name for name in PRESETS if f"`{name}`" not in text] == []


def test_every_choice_is_in_the_equations() -> None:
    page = (ROOT / "docs" / "equations.md").read_text(encoding="utf-8")
    for file in ("architecture", "features", "bias", "retention", "algorithm"):
        body = ast.parse((ROOT / "src" / "fastweights" / "core" / f"{file}.py").read_text(encoding="utf-8")).body
        classes = [n for n in body if isinstance(n, ast.ClassDef) and n.decorator_list]
        kinds = [n.name for n in classes if not n.name.startswith("_")]
        assert kinds
        assert [kind for kind in kinds if not re.search(rf"`{kind}\b", page)] == []


def refusals() -> Iterator[str]:
    """The sentences in `core/refusals.py`, an ellipsis where a name or number is filled in."""
    source = (ROOT / "src" / "fastweights" / "core" / "refusals.py").read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple):
            reason = node.value.elts[1]
            parts = reason.values if isinstance(reason, ast.JoinedStr) else [reason]
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)


def test_the_table_of_refusals_is_complete() -> None:
    page = (ROOT / "docs" / "refusals.md").read_text(encoding="utf-8").replace("\\|", "|")
    listed = re.findall(r"^\| (?!combination|---).* \| (.*) \|$", page, re.MULTILINE)
    assert sorted(listed) == sorted(refusals())


@cache
def help_text(*subcommand: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from fastweights.cli import main; main()", *subcommand, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 0, f"fastweights {' '.join(subcommand)} --help: {done.stderr or done.stdout}"
    # Asked about a subcommand that does not exist, the parser may answer with the help of all of them.
    # It shows the names of tasks with hyphens, and takes them with underscores too.
    shown = " ".join(subcommand).replace("_", "-")
    assert shown in done.stdout.split("\n\n")[0], f"there is no fastweights {' '.join(subcommand)}"
    return done.stdout


def subcommand_of(words: list[str]) -> tuple[str, ...]:
    """The subcommand, of one word or, as in `evaluate cases`, two."""
    if words[:1] == ["evaluate"] and len(words) > 1 and not words[1].startswith("-"):
        return tuple(words[:2])
    return tuple(words[:1])


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_commands_and_options_exist(page: Path) -> None:
    for words in commands(page):
        described = help_text(*subcommand_of(words))
        for word in words:
            option = word.split("=")[0]
            if re.fullmatch(r"--?[a-z][a-z-]*", option):
                assert re.search(rf"(?<![\w-]){option}(?![\w-])", described), f"no {option} in: {' '.join(words)}"
