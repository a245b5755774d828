"""What lm-evaluation-harness asks of a model, without the harness: likelihoods, answers, and what is refused."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from tests.small_model import build, save

from fastweights.data.tokenizer import ByteTokenizer, load_tokenizer
from fastweights.errors import FastweightsError, UserError
from fastweights.evaluate import harness
from fastweights.evaluate.bits import pieces_of, read_bits
from fastweights.evaluate.harness_reader import AT_ONCE, Ending, Reader, ending_of, reader_of
from fastweights.evaluate.likelihood import Pair, pair_of, score, side_by_side, windows
from fastweights.inference.session import Session
from fastweights.models.language_model import LanguageModel

BYTES, BPE = ByteTokenizer(), load_tokenizer("bpe4096")
TEXT = "The cook was not in the kitchen, naïve as he was. " * 4
CLOSE = 1e-7  # of the logarithms of probabilities, which are taken in float32


def small() -> LanguageModel:
    """In float64: random memories amplify what float32 rounds away."""
    return build().double().eval()


def pair(context: Sequence[int], asked: Sequence[int]) -> Pair:
    return Pair(np.array(context, np.int32), np.array(asked, np.int32))


@torch.no_grad()
def by_hand(given: Pair) -> list[float]:
    """Log-probabilities of the tokens asked for, from one call."""
    ids = torch.from_numpy(np.concatenate(given).astype(np.int64))[None]
    log_p = torch.log_softmax(small()(ids[:, :-1]).logits, -1)
    return log_p.gather(-1, ids[:, 1:, None])[0, len(given.context) - 1 :, 0].tolist()


# -- pairs, windows and groups


@pytest.mark.parametrize(
    ("context", "continuation", "read", "asked"),
    [
        ("Once upon", " a time", "Once upon", " a time"),
        ("Once upon ", "a time", "Once upon", " a time"),
        ("Once \n", "more", "Once", " \nmore"),
        ("", "Once", "", "Once"),
        (" \n", "Once", "", " \nOnce"),
        ("Once", "", "Once", ""),
    ],
)
def test_pairs_of_texts(context: str, continuation: str, read: str, asked: str) -> None:
    for tokenizer in (BYTES, BPE):
        found = pair_of(tokenizer, context, continuation)
        assert found.context.tolist() == (tokenizer.encode(read) or [tokenizer.eos])
        assert (tokenizer.decode(found.context), tokenizer.decode(found.asked)) == (read, asked)


def test_a_token_over_the_border_is_asked_for() -> None:
    whole = BPE.encode("the kitchen")
    assert BPE.encode("the kitch") + BPE.encode("en") != whole
    found = pair_of(BPE, "the kitch", "en")
    assert [*found.context, *found.asked] == whole
    assert BPE.decode(found.context) == "the"


def test_windows_read_as_much_as_fits() -> None:
    ids = np.arange(10, 20, dtype=np.int32)
    found = [(one.context.tolist(), one.asked.tolist()) for one in windows(BYTES, ids, 4)]
    assert found == [([BYTES.eos], [10, 11, 12, 13]), ([13], [14, 15, 16, 17]), ([15, 16, 17], [18, 19])]
    assert not list(windows(BYTES, ids[:0], 4))


@pytest.mark.parametrize(
    ("lengths", "rows", "groups"),
    [
        ([], 3, []),
        ([5], 3, [[0]]),
        ([5, 9, 7, 8], 3, [[1, 3, 2], [0]]),
        ([4, 10, 5, 2], 8, [[1, 2], [0, 3]]),
        ([3, 3, 3], 1, [[0], [1], [2]]),
    ],
)
def test_which_texts_are_read_together(lengths: list[int], rows: int, groups: list[list[int]]) -> None:
    assert list(side_by_side(lengths, rows)) == groups


# -- scores


@pytest.mark.parametrize("piece", [1, 7, 64, 4096])
def test_scores_are_those_of_one_call(piece: int) -> None:
    ids = BYTES.encode(TEXT)
    given = [pair(ids[:90], ids[90:]), pair([BYTES.eos], ids[:11]), pair(ids[:120], ids[120:121]), pair(ids[:3], [])]
    found = score(small(), given, piece)
    assert [one.log_probability for one in found] == pytest.approx([sum(by_hand(one)) for one in given], rel=CLOSE)
    assert found[3] == (0.0, True)


def test_greedy_means_every_token() -> None:
    said = Session(small(), BYTES).generate("Once", max_tokens=9, temperature=0)
    right = pair(BYTES.encode("Once"), said.ids)
    wrong = [pair(BYTES.encode("Once"), [*said.ids[:place], 9, *said.ids[place + 1 :]]) for place in (0, 4, 8)]
    assert [one.greedy for one in score(small(), [right, *wrong], 5)] == [True, False, False, False]
    assert score(small(), [right], 5)[0].log_probability == pytest.approx(said.log_probability, rel=CLOSE)


def test_a_model_that_has_diverged_is_not_scored() -> None:
    model = small()
    model.head.weight.data.fill_(math.nan)
    with pytest.raises(FastweightsError, match="not finite"):
        score(model, [pair([1], [2])], 8)


# -- the reader


def test_requests_keep_their_order() -> None:
    requests = [("a", TEXT), (TEXT, "b"), ("", "cc"), (TEXT, TEXT), ("d", "")]
    found = dict(Reader(small(), BYTES, at_once=2).log_likelihoods(requests))
    wanted = [sum(by_hand(pair_of(BYTES, *one))) for one in requests[:4]]
    assert [found[index][0] for index in range(4)] == pytest.approx(wanted, rel=CLOSE)
    assert found[4] == (0.0, True)


def test_documents_cost_what_they_cost_elsewhere() -> None:
    reader = Reader(small(), BYTES)
    found = dict(reader.rolling_log_likelihoods([TEXT, "", TEXT[:30]]))
    bits = [sum(float(part.bits.sum()) for part in read(text)) for text in (TEXT, TEXT[:30])]
    assert [found[0], found[2]] == pytest.approx([-math.log(2) * cost for cost in bits], rel=CLOSE)
    assert found[1] == 0


def read(text: str) -> list[Any]:
    return list(read_bits(small(), pieces_of(BYTES, [text]), [BYTES.eos]))


def test_windows_forget() -> None:
    found = dict(Reader(small(), BYTES, "windows", 50, at_once=3).rolling_log_likelihoods(["", TEXT, TEXT[:30]]))
    parts = list(windows(BYTES, BYTES.encode_array(TEXT), 50))
    assert found[1] == pytest.approx(sum(sum(by_hand(part)) for part in parts), rel=CLOSE)
    whole = dict(Reader(small(), BYTES).rolling_log_likelihoods([TEXT, TEXT[:30]]))
    assert abs(found[1] - whole[0]) > 1
    assert found[2] == pytest.approx(whole[1], rel=CLOSE)
    assert found[0] == 0


def test_answers_are_greedy_and_end_where_they_should() -> None:
    free = Session(small(), BYTES).generate(TEXT, max_tokens=20, temperature=0).text
    assert len(free) > 6
    stop = free[4:6]
    requests: list[tuple[str, dict[str, Any]]] = [
        (TEXT, {"until": [], "max_gen_toks": 20}),
        ("Once", {"until": None, "max_gen_toks": 5}),
        (TEXT, {"until": ["", stop, "never said"], "max_gen_toks": 20, "do_sample": False, "temperature": 0.0}),
        ("", {"until": [], "max_gen_toks": 5}),
    ]
    found = dict(Reader(small(), BYTES, at_once=2).answers(requests))
    assert found[0] == free
    assert found[1] == Session(small(), BYTES).generate("Once", max_tokens=5, temperature=0).text
    assert found[2] == free[: free.index(stop)]
    assert found[3]


@pytest.mark.parametrize(
    ("arguments", "ending"),
    [
        ({}, Ending((), 256)),
        ({"until": "\n", "max_gen_toks": 3, "temperature": 0.0, "do_sample": False}, Ending(("\n",), 3)),
        ({"until": ["", "Q:"], "max_new_tokens": "7", "top_p": 0.9, "num_beams": 1}, Ending(("Q:",), 7)),
        ({"max_gen_toks": None, "max_tokens": 9, "max_completion_tokens": 2}, Ending((), 9)),
        ({"do_sample": False, "temperature": 0.7}, Ending((), 256)),
    ],
)
def test_generation_arguments(arguments: dict[str, Any], ending: Ending) -> None:
    before = dict(arguments)
    assert ending_of(arguments) == ending
    assert arguments == before


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        ({"do_sample": True}, "drawn by chance"),
        ({"temperature": 0.7}, "drawn by chance"),
        ({"num_beams": 4}, "knows the limit"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"max_gen_toks": 0}, "at least 1"),
        ({"max_gen_toks": "many"}, "'max_gen_toks' is a number, not 'many'"),
        ({"temperature": "x"}, "'temperature' is a number"),
        ({"until": 7}, "a string or a list of strings, not 7"),
    ],
)
def test_what_cannot_be_generated_is_refused_before_anything_is_read(arguments: dict[str, Any], refusal: str) -> None:
    answers = Reader(small(), BYTES).answers([("a", {"max_gen_toks": 2}), ("a", arguments)])
    with pytest.raises(UserError, match=refusal):
        next(answers)


@pytest.mark.parametrize(
    ("choices", "refusal"),
    [
        ({"rolling": "chunks"}, "document, windows"),
        ({"window": 0}, "at least one token"),
        ({"window": "many"}, "at least one token"),
        ({"at_once": 0}, "at least one row"),
        ({"tokenizer": BPE}, "the tokenizer that the model was trained with"),
    ],
)
def test_readers_that_make_no_sense(choices: dict[str, Any], refusal: str) -> None:
    given: dict[str, Any] = {"model": small(), "tokenizer": BYTES} | choices
    with pytest.raises(UserError, match=refusal):
        Reader(**given)


# -- the harness's own words


def test_the_arguments_of_the_harness(tmp_path: Path) -> None:
    name = save(tmp_path / "small")
    default = reader_of({"model": name})
    assert (default.rolling, default.at_once, default.tokenizer.name) == ("document", AT_ONCE, "bytes")
    told = reader_of({"model": name, "rolling": "windows", "window": 64, "batch_size": "3", "device": "cpu"})
    assert (told.rolling, told.window, told.at_once) == ("windows", 64, 3)
    assert told.facts()["window"] == 64
    assert default.facts()["window"] is None
    assert default.facts()["model_sha"] == default.model.fingerprint() == told.facts()["model_sha"]
    assert reader_of({"model": name, "batch_size": "auto:4", "max_batch_size": 5}).at_once == 5
    assert reader_of({"model": name, "batch_size": 1, "max_batch_size": 5}).at_once == 1


def test_without_a_gpu_the_harness_s_default_is_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reader = reader_of({"model": save(tmp_path / "small"), "device": "cuda:0"})
    assert reader.facts()["model_device"] == "cpu"


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        ({}, "model=NAME"),
        ({"model": "nowhere"}, "nowhere"),
        ({"model": "small", "pretrained": "gpt2"}, "no argument 'pretrained'"),
        ({"model": "small", "batch_size": "some"}, "a number or auto"),
        ({"model": "small", "batch_size": 0}, "at least one row"),
        ({"model": "small", "device": "abacus"}, "abacus"),
        ({"model": "small", "device": "xpu"}, "there is no device 'xpu'"),
    ],
)
def test_arguments_that_are_refused(
    arguments: dict[str, Any], refusal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "small")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=refusal):
        reader_of(arguments)


def test_a_missing_harness_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    harness.adapter.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'fastweights\[eval\]'"):
        harness.adapter()
    assert harness.main() == 2
    assert capsys.readouterr().err == f"fastweights: {harness._MISSING}\n"


@pytest.mark.parametrize("tokenizer", [BYTES, BPE])
def test_a_saved_tokenizer_is_the_same(tokenizer: Any, tmp_path: Path) -> None:
    harness.save_tokenizer(tokenizer, tmp_path / "a" / "b")
    again = tokenizers.Tokenizer.from_file(str(tmp_path / "a" / "b" / "tokenizer.json"))
    for text in (TEXT, "<pad> 1234567\n\n 漢字\x00", ""):
        assert again.encode(text).ids == tokenizer.encode(text)
        assert again.decode(tokenizer.encode(text)) == text
    assert again.get_vocab_size() == tokenizer.vocab_size
    kind = json.loads((tmp_path / "a" / "b" / "tokenizer_config.json").read_text())
    assert kind == {"tokenizer_class": "PreTrainedTokenizerFast"}
    with pytest.raises(UserError, match="cannot be written"):
        harness.save_tokenizer(tokenizer, tmp_path / "a" / "b" / "tokenizer.json")


def test_a_tokenizer_of_another_package_is_not_saved_as_bytes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'theirs' is not one of this library's"):
        harness.save_tokenizer(SimpleNamespace(name="theirs"), tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize(("error", "status"), [(UserError("no"), 2), (FastweightsError("diverged"), 1)])
def test_errors_of_the_harness_are_sentences(
    error: Exception, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(harness, "adapter", fail)
    assert harness.main() == status
    assert capsys.readouterr().err == f"fastweights: {error}\n"
