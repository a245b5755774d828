"""A session reads exactly, answers without learning, and goes on from a file as if nothing had happened."""

from __future__ import annotations

import errno
import gc
import hashlib
import io
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastweights.core.architecture import MLP, Residual
from fastweights.core.rule import Rule
from fastweights.data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
from fastweights.errors import UserError
from fastweights.inference.feed import Ids, Tokens
from fastweights.inference.memory_file import MemoryFileError, read_header, verify
from fastweights.inference.session import Progress, Session
from fastweights.models.config import ModelConfig, Wiring
from fastweights.models.language_model import LanguageModel, flatten_state

TEXT = "".join(f"{n}. It was the best of times, it was the wörst of times: {n * 7919 % 1000}.\n" for n in range(12))
BYTES = len(TEXT.encode())
PIECE = 64
QUESTION = "\nWhat was it?"


def build(wiring: Wiring = "mag", chunk_size: int = 16, seed: int = 0) -> LanguageModel:
    torch.manual_seed(seed)
    rule = Rule(Residual(MLP()), chunk_size=chunk_size)
    return LanguageModel(
        ModelConfig(264, dim=16, depth=2, heads=2, wiring=wiring, rule=rule, window=12, segment=16, persistent=2)
    )


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return build()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return ByteTokenizer()


@pytest.fixture
def session(model: LanguageModel, tokenizer: Tokenizer) -> Session:
    return Session(model, tokenizer, piece=PIECE)


def content(session: Session, folder: Path) -> bytes:
    """Everything a session knows, bit for bit: the file it would save."""
    session.save(folder / "probe.memory")
    return (folder / "probe.memory").read_bytes()


def pieces(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


# Reading.


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_however_a_text_is_cut_the_session_is_the_same(session: Session, tmp_path: Path, size: int) -> None:
    other = session.fork()
    assert session.read(TEXT) == BYTES
    assert other.read(pieces(TEXT, size)) == BYTES
    assert session.tokens == (BYTES,)
    assert content(session, tmp_path) == content(other, tmp_path)


def test_a_session_knows_what_one_call_of_the_model_knows(session: Session, model: LanguageModel) -> None:
    session.read(TEXT[:300])
    with torch.no_grad():
        whole = model.encode(torch.tensor([session.tokenizer.encode(TEXT[:300])]))
    ours, theirs = flatten_state(session._settle().state), flatten_state(whole.state)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-5, rtol=1e-4)


def test_the_source_is_recorded_with_its_hash(session: Session) -> None:
    session.read(TEXT, name="times.txt")
    session.read(pieces("More.", 2), name="raw", digest=lambda: ("ab" * 32, 99))
    first, second = session.sources
    assert (first.name, first.tokens, first.bytes, first.complete) == ("times.txt", BYTES, BYTES, True)
    assert first.sha256 == hashlib.sha256(TEXT.encode()).hexdigest()
    assert (second.sha256, second.bytes, second.tokens) == ("ab" * 32, 99, 5)


def test_tokens_are_read_as_the_text_they_are(session: Session, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_array(TEXT)
    session.read(TEXT)
    other = Session(session.model, tokenizer, piece=PIECE)
    other.read(Tokens([ids[:100], ids[100:100], ids[100:]]))
    assert other.ask(QUESTION) == session.ask(QUESTION)
    source = other.sources[0]
    data = ids.astype("<i4").tobytes()
    assert (source.tokens, source.bytes, source.sha256) == (BYTES, len(data), hashlib.sha256(data).hexdigest())


def test_progress_tells_how_it_goes(session: Session) -> None:
    seen: list[Progress] = []
    session.read(TEXT, on_progress=seen.append)
    counts = [progress.tokens for progress in seen]
    assert counts[:2] == [PIECE, 2 * PIECE]
    assert counts[-1] == BYTES
    assert all(progress.norm > 0 and progress.surprise > 0 and progress.tokens_per_second > 0 for progress in seen)


def test_state_and_memory_do_not_grow_with_the_length_read(session: Session) -> None:
    alive: list[int] = []

    def weigh(progress: Progress) -> None:
        if progress.tokens // PIECE in (2, 15, 28):
            alive.append(sum(thing.nbytes for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)))

    before = session.state_bytes()
    session.read(itertools.repeat(TEXT, 3), on_progress=weigh)
    assert len(alive) == 3
    assert len(set(alive)) == 1
    assert session.state_bytes() == before
    for tensor in flatten_state(session.snapshot().state).values():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_health_and_curve_speak_of_all_that_was_read(session: Session) -> None:
    session.read(TEXT[:100])
    health, curve = session.health(), session.curve()
    assert health.non_finite == 0
    assert health.rejected == (0,)
    assert list(health.norms) == ["layer 0", "layer 1"]
    assert len(curve.mean) == len(curve.peak) == 101
    assert session.passages()
    assert all(passage.text in TEXT for passage in session.passages())


