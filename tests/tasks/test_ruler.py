"""RULER's tasks: its table, its prompts to the byte, right references, lengths that are kept, and no luck in the score.

What holds for every task is tested here for all of them; needles have their own tests here, too.
"""

from __future__ import annotations

import hashlib
import io
import re
import sys
import tracemalloc
from collections import defaultdict
from itertools import islice
from pathlib import Path

import pytest

from fastweights.data.text import Source, find_sources
from fastweights.data.tokenizer import Tokenizer, load_tokenizer
from fastweights.errors import UserError
from fastweights.tasks.haystack import NOISE_LINE
from fastweights.tasks.needle import DEPTHS, string_match_all, string_match_part
from fastweights.tasks.ruler import ALIASES, TASKS, Needles, make_sample
from fastweights.tasks.ruler_sample import Sample
from fastweights.tasks.variable_tracking import VariableTracking
from fastweights.tasks.word_counts import CommonWords, FrequentWords

BPE = load_tokenizer("bpe4096")
BYTES = load_tokenizer("bytes")
EVERY = pytest.mark.parametrize("name", TASKS)
NEEDLES = pytest.mark.parametrize("name", [name for name, task in TASKS.items() if isinstance(task, Needles)])

_NEEDLE = re.compile(r"One of the special magic (numbers|uuids|words) for (\S+) is: (\S+)\.(?=\s|$)")


@pytest.fixture
def fish(tmp_path: Path) -> list[Source]:
    """A text that repeats after four sentences."""
    path = tmp_path / "fish.txt"
    path.write_text("One fish. Two fish. Red fish. Blue fish.")
    return find_sources([str(path)])


def smallest(name: str, tokenizer: Tokenizer, index: int = 0) -> int:
    """The length that the refusal of one token names."""
    with pytest.raises(UserError, match="too few for sample") as refused:
        make_sample(name, tokenizer, 1, index)
    found = re.search(r"give it (\d+)\.", str(refused.value))
    assert found
    return int(found[1])


def test_the_table_is_that_of_rulers_configuration() -> None:
    table = {
        "niah_single_1": Needles("noise", "numbers", "words", keys=1, values=1, queries=1),
        "niah_single_2": Needles("text", "numbers", "words", keys=1, values=1, queries=1),
        "niah_single_3": Needles("text", "uuids", "words", keys=1, values=1, queries=1),
        "niah_single_words": Needles("text", "words", "words", keys=1, values=1, queries=1),
        "niah_multikey_1": Needles("text", "numbers", "words", keys=4, values=1, queries=1),
        "niah_multikey_2": Needles("needle", "numbers", "words", keys=1, values=1, queries=1),
        "niah_multikey_3": Needles("needle", "uuids", "uuids", keys=1, values=1, queries=1),
        "niah_multivalue": Needles("text", "numbers", "words", keys=1, values=4, queries=1),
        "niah_multiquery": Needles("text", "numbers", "words", keys=4, values=1, queries=4),
        "vt": VariableTracking(chains=1, hops=4, example_tokens=500),
        "cwe": CommonWords(common_times=30, other_times=3),
        "fwe": FrequentWords(alpha=2.0),
    }
    assert table == TASKS
    allowed = {name: task.max_new_tokens for name, task in TASKS.items()}
    assert allowed == {**dict.fromkeys(TASKS, 128), "vt": 30, "cwe": 120, "fwe": 50}


def test_the_papers_names_are_the_three_single_needles() -> None:
    assert list(ALIASES.values()) == ["niah_single_1", "niah_single_2", "niah_single_3"]
    for alias, name in ALIASES.items():
        assert make_sample(alias, BPE, 600, 3).prompt() == make_sample(name, BPE, 600, 3).prompt()


