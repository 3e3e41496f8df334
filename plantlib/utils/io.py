"""Files that are either whole or absent: atomic writes, checksums and small JSON.

Every artefact of the data flow (corpora, planted queries, run records) is written through
`atomic_path`, so an interrupted program never leaves half a file under the final name. This module
does not know what the files contain, and it never unpickles.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def _remove(path: Path) -> None:
    """Delete a file or a folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Make the system write the file's bytes to disk before the file is renamed."""
    with open(path, "rb+") as handle:
        os.fsync(handle.fileno())


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`, which becomes `path` if the block ends without an error.

    The block may create a file or a folder under the yielded name, which has the suffix of `path`
    because some libraries look at it. On an error the temporary file or folder is removed and
    `path` stays as it was.

    Raises:
        FileNotFoundError: the block ended without writing anything.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}")
    try:
        yield temporary
        if not temporary.exists():
            raise FileNotFoundError(
                f"nothing was written for {path}: write to the path that atomic_path yields"
            )
        _commit(temporary, path)
    finally:
        _remove(temporary)


def _commit(temporary: Path, path: Path) -> None:
    """Rename `temporary` to `path`; a folder already there is moved aside first, deleted last."""
    if temporary.is_file():
        _flush(temporary)
    if not path.is_dir():
        os.replace(temporary, path)
        return
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
    os.replace(path, aside)
    try:
        os.replace(temporary, path)
    except OSError:
        os.replace(aside, path)
        raise
    _remove(aside)


def _plain(value: Any) -> Any:
    """Turn numpy scalars, arrays, sets and paths into values that JSON can hold."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(
        f"cannot write {type(value).__name__} as JSON: convert it to str, int, float, list or dict"
        " first"
    )


def write_json(path: str | Path, obj: Any) -> Path:
    """Write `obj` atomically as UTF-8 JSON, indented by two spaces, in its key order.

    Raises:
        ValueError: `obj` holds NaN or an infinity.
        TypeError: a value is neither JSON nor a numpy value, set or path.
    """
    path = Path(path)
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def read_json(path: str | Path) -> Any:
    """Read JSON. Raises ValueError with the path, line and column when the file is not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON (line {error.lineno}, column {error.colno}: {error.msg})"
        ) from error


def sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint_of(*parts) -> str:
    """16 hex digits over the JSON of `parts`; what JSON cannot hold enters as its `str`."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
