"""RULER's synthetic tasks by name, with the parameters, prompts and scores of the benchmark (Hsieh et al. 2024).

The tasks are those of `scripts/synthetic.yaml` of NVIDIA/RULER without question answering, which needs data sets:

===================  ========  ==================  ====================================================
name                 haystack  key -> value        what is asked
===================  ========  ==================  ====================================================
niah_single_1        noise     words -> number     one of one needle
niah_single_2        text      words -> number     one of one needle
niah_single_3        text      words -> uuid       one of one needle
niah_single_words    text      words -> word       one of one needle (not in RULER's table)
niah_multikey_1      text      words -> number     one of four needles
niah_multikey_2      needle    words -> number     one of as many needles as fit
niah_multikey_3      needle    uuid -> uuid        one of as many needles as fit
niah_multivalue      text      words -> numbers    all four values of one key
niah_multiquery      text      words -> numbers    the values of four keys
vt                   noise                         every variable of a chain of assignments
cwe                                                the ten most common words of a list
fwe                                                the three most frequent words of a text in code
===================  ========  ==================  ====================================================

Titans calls the first three S-NIAH-PK, S-NIAH-N and S-NIAH-W. The paper never defines W: that it is niah_single_3,
whose values are UUIDs, is inferred from the order of the columns and from Hope's "pass-key, number, and uuid".

What differs from RULER: keys and values are those of `tasks.needle`, text is prose of the shipped novels (or any
files) from a random place on instead of Paul Graham's essays from their first word, depths in text are shares of its
tokens instead of its sentences, needles are in another order in each sample, no needle of a haystack of needles has
the key or the value of a needle that was hidden in it, and every sample is as long as its limit allows: short of it by
under one word of text, one line of noise, or one needle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, repeat
from typing import ClassVar, Literal

from fastweights.data.text import Source
from fastweights.data.tokenizer import Tokenizer
from fastweights.errors import UserError
from fastweights.tasks.haystack import NOISE_LINE, Haystack, novel_haystack, text_haystack
from fastweights.tasks.needle import Kind, Needle, draw_depths, hide, intro, make_needles, question_parts
from fastweights.tasks.ruler_sample import Line, Passages, Request, RulerTask, Sample, draw_places, with_lines
from fastweights.tasks.variable_tracking import VariableTracking
from fastweights.tasks.word_counts import CommonWords, FrequentWords

SEED = 42
"""RULER's seed."""

SAMPLES = 500
"""Samples of a task at one length."""

LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
"""RULER's lengths in tokens, answer included."""

_LEAST_TEXT = 64  # tokens of prose around needles
_BLOCK = 64  # lines tokenised together


@dataclass(frozen=True)
class Needles(RulerTask):
    """RULER's `niah`: recall the values of keys that are hidden in a haystack.

    Attributes:
        haystack: Lines of noise, lines that are needles themselves, or prose.
        kind: What the values are.
        key_kind: What the keys are.
        keys: Keys hidden.
        values: Values of each key, every one in a needle of its own.
        queries: Keys asked for.
    """

    haystack: Literal["noise", "needle", "text"] = "text"
    kind: Kind = "numbers"
    key_kind: Literal["words", "uuids"] = "words"
    keys: int = 1
    values: int = 1
    queries: int = 1

    max_new_tokens: ClassVar[int] = 128

    def __post_init__(self) -> None:
        """Refuse what cannot be asked."""
        if not 1 <= self.queries <= self.keys or self.values < 1:
            raise UserError(
                "at least one key must be asked for, only keys that are hidden can be, and each has a value, "
                f"so {self.queries} queries of {self.keys} keys with {self.values} values make no task."
            )

    def draw(self, request: Request) -> Sample:
        """See the base class; the document is never held."""
        rng = request.rng("needles")
        drawn = make_needles(rng, self.keys * self.values, self.kind, keys=self.key_kind)
        groups = [drawn[start : start + self.values] for start in range(0, len(drawn), self.values)]
        needles = [needle._replace(key=group[0].key) for group in groups for needle in group]
        asked = rng.sample([group[0].key for group in groups], self.queries)
        answers = [needle for key in asked for needle in needles if needle.key == key]
        hidden = rng.sample(needles, len(needles))
        question, prefix = question_parts(asked, self.kind, len(answers))
        head = intro(self.kind, len(answers)) + "\n"
        question = "\n" + question
        used = request.count(head, question + prefix) + self.max_new_tokens
        document = _in_text if self.haystack == "text" else self._in_lines
        context, depths = document(request, head, used, hidden)
        return Sample(
            task=request.name,
            index=request.index,
            context=context,
            question=question,
            answer_prefix=prefix,
            references=tuple(needle.value for needle in answers),
            max_new_tokens=self.max_new_tokens,
            depths=tuple(depths[hidden.index(needle)] for needle in answers),
        )

    def _in_lines(
        self, request: Request, head: str, used: int, hidden: Sequence[Needle]
    ) -> tuple[Passages, Sequence[float]]:
        """Hide needles between lines, as many whole ones as fit. Returns the passages, and a depth for each needle."""
        # One line, the first, has no line end.
        used += request.count(*("\n" + needle.sentence for needle in hidden)) - request.count("\n")
        if self.haystack == "noise":
            cost = request.count("\n" + NOISE_LINE)
            count = request.room(used, len(hidden) * cost) // cost
            lines = Passages(partial(repeat, NOISE_LINE, count))
        else:
            endless = Passages(partial(self._distractors, request, hidden))
            fewest = [f"\n{line}" for line in islice(endless, len(hidden))]
            count = _how_many_fit(request, endless, request.room(used, request.count(*fewest)))
            lines = Passages(lambda: islice(endless, count))
        places = draw_places(request.rng("places"), count, len(hidden))
        inserted = [Line(place, needle.sentence) for place, needle in zip(places, hidden, strict=True)]
        context = Passages(lambda: chain([head], with_lines(lines, inserted)))
        return context, [100 * place / count for place in places]

    def _distractors(self, request: Request, hidden: Sequence[Needle]) -> Iterator[str]:
        """Yield needles nobody asks for, without end."""
        rng = request.rng("haystack")
        taken = {word for needle in hidden for word in (needle.key, needle.value)}
        while True:
            (needle,) = make_needles(rng, 1, self.kind, keys=self.key_kind)
            if taken.isdisjoint((needle.key, needle.value)):
                yield needle.sentence


