"""The memory file: one safetensors file that holds a memory, what it has read, and proof that nothing has changed.

Layout of the bytes: 8 bytes with the length of the header (little-endian), the header (JSON, padded with spaces to a
multiple of 8), the tensors. The header's one metadata key holds JSON again, and that JSON starts with the format
version and the SHA-256 of the whole file, computed with these 64 digits as zeros. So the digits stand at a fixed place,
and a reader can prove the file before it parses or allocates anything. Any safetensors reader opens the file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from fastweights.errors import UserError
from fastweights.inference.header import HeaderError, MemoryHeader

FORMAT = 1
"""Version of the format that this library writes, and the newest one that it reads."""

Spec = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""What a file has to hold: shape and dtype by tensor name."""

_KEY = "fastweights.memory"
_ZEROS = b"0" * 64
_START = re.compile(rb'\{"__metadata__":\{"fastweights\.memory":"\{\\"format\\":(\d{1,9}),')
_DIGEST = re.compile(rb'\\"sha256\\":\\"([0-9a-f]{64})\\"')
_MAX_HEADER = 100_000_000  # the limit of every safetensors reader
_BLOCK = 1 << 20
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class MemoryFileError(UserError):
    """A memory file that cannot be written, is not one, was altered, or belongs to something else."""


class Verified(NamedTuple):
    """A file whose SHA-256 is right: its metadata (JSON), its table of tensors, and where their bytes start."""

    metadata: dict[str, Any]
    table: dict[str, Any]
    data_start: int
    size: int


