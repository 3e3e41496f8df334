"""Costs of the peers without attention: seconds by a clock that only work moves, and sizes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from companion.peers import bare as peers
from companion.peers import runs as peer_runs
from companion.peers import table as peer_table
from plantlib.linear.score import LinearConfig
from plantlib.teacher import mig
from plantlib.training import artefacts

CONFIG = LinearConfig(folds=2)


class Clock:
    """Wall seconds that only work moves; CPU seconds are half of them."""

    def __init__(self, monkeypatch):
        self.wall = 0.0
        self.patch = monkeypatch.setattr
        self.patch(
            peer_runs,
            "time",
            SimpleNamespace(perf_counter=lambda: self.wall, process_time=lambda: self.wall / 2),
        )

    def takes(self, seconds: float, work):
        """`work`, which takes `seconds` more."""

        def slow(*arguments, **options):
            self.wall += seconds
            return work(*arguments, **options)

        return slow

    def slow_down(self, module, name: str, seconds: float) -> None:
        self.patch(module, name, self.takes(seconds, getattr(module, name)))


def test_each_record_has_the_seconds_of_its_parts(prepared, monkeypatch):
    clock = Clock(monkeypatch)
    svm = peers.linear_svm
    for module, name, seconds in (
        (peer_runs, "words", 1),
        (peer_runs, "tfidf", 2),
        (mig, "teach", 4),
        (peer_runs, "ppmi", 8),
        (peer_runs, "centroids", 16),
    ):
        clock.slow_down(module, name, seconds)
    # 64 to make, half a second to score a batch of documents
    monkeypatch.setattr(
        peers, "linear_svm", clock.takes(64, lambda *a, **k: clock.takes(0.5, svm(*a, **k)))
    )
    times_of = {r.system: r.times for r in peer_runs.run_peers(prepared, progress=False)}
    seconds_of = {
        "bare J": 7,
        "bare MI": 7,
        "bare PPMI": 11,
        "bare centroid": 19,
        "SVM": 67,
        "SVM + J": 71,
        "SVM + MI": 71,
    }
    assert {name: times["train"] for name, times in times_of.items()} == seconds_of
    assert {name: times["train_cpu"] for name, times in times_of.items()} == {
        name: s / 2 for name, s in seconds_of.items()
    }
    assert len(prepared.rows["test"]) <= 256, "one batch"
    for name, times in times_of.items():
        assert (times["predict"], times["predict_cpu"]) == (
            (0.5, 0.25) if "SVM" in name else (0.0, 0.0)
        ), name


def test_rows_have_the_seconds_that_the_table_compares(prepared):
    for record in peer_runs.run_peers(prepared, progress=False):
        assert (
            set(record.times) == {"train", "train_cpu", "predict", "predict_cpu"}
            and record.times["train_cpu"] > 0
        )
        row = peer_table.row_of([record])
        assert (
            row["train_cpu_s"] is not None
            and row["predict_ms"] is not None
            and row["peak_memory_mb"] is None
        )


def test_the_linear_score_is_timed_when_all_of_it_was_made_now(prepared, tmp_path):
    fresh = replace(prepared, root=tmp_path)
    (record,) = peer_runs.run_linear_score(fresh, config=CONFIG, progress=False)
    assert (
        set(record.times) == {"train", "train_cpu", "predict", "predict_cpu"}
        and record.times["train"] > 0
    )
    cells = artefacts.linear_scores(fresh, CONFIG, progress=False).tables[0].cells.nnz
    assert record.model_size == {"word_cells": cells} and cells > 0
    assert peer_table.row_of([record])["model_mb"] == pytest.approx(8 * cells / 2**20, abs=0.01)
    (read,) = peer_runs.run_linear_score(fresh, config=CONFIG, progress=False)
    assert set(read.times) == {"predict", "predict_cpu"} and read.metrics == record.metrics
    next(tmp_path.rglob("part0.safetensors")).unlink()
    (partly,) = peer_runs.run_linear_score(fresh, config=CONFIG, progress=False)
    assert set(partly.times) == {"predict", "predict_cpu"}, "two of three parts were read"
