"""bAbI's tasks qa1 to qa10: stories of any number, made or read from the published files, and their questions.

Weston et al. 2015, "Towards AI-Complete Question Answering". Every answer follows from the lines before its question.
Stories are told as in the published files: facts come in pairs, and after a pair there may be a question; the fifth
one ends the story (qa4 is two facts and one question). One of qa1::

    1 Mary moved to the bathroom.
    2 John went to the hallway.
    3 Where is Mary?        bathroom        1
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

from fastweights.data.text import find_sources, read_text
from fastweights.errors import UserError
from fastweights.tasks.babi_world import GIVERS, ROOMS, TOWN_ROOMS, TOWNSPEOPLE, Action, Gift, World

Task = Literal["qa1", "qa2", "qa3", "qa4", "qa5", "qa6", "qa7", "qa8", "qa9", "qa10"]
"""What is asked: where a person is; where an object is; where it was before; what lies north of what; who gave what to
whom; whether a person is in a room; how many objects somebody carries; which; qa6 with negations; qa6 with doubts."""

TASKS: tuple[Task, ...] = get_args(Task)

QUESTIONS = 5
"""Questions of a story; qa4 has one."""

_ROUND = 2  # facts before it may be time for a question
_RECENT = 5  # facts since a gift that is asked for
_COUNTS = ("none", "one", "two", "three")
_HANDLING: tuple[Action, ...] = ("move", "get", "drop")
_GIVING: tuple[Action, ...] = (*_HANDLING, "give", "give", "give")  # as often as in the published files
_NUMBERED = re.compile(r"([1-9][0-9]{0,8}) (.*\S)", re.DOTALL)


class Line(NamedTuple):
    """A line of a story.

    Attributes:
        text: A fact, or a question.
        answer: What is to be answered; None for a fact.
        support: Numbers of the lines that the answer follows from; lines count from 1.
    """

    text: str
    answer: str | None = None
    support: tuple[int, ...] = ()


Story = tuple[Line, ...]


class Question(NamedTuple):
    """One question of a story and the facts before it.

    Attributes:
        facts: All facts of the story up to the question, in order, without other questions.
        text: The question.
        answer: Its answer.
        support: Indices into `facts` of those that the answer follows from.
    """

    facts: tuple[str, ...]
    text: str
    answer: str
    support: tuple[int, ...] = ()


def make_story(rng: random.Random, task: Task) -> Story:
    """Draw a story.

    Args:
        rng: All randomness; equal generators give equal stories.
        task: What is asked in it.

    Raises:
        UserError: No such task.

    Cost: less than 0.4 ms.
    """
    check_task(task)
    if task == "qa4":
        return _directions(rng)
    recipe = _RECIPES[task]
    world = recipe.world(rng)
    lines: list[Line] = []
    questions = 0
    while questions < QUESTIONS:
        for _ in range(_ROUND):
            lines.append(Line(recipe.tell(world, len(lines) + 1)))
        question = recipe.ask(rng, world) if rng.random() < recipe.chance else None
        if question is not None:
            lines.append(question)
            questions += 1
    return tuple(lines)


def make_stories(seed: int, task: Task) -> Iterator[Story]:
    """Yield stories without end; the same ones for the same seed and task."""
    rng = random.Random(f"{task} {seed}")
    while True:
        yield make_story(rng, task)


def check_task(task: str) -> None:
    """Refuse a name that is no task.

    Raises:
        UserError: It is none of `TASKS`.
    """
    if task not in TASKS:
        raise UserError(f"no bAbI task {task!r}: choose one of {', '.join(TASKS)}.")


def questions(story: Sequence[Line]) -> Iterator[Question]:
    """Yield every question of a story with the facts before it."""
    facts: list[str] = []
    index: dict[int, int] = {}
    for number, line in enumerate(story, start=1):
        if line.answer is None:
            index[number] = len(facts)
            facts.append(line.text)
        else:
            yield Question(tuple(facts), line.text, line.answer, tuple(index[at] for at in line.support))


def format_story(story: Sequence[Line]) -> str:
    """Return a story as the published files have it, every line with its end; `read_stories` reads it back."""
    return "".join(
        f"{number} {line.text}\n"
        if line.answer is None
        else f"{number} {line.text} \t{line.answer}\t{' '.join(map(str, line.support))}\n"
        for number, line in enumerate(story, start=1)
    )


def read_stories(path: str) -> list[Story]:
    r"""Read a published file: lines `N text` and `N question \tanswer\tnumbers of lines`; number 1 begins a story.

    Args:
        path: A file, or a folder or pattern of them, as `data.text.find_sources` takes it; any task of bAbI's twenty.

    Raises:
        UserError: Not readable text, or a line that is not of this form; the message names file and line.
    """
    stories: list[list[Line]] = []
    for source in find_sources([path]):
        text = "".join(read_text(source))
        story: list[Line] = []
        asked = False
        for at, raw in enumerate(text.splitlines(), start=1):
            if not raw.strip():
                continue
            number, line = _parsed(raw, f"{source.name!r}, line {at}: ")
            if number == 1:
                stories.append(story := [])
            if number != len(story) + 1:
                wanted = f"1 or {len(story) + 1}" if story else "1"
                raise UserError(f"{source.name!r}, line {at}: the number should be {wanted}, not {number}.")
            if any(other > len(story) or story[other - 1].answer is not None for other in line.support):
                raise UserError(f"{source.name!r}, line {at}: an answer must be supported by facts before it.")
            story.append(line)
            asked = asked or line.answer is not None
        if not asked:
            raise UserError(
                f"{source.name!r} holds no question: a question reads `N question`, tab, answer, tab, lines."
            )
    return [tuple(story) for story in stories]


def _parsed(raw: str, where: str) -> tuple[int, Line]:
    text, *fields = raw.split("\t")
    match = _NUMBERED.fullmatch(text.rstrip())
    if match is None:
        raise UserError(f"{where}a line must be a number, a space and a sentence.")
    if not fields:
        return int(match[1]), Line(match[2])
    if len(fields) != 2 or not fields[0].strip():
        raise UserError(f"{where}a question must be followed by tab, answer, tab and numbers of lines.")
    support = fields[1].split()
    if not all(re.fullmatch("[1-9][0-9]{0,8}", number) for number in support):
        raise UserError(f"{where}an answer's support must be numbers of lines, not {fields[1].strip()!r}.")
    return int(match[1]), Line(match[2], fields[0].strip(), tuple(map(int, support)))


def _directions(rng: random.Random) -> Story:
    """Draw a story of qa4: three rooms in a line and the two facts about neighbours, each told from either side."""
    rooms = rng.sample(ROOMS, 3)
    ahead, behind = rng.choice((("north", "south"), ("east", "west")))
    pairs = [(rooms[0], rooms[1]), (rooms[1], rooms[2])]  # the first lies ahead of the second
    rng.shuffle(pairs)
    facts = [
        Line(
            f"The {front} is {ahead} of the {back}."
            if rng.random() < 0.5
            else f"The {back} is {behind} of the {front}."
        )
        for front, back in pairs
    ]
    asked = rng.randrange(2)
    front, back = pairs[asked]
    # Only the middle room has two neighbours, so what is asked about it needs the direction to be understood.
    word, answer = (behind, back) if front == rooms[1] else (ahead, front)
    if rng.random() < 0.5:
        text = f"What is {word} of the {rooms[1]}?"
    else:
        text = f"What is the {rooms[1]} {behind if word == ahead else ahead} of?"
    return (*facts, Line(text, answer, (asked + 1,)))


def _where_is_person(rng: random.Random, world: World) -> Line | None:
    person = rng.choice(list(world.seen))
    seen = world.seen[person]
    return Line(f"Where is {person}?", seen.rooms[0], (seen.line,))


def _where_is_object(rng: random.Random, world: World) -> Line | None:
    """Ask for a thing that was dropped in a known room, or whose holder has moved since they got it."""
    known = []
    for thing, last in world.handled.items():
        if last.holder is None:
            if last.room is not None:
                known.append((thing, last.room, (last.line, last.support)))
        elif (seen := world.seen.get(last.holder)) and seen.line > last.line:
            known.append((thing, seen.rooms[0], (last.line, seen.line)))
    if not known:
        return None
    thing, room, support = rng.choice(known)
    return Line(f"Where is the {thing}?", room, support)


def _where_was_object(rng: random.Random, world: World) -> Line | None:
    """Ask for the last two rooms of a thing that whoever took it last has carried it into both."""
    known = [thing for thing, rooms in world.rooms_of.items() if len(rooms) > 1 and rooms[-2][1] > world.taken[thing]]
    if not known:
        return None
    thing = rng.choice(known)
    (before, earlier), (room, later) = world.rooms_of[thing][-2:]
    support = (world.handled[thing].line, later, earlier)
    return Line(f"Where was the {thing} before the {room}?", before, support)


def _who_gave_what(rng: random.Random, world: World) -> Line | None:
    """Ask for a recent gift that is the last one of its thing and between its two people."""
    open_to = [gift for gift in world.gifts if world.facts - gift.when <= _RECENT and not _repeated(gift, world.gifts)]
    if not open_to:
        return None
    line, _, giver, thing, receiver = rng.choice(open_to)
    what = (f"What did {giver} give to {receiver}?", thing)
    forms = (
        what,
        what,  # the published files ask it twice as often
        (f"Who gave the {thing} to {receiver}?", giver),
        (f"Who did {giver} give the {thing} to?", receiver),
        (f"Who received the {thing}?", receiver),
        (f"Who gave the {thing}?", giver),
    )
    return Line(*rng.choice(forms), (line,))


def _repeated(gift: Gift, gifts: Sequence[Gift]) -> bool:
    """Whether a later gift makes a question about this one ambiguous."""
    return any(
        later.line > gift.line
        and (later.thing == gift.thing or (later.giver, later.receiver) == (gift.giver, gift.receiver))
        for later in gifts
    )


def _is_person_there(rng: random.Random, world: World) -> Line | None:
    """Half of the time ask for the room told last, otherwise for another; a denied room is always asked for."""
    if not world.seen:
        return None
    person = rng.choice(list(world.seen))
    seen = world.seen[person]
    room = rng.choice(seen.rooms)
    if seen.there and rng.random() < 0.5:
        room = world.other_room(room)
    answer = "no" if not seen.there or room not in seen.rooms else "yes" if len(seen.rooms) == 1 else "maybe"
    return Line(f"Is {person} in the {room}?", answer, (seen.line,))


def _how_many(rng: random.Random, world: World) -> Line | None:
    if not world.handling:
        return None
    person = rng.choice(list(world.handling))
    count = _COUNTS[len(world.carried[person])]
    return Line(f"How many objects is {person} carrying?", count, tuple(world.handling[person]))


def _which(rng: random.Random, world: World) -> Line | None:
    if not world.handling:
        return None
    person = rng.choice(list(world.handling))
    return Line(
        f"What is {person} carrying?", ",".join(world.carried[person]) or "nothing", tuple(world.handling[person])
    )


class _Recipe(NamedTuple):
    world: Callable[[random.Random], World]
    ask: Callable[[random.Random, World], Line | None]
    tell: Callable[[World, int], str] = World.act
    chance: float = 1.0  # of a question after a pair of facts, fitted to the published mean number of facts


_RECIPES: dict[Task, _Recipe] = {
    "qa1": _Recipe(World, _where_is_person),
    "qa2": _Recipe(lambda rng: World(rng, _HANDLING), _where_is_object, chance=0.8),
    "qa3": _Recipe(lambda rng: World(rng, _HANDLING, get_there=0.2), _where_was_object, chance=0.4),
    "qa5": _Recipe(lambda rng: World(rng, _GIVING, people=GIVERS), _who_gave_what),
    "qa6": _Recipe(lambda rng: World(rng, _HANDLING), _is_person_there),
    "qa7": _Recipe(lambda rng: World(rng, _GIVING), _how_many),
    "qa8": _Recipe(lambda rng: World(rng, _HANDLING), _which),
    "qa9": _Recipe(World, _is_person_there, World.negate_or_state),
    "qa10": _Recipe(
        lambda rng: World(rng, people=TOWNSPEOPLE, rooms=TOWN_ROOMS), _is_person_there, World.hint_or_state
    ),
}
