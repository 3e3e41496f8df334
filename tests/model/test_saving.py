"""A saved model lies in a folder or in the hub's cache; anything else is refused in one line."""

from __future__ import annotations

import json
import shutil

import pytest

from plantlib import PlantModel
from plantlib.model.saving import MODEL
from plantlib.training.ingredients import ingredients, use_score
from plantlib.training.options import RunConfig
from plantlib.training.runs import build_model
from plantlib.utils.folders import seal
from plantlib.utils.io import Damaged
from tests.model.test_model import TEXTS


@pytest.fixture(scope="module")
def saved(prepared, backbone_folder, tmp_path_factory):
    """The folder of a model with a linear score."""
    from plantlib.backbones import loading

    config = RunConfig()
    made = ingredients(prepared, "lookup+linear", config, progress=False)
    model = build_model(prepared, made, config)
    use_score(model, ["lookup", "linear"], made.teacher, prepared)
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.attach_backbone(loading.load(backbone_folder)).save_pretrained(folder)
    return folder


def in_hub_cache(folder, cache, name="owner/name"):
    """Put the folder's files into a hub's cache as a download leaves them."""
    place = cache / f"models--{name.replace('/', '--')}"
    revision = "0" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(revision)
    shutil.copytree(folder, place / "snapshots" / revision)


def test_a_model_of_the_hub_is_read_with_its_words(saved, tmp_path):
    in_hub_cache(saved, tmp_path)
    read = PlantModel.from_pretrained("owner/name", cache_dir=tmp_path, local_files_only=True)
    here = PlantModel.from_pretrained(saved)
    assert read.word_score is not None and read.word_score.words == here.word_score.words
    assert read.predict(TEXTS) == here.predict(TEXTS)


@pytest.mark.parametrize("name", ["owner/absent", "absent", "./absent", "a/b/c", "/absent/model"])
def test_a_name_that_leads_nowhere_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"'{name}' is no folder here") as refused:
        PlantModel.from_pretrained(name, cache_dir=tmp_path, local_files_only=True)
    assert "\n" not in str(refused.value)


def test_a_plain_encoder_is_no_plant_model(backbone_folder):
    with pytest.raises(ValueError, match="holds another kind of model, not a PlantModel"):
        PlantModel.from_pretrained(backbone_folder)


def test_a_folder_without_a_configuration_is_no_model(tmp_path):
    with pytest.raises(ValueError, match="holds no config.json, not a PlantModel"):
        PlantModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "wide"},
        {"window": None},
        {"id2label": ["a", "b"]},
        {"id2label": {"x": "a"}},
        {"max_tokens": "many"},
        {"calibration": 3},
        {"calibration": [1.0, 0.0]},
        {"backbone_config": "bert"},
        {"backbone_config": {}},
        {"keep": "some"},
        {"num_words": 3},
        {"hidden_size": 7},
    ],
)
def test_a_configuration_of_the_wrong_type_names_the_file(changes, saved, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | changes))
    seal(folder, MODEL)
    with pytest.raises(ValueError) as refused:
        PlantModel.from_pretrained(folder)
    assert "model" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("content", ["", "{", '{"model_type": "pl'])
def test_a_configuration_cut_short_is_damage_with_the_fix(content, saved, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    (folder / "config.json").write_text(content)
    with pytest.raises(Damaged, match="config.json is not JSON.*: copy the whole folder again"):
        PlantModel.from_pretrained(folder)


def test_a_full_disk_while_the_tokenizer_is_saved_is_an_error_of_the_disk(
    saved, tmp_path, monkeypatch
):
    def full(*args, **kwargs):
        raise Exception("No space left on device (os error 28)")  # as tokenizers does

    model = PlantModel.from_pretrained(saved)
    model.checkpoints = tmp_path / "checkpoints"
    model.checkpoints.mkdir()
    monkeypatch.setattr(type(model.tokenizer), "save_pretrained", full)
    with pytest.raises(OSError, match="model could not be written, because the disk is full"):
        model.save_pretrained(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


@pytest.mark.parametrize("content", ["[]", "3", "null", '"plant"', "{", ""])
def test_a_configuration_that_is_no_object_is_refused(content, saved, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    (folder / "config.json").write_text(content)
    seal(folder, MODEL)
    with pytest.raises(ValueError, match="config.json|another kind of model") as refused:
        PlantModel.from_pretrained(folder)
    assert "\n" not in str(refused.value)
