"""Training rows: exact length, exact marks, and the very tokens that a document and its question would have."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastweights.data.documents import open_novel
from fastweights.data.tokenizer import Tokenizer, load_tokenizer
from fastweights.data.words import adjectives
from fastweights.errors import UserError
from fastweights.tasks.needle import intro, question
from fastweights.tasks.needle_rows import NeedleRow, RowMaker, RowMix, RowSpec, SentenceBank

BPE = load_tokenizer("bpe4096")
BYTES = load_tokenizer("bytes")
TEXT = [next(open_novel(name)) for name in ("ENG18850_Rutherford", "ENG18900_Doyle")]
MAKERS = {tokenizer.name: RowMaker(tokenizer, SentenceBank.from_texts(tokenizer, [TEXT])) for tokenizer in (BPE, BYTES)}

SPECS = st.builds(
    RowSpec,
    haystack=st.sampled_from(["noise", "text"]),
    needles=st.one_of(st.none(), st.integers(1, 12)),
    questions=st.integers(1, 8),
    kind=st.sampled_from(["numbers", "uuids", "words"]),
    digits=st.integers(4, 7),
    similar=st.sampled_from([0.0, 0.5]),
    introduce=st.booleans(),
)


def runs(row: NeedleRow, marks: np.ndarray, number: int) -> str:
    (places,) = np.nonzero(marks == number)
    assert places.tolist() == list(range(places[0], places[-1] + 1))
    return BYTES.decode(row.ids[places]) if row.ids.max() < 264 else BPE.decode(row.ids[places])


@pytest.mark.parametrize("tokenizer", [BPE, BYTES], ids=lambda t: t.name)
@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), tokens=st.integers(600, 3000), spec=SPECS)
def test_a_row_holds_what_it_says(tokenizer: Tokenizer, seed: int, tokens: int, spec: RowSpec) -> None:
    row = MAKERS[tokenizer.name].row(random.Random(seed), tokens, spec)
    assert row.ids.shape == row.answers.shape == row.needles.shape == (tokens,)
    assert row.ids.dtype == np.int32
    assert spec.needles is None or 1 <= len(row.hidden) <= spec.needles
    assert 1 <= len(row.asked) <= spec.questions
    assert set(row.asked) <= set(range(len(row.hidden)))
    for number, needle in enumerate(row.hidden, start=1):
        assert runs(row, row.needles, number).strip() == needle.sentence
    for number, index in enumerate(row.asked, start=1):
        assert runs(row, row.answers, number) == f" {row.hidden[index].value}."
        last = np.nonzero(row.answers == number)[0][-1]
        assert row.ids[last] == tokenizer.eos
        before = tokenizer.decode(row.ids[: np.argmax(row.answers == number)])
        assert before.endswith("\n" + question(row.hidden[index]))
    assert set(np.unique(row.answers)) == set(range(len(row.asked) + 1))
    assert set(np.unique(row.needles)) == set(range(len(row.hidden) + 1))
    assert row.answers[-1] == len(row.asked)
    text = tokenizer.decode(row.ids)
    assert text.startswith(intro(spec.kind) + "\n") == spec.introduce


@pytest.mark.parametrize("tokenizer", [BPE, BYTES], ids=lambda t: t.name)
@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), spec=SPECS)
def test_a_row_has_the_tokens_of_its_text(tokenizer: Tokenizer, seed: int, spec: RowSpec) -> None:
    row = MAKERS[tokenizer.name].row(random.Random(seed), 1500, spec)
    plain = row.ids[row.ids != tokenizer.eos]
    again = tokenizer.encode_array(tokenizer.decode(plain))
    first_question = tokenizer.encode("\n" + question(row.hidden[row.asked[0]]))
    (haystack,) = np.nonzero(row.needles[: int(np.argmax(row.answers > 0)) - len(first_question)] == 0)
    # It is cut at a token, possibly inside a word or before a line end: around that place alone the two may differ.
    border = int(haystack[-1]) if len(haystack) else 0
    assert again[: max(0, border - 30)].tolist() == plain[: max(0, border - 30)].tolist()
    tail = len(plain) - border - 2
    assert again[-tail:].tolist() == plain[-tail:].tolist()


def test_needles_stand_at_their_depths_on_average() -> None:
    rng = random.Random(0)
    spec = RowSpec("text", needles=1, questions=1)
    places = [int(np.argmax(MAKERS["bpe4096"].row(rng, 1024, spec).needles)) for _ in range(200)]
    assert 300 < np.mean(places) < 600
    assert min(places) < 60
    assert max(places) > 800


def test_dense_rows_are_mostly_needles() -> None:
    row = MAKERS["bpe4096"].row(random.Random(0), 2048, RowSpec("text", needles=None, questions=4))
    assert len(row.asked) == 4
    assert (row.needles > 0).mean() > 0.6


def test_equal_generators_give_equal_rows_and_others_do_not() -> None:
    def row(seed: int) -> NeedleRow:
        return MAKERS["bpe4096"].row(random.Random(seed), 700, RowSpec())

    assert row(1).ids.tolist() == row(1).ids.tolist()
    assert row(1).ids.tolist() != row(2).ids.tolist()
    fresh = RowMaker(BPE, SentenceBank.from_texts(BPE, [TEXT])).row(random.Random(1), 700, RowSpec())
    assert fresh.ids.tolist() == row(1).ids.tolist()


def test_training_keys_are_never_held_out_words() -> None:
    row = MAKERS["bpe4096"].row(random.Random(0), 2048, RowSpec(needles=None))
    assert {needle.key.split("-")[0] for needle in row.hidden} <= set(adjectives("train"))


def test_what_does_not_fit_is_left_out_questions_first() -> None:
    full = MAKERS["bpe4096"].row(random.Random(0), 1000, RowSpec("noise", needles=6, questions=6))
    assert (len(full.hidden), len(full.asked)) == (6, 6)
    short = MAKERS["bpe4096"].row(random.Random(0), 300, RowSpec("noise", needles=6, questions=6))
    assert len(short.hidden) == 6
    assert len(short.asked) == 1
    with pytest.raises(UserError, match=r"need \d+ tokens, \d+ are left"):
        MAKERS["bpe4096"].row(random.Random(0), 100, RowSpec("noise"))


def test_without_texts_only_noise_works() -> None:
    maker = RowMaker(BPE)
    assert maker.row(random.Random(0), 300, RowSpec("noise")).ids.shape == (300,)
    with pytest.raises(UserError, match="need texts"):
        maker.row(random.Random(0), 300, RowSpec("text"))


def test_the_bank_holds_every_sentence_once_and_survives_its_file(tmp_path: Path) -> None:
    bank = SentenceBank.from_texts(BPE, [["One. ", "Two is two."], ["Three!"]])
    assert BPE.decode(bank.ids) == " One. Two is two. Three!"
    assert [BPE.decode(bank.ids[a:b]) for a, b in zip(bank.starts, bank.starts[1:], strict=False)] == [
        " One.",
        " Two is two.",
        " Three!",
    ]
    bank.save(tmp_path / "bank.npz")
    again = SentenceBank.load(tmp_path / "bank.npz")
    assert again.ids.tolist() == bank.ids.tolist()
    assert again.ids.dtype == np.uint16
    assert again.starts.tolist() == bank.starts.tolist()
    (tmp_path / "a.txt").write_text("One. Two is two.")
    (tmp_path / "b.txt").write_text("Three!")
    assert SentenceBank.from_paths(BPE, str(tmp_path / "*.txt")).ids.tolist() == bank.ids.tolist()
    with pytest.raises(UserError, match="no words"):
        SentenceBank.from_texts(BPE, [[" "]])


def test_a_window_is_plain_neighbouring_text() -> None:
    bank = SentenceBank.from_texts(BPE, [["One two three four five."]])
    window = bank.window(random.Random(0), 20)
    assert window.dtype == np.int32
    assert window.shape == (20,)
    around = np.concatenate([bank.ids] * 5).tolist()
    assert any(around[start : start + 20] == window.tolist() for start in range(len(bank.ids)))


def test_a_mix_draws_each_kind_of_row() -> None:
    rng = random.Random(0)
    mix = RowMix(noise=1, text=1, dense=1, max_needles=3, kinds=("numbers", "uuids"), introduce=0.5)
    specs = [mix.draw(rng) for _ in range(300)]
    assert {spec.haystack for spec in specs} == {"noise", "text"}
    assert {spec.needles for spec in specs} == {None, 1, 2, 3}
    assert {spec.kind for spec in specs} == {"numbers", "uuids"}
    assert {spec.introduce for spec in specs} == {True, False}
    assert 60 < sum(spec.needles is None for spec in specs) < 140
    only = RowMix(noise=0, text=1, dense=0)
    assert {(only.draw(rng).haystack, only.draw(rng).needles is None) for _ in range(50)} == {("text", False)}
    dense = RowMix(noise=0, text=0, dense=1)
    assert {(dense.draw(rng).haystack, dense.draw(rng).needles) for _ in range(50)} == {("noise", None)}
