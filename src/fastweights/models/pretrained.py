"""Models on disk: a folder with ``config.json`` and ``weights.safetensors``, and the models shipped with the package.

``config.json`` names the format, the tokenizer, the model's configuration and the SHA-256 of the weights, so a file
that was altered or cut short is refused rather than loaded.
"""

from __future__ import annotations

import difflib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fastweights.errors import UserError
from fastweights.models.config import ModelConfig
from fastweights.models.durable import sha256, sync, write_file, write_tensors
from fastweights.models.language_model import LanguageModel

FORMAT = 1
CONFIG = "config.json"
WEIGHTS = "weights.safetensors"
CARD = "README.md"
SHIPPED = Path(__file__).parent / "pretrained"


class ModelFileError(UserError):
    """A model that does not exist, cannot be written, or whose files are damaged."""


class ModelInfo(NamedTuple):
    """What is known of a model without loading its weights.

    Attributes:
        name: the folder's name.
        folder: where it lies.
        tokenizer: the tokenizer's name; empty when the model reads symbols rather than text.
        config: how to build it.
        parameters: how many numbers its parameters hold.
        weights_sha256: hash of the weights file, in hex.
        summary: first line of text of the model card, or empty.
    """

    name: str
    folder: Path
    tokenizer: str
    config: ModelConfig
    parameters: int
    weights_sha256: str
    summary: str


def save_model(
    model: LanguageModel, folder: str | Path, *, tokenizer: str, card: str = "", overwrite: bool = False
) -> ModelInfo:
    """Write a model's folder: whole, or not at all.

    Args:
        model: its parameters are stored in the dtype they have.
        folder: where to; made with its parents.
        tokenizer: name of the tokenizer the model was trained with, empty for none.
        card: text of its ``README.md``; empty for no file.
        overwrite: replace a model that lies there.

    Raises:
        ModelFileError: when the folder is taken or cannot be written; what lay there is intact then.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise ModelFileError(f"{folder} exists already: choose another folder, or allow overwriting")
    if folder.exists() and not (folder / CONFIG).is_file() and any(folder.iterdir()):
        raise ModelFileError(f"{folder} holds something that is not a model, so it is not overwritten")
    temporary = folder.with_name(f".writing-{folder.name}")
    aside = folder.with_name(f".replaced-{folder.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write(model, temporary, tokenizer, card)
        # No system call swaps two folders; between these renames the old model lies aside, whole.
        shutil.rmtree(aside, ignore_errors=True)
        if folder.exists():
            folder.rename(aside)
        temporary.rename(folder)
        sync(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if aside.exists() and not folder.exists():
            aside.rename(folder)
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ModelFileError(f"the model could not be written to {folder}: {reason}") from error
    shutil.rmtree(aside, ignore_errors=True)
    return model_info(folder)


def load_model(name: str | Path, *, dtype: torch.dtype | None = None) -> LanguageModel:
    """Load a model, shipped or saved, in eval mode on the CPU.

    Args:
        name: name of a shipped model (see `list_models`) or path of a folder that `save_model` wrote.
        dtype: convert the parameters to this; None keeps the stored dtype.

    Raises:
        ModelFileError: when there is no such model, or a file is missing, altered or of another format.
    """
    info = model_info(name)
    file = info.folder / WEIGHTS
    if not file.is_file():
        raise ModelFileError(f"the model in {info.folder} is incomplete: {WEIGHTS} is missing")
    if sha256(file) != info.weights_sha256:
        raise ModelFileError(f"the model in {info.folder} is damaged: {WEIGHTS} is not the file its {CONFIG} names")
    tensors = load_file(file)
    # Building a model draws random numbers; loading one should not disturb the caller's.
    with torch.random.fork_rng(devices=[]):
        model = LanguageModel(info.config)
    stored = {tensor.dtype for key, tensor in tensors.items() if key in dict(model.named_parameters())}
    if len(stored) == 1:
        model = model.to(stored.pop())
    fill(model, tensors)
    return model.to(dtype).eval() if dtype is not None else model.eval()


def model_info(name: str | Path) -> ModelInfo:
    """What a model's folder says of itself, without reading its weights.

    Raises:
        ModelFileError: when there is no such model or its ``config.json`` cannot be read.
    """
    folder = _find(name)
    try:
        facts = json.loads((folder / CONFIG).read_bytes())
        if facts["format"] != FORMAT:
            number = facts["format"]
            raise ModelFileError(f"the model in {folder} has format {number}; this version reads format {FORMAT}")
        config = ModelConfig.from_json(json.dumps(facts["model"]))
        numbers = (str(facts["tokenizer"]), config, int(facts["parameters"]), str(facts["weights_sha256"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise ModelFileError(f"the model in {folder} is damaged: {CONFIG} cannot be read as a model's") from error
    return ModelInfo(folder.name, folder, *numbers, _summary(folder / CARD))


def list_models() -> list[ModelInfo]:
    """Every model shipped with the package, by name."""
    return [model_info(name) for name in _shipped_names()]


def persistent_buffers(model: torch.nn.Module) -> dict[str, Tensor]:
    """The buffers that belong to a model's state (those that ``state_dict`` holds), by name."""
    kept = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in kept}


