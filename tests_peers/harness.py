"""lm-evaluation-harness without a network, and samples of its tasks, whose lengths our tokenizer counts."""

from __future__ import annotations

import os
import random
from functools import cache
from importlib import import_module
from tempfile import TemporaryDirectory
from typing import Any

# Read when the first package of the hub is imported; nothing is needed from there.
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np

from fastweights.data.tokenizer import load_tokenizer
from fastweights.evaluate.harness import save_tokenizer

BPE = load_tokenizer("bpe4096")
SHORT, LONG = 1024, 2048
_EACH = 500  # samples that the harness makes of one length

_FOLDER = TemporaryDirectory()
save_tokenizer(BPE, _FOLDER.name)
METADATA = {"max_seq_lengths": [SHORT, LONG], "tokenizer": _FOLDER.name}
"""What its RULER tasks want to be told."""


def lm_eval(module: str) -> Any:
    """A module of the harness, imported when it is needed: it takes seconds."""
    return import_module(f"lm_eval.{module}")


@cache
def manager() -> Any:
    """What knows the harness's tasks."""
    return lm_eval("tasks").TaskManager(metadata=METADATA)


class Theirs:
    """A task of the harness with its first samples of both lengths."""

    def __init__(self, name: str) -> None:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - the harness draws from it
        self.task = manager().load([name])["tasks"][name]
        self.task.build_all_requests(samples=[start + index for start in (0, _EACH) for index in range(3)])
        self.docs = [one.doc for one in self.task.instances]

    def prompts(self, length: int) -> list[str]:
        """As a model gets them."""
        return [one.args[0] for one in self.task.instances if one.doc["max_length"] == length]

    def score(self, doc: dict[str, Any], output: str) -> float:
        """What an output is worth to the harness."""
        found: float = self.task.process_results(doc, [output])[str(doc["max_length"])]
        return found


theirs = cache(Theirs)
