"""Where the other implementations are: packages of the peers' environment, and single files that are loaded by path."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from importlib.metadata import distributions, version
from pathlib import Path
from types import ModuleType

import pytest
from tests_peers import fetch_ttt

SOURCES = Path(sys.prefix) / "sources"


@cache
def fla(operation: str) -> ModuleType:
    """The plain torch file of one operation of fla-core.

    The packages around it import Triton, which needs a GPU; they are replaced by bare ones while the file is loaded.
    """
    parts = f"fla.ops.{operation}".split(".")
    names = [".".join(parts[: i + 1]) for i in range(len(parts))]
    for name in names:
        package = ModuleType(name)
        package.__path__ = [str(SOURCES / name.replace(".", "/"))]
        sys.modules[name] = package
    try:
        return importlib.import_module(f"fla.ops.{operation}.naive")
    finally:
        for name in names:
            del sys.modules[name]


@cache
def transformers(model: str) -> ModuleType:
    """The modelling file of one model of transformers; without a GPU it computes in plain torch."""
    return importlib.import_module(f"transformers.models.{model}.modeling_{model}")


@cache
def _ttt() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ttt", fetch_ttt.TARGET)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ttt() -> ModuleType:
    """The one file of ttt-lm-pytorch; it is on no package index, so there may be none."""
    if not fetch_ttt.TARGET.exists():
        pytest.skip("ttt-lm-pytorch could not be fetched; .venv-peers/bin/python tests_peers/fetch_ttt.py tries again")
    return _ttt()


def peer_version(peer: str) -> str:
    """The version of a peer: of its distribution, or the commit."""
    if peer == "ttt-lm-pytorch":
        return fetch_ttt.COMMIT
    if peer == "fla-core":
        return next(found.version for found in distributions(path=[str(SOURCES)]) if found.name == peer)
    return version(peer)
