"""One road to every intermediate file: made once, by one process at a time, and read afterwards."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import replace

import numpy as np
import pytest

from plantlib.linear.score import LinearConfig
from plantlib.training import artefacts
from plantlib.utils.io import atomic_path


def make_slowly(path, log, seconds: float = 0.5) -> str:
    """Write the file after a while, and a line of the log for every time it is made."""
    with open(log, "a") as lines:
        lines.write("made\n")
    time.sleep(seconds)
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
    return "whole"


def ask(path, log, answers) -> None:
    answer = artefacts.load_or_make(path, lambda p: p.read_text(), lambda p: make_slowly(p, log))
    answers.put(answer)


def hold(path, held) -> None:
    with artefacts.locked(path):
        held.set()
        time.sleep(60)


def test_a_file_is_made_once_and_then_read(tmp_path):
    path, log = tmp_path / "root" / "kind" / "a.txt", tmp_path / "log"
    for _ in range(2):
        found = artefacts.load_or_make(
            path, lambda p: "read " + p.read_text(), lambda p: make_slowly(p, log, 0.0)
        )
    assert found == "read whole" and log.read_text() == "made\n"


def test_of_two_processes_one_makes_the_file_and_both_have_it(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    path, log = tmp_path / "root" / "kind" / "a.txt", tmp_path / "log"
    workers = [spawn.Process(target=ask, args=(path, log, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [answers.get(timeout=120) for _ in workers] == ["whole", "whole"]
    for worker in workers:
        worker.join()
    assert log.read_text() == "made\n"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"], "no lock and no temporary file"


def test_a_killed_process_leaves_no_lock_behind(tmp_path, capsys):
    spawn = multiprocessing.get_context("spawn")
    held = spawn.Event()
    path = tmp_path / "root" / "kind" / "a.txt"
    holder = spawn.Process(target=hold, args=(path, held))
    holder.start()
    assert held.wait(timeout=120)
    holder.kill()
    holder.join()
    with artefacts.locked(path):
        assert "waiting" not in capsys.readouterr().out


def test_an_error_while_making_frees_the_lock_and_leaves_no_file(tmp_path):
    path = tmp_path / "root" / "kind" / "a.txt"

    def fail(path):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        artefacts.load_or_make(path, lambda p: p.read_text(), fail)
    log = tmp_path / "log"
    made = artefacts.load_or_make(path, lambda p: p.read_text(), lambda p: make_slowly(p, log, 0.0))
    assert made == "whole"


def test_fewer_training_rows_have_files_of_their_own(prepared):
    rows = np.sort(prepared.rows["train"][:20])
    fewer = replace(prepared, key="fewer", train_rows=rows)
    assert np.array_equal(fewer.rows["train"], rows)
    assert np.array_equal(fewer.rows["test"], prepared.rows["test"])
    assert fewer.train_labels.shape[0] == 20 and fewer.about()["train"] == 20
    places = {
        artefacts.place(inputs, "planted/listnet", inputs.key) for inputs in (prepared, fewer)
    }
    assert len(places) == 2
    whole = artefacts.linear_scores(prepared, LinearConfig(folds=2), progress=False)
    part = artefacts.linear_scores(fewer, LinearConfig(folds=2), progress=False)
    assert (whole.part > 0).sum() == len(prepared.rows["train"]) and (part.part > 0).sum() == 20
