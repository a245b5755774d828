"""Stories in bAbI's words, whose answers an interpreter that reads nothing but the text gives as well."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path

import pytest

from fastweights.errors import UserError
from fastweights.tasks.babi import (
    TASKS,
    Line,
    Story,
    Task,
    format_story,
    make_stories,
    make_story,
    questions,
    read_stories,
)

MOVE = re.compile(r"(\w+) (?:went to|journeyed to|travelled to|went back to|moved to) the (\w+)\.")
GET = re.compile(r"(\w+) (?:picked up|got|grabbed|took) the (\w+)( there)?\.")
DROP = re.compile(r"(\w+) (?:dropped|discarded|left|put down) the (\w+)( there)?\.")
GIVE = re.compile(r"(\w+) (?:passed|gave|handed) the (\w+) to (\w+)\.")
STATED = re.compile(r"(\w+) is in the (\w+)\.")
DENIED = re.compile(r"(\w+) is (?:not|no longer) in the (\w+)\.")
EITHER = re.compile(r"(\w+) is either in the (\w+) or the (\w+)\.")
LIES = re.compile(r"The (\w+) is (north|south|east|west) of the (\w+)\.")

HANDLED = (MOVE, GET, DROP)
FACTS: dict[Task, tuple[re.Pattern[str], ...]] = {
    "qa1": (MOVE,),
    "qa2": HANDLED,
    "qa3": HANDLED,
    "qa4": (LIES,),
    "qa5": (*HANDLED, GIVE),
    "qa6": HANDLED,
    "qa7": (*HANDLED, GIVE),
    "qa8": HANDLED,
    "qa9": (MOVE, STATED, DENIED),
    "qa10": (MOVE, STATED, EITHER),
}
OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}

# Facts of a question on average, counted in the published files. The program that made those is lost, so the means of
# ours need only be near: within 15 %. (The mean of 400 stories is good to 2 % for most and to 5 % for qa3 and qa5.)
MEAN_FACTS: dict[Task, float] = {"qa2": 15.6, "qa3": 50.0, "qa5": 20.1, "qa6": 6.3, "qa7": 8.7, "qa8": 8.8}


@cache
def stories(task: Task) -> list[Story]:
    return list(islice(make_stories(1, task), 400))


class Reader:
    """What can be concluded from the lines so far, by the words alone."""

    def __init__(self) -> None:
        self.facts: list[str] = []

    def room(self, person: str, before: int | None = None) -> str | None:
        """Where a person went last."""
        moves = [m[2] for m in map(MOVE.fullmatch, self.facts[:before]) if m and m[1] == person]
        return moves[-1] if moves else None

    def held(self, person: str) -> list[str]:
        things: list[str] = []
        for fact in self.facts:
            if (m := GET.fullmatch(fact)) and m[1] == person:
                things.append(m[2])
            elif (m := DROP.fullmatch(fact)) and m[1] == person:
                things.remove(m[2])
            elif m := GIVE.fullmatch(fact):
                if m[1] == person:
                    things.remove(m[2])
                if m[3] == person:
                    things.append(m[2])
        return things

    def journey(self, thing: str) -> list[str]:
        """Known rooms of a thing in order, none twice in a row."""
        rooms: list[str] = []
        holder = None
        for at, fact in enumerate(self.facts):
            m = GET.fullmatch(fact)
            if m and m[2] == thing:
                holder = m[1]
            m = GIVE.fullmatch(fact)
            if m and m[2] == thing:
                holder = m[3]
            here = self.room(holder, at + 1) if holder else None
            if here and rooms[-1:] != [here]:
                rooms.append(here)
            m = DROP.fullmatch(fact)
            if m and m[2] == thing:
                holder = None
        return rooms

    def whereabouts(self, person: str) -> tuple[bool, set[str]]:
        """The last statement about a person: whether it affirms, and the rooms in it."""
        for fact in reversed(self.facts):
            for pattern in (MOVE, STATED, DENIED, EITHER):
                m = pattern.fullmatch(fact)
                if m and m[1] == person:
                    return pattern is not DENIED, set(m.groups()[1:])
        raise AssertionError(f"nothing is known of {person}")

    def neighbour(self, question: str) -> str:
        ahead = {}
        for fact in self.facts:
            m = LIES.fullmatch(fact)
            assert m
            ahead[m[3], m[2]] = m[1]
            ahead[m[1], OPPOSITE[m[2]]] = m[3]
        if m := re.fullmatch(r"What is (\w+) of the (\w+)\?", question):
            return ahead[m[2], m[1]]
        m = re.fullmatch(r"What is the (\w+) (\w+) of\?", question)
        assert m
        return ahead[m[1], OPPOSITE[m[2]]]

    def gift(self, question: str) -> str:
        for fact in reversed(self.facts):
            if m := GIVE.fullmatch(fact):
                giver, thing, receiver = m.groups()
                for form, answer in (
                    (f"What did {giver} give to {receiver}?", thing),
                    (f"Who gave the {thing} to {receiver}?", giver),
                    (f"Who did {giver} give the {thing} to?", receiver),
                    (f"Who received the {thing}?", receiver),
                    (f"Who gave the {thing}?", giver),
                ):
                    if form == question:
                        return answer
        raise AssertionError(f"no gift for {question}")

    def is_there(self, question: str) -> str:
        m = re.fullmatch(r"Is (\w+) in the (\w+)\?", question)
        assert m
        affirmed, rooms = self.whereabouts(m[1])
        if not affirmed:
            assert m[2] in rooms, "nothing follows for other rooms"
            return "no"
        return "no" if m[2] not in rooms else "yes" if len(rooms) == 1 else "maybe"

    def where_is(self, question: str) -> str:
        m = re.fullmatch(r"Where is (?:the )?(\w+)\?", question)
        assert m
        return self.room(m[1]) or self.journey(m[1])[-1]

    def where_was(self, question: str) -> str:
        m = re.fullmatch(r"Where was the (\w+) before the (\w+)\?", question)
        assert m
        before, last = self.journey(m[1])[-2:]
        assert last == m[2]
        return before

    def how_many(self, question: str) -> str:
        m = re.fullmatch(r"How many objects is (\w+) carrying\?", question)
        assert m
        return ["none", "one", "two", "three"][len(self.held(m[1]))]

    def which(self, question: str) -> str:
        m = re.fullmatch(r"What is (\w+) carrying\?", question)
        assert m
        return ",".join(self.held(m[1])) or "nothing"


READ: dict[Task, Callable[[Reader, str], str]] = {
    "qa1": Reader.where_is,
    "qa2": Reader.where_is,
    "qa3": Reader.where_was,
    "qa4": Reader.neighbour,
    "qa5": Reader.gift,
    "qa6": Reader.is_there,
    "qa7": Reader.how_many,
    "qa8": Reader.which,
    "qa9": Reader.is_there,
    "qa10": Reader.is_there,
}


@pytest.mark.parametrize("task", TASKS)
def test_every_answer_follows_from_the_lines_before_it(task: Task) -> None:
    for story in stories(task)[:150]:
        reader = Reader()
        for line in story:
            if line.answer is None:
                reader.facts.append(line.text)
            else:
                assert READ[task](reader, line.text) == line.answer, format_story(story)


@pytest.mark.parametrize("task", sorted(set(TASKS) - {"qa2", "qa3"}))
def test_the_supporting_lines_alone_give_the_answer(task: Task) -> None:
    for story in stories(task)[:150]:
        for question in questions(story):
            reader = Reader()
            reader.facts = [question.facts[at] for at in question.support]
            assert READ[task](reader, question.text) == question.answer


@pytest.mark.parametrize("task", ["qa2", "qa3"])
def test_supporting_lines_name_the_thing_and_the_rooms(task: Task) -> None:
    for story in stories(task)[:150]:
        for question in questions(story):
            handled, *moves = [question.facts[at] for at in question.support]
            thing = re.search("apple|football|milk", question.text)
            assert thing
            assert f"the {thing[0]}" in handled
            assert len(moves) == int(task[2:]) - 1
            assert all(MOVE.fullmatch(move) for move in moves)
            assert question.answer in moves[-1]


@pytest.mark.parametrize("task", TASKS)
def test_only_published_words_occur_and_all_of_them_do(task: Task) -> None:
    found: Counter[re.Pattern[str]] = Counter()
    for story in stories(task):
        for line in story:
            if line.answer is None:
                patterns = [pattern for pattern in FACTS[task] if pattern.fullmatch(line.text)]
                assert len(patterns) == 1, line.text
                found[patterns[0]] += 1
    assert set(found) == set(FACTS[task])
    text = "".join(format_story(story) for story in stories(task))
    rooms = "cinema park school kitchen office bedroom" if task == "qa10" else ""
    people = {"qa5": "Bill Fred Jeff Mary", "qa10": "Bill Fred Julie Mary", "qa4": ""}
    assert set(re.findall(r"the (\w+)", text)) - {"apple", "football", "milk"} == set(
        (rooms or "bathroom bedroom garden hallway kitchen office").split()
    )
    assert set(re.findall(r"\b[A-Z]\w+", text)) - {"Where", "What", "Who", "Is", "How", "The"} == set(
        people.get(task, "Daniel John Mary Sandra").split()
    )


@pytest.mark.parametrize("task", ["qa2", "qa3", "qa5"])
def test_words_are_as_frequent_as_in_the_published_files(task: Task) -> None:
    text = "".join(format_story(story) for story in stories(task))
    moves = Counter(re.findall(r"(went to|journeyed to|travelled to|went back to|moved to) the", text))
    assert len(moves) == 5
    assert max(moves.values()) < 1.15 * min(moves.values())
    ends = {True: 0.2, False: 1.0 if task != "qa3" else 0.2}
    for dropped, share in ends.items():
        pattern = DROP if dropped else GET
        there = [bool(match[3]) for match in pattern.finditer(text)]
        # Three standard deviations of a share of a thousand lines or more.
        assert len(there) > 1000
        assert abs(sum(there) / len(there) - share) < 0.04


def test_the_shape_of_stories_is_published() -> None:
    for task in TASKS:
        for story in stories(task):
            asked = [at for at, line in enumerate(story) if line.answer is not None]
            assert len(asked) == (1 if task == "qa4" else 5)
            assert asked[-1] == len(story) - 1
            if task in ("qa1", "qa9", "qa10"):
                assert asked == [2, 5, 8, 11, 14]
    assert {len(story) for story in stories("qa4")} == {3}
    counts = [len(question.facts) for story in stories("qa1") for question in questions(story)]
    assert (min(counts), sum(counts) / len(counts), max(counts)) == (2, 6, 10)


@pytest.mark.parametrize("task", MEAN_FACTS)
def test_questions_have_about_as_many_facts_as_published_ones(task: Task) -> None:
    counts = [len(question.facts) for story in stories(task) for question in questions(story)]
    assert sum(counts) / len(counts) == pytest.approx(MEAN_FACTS[task], rel=0.15)


def share(task: Task) -> dict[str, float]:
    answers = Counter(line.answer for story in stories(task) for line in story if line.answer is not None)
    return {answer: count / answers.total() for answer, count in answers.items()}


def test_answers_are_as_frequent_as_published_ones() -> None:
    # Three standard deviations of a share of 2,000 independent answers are 0.034; answers of one story are not quite.
    assert share("qa6") == pytest.approx({"yes": 0.5, "no": 0.5}, abs=0.04)
    assert share("qa9") == pytest.approx({"yes": 0.375, "no": 0.625}, abs=0.04)
    assert share("qa10") == pytest.approx({"yes": 0.375, "no": 0.475, "maybe": 0.15}, abs=0.04)
    for task in ("qa1", "qa2", "qa3"):
        assert len(share(task)) == 6
        assert all(abs(value - 1 / 6) < 0.04 for value in share(task).values())
    assert set(share("qa7")) == {"none", "one", "two", "three"}
    assert share("qa5").keys() == {"Bill", "Fred", "Jeff", "Mary", "apple", "football", "milk"}


def test_stories_are_the_same_everywhere_and_for_ever() -> None:
    text = "".join(format_story(story) for task in TASKS for story in islice(make_stories(0, task), 20))
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "17398f1a95aafdd4935494a98bd3092bc43300cea6a18276afdd61aa4f79bcc0"
    )
    assert make_story(random.Random(3), "qa5") == make_story(random.Random(3), "qa5")
    assert next(make_stories(0, "qa1")) != next(make_stories(1, "qa1"))


@pytest.mark.parametrize("task", TASKS)
def test_what_is_written_is_read_back(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "qa.txt"
    path.write_text("".join(map(format_story, stories(task)[:20])))
    assert read_stories(str(path)) == stories(task)[:20]


def test_published_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "qa2.txt"
    path.write_text(
        "1 Mary moved to the bathroom.\n2 Mary got the football there.\n3 Where is the football? \tbathroom\t2 1\n"
        "1 The office is north of the kitchen.\n2 What is north of the kitchen?\toffice\t1\n"
    )
    first, second = read_stories(str(path))
    assert first[2] == Line("Where is the football?", "bathroom", (2, 1))
    assert second[1] == Line("What is north of the kitchen?", "office", (1,))
    (question,) = questions(first)
    assert question.facts == ("Mary moved to the bathroom.", "Mary got the football there.")
    assert question.support == (1, 0)


def test_other_questions_are_no_facts() -> None:
    story = next(make_stories(0, "qa1"))
    asked = list(questions(story))
    assert [len(question.facts) for question in asked] == [2, 4, 6, 8, 10]
    assert all(not fact.endswith("?") for question in asked for fact in question.facts)
    assert asked[0].facts == asked[4].facts[:2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Mary moved.\n", "line 1: a line must be a number, a space and a sentence"),
        ("2 Mary moved.\n", "line 1: the number should be 1, not 2"),
        ("1 Mary moved.\n3 John moved.\n", "line 2: the number should be 1 or 2, not 3"),
        ("1 Mary moved.\n2 Where is Mary?\tbathroom\n", "line 2: a question must be followed by tab, answer"),
        ("1 Mary moved.\n2 Where is Mary?\t\t1\n", "line 2: a question must be followed by tab, answer"),
        ("1 Mary moved.\n2 Where is Mary?\troom\t1\t1\n", "line 2: a question must be followed by tab, answer"),
        ("1 Mary moved.\n2 Where is Mary?\troom\tone\n", "support must be numbers of lines, not 'one'"),
        ("1 Mary moved.\n2 Where is Mary?\troom\t0\n", "support must be numbers of lines, not '0'"),
        ("1 Mary moved.\n2 Where is Mary?\troom\t2\n", "line 2: an answer must be supported by facts before it"),
        ("1 Mary moved.\n2 Mary?\tx\t1\n3 Mary?\tx\t2\n", "line 3: an answer must be supported by facts before it"),
        ("1 Mary moved.\n", "holds no question"),
        ("", "is empty"),
    ],
)
def test_malformed_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "qa.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        read_stories(str(path))


def test_unknown_tasks_are_refused() -> None:
    with pytest.raises(UserError, match="no bAbI task 'qa11': choose one of qa1, qa2"):
        make_story(random.Random(0), "qa11")  # type: ignore[arg-type]
