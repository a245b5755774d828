"""A model of this library in lm-evaluation-harness (EleutherAI, version 0.4.13 or newer), an optional package.

The harness looks for no models in other packages: it knows those that were registered in its own process. So its
command line is started by this module, and takes the words that it always takes:

    python -m fastweights.evaluate.harness run --model fastweights --model_args model=NAME --tasks TASK

`reader_of` names the arguments. In Python, importing this module registers the model "fastweights"; a model that is
there already is handed over as an object:

    lm_eval.simple_evaluate(model=adapter()(Reader(model, tokenizer)), tasks=["lambada_openai"])

Tasks that count tokens, such as RULER's, need a tokenizer that transformers can read: see `save_tokenizer`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastweights.data.tokenizer import SPECIALS, BPETokenizer, ByteTokenizer, Tokenizer, byte_symbols
from fastweights.errors import FastweightsError, UserError
from fastweights.evaluate.harness_reader import Reader, reader_of
from fastweights.models.durable import write_file

NAME = "fastweights"
"""The model's name in the harness."""

_MISSING = "lm-evaluation-harness is not installed: add it with pip install 'fastweights[eval]'"


@cache
def adapter() -> type[Any]:
    """The class that the harness calls: ``adapter()(reader)`` is a model for ``lm_eval.simple_evaluate``.

    The first call registers it in the harness as "fastweights".

    Raises:
        UserError: The harness is not installed.
    """
    try:
        from lm_eval.api.model import LM  # type: ignore[import-not-found]
        from lm_eval.api.registry import register_model  # type: ignore[import-not-found]
        from lm_eval.utils import simple_parse_args_string  # type: ignore[import-not-found]
    except ImportError as error:
        raise UserError(_MISSING) from error

    @register_model(NAME)
    class HarnessModel(LM):
        """A reader in the harness's own terms."""

        def __init__(self, reader: Reader) -> None:
            super().__init__()
            self.reader = reader

        @classmethod
        def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: Any = None) -> Any:
            """The model of ``--model_args`` and of the harness's own options, which are None where not given."""
            own = {name: value for name, value in (additional_config or {}).items() if value is not None}
            return cls(reader_of(arg_dict | own))

        @classmethod
        def create_from_arg_string(cls, arg_string: str, additional_config: Any = None) -> Any:
            """The same from one string."""
            return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

        @property
        def tokenizer_name(self) -> str:
            """For the names of cached requests."""
            return f"{NAME}-{self.reader.tokenizer.name}".replace("/", "__")

        @property
        def max_length(self) -> None:
            """There is no longest length."""

        def get_model_info(self) -> dict[str, Any]:
            """What is written beside the results."""
            return self.reader.facts()

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            """See `Reader.log_likelihoods`."""
            found = self.reader.log_likelihoods([one.args for one in requests])
            return _all(self, "loglikelihood", requests, found, disable_tqdm)

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            """See `Reader.rolling_log_likelihoods`."""
            found = self.reader.rolling_log_likelihoods([one.args[0] for one in requests])
            return _all(self, "loglikelihood_rolling", requests, found, disable_tqdm)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            """See `Reader.answers`."""
            found = self.reader.answers([one.args for one in requests])
            return _all(self, "generate_until", requests, found, disable_tqdm)

    return HarnessModel


def _all(model: Any, kind: str, requests: list[Any], found: Iterable[tuple[int, Any]], quiet: bool) -> list[Any]:
    """The answers in order; each is handed to the harness's cache as soon as there is one."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    results: list[Any] = [None] * len(requests)
    for index, result in tqdm(found, desc=f"{NAME} {kind}", total=len(requests), disable=quiet):
        results[index] = result
        model.cache_hook.add_partial(kind, requests[index].args, result)
    return results


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write a tokenizer as transformers reads one, for tasks that count tokens themselves, such as RULER's.

    Such a task takes its folder as ``--metadata tokenizer=FOLDER``; its tokens are those of the model then.

    Args:
        tokenizer: Of this library.
        folder: Made with its parents; ``tokenizer.json`` and ``tokenizer_config.json`` in it are replaced.

    Raises:
        UserError: The folder cannot be written, or the tokenizer is another package's.
    """
    if not isinstance(tokenizer, BPETokenizer | ByteTokenizer):
        raise UserError(f"the tokenizer '{tokenizer.name}' is not one of this library's: load one with load_tokenizer")
    definition = tokenizer.definition() if isinstance(tokenizer, BPETokenizer) else _definition_of_bytes()
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_file(Path(folder) / "tokenizer.json", definition.encode())
        write_file(Path(folder) / "tokenizer_config.json", b'{"tokenizer_class": "PreTrainedTokenizerFast"}\n')
    except OSError as error:
        raise UserError(f"the tokenizer cannot be written to {folder}: {error.strerror or error}") from error


def _definition_of_bytes() -> str:
    """Byte-level pieces without merges are bytes."""
    symbols = {symbol: byte + len(SPECIALS) for byte, symbol in enumerate(byte_symbols())}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    vocabulary = {name: number for number, name in enumerate(SPECIALS)} | symbols
    model = {"type": "BPE", "vocab": vocabulary, "merges": []}
    return json.dumps({"version": "1.0", "added_tokens": [], "pre_tokenizer": level, "decoder": level, "model": model})


def main() -> int:
    """The harness's own command line, which knows the model "fastweights"; returns the exit status."""
    try:
        adapter()
        from lm_eval.__main__ import cli_evaluate  # type: ignore[import-not-found]

        cli_evaluate()
    except FastweightsError as error:
        sys.stderr.write(f"fastweights: {error}\n")
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
elif find_spec("lm_eval") is not None:
    adapter()
