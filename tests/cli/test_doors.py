# ruff: noqa: F401, F811 (shop is a fixture)
"""Small doors of `plant`: numbers, marks and folders that cannot be used are one line, at once."""

from __future__ import annotations

import json
import shutil

import pytest

from plantlib import PlantModel
from plantlib.cli import commands
from plantlib.data import privacy, sources
from plantlib.model.saving import MODEL
from plantlib.utils.folders import seal
from tests.cli.test_main import COLUMNS, call, shop


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict", "model", "notes.txt", "-k", "0"), "-k 0: give a whole number of at least 1"),
        (("predict", "model", "notes.txt", "-k", "-1"), "-k -1: give a whole number"),
        (("predict", "model", "notes.txt", "--batch", "0"), "--batch 0: give"),
        (("explain", "model", "note.txt", "-k", "0"), "-k 0: give"),
        (("explain", "model", "note.txt", "-k", "-1"), "-k -1: give"),
        (("fit", "mine.csv", "--out", "new", "--seed", "-1"), "--seed -1: give"),
        (
            ("fit", "mine.csv", "--out", "new", "--seed", str(2**32)),
            f"--seed {2**32}: give at most",
        ),
        (("fit", "mine.csv", "--out", "new", "--epochs", "0"), "--epochs 0: give"),
        (("fit", "mine.csv", "--out", "new", "--epochs", "-3"), "--epochs -3: give"),
        (("fit", "mine.csv", "--out", "new", "--tokens", "0"), "--tokens 0: give"),
    ],
)
def test_numbers_are_refused_before_any_work(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where none of the files exist: the number comes first
    status, out, err = call(capsys, *arguments)
    assert status == 1 and out == ""
    assert err.strip().splitlines() == [f"plant: error: {err.strip().split('error: ', 1)[1]}"]
    assert message in err


@pytest.mark.parametrize("content", ["[]", "3", '{"model_type": ["plant"]}', "null", "{"])
def test_a_configuration_of_the_wrong_type_is_one_line(content, shop, capsys, tmp_path):
    shutil.copytree(shop / "model", tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(content)
    status, out, err = call(capsys, "predict", tmp_path / "model", shop / "notes.txt")
    lines = [line for line in err.splitlines() if "error" in line]
    assert status == 1 and out == "" and len(lines) == 1 and "Traceback" not in err


def test_marked_texts_and_models_are_written_in_the_data_folder_alone(
    shop, capsys, tmp_path, monkeypatch
):
    home = tmp_path / "home"
    marked = home / "model"
    shutil.copytree(shop / "model", marked)
    about = json.loads((marked / "config.json").read_text())
    (marked / "config.json").write_text(json.dumps(about | {"credentialed": True}))
    seal(marked, MODEL)
    for place in (str(home), None):
        if place:
            monkeypatch.setenv("PLANT_HOME", place)
        else:
            monkeypatch.delenv("PLANT_HOME")
            monkeypatch.setattr(sources, "checkout", lambda: tmp_path / "checkout")
        for arguments in (
            ("explain", marked, shop / "note.txt", "--out", tmp_path / "page.html"),
            ("predict", marked, shop / "notes.txt", "--out", tmp_path / "scores.csv"),
            ("explain", shop / "model", shop / "note.txt", "--credentialed")
            + ("--out", tmp_path / "page.html"),
            ("predict", shop / "model", shop / "notes.txt", "--credentialed")
            + ("--out", tmp_path / "scores.csv"),
            ("fit", shop / "mine.csv", *COLUMNS, "--credentialed", "--out", tmp_path / "new"),
        ):
            status, out, err = call(capsys, *arguments)
            assert status == 1 and "credentialed" in err and out == "", arguments
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    monkeypatch.setenv("PLANT_HOME", str(home))
    assert call(capsys, "explain", marked, shop / "note.txt", "--out", home / "page.html")[0] == 0


def test_a_table_marked_by_hand_makes_a_marked_model(
    shop, capsys, tmp_path, monkeypatch, backbone_folder
):
    home = tmp_path / "home"
    monkeypatch.setenv("PLANT_HOME", str(home))
    options = (*COLUMNS, "--credentialed", "--epochs", "1", "--start", "lookup")
    fit = ("fit", shop / "mine.csv", *options, "--backbone", backbone_folder)
    status, _, err = call(capsys, *fit, "--out", home / "model")
    assert status == 0, err
    assert PlantModel.from_pretrained(home / "model").config.credentialed
    assert {path.name for path in home.iterdir()} == {"model", "artefacts"}
    assert privacy.is_credentialed(home / "model")
    assert not commands.is_model(home)


def test_privacy_names_a_path_that_is_missing(capsys, tmp_path):
    (tmp_path / "a.txt").write_text("words")
    assert privacy.main([str(tmp_path / "a.txt"), str(tmp_path / "absent")]) == 2
    printed = capsys.readouterr()
    assert "absent: no such file or folder" in printed.err and printed.out == ""


def test_what_is_not_read_of_a_long_text_is_said(shop, capsys, tmp_path):
    model = PlantModel.from_pretrained(shop / "model")
    most = model.config.max_tokens
    long = "pulse " * (most + 30)
    assert model.unread([long, "pulse", "", "é" * (most - 1)]).tolist()[:3] == [30, 0, 0]
    (tmp_path / "two.txt").write_text(f"{long}\nvalve\n", encoding="utf-8")
    (tmp_path / "one.txt").write_text(long, encoding="utf-8")
    _, _, err = call(capsys, "predict", shop / "model", tmp_path / "two.txt", "--batch", "1")
    assert err.count("tokens at the end are not read") == 1
    assert f"1 of 2 documents are longer than the {most} tokens that this model reads: 30" in err
    _, _, err = call(capsys, "explain", shop / "model", tmp_path / "one.txt")
    assert f"the document is longer than the {most} tokens that this model reads: 30" in err
    assert "unread" in model.explain(long, "skin")._head()
    assert "unread" not in model.explain("pulse", "skin")._head()
    _, _, err = call(capsys, "predict", shop / "model", shop / "notes.txt")
    assert "not read" not in err
