"""Reading files into a memory file: nothing that happens on the way loses or changes anything."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from tests.small_model import build

from fastweights.data import text
from fastweights.data.text import Source, find_sources
from fastweights.data.tokenizer import ByteTokenizer
from fastweights.errors import UserError
from fastweights.inference.memorize import Outcome, Reading, check_output, memorize, remaining
from fastweights.inference.memory_file import MemoryFileError, read_header
from fastweights.inference.session import Session
from fastweights.models.language_model import LanguageModel

PIECE = 64


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return build()


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three files in the current folder; the last bytes of two are no line end."""
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("It was the best of times. " * 13, encoding="utf-8")
    Path("b.txt").write_text("It was the worst of times.\n" * 9, encoding="utf-8")
    Path("c.txt").write_bytes(b"caf\xe9 and \xff" * 12)
    return ["a.txt", "b.txt", "c.txt"]


def session(model: LanguageModel) -> Session:
    return Session(model, ByteTokenizer(), piece=PIECE, model_name="small")


def read(model: LanguageModel, names: list[str], path: Path) -> Outcome:
    return memorize(session(model), find_sources(names), path)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def resume(model: LanguageModel, names: list[str], path: Path, notes: list[str] | None = None) -> Outcome:
    loaded = Session.load(path, model, ByteTokenizer())
    told: list[str] = [] if notes is None else notes
    return memorize(loaded, remaining(loaded, find_sources(names), told.append), path)


def test_sources_are_read_in_order_each_on_lines_of_its_own(model: LanguageModel, texts: list[str]) -> None:
    outcome = read(model, texts, Path("x.memory"))
    sizes = [len(Path("a.txt").read_bytes()), 1 + len(Path("b.txt").read_bytes()), 1 + 12 * 14]
    assert [(source.name, source.tokens) for source in outcome.header.sources] == list(zip(texts, sizes, strict=True))
    hashes = [hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in texts]
    assert [source.sha256 for source in outcome.header.sources] == hashes
    assert outcome.tokens == sum(sizes)
    assert outcome.replaced == {"c.txt": 24}
    assert outcome.finished
    by_hand = session(model)
    by_hand.read("\n".join(map(decoded, texts)))
    assert by_hand.ask("When?") == Session.load("x.memory", model, ByteTokenizer()).ask("When?")


def decoded(name: str) -> str:
    # As the reader counts: every wrong byte is one U+FFFD.
    data = Path(name).read_bytes().decode("utf-8", "surrogateescape")
    return "".join("\ufffd" if "\udc80" <= letter <= "\udcff" else letter for letter in data)


@pytest.mark.parametrize("stop_at", range(1, 12, 2))
def test_an_interrupted_reading_that_is_resumed_equals_one_without_a_break(
    model: LanguageModel, texts: list[str], stop_at: int
) -> None:
    read(model, texts, Path("whole.memory"))
    steps = 0

    def interrupt(reading: Reading) -> None:
        nonlocal steps
        steps += 1
        if steps == stop_at:
            raise KeyboardInterrupt

    stopped = memorize(session(model), find_sources(texts), Path("x.memory"), on_progress=interrupt)
    assert not stopped.finished
    assert 0 < read_header("x.memory").tokens[0] < read_header("whole.memory").tokens[0]
    assert resume(model, texts, Path("x.memory")).finished
    assert digest(Path("x.memory")) == digest(Path("whole.memory"))


def test_every_save_on_the_way_can_be_resumed(model: LanguageModel, texts: list[str]) -> None:
    """What a process that is killed leaves behind is one of its saves."""
    saves: list[bytes] = []

    class Recording(Session):
        def save(self, path: object) -> object:  # type: ignore[override]
            header = super().save(path)  # type: ignore[arg-type]
            saves.append(Path(str(path)).read_bytes())
            return header

    recording = Recording(model, ByteTokenizer(), piece=PIECE, model_name="small")
    memorize(recording, find_sources(texts), Path("x.memory"), save_every=1e-9)
    assert len(saves) > 10
    for content in saves[:-1:3]:
        Path("y.memory").write_bytes(content)
        resume(model, texts, Path("y.memory"))
        assert Path("y.memory").read_bytes() == saves[-1]


def test_resuming_passes_over_what_was_read_and_takes_up_what_is_new(model: LanguageModel, texts: list[str]) -> None:
    read(model, texts, Path("whole.memory"))
    read(model, texts[:2], Path("x.memory"))
    notes: list[str] = []
    outcome = resume(model, texts, Path("x.memory"), notes)
    assert notes == ["'a.txt' has been read already", "'b.txt' has been read already"]
    assert outcome.tokens == 12 * 14 + 1
    assert digest(Path("x.memory")) == digest(Path("whole.memory"))
    assert resume(model, texts, Path("x.memory")).tokens == 0


def test_a_source_that_changed_is_not_taken_for_the_old_one(model: LanguageModel, texts: list[str]) -> None:
    read(model, texts, Path("x.memory"))
    Path("a.txt").write_text("Something else.", encoding="utf-8")
    with pytest.raises(UserError, match=r"'a\.txt' has changed since it was read"):
        resume(model, texts, Path("x.memory"))


