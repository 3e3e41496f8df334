"""Timings of fits: stages add up, rows of peers beside them, the front and its figure."""

from __future__ import annotations

import csv

import pytest

from benchmarks import bench_fit
from benchmarks.common import append
from companion.report import cost_plots
from plantlib import prepare
from tests.conftest import tiny_corpus


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    inputs = prepare(tiny_corpus(), backbone="words", root=root, progress=False)
    ours = bench_fit.ours(inputs, "words", root / "words", root / "models")
    assert (root / "models" / f"{inputs.corpus.name}-words" / "run.json").is_file()
    peer = bench_fit.peer(inputs, "SVM, tuned")
    return bench_fit.beside_svm([ours, bench_fit.linear(inputs), peer])


def test_stages_add_up_and_every_row_has_quality(rows):
    quick = rows[0]
    parts = [quick[part] for part in bench_fit.PARTS]
    # each is rounded to a hundredth of a second
    assert sum(parts) == pytest.approx(quick["cpu_seconds"], abs=0.031)
    assert quick["train_s"] > 0
    for row in rows:
        assert 0 < row["ndcg@5"] <= 1 and row["predict_ms"] > 0
    assert [row["system"] for row in rows] == ["quick tier", "linear score", "SVM, tuned"]


def test_a_tuned_peer_pays_for_all_it_tried(rows):
    svm = rows[-1]
    assert svm["times_svm"] == 1
    assert rows[0]["times_svm"] == pytest.approx(
        rows[0]["cpu_seconds"] / svm["cpu_seconds"], abs=0.01
    )


def test_the_table_and_the_figure_show_the_front(rows, tmp_path):
    folder = tmp_path / "bench"
    folder.mkdir()
    made = [
        row | {"system": name, "cpu_seconds": seconds, "ndcg@5": quality}
        for row, name, seconds, quality in zip(
            rows, ("best", "cheap", "worse"), (9.0, 1.0, 5.0), (0.9, 0.5, 0.4), strict=True
        )
    ]
    append([made[0] | {"ndcg@5": 0.1}, *made], folder / "fit.csv", bench_fit.COLUMNS)
    assert list(csv.DictReader((folder / "fit.csv").open()))[0]["ndcg@5"] == "0.1"
    ((_, systems),) = cost_plots.newest(tmp_path).items()
    assert [row["system"] for row in systems] == ["cheap", "worse", "best"]
    assert [row["system"] for row in cost_plots.front(systems)] == ["cheap", "best"]
    text = cost_plots.table(tmp_path)
    assert "cheap \\*" in text and "| worse |" in text and "90.0" in text
    axes = cost_plots.quality_against_cost(systems)
    assert axes.get_xscale() == "log" and len(axes.get_legend().get_texts()) == 3
    (path,) = cost_plots.draw(tmp_path)
    assert path.is_file()


def test_without_timings_the_page_says_so(tmp_path):
    assert cost_plots.table(tmp_path) == cost_plots.NONE
