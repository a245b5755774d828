"""Facts in order in a book of any length, BABILong's prompt and training rows, and its score to the last slip."""

from __future__ import annotations

import hashlib
import random
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

import pytest

from fastweights.data.tokenizer import load_tokenizer
from fastweights.errors import UserError
from fastweights.tasks.babi import TASKS, Question, Task, make_stories, questions, read_stories
from fastweights.tasks.babilong import (
    GEN,
    MIN_SENTENCE,
    SEGMENTS,
    Background,
    background,
    context_tokens,
    fits,
    hide_facts,
    make_samples,
    measured_by,
    prompt,
    prompted,
    training_row,
)
from fastweights.tasks.babilong_prompts import PROMPTS
from fastweights.tasks.babilong_score import (
    TASK_LABELS,
    Scores,
    compare_answers,
    contains_answer,
    exact_match,
    majority,
    score,
)

BPE = load_tokenizer("bpe4096")
BYTES = load_tokenizer("bytes")
FACTS = ("Mary moved to the bathroom.", "John went to the hallway.", "Mary got the milk there.")


def words(texts: Sequence[str]) -> list[int]:
    """Count words: the simplest measure whose sums can be checked by eye."""
    return [len(text.split()) for text in texts]


def numbered() -> Iterator[str]:
    """Sentences of 10 to 14 words, and every third one too short to be used."""
    for number in range(100_000):
        yield f"Sentence {number} {'never ' * (1 if number % 3 == 2 else 7 + number % 5)}ends."


def asked(task: Task, count: int = 1000) -> list[Question]:
    return list(islice((question for story in make_stories(2, task) for question in questions(story)), count))


@pytest.mark.parametrize("measure", [words, measured_by(BPE), measured_by(BYTES)])
@pytest.mark.parametrize("seed", range(8))
def test_facts_stand_in_order_and_the_length_is_kept(measure: object, seed: int) -> None:
    assert callable(measure)
    rng = random.Random(seed)
    tokens = rng.randrange(130, 3000)
    document = hide_facts(rng, FACTS, numbered, tokens, measure)
    passages = list(document.passages())
    text = "".join(passage.text for passage in passages)
    assert [passage.fact for passage in passages if passage.fact >= 0] == [0, 1, 2]
    assert [passage.text.strip() for passage in passages if passage.fact >= 0] == list(FACTS)
    assert not text[:1].isspace()
    assert "  " not in text
    (length,) = measure([text])
    assert tokens - 18 <= length <= tokens
    rest = " ".join(passage.text.strip() for passage in passages if passage.fact < 0)
    whole = " ".join(sentence for sentence in islice(numbered(), 400) if measure([" " + sentence])[0] >= MIN_SENTENCE)
    assert whole.startswith(rest)
    before = 0
    for passage in passages:
        if passage.fact >= 0:
            assert document.positions[passage.fact] == before
        else:
            before += 1
    assert before == document.sentences


def test_positions_are_uniform_and_may_coincide() -> None:
    places: Counter[int] = Counter()
    both = 0
    for seed in range(2000):
        document = hide_facts(random.Random(seed), FACTS[:2], numbered, 9 + 40, words)
        assert document.sentences == 4
        places.update(document.positions)
        both += document.positions[0] == document.positions[1]
    # Five places, 4,000 facts: 800 each, of standard deviation 25. Two independent ones coincide in a fifth.
    assert sorted(places) == [0, 1, 2, 3, 4]
    assert all(abs(count - 800) < 100 for count in places.values())
    assert abs(both - 400) < 80


def test_a_million_tokens_are_streamed_in_bounded_memory() -> None:
    def plain() -> Iterator[str]:
        return cycle([f"This is the sentence number {number} of an endless book." for number in range(500)])

    tracemalloc.start()
    document = hide_facts(random.Random(0), FACTS, plain, 1_000_000, words)
    total = sum(len(passage.text.split()) for passage in document.passages())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 999_980 < total <= 1_000_000
    assert document.sentences > 90_000
    assert peak < 1e6


