"""The columns of results/peers.csv from small records, and when the plain rows are made."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pandas as pd
import pytest

from companion.peers import runs as peer_runs
from companion.peers import table as peer_table
from companion.report import plots_claims
from plantlib.training.records import RunRecord

ENVIRONMENT = {
    "python": "3",
    "torch": "2",
    "transformers": "5",
    "cpu": "cpu",
    "cores": 2,
    "commit": "c",
    "dirty": False,
}
DATASET = {
    "name": "toy",
    "fingerprint": "f",
    "train": 100,
    "dev": 10,
    "test": 4,
    "labels": 7,
    "label_space": "seen",
    "synthetic": True,
}
MEASURED = {"train": 101.0, "train_cpu": 9.0, "predict": 0.5, "predict_cpu": 0.08}


def record(system: str, kind: str = "linear", **other) -> RunRecord:
    fields = {
        "id": f"toy-{system}".replace(" ", "_"),
        "seed": 0,
        "metrics": {"p@1": 0.5},
        "environment": ENVIRONMENT,
        "dataset": DATASET,
        "notebook": "05_finetune",
        "peak_memory_mb": 1300.0,
    } | other
    return RunRecord(kind=kind, system=system, **fields)


def planted(system: str, times: dict, **other) -> RunRecord:
    return record(
        system,
        "planted",
        backbone="minilm",
        times=times,
        model_size={"trained_parameters": 2**18} | other,
    )


def test_training_from_the_linear_score_counts_making_it():
    times = {"teacher": 1.0, "l2r": 0.5, "linear": 60.0, "fine_tune": 40.0, "evaluate": 7.0}
    assert peer_table.row_of([planted("lookup+linear", times)])["train_s"] == 101.5
    assert (
        peer_table.row_of([planted("linear", {"teacher": 130.0, "fine_tune": 900.0})])["train_s"]
        == 1030.0
    )


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ({"trained_parameters": 2**18}, 1.0),
        ({"trained_parameters": 2**18, "parameters": 2**20, "word_cells": 2**18}, 3.0),
        ({"word_cells": 2**18}, 2.0),
        ({"model_mb": 5.5, "trained_parameters": 2**18}, 5.5),
        ({"data_mb": 50.0}, None),
        (2.0, None),
        (None, None),
    ],
)
def test_a_linear_scores_table_is_counted_where_a_record_says_its_cells(sizes, wanted):
    assert peer_table.row_of([record("any", model_size=sizes)])["model_mb"] == wanted


def test_metrics_and_costs_of_a_seed_are_of_one_record():
    wall = record("SVM", times={"train": 4.8}, metrics={"p@1": 0.25})
    inside = record("SVM", times=MEASURED | {"train_cpu": 5.0}, metrics={"p@1": 0.75}, id="inside")
    alone = record(
        "SVM", times=MEASURED, params={"library": "scikit-learn"}, peak_memory_mb=275.0, id="alone"
    )
    for records, wanted in (
        ([wall, inside, alone], (50.0, 101.0, 9.0, 275.0, "alone")),
        ([alone, wall], (50.0, 101.0, 9.0, 275.0, "alone")),
        ([inside, wall], (75.0, 101.0, 5.0, None, "inside")),
        ([wall], (25.0, 4.8, None, None, "toy-SVM")),
    ):
        row = peer_table.row_of(records)
        assert (
            tuple(row[c] for c in ("p@1", "train_s", "train_cpu_s", "peak_memory_mb", "run"))
            == wanted
        )
    assert peer_table.row_of([alone])["predict_ms"] == 20.0, "0.08 s for 4 documents"


def test_memory_is_shown_only_for_separate_processes():
    alone = record("Bonsai", params={"library": "omikuji"}, peak_memory_mb=80.6)
    head = record("CAML head", "neural", notebook="peers", times=MEASURED)
    rows = [
        peer_table.row_of([r])
        for r in (alone, head, planted("random", {}), record("bare J", "teacher"))
    ]
    assert [row["peak_memory_mb"] for row in rows] == [81.0, None, None, None]


def made_where(folder, records, monkeypatch) -> bool:
    """Whether `plain_rows` makes the rows of DATASET's corpus beside these records."""
    corpus = SimpleNamespace(fingerprint=lambda: "f", L=7)
    prepared = SimpleNamespace(corpus=corpus, rows={"train": range(100)})
    folders = []
    monkeypatch.setattr(peer_runs, "run_peers", lambda *a, **k: folders.append(k["results"]))
    for one in records:
        one.save(folder)
    peer_table.plain_rows(prepared, folder)
    assert folders in ([], [folder])
    return bool(folders)


def test_plain_rows_are_made_unless_the_table_shows_them(tmp_path, monkeypatch):
    main = record("SVM + J")
    curve = replace(main, id="toy-all-curve", notebook="learning_curves")
    fewer = replace(main, id="toy-25", dataset=DATASET | {"train": 25})
    other = replace(main, id="toy-g", dataset=DATASET | {"fingerprint": "g"})
    assert made_where(tmp_path / "absent", [], monkeypatch)
    for wrong in (curve, fewer, other):
        assert made_where(tmp_path / wrong.id, [wrong], monkeypatch), wrong.id
    assert not made_where(tmp_path / "main", [curve, fewer, main], monkeypatch)


def test_every_column_of_a_row_is_described():
    row = peer_table.row_of([planted("random", {})])
    assert set(row) <= set(peer_table.COLUMNS) and all(peer_table.COLUMNS.values())


def test_names_in_the_figure_of_costs_keep_apart_and_within_sight():
    values = pd.Series([0.0, 70.0, 90.0, 99.0, 99.5, 99.6, 99.7, 100.0])
    heights = plots_claims._apart(values, share=0.035)
    assert min(b - a for a, b in pairwise(heights)) >= 3.5 - 1e-9 and heights[-1] <= 107.0
    assert heights[:2] == [0.0, 70.0], "what has room stays at its value"