GOLDEN = {
    ("niah_single_1", 285): (
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards.\n"
        "One of the special magic numbers for different-blow is: 1801620.\n"
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
        "What is the special magic number for different-blow mentioned in the provided text? "
        "The special magic number for different-blow mentioned in the provided text is"
    ),
    ("niah_single_2", 300): (
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards.\n"
        "One fish. Two fish. One of the special magic numbers for flagrant-pirate is: 7795392. Red fish. Blue fish. "
        "One fish. Two fish. Red fish. Blue fish. One fish. Two fish. Red fish. Blue fish. One fish. Two\n"
        "What is the special magic number for flagrant-pirate mentioned in the provided text? "
        "The special magic number for flagrant-pirate mentioned in the provided text is"
    ),
    ("niah_single_3", 343): (
        "A special magic uuid is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the uuid afterwards.\n"
        "One fish. Two fish. Red fish. Blue fish. One fish. Two fish. One of the special magic uuids for "
        "clever-citizenship is: 25353736-7dbe-4325-915a-33e4d2d4429c. Red fish. Blue fish. One fish. Two fish. "
        "Red fish. Blue fish. One fish. Two\n"
        "What is the special magic uuid for clever-citizenship mentioned in the provided text? "
        "The special magic uuid for clever-citizenship mentioned in the provided text is"
    ),
    ("niah_single_words", 298): (
        "A special magic word is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the word afterwards.\n"
        "One fish. Two fish. Red fish. Blue fish. One fish. Two fish. Red fish. Blue fish. One fish. Two fish. "
        "Red fish. Blue fish. One fish. One of the special magic words for spooky-rations is: "
        "disagreeable-scrambled. Two\n"
        "What is the special magic word for spooky-rations mentioned in the provided text? "
        "The special magic word for spooky-rations mentioned in the provided text is"
    ),
    ("niah_multikey_1", 385): (
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards.\n"
        "Blue fish. One fish. One of the special magic numbers for wretched-oregano is: 2340774. Two fish. Red fish. "
        "Blue fish. One fish. Two fish. Red fish. Blue fish. One of the special magic numbers for ugly-goldfish is: "
        "9649227. One fish. Two fish. Red fish. One of the special magic numbers for cheerful-dividend is: 1476645. "
        "Blue fish. One One of the special magic numbers for healthy-concrete is: 4217263.\n"
        "What is the special magic number for wretched-oregano mentioned in the provided text? "
        "The special magic number for wretched-oregano mentioned in the provided text is"
    ),
    ("niah_multikey_2", 267): (
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards.\n"
        "One of the special magic numbers for dusty-cutover is: 8993392.\n"
        "One of the special magic numbers for absorbing-timetable is: 5164588.\n"
        "What is the special magic number for dusty-cutover mentioned in the provided text? "
        "The special magic number for dusty-cutover mentioned in the provided text is"
    ),
    ("niah_multikey_3", 447): (
        "A special magic uuid is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the uuid afterwards.\n"
        "One of the special magic uuids for 31ec8da0-e788-4717-b57d-596984a87cd3 is: "
        "b379a1b6-27cb-43a6-8e9c-2b5a32d74d74.\n"
        "One of the special magic uuids for f4907f86-0437-4143-ba8a-9cab5772e184 is: "
        "9cebf3ac-5b74-4ab0-9e89-0f1f79817ddb.\n"
        "What is the special magic uuid for 31ec8da0-e788-4717-b57d-596984a87cd3 mentioned in the provided text? "
        "The special magic uuid for 31ec8da0-e788-4717-b57d-596984a87cd3 mentioned in the provided text is"
    ),
    ("niah_multivalue", 406): (
        "Some special magic numbers are hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the numbers afterwards.\n"
        "Blue fish. One fish. Two fish. One of the special magic numbers for squealing-treasury is: 7434389. "
        "Red fish. Blue fish. One of the special magic numbers for squealing-treasury is: 7486324. "
        "One of the special magic numbers for squealing-treasury is: 8413358. One fish. Two fish. Red fish. "
        "Blue fish. One fish. Two fish. One of the special magic numbers for squealing-treasury is: 9515923. "
        "Red fish. Blue fish. One\n"
        "What are all the special magic numbers for squealing-treasury mentioned in the provided text? "
        "The special magic numbers for squealing-treasury mentioned in the provided text are"
    ),
    ("niah_multiquery", 441): (
        "Some special magic numbers are hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the numbers afterwards.\n"
        "One fish. Two fish. Red fish. Blue fish. One of the special magic numbers for clear-infinite is: 4587720. "
        "One fish. Two fish. Red fish. One of the special magic numbers for rich-attempt is: 5563135. "
        "One of the special magic numbers for vivacious-parser is: 8610725. Blue fish. One fish. Two fish. Red fish. "
        "Blue fish. One of the special magic numbers for stimulating-cation is: 1377373. One fish. Two\n"
        "What are all the special magic numbers for rich-attempt, vivacious-parser, clear-infinite, and "
        "stimulating-cation mentioned in the provided text? The special magic numbers for rich-attempt, "
        "vivacious-parser, clear-infinite, and stimulating-cation mentioned in the provided text are"
    ),
}


@pytest.mark.parametrize(("name", "tokens"), GOLDEN)
def test_prompts_with_needles_are_rulers_to_the_byte(name: str, tokens: int, fish: list[Source]) -> None:
    sample = make_sample(name, BPE, tokens, sources=fish)
    assert sample.prompt() == GOLDEN[name, tokens]
    assert "".join(sample.context) + sample.question + sample.answer_prefix == GOLDEN[name, tokens]
    assert sample.question.startswith("\nWhat ")
    assert sample.answer_prefix.startswith(" The special magic ")


