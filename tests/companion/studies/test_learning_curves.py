"""Learning curves on the tiny corpus: nested subsets of one label space, everything taught by the
subset alone.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from companion.report import plots_claims, report
from companion.studies import learning_curves
from plantlib import RunConfig, prepare
from plantlib.linear.score import LinearConfig
from plantlib.training import artefacts, runs
from plantlib.training.ingredients import teacher_of
from plantlib.training.options import TrainConfig
from plantlib.training.records import load_all
from plantlib.utils.base import DataError

QUICK = RunConfig(train=TrainConfig(epochs=1, batch_size=16), linear=LinearConfig(folds=2))


def test_subsets_are_nested_and_share_everything_else(prepared):
    small, large = (learning_curves.fewer(prepared, n, seed=1) for n in (12, 40))
    assert set(small.rows["train"]) < set(large.rows["train"]) < set(prepared.rows["train"])
    assert all(np.array_equal(small.rows[s], prepared.rows[s]) for s in ("dev", "test"))
    assert small.corpus is prepared.corpus and small.features is prepared.features
    assert (
        len({small.key, large.key, prepared.key, learning_curves.fewer(prepared, 12, seed=2).key})
        == 4
    )
    assert small.about()["train"] == 12 and small.about()["labels"] == prepared.corpus.L
    assert np.array_equal(learning_curves.fewer(prepared, 60).rows["train"], prepared.rows["train"])
    with pytest.raises(DataError, match="between 1 and 60"):
        learning_curves.fewer(prepared, 61)


def test_teacher_and_linear_score_come_from_the_subset_alone(prepared):
    small = learning_curves.fewer(prepared, 12)
    unseen = np.flatnonzero(small.train_counts == 0)
    assert unseen.size and small.train_labels.shape[0] == 12
    assert not teacher_of(small).scores[unseen].nnz, (
        "no teacher for a label without a document in the subset"
    )
    linear = artefacts.linear_scores(small, QUICK.linear, progress=False)
    assert set(np.flatnonzero(linear.part)) == set(small.rows["train"])
    whole = artefacts.linear_scores(prepared, QUICK.linear, progress=False)
    assert not np.array_equal(linear.tables[0].intercept, whole.tables[0].intercept), (
        "the tables of the whole corpus are not used"
    )


def test_a_curve_is_made_once_and_stays_out_of_the_main_tables(prepared, tmp_path, monkeypatch):
    options = {
        "sizes": [12, 60],
        "starts": ("random", "lookup+linear"),
        "seeds": (0,),
        "config": QUICK,
        "progress": False,
    }
    records = learning_curves.run(prepared, tmp_path, **options)
    assert (
        len(records) == 2 * (2 + 2 + 1)
        and len(load_all(tmp_path)) == 10
        and not report.groups(records)
    )
    monkeypatch.setattr(runs, "run_start", None)
    monkeypatch.setattr(learning_curves.peer_runs, "run_peers", None)
    monkeypatch.setattr(learning_curves.peer_runs, "run_linear_score", None)
    again = learning_curves.run(prepared, tmp_path, **options)
    assert [(r.id, r.metrics) for r in again] == [(r.id, r.metrics) for r in records]
    table = learning_curves.frame(again)
    assert set(table["system"]) == {"random", "lookup+linear", "linear score", "SVM", "SVM + J"}
    assert set(table["documents"]) == {12, 60}
    svm = table[table["system"] == "SVM"].set_index("documents")["ndcg@5"]
    assert svm[60] > svm[12]
    ax = plots_claims.data_efficiency(table)
    assert ax.get_xscale() == "log" and [t.get_text() for t in ax.get_xticklabels()] == ["12", "60"]
    assert "`lookup+linear`" in learning_curves.sentence(table)


def test_two_ways_of_reading_are_not_averaged(prepared, tmp_path):
    options = {
        "sizes": [12],
        "starts": ("random",),
        "seeds": (0,),
        "config": QUICK,
        "progress": False,
    }
    records = learning_curves.run(prepared, tmp_path, **options)
    longer = [
        replace(r, params=r.params | {"max_tokens": 999}) for r in records if r.kind == "planted"
    ]
    table = learning_curves.frame([*records, *longer])
    assert len(set(table["data"])) == 2 and all(
        len(part) == 3 for _, part in table.groupby("data")
    ), "peers stand in both"
    assert any("999 tokens" in data for data in table["data"])


@pytest.fixture(scope="module")
def capped(prepared, corpus):
    """The tiny corpus under another cap: one label fewer, the same test documents."""
    options = {
        "backbone": prepared.backbone,
        "max_tokens": None,
        "root": prepared.root,
        "progress": False,
    }
    return prepare(corpus, train_documents=40, **options)


def test_curves_under_two_caps_have_different_files(prepared, capped, tmp_path):
    options = {
        "sizes": [12],
        "starts": ("random",),
        "seeds": (0,),
        "config": QUICK,
        "progress": False,
    }
    assert (
        capped.corpus.fingerprint() != prepared.corpus.fingerprint()
        and capped.corpus.L < prepared.corpus.L
    )
    records = learning_curves.run(prepared, tmp_path, **options)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(before) == sorted(f"{r.id}.json" for r in records) and len(records) == 3
    other = learning_curves.run(capped, tmp_path, **options)
    mark = capped.corpus.fingerprint()[:6]
    assert {r.id for r in other} == {r.id.replace("-curve", f"-{mark}-curve") for r in records}
    assert all((tmp_path / name).read_bytes() == was for name, was in before.items()), (
        "nothing is overwritten"
    )
    # both are read again; a run with other options replaces its record
    for part, expected in ((prepared, records), (capped, other)):
        again = learning_curves.run(part, tmp_path, **options)
        assert [r.id for r in again] == [r.id for r in expected]
    changed = options | {"config": replace(QUICK, train=TrainConfig(epochs=2, batch_size=16))}
    again = learning_curves.run(prepared, tmp_path, **changed)
    assert [r.id for r in again] == [r.id for r in records]
    assert len(load_all(tmp_path)) == 6


def test_curves_over_several_label_spaces_are_not_averaged(prepared, tmp_path):
    options = {
        "sizes": [12],
        "starts": ("random",),
        "seeds": (0,),
        "config": QUICK,
        "progress": False,
    }
    records = learning_curves.run(prepared, tmp_path, **options)
    assert set(learning_curves.frame(records)["data"]) == {"tiny"}, (
        "one label space needs no number"
    )
    wider = [
        replace(r, dataset=r.dataset | {"fingerprint": "fedcba98", "labels": 1234}) for r in records
    ]
    table = learning_curves.frame([*records, *wider])
    assert set(table["data"]) == {"tiny, 7 labels", "tiny, 1,234 labels"}
    assert all(len(part) == 3 for _, part in table.groupby("data"))
    # other test documents, as many labels
    tested = [replace(r, dataset=r.dataset | {"fingerprint": "0123456789"}) for r in records]
    mark = prepared.corpus.fingerprint()[:6]
    names = {"tiny, 1,234 labels", f"tiny, 7 labels ({mark})", "tiny, 7 labels (012345)"}
    assert set(learning_curves.frame([*records, *wider, *tested])["data"]) == names
    longer = [
        replace(r, params=r.params | {"max_tokens": 999}) for r in records if r.kind == "planted"
    ]
    table = learning_curves.frame([*records, *longer, *wider])
    assert len(set(table["data"])) == 3 and "tiny, 7 labels, 999 tokens, tiny-bert" in set(
        table["data"]
    )
    assert (table["data"] == "tiny, 1,234 labels").sum() == 3, "only one way of reading"


def test_the_control_for_planting_is_a_start_of_every_curve():
    assert {"random", "linear", "lookup+linear"} <= set(learning_curves.STARTS)
    assert learning_curves.STARTS[0] == learning_curves.BASELINE


def test_the_sentence_says_where_the_baseline_never_gets_there():
    rows = [("random", 25, 0.1), ("random", 100, 0.2), ("lookup", 25, 0.3), ("lookup", 400, 0.5)]
    table = pd.DataFrame(
        [{"data": "x", "system": s, "seed": 0, "documents": n, "ndcg@5": v} for s, n, v in rows]
    )
    assert "25: more than 100, 400: more than 100" in learning_curves.sentence(table)


def test_documents_needed_by_hand():
    rows = [
        ("random", 10, 0.2),
        ("random", 100, 0.4),
        ("lookup", 10, 0.3),
        ("lookup", 100, 0.5),
        ("SVM", 10, 0.1),
    ]
    table = pd.DataFrame(
        [{"data": "x", "system": s, "seed": 0, "documents": n, "ndcg@5": v} for s, n, v in rows]
    )
    needed = learning_curves.needed(table).set_index(["system", "documents"])["baseline needs"]
    assert needed["lookup", 10] == pytest.approx(10**1.5) and needed["SVM", 10] == pytest.approx(10)
    assert np.isinf(needed["lookup", 100])
    sentence = learning_curves.sentence(table)
    assert "x, `lookup`: 10: 32, 100: more than 100" in sentence
    assert "No learning curves yet" in learning_curves.sentence(learning_curves.frame([]))
