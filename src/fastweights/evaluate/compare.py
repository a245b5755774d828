"""Tables that compare: what was measured with several seeds, and which differences are none.

A row is a thing measured (a memory rule), a column what it was measured on.
"""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class Measured(ABC):
    """What was found, one number for each seed.

    Attributes:
        values: at least one.
        learned: False takes the row out of the comparison: a model that did not learn its task says nothing about it.
        mark: shown behind the numbers, to be explained below the table.
    """

    values: tuple[float, ...]
    learned: bool
    mark: str

    @property
    def median(self) -> float:
        """The middle number, or the mean of the middle two."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """The largest number less the smallest; 0 with one seed."""
        return max(self.values) - min(self.values)

    @property
    @abstractmethod
    def variance(self) -> float:
        """Of a number that was counted over so many answers."""

    @property
    @abstractmethod
    def worth(self) -> float:
        """The median, or what grows as it becomes better."""

    @abstractmethod
    def shown(self, value: float) -> str:
        """A number as it stands in a table."""

    def __str__(self) -> str:
        """The number, or smallest, median and largest."""
        shown = (min(self.values), self.median, max(self.values)) if len(self.values) > 1 else self.values
        numbers = " / ".join(map(self.shown, shown))
        return (numbers if self.learned else f"did not learn ({numbers})") + self.mark


@dataclass(frozen=True)
class Shares(Measured):
    """Shares of right answers in [0, 1], shown in percent.

    Attributes:
        asked: answers that each share was counted over.
    """

    values: tuple[float, ...]
    asked: int
    learned: bool = True
    mark: str = ""

    @property
    def variance(self) -> float:
        return self.median * (1 - self.median) / self.asked

    @property
    def worth(self) -> float:
        return self.median

    def shown(self, value: float) -> str:
        return f"{100 * value:.1f}"


@dataclass(frozen=True)
class Bits(Measured):
    """Bits a token; less is better.

    Attributes:
        error: standard error of each number.
    """

    values: tuple[float, ...]
    error: float
    learned: bool = True
    mark: str = ""

    @property
    def variance(self) -> float:
        return self.error**2

    @property
    def worth(self) -> float:
        return -self.median

    def shown(self, value: float) -> str:
        return f"{value:.3f}"


def tie(one: Measured, other: Measured) -> bool:
    """Whether two medians differ by no more than chance may make them.

    That is by the larger spread of the two over seeds, or by two standard errors of the counted answers if that is
    more, as it is with a single seed.
    """
    chance = 2 * (one.variance + other.variance) ** 0.5
    return abs(one.median - other.median) <= max(one.spread, other.spread, chance)


def best(column: Mapping[str, Measured]) -> set[str]:
    """Names of the rows that are worth most of those that learned, or tie with that one."""
    learned = {name: measured for name, measured in column.items() if measured.learned}
    if not learned:
        return set()
    top = max(learned.values(), key=lambda measured: measured.worth)
    return {name for name, measured in learned.items() if tie(measured, top)}


def comparison(
    rows: Sequence[str], columns: Mapping[str, Mapping[str, Measured]], facts: Mapping[str, Mapping[str, str]]
) -> str:
    """A table in Markdown; in each column all that tie with the best are bold.

    Args:
        rows: names of the rows, in order.
        columns: what was measured, by column and row; a row that is missing has an empty cell.
        facts: further columns in front of these, by column and row, as they are to be shown.
    """
    bold = {title: best(column) for title, column in columns.items()}
    lines = {}
    for row in rows:
        lines[row] = [column.get(row, "") for column in facts.values()]
        for title, column in columns.items():
            text = str(column[row]) if row in column else ""
            lines[row].append(f"**{text}**" if row in bold[title] else text)
    return markdown([*facts, *columns], lines)


def markdown(titles: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A table in Markdown: titles of the columns but the first, and what stands in the rows, by their names."""
    lines = ["| " + " | ".join(["", *titles]) + " |", "| --- |" + " ---: |" * len(titles)]
    lines += ["| " + " | ".join([f"`{name}`", *entries]) + " |" for name, entries in rows.items()]
    return "\n".join(lines) + "\n"
