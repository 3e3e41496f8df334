"""Files that are either whole or absent: atomic writes, locks, checksums and small JSON.

Every file of the data flow (planted queries, run records, tables) is written through `atomic_path`,
so an interrupted program never leaves half a file under the final name. Folders are written by
`utils.folders`, tensors by `utils.tensors`. This module does not know what the files contain, and
it never unpickles.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from plantlib.utils.base import DataError

TEMPORARY = ".plant-{}.tmp"  # folders that hold what is being written; a lock on each says by whom

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_SPACE = "No space left on device"  # what packages in Rust say, without a number

LONGEST_NAME = 255  # bytes, the limit of the usual file systems

T = TypeVar("T")
_HELD: set[tuple[Path, int]] = set()  # folders whose lock a thread of this process holds


class Damaged(DataError):
    """A file that is not what was written: cut short, changed, or partly missing."""


def read_if_whole(path: Path, load: Callable[[Path], T]) -> T | None:
    """`load(path)`; None where there is no file, or one that is damaged and has to be made again.

    load: raises Damaged for a damaged file; a line on stdout then names it.
    """
    if not path.exists():
        return None
    if path.is_dir():
        raise DataError(f"{path} is a folder, and a file is written there: move the folder away")
    try:
        return load(path)
    except Damaged as error:
        print(f"{error}; it is made again", file=sys.stderr, flush=True)
        return None


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a path in a temporary folder; its file becomes `path` if the block ends well.

    On an error the temporary folder is removed and `path` stays as it was. A symbolic link stays,
    and what it leads to is replaced. Temporary folders that killed processes left beside `path`
    are removed.

    Raises:
        DataError: `path` is a folder, a device, or lies where nothing can be written.
        FileNotFoundError: the block ended without writing a file.
        OSError: the disk is full; the message names `path`.
    """
    target = check_file(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with naming_full_disk(path), temporary_folder(target.parent) as folder:
        temporary = folder / target.name
        yield temporary
        if not temporary.is_file():
            raise FileNotFoundError(
                f"nothing was written for {path}: write a file to the path that atomic_path yields"
            )
        flush(temporary)
        check_file(target)  # what came into the way while the block ran
        os.replace(temporary, target)


@contextlib.contextmanager
def naming_full_disk(path: str | Path) -> Iterator[None]:
    """Say of a full disk, in whatever way a package says it, that `path` could not be written."""
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number not in FULL and NO_SPACE not in str(error):
            raise
        about = f"{path} could not be written, because the disk is full: make room, or name a path"
        raise OSError(number or errno.ENOSPC, f"{about} on another disk") from error


def check_file(path: str | Path) -> Path:
    """Check that a file can be written to `path`, before any long work.

    Returns:
        the path of the file that is written, behind symbolic links.

    Raises:
        DataError: `path` is a folder or a device, or cannot be written.
    """
    target = followed(path)
    if target.is_dir():
        raise DataError(f"{path} is a folder: name a file")
    if target.exists() and not target.is_file():
        raise DataError(f"{path} is a device, not a file: name a file")
    if target.exists() and not os.access(target, os.W_OK):
        raise DataError(f"{path} may not be overwritten: name another file")
    probe(target.parent)
    return target


def followed(path: str | Path) -> Path:
    """`path`, or where it leads if it is a symbolic link.

    DataError for a link that leads back to itself, and for a name that no disk can hold.
    """
    path = Path(path)
    for name in path.parts:
        size = len(os.fsencode(name))
        if size > LONGEST_NAME:
            raise DataError(
                f"the name {name[:20]!r}... in the path has {size} bytes, and at most"
                f" {LONGEST_NAME} can be written: give a shorter name"
            )
        if "\0" in name:
            raise DataError(f"{str(path)!r} has a null character: give a name without it")
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    if target.is_symlink():
        raise DataError(f"{path} is a symbolic link that leads back to itself: name another path")
    return target


def probe(folder: Path) -> None:
    """DataError if nothing can be written to `folder`, or if it cannot be made."""
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists() or p.is_symlink())
    if not place.is_dir():
        raise DataError(f"{place} is a file, so nothing can be written below it: name another path")
    try:
        folder, handle = new_temporary(place)
        folder.rmdir()
        os.close(handle)
    except OSError as error:
        raise DataError(
            f"nothing can be written to {place} ({error.strerror}): name another path, or change"
            " its permissions"
        ) from error


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`, removed at the end, after those that dead processes left there."""
    remove_leftovers(parent)
    folder, handle = new_temporary(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def new_temporary(parent: Path, name: str = TEMPORARY) -> tuple[Path, int]:
    """A new folder in `parent`, and the descriptor that holds its lock until it is closed."""
    while True:
        folder = parent / name.format(uuid.uuid4().hex[:12])
        folder.mkdir()
        # a process that removes leftovers may come between
        try:
            handle, free = _opened(folder)
        except FileNotFoundError:
            continue
        if free and folder.exists():
            return folder, handle
        os.close(handle)


def abandoned(parent: Path, name: str = TEMPORARY) -> Iterator[tuple[Path, int]]:
    """Temporary folders in `parent` whose process is dead; their locks are held meanwhile.

    The caller may keep a folder by duplicating the descriptor.
    """
    for folder in sorted(parent.glob(name.format("*"))):
        try:
            handle, free = _opened(folder, assume=False)
        except OSError:  # its process has just removed it
            continue
        try:
            if free and folder.exists():
                yield folder, handle
        finally:
            os.close(handle)


def remove_leftovers(parent: Path) -> None:
    """Remove the temporary folders in `parent` whose process is dead."""
    for folder, _ in abandoned(parent):
        shutil.rmtree(folder, ignore_errors=True)


def _opened(folder: Path, assume: bool = True) -> tuple[int, bool]:
    """A descriptor of `folder`, and whether its lock was free and is now held by it.

    assume: what to take for true on a file system without locks.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return handle, False
    except OSError:
        return handle, assume
    return handle, True


def locked(path: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of a file that several processes may want to make; see `held`.

    A file that is replaced cannot hold its own lock: an empty folder in `locks`, beside the folder
    of `path`, does.
    """
    name = f"{path.parent.name}-{path.name}"
    return held(path.parent.parent / "locks" / name, f"makes {path.parent.name}/{path.name}")


@contextlib.contextmanager
def held(folder: Path, work: str | None = None) -> Iterator[None]:
    """Hold the lock of a folder that several processes may want to fill; it is made if missing.

    Another process or thread has to be waited for; a line says so. The thread that holds the lock
    may take it again, and may remove the folder.

    work: what the other process does, for that line.
    """
    key = _key(folder)
    if key in _HELD:
        yield
        return
    handle = _hold(folder, work or f"works in {folder.parent.name}/{folder.name}")
    _HELD.add(key)
    try:
        yield
    finally:
        _HELD.remove(key)
        os.close(handle)


def _key(folder: Path) -> tuple[Path, int]:
    return folder.absolute(), threading.get_ident()


def _hold(folder: Path, work: str) -> int:
    """A descriptor of `folder` that holds its lock until it is closed."""
    waits = False
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle, free = _opened(folder)
        except FileNotFoundError:  # removed since
            continue
        if not free:
            if not waits:
                waits = True
                print(f"waiting for another process that {work}", file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        # who held it before may have removed the folder
        if folder.exists() and os.path.samestat(os.fstat(handle), folder.stat()):
            return handle
        os.close(handle)


def remove_unless_held(folder: Path) -> None:
    """Remove a folder, unless another process holds its lock: then that process still needs it."""
    try:
        handle, free = _opened(folder)
    except FileNotFoundError:
        return
    try:
        if free or _key(folder) in _HELD:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)


def flush(path: Path) -> None:
    """Make the system write the file's bytes to disk before the file is renamed."""
    with open(path, "rb+") as handle:
        os.fsync(handle.fileno())


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
    """Read JSON. Raises ValueError with the path and the place when the file is not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON (line {error.lineno}, column {error.colno}: {error.msg})"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not JSON (byte {error.start} is not UTF-8)") from error


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
