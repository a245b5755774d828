"""Files, folders, patterns and standard input become text; what is not text is refused in one sentence."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from fastweights.data.text import Source, TextReader, find_sources, read_pieces
from fastweights.errors import UserError


def text_of(path: Path) -> tuple[str, TextReader]:
    reader = read_pieces(Source(str(path), path, path.stat().st_size))
    return "".join(piece.text for piece in reader), reader


def names(*paths: Path | str) -> list[str]:
    return [source.name for source in find_sources([str(path) for path in paths])]


NOBODY = 65534
"""The number of the user without rights."""


def refusal(*paths: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        find_sources([str(path) for path in paths])
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


LONG = "".join(f"Line {number}: café, 中文, 🙂.\r\n" for number in range(20_000))


@pytest.mark.parametrize("suffix", [".txt", ".md", ".py", ".log", "", ".gz", ".GZ", ".zst"])
def test_text_comes_back_whatever_the_container(suffix: str, tmp_path: Path) -> None:
    raw = LONG.encode()
    path = tmp_path / f"x{suffix}"
    packed = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(suffix.lower(), bytes)(raw)
    path.write_bytes(packed)
    assert names(path) == [str(path)]
    text, reader = text_of(path)
    assert text == LONG
    assert reader.sha256 == hashlib.sha256(raw).hexdigest()
    assert (reader.bytes_read, reader.text_bytes, reader.replaced) == (len(packed), len(raw), 0)
    pieces = list(read_pieces(find_sources([str(path)])[0]))
    assert max(len(piece.text) for piece in pieces) <= 65_536
    assert [piece.bytes_read for piece in pieces] == sorted(piece.bytes_read for piece in pieces)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress], ids=["gz", "zst"])
def test_several_compressed_parts_in_one_file_are_read_as_one(pack: object, tmp_path: Path) -> None:
    assert callable(pack)
    path = tmp_path / ("x.gz" if pack is gzip.compress else "x.zst")
    path.write_bytes(pack(b"one ") + pack(b"two"))
    assert text_of(path)[0] == "one two"


@given(st.binary(min_size=1, max_size=200), st.sampled_from([b"", "é".encode(), b"\xf0\x9f", "\ufffd".encode()]))
def test_bytes_that_are_not_utf8_are_replaced_and_counted(noise: bytes, before: bytes) -> None:
    raw = b"plain text " * 200 + before + bytes(byte for byte in noise if byte >= 32) + b" end"
    stdin = io.TextIOWrapper(io.BytesIO(raw))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", stdin)
        reader = read_pieces(Source("standard input", None, None))
        text = "".join(piece.text for piece in reader)
    escaped = raw.decode("utf-8", "surrogateescape")
    wrong = [character for character in escaped if "\udc80" <= character <= "\udcff"]
    assert reader.replaced == len(wrong)
    assert text == "".join("\ufffd" if character in wrong else character for character in escaped)


def test_a_character_cut_by_a_block_border_is_whole(tmp_path: Path) -> None:
    for shift in range(4):
        path = tmp_path / f"{shift}.txt"
        path.write_text("a" * (65_536 - shift) + "🙂é", "utf-8")
        text, reader = text_of(path)
        assert text.endswith("a🙂é")
        assert reader.replaced == 0


def test_latin_1_and_a_cut_last_character_are_text(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes("Où est le garçon ?".encode("latin-1") + b"\xf0\x9f")
    text, reader = text_of(path)
    assert text == "O\ufffd est le gar\ufffdon ?\ufffd\ufffd"
    assert reader.replaced == 4


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbfabc\xef\xbb\xbf")
    assert text_of(path)[0] == "abc\ufeff"


def test_folders_are_searched_in_order_without_hidden_and_empty_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/b.py", ".git/x.txt", ".hidden.txt", "a/picture.png", "c.txt.gz"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(b"x") if name.endswith("gz") else b"x")
    (tmp_path / "__init__.py").touch()
    assert names(tmp_path) == [str(tmp_path / name) for name in ("a/b.py", "a/z.md", "b.txt", "c.txt.gz")]


def test_patterns_match_sorted_and_take_each_file_once(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "in/c.txt", "[1].txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    assert names(tmp_path / "[ab].txt") == [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    assert sorted(names(tmp_path / "**")) == sorted(names(tmp_path))
    (tmp_path / "empty.txt").touch()
    assert str(tmp_path / "empty.txt") not in names(tmp_path / "*.txt")
    assert names(tmp_path / "[1].txt") == [str(tmp_path / "[1].txt")]
    assert names(tmp_path / "b.txt", tmp_path / "b.txt") == [str(tmp_path / "b.txt")] * 2


def test_what_cannot_be_found_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "x.txt")
    assert "no file with text matches" in refusal(tmp_path / "*.txt")
    assert "holds no text" in refusal(tmp_path)
    (tmp_path / "empty.txt").touch()
    assert "holds no text" in refusal(tmp_path)
    assert "is empty" in refusal(tmp_path / "empty.txt")
    assert "nothing to read" in refusal()
    assert "empty name" in refusal("")
    assert "only once" in refusal("-", "-")
    os.symlink(tmp_path / "gone", tmp_path / "link.txt")
    assert "does not exist" in refusal(tmp_path / "link.txt")
    os.symlink(tmp_path / "loop.txt", tmp_path / "loop.txt")
    assert "cannot read" in refusal(tmp_path / "loop.txt")


BINARY = {
    "nul": b"text\0text",
    "control": bytes(range(1, 32)) * 8,
    "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "program": Path(sys.executable).resolve().read_bytes()[:100_000],
    "packed": gzip.compress(b"x" * 1000, mtime=0),
}


@pytest.mark.parametrize("kind", BINARY)
def test_binary_files_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(BINARY[kind])
    assert "is binary" in refusal(path)
    assert "is binary" in refusal(tmp_path)


def test_utf_16_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("abc", "utf-16")
    assert "convert it to UTF-8" in refusal(path)


def test_a_file_that_turns_binary_is_refused_when_it_does_and_one_nul_is_not_enough(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"text " * 50_000 + b"\0" + b"text " * 10)
    assert text_of(path)[0].count("\0") == 1
    path.write_bytes(b"text " * 50_000 + bytes(100_000))
    find_sources([str(path)])
    with pytest.raises(UserError, match="is binary"):
        text_of(path)


def damaged(kind: str) -> tuple[str, bytes]:
    text = os.urandom(150_000).hex().encode()
    packed, suffix = (
        (gzip.compress(text), ".gz") if kind.endswith("gz") else (zstandard.ZstdCompressor().compress(text), ".zst")
    )
    if kind.startswith("short"):
        packed = packed[:-20]
    elif kind.startswith("altered"):
        packed = packed[:-2000] + bytes(255 - byte for byte in packed[-2000:])
    elif kind.startswith("plain"):
        packed = b"just text"
    elif kind.startswith("tail"):
        packed += b"tail"
    return suffix, packed


@pytest.mark.parametrize(
    "kind", [f"{what}-{kind}" for what in ("short", "altered", "plain", "tail") for kind in ("gz", "zst")]
)
def test_damaged_compressed_files_are_refused_in_one_sentence(kind: str, tmp_path: Path) -> None:
    suffix, packed = damaged(kind)
    path = tmp_path / f"x{suffix}"
    path.write_bytes(packed)
    with pytest.raises(UserError, match=r"(damaged|cut short).*\.$"):
        text_of(path)


def test_compressed_nothing_is_empty(tmp_path: Path) -> None:
    for name, packed in (("x.gz", gzip.compress(b"")), ("y.gz", b""), ("z.zst", b"")):
        (tmp_path / name).write_bytes(packed)
        assert "is empty" in refusal(tmp_path / name)


@pytest.fixture
def ordinary_folder() -> Iterator[Path]:
    """A folder of one's own as a user whom permissions bind: root, who may read every file, becomes nobody."""
    with tempfile.TemporaryDirectory() as name:
        root = os.geteuid() == 0
        if root:
            os.chown(name, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        try:
            yield Path(name)
        finally:
            if root:
                os.seteuid(0)


def test_unreadable_files_and_folders_are_refused(ordinary_folder: Path) -> None:
    path = ordinary_folder / "in" / "x.txt"
    path.parent.mkdir()
    path.write_text("x")
    path.chmod(0)
    assert "Permission denied" in refusal(path)
    assert "Permission denied" in refusal(ordinary_folder)
    for mode in (0, 0o600):
        path.parent.chmod(mode)
        try:
            assert "Permission denied" in refusal(ordinary_folder)
        finally:
            path.parent.chmod(0o700)


def test_errors_while_reading_become_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("x")
    source = find_sources([str(path)])[0]
    path.unlink()
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        list(read_pieces(source))


def test_without_the_extra_a_zst_file_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    path = tmp_path / "x.zst"
    path.write_bytes(b"x")
    assert "pip install 'fastweights[zstd]'" in refusal(path)


def test_standard_input_is_read_as_it_comes_and_may_not_be_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = find_sources(["-"])
    assert source == Source("standard input", None, None)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"abc")))
    assert [piece.text for piece in read_pieces(source)] == ["abc"]
    with pytest.raises(UserError, match="'standard input' is empty"):
        list(read_pieces(source))


def test_a_pipe_gives_its_text_before_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    (source,) = find_sources([str(path)])
    assert source.size is None
    read = threading.Event()

    def write() -> None:
        with path.open("wb", buffering=0) as pipe:
            pipe.write(b"first")
            read.wait(10)
            pipe.write(b" second")

    writer = threading.Thread(target=write)
    writer.start()
    with read_pieces(source) as reader:
        assert next(reader).text == "first"
        read.set()
        assert "".join(piece.text for piece in reader) == " second"
    writer.join()


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"a" * 10_000_000))
    tracemalloc.start()
    total = sum(len(piece.text) for piece in read_pieces(Source("x", path, None)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == 10_000_000
    assert peak < 3e6


def test_reading_twice_gives_the_same_and_closing_early_leaves_nothing_open(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text(LONG, "utf-8")
    assert list(read_pieces(Source("x", path, 1))) == list(read_pieces(Source("x", path, 1)))
    with read_pieces(Source("x", path, 1)) as reader:
        next(reader)
    assert list(reader) == []


def test_importing_the_module_needs_no_extra() -> None:
    program = "import sys; import fastweights.data.text; assert 'zstandard' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
