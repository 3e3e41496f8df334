"""Manifests and configurations of the wrong type are one line that names the file."""

from __future__ import annotations

import json
import shutil

import pytest

from plantlib.backbones import loading
from plantlib.data import privacy, storage
from plantlib.data.corpus import Corpus
from plantlib.training import memory
from plantlib.utils.base import DataError
from plantlib.utils.folders import seal

GOOD = {"name": "tiny", "notes": [], "format": 1}
WRONG = [
    [],
    "tiny",
    3,
    None,
    {},
    GOOD | {"name": 3},
    GOOD | {"name": None},
    GOOD | {"name": ["tiny"]},
    GOOD | {"notes": "none"},
    GOOD | {"sources": []},
    GOOD | {"counts": 3},
    GOOD | {"synthetic": "yes"},
    GOOD | {"credentialed": 1},
    GOOD | {"notes": ["made", 3]},
    GOOD | {"notes": [["made"]]},
    GOOD | {"sources": {"a.csv": None}},
    GOOD | {"counts": {"labels": "7"}},
    GOOD | {"counts": {"labels": True}},
    GOOD | {"counts": {"documents": {"train": 1.5}}},
    GOOD | {"label_space": {"labels": []}},
]


@pytest.mark.parametrize("content", WRONG, ids=json.dumps)
def test_a_manifest_of_the_wrong_type_names_the_file(content, corpus, tmp_path, monkeypatch):
    folder = corpus.save(tmp_path / "home" / "tiny")
    (folder / "manifest.json").write_text(json.dumps(content))
    seal(folder, "corpus")
    with pytest.raises(DataError, match="manifest.json") as refused:
        storage.manifest_of(folder)
    assert "\n" not in str(refused.value) and "load the corpus again" in str(refused.value)
    with pytest.raises(DataError, match="manifest.json"):
        Corpus.load(folder)
    # what looks for marks in a data folder meets it too
    monkeypatch.setenv("PLANT_HOME", str(tmp_path / "home"))
    assert isinstance(privacy.credentialed_folders(), list)


@pytest.mark.parametrize(
    "content",
    ["[]", "3", "null", '{"model_type": ["bert"]}', '{"model_type": "bert", "hidden_size": "x"}']
    + ["{", "", '{"model_type": "unheard of"}', '{"model_type": "bert", "hidden_size": null}'],
)
def test_a_configuration_of_the_wrong_type_is_a_value_error(content, backbone_folder, tmp_path):
    folder = tmp_path / "own-bert"
    shutil.copytree(backbone_folder, folder)
    (folder / "config.json").write_text(content)
    for read in (loading.config_of, loading.load):
        with pytest.raises((ValueError, OSError), match="own-bert|config|model.type"):
            read(str(folder))


@pytest.mark.parametrize(
    "content",
    ["[]", "3", "{", "{}", '{"model_type": 3}', '{"model_type": "bert", "vocab_size": "x"}'],
)
def test_the_memory_estimate_refuses_such_files_in_one_line(content, tmp_path, capsys):
    (tmp_path / "config.json").write_text(content)
    assert memory.main([str(tmp_path / "config.json"), "--labels", "3"]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.strip().splitlines()) == 1
    assert "config.json" in printed.err


@pytest.mark.parametrize("option", ["--labels", "--tokens", "--batch", "--window", "--cells"])
def test_the_memory_estimate_refuses_numbers_that_mean_nothing(option, backbone_folder, capsys):
    assert memory.main([backbone_folder, "--labels", "3", option, "-1"]) == 1
    assert "-1" in capsys.readouterr().err
