"""A support vector machine per label, trained on the documents that could be taken for the label's.

docs/method.md, "The linear score". Of a large problem nearly all documents say nothing about a
label: any model tells them from those of the label. A label's machine is therefore trained on its
own documents, on those among whose best labels it stands by a cheaper ranking, and on some that are
drawn, which tell it the level of the rest. The first are found as negatives in the way of XR-Linear
(Yu et al. 2022, "PECOS", section 4.2) without its tree. So the price grows with the entries of the
lists, and not with documents times labels.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy import sparse

from plantlib.linear.tables import Table

WIDTH = 64  # best labels of a document for which it is a confusable document
DRAWN = 500  # documents drawn for all labels
COST = 1.0  # of an error
PRUNE = 0.03  # weights up to this size are dropped
TOLERANCE = 0.1  # LIBLINEAR's own default for this solver
BLOCK = 256  # documents that are ranked at a time


def confusable(ranking: Table, weights: sparse.csr_matrix, width: int = WIDTH) -> sparse.csc_matrix:
    """(n, L) csc with an entry where a label is among the `width` best of a document, of those that
    share a word with it.

    ranking: scores the documents. weights: (n, V) csr, tf-idf.
    """
    best, lengths = [], []
    for begin in range(0, weights.shape[0], BLOCK):
        sums = (weights[begin : begin + BLOCK] @ ranking.by_word).tocsr()
        scores = sums.data + ranking.intercept[sums.indices]
        for first, last in pairwise(sums.indptr):
            found = sums.indices[first:last]
            if len(found) > width:
                found = found[np.argpartition(-scores[first:last], width - 1)[:width]]
            best.append(found)
            lengths.append(len(found))
    indptr = np.cumsum([0, *lengths])
    cells = (np.ones(indptr[-1], bool), np.concatenate(best), indptr)
    return sparse.csr_matrix(cells, (weights.shape[0], len(ranking.intercept))).tocsc()


def fit(
    weights: sparse.csr_matrix,
    labels: sparse.csr_matrix,
    ranking: Table,
    *,
    seed: int = 0,
    bar=None,
) -> Table:
    """The machines of all labels.

    Args:
        weights: (n, V) csr, tf-idf.
        labels: (n, L) csr.
        ranking: a cheaper model of the same labels, which says what is confusable.
        seed: of the documents that are drawn and of LIBLINEAR.
        bar: a progress bar that counts labels.

    Returns:
        (L, V) weights and (L,) intercepts; a label on no document scores -1, on every one 1.
    """
    from sklearn import config_context

    count, vocabulary = weights.shape
    weights = sparse.csr_matrix(weights, dtype=np.float64)
    own, near = labels.tocsc(), confusable(ranking, weights)
    drawn = np.random.default_rng(seed).choice(count, min(DRAWN, count), replace=False)
    words, values, intercepts = [], [], []
    # the checks of one small fit after the other would take as long as the fits
    with config_context(assume_finite=True, skip_parameter_validation=True):
        for label in range(labels.shape[1]):
            positive = _rows(own, label)
            rows = np.unique(np.concatenate([positive, _rows(near, label), drawn]))
            coef, intercept = _machine(weights[rows], np.isin(rows, positive), seed)
            kept = np.flatnonzero(np.abs(coef) > PRUNE)
            words.append(kept.astype(np.int32))
            values.append(coef[kept].astype(np.float32))
            intercepts.append(intercept)
            if bar is not None:
                bar.update()
    indptr = np.cumsum([0, *(len(row) for row in words)])
    cells = (np.concatenate(values), np.concatenate(words), indptr)
    table = sparse.csr_matrix(cells, shape=(labels.shape[1], vocabulary))
    return Table(table, np.array(intercepts, np.float32))


def _rows(columns: sparse.csc_matrix, label: int) -> np.ndarray:
    """The documents of a label."""
    return columns.indices[columns.indptr[label] : columns.indptr[label + 1]]


def _machine(x: sparse.csr_matrix, positive: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
    """Weights (V,), empty where all are 0, and intercept of a machine with squared hinge loss.

    x: (m, V) csr. positive: (m,) bool, the label's own documents.
    """
    from sklearn.svm import LinearSVC

    if not positive.any() or positive.all():
        return np.zeros(0), 1.0 if positive.all() else -1.0
    model = LinearSVC(C=COST, dual=True, tol=TOLERANCE, random_state=seed).fit(x, positive)
    return model.coef_[0], float(model.intercept_[0])
