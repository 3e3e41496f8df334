"""Safetensors files with a checksum in their header.

`save_tensors` writes one, `check_tensors` verifies it before it is read. The checksum covers the
whole file but its own 64 digits, so that a flipped byte or a cut anywhere is found. Other readers
of safetensors see it as an entry `sha256` of the metadata.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from plantlib.utils.io import Damaged, atomic_path

KEY = "sha256"
BLANK = "0" * 64  # in the place of the checksum while it is computed
LONGEST_HEADER = 100_000_000  # bytes, the limit of safetensors


def save_tensors(
    path: str | Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write tensors of torch, or arrays of numpy, with a checksum; the file appears whole.

    Raises:
        OSError: the disk is full.
    """
    from safetensors.numpy import save_file as save_arrays

    save = save_arrays
    if any(hasattr(value, "detach") for value in tensors.values()):
        from safetensors.torch import save_file as save
    with atomic_path(path) as temporary:
        save(dict(tensors), temporary, metadata={**(metadata or {}), KEY: BLANK})
        write_checksum(temporary)
    return Path(path)


def write_checksum(path: Path) -> None:
    """Put the checksum into the header of a file that was written with `BLANK` in its place."""
    with open(path, "rb+") as file:
        header = _header(path, file)
        place = header.index(f'"{KEY}":"{BLANK}"'.encode()) + len(f'"{KEY}":"')
        checksum = _digest(file, header)
        file.seek(8 + place)
        file.write(checksum.encode())
        file.flush()
        os.fsync(file.fileno())


def check_tensors(path: str | Path) -> Path:
    """Verify a file of `save_tensors`; its path.

    A file that this process has verified and that did not change since is not read again.

    Raises:
        Damaged: the file is cut short or changed, or has no checksum.
    """
    path = Path(path)
    about = path.stat()
    _check(path, about.st_ino, about.st_size, about.st_mtime_ns)
    return path


@lru_cache(maxsize=256)
def _check(path: Path, *state: int) -> None:
    with open(path, "rb") as file:
        header = _header(path, file)
        before, found, after = header.partition(f'"{KEY}":"'.encode())
        stored, after = after[:64], after[64:]
        if not found or len(stored) < 64:
            raise Damaged(f"{path} is damaged: it has no checksum")
        digest = _digest(file, before + found + BLANK.encode() + after)
        if digest.encode() != stored:
            raise Damaged(f"{path} is damaged: its checksum differs")


def _header(path: Path, file: BinaryIO) -> bytes:
    """The header of a safetensors file without its length; Damaged if it is cut short."""
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else LONGEST_HEADER + 1
    header = file.read(length) if length <= LONGEST_HEADER else b""
    if not header or len(header) < length:
        raise Damaged(f"{path} is damaged: its header is cut short")
    return header


def _digest(file: BinaryIO, header: bytes) -> str:
    """SHA-256 of a file with this header in the place of its own; `file` stands behind it."""
    digest = hashlib.sha256(struct.pack("<Q", len(header)) + header)
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