def test_novels_are_the_default_and_the_same_every_time() -> None:
    first = background(5)
    document = hide_facts(random.Random(0), FACTS, first, 3000, measured_by(BYTES))
    texts = ["".join(passage.text for passage in document.passages()) for _ in range(2)]
    assert texts[0] == texts[1]
    assert next(iter(first())) == next(iter(background(5)())) != next(iter(background(6)()))
    assert (
        hashlib.sha256(texts[0].encode()).hexdigest()
        == "c7f7097b98f980a7dbb2a94078aaefeb50cb8d722939572daafdb1dbebddb674"
    )


def test_a_text_of_ones_own_is_repeated_when_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("The first sentence of this book has more than ten words in it. Short. " * 3)
    document = hide_facts(random.Random(0), (), background(0, [str(path)]), 130, words)
    text = "".join(passage.text for passage in document.passages())
    assert text == " ".join(["The first sentence of this book has more than ten words in it."] * 10)


def test_the_facts_alone_are_a_context() -> None:
    document = hide_facts(random.Random(0), FACTS, numbered, None, words)
    assert "".join(passage.text for passage in document.passages()) == " ".join(FACTS)


def test_what_does_not_fit_is_refused() -> None:
    def two() -> list[str]:
        return ["This is the first of only two sentences that there are."] * 2

    def short() -> Iterator[str]:
        return cycle(["No."])

    with pytest.raises(UserError, match="3 facts do not fit into 12 tokens"):
        hide_facts(random.Random(0), FACTS, numbered, 12, words)
    with pytest.raises(UserError, match="tokens too soon"):
        hide_facts(random.Random(0), FACTS, two, 100, words)
    with pytest.raises(UserError, match="no sentences of 10 tokens"):
        hide_facts(random.Random(0), FACTS, short, 100, words)


