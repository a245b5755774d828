"""Batches of labelled texts: whole lines, classes of one split only, weights where a class can be told."""

from __future__ import annotations

import json

import pytest
import torch

from fastweights.data.intents import read_clinc150
from fastweights.data.tokenizer import load_tokenizer
from fastweights.errors import UserError
from fastweights.tasks.class_incremental import ClassesSpec, label_words
from fastweights.train.class_incremental import ClassIncrementalTask
from fastweights.train.task import Batch

TOKENIZER = load_tokenizer("bpe4096")
STREAM = ClassesSpec(groups=2, classes=2, examples=3, questions=2)
TOPICS = ("card", "loan", "song", "rain", "lunch", "train", "clock", "coat", "bread", "phone", "garden", "letter")


@pytest.fixture(scope="module")
def clinc150(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("intents") / "data_full.json"
    rows = [[f"tell {n} me about my {topic}", f"{topic}_info"] for topic in TOPICS for n in range(6)]
    path.write_text(json.dumps({"train": rows}), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def banking77(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("intents") / "train.csv"
    rows = [f"{n} fees of my {topic},{topic}_{name}" for topic in TOPICS for name in ("info", "fee") for n in range(6)]
    path.write_text("\n".join(["text,category", *rows]), encoding="utf-8")
    return str(path)


def task(clinc150: str, stream: ClassesSpec = STREAM, longest: int = 16) -> ClassIncrementalTask:
    return ClassIncrementalTask(clinc150=clinc150, stream=stream, longest=longest)


def lines_of(batch: Batch, row: int) -> list[tuple[str, str]]:
    """Text and word of every line, of the T + 1 tokens that a row was made of."""
    tokens = [*batch.ids[row].tolist(), int(batch.targets[row, -1])]
    text = TOKENIZER.decode(tokens)
    return [tuple(line.split(" -> ")) for line in text.splitlines()]  # type: ignore[misc]


def test_a_batch_depends_on_seed_and_index_alone(clinc150: str) -> None:
    first = task(clinc150).batch(3, 7, 4, 256)
    task(clinc150).batch(3, 8, 4, 256)
    assert task(clinc150).batch(3, 7, 4, 256).sha256() == first.sha256()
    assert task(clinc150).batch(3, 8, 4, 256).sha256() != first.sha256()
    assert task(clinc150).batch(4, 7, 4, 256).sha256() != first.sha256()
    first.check(4, 256, 4096)


def test_rows_show_groups_and_then_ask(clinc150: str) -> None:
    batch = task(clinc150).batch(0, 0, 16, 320)
    groups_seen, words = set(), set(label_words(TOKENIZER, 64))
    assert batch.answers is not None
    for row in range(16):
        lines = lines_of(batch, row)
        questions = int(batch.answers[row].max())
        groups = questions // (STREAM.classes * STREAM.questions)
        groups_seen.add(groups)
        shown, asked = lines[:-questions], lines[-questions:]
        assert len(shown) == groups * STREAM.classes * STREAM.examples
        called = {text.split()[-1]: word for text, word in shown}
        assert len(set(called.values())) == len(called) == groups * STREAM.classes
        assert set(called.values()) <= words
        assert all(called[text.split()[-1]] == word for text, word in lines)
        assert {text for text, _ in shown}.isdisjoint(text for text, _ in asked)
        first = {text.split()[-1] for text, _ in shown[: STREAM.classes * STREAM.examples]}
        assert len(first) == STREAM.classes
    assert groups_seen == {1, 2}


def test_weights_stand_where_something_can_be_told(clinc150: str) -> None:
    made = task(clinc150)
    batch = made.batch(0, 0, 8, 256)
    assert batch.answers is not None
    for row in range(8):
        lines = lines_of(batch, row)
        questions, seen, place = int(batch.answers[row].max()), set(), -1
        for number, (text, word) in enumerate(lines, start=1 - len(lines) + questions):
            asked, said = TOKENIZER.encode(f"{text} ->"), TOKENIZER.encode(f" {word}\n")
            expected = 1.0 if number > 0 else made.lesson_weight * (word in seen)
            start, end, after = max(place, 0), place + len(asked), place + len(asked) + len(said)
            assert batch.weights[row, start:end].tolist() == pytest.approx([made.text_weight] * (end - start))
            assert batch.weights[row, end:after].tolist() == [expected] * len(said)
            assert batch.targets[row, end:after].tolist() == said
            assert batch.answers[row, start:end].tolist() == [0] * (end - start)
            assert batch.answers[row, end:after].tolist() == [*[max(0, number)] * (len(said) - 1), 0]
            seen.add(word)
            place = after
        assert batch.weights[row, place:].sum() == 0


def test_classes_of_training_and_test_are_disjoint(clinc150: str) -> None:
    intents = read_clinc150(clinc150)
    small = ClassesSpec(groups=1, classes=2, examples=2, questions=1)
    topics = {}
    for split in ("train", "eval"):
        made = ClassIncrementalTask(clinc150=clinc150, stream=small, longest=16, split=split)
        lines = [
            line for index in range(20) for row in range(2) for line in lines_of(made.batch(0, index, 2, 128), row)
        ]
        topics[split] = {f"{text.split()[-1]}_info" for text, _ in lines}
        assert topics[split] == set(intents.of(split).labels)
    assert topics["train"].isdisjoint(topics["eval"])


def test_a_short_row_shows_less_of_every_class_and_then_fewer_classes(clinc150: str) -> None:
    shown = {}
    for length in (72, 100, 160, 256):
        batch = task(clinc150).batch(0, 1, 32, length)
        assert batch.answers is not None
        assert batch.answers.max(1).values.min() >= 1
        rows = [lines_of(batch, row) for row in range(32)]
        counts = [len(lines) - int(batch.answers[row].max()) for row, lines in enumerate(rows)]
        assert all(count % STREAM.classes == 0 for count in counts)
        shown[length] = set(counts)
    assert shown[72] <= {2, 4}
    assert max(shown[100]) < max(shown[160]) <= max(shown[256]) == 12
    with pytest.raises(UserError, match="too short to show 2 classes and ask for one: they must have"):
        task(clinc150).batch(0, 0, 1, 40)


def test_long_texts_are_left_out(clinc150: str) -> None:
    with pytest.raises(UserError, match="there are 0"):
        task(clinc150, longest=3).batch(0, 0, 1, 256)
    assert torch.equal(task(clinc150, longest=9).batch(0, 0, 1, 256).ids, task(clinc150).batch(0, 0, 1, 256).ids)


def test_both_files_are_one_pool(clinc150: str, banking77: str) -> None:
    made = ClassIncrementalTask(clinc150=clinc150, banking77=banking77, stream=STREAM, longest=16)
    texts = {
        text.split()[0] + text.split()[1]
        for index in range(20)
        for text, _ in lines_of(made.batch(0, index, 1, 256), 0)
    }
    assert any(text.startswith("tell") for text in texts)
    assert any(text.endswith("fees") for text in texts)
    only = ClassIncrementalTask(banking77=banking77, stream=STREAM, longest=16).batch(0, 0, 4, 256)
    assert all(text.split()[1] == "fees" for row in range(4) for text, _ in lines_of(only, row))


def test_no_file_is_refused() -> None:
    with pytest.raises(UserError, match=r"task\.clinc150 or task\.banking77"):
        ClassIncrementalTask()


def test_classes_need_different_words() -> None:
    with pytest.raises(UserError, match=r"4 classes of a row need as many nouns: task\.words must not be 3"):
        ClassIncrementalTask(clinc150="x", stream=STREAM, words=3)
