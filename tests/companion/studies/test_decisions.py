"""The study of decisions on a tiny corpus: its documents, its shares, and that it goes on."""

from __future__ import annotations

import numpy as np
import pytest

from companion.studies import decisions
from plantlib.metrics import choosing
from plantlib.utils.io import read_json

pytestmark = pytest.mark.filterwarnings("ignore:dev has .* right labels")


def test_a_corpus_is_measured_once(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(decisions, "LATER", 5)
    monkeypatch.setattr(decisions, "MOST", {"train": 60, "dev": 20, "test": 20})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("plantlib.data.sources.base_folder", lambda: tmp_path)
    monkeypatch.setattr("plantlib.training.artefacts.base_folder", lambda: tmp_path)
    folder = str(corpus.save(tmp_path / "tiny"))
    assert decisions.main([folder, "--file", "numbers.json"]) == 0
    (row,) = read_json(tmp_path / "numbers.json")
    assert row["documents"] == {"train": 55, "dev": 20, "test": 20}
    assert len(row["rules"]) == 2 * len(choosing.CHOSEN)
    assert all(0 <= x <= 1 for rule in row["rules"].values() for x in rule.values())
    shares = [row["review"][f"first {share:.0%}"] for share in decisions.SHARES]
    assert shares == sorted(shares) and shares[-1] <= 1
    assert row["ndcg@5"]["after"] > 0.8 and row["learned"]["documents"] == 5
    monkeypatch.setattr(decisions, "measure", None)  # not called again
    assert decisions.main([folder, "--file", "numbers.json"]) == 0


def test_the_linear_score_decides_over_all_documents(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("plantlib.training.artefacts.base_folder", lambda: tmp_path)
    folder = str(corpus.save(tmp_path / "tiny"))
    assert decisions.main([folder, "--linear", "--file", "numbers.json"]) == 0
    (row,) = read_json(tmp_path / "numbers.json")
    assert row["system"] == "linear score" and row["documents"]["train"] == 60
    values = row["rules"]["threshold, by micro_f1"]
    assert 0.5 < values["micro_f1"] <= 1
    # gold labels without a training document are missed
    seen = corpus.labels[corpus.rows("train")].getnnz(0) > 0
    gold = corpus.labels[corpus.rows("test")].tocsc()
    assert row["unseen_gold"] == gold[:, ~seen].nnz
    assert (values["micro_f1, all"] < values["micro_f1"]) == bool(row["unseen_gold"])
    assert row["review"]["first 50%"] <= 1 and row["review"]["wrong"] >= 0
    monkeypatch.setattr(decisions, "measure_linear", None)  # not called again
    assert decisions.main([folder, "--linear", "--file", "numbers.json"]) == 0


def test_an_order_by_the_errors_finds_them_first():
    found = decisions.of_order(np.array([6, 3, 1, 0]), [5.0, 3.0, 1.0, 0.5])
    assert found["first 25%"] == 0.6 and found["first 50%"] == 0.9
    assert found["documents_to_80"] == 0.5 and found["wrong"] == 10 and found["expected"] == 9.5


def test_the_documents_learned_later_are_not_in_the_first_fit(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(decisions, "LATER", 5)
    first, texts, labels = decisions.cut(str(corpus.save(tmp_path / "tiny")), 0)
    assert len(texts) == len(labels) == 5 and first.N == corpus.N - 5
    whole = set(corpus.texts)
    assert set(texts) <= whole and not set(texts) & set(first.texts)
    assert np.array_equal(first.rows("test").size, corpus.rows("test").size)
