"""Folders of our own formats: what may be replaced, and what is refused when it is read."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from plantlib.utils.base import DataError
from plantlib.utils.folders import (
    CONTENTS,
    atomic_folder,
    check_target,
    kind_of,
    list_again,
    verify,
)
from plantlib.utils.io import Damaged


def write(folder: Path, **files: str) -> None:
    """A folder of the format "model" with these files; "__" in a name stands for a slash."""
    with atomic_folder(folder, "model") as temporary:
        for name, text in files.items():
            path = temporary / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)


def contents(folder: Path) -> dict[str, str]:
    """The files of a folder without contents.json, with their texts."""
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != CONTENTS and ".plant-" not in str(path)
    }


def test_a_new_folder_appears_whole_and_an_error_leaves_none(tmp_path):
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "new", "model"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    write(tmp_path / "new" / "deep", a="1", sub__b="2")
    assert contents(tmp_path / "new" / "deep") == {"a": "1", "sub/b": "2"}
    assert kind_of(tmp_path / "new" / "deep") == "model"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["deep"]


def test_an_empty_folder_is_filled_where_it_stands(tmp_path):
    folder = tmp_path / "volume"
    (folder / "lost+found").mkdir(parents=True)
    inode = folder.stat().st_ino
    write(folder, a="1")
    assert contents(folder) == {"a": "1"} and folder.stat().st_ino == inode
    assert sorted(p.name for p in folder.iterdir()) == ["a", CONTENTS, "lost+found"]


def test_a_folder_of_ours_is_replaced_file_by_file_and_nothing_else_in_it(tmp_path):
    folder = tmp_path / "m"
    write(folder, a="1", b="1", old__c="1", old__d="1")
    (folder / "notes.txt").write_text("of a user")
    (folder / "old" / "e").write_text("of a user")
    inode = folder.stat().st_ino
    write(folder, a="2", new__f="2")
    assert contents(folder) == {
        "a": "2", "new/f": "2", "notes.txt": "of a user", "old/e": "of a user",
    }  # fmt: skip
    assert folder.stat().st_ino == inode
    verify(folder, "model", "make it again")


@pytest.mark.parametrize("marker", [None, "{}", '{"format": "corpus", "files": {}}'])
def test_a_folder_of_somebody_else_is_refused_before_the_block(marker, tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "notes.txt").write_text("of a user")
    if marker:
        (folder / CONTENTS).write_text(marker)
    with pytest.raises(DataError, match="results exists, is no model and holds [12] entries"):
        with atomic_folder(folder, "model"):
            pytest.fail("the block ran")
    assert (folder / "notes.txt").read_text() == "of a user"


def test_files_and_links_in_the_way_are_refused_and_stay(tmp_path):
    (tmp_path / "file").write_text("of a user")
    for path in (tmp_path / "file", tmp_path / "file" / "m"):
        with pytest.raises(DataError, match="file is a file"):
            check_target(path, "model")
    # in a folder of ours: a file and a folder with the name of a new one, and links to elsewhere
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name, make in {
        "b": lambda path: path.write_text("of a user"),
        "c": lambda path: path.mkdir(),
        "a": lambda path: path.unlink() or path.symlink_to(tmp_path / "file"),
        "sub": lambda path: shutil.rmtree(path) or path.symlink_to(elsewhere),
    }.items():
        folder = tmp_path / f"m-{name}"
        write(folder, a="1", sub__d="1")
        make(folder / name)
        with pytest.raises(DataError, match=f"m-{name}/{name} is in the way"):
            write(folder, a="2", b="2", c="2", sub__d="2")
        assert kind_of(folder) == "model" and (folder / name).exists()
    assert (tmp_path / "file").read_text() == "of a user" and not list(elsewhere.iterdir())


def test_a_link_to_a_folder_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link", a="1")
    assert (tmp_path / "link").is_symlink() and contents(tmp_path / "real") == {"a": "1"}
    (tmp_path / "dangling").symlink_to(tmp_path / "not yet")
    write(tmp_path / "dangling", a="1")
    assert (tmp_path / "dangling").is_symlink() and contents(tmp_path / "not yet") == {"a": "1"}


def test_a_folder_that_comes_into_the_way_while_the_block_runs_stays(tmp_path):
    folder = tmp_path / "m"
    with pytest.raises(DataError, match="is no model"), atomic_folder(folder, "model") as temporary:
        (temporary / "a").write_text("1")
        folder.mkdir()
        (folder / "notes.txt").write_text("of a user")
    assert contents(folder) == {"notes.txt": "of a user"}
    with atomic_folder(tmp_path / "n", "model") as temporary:
        (temporary / "a").write_text("1")
        (tmp_path / "n").mkdir()
    assert contents(tmp_path / "n") == {"a": "1"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "a").write_text("12346"), "m/a is not what was written"),
        (lambda f: (f / "a").write_text("123"), "m/a has 3 bytes, and 5 were written"),
        (lambda f: (f / "sub" / "b").unlink(), "m lacks sub/b"),
        (lambda f: (f / CONTENTS).unlink(), "m lacks contents.json"),
        (lambda f: (f / CONTENTS).write_text("{"), "m/contents.json is damaged"),
        (lambda f: (f / CONTENTS).write_text("[]"), "m/contents.json is damaged"),
    ],
    ids=["changed", "cut short", "missing", "no contents", "half contents", "other contents"],
)
def test_a_damaged_folder_is_refused_by_the_name_of_the_file(damage, message, tmp_path):
    write(tmp_path / "m", a="12345", sub__b="1", README__md="x")
    (tmp_path / "m" / "notes.txt").write_text("a file of a user is no damage")
    verify(tmp_path / "m", "model", "make it again")
    damage(tmp_path / "m")
    with pytest.raises(Damaged, match=message + ".*: make it again"):
        verify(tmp_path / "m", "model", "make it again")


def test_every_flipped_byte_of_the_contents_is_found(tmp_path):
    write(tmp_path / "m", a="12345")
    path = tmp_path / "m" / CONTENTS
    whole = path.read_bytes()
    wanted = json.loads(whole)
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            same = json.loads(path.read_bytes()) == wanted  # a blank became another
        except ValueError:
            same = False
        if not same:
            with pytest.raises(Damaged):
                verify(tmp_path / "m", "model", "make it again")


def test_people_may_edit_what_is_written_for_people(tmp_path):
    with atomic_folder(tmp_path / "m", "model") as temporary:
        (temporary / "README.md").write_text("a card")
    (tmp_path / "m" / "README.md").write_text("a better card")
    verify(tmp_path / "m", "model", "make it again")


def test_a_file_that_is_replaced_on_purpose_is_listed_again(tmp_path):
    write(tmp_path / "m", a="1", b="1")
    (tmp_path / "m" / "a").write_text("2")
    (tmp_path / "m" / "c").write_text("2")
    for name in "ac":
        list_again(tmp_path / "m", name)
    verify(tmp_path / "m", "model", "make it again")
    (tmp_path / "m" / "c").unlink()
    with pytest.raises(Damaged, match="m lacks c"):
        verify(tmp_path / "m", "model", "make it again")
    list_again(tmp_path, "a folder without contents is left alone")


REPLACE = """
    import os, signal, sys
    from pathlib import Path
    from plantlib.utils import folders
    renames, replace = 0, os.replace
    def counted(*paths):
        global renames
        if renames == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        renames += 1
        replace(*paths)
    with folders.atomic_folder(sys.argv[1], "model") as temporary:
        for name in "abc":
            (temporary / name).write_text("new")
        folders.os.replace = counted
"""


@pytest.mark.parametrize("renames", [0, 1, 2, 4, 5])
def test_a_kill_while_files_are_replaced_leaves_a_folder_that_says_so(renames, tmp_path):
    write(tmp_path / "m", a="old", b="old", d="old")
    (tmp_path / "m" / "notes.txt").write_text("of a user")
    code = textwrap.dedent(REPLACE)
    command = [sys.executable, "-c", code, str(tmp_path / "m"), str(renames)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    texts = contents(tmp_path / "m")
    if set(texts.values()) == {"old", "new", "of a user"}:
        with pytest.raises(Damaged):
            verify(tmp_path / "m", "model", "make it again")
    # the next run replaces it, and removes what is left
    write(tmp_path / "m", a="newer")
    assert contents(tmp_path / "m") == {"a": "newer", "notes.txt": "of a user"}
    assert not [name for name in os.listdir(tmp_path / "m") if name.startswith(".")]
