"""Support vector machines on a label's own documents and those that could be taken for them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from sklearn.svm import LinearSVC

from plantlib.linear import confusable
from plantlib.linear.tables import Table


@pytest.fixture
def problem():
    """Weights (n, V) and labels (n, L): two words per label; the last two are constant."""
    rng = np.random.default_rng(0)
    count, labels = 400, 20
    y = rng.random((count, labels)) < 0.08
    y[:, -2], y[:, -1] = False, True
    x = np.zeros((count, 2 * labels + 30))
    for word in range(2):
        x[:, word * labels : (word + 1) * labels] = y * rng.random((count, labels))
    x[:, 2 * labels :] = rng.random((count, 30)) * (rng.random((count, 30)) < 0.3)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return sparse.csr_matrix(x, dtype=np.float32), sparse.csr_matrix(y, dtype=np.float32)


def ranking_of(weights, labels) -> Table:
    """Centroids, a cheap ranking."""
    cells = sparse.csr_matrix((labels.T @ weights) / 20, dtype=np.float32)
    return Table(cells, np.zeros(labels.shape[1], np.float32))


def test_confusable_documents_are_those_among_whose_best_labels_a_label_is(problem):
    weights, labels = problem
    ranking = ranking_of(weights, labels)
    ranking = Table(ranking.cells, np.linspace(0, 0.01, labels.shape[1], dtype=np.float32))
    shares_a_word = (weights @ ranking.cells.T).toarray() > 0
    scores = np.where(shares_a_word, ranking.scores(weights), -np.inf)
    bar = np.sort(scores, 1)[:, -3]
    found = confusable.confusable(ranking, weights, 3).toarray()
    assert (found.sum(1) == 3).all()
    assert (scores[found] >= np.repeat(bar, 3)).all()
    every = confusable.confusable(ranking, weights, 99).toarray()
    assert np.array_equal(every, shares_a_word) and not every.all()


def test_with_all_documents_confusable_it_is_one_against_the_rest(problem, monkeypatch):
    weights, labels = problem
    monkeypatch.setattr(confusable, "PRUNE", 0.0)
    monkeypatch.setattr(confusable, "TOLERANCE", 1e-6)
    monkeypatch.setattr(confusable, "DRAWN", 10**6)
    table = confusable.fit(weights, labels, ranking_of(weights, labels))
    for label in (0, 7, 17):
        positive = labels[:, [label]].toarray().ravel() > 0
        model = LinearSVC(C=confusable.COST, tol=1e-6, max_iter=100_000).fit(weights, positive)
        expected = model.decision_function(weights)
        assert np.abs(table.scores(weights)[:, label] - expected).max() < 1e-3
    assert (table.scores(weights)[:, -2] == -1).all() and (table.scores(weights)[:, -1] == 1).all()


def test_few_documents_rank_as_all_do(problem, monkeypatch):
    weights, labels = problem
    train, test = slice(0, 300), slice(300, None)
    ranking = ranking_of(weights[train], labels[train])

    def hits(width: int, drawn: int) -> tuple[float, int]:
        monkeypatch.setattr(confusable, "WIDTH", width)
        monkeypatch.setattr(confusable, "DRAWN", drawn)
        read = []
        machines = confusable._machines
        monkeypatch.setattr(
            confusable, "_machines", lambda x, *a: read.append(x.shape[0]) or machines(x, *a)
        )
        found = confusable.confusable(ranking, weights[train], width)
        monkeypatch.setattr(confusable, "confusable", lambda *a: found)
        scores = confusable.fit(weights[train], labels[train], ranking).scores(weights[test])
        monkeypatch.undo()
        best = np.argsort(-scores[:, :-2], 1)[:, :1]
        gold = labels[test].toarray()
        some = gold[:, :-2].any(1)
        return float(np.take_along_axis(gold, best, 1)[some].mean()), sum(read)

    (all_right, all_read), (right, read) = hits(20, 300), hits(4, 30)
    assert all_right > 0.9 and right > all_right - 0.05
    assert read < all_read / 2


def test_one_seed_gives_one_table(problem):
    weights, labels = problem
    ranking = ranking_of(weights, labels)
    first, second = (confusable.fit(weights, labels, ranking, seed=3) for _ in range(2))
    assert (first.cells != second.cells).nnz == 0
    assert np.array_equal(first.intercept, second.intercept)
