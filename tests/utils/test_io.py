"""Atomic writes, locks and JSON files."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from plantlib.utils import io
from plantlib.utils.base import DataError
from plantlib.utils.folders import atomic_folder
from plantlib.utils.io import atomic_path, check_file, read_if_whole, read_json, write_json


def test_atomic_path_keeps_the_old_file_when_the_block_fails(tmp_path):
    path = write_json(tmp_path / "a.json", {"n": np.int64(1), "set": {"b", "a"}})
    assert read_json(path) == {"n": 1, "set": ["a", "b"]}
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path)["n"] == 1 and [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(FileNotFoundError, match="nothing was written"), atomic_path(tmp_path / "b"):
        pass
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"n": float("nan")})
    path.write_text("{")
    with pytest.raises(ValueError, match="is not JSON .line 1"):
        read_json(path)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match="a.json is not JSON .byte 7 is not UTF-8"):
        read_json(path)


def test_a_file_never_replaces_a_folder(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    for content in (None, "of a user"):
        if content:
            (folder / "notes.txt").write_text(content)
        with pytest.raises(DataError, match="results is a folder: name a file"):
            write_json(folder, {})
    # nor one that appears while the file is written
    with pytest.raises(DataError, match="is a folder"), atomic_path(tmp_path / "late") as temporary:
        temporary.write_text("x")
        (tmp_path / "late").mkdir()
    assert (folder / "notes.txt").read_text() == "of a user"


def full_of_the_system(file):
    raise OSError(errno.ENOSPC, "No space left on device")


def full_of_rust(file):
    raise Exception("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("full", [full_of_the_system, full_of_rust])
def test_a_full_disk_names_the_path_that_was_asked_for(full, tmp_path):
    (tmp_path / "scores.csv").write_text("old")
    with pytest.raises(OSError, match="scores.csv could not be written, because the disk") as error:
        with atomic_path(tmp_path / "scores.csv") as temporary:
            full(temporary)
    assert error.value.errno == errno.ENOSPC and ".plant-" not in str(error.value)
    with pytest.raises(OSError, match="model could not be written, because the disk") as error:
        with atomic_folder(tmp_path / "model", "model") as temporary:
            with atomic_path(temporary / "run.json") as inner:
                full(inner)
    assert ".plant-" not in str(error.value)
    assert (tmp_path / "scores.csv").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]


def test_another_error_of_the_block_stays_what_it_is(tmp_path):
    with pytest.raises(PermissionError, match="of the block"), atomic_path(tmp_path / "a"):
        raise PermissionError(errno.EACCES, "of the block")


def test_a_link_to_a_file_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.json"
    for target in ("there.json", "not yet.json"):
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path / "real" / target)
        write_json(link, [target])
        assert link.is_symlink() and read_json(tmp_path / "real" / target) == [target]
    link.unlink()
    link.symlink_to(tmp_path / "real")
    with pytest.raises(DataError, match="is a folder"):
        write_json(link, {})


def test_what_cannot_be_written_is_refused_before_the_block(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, message in (
        (tmp_path / "loop", "loop is a symbolic link that leads back to itself"),
        (tmp_path / ("ä" * 130), "has 260 bytes, and at most 255 can be written"),
        (tmp_path / ("b" * 256) / "a.json", "has 256 bytes, and at most 255 can be written"),
        ("a\0.json", "has a null character"),
        (tmp_path / "file" / "a.json", "file is a file, so nothing can be written below it"),
        (tmp_path / "file" / "b" / "a.json", "file is a file, so nothing can be written below it"),
        (tmp_path / "pipe", "pipe is a device, not a file"),
        ("/dev/null", "is a device, not a file"),
        ("/proc/a.json", "nothing can be written to /proc .*: name another path"),
    ):
        with pytest.raises(DataError, match=message), atomic_path(path):
            pytest.fail("the block ran")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DataError, match="file may not be overwritten"):
        check_file(tmp_path / "file")
    assert {p.name for p in tmp_path.iterdir()} == {"file", "pipe", "loop"}


def test_a_folder_in_the_place_of_a_file_is_named_and_stays(tmp_path):
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(DataError, match="a.safetensors is a folder.*: move the folder away"):
        read_if_whole(tmp_path / "a.safetensors", Path.read_bytes)
    assert (tmp_path / "a.safetensors").is_dir()


WRITE_AND_WAIT = """
    import sys
    from plantlib.utils.io import atomic_path
    with atomic_path(sys.argv[1]) as temporary:
        temporary.write_text("half")
        print("ready", flush=True)
        sys.stdin.read()
"""


def writer(path: Path) -> subprocess.Popen:
    """A process that has written half of `path` and waits."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    code = textwrap.dedent(WRITE_AND_WAIT)
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], **pipes)
    assert process.stdout.readline() == b"ready\n"
    return process


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_writes_is_not(tmp_path):
    killed, live = writer(tmp_path / "a.txt"), writer(tmp_path / "a.txt")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(list(tmp_path.iterdir())) == 2
    write_json(tmp_path / "b.json", 1)
    assert len(list(tmp_path.iterdir())) == 2, "b.json, and the folder of the live process"
    live.communicate()
    assert live.returncode == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "b.json"]
    assert (tmp_path / "a.txt").read_text() == "half"


HOLD = """
    import sys
    from pathlib import Path
    from plantlib.utils.io import held, remove_unless_held
    folder = Path(sys.argv[1])
    with held(folder), held(folder):
        (folder / "mine").touch()
        print("ready", flush=True)
        sys.stdin.read()
        remove_unless_held(folder)
"""


def test_a_folder_is_held_by_one_process_and_removed_by_no_other(tmp_path, capsys):
    folder = tmp_path / "run"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    code = textwrap.dedent(HOLD)
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], **pipes)
    assert process.stdout.readline() == b"ready\n"
    io.remove_unless_held(folder)
    assert (folder / "mine").exists(), "another process needs it"
    process.stdin.close()  # it removes its folder while this process waits or comes later
    with io.held(folder):
        assert not list(folder.iterdir())
        assert process.wait() == 0
    io.remove_unless_held(folder)
    assert not folder.exists()
    io.remove_unless_held(folder)


def test_threads_exclude_each_other_and_one_thread_may_take_its_lock_again(tmp_path):
    path, order = tmp_path / "tables" / "a.txt", []
    inside = threading.Event()

    def second():
        inside.wait()
        with io.locked(path):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with io.locked(path), io.locked(path):
        inside.set()
        thread.join(timeout=0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert not path.parent.exists(), "the lock is beside the folder of the file"


def test_a_new_folder_that_is_taken_for_a_leftover_is_made_again(tmp_path, monkeypatch):
    """Between its making and its lock another process may remove it."""
    taken, opened = [], io._opened

    def removed_first(folder, *options):
        if not taken:
            taken.append(folder)
            folder.rmdir()
        return opened(folder, *options)

    monkeypatch.setattr(io, "_opened", removed_first)
    folder, handle = io.new_temporary(tmp_path)
    os.close(handle)
    assert folder.is_dir() and folder != taken[0]
    io.probe(tmp_path)
    with pytest.raises(FileNotFoundError):
        io.new_temporary(tmp_path / "absent")
