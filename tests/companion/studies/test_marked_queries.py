"""Queries of marked words: their relevance, what they learn, the report and the command, on the
tiny corpus with its theme words marked.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from companion.studies import evidence, marked_queries
from plantlib import prepare
from plantlib.planting import l2r
from plantlib.teacher.mig import TeacherConfig
from plantlib.teacher.phrase_cells import OwnCells
from plantlib.training.ingredients import teacher_of
from plantlib.utils.base import DataError
from tests.companion.studies.test_evidence import marked_corpus
from tests.conftest import tiny_corpus


@pytest.fixture(scope="module")
def prepared(backbone_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("marked")
    return prepare(
        marked_corpus(), backbone=backbone_folder, max_tokens=None, root=root, progress=False
    )


def test_cells_are_the_marked_tokens_of_training_documents_alone(prepared):
    cells = marked_queries.cells(prepared)
    assert len(cells.indptr) == len(prepared.tokens) + 1 and (cells.values == 1).all()
    held = set(np.flatnonzero(np.diff(cells.indptr)).tolist())
    assert held and held <= set(prepared.rows["train"].tolist())
    for row, columns, marks in evidence.marked(prepared, prepared.rows["train"]):
        own = slice(*cells.indptr[row : row + 2])
        pairs = set(zip(cells.labels[own].tolist(), cells.tokens[own].tolist(), strict=True))
        of, token = np.nonzero(marks)
        assert pairs == set(zip(columns[of].tolist(), token.tolist(), strict=True))


def test_the_closed_form_is_the_ridge_regression_of_the_marks(prepared):
    train, cells = prepared.rows["train"], marked_queries.cells(prepared)
    teacher = teacher_of(prepared, TeacherConfig())
    target = np.zeros((len(prepared.tokens.select(train).flat), teacher.num_labels))
    begin = 0
    for row in train:
        own = slice(*cells.indptr[row : row + 2])
        target[begin + cells.tokens[own], cells.labels[own]] = 1
        begin += len(prepared.tokens[row])
    silent = replace(teacher, relevance=0 * teacher.relevance)
    found = l2r.closed_form(
        prepared.features, train, silent, withheld=OwnCells(cells, train, None), progress=False
    )
    states = prepared.features.documents(train).astype(np.float64)
    states -= states.mean(0)
    gram = states.T @ states
    ridge = l2r.RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    wanted = np.linalg.solve(gram + ridge, states.T @ target).T
    assert np.allclose(found, wanted, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("trainer", marked_queries.TRAINERS)
def test_queries_find_the_marked_words_of_other_documents(prepared, trainer):
    cells, teacher = marked_queries.cells(prepared), teacher_of(prepared, TeacherConfig())
    found = marked_queries.queries(prepared, cells, teacher, trainer, progress=False)
    untrained = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
    frame = marked_queries.compare(prepared, {"learnt": found, "untrained": untrained}, teacher)
    means = marked_queries.summary(frame).xs("all", level="bucket")
    assert means.loc["learnt", "auc"] > means.loc["untrained", "auc"] + 0.1
    assert set(frame["document"]) <= set(prepared.rows["dev"].tolist())


def test_a_label_without_marks_gets_no_query(prepared):
    cells, teacher = marked_queries.cells(prepared), teacher_of(prepared, TeacherConfig())
    kept = cells.labels != 0
    counts = np.zeros(len(prepared.tokens), np.int64)
    row = np.repeat(np.arange(len(counts)), np.diff(cells.indptr))
    np.add.at(counts, row[kept], 1)
    fewer = replace(
        cells,
        indptr=np.concatenate([[0], np.cumsum(counts)]),
        tokens=cells.tokens[kept],
        labels=cells.labels[kept],
        values=cells.values[kept],
    )
    for trainer in marked_queries.TRAINERS:
        found = marked_queries.queries(prepared, fewer, teacher, trainer, progress=False)
        assert not found[0].any() and found[1].any()


def test_report_and_command(prepared, backbone_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(marked_queries, "prepare", lambda *given, **options: prepared)
    out = tmp_path / "marked.json"
    command = ["any", "--seeds", "2", "--split", "dev", "--out", str(out)]
    assert marked_queries.main(command) == 0
    found = json.loads(out.read_text())
    assert found["seeds"] == [0, 1] and found["split"] == "dev"
    assert set(found["difference"]) == set(marked_queries.TRAINERS)
    assert "closed_form of marked words" in capsys.readouterr().out
    without = replace(prepared, corpus=tiny_corpus())
    monkeypatch.setattr(marked_queries, "prepare", lambda *given, **options: without)
    assert marked_queries.main(command) == 1 and "marks no evidence" in capsys.readouterr().err
    with pytest.raises(DataError, match="marks no evidence"):
        marked_queries.cells(without)