@NEEDLES
@pytest.mark.parametrize("index", range(3))
def test_references_are_what_the_needles_of_the_asked_keys_say(name: str, index: int) -> None:
    sample = make_sample(name, BPE, 1500, index)
    hidden = defaultdict(list)
    for _, key, value in _NEEDLE.findall("".join(sample.context)):
        hidden[key].append(value)
    joined = re.search(r"for (.+) mentioned in the provided text\?", sample.question)
    assert joined
    asked = re.split(r", and |, ", joined[1])
    # Every needle that could be taken for an answer is one; nothing else of the haystack has an asked key.
    assert sorted(sample.references) == sorted(value for key in asked for value in hidden[key])
    task = TASKS[name]
    assert isinstance(task, Needles)
    assert len(asked) == task.queries
    assert [len(hidden[key]) for key in asked] == [task.values] * task.queries
    assert len(hidden) >= task.keys if task.haystack == "needle" else len(hidden) == task.keys
    for key, value in zip(asked, sample.references, strict=False):
        assert value in hidden[key] or task.values > 1


@pytest.mark.parametrize("name", ["niah_single_1", "niah_multikey_2", "niah_multikey_3"])
def test_lines_are_whole_and_depths_count_them(name: str) -> None:
    for index in range(5):
        sample = make_sample(name, BPE, 2048, index)
        lines = "".join(sample.context).split("\n")[1:]
        assert all(line == NOISE_LINE or _NEEDLE.fullmatch(line) for line in lines)
        (place,) = (number for number, line in enumerate(lines) if sample.references[0] in line)
        assert sample.depths == (100 * place / (len(lines) - 1),)
        assert place < len(lines) - 1


def test_no_other_needle_has_the_key_or_the_value_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastweights.tasks.needle.adjectives", lambda split: ("red", "old"))
    monkeypatch.setattr("fastweights.tasks.needle.nouns", lambda split: ("fish", "hat"))
    sample = make_sample(Needles("needle", "words"), BPE, 1000)
    needles = _NEEDLE.findall("".join(sample.context))
    assert len(needles) > 20
    assert [value for _, _, value in needles].count(sample.references[0]) == 1
    ((_, asked, _),) = (needle for needle in needles if needle[2] == sample.references[0])
    assert [key for _, key, _ in needles].count(asked) == 1
    assert f" for {asked} mentioned" in sample.question


def test_depths_in_text_are_rulers_and_true() -> None:
    for index in range(5):
        sample = make_sample("niah_multivalue", BPE, 4096, index)
        assert set(sample.depths) <= set(DEPTHS)
        assert len(set(sample.depths)) == 4
        text = "".join(sample.context)
        for value, depth in zip(sample.references, sample.depths, strict=True):
            place = 100 * text.index(value) / len(text)
            assert depth - 8 < place < depth + 8


def test_needles_stand_in_another_order_in_other_samples() -> None:
    orders = set()
    for index in range(8):
        sample = make_sample("niah_multivalue", BPE, 1024, index)
        orders.add(tuple(sorted(range(4), key=lambda place: sample.depths[place])))
    assert len(orders) > 3


@EVERY
@pytest.mark.parametrize("tokenizer", [BPE, BYTES], ids=lambda t: t.name)
def test_lengths_are_kept_and_nearly_reached(name: str, tokenizer: Tokenizer) -> None:
    # One more word of text, line of noise or of needles, word of a list as often as it stands there, or coded word.
    slack = {"noise": 27, "needle": 90, "text": 16, "vt": 27, "cwe": 45, "fwe": 16}
    task = TASKS[name]
    most = slack[task.haystack if isinstance(task, Needles) else name] * (4 if tokenizer is BYTES else 1)
    for tokens in (2048, 3001, 7001):
        for index in range(2):
            length = make_sample(name, tokenizer, tokens, index).length(tokenizer)
            assert tokens - most <= length <= tokens, (tokens, index)