def _in_text(request: Request, head: str, used: int, hidden: Sequence[Needle]) -> tuple[Passages, Sequence[float]]:
    """Hide needles between sentences. Returns the passages, and a depth for each needle."""
    needles = request.count(*(" " + needle.sentence for needle in hidden))
    tokens = needles + request.room(used + needles, _LEAST_TEXT)
    depths = draw_depths(request.rng("places"), len(hidden))
    _haystack(request)  # refuses a source that can be read only once

    def passages() -> Iterator[str]:
        document = hide(request.tokenizer, hidden, depths, _haystack(request), tokens, introduce=False)
        return chain([head], (passage.text for passage in document))

    return Passages(passages), depths


def _haystack(request: Request) -> Haystack:
    rng = request.rng("haystack")
    return text_haystack(request.sources, rng) if request.sources else novel_haystack(rng)


def _how_many_fit(request: Request, lines: Iterable[str], room: int) -> int:
    """Return how many of the lines, each with a line end, fit into `room` tokens; only a few are ever in memory."""
    stream = iter(lines)
    count = 0
    while block := [f"\n{line}" for line in islice(stream, _BLOCK)]:
        for ids in request.tokenizer.encode_many(block):
            room -= len(ids)
            if room < 0:
                return count
            count += 1
    return count


TASKS: dict[str, RulerTask] = {
    "niah_single_1": Needles("noise"),
    "niah_single_2": Needles("text"),
    "niah_single_3": Needles("text", "uuids"),
    "niah_single_words": Needles("text", "words"),
    "niah_multikey_1": Needles("text", keys=4),
    "niah_multikey_2": Needles("needle"),
    "niah_multikey_3": Needles("needle", "uuids", "uuids"),
    "niah_multivalue": Needles("text", values=4),
    "niah_multiquery": Needles("text", keys=4, queries=4),
    "vt": VariableTracking(),
    "cwe": CommonWords(),
    "fwe": FrequentWords(),
}
"""Every task by its name in RULER."""

ALIASES = {
    "S-NIAH-PK": "niah_single_1",
    "S-NIAH-N": "niah_single_2",
    "S-NIAH-W": "niah_single_3",
}
"""The names in the papers of Titans and its successors."""


def make_sample(
    task: str | RulerTask,
    tokenizer: Tokenizer,
    tokens: int,
    index: int = 0,
    *,
    seed: int = SEED,
    sources: Sequence[Source] = (),
) -> Sample:
    """Make one sample of a task, as long as the limit allows.

    Args:
        task: A name in `TASKS` or `ALIASES`, or a task with parameters of your own.
        tokenizer: Counts the tokens: the model's, or another one whose lengths are to be compared with.
        tokens: Most tokens of prompt and answer together: RULER's `max_seq_length`.
        index: Which sample of the set.
        seed: Which set of samples.
        sources: Where prose comes from, of `find_sources`; by default the shipped novels.

    Returns:
        The sample: the same one for the same arguments, whatever other samples are made. At other lengths it asks for
        the same keys, chains or words wherever those fit, so that lengths are compared on equal questions.

    Raises:
        UserError: No such task, not even its smallest sample fits into `tokens`, or a source that can be read only
            once; while the context is iterated over, one that cannot be read.

    Example:
        >>> from fastweights.data.tokenizer import load_tokenizer
        >>> sample = make_sample("niah_multiquery", load_tokenizer("bpe4096"), 1024)
        >>> len(sample.references), sample.max_new_tokens
        (4, 128)

    Cost: the fixed parts are tokenised, and lists of words and needles to the length asked for; prose is tokenised
    while the context is iterated over, each time anew.
    """
    if isinstance(task, str):
        name = ALIASES.get(task, task)
        if name not in TASKS:
            raise UserError(f"no task {task!r}: choose one of {', '.join([*TASKS, *ALIASES])}.")
        task = TASKS[name]
    else:
        name = type(task).__name__
    return task.draw(Request(name, tokenizer, tokens, seed, index, tuple(sources)))
