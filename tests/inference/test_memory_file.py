"""A memory file is whole or refused: every flipped bit, cut or foreign file; and saving never loses the old one."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastweights.inference import memory_file
from fastweights.inference.header import Health, MemoryHeader, Passage, Source
from fastweights.inference.memory_file import (
    MemoryFileError,
    Spec,
    load_memory,
    read_header,
    save_memory,
    spec_of,
    verify,
)

HEADER = MemoryHeader(
    library="0.1.0",
    model="tiny",
    fingerprint="ab" * 32,
    tokenizer="bytes",
    vocabulary="cd" * 32,
    rule={"architecture": {"kind": "Matrix"}, "chunk_size": 4},
    piece=16,
    tokens=(37,),
    pending=(5,),
    sources=(Source('Wörter \udc80 "a".txt', 0, 37, 41, "ef" * 32, "01" * 32, True),),
    health=Health({"layer 0": (1.5, None)}, 0, (0,), {"0.5": (0.25,)}),
    passages=(Passage(0, 16, 8, 2.0, 'He said: "000000".\n'),),
)


def tensors() -> dict[str, Tensor]:
    return {
        "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "position": torch.tensor([7]),
        "half": torch.tensor([1.5, float("nan")], dtype=torch.bfloat16),
        "flags": torch.tensor([True, False, True]),
        "none": torch.empty(0, 4),
        "scalar": torch.tensor(3.0, dtype=torch.float64),
    }


def expect(header: MemoryHeader) -> Spec:
    return spec_of(tensors())


def stored(path: Path) -> bytes:
    save_memory(path, tensors(), HEADER)
    return path.read_bytes()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and bytes(memory_file._bytes_of(one[name])) == bytes(memory_file._bytes_of(other[name]))
        for name in one
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    stored(tmp_path / "a.memory")
    header, loaded = load_memory(tmp_path / "a.memory", expect)
    assert header == HEADER == read_header(tmp_path / "a.memory")
    assert same(loaded, tensors())
    assert [path.name for path in tmp_path.iterdir()] == ["a.memory"]


def test_the_file_is_ordinary_safetensors_with_one_metadata_key(tmp_path: Path) -> None:
    stored(tmp_path / "a.memory")
    assert same(load_file(tmp_path / "a.memory"), tensors())
    with safe_open(tmp_path / "a.memory", "pt") as file:
        metadata = file.metadata()
    assert list(metadata) == ["fastweights.memory"]
    assert json.loads(metadata["fastweights.memory"])["model"] == "tiny"


def test_equal_memories_are_equal_files(tmp_path: Path) -> None:
    assert stored(tmp_path / "a.memory") == stored(tmp_path / "b.memory")


def test_views_and_transposed_tensors_are_saved_as_they_look(tmp_path: Path) -> None:
    given = {"t": torch.arange(6.0).reshape(2, 3).t(), "v": torch.arange(8)[::2], "e": torch.ones(1, 2).expand(3, 2)}
    save_memory(tmp_path / "a.memory", given, HEADER)
    assert same(load_memory(tmp_path / "a.memory", lambda header: spec_of(given))[1], given)


def test_every_flipped_bit_is_refused(tmp_path: Path) -> None:
    """Length, digits (an `a` that becomes `A`), padding, header and tensors: all of the file."""
    content = bytearray(stored(tmp_path / "a.memory"))
    verify(io.BytesIO(content), "whole")
    for bit in range(8 * len(content)):
        content[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MemoryFileError):
            verify(io.BytesIO(content), "flipped")
        content[bit // 8] ^= 1 << bit % 8
    verify(io.BytesIO(content), "whole again")


def test_a_flipped_bit_is_refused_on_the_disk_too(tmp_path: Path) -> None:
    path = tmp_path / "a.memory"
    content = stored(path)
    for position in (0, 7, 60, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        for read in (lambda: load_memory(path, expect), lambda: read_header(path)):
            with pytest.raises(MemoryFileError, match=r"a\.memory"):
                read()


def test_digits_in_capitals_are_refused(tmp_path: Path) -> None:
    content = stored(tmp_path / "a.memory")
    start = content.index(b"sha256") + len(b'sha256\\":\\"')
    digits = content[start : start + 64]
    assert digits != digits.upper()
    with pytest.raises(MemoryFileError):
        verify(io.BytesIO(content.replace(digits, digits.upper())), "capitals")


def test_any_cut_and_any_addition_is_refused(tmp_path: Path) -> None:
    content = stored(tmp_path / "a.memory")
    for length in range(len(content)):
        with pytest.raises(MemoryFileError):
            verify(io.BytesIO(content[:length]), "cut")
    with pytest.raises(MemoryFileError):
        verify(io.BytesIO(content + b"\0"), "longer")


@pytest.mark.parametrize("length", [1 << 62, (1 << 64) - 1, 99_999_999, 0])
def test_a_huge_header_length_allocates_nothing(tmp_path: Path, length: int) -> None:
    content = stored(tmp_path / "a.memory")
    with pytest.raises(MemoryFileError, match="damaged"):
        verify(io.BytesIO(length.to_bytes(8, "little") + content[8:]), "bomb")


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(MemoryFileError):
        verify(io.BytesIO(content), "random")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"Call me Ishmael. Some years ago", "something else"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "something else"),
    ],
)
def test_foreign_files_are_called_so(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.memory"
    path.write_bytes(content)
    with pytest.raises(MemoryFileError, match=message):
        read_header(path)


def test_another_safetensors_file_is_called_so(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MemoryFileError, match="safetensors file of another kind"):
        read_header(tmp_path / "model.safetensors")


def test_a_newer_format_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(memory_file, "FORMAT", 12)
        stored(tmp_path / "new.memory")
    with pytest.raises(MemoryFileError, match="has format 12 and this library reads up to 1"):
        read_header(tmp_path / "new.memory")


@pytest.mark.parametrize(("name", "message"), [("missing", "there is no memory file"), ("", "is a folder")])
def test_missing_files_and_folders_are_called_so(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(MemoryFileError, match=message):
        read_header(tmp_path / name)


def change(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda given: {**given, name: tensor}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (change("a", torch.zeros(2, 4)), r"'a' is F32 \[2, 4\]"),
        (change("a", torch.zeros(3, 2)), r"'a' is F32 \[3, 2\]"),
        (change("a", torch.zeros(2, 3, dtype=torch.int32)), r"'a' is I32"),
        (change("b", torch.zeros(1)), "a tensor 'b' that the model lacks"),
        (lambda given: {name: given[name] for name in given if name != "flags"}, "tensor 'flags' is missing"),
    ],
)
def test_other_names_shapes_and_dtypes_are_refused_before_anything_is_allocated(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    message: str,
) -> None:
    save_memory(tmp_path / "a.memory", changed(tensors()), HEADER)
    spec = spec_of(tensors())
    monkeypatch.setattr(torch, "empty", None)
    with pytest.raises(MemoryFileError, match=message):
        load_memory(tmp_path / "a.memory", lambda header: spec)


@pytest.mark.parametrize(
    "change", [{"piece": "16"}, {"piece": 0}, {"tokens": []}, {"pending": [16]}, {"sources": [{}]}, {"health": None}]
)
def test_a_header_that_says_nonsense_is_refused_although_its_hash_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    nonsense = {**HEADER.to_dict(), **change}
    monkeypatch.setattr(MemoryHeader, "to_dict", lambda self: nonsense)
    save_memory(tmp_path / "a.memory", tensors(), HEADER)
    with pytest.raises(MemoryFileError, match="damaged"):
        read_header(tmp_path / "a.memory")


def test_a_source_is_found_by_position() -> None:
    two = dataclasses.replace(HEADER.sources[0], name="two", tokens=10)
    header = dataclasses.replace(HEADER, sources=(HEADER.sources[0], two), tokens=(47,))
    assert header.source_at(36) == (HEADER.sources[0], 36)
    assert header.source_at(37) == (two, 0)
    assert header.source_at(47) is None
    assert header.source_at(0, row=1) is None


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_mode_is_the_one_the_umask_asks_for(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        stored(tmp_path / "a.memory")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.memory").stat().st_mode) == 0o666 & ~umask


def test_a_link_is_followed_and_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.memory").symlink_to(tmp_path / "real" / "a.memory")
    stored(tmp_path / "link.memory")
    assert (tmp_path / "link.memory").is_symlink()
    assert read_header(tmp_path / "real" / "a.memory") == HEADER


def test_the_longest_names_work(tmp_path: Path) -> None:
    stored(tmp_path / ("ä" * 124 + ".memory"))


def test_bad_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MemoryFileError, match="is a folder"):
        stored(tmp_path)
    with pytest.raises(MemoryFileError, match="does not exist"):
        stored(tmp_path / "missing" / "a.memory")


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_failing_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    before = stored(tmp_path / "a.memory")

    def fail(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(MemoryFileError, match=f"{os.strerror(code).lower()}; the file that was there is unchanged$"):
        save_memory(tmp_path / "a.memory", {}, HEADER)
    assert (tmp_path / "a.memory").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.memory"]


def test_a_full_disk_in_the_middle_of_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    """The limit on file sizes makes the system refuse the bytes past it, as a full disk does."""
    before = stored(tmp_path / "a.memory")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(MemoryFileError, match="too large; the file that was there is unchanged"):
            save_memory(tmp_path / "a.memory", {"big": torch.zeros(100_000)}, HEADER)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "a.memory").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.memory"]


def test_an_interrupt_while_saving_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stored(tmp_path / "a.memory")

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_memory(tmp_path / "a.memory", {}, HEADER)
    assert (tmp_path / "a.memory").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.memory"]


KILL_WHILE_SAVING = """
import itertools, os, random, signal, sys, time, torch
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_memory_file import HEADER, load_memory, save_memory

def save_for_ever(path):
    for number in itertools.count():
        save_memory(path, {"a": torch.full((200_000,), float(number))}, HEADER)

path, chance, cut = Path(sys.argv[1]), random.Random(0), 0
save_memory(path, {"a": torch.zeros(200_000)}, HEADER)
for _ in range(20):
    if not (child := os.fork()):
        save_for_ever(path)
    time.sleep(chance.uniform(0.01, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    values = load_memory(path, lambda header: {"a": ((200_000,), torch.float32)})[1]["a"]
    assert bool((values == values[0]).all())
    cut += sum(entry.name != path.name for entry in path.parent.iterdir())
print(cut)
"""


def test_a_killed_process_leaves_the_old_or_the_new_file(tmp_path: Path) -> None:
    """Kill -9 at 20 arbitrary moments; what the killed ones left behind is gone after the next save."""
    path = tmp_path / "a.memory"
    command = [sys.executable, "-c", KILL_WHILE_SAVING, str(path), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0, "no kill fell into a save"
    stored(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.memory"]