@EVERY
@pytest.mark.parametrize("tokenizer", [BPE, BYTES], ids=lambda t: t.name)
def test_a_length_without_a_sample_is_refused_and_the_smallest_one_named(name: str, tokenizer: Tokenizer) -> None:
    for index in range(2):
        least = smallest(name, tokenizer, index)
        assert make_sample(name, tokenizer, least, index).length(tokenizer) <= least
        for tokens in (least - 1, least // 2, 0, -5):
            with pytest.raises(UserError, match=f"sample {index} of {name}: give it {least}\\."):
                make_sample(name, tokenizer, tokens, index)


# Of the prompts of samples 0 and 7 at 2,048 tokens.
HASHES = {
    "niah_single_1": ("7d793d1882cf", "dc30152c22da"),
    "niah_single_2": ("d7cb09a4ccfe", "afd66a32aa5a"),
    "niah_single_3": ("7fe92374c4ec", "04538031a9c9"),
    "niah_single_words": ("4b72895f62fc", "765f16d82dc3"),
    "niah_multikey_1": ("e4cd90870301", "f156ad503d5c"),
    "niah_multikey_2": ("e1c582780012", "e0fe779897db"),
    "niah_multikey_3": ("27894ca50f33", "287c8f0e04ca"),
    "niah_multivalue": ("e218361cc81c", "d41700df4d22"),
    "niah_multiquery": ("b04397815e40", "e2d4347cd73c"),
    "vt": ("bad62e96ab83", "247046e0a45c"),
    "cwe": ("f0d72e874210", "e4bab3edd3af"),
    "fwe": ("2d53b5bbe2e8", "8de0b3e7ad3d"),
}


def fingerprint(sample: Sample) -> str:
    return hashlib.sha256(sample.prompt().encode()).hexdigest()[:12]


@EVERY
def test_samples_never_change(name: str) -> None:
    later = make_sample(name, BPE, 2048, 7)
    assert (fingerprint(make_sample(name, BPE, 2048)), fingerprint(later)) == HASHES[name]
    assert later.prompt() == later.prompt() == make_sample(name, BPE, 2048, 7).prompt()
    others = [make_sample(name, BPE, 2048, 8), make_sample(name, BPE, 2048, 7, seed=1), make_sample(name, BPE, 2047, 7)]
    assert all(other.prompt() != later.prompt() for other in others[:2])
    assert others[2].references == later.references
    assert all(other.references != later.references for other in others[:2])


@EVERY
def test_an_oracle_scores_100_and_a_constant_answer_0(name: str) -> None:
    samples = [make_sample(name, BPE, 1100, index) for index in range(4)]
    references = [sample.references for sample in samples]
    assert string_match_all([" " + ", ".join(sample.references) + "." for sample in samples], references) == 100
    assert string_match_all(["I do not know."] * 4, references) == 0
    # The answer is not in what is asked, so it cannot be copied from there; and no sample's answer fits another.
    assert string_match_all([sample.question + sample.answer_prefix for sample in samples], references) == 0
    assert string_match_all([" ".join(references[index - 1]) for index in range(4)], references) < 10


def test_one_reference_is_enough_for_a_part() -> None:
    assert string_match_part(["a", "b", "x", "C."], [["a"], ["b", "c"], ["y", "z"], ["d", "c"]]) == 75.0
    assert string_match_part(["a", "b", "x"], [["a"], ["c"], ["y"]]) == 33.33


def test_a_million_tokens_are_streamed() -> None:
    line = len(BPE.encode("\n" + NOISE_LINE))
    tracemalloc.start()
    sample = make_sample("niah_single_1", BPE, 1_000_000)
    passages = sum(1 for _ in sample.passages())
    tracked = make_sample("vt", BPE, 1_000_000)
    lines = sum(1 for _ in tracked.passages())
    first = list(islice(make_sample("niah_single_2", BPE, 1_000_000).context, 500))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 1_000_000 - 500 < passages * line < 1_000_000 + 100
    assert 1_000_000 - 2000 < lines * line < 1_000_000
    assert len(first) == 500
    assert peak < 3e6


def test_a_haystack_of_needles_is_never_held() -> None:
    tracemalloc.start()
    sample = make_sample("niah_multikey_2", BYTES, 300_000)
    lines = sum(1 for _ in sample.context)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert lines > 4000
    assert peak < 3e5


def test_another_tokenizer_may_count() -> None:
    by_bytes, by_tokens = (make_sample("niah_single_2", counter, 3000) for counter in (BYTES, BPE))
    assert len(by_bytes.prompt().encode()) + 128 <= 3000 < len(by_tokens.prompt().encode())
    assert by_bytes.references == by_tokens.references


def test_tasks_of_ones_own_parameters() -> None:
    sample = make_sample(Needles("noise", "words", keys=3, values=2, queries=2), BPE, 1000)
    assert (sample.task, len(sample.references), len(sample.depths)) == ("Needles", 4, 4)
    assert "What are all the special magic words for " in sample.question
    assert len(_NEEDLE.findall("".join(sample.context))) == 6


@pytest.mark.parametrize("spec", [{"queries": 2}, {"keys": 0}, {"values": 0}, {"queries": 0}])
def test_questions_without_answers_are_refused(spec: dict[str, int]) -> None:
    with pytest.raises(UserError, match="make no task"):
        Needles(keys=spec.get("keys", 1), values=spec.get("values", 1), queries=spec.get("queries", 1))


def test_what_does_not_exist_or_cannot_be_read_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no task 'niah': choose one of niah_single_1, .*, fwe, S-NIAH-PK"):
        make_sample("niah", BPE, 4096)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"text")))
    with pytest.raises(UserError, match="only once"):
        make_sample("niah_single_2", BPE, 4096, sources=find_sources(["-"]))
