"""What `--out` may be, and what becomes of a model that cannot be saved."""

from __future__ import annotations

import contextlib
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from safetensors import SafetensorError

from plantlib.backbones import loading
from plantlib.cli import commands, main
from plantlib.model import saving
from plantlib.training.train import PlantTrainer
from plantlib.utils.folders import CONTENTS
from tests.cli.test_main import COLUMNS, write_table

Usage = namedtuple("Usage", "free")


@pytest.fixture
def place(corpus, backbone_folder, tmp_path, monkeypatch) -> Path:
    """The working folder: a table, a folder of a user's files, and a file."""
    write_table(tmp_path / "mine.csv", corpus, ("train", "dev", "test"))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "kept.txt").write_text("of a user")
    (tmp_path / "afile").write_text("of a user")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def never(*arguments, **options):
    pytest.fail("the work began")


def call(capsys, *arguments) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of one command."""
    capsys.readouterr()
    return main.main([str(a) for a in arguments]), *capsys.readouterr()


def fitting(backbone: str, out: str, *more: str) -> list[str]:
    """A command that trains a small model."""
    options = ["--split", "part", "--epochs", "2", "--backbone", backbone, "--artefacts", "work"]
    return ["fit", "mine.csv", *COLUMNS, *options, "--out", out, *more]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "m", "mine.csv", "--out", "results"], "results is a folder: name a file"),
        (["evaluate", "m", "mine.csv", "--out", "afile/x"], "afile is a file, so nothing can"),
        (["evaluate", "m", "mine.csv", "--out", "mine.csv"], "is the file that is read"),
        (["predict", "m", "mine.csv", "--out", "results.csv"], "results.csv is a folder"),
        (["predict", "m", "mine.csv", "--out", "/proc/x.csv"], "nothing can be written to /proc"),
        (["predict", "m", "mine.csv", "--out", "mine.csv"], "is the file that is read"),
        (["explain", "m", "afile", "--out", "results.html"], "results.html is a folder"),
        (
            ["fit", "mine.csv", "--out", "results"],
            "results exists, is no model and holds 1 entries",
        ),
        (["fit", "mine.csv", "--out", "results", "--force"], "results exists, is no model"),
        (["fit", "mine.csv", "--out", "afile"], "afile is a file, and a folder is written"),
        (["fit", "mine.csv", "--out", "afile/model"], "afile is a file, so nothing can"),
        (["fit", "mine.csv", "--out", "/proc/model"], "nothing can be written to /proc"),
    ],
    ids=lambda x: " ".join(x)[:60] if isinstance(x, list) else "",
)
def test_what_may_not_be_written_is_one_line_before_any_work(
    place, capsys, monkeypatch, arguments, message
):
    for suffix in (".csv", ".html"):
        shutil.copytree("results", f"results{suffix}")
    for name in ("corpus_of", "model_of", "documents_of"):
        monkeypatch.setattr(commands, name, never)
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    status, out, err = call(capsys, *arguments)
    assert status == 1 and out == "" and len(err.splitlines()) == 1
    assert err.startswith("plant: error: ") and message in err
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


def test_a_disk_without_room_for_the_model_is_one_line_before_training(
    place, backbone_folder, capsys, monkeypatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10))
    monkeypatch.setattr("plantlib.training.runs.fit", never)
    status, _, err = call(capsys, *fitting(backbone_folder, "model"))
    (error,) = [line for line in err.splitlines() if line.startswith("plant: error: ")]
    assert status == 1 and "the model needs about 0 MB in" in error and "--out" in error


def test_room_is_asked_for_words_and_tokenizer_too(
    place, corpus, backbone_folder, monkeypatch, tmp_path
):
    """With room for the weights alone the model would fail to be saved."""
    size = loading.hidden_size_of(loading.config_of(backbone_folder))
    weights = loading.float32_bytes(backbone_folder) + 2 * 4 * corpus.L * size
    files = sum((Path(backbone_folder) / name).stat().st_size for name in ("tokenizer.json",))
    for start, needed in (("lookup", weights + files), ("lookup+linear", weights + files + 1000)):
        for free, enough in ((needed, False), (weights + 10**6, True)):
            monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: Usage(free))
            expected = contextlib.nullcontext() if enough else pytest.raises(OSError, match="room")
            with expected:
                commands.check_room(tmp_path / "m", backbone_folder, start, corpus)


def test_a_model_that_could_not_be_saved_is_saved_by_the_same_command_without_training(
    place, backbone_folder, capsys, monkeypatch
):
    # into a mounted volume, say: an empty folder that exists
    (place / "m").mkdir()
    inode = (place / "m").stat().st_ino
    command = fitting(backbone_folder, "m")

    write = saving._write

    def full(model, folder, save, state_dict=None, **options):
        if state_dict is None:  # no checkpoint
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        write(model, folder, save, state_dict, **options)

    with monkeypatch.context() as patch:
        patch.setattr(saving, "_write", full)
        status, out, err = call(capsys, *command)
    (error,) = [line for line in err.splitlines() if line.startswith("plant: error: ")]
    assert status == 1 and out == "" and "m could not be written, because the disk is full" in error
    assert f"plant fit mine.csv {' '.join(COLUMNS[:4])}" in error and error.endswith("--out m")
    assert not list((place / "m").iterdir())

    with monkeypatch.context() as patch:
        patch.setattr(PlantTrainer, "training_step", never)
        status, out, err = call(capsys, *command)
    assert status == 0, err
    assert (place / "m" / CONTENTS).is_file() and (place / "m").stat().st_ino == inode
    assert not list((place / "work" / "checkpoints").iterdir()), "removed when the model is saved"

    # the numbers are those of a run that was never interrupted
    whole = fitting(backbone_folder, "whole")
    whole[whole.index("work")] = "other"
    assert call(capsys, *whole)[1].replace("whole", "m") == out

    # the same command, killed before it could print, prints what it made
    with monkeypatch.context() as patch:
        patch.setattr("plantlib.training.runs.fit", never)
        assert call(capsys, *command)[:2] == (0, out)

    # the model is not replaced without being asked, and a user's file in it never is
    (place / "m" / "kept.txt").write_text("of a user")
    for other in (("--seed", "1"), ("--start", "lookup"), ("--epochs", "1"), ("--tokens", "9")):
        with monkeypatch.context() as patch:
            patch.setattr("plantlib.training.runs.fit", never)
            status, _, err = call(capsys, *command, *other)
        assert status == 1 and "replace it with --force" in err
    assert call(capsys, *command, "--force")[0] == 0
    assert (place / "m" / "kept.txt").read_text() == "of a user"

    # a damaged model is refused by the name of the file
    words = place / "m" / "words.json"
    lines = words.read_text().splitlines()
    words.write_text("\n".join([lines[0], lines[2], lines[1], *lines[3:]]) + "\n")
    status, _, err = call(capsys, "predict", "m", "mine.csv", "--text", "note")
    assert status == 1 and "m/words.json is not what was written" in err
    words.unlink()
    status, _, err = call(capsys, "predict", "m", "mine.csv", "--text", "note")
    assert status == 1 and "m lacks words.json" in err
