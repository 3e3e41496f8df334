"""Code that comes with a model runs only where somebody asked for it, and nobody is questioned.

transformers asks at the terminal whether to run such code where `trust_remote_code` is not stated,
and `yes |` answers it.
"""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest

from plantlib import PlantModel
from plantlib.backbones import loading
from plantlib.model.saving import MODEL
from plantlib.utils.folders import seal
from tests.model.test_model import planted_model

OWN_CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
class OwnConfig(BertConfig): model_type = "own"
class OwnModel(BertModel): config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast): pass
"""
OWN_TOKENIZER = {
    "tokenizer_class": "OwnTokenizer",
    "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]},
}
OWN_MODEL = {
    "model_type": "own",
    "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"},
}


def add_own_code(folder: Path, file: str, changes: dict) -> Path:
    """Let `file` name a class that lies in the folder; the marker that its code leaves."""
    marker = folder.with_suffix(".ran")
    (folder / "own.py").write_text(OWN_CODE.format(marker=str(marker)))
    about = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(about | changes))
    return marker


@pytest.fixture(autouse=True)
def yes(monkeypatch):
    """Answers yes to every question; none may be asked."""
    questions = []
    monkeypatch.setattr("builtins.input", lambda text="": questions.append(text) or "y")
    yield
    assert questions == []


def test_code_of_a_backbone_runs_only_when_asked_for(backbone_folder, tmp_path):
    folder = tmp_path / "own-bert"
    shutil.copytree(backbone_folder, folder)
    # transformers has a tokenizer for BERT, which is used instead
    marker = add_own_code(folder, "tokenizer_config.json", OWN_TOKENIZER)
    assert loading.load(str(folder)).num_tokens and not marker.exists()
    add_own_code(folder, "config.json", OWN_MODEL)
    for read in (loading.load, loading.tokenizer_of, loading.config_of):
        with pytest.raises(ValueError, match="own-bert brings Python code of its own") as refused:
            read(str(folder))
        assert "\n" not in str(refused.value) and not marker.exists()
    assert loading.load(str(folder), trust_remote_code=True).num_tokens
    assert marker.exists()


def test_code_of_a_saved_model_runs_only_when_asked_for(prepared, backbone, tmp_path):
    folder = tmp_path / "model"
    planted_model(prepared, backbone).save_pretrained(folder)
    # a PlantModel's tokenizer has no class of transformers to fall back on
    marker = add_own_code(folder, "tokenizer_config.json", OWN_TOKENIZER)
    seal(folder, MODEL)  # as whoever made the folder would
    with pytest.raises(ValueError, match="model brings Python code of its own"):
        PlantModel.from_pretrained(folder)
    assert not marker.exists()
    assert PlantModel.from_pretrained(folder, trust_remote_code=True).predict(["pulse"])
    assert marker.exists()


def test_every_auto_class_is_told_whether_to_run_code():
    root = Path(loading.__file__).parents[2]
    files = [f for room in ("plantlib", "companion") for f in (root / room).rglob("*.py")]
    calls, silent = 0, []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = ast.unparse(node.func.value).rpartition(".")[2].lower()
            if node.func.attr in ("from_pretrained", "from_config") and "auto" in owner:
                calls += 1
                if "trust_remote_code" not in {keyword.arg for keyword in node.keywords}:
                    silent.append(f"{file.name}:{node.lineno}")
    assert silent == [] and calls >= 8
