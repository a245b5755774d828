"""RULER's strings to the byte, needles at their depths, and documents of exactly the asked-for length."""

from __future__ import annotations

import itertools
import random
import re
import tracemalloc
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastweights.data.tokenizer import Tokenizer, load_tokenizer
from fastweights.data.words import adjectives, nouns
from fastweights.errors import UserError
from fastweights.tasks.haystack import NOISE_LINE, Haystack, noise, novel_haystack
from fastweights.tasks.needle import (
    DEPTHS,
    Needle,
    Passage,
    draw_depths,
    hide,
    intro,
    make_needles,
    match_all,
    postprocess,
    question,
    question_for,
    string_match_all,
)

BPE = load_tokenizer("bpe4096")
BYTES = load_tokenizer("bytes")
PROSE = Haystack(
    [f"Number {number} was a café, and it {'never ' * (number % 9)}closed." for number in range(20_000)],
)


def test_the_single_prompt_is_rulers_to_the_byte() -> None:
    needle = Needle("soft-rain", "1234567")
    assert needle.sentence == "One of the special magic numbers for soft-rain is: 1234567."
    assert intro() + "\nTEXT\n" + question(needle) == (
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards.\nTEXT\n"
        "What is the special magic number for soft-rain mentioned in the provided text? "
        "The special magic number for soft-rain mentioned in the provided text is"
    )


def test_the_plural_prompt_is_rulers_to_the_byte() -> None:
    assert intro("uuids", 2) + "\nTEXT\n" + question_for(["a-b", "c-d"], "uuids", 2) == (
        "Some special magic uuids are hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the uuids afterwards.\nTEXT\n"
        "What are all the special magic uuids for a-b, and c-d mentioned in the provided text? "
        "The special magic uuids for a-b, and c-d mentioned in the provided text are"
    )
    assert "for a, b, and c mentioned" in question_for(["a", "b", "c"], answers=3)
    assert "special magic words for a mentioned" in question_for(["a"], "words", 4)
    assert question(Needle("k", "v", "words")).startswith("What is the special magic word for k mentioned")
    assert Needle("k", "v", "uuids").sentence == "One of the special magic uuids for k is: v."


def test_needles_have_the_form_of_their_kind() -> None:
    rng = random.Random(0)
    assert all(re.fullmatch(r"[1-9]\d{6}", needle.value) for needle in make_needles(rng, 50))
    assert all(re.fullmatch(r"[a-z]+-[a-z]+", needle.key) for needle in make_needles(rng, 50))
    assert all(re.fullmatch(r"[a-z]+-[a-z]+", needle.value) for needle in make_needles(rng, 50, "words"))
    assert all(uuid.UUID(needle.value).version == 4 for needle in make_needles(rng, 50, "uuids"))
    assert all(uuid.UUID(needle.key).version == 4 for needle in make_needles(rng, 50, "uuids", keys="uuids"))
    assert all(len(needle.value) == 4 for needle in make_needles(rng, 50, digits=4))


def test_needles_are_distinct_and_deterministic() -> None:
    needles = make_needles(random.Random(3), 2000, digits=4, similar=0.5)
    assert len({needle.key for needle in needles}) == len({needle.value for needle in needles}) == 2000
    assert make_needles(random.Random(3), 2000, digits=4, similar=0.5) == needles
    assert make_needles(random.Random(1), 2) == [
        Needle("concerned-pronunciation", "2058756"),
        Needle("famous-chafe", "8541208"),
    ]


def test_keys_are_made_of_the_words_of_their_split() -> None:
    for needle in make_needles(random.Random(0), 200, "words", split="eval", similar=0.3):
        for pair in (needle.key, needle.value):
            adjective, noun = pair.split("-")
            assert adjective in adjectives("eval")
            assert noun in nouns("eval")


def test_similar_keys_share_a_word() -> None:
    keys = [needle.key.split("-") for needle in make_needles(random.Random(0), 100, similar=1.0)]
    for index, key in enumerate(keys[1:], start=1):
        assert any(a == key[0] or b == key[1] for a, b in keys[:index])


def test_depths_are_rulers() -> None:
    assert DEPTHS[:4] == (0, 3, 5, 8)
    assert DEPTHS[-1] == 100
    assert len(set(DEPTHS)) == 40
    drawn = draw_depths(random.Random(0), 8)
    assert drawn == sorted(set(drawn))
    assert set(drawn) <= set(DEPTHS)
    assert len(draw_depths(random.Random(0), 100)) == 100


def joined(passages: list[Passage]) -> tuple[str, list[int]]:
    return "".join(passage.text for passage in passages), [i for passage in passages for i in passage.ids.tolist()]


