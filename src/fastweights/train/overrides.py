"""``a.b=c``: change one setting of a tree of frozen dataclasses, checked against the field's declared type."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fastweights.errors import UserError

Config = TypeVar("Config")


class OverrideError(UserError):
    """An override names no setting, or gives a value that the setting cannot take."""


def apply_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """Return a copy of ``config`` with each ``KEY=VALUE`` applied in turn.

    A key walks fields with dots; an item of a tuple is its index (``stages.0.steps=50``). Values are read by the
    field's type: ``true``/``false``, ``none`` where None is allowed, ``0.9,0.95`` or ``[0.9, 0.95]`` for tuples.

    Args:
        config: a frozen dataclass, possibly with dataclasses and tuples of dataclasses inside.
        overrides: texts such as ``optimiser.lr=3e-4``.

    Raises:
        OverrideError: for an unknown key (with the nearest known one), a value of the wrong type, or a key that names
            a group of settings. Whatever a dataclass's own ``__post_init__`` refuses is passed on as it is.
    """
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key.strip():
            raise OverrideError(f"an override must read key=value (such as optimiser.lr=0.001), not {override!r}")
        config = _replace(config, config, key.strip().split("."), 0, value.strip())
    return config


def flatten(value: object, prefix: str = "") -> dict[str, Any]:
    """Every leaf of nested dicts and lists by its dotted key: ``{"a": {"b": [1]}}`` becomes ``{"a.b.0": 1}``."""
    if isinstance(value, dict):
        items: Sequence[tuple[str, Any]] = [(str(k), v) for k, v in value.items()]
    elif isinstance(value, list):
        items = [(str(i), v) for i, v in enumerate(value)]
    else:
        return {prefix: value}
    flat: dict[str, Any] = {} if items or not prefix else {prefix: value}
    for key, inner in items:
        flat.update(flatten(inner, f"{prefix}.{key}" if prefix else key))
    return flat


def keys(config: object, prefix: str = "") -> Iterator[str]:
    """The dotted keys of every setting that an override can change, in order."""
    if dataclasses.is_dataclass(config):
        for field in _fields(config):
            yield from keys(getattr(config, field.name), f"{prefix}{field.name}.")
    elif isinstance(config, tuple) and any(dataclasses.is_dataclass(item) for item in config):
        for index, item in enumerate(config):
            yield from keys(item, f"{prefix}{index}.")
    else:
        yield prefix.rstrip(".")


def _fields(node: Any) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(node) if field.init]


def _replace(root: object, node: Any, path: list[str], depth: int, text: str) -> Any:
    """Rebuild ``node`` with the leaf at ``path[depth:]`` set to ``text``."""
    name, last = path[depth], depth == len(path) - 1
    if isinstance(node, tuple):
        if not name.isdigit() or int(name) >= len(node):
            raise OverrideError(_unknown(root, path, [str(i) for i in range(len(node))], depth))
        item = node[int(name)]
        if last:
            raise OverrideError(f"{'.'.join(path)} is a group of settings; set one of its fields instead")
        return (*node[: int(name)], _replace(root, item, path, depth + 1, text), *node[int(name) + 1 :])
    names = [field.name for field in _fields(node)] if dataclasses.is_dataclass(node) else []
    if name not in names:
        raise OverrideError(_unknown(root, path, names, depth))
    current = getattr(node, name)
    if not last:
        new = _replace(root, current, path, depth + 1, text)
    else:
        new = _parse(".".join(path), get_type_hints(type(node))[name], current, text)
    return dataclasses.replace(node, **{name: new})


def _unknown(root: object, path: list[str], siblings: list[str], depth: int) -> str:
    """The sentence for a key that does not exist, with the nearest key that does."""
    key, prefix = ".".join(path), path[:depth]
    if not siblings:
        return f"unknown setting {key!r}: {'.'.join(prefix)!r} has no settings inside it"
    near = difflib.get_close_matches(path[depth], siblings, n=1, cutoff=0.6)
    if near:
        return f"unknown setting {key!r}: did you mean {'.'.join([*prefix, near[0], *path[depth + 1 :]])!r}?"
    known = list(keys(root))
    near = [k for k in known if k.split(".")[-1] == path[-1]] or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if near:
        return f"unknown setting {key!r}: did you mean {near[0]!r}?"
    where = f"{'.'.join(prefix)!r} has" if prefix else "there are"
    return f"unknown setting {key!r}: {where} {', '.join(siblings)}"


def _parse(key: str, hint: Any, current: object, text: str) -> Any:
    if dataclasses.is_dataclass(current) or _holds_dataclass(hint):
        choices = [h for h in get_args(hint) if h is type(None)]
        if choices and text.lower() == "none":
            return None
        inside = next(iter(keys(current)), "") if dataclasses.is_dataclass(current) else ""
        example = f" such as {key}.{inside}" if inside else ""
        raise OverrideError(f"{key} is a group of settings; set one of its fields{example} instead")
    try:
        return _convert(hint, text)
    except ValueError:
        raise OverrideError(f"{key} must be {_describe(hint)}, not {text!r}") from None


def _holds_dataclass(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) or any(_holds_dataclass(inner) for inner in get_args(hint))


def _convert(hint: Any, text: str) -> Any:
    """Read ``text`` as the type ``hint``; ValueError when it is not one."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, text)
    if origin is Literal:
        return next(choice for choice in arguments if str(choice) == text) if text in map(str, arguments) else _fail()
    if origin is tuple:
        return _convert_tuple(arguments, text)
    if hint is bool:
        return text.lower() == "true" if text.lower() in ("true", "false") else _fail()
    if hint is int:
        return int(text)
    if hint is float:
        number = float(text)
        return _fail() if math.isnan(number) else number
    return text if hint is str else _fail()


def _fail() -> Any:
    raise ValueError


def _convert_union(arguments: tuple[Any, ...], text: str) -> Any:
    if type(None) in arguments and text.lower() == "none":
        return None
    # str takes anything, so it is asked last: `int | str` reads 3 as a number.
    for inner in sorted((a for a in arguments if a is not type(None)), key=lambda a: a is str):
        try:
            return _convert(inner, text)
        except ValueError:
            continue
    return _fail()


def _convert_tuple(arguments: tuple[Any, ...], text: str) -> tuple[Any, ...]:
    if text.startswith("["):
        loaded = json.loads(text)
        pieces = [item if isinstance(item, str) else json.dumps(item) for item in loaded]
    else:
        pieces = [piece.strip() for piece in text.split(",")] if text else []
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_convert(arguments[0], piece) for piece in pieces)
    if len(pieces) != len(arguments):
        return _fail()
    return tuple(_convert(inner, piece) for inner, piece in zip(arguments, pieces, strict=True))


def _describe(hint: Any) -> str:
    """What a value of this type looks like, for a sentence that ends a run."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(a) for a in arguments)
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in arguments)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return f"values separated by commas, each {_describe(arguments[0])}"
        return f"{len(arguments)} values separated by commas"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "none"}
    return names.get(hint, f"a {getattr(hint, '__name__', hint)}, which cannot be given as text")
