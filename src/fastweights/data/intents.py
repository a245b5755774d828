"""What people want when they write to a machine: short texts, each with the name of its intent.

CLINC150 (Larson et al. 2019, "An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction", CC BY 3.0)
is the file `data_full.json` of clinc/oos-eval; Banking77 (Casanueva et al. 2020, "Efficient Intent Detection with Dual
Sentence Encoders", CC BY 4.0) the files `train.csv` and `test.csv` of PolyAI-LDN/task-specific-datasets. Neither is
shipped with the package.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from fastweights.data.words import Split
from fastweights.errors import UserError

Clinc150Part = Literal["train", "val", "test"]
"""CLINC150 has 100, 20 and 30 texts an intent in them, 150 intents in each."""

OUT_OF_SCOPE = "oos"
"""What CLINC150 calls texts that have none of its intents."""

_BANKING77_COLUMNS = ["text", "category"]
_HELD_OUT = 3  # one intent of so many


class Utterance(NamedTuple):
    """A text and what its writer wants.

    Attributes:
        text: On one line, white space collapsed to single spaces, none at either end; never empty.
        label: Name of the intent, as the file spells it.
    """

    text: str
    label: str


class Intents(NamedTuple):
    """Texts with their intents, in the order of the file."""

    utterances: tuple[Utterance, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the intents, sorted."""
        return tuple(sorted({utterance.label for utterance in self.utterances}))

    def by_label(self) -> dict[str, tuple[str, ...]]:
        """The texts of each intent, each text once, in the order of the file; intents in the order of `labels`."""
        texts: dict[str, dict[str, None]] = {label: {} for label in self.labels}
        for text, label in self.utterances:
            texts[label][text] = None
        return {label: tuple(found) for label, found in texts.items()}

    def of(self, split: Split) -> Intents:
        """Those whose intent belongs to a split: about two thirds of the names are for training, the others are not.

        A name alone decides, so no intent is in both, whatever else a file holds: 89 of CLINC150's intents are for
        training and 61 held out, of Banking77's 47 and 30.
        """
        if split == "all":
            return self
        return Intents(tuple(u for u in self.utterances if _held_out(u.label) == (split == "eval")))


def _held_out(label: str) -> bool:
    return hashlib.sha256(label.encode()).digest()[0] % _HELD_OUT == 0


def read_clinc150(path: str | Path, part: Clinc150Part = "train", *, out_of_scope: bool = False) -> Intents:
    """Read one part of CLINC150's `data_full.json`.

    Args:
        path: The file.
        part: Which texts.
        out_of_scope: Whether to have the texts without an intent as well; they are called `OUT_OF_SCOPE`.

    Raises:
        UserError: No such part, or the file cannot be read or is another one.
    """
    if part not in get_args(Clinc150Part):
        raise UserError(f"CLINC150 has the parts {', '.join(get_args(Clinc150Part))}, not {part!r}")
    refusal = f"'{path}' is not CLINC150's data_full.json"
    try:
        data: Any = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{refusal}: it is not JSON") from error
    names = [part, f"{OUT_OF_SCOPE}_{part}"] if out_of_scope else [part]
    rows: list[Any] = []
    for name in names:
        found = data.get(name) if isinstance(data, dict) else None
        if not isinstance(found, list):
            raise UserError(f"{refusal}: it holds no list {name!r}")
        rows += found
    return _checked(rows, refusal)


def read_banking77(path: str | Path) -> Intents:
    """Read Banking77's `train.csv` (10,003 texts) or `test.csv` (3,080), 77 intents in each.

    Raises:
        UserError: The file cannot be read or is another one.
    """
    refusal = f"'{path}' is not one of Banking77's csv files"
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, strict=True))
    except OSError as error:
        raise _unreadable(path, error) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{refusal}: it is not a table in UTF-8") from error
    if not rows or rows[0] != _BANKING77_COLUMNS:
        raise UserError(f"{refusal}: its first line is not {','.join(_BANKING77_COLUMNS)}")
    return _checked(rows[1:], refusal)


def _unreadable(path: str | Path, error: OSError) -> UserError:
    return UserError(f"cannot read '{path}': {(error.strerror or str(error)).lower()}")


def _checked(rows: Iterable[Any], refusal: str) -> Intents:
    """Make utterances of pairs; what is none, or has an empty text or label, is refused by its number."""
    utterances = []
    for number, row in enumerate(rows, start=1):
        pair = isinstance(row, list) and len(row) == 2 and all(isinstance(part, str) for part in row)
        parts = [" ".join(part.split()) for part in row] if pair else []
        if not parts or not all(parts):
            raise UserError(f"{refusal}: its example {number} is not a text and a label")
        utterances.append(Utterance(*parts))
    if not utterances:
        raise UserError(f"{refusal}: it holds no examples")
    return Intents(tuple(utterances))
