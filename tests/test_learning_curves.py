"""Learning curves on the tiny corpus: nested subsets of one label space, everything taught by the subset alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from plantlib import RunConfig, learning_curves, plots_claims, report, runs
from plantlib.data import DataError
from plantlib.linear_score import LinearConfig
from plantlib.results import load_all
from plantlib.train import TrainConfig

QUICK = RunConfig(train=TrainConfig(epochs=1, batch_size=16), linear=LinearConfig(folds=2))


def test_subsets_are_nested_and_everything_else_is_that_of_the_whole(prepared):
    small, large = (learning_curves.fewer(prepared, n, seed=1) for n in (12, 40))
    assert set(small.rows["train"]) < set(large.rows["train"]) < set(prepared.rows["train"])
    assert all(np.array_equal(small.rows[s], prepared.rows[s]) for s in ("dev", "test"))
    assert small.corpus is prepared.corpus and small.features is prepared.features
    assert len({small.key, large.key, prepared.key, learning_curves.fewer(prepared, 12, seed=2).key}) == 4
    assert small.about()["train"] == 12 and small.about()["labels"] == prepared.corpus.L
    assert np.array_equal(learning_curves.fewer(prepared, 60).rows["train"], prepared.rows["train"])
    with pytest.raises(DataError, match="between 1 and 60"):
        learning_curves.fewer(prepared, 61)


def test_teacher_and_linear_score_come_from_the_subset_alone(prepared):
    small = learning_curves.fewer(prepared, 12)
    unseen = np.flatnonzero(small.train_counts == 0)
    assert unseen.size and small.train_labels.shape[0] == 12
    assert not small.teacher().scores[unseen].nnz, "a label without a document in the subset is taught nothing"
    linear = small.linear(QUICK.linear, progress=False)
    assert set(np.flatnonzero(linear.part)) == set(small.rows["train"])
    whole = prepared.linear(QUICK.linear, progress=False)
    assert not np.array_equal(linear.tables[0].intercept, whole.tables[0].intercept), "the tables of the whole are not read"


def test_a_curve_is_made_once_and_stays_out_of_the_main_tables(prepared, tmp_path, monkeypatch):
    options = {"sizes": [12, 60], "starts": ("random", "lookup+linear"), "seeds": (0,), "config": QUICK, "progress": False}
    made = learning_curves.run(prepared, tmp_path, **options)
    assert len(made) == 2 * (2 + 2) and len(load_all(tmp_path)) == 8 and not report.groups(made)
    monkeypatch.setattr(runs, "run_start", None)
    monkeypatch.setattr(learning_curves.peer_runs, "run_peers", None)
    again = learning_curves.run(prepared, tmp_path, **options)
    assert [(r.id, r.metrics) for r in again] == [(r.id, r.metrics) for r in made]
    table = learning_curves.frame(again)
    assert set(table["system"]) == {"random", "lookup+linear", "SVM", "SVM + J"} and set(table["documents"]) == {12, 60}
    svm = table[table["system"] == "SVM"].set_index("documents")["ndcg@5"]
    assert svm[60] > svm[12]
    ax = plots_claims.data_efficiency(table)
    assert ax.get_xscale() == "log" and [t.get_text() for t in ax.get_xticklabels()] == ["12", "60"]
    assert "`lookup+linear`" in learning_curves.sentence(table)


def test_two_ways_of_reading_are_not_averaged(prepared, tmp_path):
    options = {"sizes": [12], "starts": ("random",), "seeds": (0,), "config": QUICK, "progress": False}
    made = learning_curves.run(prepared, tmp_path, **options)
    longer = [replace(r, params=r.params | {"max_tokens": 999}) for r in made if r.kind == "planted"]
    table = learning_curves.frame([*made, *longer])
    assert len(set(table["data"])) == 2 and all(len(part) == 3 for _, part in table.groupby("data")), "peers stand in both"
    assert any("999 tokens" in data for data in table["data"])


def test_more_than_the_baseline_was_given_is_said_of_the_baseline():
    rows = [("random", 25, 0.1), ("random", 100, 0.2), ("lookup", 25, 0.3), ("lookup", 400, 0.5)]
    table = pd.DataFrame([{"data": "x", "system": s, "seed": 0, "documents": n, "ndcg@5": v} for s, n, v in rows])
    assert "25: more than 100, 400: more than 100" in learning_curves.sentence(table)


def test_documents_needed_by_hand():
    rows = [("random", 10, 0.2), ("random", 100, 0.4), ("lookup", 10, 0.3), ("lookup", 100, 0.5), ("SVM", 10, 0.1)]
    table = pd.DataFrame([{"data": "x", "system": s, "seed": 0, "documents": n, "ndcg@5": v} for s, n, v in rows])
    found = learning_curves.needed(table).set_index(["system", "documents"])["baseline needs"]
    assert found["lookup", 10] == pytest.approx(10**1.5) and found["SVM", 10] == pytest.approx(10)
    assert np.isinf(found["lookup", 100])
    said = learning_curves.sentence(table)
    assert "x, `lookup`: 10: 32, 100: more than 100" in said
    assert "No learning curves yet" in learning_curves.sentence(learning_curves.frame([]))
