"""Intents are read as the published files have them; any other file is refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastweights.data.intents import OUT_OF_SCOPE, Intents, Utterance, read_banking77, read_clinc150
from fastweights.errors import UserError

CLINC150 = {
    "oos_val": [["who won", "oos"]],
    "val": [["move money", "transfer"]],
    "train": [["send 5 dollars", "transfer"], ["tell a joke", "tell_joke"], ["send 5 dollars", "transfer"]],
    "oos_test": [["how tall is it", "oos"], ["why", "oos"]],
    "test": [["make me laugh", "tell_joke"]],
    "oos_train": [["what is the sky", "oos"]],
}
BANKING77 = 'text,category\n"\nMy card, lost?\n\n",lost_or_stolen_card\r\nWhen  will it come?,Refund_not_showing_up\r\n'


@pytest.fixture
def clinc150(tmp_path: Path) -> Path:
    path = tmp_path / "data_full.json"
    path.write_text(json.dumps(CLINC150), encoding="utf-8")
    return path


@pytest.fixture
def banking77(tmp_path: Path) -> Path:
    path = tmp_path / "test.csv"
    path.write_bytes(BANKING77.encode())
    return path


def test_a_part_of_clinc150_has_its_texts_in_order(clinc150: Path) -> None:
    train = read_clinc150(clinc150)
    assert train.utterances == (
        Utterance("send 5 dollars", "transfer"),
        Utterance("tell a joke", "tell_joke"),
        Utterance("send 5 dollars", "transfer"),
    )
    assert train.labels == ("tell_joke", "transfer")
    assert train.by_label() == {"tell_joke": ("tell a joke",), "transfer": ("send 5 dollars",)}
    assert read_clinc150(clinc150, "val").utterances == (Utterance("move money", "transfer"),)
    assert read_clinc150(str(clinc150), "test").labels == ("tell_joke",)


def test_texts_out_of_scope_come_when_asked_for(clinc150: Path) -> None:
    test = read_clinc150(clinc150, "test", out_of_scope=True)
    assert test.labels == (OUT_OF_SCOPE, "tell_joke")
    assert test.by_label()[OUT_OF_SCOPE] == ("how tall is it", "why")


def test_banking77_has_one_line_a_text(banking77: Path) -> None:
    assert read_banking77(banking77).utterances == (
        Utterance("My card, lost?", "lost_or_stolen_card"),
        Utterance("When will it come?", "Refund_not_showing_up"),
    )


def test_a_class_is_either_for_training_or_held_out() -> None:
    names = [f"intent_{number}" for number in range(300)]
    intents = Intents(tuple(Utterance(f"text {number}", name) for number, name in enumerate(names)))
    train, held_out = intents.of("train"), intents.of("eval")
    assert set(train.labels).isdisjoint(held_out.labels)
    assert sorted((*train.labels, *held_out.labels)) == list(intents.of("all").labels) == sorted(names)
    assert 70 < len(held_out.labels) < 130
    # The name alone decides.
    alone = Intents(intents.utterances[:7])
    assert alone.of("train").utterances == tuple(u for u in alone.utterances if u in train.utterances)


TRAINED_ON = ("exchange_rate", "timer", "weather")


def test_names_stay_on_their_side() -> None:
    """Results of different versions may only be compared if training saw the same classes."""
    names = ("transfer", "tell_joke", "exchange_rate", "pin_blocked", "balance", "card_arrival", "weather", "timer")
    intents = Intents(tuple(Utterance("text", name) for name in names))
    assert intents.of("train").labels == TRAINED_ON


@pytest.mark.parametrize(
    ("read", "content", "says"),
    [
        (read_clinc150, b"", "it is not JSON"),
        (read_clinc150, b"\xff\xfe", "it is not JSON"),
        (read_clinc150, b"[" * 100_000, "it is not JSON"),
        (read_clinc150, b"[1, 2]", "it holds no list 'train'"),
        (read_clinc150, b'{"test": []}', "it holds no list 'train'"),
        (read_clinc150, b'{"train": []}', "it holds no examples"),
        (read_clinc150, b'{"train": [["a", "b"], ["a"]]}', "its example 2 is not a text and a label"),
        (read_clinc150, b'{"train": [["a", 3]]}', "its example 1 is not a text and a label"),
        (read_clinc150, b'{"train": [["  ", "b"]]}', "its example 1 is not a text and a label"),
        (read_clinc150, BANKING77.encode(), "it is not JSON"),
        (read_banking77, b"", "its first line is not text,category"),
        (read_banking77, b"category,text\na,b\n", "its first line is not text,category"),
        (read_banking77, b"text,category\n", "it holds no examples"),
        (read_banking77, b"text,category\na,b\na,b,c\n", "its example 2 is not a text and a label"),
        (read_banking77, b"text,category\n\xff,b\n", "it is not a table in UTF-8"),
        (read_banking77, b'text,category\n"a,b\n', "it is not a table in UTF-8"),
        (read_banking77, json.dumps(CLINC150).encode(), "its first line is not text,category"),
    ],
)
def test_another_file_is_refused(read: Callable[[Path], Any], content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [read_clinc150, read_banking77])
def test_a_missing_file_is_named(read: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*nothing': no such file"):
        read(tmp_path / "nothing")


def test_a_part_that_does_not_exist_is_refused(clinc150: Path) -> None:
    with pytest.raises(UserError, match="parts train, val, test, not 'valid'"):
        read_clinc150(clinc150, "valid")  # type: ignore[arg-type]