def test_samples_hide_all_facts_of_every_question_that_fits(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text(" ".join(islice(numbered(), 200)))
    stories = list(islice(make_stories(0, "qa2"), 20))
    every = [question for story in stories for question in questions(story)]
    assert fits(Question(("a",) * 19, "b", "c"), 160)
    assert not fits(Question(("a",) * 20, "b", "c"), 160)
    few = [question for question in every if len(question.facts) < 20]
    assert 0 < len(few) < len(every)
    found = [sample.question for sample in make_samples(0, stories, 167, words, [str(path)])]
    assert found == few


def test_samples_are_the_same_for_a_seed_and_differ_among_themselves(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text(" ".join(islice(numbered(), 2000)))

    def contexts(seed: int) -> list[str]:
        stories = islice(make_stories(0, "qa1"), 2)
        samples = make_samples(seed, stories, 300, words, [str(path)])
        return ["".join(passage.text for passage in sample.document.passages()) for sample in samples]

    first = contexts(0)
    assert first == contexts(0) != contexts(1)
    assert len(set(first)) == len(first) == 10


def test_the_prompt_is_the_published_one() -> None:
    before, after = prompt("qa4", "What is the hallway east of?")
    assert before + "CONTEXT" + after == (
        "I will give you context with the facts about different people, their location and actions, hidden in some "
        "random text and a question. You need to answer the question based only on the information from the facts.\n\n"
        "<example>\nThe hallway is south of the kitchen. The bedroom is north of the kitchen. "
        "What is the kitchen south of?\nAnswer: bedroom\n</example>\n"
        "<example>\nThe garden is west of the bedroom. The bedroom is west of the kitchen. "
        "What is west of the bedroom?\nAnswer: garden\n</example>\n\n"
        "Your answer should contain only one word - location. Do not write anything else after that.\n\n"
        "<context>\nCONTEXT\n</context>\n\nQuestion: What is the hallway east of?"
    )
    strings = "\0".join("\0".join(PROMPTS[task]) for task in TASKS)
    assert (
        hashlib.sha256(strings.encode()).hexdigest()
        == "59ab65803788cfd51c62f9510632726bb82d0a23d83ce16245c12e4df5697c99"
    )
    with pytest.raises(UserError, match="no bAbI task"):
        prompt("qa21", "Why?")  # type: ignore[arg-type]


@pytest.mark.parametrize("task", TASKS)
def test_a_prompt_keeps_its_length(task: Task) -> None:
    measure = measured_by(BPE)
    question = asked(task, 1)[0]
    room = context_tokens(task, question.text, 1000, measure)
    assert room <= 700
    (sample,) = islice(make_samples(0, make_stories(2, task), room, measure), 1)
    text = "".join(prompted(task, sample))
    assert 1000 - 300 <= len(BPE.encode(text)) <= 1000
    assert text.endswith(f"</context>\n\nQuestion: {sample.question.text}")
    assert all(fact in text for fact in sample.question.facts)
    with pytest.raises(UserError, match="leaves no room"):
        context_tokens(task, question.text, 300, measure)


def test_the_curriculum_is_published() -> None:
    assert SEGMENTS == (2, 3, 5, 8, 16, 32)


@pytest.mark.parametrize("segments", SEGMENTS)
@pytest.mark.parametrize("tokenizer", [BPE, BYTES], ids=lambda tokenizer: tokenizer.name)
def test_a_training_row_fills_its_segments_and_marks_the_answer(tokenizer: object, segments: int) -> None:
    assert isinstance(tokenizer, type(BPE) | type(BYTES))
    question = Question(FACTS, "Where is Mary?", "bathroom", (0,))
    row = training_row(random.Random(0), tokenizer, question, numbered, segments, 128)
    assert row.ids.dtype == row.answers.dtype == "int32"
    assert 128 * segments - 40 < len(row.ids) == len(row.answers) <= 128 * segments
    answer = tokenizer.encode("bathroom")
    assert row.ids[row.answers == 1].tolist() == [GEN, *answer, tokenizer.eos]
    assert row.answers[-len(answer) - 2 :].all()
    text = tokenizer.decode(row.ids.tolist())
    assert text.endswith("Where is Mary?bathroom")
    places = [text.index(fact) for fact in FACTS]
    assert places == sorted(places)


def test_a_row_that_is_too_short_is_refused() -> None:
    question = Question(FACTS, "Where is Mary?", "bathroom", (0,))
    with pytest.raises(UserError, match="3 facts do not fit"):
        training_row(random.Random(0), BPE, question, numbered, 1, 24)
    with pytest.raises(UserError, match="at least one segment of one token, not 0 of 512"):
        training_row(random.Random(0), BPE, question, numbered, 0)


@pytest.mark.parametrize(
    ("task", "target", "output", "question", "labels", "substring"),
    [
        ("qa1", "bathroom", "The bathroom.", "Where is Mary?", True, True),
        ("qa1", "bathroom", "BATHROOM", "Where is Mary?", True, True),
        ("qa1", "bathroom", "I do not know. The bathroom.", "Where is Mary?", False, True),
        ("qa1", "bathroom", "<context> bathroom", "Where is Mary?", False, True),
        ("qa1", "bathroom", "bathroom <example> kitchen", "Where is Mary?", True, True),
        ("qa1", "bathroom", "bathroom\nQuestion: is it the kitchen?", "Where is Mary?", False, True),
        ("qa1", "bathroom", "the bathroom or the kitchen", "Where is Mary?", False, True),
        ("qa1", "bathroom", "the kitchen", "Where is Mary?", False, False),
        ("qa1", "bathroom", "", "Where is Mary?", False, False),
        ("qa3", "office", "Before the kitchen it was in the office.", "Where was it before the kitchen?", True, True),
        ("qa3", "office", "Before the kitchen it was in the office.", "Where was it before the garden?", False, True),
        ("qa5", "Fred", "Bill gave the milk to Fred", "Who did Bill give the milk to?", True, True),
        ("qa5", "Fred", "Bill gave the milk to Fred", "Who received the milk?", False, True),
        ("qa6", "no", "I know not", "Is Mary in the hallway?", True, True),
        ("qa7", "one", "one", "How many objects is Mary carrying?", True, True),
        ("qa7", "none", "none", "How many objects is Mary carrying?", False, True),
        ("qa7", "one", "none", "How many objects is Mary carrying?", False, True),
        ("qa8", "milk,apple", "apple,milk", "What is Mary carrying?", True, False),
        ("qa8", "milk,apple", "Apple and milk.", "What is Mary carrying?", True, False),
        ("qa8", "milk,apple", "milk,apple,football", "What is Mary carrying?", False, True),
        ("qa8", "milk,apple", "milk", "What is Mary carrying?", False, False),
        ("qa8", "milk", "milk,apple", "What is Mary carrying?", False, True),
        ("qa10", "maybe", "Maybe, yes", "Is Fred in the park?", False, True),
    ],
)
def test_outputs_are_compared_as_published(
    task: Task, target: str, output: str, question: str, labels: bool, substring: bool
) -> None:
    assert compare_answers(target, output, question, TASK_LABELS[task]) == labels
    assert contains_answer(target, output) == substring


def test_directions_are_no_list() -> None:
    assert compare_answers("n,e", "n,e", "How do you go?", ["n,e", "e,n"])
    assert not compare_answers("n,e", "e,n", "How do you go?", ["n,e", "e,n"])


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_labels_and_an_oracle_is_right(task: Task) -> None:
    every = asked(task)
    answers = [question.answer for question in every]
    assert {part for answer in answers for part in answer.split(",")} <= set(TASK_LABELS[task])
    assert score(task, every, answers).substring == 1.0
    # By the published score "none" can never be right, so qa7's best is the share of the other answers.
    best = 1.0 if task != "qa7" else 1 - answers.count("none") / len(answers)
    assert score(task, every, [f"{answer.upper()}." for answer in answers]).labels == pytest.approx(best)


@pytest.mark.parametrize("task", TASKS)
def test_a_constant_answer_is_right_as_often_as_it_is_the_answer(task: Task) -> None:
    every = asked(task)
    answer, most = majority(every)
    assert most == max(Counter(question.answer for question in every).values()) / len(every)
    reached = score(task, every, [answer] * len(every))
    assert reached.labels == (0.0 if answer == "none" else most)
    # Among random questions the likeliest answer of six has about a sixth; bounds are three standard deviations.
    chance = {"qa6": 0.5, "qa9": 0.625, "qa10": 0.475}.get(
        task, 1 / 6 if task in ("qa1", "qa2", "qa3", "qa4") else None
    )
    if chance is not None:
        assert most == pytest.approx(chance, abs=0.05)


def test_scores_and_exact_match() -> None:
    question = Question(("Mary went to the office.",), "Where is Mary?", "office", (0,))
    assert score("qa1", [question] * 2, ["office", "office kitchen"]) == Scores(0.5, 1.0)
    with pytest.raises(UserError, match="at least one question"):
        score("qa1", [], [])
    assert exact_match("office", " office\n")
    assert not exact_match("office", "the office")


def test_published_stories_can_be_hidden(tmp_path: Path) -> None:
    path = tmp_path / "qa1.txt"
    path.write_text("1 Mary moved to the bathroom.\n2 John went to the hallway.\n3 Where is Mary? \tbathroom\t1\n")
    (sample,) = make_samples(0, read_stories(str(path)), 100, measured_by(BYTES))
    assert sample.question.answer == "bathroom"
    assert sample.document.facts == ("Mary moved to the bathroom.", "John went to the hallway.")


def test_a_background_is_a_plain_function() -> None:
    given: Background = numbered
    assert next(iter(given())) == next(iter(numbered()))
