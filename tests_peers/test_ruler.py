"""RULER's tasks in lm-evaluation-harness beside ours: the scores of equal outputs, and the prompts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from importlib import import_module

import numpy as np
import pytest
from tests_peers.harness import BPE, LONG, SHORT, lm_eval, theirs
from tests_peers.trial import MEASURED, Measurement

from fastweights.evaluate.text_tasks import samples_of
from fastweights.tasks.haystack import NOISE_LINE
from fastweights.tasks.needle import Kind, Needle, intro, match_all, question_for, string_match_all
from fastweights.tasks.ruler import make_sample

TASKS = {
    "niah_single_1": "niah_single_1",
    "niah_multikey_2": "niah_multikey_2",
    "niah_multikey_3": "niah_multikey_3",
    "ruler_vt": "vt",
    "ruler_cwe": "cwe",
    "ruler_fwe": "fwe",
}
"""The harness's tasks that need nothing from the hub, and our names of them."""

NEEDLES: list[tuple[str, Kind]] = [
    ("niah_single_1", "numbers"),
    ("niah_multikey_2", "numbers"),
    ("niah_multikey_3", "uuids"),
]


def outputs(references: Sequence[str]) -> dict[str, str]:
    """What a model may say, from right to wrong."""
    listed, first = ", ".join(references), references[0]
    return {
        "right": f" {listed}.",
        "in another order": " and ".join(references[::-1]),
        "without spaces": "".join(references),
        "the first": f" {first}\n\n",
        "all but the first": " ".join(references[1:]),
        "upper case": listed.upper(),
        "the other case": listed.swapcase(),
        "control characters around": f"\x00\x1f \t{listed}\x07",
        "control characters between": "\x0b".join(references),
        "control character inside": f"{first[:3]}\x01{first[3:]}",
        "line end inside": f"{first[:3]}\n{first[3:]}",
        "delete character inside": f"{first[:3]}\x7f{first[3:]}",
        "a digit too many": f"9{first}9",
        "cut short": first[:-1],
        "something else": " 0000000 nothing",
        "empty": "",
        "space": " \n ",
    }


# -- scores


@pytest.mark.parametrize("name", TASKS)
def test_equal_outputs_have_equal_scores(name: str) -> None:
    task, compared, largest, seen = theirs(name), 0, 0.0, set[float]()
    for doc in task.docs:
        if not doc["outputs"]:
            assert name == "ruler_cwe"  # see test_common_words_of_the_harness_may_be_none
            continue
        for output in outputs(doc["outputs"]).values():
            found, ours = task.score(doc, output), match_all(output, doc["outputs"])
            largest, compared = max(largest, abs(found - ours)), compared + 1
            seen.add(found)
    note(f"{name}: process_results", "tasks.needle.match_all", f"scores of {compared} outputs", largest)
    assert largest == 0
    assert {0.0, 1.0} <= seen
    assert len(seen) > 2 or len(task.docs[-1]["outputs"]) == 1


@pytest.mark.parametrize("name", TASKS)
def test_what_our_runs_report_is_what_the_harness_would(name: str) -> None:
    make = samples_of(TASKS[name], BPE, SHORT, seed=1)
    for asked in map(make, range(3)):
        doc = {"max_length": SHORT, "outputs": list(asked.references)}
        for output in outputs(asked.references).values():
            assert asked.score(output) == {"string_match_all": theirs(name).score(doc, output)}


def test_means_over_samples_are_equal() -> None:
    task = theirs("ruler_vt")
    references = [doc["outputs"] for doc in task.docs]
    said = [list(outputs(wanted).values())[3 * number] for number, wanted in enumerate(references)]
    found = [task.score(doc, output) for doc, output in zip(task.docs, said, strict=True)]
    mean = lm_eval("tasks.ruler.common_utils").aggregate_metrics([*found, -1.0])
    assert 0 < mean < 1
    assert string_match_all(said, references) == round(100 * mean, 2)


def note(function: str, ours: str, compared: str, largest: float) -> None:
    MEASURED.append(Measurement("lm-eval", function, ours, compared, "float64", largest))


# -- prompts: everything is equal but what is named here


def line_of(needle: re.Match[str], kind: Kind) -> str:
    return Needle(needle["key"], needle["value"], kind).sentence


@pytest.mark.parametrize(("name", "kind"), NEEDLES)
def test_prompts_of_needles(name: str, kind: Kind) -> None:
    sentence = rf"One of the special magic {kind} for (?P<key>.+?) is: (?P<value>\S+)\."
    for prompt in [*theirs(name).prompts(SHORT), ours(name)]:
        _, *lines, asked = prompt.split("\n")
        rebuilt = [line_of(found, kind) if (found := re.fullmatch(sentence, line)) else NOISE_LINE for line in lines]
        key = re.search(r"for (.+?) mentioned", asked)
        assert key is not None
        assert "\n".join([intro(kind), *rebuilt, question_for([key[1]], kind)]) == prompt
        assert (rebuilt.count(NOISE_LINE) > 0) == (name == "niah_single_1")
        hidden = [found for line in lines if (found := re.fullmatch(sentence, line))]
        assert len(hidden) == 1 or name != "niah_single_1"
        assert sum(found["key"] == key[1] for found in hidden) == 1


def ours(name: str, length: int = SHORT, index: int = 0) -> str:
    return make_sample(TASKS[name], BPE, length, index).prompt()