@pytest.mark.parametrize("tokenizer", [BPE, BYTES], ids=lambda t: t.name)
@pytest.mark.parametrize("haystack", [PROSE, noise()], ids=["prose", "noise"])
@settings(max_examples=25)
@given(
    data=st.data(),
    tokens=st.integers(400, 4000),
    depths=st.lists(st.one_of(st.sampled_from(DEPTHS), st.floats(0, 100)), max_size=4),
    introduce=st.booleans(),
)
def test_a_document_has_its_length_and_its_needles_at_their_depths(
    tokenizer: Tokenizer, haystack: Haystack, data: st.DataObject, tokens: int, depths: list[float], introduce: bool
) -> None:
    needles = make_needles(random.Random(data.draw(st.integers(0, 99))), len(depths)) if depths else []
    passages = list(hide(tokenizer, needles, depths, haystack, tokens, introduce=introduce))
    text, ids = joined(passages)
    assert ids == tokenizer.encode(text)
    assert tokens - 12 <= len(ids) <= tokens
    assert text.startswith(intro() + "\n") == introduce
    assert not text[:1].isspace()
    assert sorted(passage.needle for passage in passages if passage.needle >= 0) == list(range(len(needles)))
    for passage in passages:
        if passage.needle >= 0:
            assert passage.text.strip() == needles[passage.needle].sentence
    body = [passage for passage in passages[introduce:] if passage.needle < 0]
    room = sum(len(passage.ids) for passage in body)
    longest = max(len(passage.ids) for passage in body) + 12
    used = 0
    for passage in passages[introduce:]:
        if passage.needle >= 0:
            due = depths[passage.needle] * room / 100
            assert due - longest <= used <= due + longest
        else:
            used += len(passage.ids)


def test_needles_at_both_ends_stand_at_the_very_ends() -> None:
    needles = make_needles(random.Random(0), 3)
    passages = list(hide(BPE, needles, [100, 0, 50], noise(), 700))
    assert [passages[1].needle, passages[-1].needle] == [1, 0]
    assert passages[1].text == "\n" + needles[1].sentence
    assert passages[2].text == "\n" + NOISE_LINE


def test_a_document_is_streamed_in_bounded_memory_and_deterministic() -> None:
    def document() -> itertools.chain[Passage]:
        rng = random.Random(5)
        return itertools.chain(hide(BPE, make_needles(rng, 8), draw_depths(rng, 8), novel_haystack(rng), 60_000))

    first = next(document())
    assert first.text == intro()
    tracemalloc.start()
    total = sum(len(passage.ids) for passage in document())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 59_990 < total <= 60_000
    assert peak < 6e6
    starts = [[passage.text for passage in itertools.islice(document(), 50)] for _ in range(2)]
    assert starts[0] == starts[1]


def test_what_does_not_fit_is_refused() -> None:
    needles = make_needles(random.Random(0), 10)
    with pytest.raises(UserError, match="10 needles do not fit into 200 tokens"):
        list(hide(BPE, needles, [0] * 10, noise(), 200))
    with pytest.raises(UserError, match="tokens too soon"):
        list(hide(BPE, needles[:1], [100], Haystack(["Too short."]), 200))
    with pytest.raises(ValueError, match="depths from 0 to 100"):
        list(hide(BPE, needles[:1], [101], noise(), 200))
    with pytest.raises(ValueError, match="as many depths"):
        list(hide(BPE, needles[:2], [1], noise(), 200))


def test_predictions_are_processed_as_ruler_does() -> None:
    assert postprocess("  \x00 12\x0734 \n") == "12\n34"
    assert postprocess("\t 1234567. \x1f") == "1234567."


@pytest.mark.parametrize(
    ("prediction", "references", "share"),
    [
        (" 1234567.", ["1234567"], 1.0),
        ("It is 12345678", ["1234567"], 1.0),
        ("123456", ["1234567"], 0.0),
        ("BLUE-Sky and 7", ["blue-sky", "red-sea"], 0.5),
        ("", ["1"], 0.0),
        ("12\x0134", ["1234"], 0.0),
    ],
)
def test_a_reference_counts_wherever_it_stands(prediction: str, references: list[str], share: float) -> None:
    assert match_all(prediction, references) == share


def test_the_score_is_the_mean_in_percent() -> None:
    assert string_match_all(["a", "b", "x"], [["a"], ["b", "c"], ["y"]]) == 50.0
    assert string_match_all(["a", "b", "x"], [["a"], ["c"], ["y"]]) == 33.33