@torch.no_grad()
def fill(model: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy ``tensors`` into a model's parameters and persistent buffers; tied parameters are stored once.

    Raises:
        ModelFileError: when names or shapes differ.
    """
    places = dict(model.named_parameters()) | persistent_buffers(model)
    if places.keys() != tensors.keys():
        name = sorted(places.keys() ^ tensors.keys())[0]
        side = "lack" if name in places else "hold the unknown"
        raise ModelFileError(f"these weights do not belong to this model's configuration: they {side} tensor {name}")
    for name, place in places.items():
        if place.shape != tensors[name].shape:
            shapes = f"{list(tensors[name].shape)} where the model has {list(place.shape)}"
            raise ModelFileError(f"these weights do not belong to this model's configuration: {name} is {shapes}")
        place.copy_(tensors[name])


def _write(model: LanguageModel, folder: Path, tokenizer: str, card: str) -> None:
    tensors = dict(model.named_parameters()) | persistent_buffers(model)
    write_tensors(folder / WEIGHTS, tensors)
    facts = {
        "format": FORMAT,
        "tokenizer": tokenizer,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights_sha256": sha256(folder / WEIGHTS),
        "model": json.loads(model.config.to_json()),
    }
    write_file(folder / CONFIG, (json.dumps(facts, indent=2) + "\n").encode())
    if card:
        write_file(folder / CARD, card.encode())


def _find(name: str | Path) -> Path:
    """The folder of a shipped model or of a model at a path; for a folder of a shipped model's name say ``./name``."""
    folder = Path(name)
    shipped = _shipped_names()
    if isinstance(name, str) and name in shipped:
        return SHIPPED / name
    if (folder / CONFIG).is_file():
        return folder
    if folder.exists():
        raise ModelFileError(f"{folder} is not a model: it holds no {CONFIG}")
    near = difflib.get_close_matches(str(name), shipped, n=1)
    known = f"shipped models: {', '.join(shipped)}" if shipped else "no models are shipped"
    hint = f"did you mean {near[0]}?" if near else f"{known}; or give a model's folder"
    raise ModelFileError(f"there is no model or folder named {str(name)!r}; {hint}")


def _shipped_names() -> list[str]:
    if not SHIPPED.is_dir():
        return []
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG}"))


def _summary(card: Path) -> str:
    """The first line of prose of a model card."""
    if not card.is_file():
        return ""
    lines = (line.strip() for line in card.read_text(encoding="utf-8", errors="replace").splitlines())
    return next((line for line in lines if line and not line.startswith(("#", "-", "|", "<", "```"))), "")
