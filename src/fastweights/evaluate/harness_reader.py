"""What lm-evaluation-harness asks of a model, answered in terms of texts, without the harness itself.

Nothing has a longest length: every request begins with an empty memory and is streamed, whatever its length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch

from fastweights import __version__
from fastweights.data.tokenizer import Ids, Tokenizer
from fastweights.errors import UserError
from fastweights.evaluate.likelihood import Pair, Scored, beginning, pair_of, score, side_by_side, windows
from fastweights.inference.generation import continue_rows
from fastweights.inference.opening import open_model
from fastweights.inference.sampling import Sampling
from fastweights.inference.session import Session
from fastweights.inference.snapshot import blank
from fastweights.models.device import moved
from fastweights.models.language_model import LanguageModel

AT_ONCE = 8
"""Requests that are read side by side, by default."""

Rolling = Literal["document", "windows"]
"""How whole documents are measured: the memory carried from the first token to the last, or emptied for each window."""

_CALL_TOKENS = 4096  # of all requests together in one call of the model: this bounds the memory used
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_DEFAULT_LIMIT = 256  # the harness's
_WITHOUT_EFFECT = {"top_p", "top_k"}  # on the likeliest token
_ARGUMENTS = ("model", "rolling", "window", "batch_size", "max_batch_size", "device")


class Ending(NamedTuple):
    """Where an answer ends.

    Attributes:
        stop: Strings that end it and are cut off.
        max_tokens: Limit on its tokens.
    """

    stop: tuple[str, ...]
    max_tokens: int


def ending_of(arguments: Mapping[str, Any]) -> Ending:
    """What a task's generation arguments say of an answer.

    Args:
        arguments: The harness's ``generation_kwargs``: ``until`` (a string or several; empty ones are left out), the
            limit by one of its names (256 by default), and what greedy answers have no use for.

    Raises:
        UserError: The task wants answers that are drawn by chance, or something unknown.
    """
    rest = dict(arguments)
    until = rest.pop("until", None) or []
    limits = [_number(name, rest.pop(name)) for name in _LIMITS if rest.get(name) is not None]
    drawn, temperature = rest.pop("do_sample", None), _number("temperature", rest.pop("temperature", None) or 0.0)
    until = [until] if isinstance(until, str) else until
    if not isinstance(until, list | tuple) or not all(isinstance(text, str) for text in until):
        raise UserError(f"'until' is a string or a list of strings, not {until!r}")
    if drawn or (drawn is None and temperature > 0):
        raise UserError(
            "this model answers greedily, and the task wants answers drawn by chance: "
            "add --gen_kwargs do_sample=False,temperature=0"
        )
    if rest.pop("num_beams", None) not in (None, 1) or rest.keys() - _WITHOUT_EFFECT - set(_LIMITS):
        raise UserError(
            f"of a task's generation arguments this model knows the limit and 'until', not {dict(arguments)}"
        )
    limit = int(limits[0]) if limits else _DEFAULT_LIMIT
    if limit < 1:
        raise UserError(f"the limit on the tokens of an answer must be at least 1, not {limit}")
    return Ending(tuple(text for text in until if text), limit)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name!r} is a number, not {value!r}") from error


@dataclass(frozen=True)
class Reader:
    """Answers what the harness asks, in terms of texts; needs no harness.

    Each method yields the index of a request and its answer, in the order in which they are done.

    Attributes:
        model: Reads and predicts; put into evaluation mode.
        tokenizer: The one it was trained with.
        rolling: How whole documents are measured.
        window: Tokens of a window, where they are measured in windows.
        at_once: Most requests that are read side by side.

    Raises:
        UserError: A value outside its range, or a tokenizer that does not fit the model.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    rolling: Rolling = "document"
    window: int = 2048
    at_once: int = AT_ONCE

    def __post_init__(self) -> None:
        if self.rolling not in get_args(Rolling):
            raise UserError(f"rolling is one of {', '.join(get_args(Rolling))}, not {self.rolling!r}")
        if type(self.window) is not int or self.window < 1:
            raise UserError(f"a window has at least one token, not {self.window!r}")
        # What a session refuses is refused here too.
        Session(self.model, self.tokenizer, self.at_once)

    def log_likelihoods(self, requests: Sequence[tuple[str, str]]) -> Iterator[tuple[int, tuple[float, bool]]]:
        """For each context and continuation: the log-probability of the continuation, and whether it is greedy.

        Raises:
            FastweightsError: What the model predicts is not finite.
        """
        for index, found in self._scored([pair_of(self.tokenizer, *request) for request in requests]):
            yield index, (found.log_probability, found.greedy)

    def rolling_log_likelihoods(self, texts: Sequence[str]) -> Iterator[tuple[int, float]]:
        """The log-probability of each text as a whole document, which begins behind an end-of-text token.

        Raises:
            FastweightsError: What the model predicts is not finite.
        """
        documents = [self.tokenizer.encode_array(text) for text in texts]
        if self.rolling == "document":
            for index, found in self._scored([Pair(beginning(self.tokenizer), ids) for ids in documents]):
                yield index, found.log_probability
        else:
            for index, ids in enumerate(documents):
                parts = list(windows(self.tokenizer, ids, self.window))
                yield index, math.fsum(found.log_probability for _, found in self._scored(parts))

    def answers(self, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[tuple[int, str]]:
        """For each prompt and its generation arguments (see `ending_of`): its greedy, free-running continuation.

        Raises:
            UserError: Arguments that this model cannot follow; before anything is read.
            LogitsError: What the model predicts is not finite.
        """
        alike: dict[Ending, list[int]] = {}
        for index, (_, arguments) in enumerate(requests):
            alike.setdefault(ending_of(arguments), []).append(index)
        for ending, indices in alike.items():
            prompts = [self._prompt(requests[index][0]) for index in indices]
            for group in side_by_side([len(prompt) for prompt in prompts], self.at_once):
                for place, text in zip(group, self._continued([prompts[n] for n in group], ending), strict=True):
                    yield indices[place], text

    def facts(self) -> dict[str, Any]:
        """What the harness should write beside the results."""
        return {
            "fastweights_version": __version__,
            "model_num_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "model_sha": self.model.fingerprint(),
            "model_device": str(next(self.model.parameters()).device),
            "tokenizer": self.tokenizer.name,
            "rolling": self.rolling,
            "window": self.window if self.rolling == "windows" else None,
        }

    def _scored(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Scored]]:
        for group in side_by_side([len(pair.context) + len(pair.asked) for pair in pairs], self.at_once):
            found = score(self.model, [pairs[index] for index in group], _piece(group))
            yield from zip(group, found, strict=True)

    def _prompt(self, text: str) -> Ids:
        ids = self.tokenizer.encode_array(text)
        return ids if len(ids) else beginning(self.tokenizer)

    def _continued(self, prompts: Sequence[Ids], ending: Ending) -> list[str]:
        with torch.no_grad():
            found = continue_rows(
                self.model, self.tokenizer, blank(self.model, len(prompts)).state, prompts, Sampling().choose,
                max_tokens=ending.max_tokens, stop=ending.stop, piece=_piece(prompts),
            )  # fmt: skip
        return [answer.text for answer in found]