def tracking(text: str, joined: str, noise: str) -> str:
    """The harness's template of variable tracking, filled with the sentences and the value of a prompt."""
    config = lm_eval("tasks.ruler.vt_utils").CONFIG["variable_tracking"]
    sentences = re.findall(rf"VAR \w+ = \d+|VAR \w+ = VAR \w+ |{re.escape(NOISE_LINE)}", text)
    value = re.search(r"= (\d+)", text)
    assert value is not None
    context = joined.join(noise if sentence == NOISE_LINE else sentence for sentence in sentences)
    asked = (config["template"] + config["answer_prefix"]).format(context=context, query=value[1], num_v=5)
    assert asked.count(value[1]) == 3
    return str(asked)


def names(text: str) -> str:
    return " ".join(re.findall(r"VAR (\w+) = ", text))


def test_prompts_of_variable_tracking() -> None:
    # The harness has an earlier RULER: sentences are joined by spaces, the noise alone ends a line. It says "assgined",
    # puts four line ends behind the worked example, and strips the answer's beginning.
    for prompt in theirs("ruler_vt").prompts(SHORT):
        example, real = re.split(r"\n\n(?=Memorize)", prompt)
        there = tracking(example, " ", f"{NOISE_LINE}\n") + " " + names(example) + "\n\n"
        assert example == there
        assert real == tracking(real, " ", f"{NOISE_LINE}\n").rstrip()
        assert prompt.count("assgined") == 2
    example, real = re.split(r"\n\n(?=Memorize)", ours("ruler_vt"))
    rebuilt = [tracking(text, "\n", NOISE_LINE).replace("assgined", "assigned") for text in (example, real)]
    assert example == rebuilt[0] + " " + names(example)
    assert real == rebuilt[1]


def test_prompts_of_common_words() -> None:
    # The harness leaves the worked example out that it counts, and puts an empty line in front of "Answer".
    words = lm_eval("tasks.ruler.cwe_utils")
    docs = [doc for doc in theirs("ruler_cwe").docs if doc["max_length"] == LONG]
    for doc, prompt in zip(docs, theirs("ruler_cwe").prompts(LONG), strict=True):
        shown = words.TEMPLATE.format(context=prompt.split("\n")[1], query="")
        assert prompt == shown.replace(" Answer:", "\n\nAnswer:")
        assert doc["input_example"] not in prompt
        assert repetitions(prompt.split("\n")[1]) == (6, 1)
    first, listed, asked, *real = ours("ruler_cwe", LONG).split("\n")
    answer = asked.removeprefix(words.TEMPLATE.split("\n")[2])
    assert "\n".join([first, listed, asked]) == words.TEMPLATE.format(context=listed, query="") + answer
    assert "\n".join(real) == words.TEMPLATE.format(context=real[1], query="")
    assert re.fullmatch(r"( \d+\. \S+){10}", answer)
    assert repetitions(real[1]) == (6, 1)
    assert repetitions(listed) == (3, 1)
    assert {*entries(listed), *entries(real[1])} < set(words.WORDS)  # which has verbs too


def entries(listed: str) -> list[str]:
    """The words of a numbered list; a word of theirs may be several."""
    found = re.findall(r"(\d+)\. (.+?)(?= \d+\. |$)", listed)
    assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
    return [word for _, word in found]


def repetitions(listed: str) -> tuple[int, int]:
    """How often the ten most common words of a numbered list stand in it, and how often all others."""
    counts = sorted(Counter(entries(listed)).values(), reverse=True)
    assert len(set(counts[:10])) == len(set(counts[10:])) == 1
    return counts[0], counts[10]


def test_common_words_of_the_harness_may_be_none() -> None:
    # Where ten words are too many, it takes ten away and asks for the most common of none.
    task = theirs("ruler_cwe")
    empty = [doc for doc in task.docs if doc["max_length"] == SHORT]
    assert [doc["outputs"] for doc in empty] == [[]] * 3
    with pytest.raises(ZeroDivisionError):
        task.score(empty[0], "")
    assert len(make_sample("cwe", BPE, SHORT).references) == 10


def test_prompts_of_frequent_words() -> None:
    template = lm_eval("tasks.ruler.fwe_utils").TEMPLATE
    zeta = import_module("scipy.special").zeta
    mine = [ours("ruler_fwe", SHORT, index) for index in range(2)]
    found = theirs("ruler_fwe").prompts(SHORT)
    coded = []
    for prompt in [*found, *mine]:
        words = prompt.split("\n")[0].split("coded words. ")[1]
        assert prompt == template.format(context=words, query="")
        coded.append(words.split())
        counts = sorted(Counter(coded[-1]).values(), reverse=True)
        share = np.arange(1.0, SHORT // 50 + 1) ** -2 / zeta(2.0)
        assert any([n for n in (text * share).astype(int).tolist() if n] == counts for text in range(10, 1000))
    # Every sample of the harness is shuffled alike, so that the dots stand at the same places.
    dots = [[word == "..." for word in words] for words in coded]
    assert dots[0] == dots[1] == dots[2]
    assert dots[3] != dots[4]


@pytest.mark.parametrize("name", TASKS)
def test_lengths(name: str) -> None:
    # Ours end short of the limit by less than one part. The harness goes down in steps of several, and its coded texts
    # leave no room for the answer.
    here = [make_sample(TASKS[name], BPE, LONG, index).length(BPE) for index in range(3)]
    assert max(here) <= LONG
    assert min(here) > LONG - 80
    there = [row["length"] for row in theirs(name).task.dataset["test"] if row["max_length"] == LONG]
    assert len(there) == 500
    assert min(there) < LONG - 80
    assert (max(there) > LONG) == (name == "ruler_fwe")
