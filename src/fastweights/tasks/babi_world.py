"""The little world of bAbI: people who walk about, take, drop and give things, and what a reader can know of it.

Wording is that of the published data (bAbI v1.2, Weston et al. 2015). So are the places where everything begins (any
room, nobody says which) and how often people act: a person, then a kind of action, both uniformly, drawn again where
that person cannot do it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

Action = Literal["move", "get", "drop", "give"]

ROOMS = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
TOWN_ROOMS = ("bedroom", "cinema", "kitchen", "office", "park", "school")
"""Rooms of qa10."""
OBJECTS = ("apple", "football", "milk")
PEOPLE = ("Daniel", "John", "Mary", "Sandra")
GIVERS = ("Bill", "Fred", "Jeff", "Mary")
"""People of qa5."""
TOWNSPEOPLE = ("Bill", "Fred", "Julie", "Mary")
"""People of qa10."""

MOVED = ("went to", "journeyed to", "travelled to", "went back to", "moved to")
GOT = ("picked up", "got", "grabbed", "took")
DROPPED = ("dropped", "discarded", "left", "put down")
GAVE = ("passed", "gave", "handed")

_THERE = 0.2  # how often " there" ends a sentence that may have it


class Seen(NamedTuple):
    """What the reader was told last about where a person is.

    Attributes:
        line: Number of the line that told it.
        rooms: The room; two for "either ... or".
        there: False where the line says that the person is not in that room.
    """

    line: int
    rooms: tuple[str, ...]
    there: bool = True


class Handling(NamedTuple):
    """The last line about an object.

    Attributes:
        line: Its number.
        holder: Who has it from then on; None where it was dropped.
        room: Where it was dropped, if that is known.
        support: Line that told the room where it was dropped, 0 if none did.
    """

    line: int
    holder: str | None
    room: str | None = None
    support: int = 0


class Gift(NamedTuple):
    """A line that says who gave what to whom; `when` counts facts alone, `line` all lines."""

    line: int
    when: int
    giver: str
    thing: str
    receiver: str


class World:
    """Who and what is where, and what the lines so far have told.

    The reader begins with knowing nothing, and concludes nothing about a person's room from a thing that lies there.

    Attributes:
        people: Who acts.
        facts: Facts told so far.
        seen: Person -> what was told last about where they are, in the order of first mention.
        handled: Object -> the last line about it, in the order of first mention.
        taken: Object -> the last line in which somebody got or received it.
        rooms_of: Object -> the known rooms it was in, one after the other, each with the line that tells.
        carried: Person -> what they hold, in the order they got it; only people who have handled anything.
        handling: Person -> lines in which they got, dropped, gave or received something.
        gifts: What was given, in order.
    """

    def __init__(
        self,
        rng: random.Random,
        actions: Sequence[Action] = ("move",),
        *,
        people: Sequence[str] = PEOPLE,
        rooms: Sequence[str] = ROOMS,
        get_there: float = 1.0,
    ) -> None:
        """Put everybody and everything into a random room.

        Args:
            rng: All randomness.
            actions: What people do.
            people: Who they are.
            rooms: Where they go.
            get_there: How often " there" ends a sentence about getting something.
        """
        self.people = people
        self.facts = 0
        self.seen: dict[str, Seen] = {}
        self.handled: dict[str, Handling] = {}
        self.taken: dict[str, int] = {}
        self.rooms_of: dict[str, list[tuple[str, int]]] = {}
        self.carried: dict[str, list[str]] = {}
        self.handling: dict[str, list[int]] = {}
        self.gifts: list[Gift] = []
        self._rng = rng
        self._actions = actions
        self._rooms = rooms
        self._get_there = get_there
        self._at = {person: rng.choice(rooms) for person in people}
        self._lies = {thing: rng.choice(rooms) for thing in OBJECTS}  # things in nobody's hands

    def act(self, line: int) -> str:
        """Let somebody do something, and return the sentence that tells it.

        Args:
            line: Number of the line that the sentence will have.
        """
        while True:
            person = self._rng.choice(self.people)
            action = self._rng.choice(self._actions)
            sentence = self._try(person, action, line)
            if sentence is not None:
                self.facts += 1
                return sentence

    def negate_or_state(self, line: int) -> str:
        """Return a fact of qa9: half are moves, a quarter "is in", an eighth each "is not in" and "is no longer in"."""
        kind = self._rng.randrange(8)
        if kind < 4:
            return self.act(line)
        self.facts += 1
        person = self._rng.choice(self.people)
        room = self._at[person]
        if kind < 6:
            return self._state(person, line)
        if kind == 6:
            other = self._elsewhere(person)
            self.seen[person] = Seen(line, (other,), False)
            return f"{person} is not in the {other}."
        self._at[person] = self._elsewhere(person)
        self.seen[person] = Seen(line, (room,), False)
        return f"{person} is no longer in the {room}."

    def hint_or_state(self, line: int) -> str:
        """Return a fact of qa10: half are moves, a quarter "is in", a quarter "is either in ... or"."""
        kind = self._rng.randrange(4)
        if kind < 2:
            return self.act(line)
        self.facts += 1
        person = self._rng.choice(self.people)
        if kind == 2:
            return self._state(person, line)
        rooms = [self._at[person], self._elsewhere(person)]
        self._rng.shuffle(rooms)
        self.seen[person] = Seen(line, tuple(rooms))
        return f"{person} is either in the {rooms[0]} or the {rooms[1]}."

    def other_room(self, room: str) -> str:
        """Draw any room but this one."""
        return self._rng.choice([other for other in self._rooms if other != room])

    def _elsewhere(self, person: str) -> str:
        return self.other_room(self._at[person])

    def _state(self, person: str, line: int) -> str:
        """Say where a person is, who has gone there without a word."""
        self._go(person, self._elsewhere(person), line)
        return f"{person} is in the {self._at[person]}."

    def _try(self, person: str, action: Action, line: int) -> str | None:
        """Do it and return the sentence, or None where this person cannot."""
        if action == "move":
            self._go(person, self._elsewhere(person), line)
            return f"{person} {self._rng.choice(MOVED)} the {self._at[person]}."
        if action == "get":
            near = [thing for thing in OBJECTS if self._lies.get(thing) == self._at[person]]
            return self._get(person, self._rng.choice(near), line) if near else None
        held = self.carried.get(person)
        if not held:
            return None
        if action == "drop":
            return self._drop(person, self._rng.choice(held), line)
        near = [other for other in self.people if other != person and self._at[other] == self._at[person]]
        return self._give(person, self._rng.choice(held), self._rng.choice(near), line) if near else None

    def _go(self, person: str, room: str, line: int) -> None:
        self._at[person] = room
        self.seen[person] = Seen(line, (room,))
        for thing in self.carried.get(person, ()):
            self._place(thing, person)

    def _get(self, person: str, thing: str, line: int) -> str:
        del self._lies[thing]
        self._take(person, thing, line)
        there = " there" if self._rng.random() < self._get_there else ""
        return f"{person} {self._rng.choice(GOT)} the {thing}{there}."

    def _drop(self, person: str, thing: str, line: int) -> str:
        self._lies[thing] = self._at[person]
        self._let_go(person, thing, line)
        known = self.seen.get(person)
        self.handled[thing] = Handling(line, None, known.rooms[0], known.line) if known else Handling(line, None)
        there = " there" if self._rng.random() < _THERE else ""
        return f"{person} {self._rng.choice(DROPPED)} the {thing}{there}."

    def _give(self, person: str, thing: str, receiver: str, line: int) -> str:
        self._let_go(person, thing, line)
        self._take(receiver, thing, line)
        self.gifts.append(Gift(line, self.facts, person, thing, receiver))
        return f"{person} {self._rng.choice(GAVE)} the {thing} to {receiver}."

    def _take(self, person: str, thing: str, line: int) -> None:
        self.carried.setdefault(person, []).append(thing)
        self.handling.setdefault(person, []).append(line)
        self.handled[thing] = Handling(line, person)
        self.taken[thing] = line
        self._place(thing, person)

    def _let_go(self, person: str, thing: str, line: int) -> None:
        self.carried[person].remove(thing)
        self.handling[person].append(line)

    def _place(self, thing: str, person: str) -> None:
        """Note that a thing is where the reader knows this person to be, if it was elsewhere before."""
        known = self.seen.get(person)
        rooms = self.rooms_of.setdefault(thing, [])
        if known and (not rooms or rooms[-1][0] != known.rooms[0]):
            rooms.append((known.rooms[0], known.line))
