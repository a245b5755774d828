"""WikiText as documents: the pages of one of its raw files, as they are and as plain text.

The rules that undo WikiText's spacing are those of the task `wikitext` of EleutherAI's lm-evaluation-harness, so that
numbers can be compared; words and bytes are counted on the page as it is, as there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fastweights.errors import UserError

_TITLE = re.compile(r"^ = [^=\n](?:[^\n]*[^=\n])? = ?\n", re.MULTILINE)

_PLAIN = (
    ("s '", "s'"),
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
)
_ENCLOSED = (
    (re.compile(r"\(\s*([^\)]*?)\s*\)"), r"(\1)"),
    (re.compile(r"\[\s*([^\]]*?)\s*\]"), r"[\1]"),
    (re.compile(r"{\s*([^}]*?)\s*}"), r"{\1}"),
    (re.compile(r"\"\s*([^\"]*?)\s*\""), r'"\1"'),
    (re.compile(r"'\s*([^']*?)\s*'"), r"'\1'"),
)
_LAST = (
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


class Page(NamedTuple):
    """A page.

    Attributes:
        title: Its first line without the signs around it.
        raw: As it stands in the file.
        text: As plain text.
    """

    title: str
    raw: str
    text: str


def read_wikitext(path: str | Path) -> Iterator[Page]:
    """Yield the pages of a raw file, such as ``wiki.test.raw``. All of it is held in memory.

    Raises:
        UserError: The file cannot be read or has no pages.
    """
    try:
        content = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not UTF-8"
        raise UserError(f"cannot read '{path}': {reason.lower()}") from error
    starts = [found.start() for found in _TITLE.finditer(content)]
    if not starts:
        raise UserError(f"'{path}' has no pages of WikiText: each begins with a line such as ' = Title = '")
    # The line break before a title belongs to no page.
    for start, end in zip(starts, [*(start - 1 for start in starts[1:]), len(content)], strict=True):
        raw = content[start:end]
        yield Page(raw.split("\n", 1)[0].strip(" ="), raw, plain(raw))


def plain(raw: str) -> str:
    """A page without the spaces that WikiText puts around signs."""
    for old, new in _PLAIN:
        raw = raw.replace(old, new)
    for pattern, new in _ENCLOSED:
        raw = pattern.sub(new, raw)
    for old, new in _LAST:
        raw = raw.replace(old, new)
    return raw