def test_the_source_that_was_left_off_has_to_be_named(model: LanguageModel, texts: list[str]) -> None:
    def interrupt(reading: Reading) -> None:
        if reading.source == "b.txt":
            raise KeyboardInterrupt

    memorize(session(model), find_sources(texts), Path("x.memory"), on_progress=interrupt)
    with pytest.raises(UserError, match=r"inside 'b\.txt', so it has to be named again"):
        resume(model, ["a.txt", "c.txt"], Path("x.memory"))
    Path("b.txt").write_text("It was another time.\n" * 30, encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot go on with 'b\.txt'"):
        resume(model, texts, Path("x.memory"))


def test_a_source_that_turns_out_to_be_binary_is_taken_back(
    model: LanguageModel, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", 1024)
    Path("bad.txt").write_bytes(b"good text " * 110 + bytes(range(8)) * 500)
    notes: list[str] = []
    with pytest.raises(UserError, match=r"'bad\.txt' is binary"):
        memorize(session(model), find_sources([*texts, "bad.txt"]), Path("x.memory"), note=notes.append)
    assert notes == ["what was read before is saved in 'x.memory'"]
    read(model, texts, Path("whole.memory"))
    assert digest(Path("x.memory")) == digest(Path("whole.memory"))


@pytest.mark.parametrize("resumed", [False, True])
def test_a_bad_source_alone_leaves_no_empty_memory(
    model: LanguageModel, texts: list[str], monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", 1024)
    Path("bad.txt").write_bytes(b"good text " * 110 + bytes(range(8)) * 500)
    read(model, texts[:1], Path("x.memory"))
    before = digest(Path("x.memory"))
    started = Session.load("x.memory", model, ByteTokenizer()) if resumed else session(model)
    with pytest.raises(UserError, match="is binary"):
        # Saving on the way too: what it wrote of the bad source is taken back as well.
        memorize(started, find_sources(["bad.txt"]), Path("x.memory"), save_every=1e-9 if resumed else 0)
    assert digest(Path("x.memory")) == before


def test_a_save_that_fails_on_the_way_is_tried_again(
    model: LanguageModel, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = Session.save, 0

    def full_at_first(self: Session, path: Path) -> object:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise MemoryFileError("cannot save the memory: no space left on device")
        return save(self, path)

    monkeypatch.setattr(Session, "save", full_at_first)
    notes: list[str] = []
    outcome = memorize(session(model), find_sources(texts), Path("x.memory"), save_every=1e-9, note=notes.append)
    assert "reading goes on" in notes[0]
    assert outcome.finished


def test_progress_tells_how_far_it_is(model: LanguageModel, texts: list[str]) -> None:
    seen: list[Reading] = []
    outcome = memorize(session(model), find_sources(texts), Path("x.memory"), on_progress=seen.append)
    total = sum(Path(name).stat().st_size for name in texts)
    assert [reading.tokens for reading in seen] == sorted(reading.tokens for reading in seen)
    assert seen[-1].tokens == outcome.tokens
    assert seen[-1].bytes_read == seen[-1].bytes_total == total
    assert {reading.source for reading in seen} == set(texts)
    assert seen[-1].seconds_left == 0
    assert all(reading.norm > 0 for reading in seen)
    # The reader has all of these short files in memory at once; progress speaks of what the memory has read.
    assert len({reading.bytes_read for reading in seen}) > len(seen) - len(texts)


@pytest.mark.parametrize(
    ("name", "resume", "force", "reason"),
    [
        ("there", False, False, "exists already"),
        ("absent", True, False, "no 'absent' to go on from"),
        ("there", True, True, "contradict"),
        ("folder", False, True, "is a folder"),
        ("nowhere/file", False, False, "does not exist"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused_before_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, resume: bool, force: bool, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").write_text("old")
    Path("folder").mkdir()
    with pytest.raises(MemoryFileError, match=reason):
        check_output(Path(name), [], resume=resume, force=force)


def test_the_total_is_unknown_where_a_source_does_not_tell_its_size(model: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x" * 300, encoding="utf-8")
    seen: list[Reading] = []
    sources = [Source(str(path), path, None)]
    memorize(session(model), sources, tmp_path / "x.memory", on_progress=seen.append)
    assert {(reading.bytes_total, reading.seconds_left) for reading in seen} == {(None, None)}


def test_a_text_is_never_overwritten_by_its_memory(texts: list[str]) -> None:
    for force in (False, True):
        with pytest.raises(MemoryFileError, match=r"'a\.txt' is among the texts to read"):
            check_output(Path("a.txt"), find_sources(texts), resume=False, force=force)
    Path("link.txt").symlink_to("a.txt")
    with pytest.raises(MemoryFileError, match="is among the texts to read"):
        check_output(Path("link.txt"), find_sources(texts), resume=False, force=True)


def test_an_interrupt_before_the_first_token_leaves_the_old_file(
    model: LanguageModel, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read(model, texts[:1], Path("x.memory"))
    before = digest(Path("x.memory"))

    def interrupted(self: object, *arguments: object, **options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read(model, texts[1:], Path("x.memory"))
    assert digest(Path("x.memory")) == before


def test_the_same_text_under_another_name_is_not_read_twice(model: LanguageModel, texts: list[str]) -> None:
    read(model, texts, Path("x.memory"))
    Path("copy.txt").write_bytes(Path("b.txt").read_bytes())
    notes: list[str] = []
    outcome = resume(model, [*texts, str(Path("b.txt").absolute()), "copy.txt"], Path("x.memory"), notes)
    assert outcome.tokens == 0
    assert "'copy.txt' has been read already, as 'b.txt'" in notes