@pytest.mark.parametrize("wiring", ["lmm", "mag", "mal", "mac"])
def test_rows_of_different_lengths_read_as_if_alone(wiring: Wiring, tokenizer: Tokenizer) -> None:
    model = build(wiring)
    texts = [TEXT[:50], TEXT[100:400], "", TEXT[:PIECE]]
    together = Session(model, tokenizer, rows=4, piece=PIECE)
    assert together.read_rows(texts, names=list("abcd")) == sum(len(text.encode()) for text in texts)
    together.read_rows([TEXT[50:150], "", TEXT[:10], ""])
    answers = together.ask_each([QUESTION, "Who?", "And then, what was it that came after?", "Why?"], max_tokens=5)
    for row, more in enumerate([TEXT[50:150], "", TEXT[:10], ""]):
        alone = Session(model, tokenizer, piece=PIECE)
        for text in filter(None, (texts[row], more)):
            alone.read(text)
        part = together.fork([row])
        assert part.tokens == alone.tokens
        for name, tensor in flatten_state(alone._settle().state).items():
            torch.testing.assert_close(flatten_state(part._settle().state)[name], tensor, atol=1e-5, rtol=1e-4)
        question = [QUESTION, "Who?", "And then, what was it that came after?", "Why?"][row]
        assert alone.ask(question, max_tokens=5).ids == answers[row].ids
    assert [(source.name, source.row) for source in together.sources[:3]] == [("a", 0), ("b", 1), ("d", 3)]


# Asking.


def test_an_answer_is_the_greedy_continuation_of_everything(session: Session, model: LanguageModel) -> None:
    """Against the whole text read at once, again for each token."""
    session.read(TEXT[:200])
    answer = session.ask(QUESTION, max_tokens=6)
    ids = session.tokenizer.encode(TEXT[:200] + QUESTION)
    total = 0.0
    for token in answer.ids:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        assert int(logits.argmax()) == token
        total += float(logits.log_softmax(-1)[token])
        ids.append(token)
    assert len(answer.ids) == 6
    assert answer.ended == "length"
    assert answer.log_probability == pytest.approx(total, abs=1e-3)


def test_asking_generating_saving_and_forking_change_nothing(session: Session, tmp_path: Path) -> None:
    session.read(TEXT[:250])
    before = content(session, tmp_path)
    session.ask(QUESTION)
    session.generate("It was", max_tokens=5)
    session.fork().read(TEXT)
    session.fork([0, 0]).ask_each(["A?", "B?"])
    session.health()
    assert content(session, tmp_path) == before
    other = session.fork()
    session.ask(QUESTION)
    session.read(TEXT)
    other.read(TEXT)
    assert content(session, tmp_path) == content(other, tmp_path)


def test_learning_from_an_answer_is_reading_it(session: Session, tmp_path: Path) -> None:
    session.read(TEXT[:250])
    other = session.fork()
    answer = session.ask(QUESTION, max_tokens=4, learn=True)
    other.read(QUESTION + other.tokenizer.decode(answer.ids), name="question and answer")
    assert content(session, tmp_path) == content(other, tmp_path)
    assert session.tokens > (250,)


def test_a_question_longer_than_any_segment_streams(model: LanguageModel, tokenizer: Tokenizer) -> None:
    answers = [Session(model, tokenizer, piece=piece).ask(TEXT[:500], max_tokens=4).ids for piece in (16, 500, 1024)]
    assert answers[0] == answers[1] == answers[2]


def test_many_questions_about_one_row(session: Session) -> None:
    session.read(TEXT[:250])
    questions = ["Who?", QUESTION, "And why was it so?"]
    together = session.fork([0] * 3).ask_each(questions, max_tokens=5)
    assert [answer.ids for answer in together] == [session.ask(text, max_tokens=5).ids for text in questions]


def test_a_stop_string_ends_an_answer_and_is_cut_off(session: Session) -> None:
    session.read(TEXT[:100])
    free = session.ask(QUESTION, max_tokens=30)
    text = free.text
    middle = next(text[at : at + 2] for at in range(3, len(text) - 2) if "\ufffd" not in text[at : at + 2])
    stopped = session.ask(QUESTION, max_tokens=30, stop=["never", middle])
    assert stopped.ended == "stop"
    assert stopped.text == text[: text.index(middle)]
    assert free.ids[: len(stopped.ids)] == stopped.ids
    assert len(stopped.ids) < 30


