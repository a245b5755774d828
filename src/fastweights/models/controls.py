"""Controls: what is left of a model's answers when its memory is kept from doing one thing.

Each control is a copy of the model with other parameters, or another state, so that nothing in the layers knows of it.
A number that a control does not change was not the memory's work.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastweights.core.types import Gates, MemoryState
from fastweights.errors import UserError
from fastweights.layers.context import MACState
from fastweights.layers.continuum import ContinuumState
from fastweights.layers.memory import MemoryLayer
from fastweights.layers.self_modifying import SelfModifyingTitans
from fastweights.models.hope import Learner, LearnerState
from fastweights.models.language_model import LanguageModel, ModelState

_SHUT = -1e4
"""What a gate's number before the sigmoid is where the gate is 0 whatever the token."""


def _off(layer: MemoryLayer | SelfModifyingTitans) -> None:
    layer.out.weight.zero_()


def _frozen(layer: MemoryLayer) -> None:
    for part, name in _gate_biases(layer):
        if name in ("lr", "retain"):  # The gate named `retain` is opened as what is forgotten.
            part.fill_(_SHUT)


def _ascent(layer: MemoryLayer) -> None:
    lr, *others = layer.ranges
    layer.ranges = (-lr, *others)


def _still(layer: SelfModifyingTitans) -> None:
    for name in ("lr", "retain"):
        if name in layer.biases:
            layer.readouts[name].zero_()
            layer.biases[name].fill_(_SHUT)


def _upwards(layer: SelfModifyingTitans) -> None:
    layer.direction = -layer.direction


def _query_is_key(layer: MemoryLayer) -> None:
    inner = layer.heads * layer.head_dim
    for weight in (layer.qkv.weight, layer.convolution.weight.T):
        weight[:inner] = weight[inner : 2 * inner].clone()


def _gate_biases(layer: MemoryLayer) -> list[tuple[Tensor, str]]:
    """What each gate starts from before the sigmoid, by the gate's name: views of the parameters."""
    found: list[tuple[Tensor, str]] = []
    if layer.gates is not None:
        parts = layer.gates.bias.view(layer.heads, -1).split(layer.moving, 1)
        found += zip(parts, Gates._fields, strict=True)
    if layer.fixed_gates is not None:
        found += zip(layer.fixed_gates.split(layer.still, 1), Gates._fields, strict=True)
    return [(part, name) for part, name in found if part.shape[1]]


_CHANGES: dict[str, Callable[[MemoryLayer], None]] = {
    "off": _off,
    "frozen": _frozen,
    "query is key": _query_is_key,
    "ascent": _ascent,
}

_SELF_MODIFYING: dict[str, Callable[[SelfModifyingTitans], None]] = {
    "off": _off,
    "frozen": _still,
    "ascent": _upwards,
}
"""Of memories that make their own keys: there is no key to ask with."""

RESET = "reset"
"""The control that forgets everything just before the question; see :func:`forget`."""

CONTROLS: dict[str, str] = {
    "off": "the memory answers nothing",
    "frozen": "the memory neither writes nor forgets: it answers from its learned start",
    RESET: "the memory is reset just before the question",
    "query is key": "the memory is asked by the key of the token instead of its query",
    "ascent": "the memory steps up the gradient instead of down",
}
"""All controls, and what each does."""


def defined(name: str, model: LanguageModel) -> bool:
    """Whether a control says anything about a model.

    None does where nothing is learned while reading, or every token is kept. In MAC and MAG the memory's answer
    multiplies the attention's, so that without it nothing at all would pass: ``off`` is not defined there. ``frozen``
    and ``ascent`` need a step size; ``query is key`` needs one key a token, of its own. Levels are frozen, reset and
    turned round together with the memory, and on their own where there is none.

    Raises:
        UserError: there is no such control.
    """
    if name not in CONTROLS:
        raise UserError(f"there is no control {name!r}; there are {', '.join(CONTROLS)}")
    config = model.config
    if not config.has_memory or config.rule.grows:
        return any(config.level_chunks) and name in ("frozen", "ascent", RESET)
    rule = config.rule
    if name == "off":
        return config.wiring in ("lmm", "mal", "self_modifying")
    if name in ("frozen", "ascent"):
        return rule.scopes[0] is not None
    if name == "query is key":
        return config.wiring != "self_modifying" and rule.keys == 1 and not rule.tied and not rule.erase_key
    return True


def controlled(name: str, model: LanguageModel) -> LanguageModel:
    """A copy of a model under a control (under `RESET` the same: see :func:`forget`).

    Raises:
        UserError: the control is not defined for this model, or does not exist.
    """
    if not defined(name, model):
        raise UserError(f"the control {name!r} is not defined for a model of wiring {model.config.wiring!r}")
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for module in changed.modules():
            if name == RESET:
                continue
            if isinstance(module, MemoryLayer):
                _CHANGES[name](module)
            elif isinstance(module, SelfModifyingTitans):
                _SELF_MODIFYING[name](module)
            elif isinstance(module, Learner) and name == "frozen":
                module.steps.fill_(_SHUT)
            elif isinstance(module, Learner) and name == "ascent":
                module.direction = -module.direction
    return changed


def forget(model: LanguageModel, state: ModelState) -> ModelState:
    """The state with every memory as before the first token; attention and convolutions keep what they saw."""
    return _forgotten(state, model.init_state(len(model.position(state))))


def _forgotten(old: Any, fresh: Any) -> Any:
    if isinstance(old, MemoryState):  # Attention, which has no weights that learn, keeps its tokens.
        return fresh._replace(position=old.position) if old.dual else old
    if isinstance(old, Tensor):
        return old
    parts = [_forgotten(a, b) for a, b in zip(old, fresh, strict=True)]
    found = type(old)(*parts) if hasattr(old, "_fields") else tuple(parts)
    if isinstance(found, ContinuumState):
        return found._replace(offsets=fresh.offsets)
    if isinstance(found, LearnerState):
        # With nothing filled the window that was read so far is not learned from either.
        return found._replace(sums=fresh.sums, momenta=fresh.momenta, bases=fresh.bases, filled=fresh.filled)
    return found._replace(start=fresh.start) if isinstance(found, MACState) else found