def spec_of(tensors: Mapping[str, Tensor]) -> Spec:
    """Shape and dtype of every tensor, by name."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def _table(spec: Spec) -> dict[str, Any]:
    """The safetensors table of `spec`: wide types first, then by name, so that every tensor is aligned."""
    table: dict[str, Any] = {}
    offset = 0
    for name in sorted(spec, key=lambda name: (-spec[name][1].itemsize, name)):
        shape, dtype = spec[name]
        end = offset + dtype.itemsize * math.prod(shape)
        table[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    return table


def _bytes_of(tensor: Tensor) -> memoryview:
    """The tensor's memory; a copy where it is not contiguous on the host."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def save_memory(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: MemoryHeader) -> None:
    """Write a memory file so that `path` is, at every moment, either the old file or the whole new one.

    The bytes go to a temporary file in the same folder, which is flushed to the disk and renamed; then the folder is
    flushed. The file gets the mode that the umask asks for. A symbolic link is followed, not replaced. Temporary files
    that killed processes have left for the same `path` are removed.

    Args:
        path: Where to write; its folder must exist.
        tensors: What the memory consists of, on any device; dtypes as in safetensors.
        header: What is written about it.

    Raises:
        MemoryFileError: The folder is missing or not writable, or the disk is full; an existing file is then unchanged.

    Cost: the bytes are hashed once and written once; one tensor at a time is copied to the host.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise MemoryFileError(f"cannot save the memory to '{path}': it is a folder, give the name of a file in it")
    if not target.parent.is_dir():
        raise MemoryFileError(f"cannot save the memory to '{path}': the folder '{target.parent}' does not exist")
    head, names = _head(spec_of(tensors), header)
    kept = "; the file that was there is unchanged" if target.exists() else ""
    try:
        _remove_stale(target)
        with _temporary(target) as file:
            _write_hashed(file, head, (_bytes_of(tensors[name]) for name in names))
            os.fsync(file.fileno())
            os.replace(file.name, target)
        kept = ""
        _flush_folder(target.parent)
    except OSError as error:
        raise MemoryFileError(f"cannot save the memory to '{path}': {_reason(error)}{kept}") from error


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _head(spec: Spec, header: MemoryHeader) -> tuple[bytes, list[str]]:
    """Length and header, with zeros for digits, and the names of the tensors in the order of their bytes."""
    table = _table(spec)
    metadata = {"format": FORMAT, "sha256": _ZEROS.decode(), **header.to_dict()}
    inner = json.dumps(metadata, allow_nan=False, separators=(",", ":"))
    text = json.dumps({"__metadata__": {_KEY: inner}, **table}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER:
        raise MemoryFileError(f"cannot save the memory: its header of {len(text):,} bytes has too many sources")
    return len(text).to_bytes(8, "little") + text, list(table)


def _write_hashed(file: io.FileIO, head: bytes, blocks: Iterable[memoryview]) -> None:
    digest = hashlib.sha256()
    for block in itertools.chain([memoryview(head)], blocks):
        digest.update(block)
        _write_all(file, block)
    file.seek(head.index(_ZEROS))
    _write_all(file, memoryview(digest.hexdigest().encode()))


def _write_all(file: io.FileIO, block: memoryview) -> None:
    while block:
        block = block[file.write(block) :]


def _stem(target: Path) -> str:
    """How temporary files for `target` begin: cut, or a long name would have none that the system accepts."""
    return f".{target.name[:40]}."


def _create_locked(target: Path) -> io.FileIO:
    while True:
        # `open` lets the system apply the umask; asking for the umask would set it, for every thread.
        file = open(target.parent / f"{_stem(target)}{os.urandom(6).hex()}.tmp", "xb", buffering=0)  # noqa: SIM115
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # another process took it for a stale one before it was locked


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[io.FileIO]:
    """An open, locked temporary file beside `target`; gone afterwards unless it was renamed."""
    with _create_locked(target) as file:
        try:
            yield file
        finally:
            with contextlib.suppress(OSError):
                os.unlink(file.name)


def _remove_stale(target: Path) -> None:
    """Remove temporary files of `target` that nobody holds: a process that saves keeps its file locked."""
    name = re.compile(re.escape(_stem(target)) + r"[0-9a-f]{12}\.tmp")
    with os.scandir(target.parent) as entries:
        stale = [entry.path for entry in entries if name.fullmatch(entry.name)]
    for path in stale:
        with contextlib.suppress(OSError), open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)


def _flush_folder(folder: Path) -> None:
    """Make the rename itself durable, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def verify(stream: BinaryIO, name: str) -> Verified:
    """Prove that `stream` holds a whole and unaltered memory file of a known format.

    Nothing is parsed before the SHA-256 agrees, and nothing is allocated by a number that the file gives, beyond the
    header, which can be no longer than the file.

    Args:
        stream: Seekable, binary; the file on the disk or an `io.BytesIO`.
        name: How to call it in errors.

    Raises:
        MemoryFileError: It is something else, newer, cut short, or altered: any single flipped bit is found.

    Cost: one pass over the bytes in blocks of 1 MiB.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    start = stream.read(512)
    if not start:
        raise MemoryFileError(f"'{name}' is not a memory file: it is empty")
    opening = _START.match(start, 8)
    if opening is None:
        kind = "a safetensors file of another kind" if start[8:9] == b"{" else "something else"
        raise MemoryFileError(f"'{name}' is not a memory file: it is {kind}; memories are written by `memorize`")
    version = int(opening[1])
    if version > FORMAT:
        raise MemoryFileError(
            f"'{name}' has format {version} and this library reads up to {FORMAT}: it was written by a newer version"
        )
    length = int.from_bytes(start[:8], "little")
    found = _DIGEST.match(start, opening.end())
    if version != FORMAT or found is None or length > min(size - 8, _MAX_HEADER):
        raise MemoryFileError(f"'{name}' is damaged: its header is not whole")
    if _digest(stream, found.start(1)) != found[1]:
        raise MemoryFileError(f"'{name}' is damaged: its content does not agree with the SHA-256 written in it")
    stream.seek(8)
    try:
        table = json.loads(stream.read(length))
        metadata = json.loads(table.pop("__metadata__")[_KEY])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise MemoryFileError(f"'{name}' is damaged: its header is not the JSON of a memory") from error
    return Verified(metadata, table, 8 + length, size)


def _digest(stream: BinaryIO, digits: int) -> bytes:
    """SHA-256 of the whole stream, with the 64 bytes at `digits` taken as zeros."""
    digest = hashlib.sha256()
    stream.seek(0)
    digest.update(stream.read(digits))
    digest.update(_ZEROS)
    stream.seek(len(_ZEROS), os.SEEK_CUR)
    while block := stream.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest().encode()


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    try:
        with open(path, "rb") as stream:
            yield stream
    except FileNotFoundError as error:
        raise MemoryFileError(f"there is no memory file '{path}'") from error
    except IsADirectoryError as error:
        raise MemoryFileError(f"'{path}' is a folder, not a memory file") from error
    except OSError as error:
        raise MemoryFileError(f"cannot read the memory file '{path}': {_reason(error)}") from error


def _header(verified: Verified, name: str) -> MemoryHeader:
    try:
        return MemoryHeader.from_dict(verified.metadata)
    except HeaderError as error:
        raise MemoryFileError(f"'{name}' is damaged: {error}") from error


def read_header(path: str | os.PathLike[str]) -> MemoryHeader:
    """What a memory file says about itself, after its SHA-256 has been verified; no model is needed.

    Raises:
        MemoryFileError: See `verify`.
    """
    with _opened(path) as stream:
        return _header(verify(stream, str(path)), str(path))


def load_memory(
    path: str | os.PathLike[str], expect: Callable[[MemoryHeader], Spec]
) -> tuple[MemoryHeader, dict[str, Tensor]]:
    """Read a memory file into new tensors on the host, or refuse it whole.

    Args:
        path: The file.
        expect: Given the header, what the file has to hold for the model at hand; may itself refuse the header by
            raising `MemoryFileError`. Tensors are allocated by this answer, never by the file's own table.

    Raises:
        MemoryFileError: See `verify`; or names, shapes or dtypes differ from `expect`.
    """
    name = str(path)
    with _opened(path) as stream:
        verified = verify(stream, name)
        header = _header(verified, name)
        spec = expect(header)
        table = _table(spec)
        _compare(verified, table, name)
        tensors: dict[str, Tensor] = {}
        stream.seek(verified.data_start)
        for key in table:
            shape, dtype = spec[key]
            tensors[key] = torch.empty(shape, dtype=dtype)
            block = _bytes_of(tensors[key])
            if stream.readinto(block) != len(block):  # type: ignore[attr-defined]
                raise MemoryFileError(f"'{name}' was cut short while it was read")
    return header, tensors


def _compare(verified: Verified, table: dict[str, Any], name: str) -> None:
    """Raise unless the file's table is exactly the one that the model's own spec gives."""
    for key in sorted(table.keys() | verified.table.keys()):
        ours, theirs = table.get(key), verified.table.get(key)
        if ours == theirs:
            continue
        if theirs is None:
            raise MemoryFileError(f"'{name}' does not fit this model: the tensor '{key}' is missing")
        if ours is None:
            raise MemoryFileError(f"'{name}' does not fit this model: it holds a tensor '{key}' that the model lacks")
        raise MemoryFileError(
            f"'{name}' does not fit this model: '{key}' is {_describe(theirs)} where the model has {_describe(ours)}"
        )
    expected = max((entry["data_offsets"][1] for entry in table.values()), default=0)
    if verified.size - verified.data_start != expected:
        raise MemoryFileError(
            f"'{name}' does not fit this model: it has {verified.size - verified.data_start:,} bytes of tensors "
            f"where the model has {expected:,}"
        )


def _describe(entry: Any) -> str:
    if not isinstance(entry, dict):
        return "not a tensor"
    return f"{entry.get('dtype')} {entry.get('shape')} at {entry.get('data_offsets')}"