def test_the_end_of_text_ends_an_answer(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    free = session.ask(QUESTION, max_tokens=5)
    monkeypatch.setattr(ByteTokenizer, "eos", free.ids[3])
    first = free.ids.index(free.ids[3])
    ended = session.ask(QUESTION, max_tokens=5)
    assert ended.ended == "eos"
    assert ended.ids == free.ids[:first]


def test_generating_depends_on_the_seed_alone(session: Session) -> None:
    session.read(TEXT[:100])
    one, two, three = (session.generate("It was", max_tokens=12, seed=seed).ids for seed in (1, 1, 2))
    assert one == two != three
    greedy = session.generate("\nIt was", max_tokens=12, temperature=0).ids
    assert greedy == session.ask("\nIt was", max_tokens=12).ids


def test_a_snapshot_brings_back_every_bit(session: Session, tmp_path: Path) -> None:
    session.read(TEXT[:150])
    before, snapshot = content(session, tmp_path), session.snapshot()
    session.read(TEXT)
    assert content(session, tmp_path) != before
    session.rollback(snapshot)
    assert content(session, tmp_path) == before


# Files, and going on.


def stopper(steps: int) -> Iterator[bool]:
    return itertools.chain(itertools.repeat(False, steps), itertools.repeat(True))


@pytest.mark.parametrize("steps", [1, 2, 11])
def test_stopping_saving_and_going_on_is_bit_identical(
    session: Session, model: LanguageModel, tokenizer: Tokenizer, tmp_path: Path, steps: int
) -> None:
    """The second text starts in the middle of a piece; the break falls into it."""
    whole = session.fork()
    whole.read("A beginning.", name="first")
    whole.read(TEXT, name="second")
    session.read("A beginning.", name="first")
    stops = stopper(steps)
    session.read(pieces(TEXT, 10), name="second", should_stop=lambda: next(stops))
    assert session.unfinished is not None
    session.save(tmp_path / "a.memory")
    loaded = Session.load(tmp_path / "a.memory", model, tokenizer)
    assert content(loaded, tmp_path) == content(session, tmp_path)
    loaded.read(pieces(TEXT, 33), name="second", resume=True)
    assert loaded.unfinished is None
    assert content(loaded, tmp_path) == content(whole, tmp_path)
    assert loaded.ask(QUESTION) == whole.ask(QUESTION)


@given(st.lists(st.integers(0, 300), max_size=4))
@settings(max_examples=5)
def test_saving_between_texts_is_bit_identical(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    folder, model, tokenizer = tmp_path_factory.mktemp("cuts"), build("lmm"), ByteTokenizer()
    whole, broken = (Session(model, tokenizer, piece=PIECE) for _ in range(2))
    borders = [0, *sorted(cuts), 301]
    for start, end in itertools.pairwise(borders):
        if text := TEXT[start:end]:
            whole.read(text)
            broken.read(text)
            broken.ask("?", max_tokens=1)
            broken.save(folder / "a.memory")
            broken = Session.load(folder / "a.memory", model, tokenizer)
    assert content(broken, folder) == content(whole, folder)


def test_an_interrupt_loses_nothing(session: Session, tmp_path: Path) -> None:
    whole = session.fork()
    whole.read(TEXT)

    def interrupted() -> Iterator[str]:
        yield from pieces(TEXT[:500], 50)
        raise KeyboardInterrupt

    # The tokenizer holds text back, so what was read is less than what was handed over.
    session.tokenizer = SmallSteps()
    with pytest.raises(KeyboardInterrupt):
        session.read(interrupted())
    assert session.unfinished is not None
    assert 0 < session.tokens[0] < 520
    session.read(TEXT, resume=True)
    assert content(session, tmp_path) == content(whole, tmp_path)


class SmallSteps(ByteTokenizer):
    """Gives out what it has at once."""

    def encode_stream(self, pieces: Iterable[str]) -> Iterator[Ids]:
        for piece in pieces:
            yield self._encode_piece(piece)


def test_rows_come_back_from_a_file(model: LanguageModel, tokenizer: Tokenizer, tmp_path: Path) -> None:
    session = Session(model, tokenizer, rows=3, piece=PIECE, model_name="tiny")
    session.read_rows([TEXT[:100], TEXT[:10], TEXT[:200]])
    before = content(session, tmp_path)
    loaded = Session.load(tmp_path / "probe.memory", model, tokenizer)
    assert loaded.rows == 3
    assert loaded.model_name == "tiny"
    assert content(loaded, tmp_path) == before


@pytest.mark.parametrize("wiring", ["lmm", "mag", "mal", "mac"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_wiring_and_precision_is_saved_and_loaded(
    wiring: Wiring, dtype: torch.dtype, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = build(wiring).to(dtype)
    session = Session(model, tokenizer, rows=2, piece=16)
    session.read_rows([TEXT[:70], TEXT[:41]])
    before = content(session, tmp_path)
    loaded = Session.load(tmp_path / "probe.memory", model, tokenizer)
    assert content(loaded, tmp_path) == before
    assert loaded.ask_each(["?", "What?"], max_tokens=2) == session.ask_each(["?", "What?"], max_tokens=2)


def test_going_on_with_another_text_is_refused(session: Session) -> None:
    stops = stopper(3)
    session.read(TEXT, name="book", should_stop=lambda: next(stops))
    with pytest.raises(UserError, match="its first 192 tokens are not those that were read"):
        session.read("X" + TEXT, name="book", resume=True)
    with pytest.raises(UserError, match="its first 192 tokens"):
        session.read(TEXT[:20], name="book", resume=True)
    session.read(TEXT, name="book", resume=True)
    with pytest.raises(UserError, match="nothing to resume"):
        session.read(TEXT, resume=True)


def test_a_memory_of_another_model_is_refused_and_says_what_differs(
    session: Session, model: LanguageModel, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    session.read(TEXT[:100])
    path = tmp_path / "a.memory"
    session.save(path)
    with pytest.raises(MemoryFileError, match="its chunk_size is 16 where this model's is 8"):
        Session.load(path, build(chunk_size=8), tokenizer)
    with pytest.raises(MemoryFileError, match="belongs to another model: to 'unnamed' with fingerprint"):
        Session.load(path, build(seed=1), tokenizer)
    with pytest.raises(MemoryFileError, match="belongs to another model"):
        Session.load(path, build("lmm"), tokenizer)

    class Another(ByteTokenizer):
        def token_bytes(self, token: int) -> bytes:
            return super().token_bytes(token)[::-1] + b"x"

    with pytest.raises(MemoryFileError, match="read with the tokenizer 'bytes'"):
        Session.load(path, model, Another())


def test_every_flipped_bit_of_a_real_memory_is_refused(session: Session, tmp_path: Path) -> None:
    """Every bit of the header, and one in 397 of the tensors here, so that the suite stays quick."""
    session.read(TEXT[:100], name="a.txt")
    data = bytearray(content(session, tmp_path))
    start = verify(io.BytesIO(data), "whole").data_start
    for bit in itertools.chain(range(8 * start), range(8 * start, 8 * len(data), 397)):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MemoryFileError):
            verify(io.BytesIO(data), "flipped")
        data[bit // 8] ^= 1 << bit % 8


def test_a_full_disk_loses_neither_the_file_nor_the_session(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.read(TEXT[:100])
    before = content(session, tmp_path)
    session.read(TEXT[:50])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(MemoryFileError, match="no space left on device; the file that was there is unchanged"):
            session.save(tmp_path / "probe.memory")
    assert (tmp_path / "probe.memory").read_bytes() == before
    assert content(session, tmp_path) != before


def test_the_header_speaks_of_tokens_that_wait(session: Session, tmp_path: Path) -> None:
    session.read(TEXT[:20], name="short")
    header = session.save(tmp_path / "a.memory")
    assert header == read_header(tmp_path / "a.memory")
    assert header.pending == header.tokens == session.tokens
    assert header.health.surprise["0.5"][0] is not None
    assert header.passages


# What is refused.


def test_bad_use_is_refused_in_one_sentence(model: LanguageModel, tokenizer: Tokenizer, session: Session) -> None:
    two = Session(model, tokenizer, rows=2)
    with pytest.raises(UserError, match="at least one row"):
        Session(model, tokenizer, rows=0)
    with pytest.raises(UserError, match="use the tokenizer that the model was trained with"):
        Session(model, load_tokenizer("bpe4096"))
    with pytest.raises(UserError, match="there is nothing to read"):
        session.read("", name="empty.txt")
    with pytest.raises(UserError, match="use read_rows instead"):
        two.read(TEXT)
    with pytest.raises(UserError, match="use ask_each instead"):
        two.ask("?")
    with pytest.raises(UserError, match="fork of one row"):
        two.generate("?")
    with pytest.raises(UserError, match="give one text"):
        two.read_rows([TEXT])
    with pytest.raises(UserError, match="ask one question of each"):
        two.ask_each(["?"])
    with pytest.raises(UserError, match="cannot fork rows"):
        two.fork([2])
    with pytest.raises(UserError, match="the snapshot has 1 rows"):
        two.rollback(session.snapshot())
    with pytest.raises(UserError, match="the question is empty"):
        session.ask("")
    with pytest.raises(UserError, match="the prompt is empty"):
        session.generate("")
    with pytest.raises(UserError, match="limit on tokens"):
        session.ask("?", max_tokens=0)
    with pytest.raises(UserError, match="none of them empty"):
        session.ask("?", stop=[""])
    with pytest.raises(UserError, match="temperature must"):
        session.generate("?", temperature=-1)
