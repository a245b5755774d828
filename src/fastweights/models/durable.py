"""Writing files that survive a crash: whole and on the disk, or not there at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_file(path: Path, data: bytes) -> None:
    """Replace ``path`` with ``data``; whatever happens, the file holds the old bytes or the new ones.

    Raises:
        OSError: when the disk is full or the folder cannot be written; the old file is untouched then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors of any device as a safetensors file and wait until it is on the disk. Not atomic.

    Raises:
        OSError, SafetensorError: when the disk is full or the folder cannot be written.
    """
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    # safetensors makes files that only their owner can read; a folder that others may read should hold no such file.
    path.chmod(path.parent.stat().st_mode & 0o666)
    sync(path)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's list of names, are on the disk."""
    # Windows opens no folders; there the rename itself is all that can be had.
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes in hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
