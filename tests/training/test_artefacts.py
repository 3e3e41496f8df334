"""Artefacts: each file is made once, by one process at a time, and read afterwards."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from plantlib.linear.score import LinearConfig
from plantlib.training import artefacts
from plantlib.utils.io import atomic_path


@pytest.fixture
def path(tmp_path) -> Path:
    """The path of an artefact that does not exist yet."""
    return tmp_path / "root" / "kind" / "a.txt"


def read(path: Path) -> str:
    return "read " + path.read_text()


def write(path: Path, log: Path, seconds: float = 0.0) -> str:
    """Write the file after a while, and a line of the log."""
    with open(log, "a") as lines:
        lines.write("made\n")
    time.sleep(seconds)
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
    return "whole"


def fail(path: Path) -> str:
    raise OSError("disk full")


def load_or_write(path: Path, log: Path, answers) -> None:
    """What one of several processes does."""
    answers.put(artefacts.load_or_make(path, Path.read_text, partial(write, log=log, seconds=0.5)))


def hold_lock(path: Path, locked) -> None:
    with artefacts.locked(path):
        locked.set()
        time.sleep(60)


def test_a_file_is_made_once_and_then_read(path, tmp_path):
    log = tmp_path / "log"
    answers = [artefacts.load_or_make(path, read, partial(write, log=log)) for _ in range(2)]
    assert answers == ["whole", "read whole"] and log.read_text() == "made\n"


def test_of_two_processes_one_makes_the_file_and_both_get_it(path, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    log = tmp_path / "log"
    workers = [spawn.Process(target=load_or_write, args=(path, log, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [answers.get(timeout=600) for _ in workers] == ["whole", "whole"]
    for worker in workers:
        worker.join()
    assert log.read_text() == "made\n"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"], "no lock and no temporary file"


def test_a_killed_process_leaves_no_lock_behind(path, capsys):
    spawn = multiprocessing.get_context("spawn")
    locked = spawn.Event()
    holder = spawn.Process(target=hold_lock, args=(path, locked))
    holder.start()
    assert locked.wait(timeout=600)
    holder.kill()
    holder.join()
    with artefacts.locked(path):
        assert "waiting" not in capsys.readouterr().err


def test_an_error_while_making_frees_the_lock_and_leaves_no_file(path, tmp_path):
    with pytest.raises(OSError, match="disk full"):
        artefacts.load_or_make(path, read, fail)
    assert artefacts.load_or_make(path, read, partial(write, log=tmp_path / "log")) == "whole"


def test_fewer_training_rows_have_their_own_files(prepared):
    rows = np.sort(prepared.rows["train"][:20])
    fewer = replace(prepared, key="fewer", train_rows=rows)
    assert np.array_equal(fewer.rows["train"], rows)
    assert np.array_equal(fewer.rows["test"], prepared.rows["test"])
    assert fewer.train_labels.shape[0] == 20 and fewer.about()["train"] == 20
    paths = [artefacts.place(inputs, "planted/listnet", inputs.key) for inputs in (prepared, fewer)]
    assert paths[0] != paths[1]
    config = LinearConfig(folds=2)
    all_rows = artefacts.linear_scores(prepared, config, progress=False)
    assert (all_rows.part > 0).sum() == len(prepared.rows["train"])
    fewer_rows = artefacts.linear_scores(fewer, config, progress=False)
    assert (fewer_rows.part > 0).sum() == 20
