"""The tree keeps its shape: who may import whom, sizes of files and functions, and what the package never does."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "fastweights"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Part of the package -> the parts right below it. It may import those and all that stand below them. `errors` and the
# version are open to all; `cli` may import everything and is imported by none.
BELOW = {
    "core": set[str](),
    "layers": {"core"},
    "models": {"layers"},
    "data": set[str](),
    "tasks": {"data"},
    "inference": {"models", "data"},
    "train": {"models", "data", "tasks"},
    "evaluate": {"inference", "train"},
    "errors": set[str](),
    "__init__": {"evaluate"},
}

# Packages that only one place may know: the extras in one file each, the command line's own in `cli`.
EXTRAS = ("matplotlib", "zstandard", "lm_eval", "transformers")
ONE_FILE = ("tokenizers", *EXTRAS)
CLI_ONLY = ("tyro", "rich")

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
UNSAFE_CALLS = {"eval", "exec", "compile", "torch.load", "torch.save"}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def part(path: Path) -> str:
    """First name below the package: `core` for `core/rule.py`, `errors` for `errors.py`."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def dotted_name(path: Path) -> str:
    """Import name of a file, `fastweights.core.rule`; of an `__init__.py`, its folder's."""
    parts = ("fastweights", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Every imported name in full, `torch.nn.functional` or `fastweights.errors.UserError`; also inside functions."""
    package = dotted_name(path) if path.name == "__init__.py" else dotted_name(path).rpartition(".")[0]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def all_below(name: str) -> set[str]:
    return BELOW[name].union(*(all_below(lower) for lower in BELOW[name]))


def where(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_package_was_found() -> None:
    assert MODULES


@pytest.mark.parametrize("path", MODULES, ids=where)
def test_parts_import_only_what_they_may(path: Path) -> None:
    if part(path) == "cli":
        return
    assert part(path) in BELOW, f"{part(path)} has no line in BELOW"
    allowed = all_below(part(path)) | {part(path), "errors", "__version__"}
    targets = {name.split(".")[1] for name in imports(path) if name.startswith("fastweights.")}
    assert targets <= allowed, f"{where(path)} may not import {sorted(targets - allowed)}"
    assert "fastweights" not in imports(path), "import from the module that defines the name, not from the package"


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").rglob("*.py")), ids=where)
def test_core_needs_torch_and_the_standard_library_alone(path: Path) -> None:
    outside = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
    assert outside <= {"torch", "fastweights"}


def test_optional_packages_are_known_to_one_place_each() -> None:
    users = defaultdict(set)
    for path in MODULES:
        for name in imports(path):
            users[name.split(".")[0]].add(path)
    for package in ONE_FILE:
        assert len(users[package]) <= 1, f"{package} is imported by {sorted(map(where, users[package]))}"
    for package in CLI_ONLY:
        outside = [where(path) for path in users[package] if part(path) != "cli"]
        assert not outside, f"{package} is imported by {outside}"


def test_extras_are_imported_where_they_are_used() -> None:
    """Importing any module must work without the extras, so they are imported inside a function."""
    for path in MODULES:
        for node in tree(path).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & set(EXTRAS), where(path)


@pytest.mark.parametrize("path", MODULES, ids=where)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


def function_length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, docstring aside."""
    length = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node) is not None:
        docstring = node.body[0]
        length -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    return length


@pytest.mark.parametrize("path", MODULES, ids=where)
def test_functions_are_short(path: Path) -> None:
    functions = [n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {f"{f.name} (line {f.lineno})": size for f in functions if (size := function_length(f)) > MAX_FUNCTION_LINES}
    assert not long


@pytest.mark.parametrize("path", MODULES, ids=where)
def test_nothing_read_from_a_file_is_ever_executed(path: Path) -> None:
    unsafe = {name for name in imports(path) if name.split(".")[0] in UNSAFE_MODULES}
    unsafe |= {name for name in imports(path) if name in UNSAFE_CALLS}
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    unsafe |= UNSAFE_CALLS.intersection(ast.unparse(call.func) for call in calls)
    unsafe |= {"allow_pickle" for call in calls for keyword in call.keywords if keyword.arg == "allow_pickle"}
    assert not unsafe


def test_no_file_is_named_for_being_useful() -> None:
    assert not [where(path) for path in MODULES if path.stem in {"utils", "util", "helpers", "misc", "common"}]


@pytest.mark.parametrize("path", MODULES, ids=where)
def test_no_call_passes_on_arguments_it_does_not_name(path: Path) -> None:
    functions = [n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert not [f"{f.name} (line {f.lineno})" for f in functions if f.args.kwarg is not None]


def base_names(node: ast.ClassDef) -> list[str]:
    """Base classes by their last name: `Module` for `nn.Module`, `Task` for `Task[Batch]`."""
    return [ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases]


def test_public_methods_are_documented_where_they_are_declared() -> None:
    """An override may lean on the docstring of a base class of ours; a method declared first may not."""
    classes = {n.name: n for path in MODULES for n in ast.walk(tree(path)) if isinstance(n, ast.ClassDef)}

    def documented(owner: str, method: str) -> bool:
        if owner not in classes:
            return False
        own = {n.name: n for n in classes[owner].body if isinstance(n, ast.FunctionDef)}
        if method in own and ast.get_docstring(own[method]):
            return True
        return any(documented(base, method) for base in base_names(classes[owner]))

    bare = [
        f"{owner}.{node.name}"
        for owner, definition in classes.items()
        if not owner.startswith("_")
        for node in definition.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and not documented(owner, node.name)
    ]
    assert not bare


def test_the_changelog_opens_with_this_version() -> None:
    import fastweights

    versions = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert next(v for v in versions if v != "Unreleased") == fastweights.__version__


def test_asking_the_command_line_for_help_does_not_import_torch() -> None:
    """Torch takes seconds to import; `--help` and a mistyped option must answer at once."""
    program = (
        "import sys\n"
        "from fastweights.cli import main\n"
        "sys.argv = ['fastweights', '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "memorize" in done.stdout
