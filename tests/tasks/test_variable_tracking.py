"""Chains of assignments: the prompt to the byte, and names that an execution of the assignments finds."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest

from fastweights.data.tokenizer import Tokenizer, load_tokenizer
from fastweights.errors import UserError
from fastweights.tasks.haystack import NOISE_LINE
from fastweights.tasks.ruler import make_sample
from fastweights.tasks.variable_tracking import VariableTracking

BPE = load_tokenizer("bpe4096")
BYTES = load_tokenizer("bytes")

_TEXT = re.compile(
    r"following text\.\n\n(.*?)\nQuestion: Find all variables that are assigned the value (\d+) ", re.DOTALL
)


def execute(lines: Iterable[str]) -> dict[str, str]:
    """Run the assignments among `lines` in order and return every variable's value."""
    values: dict[str, str] = {}
    for line in lines:
        if assignment := re.fullmatch(r"VAR ([A-Z]+) = (?:(\d+)|VAR ([A-Z]+) )", line):
            name, value, other = assignment.groups()
            assert name not in values
            values[name] = value or values[other]
        else:
            assert line == NOISE_LINE
    return values


def test_the_prompt_is_rulers_to_the_byte() -> None:
    sample = make_sample(VariableTracking(hops=2, example_tokens=1), BPE, 640)
    assert sample.prompt() == (
        "Memorize and track the chain(s) of variable assignment hidden in the following text.\n"
        "\n"
        "VAR GLL = 48827\n"
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
        "VAR PQI = VAR GLL \n"
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
        "VAR FNB = VAR PQI \n"
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
        "Question: Find all variables that are assigned the value 48827 in the text above. Answer: According "
        "to the chain(s) of variable assignment in the text above, 3 variables are assigned the value 48827, "
        "they are:  GLL PQI FNB\n"
        "\n"
        "Memorize and track the chain(s) of variable assignment hidden in the following text.\n"
        "\n"
        "VAR MLPNY = 74037\n"
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
        "VAR GUJGQ = VAR MLPNY \n"
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
        "VAR OFAPX = VAR GUJGQ \n"
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
        "Question: Find all variables that are assigned the value 74037 in the text above. Answer: According "
        "to the chain(s) of variable assignment in the text above, 3 variables are assigned the value 74037, "
        "they are: "
    )
    assert sample.answer_prefix.endswith("they are: ")


@pytest.mark.parametrize("tokenizer", [BPE, BYTES], ids=lambda t: t.name)
@pytest.mark.parametrize(("chains", "hops"), [(1, 4), (3, 2), (2, 12)])
def test_the_assignments_lead_to_the_references(tokenizer: Tokenizer, chains: int, hops: int) -> None:
    for index in range(5):
        sample = make_sample(VariableTracking(chains, hops), tokenizer, 8000, index)
        (example, asked_there), (text, asked) = _TEXT.findall(sample.prompt())
        found = execute(text.split("\n"))
        assert [name for name, value in found.items() if value == asked] == list(sample.references)
        assert len(sample.references) == hops + 1
        assert len(found) == chains * (hops + 1)
        assert len(set(found.values())) == chains
        assert all(re.fullmatch("[A-Z]{5}", name) for name in found)
        assert all(10_000 <= int(value) < 99_999 for value in found.values())
        shown = [name for name, value in execute(example.split("\n")).items() if value == asked_there]
        assert len(shown) == min(hops, 10) + 1
        assert f" they are:  {' '.join(shown)}\n\nMemorize" in sample.prompt()
        assert asked != asked_there


def test_depths_are_the_shares_of_noise_in_front() -> None:
    sample = make_sample("vt", BPE, 3000, 2)
    text, _ = _TEXT.findall(sample.prompt())[1]
    lines = text.split("\n")
    noise = lines.count(NOISE_LINE)
    assert sample.depths == tuple(
        100
        * lines[: next(at for at, line in enumerate(lines) if line.startswith(f"VAR {name} "))].count(NOISE_LINE)
        / noise
        for name in sample.references
    )
    assert lines[-1] == NOISE_LINE
    assert list(sample.depths) == sorted(set(sample.depths))


def test_the_example_keeps_its_length_and_is_another_one_in_every_sample() -> None:
    examples = [make_sample("vt", BPE, 2048, index).prompt().split(" they are:  ")[0] for index in range(4)]
    assert len(set(examples)) == 4
    assert all(470 < len(BPE.encode(example)) + 4 <= 500 for example in examples)
    # Bytes are too many for 500 of them: the example has as many lines of noise as assignments.
    assert make_sample("vt", BYTES, 4096).prompt().split(" they are:  ")[0].count(NOISE_LINE) == 5


def test_the_example_may_be_left_out() -> None:
    sample = make_sample(VariableTracking(example_tokens=0), BPE, 512)
    assert sample.prompt().count("Memorize") == 1
    assert sample.length(BPE) <= 512


@pytest.mark.parametrize("wrong", [(0, 4, 500), (1, 0, 500), (1, 4, -1)])
def test_what_is_no_chain_is_refused(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(UserError, match="at least one chain of one hop"):
        VariableTracking(*wrong)
    with pytest.raises(UserError, match="more than 10000 names"):
        VariableTracking(3000, 3)
