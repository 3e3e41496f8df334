"""The AUC is streamed, and left out with a warning where its histograms would be too large."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import roc_auc_score

from plantlib.candidates.lists import best_of
from plantlib.metrics import documents
from plantlib.metrics.documents import StreamingEvaluator, evaluate


def streamed(Y, scores, **options):
    evaluator = StreamingEvaluator(Y, np.ones(Y.shape[1], int), k=5, **options)
    for begin in range(0, len(scores), 7):
        rows = np.arange(begin, min(begin + 7, len(scores)))
        evaluator.update(rows, scores[rows])
    return evaluate(evaluator.result(), Y, np.ones(Y.shape[1], int), 100)


def test_auc_of_more_labels_than_a_block_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    Y = (rng.random((40, 600)) < 0.05).astype(np.int32)
    scores = rng.integers(0, 50, (40, 600)).astype(np.float32)
    got = streamed(sparse.csr_matrix(Y), scores)
    both = (Y.sum(0) > 0) & (Y.sum(0) < 40)
    assert got["micro_auc"] == pytest.approx(roc_auc_score(Y.ravel(), scores.ravel()))
    wanted = np.mean([roc_auc_score(Y[:, j], scores[:, j]) for j in np.flatnonzero(both)])
    assert got["macro_auc"] == pytest.approx(wanted)


def test_auc_of_too_many_labels_is_left_out_with_a_warning(monkeypatch):
    monkeypatch.setattr(documents, "AUC_LABELS", 9)
    Y = sparse.csr_matrix(np.eye(10, dtype=np.int32))
    with pytest.warns(UserWarning, match="AUC is left out: its histograms of 10 labels"):
        got = streamed(Y, np.eye(10, dtype=np.float32))
    assert "micro_auc" not in got and got["p@1"] == 1
    assert "micro_auc" in streamed(Y[:, :9], np.eye(10, dtype=np.float32)[:, :9])


def test_memory_of_the_auc_does_not_grow_with_the_documents():
    labels, bins = 400, 256
    peaks = []
    for n in (200, 4000):
        Y = sparse.random(n, labels, 0.01, "csr", random_state=0)
        Y.data[:] = 1
        evaluator = StreamingEvaluator(Y, np.ones(labels, int), k=5, auc_bins=bins)
        tracemalloc.start()
        for begin in range(0, n, 50):
            block = np.random.default_rng(begin).random((50, labels), np.float32)
            evaluator.update(np.arange(begin, begin + 50), block)
        evaluator.result()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    per_document = (peaks[1] - peaks[0]) / 3800
    assert per_document < labels * 4 / 2, f"{per_document:.0f} bytes per document"


def test_equal_candidates_are_ranked_by_id():
    scores = np.zeros((2, 50), np.float32)
    scores[1, [40, 7, 30]] = 1
    ids = best_of(scores, 5)
    assert ids.dtype == np.int32
    assert ids.tolist() == [[0, 1, 2, 3, 4], [7, 30, 40, 0, 1]]
    assert best_of(np.array([[-0.0, 0.0, -np.inf]]), 3).tolist() == [[0, 1, 2]]
