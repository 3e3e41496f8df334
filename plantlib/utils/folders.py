"""Folders of our own formats: written whole, replaced file by file, verified when they are read.

Each such folder holds `contents.json`, which names its format and lists its files with length and
SHA-256. It tells a folder that may be replaced from one that may not, and a whole one from a
damaged one. Files that are not listed belong to somebody else and are never touched.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from plantlib.utils.base import DataError
from plantlib.utils.io import (
    TEMPORARY,
    Damaged,
    flush,
    followed,
    naming_full_disk,
    probe,
    read_json,
    sha256,
    temporary_folder,
    write_json,
)

CONTENTS = "contents.json"
OF_THE_SYSTEM = ("lost+found",)  # in the root of a mounted volume


@contextlib.contextmanager
def atomic_folder(path: str | Path, kind: str) -> Iterator[Path]:
    """Yield a new folder that becomes the folder `path` if the block ends without an error.

    A folder that does not exist appears at once. An existing one stays where it is, so it may be a
    mounted volume: its files are replaced one by one, those of its old contents that the new ones
    lack are removed, and files that are not listed in its `contents.json` stay.

    Args:
        path: of the folder; a symbolic link to a folder is followed.
        kind: the format, such as "corpus" or "model".

    Raises:
        DataError: see `check_target`; it is checked before the block and again after it.
        OSError: the disk is full; the message names `path`.
    """
    target = check_target(path, kind)
    existing = target.is_dir()
    if not existing:
        target.parent.mkdir(parents=True, exist_ok=True)
    beside = target if existing else target.parent
    with naming_full_disk(path), temporary_folder(beside) as place:
        temporary = place / (target.absolute().name or kind)
        temporary.mkdir()
        yield temporary
        seal(temporary, kind)
        check_target(path, kind)  # what came into the way while the block ran
        if target.is_dir():
            _replace(temporary, target)
        else:
            os.replace(temporary, target)


def check_target(path: str | Path, kind: str) -> Path:
    """Check that a folder of this kind can be written to `path`, before any long work.

    Returns:
        the folder that is written, behind symbolic links.

    Raises:
        DataError: a file lies there, or a folder that is neither empty nor of this kind, or
            nothing can be written there.
    """
    target = followed(path)
    if not target.exists():
        probe(target.parent)
        return target
    if not target.is_dir():
        raise DataError(f"{path} is a file, and a folder is written: name another folder")
    names = names_in(target)
    if names and kind_of(target) != kind:
        raise DataError(
            f"{path} exists, is no {kind} and holds {len(names)} entries, such as {names[0]!r}:"
            " name another folder, or an empty one"
        )
    probe(target)
    return target


def names_in(folder: Path) -> list[str]:
    """Names of the entries of a folder, without those that a killed process or the system left."""
    own = TEMPORARY.split("{}")[0]
    names = (entry.name for entry in folder.iterdir())
    return sorted(name for name in names if name not in OF_THE_SYSTEM and not name.startswith(own))


def kind_of(folder: str | Path) -> str | None:
    """The format of a folder that `atomic_folder` wrote; None for any other folder."""
    path = Path(folder) / CONTENTS
    if not path.is_file():
        return None
    try:
        return _contents(path)["format"]
    except Damaged:
        return None


def seal(folder: Path, kind: str) -> None:
    """Write `contents.json`: the format, and length and SHA-256 of every file."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / CONTENTS:
            flush(path)
            name = path.relative_to(folder).as_posix()
            files[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    write_json(folder / CONTENTS, {"format": kind, "files": files})


def list_again(folder: str | Path, name: str) -> None:
    """Take a file of a written folder that was replaced on purpose into its `contents.json`."""
    folder = Path(folder)
    if (folder / CONTENTS).is_file():
        contents = _contents(folder / CONTENTS)
        path = folder / name
        contents["files"][name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        write_json(folder / CONTENTS, contents)


def verify(folder: str | Path, kind: str, fix: str, optional: Sequence[str] = ()) -> None:
    """Check every file of a folder that `atomic_folder` wrote against its `contents.json`.

    Texts for people (`.md`) may be edited or left out.

    Args:
        kind: the format that is expected.
        fix: what to do with a damaged folder, the end of the message.
        optional: files that may be left out.

    Raises:
        Damaged: a file is missing, cut short or changed; the message names it.
    """
    folder = Path(folder)
    if not (folder / CONTENTS).is_file():
        raise Damaged(f"{folder} lacks {CONTENTS}, so it is not a whole {kind}: {fix}")
    try:
        contents = _contents(folder / CONTENTS)
    except Damaged as error:
        raise Damaged(f"{error}: {fix}") from None
    if contents["format"] != kind:
        raise Damaged(f"{folder} is a {contents['format']}, wanted a {kind}: {fix}")
    for name, about in contents["files"].items():
        if name.endswith(".md") or (name in optional and not (folder / name).exists()):
            continue
        if not (folder / name).is_file():
            raise Damaged(f"{folder} lacks {name}: {fix}")
        if problem := _difference(folder / name, about):
            raise Damaged(f"{folder / name} {problem}: {fix}")


def _difference(path: Path, about: dict) -> str | None:
    """In what a file differs from its entry in `contents.json`."""
    size = path.stat().st_size
    if size != about["bytes"]:
        return f"has {size:,} bytes, and {about['bytes']:,} were written"
    if sha256(path) != about["sha256"]:
        return "is not what was written (its checksum differs)"
    return None


def _contents(path: Path) -> dict:
    """What `seal` wrote; Damaged for anything else."""
    try:
        contents = read_json(path)
        files = contents["files"]
        whole = isinstance(contents["format"], str) and all(
            isinstance(about["bytes"], int) and isinstance(about["sha256"], str)
            for about in files.values()
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise Damaged(f"{path} is damaged, so the folder is not what was written")
    return contents


def _replace(new: Path, target: Path) -> None:
    """Move the files of `new` into `target`, and remove those that its old contents list."""
    contents = read_json(new / CONTENTS)
    old = _contents(target / CONTENTS)["files"] if kind_of(target) else {}
    ours = set(old) | {CONTENTS}
    for name in contents["files"]:
        _check_entry(target, name, ours)
    # while files are moved, the contents list old and new ones: all of them are ours
    write_json(target / CONTENTS, contents | {"files": old | contents["files"]})
    for name in contents["files"]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(new / name, target / name)
    for name in set(old) - set(contents["files"]):
        (target / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # folders that are not empty stay
            os.removedirs((target / name).parent)
    os.replace(new / CONTENTS, target / CONTENTS)


def _check_entry(target: Path, name: str, ours: set[str]) -> None:
    """DataError if a file in `target` that is not ours, or a link, is in the way of `name`."""
    path = target / name
    within = [path, *path.parents][: len(Path(name).parts)]
    link = next((p for p in within if p.is_symlink()), None)
    if link is not None or (path.exists() and (name not in ours or path.is_dir())):
        raise DataError(
            f"{link or path} is in the way and was not written by this program: move it away, or"
            " name another folder"
        )