def _piece(rows: Sequence[Any]) -> int:
    """Tokens of each row that are read at a time."""
    return max(1, _CALL_TOKENS // len(rows))


def reader_of(arguments: Mapping[str, Any]) -> Reader:
    """The reader that the harness's ``--model_args`` and its own options ask for.

    Args:
        arguments: ``model``, a shipped model's name or a folder; ``rolling`` and ``window``, see `Reader`;
            ``batch_size``, the requests that are read side by side, "auto" for the default; ``max_batch_size``, the
            most for "auto"; ``device``, the CPU where it names CUDA and there is none: the harness does by default.

    Raises:
        UserError: No model, one that cannot be opened, something unknown, or a value outside its range.
    """
    unknown = sorted(arguments.keys() - set(_ARGUMENTS))
    if unknown:
        raise UserError(f"the model has no argument {unknown[0]!r}: it takes {', '.join(_ARGUMENTS)}")
    if "model" not in arguments:
        raise UserError("which model is to be measured? add --model_args model=NAME, or the folder of a model")
    opened = open_model(str(arguments["model"]))
    choices = {name: arguments[name] for name in ("rolling", "window") if name in arguments}
    model = moved(opened.model, _device(str(arguments.get("device") or "cpu")))
    return Reader(model, opened.tokenizer, at_once=_at_once(arguments), **choices)


def _device(name: str) -> str:
    return "cpu" if name.startswith("cuda") and not torch.cuda.is_available() else name


def _at_once(arguments: Mapping[str, Any]) -> int:
    asked, most = (str(arguments.get(name, "auto")) for name in ("batch_size", "max_batch_size"))
    if asked.startswith("auto"):
        return min(AT_ONCE, int(most)) if most.isdecimal() else AT_ONCE
    if not asked.isdecimal():
        raise UserError(f"the batch size is a number or auto, not {asked!r}")
    return int(asked)
