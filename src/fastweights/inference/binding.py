"""What ties a memory file to a model: what is written about a session, and what is checked before one is loaded."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastweights import __version__
from fastweights.core.rule import rule_from_dict
from fastweights.data.tokenizer import Tokenizer
from fastweights.errors import UserError
from fastweights.inference.header import MemoryHeader, Passage
from fastweights.inference.memory_file import MemoryFileError, Spec, spec_of
from fastweights.inference.snapshot import Snapshot, blank, health
from fastweights.inference.surprise import SurpriseLog
from fastweights.models.language_model import LanguageModel, flatten_state, unflatten_state


def vocabulary_sha256(tokenizer: Tokenizer) -> str:
    """SHA-256 over the entries of a tokenizer, in hexadecimal."""
    digest = hashlib.sha256()
    for token in range(tokenizer.vocab_size):
        entry = tokenizer.token_bytes(token)
        digest.update(len(entry).to_bytes(4, "little") + entry)
    return digest.hexdigest()


def header_of(
    model: LanguageModel, model_name: str, tokenizer: Tokenizer, piece: int, now: Snapshot, settled: Snapshot
) -> MemoryHeader:
    """What a file says about a session.

    Args:
        model: Its model.
        model_name: How it is called.
        tokenizer: Its tokenizer.
        piece: Tokens read at a time.
        now: What is saved.
        settled: The same with the waiting tokens written: health and passages speak of everything that was read.
    """
    require_constant_size(model)
    return MemoryHeader(
        library=__version__,
        model=model_name,
        fingerprint=model.fingerprint(),
        tokenizer=tokenizer.name,
        vocabulary=vocabulary_sha256(tokenizer),
        rule=_plain_rule(model),
        piece=piece,
        tokens=now.tokens,
        pending=tuple(map(len, now.waiting)),
        sources=now.sources,
        health=health(settled),
        passages=passages(settled, tokenizer),
    )


def require_constant_size(model: LanguageModel) -> None:
    """Refuses a model whose memory grows, since a memory file has one size, and one that has no memory to save.

    Raises:
        MemoryFileError: Its memory grows, or there is none.
    """
    if not model.config.learns:
        raise MemoryFileError(
            f"a model of wiring {model.config.wiring!r} has no memory to save: choose lmm, mac, mag, mal or "
            "self_modifying, or give it levels"
        )
    if model.config.grows:
        raise MemoryFileError(
            "a memory that keeps every token grows with the text, and a memory file cannot: choose a model with "
            "another rule than softmax attention"
        )


def passages(now: Snapshot, tokenizer: Tokenizer) -> tuple[Passage, ...]:
    """The most surprising passages of all rows, most surprising first within a row."""
    return tuple(passage for row in range(len(now.waiting)) for passage in now.log.passages(row, tokenizer.decode))


def _plain_rule(model: LanguageModel) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(model.config.rule.to_dict()))
    return plain


def tensors_of(now: Snapshot, piece: int) -> dict[str, Tensor]:
    """The tensors of a memory file."""
    waiting = np.zeros((len(now.waiting), piece), np.int32)
    for row, ids in enumerate(now.waiting):
        waiting[row, : len(ids)] = ids
    return {
        **{f"state.{name}": tensor for name, tensor in flatten_state(now.state).items()},
        **{f"surprise.{name}": torch.from_numpy(part) for name, part in now.log._asdict().items()},
        "waiting": torch.from_numpy(waiting),
    }


def expected(header: MemoryHeader, model: LanguageModel, tokenizer: Tokenizer, name: str) -> Spec:
    """The tensors that a file with this header has to hold for this model.

    Raises:
        MemoryFileError: It belongs to another model or tokenizer; the sentence says what differs.
    """
    require_constant_size(model)
    ours = _plain_rule(model)
    if (difference := _difference(_completed(header.rule), ours)) is not None:
        raise MemoryFileError(f"'{name}' belongs to a model with another memory rule: {difference}")
    fingerprint = model.fingerprint()
    if header.fingerprint != fingerprint:
        raise MemoryFileError(
            f"'{name}' belongs to another model: to '{header.model}' with fingerprint {header.fingerprint[:12]}, "
            f"where this one has {fingerprint[:12]}"
        )
    if header.vocabulary != vocabulary_sha256(tokenizer):
        raise MemoryFileError(
            f"'{name}' was read with the tokenizer '{header.tokenizer}', whose entries are not those of "
            f"'{tokenizer.name}'"
        )
    # One row is all that is built here, so a header that claims a million rows costs nothing.
    one = spec_of(tensors_of(blank(model, 1), 1))
    spec = {key: ((header.rows, *shape[1:]), dtype) for key, (shape, dtype) in one.items()}
    return {**spec, "waiting": ((header.rows, header.piece), torch.int32)}


def _completed(rule: dict[str, Any]) -> dict[str, Any]:
    """A saved rule with the fields that have been added since; as it is where this version cannot build it."""
    try:
        completed: dict[str, Any] = json.loads(json.dumps(rule_from_dict(rule).to_dict()))
    except (UserError, TypeError):
        return rule
    return completed


def _difference(theirs: Any, ours: Any, path: str = "rule") -> str | None:
    """The first field in which two rules differ, in words."""
    if isinstance(theirs, dict) and isinstance(ours, dict) and theirs.get("kind") == ours.get("kind"):
        for key in sorted(theirs.keys() | ours.keys()):
            found = _difference(theirs.get(key), ours.get(key), key)
            if found is not None:
                return found
        return None
    if theirs == ours:
        return None
    return f"its {path} is {_short(theirs)} where this model's is {_short(ours)}"


def _short(value: Any) -> str:
    return str(value["kind"]) if isinstance(value, dict) and "kind" in value else json.dumps(value)


def restored(
    header: MemoryHeader, tensors: dict[str, Tensor], model: LanguageModel, tokenizer: Tokenizer, name: str
) -> Snapshot:
    """The snapshot that was saved.

    Raises:
        MemoryFileError: Its parts contradict each other.
    """
    device = next(model.parameters()).device
    like = blank(model, 1).state
    state = unflatten_state(like, {key: tensors[f"state.{key}"].to(device) for key in flatten_state(like)})
    log = SurpriseLog(*(tensors[f"surprise.{field}"].numpy() for field in SurpriseLog._fields))
    rows = zip(tensors["waiting"].numpy(), header.pending, strict=True)
    now = Snapshot(state, tuple(row[:size].copy() for row, size in rows), log, header.sources)
    ids = np.concatenate(now.waiting)
    sound = (
        now.tokens == header.tokens
        and model.position(state).tolist() == log.tokens.tolist()
        and bool((log.width >= 1).all())
        and bool(((ids >= 0) & (ids < tokenizer.vocab_size)).all())
    )
    if not sound:
        raise MemoryFileError(f"'{name}' is damaged: what it says about its tokens contradicts its state")
    return now
