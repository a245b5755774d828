"""A model together with the tokenizer that it was trained with, by name or folder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fastweights.data.tokenizer import Tokenizer, load_tokenizer
from fastweights.errors import UserError
from fastweights.models.language_model import LanguageModel
from fastweights.models.pretrained import SHIPPED, load_model, model_info


class OpenedModel(NamedTuple):
    """A model that is ready to read text.

    Attributes:
        model: In evaluation mode, on the CPU.
        tokenizer: The one it was trained with.
        name: What finds it again: a shipped model's name, or the absolute path of a folder.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    name: str


def open_model(name: str | Path) -> OpenedModel:
    """Open a shipped model by its name, or any saved model by its folder.

    Raises:
        UserError: No such model, a damaged one, or one that reads symbols rather than text.
    """
    info = model_info(name)
    if not info.tokenizer:
        raise UserError(f"the model {str(name)!r} reads symbols, not text, so it cannot read files or answer questions")
    lasting = info.name if info.folder == SHIPPED / info.name else str(info.folder.resolve())
    return OpenedModel(load_model(name), load_tokenizer(info.tokenizer), lasting)
