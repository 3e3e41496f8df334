"""Ridge regression of all labels at once: scikit-learn's numbers label by label, by documents and
by words, and what bounds its size.
"""

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import Ridge

from plantlib.linear import ridge

PENALTIES = {0.2: 0.0, 1.5: 0.0}


def problem(count: int, vocabulary: int, labels: int = 5):
    """(count, vocabulary) rows of length one and (count, labels) labels."""
    rng = np.random.default_rng(0)
    x = sparse.random(count, vocabulary, 0.3, "csr", random_state=0)
    x = sparse.diags(1 / np.maximum(sparse.linalg.norm(x, axis=1), 1e-12)) @ x
    return x.tocsr(), sparse.csr_matrix(rng.random((count, labels)) < 0.3, dtype=np.int32)


@pytest.mark.parametrize("count, vocabulary", [(40, 90), (90, 40)], ids=["documents", "words"])
def test_weights_are_those_of_one_label_after_the_other(count, vocabulary, monkeypatch):
    monkeypatch.setattr(ridge, "BLOCK", 3)  # neither labels nor words fill their last block
    x, y = problem(count, vocabulary)
    for penalty, table in zip(PENALTIES, ridge.fit(x, y, PENALTIES), strict=True):
        wanted = Ridge(alpha=penalty, solver="cholesky").fit(x.toarray(), y.toarray())
        np.testing.assert_allclose(table.cells.toarray(), wanted.coef_, atol=1e-6)
        np.testing.assert_allclose(table.intercept, wanted.intercept_, atol=1e-6)


def test_single_precision_stays_close(monkeypatch):
    x, y = problem(90, 40)
    (exact,) = ridge.fit(x, y, {0.2: 0.0})
    monkeypatch.setattr(ridge, "EXACT", 1)
    (rough,) = ridge.fit(x, y, {0.2: 0.0})
    assert (exact.cells != rough.cells).nnz, "the other type is used"
    np.testing.assert_allclose(rough.cells.toarray(), exact.cells.toarray(), atol=1e-4)


def test_only_the_most_frequent_words_are_read_where_the_matrix_would_be_too_large(monkeypatch):
    x, y = problem(90, 60)
    monkeypatch.setattr(ridge, "SIZE", 12)
    (table,) = ridge.fit(x, y, {0.2: 0.0})
    frequent = np.argsort(-np.bincount(x.indices, minlength=60), kind="stable")[:12]
    assert set(table.cells.indices) == set(frequent)
    wanted = Ridge(alpha=0.2).fit(x[:, frequent].toarray(), y.toarray())
    np.testing.assert_allclose(table.cells[:, frequent].toarray(), wanted.coef_, atol=1e-6)


def test_many_labels_make_the_matrix_smaller():
    assert ridge.size_for(10) == ridge.SIZE
    few, many = 10**5, 10**6
    assert ridge.size_for(few) ** 2 * few <= ridge.WORK
    assert ridge.size_for(many) < ridge.size_for(few) < ridge.SIZE


def test_pruned_weights_are_made_up_for_by_the_intercept():
    x, y = problem(90, 40)
    (table,) = ridge.fit(x, y, {0.2: 0.1})
    assert np.abs(table.cells.data).min() > 0.1
    np.testing.assert_allclose(table.scores(x).mean(0), np.asarray(y.mean(0)).ravel(), atol=1e-6)


def test_a_label_on_no_row_and_one_on_every_row_score_a_constant():
    x, y = problem(70, 9)
    labels = y.toarray()
    labels[:, 1], labels[:, 2] = 0, 1
    (table,) = ridge.fit(x, sparse.csr_matrix(labels), {0.2: 0.03})
    np.testing.assert_allclose(table.intercept[1:3], np.array([0.0, 1.0]), atol=1e-6)
    assert not table.cells[1:3].nnz and table.cells[0].nnz
