"""A support vector machine per label, trained on the documents that could be taken for the label's.

docs/method.md, "The linear score". Of a large problem nearly all documents say nothing about a
label: any model tells them from those of the label. A label's machine is therefore trained on its
own documents, on those among whose best labels it stands by a cheaper ranking, and on some that are
drawn, which tell it the level of the rest. The first are found as negatives in the way of XR-Linear
(Yu et al. 2022, "PECOS", section 4.2) without its tree. So the price grows with the entries of the
lists, and not with documents times labels.
"""

from __future__ import annotations

from collections.abc import Iterator
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
TOGETHER = 10_000  # documents, counted once per label, of the machines trained by one call


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
    count, vocabulary = weights.shape
    weights = sparse.csr_matrix(weights, dtype=np.float64)
    own, near = labels.tocsc(), confusable(ranking, weights)
    drawn = np.random.default_rng(seed).choice(count, min(DRAWN, count), replace=False)
    sizes = np.diff(own.indptr)
    words = [np.zeros(0, np.int32)] * len(sizes)
    values = [np.zeros(0, np.float32)] * len(sizes)
    intercepts = np.where(sizes == count, 1.0, -1.0)
    learnt = np.flatnonzero((0 < sizes) & (sizes < count))
    for group in _groups(learnt, (sizes + np.diff(near.indptr) + len(drawn))[learnt]):
        examples = [_examples(_rows(own, label), _rows(near, label), drawn) for label in group]
        rows, positive = map(np.concatenate, zip(*examples, strict=True))
        ends = np.cumsum([0, *(len(rows) for rows, _ in examples)])
        machines = _machines(weights[rows], positive, ends, seed)
        for label, machine in zip(group, machines, strict=True):
            words[label], values[label], intercepts[label] = machine
        if bar is not None:
            bar.update(len(group))
    if bar is not None:
        bar.update(len(sizes) - len(learnt))
    indptr = np.cumsum([0, *map(len, words)])
    cells = (np.concatenate(values), np.concatenate(words), indptr)
    table = sparse.csr_matrix(cells, shape=(labels.shape[1], vocabulary))
    return Table(table, intercepts.astype(np.float32))


def _rows(columns: sparse.csc_matrix, label: int) -> np.ndarray:
    """The documents of a label."""
    return columns.indices[columns.indptr[label] : columns.indptr[label + 1]]


def _groups(labels: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    """`labels` cut where the sum of their `sizes` passes a multiple of `TOGETHER`."""
    cut = np.flatnonzero(np.diff(np.cumsum(sizes) // TOGETHER)) + 1
    return np.split(labels, cut) if len(labels) else []


def _examples(
    own: np.ndarray, near: np.ndarray, drawn: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The documents that a machine reads, and which of them are its label's `own`, sorted."""
    rows = np.unique(np.concatenate([own, near, drawn]))
    positive = np.zeros(len(rows), bool)
    positive[np.searchsorted(rows, own)] = True
    return rows, positive


def _machines(
    x: sparse.csr_matrix, positive: np.ndarray, ends: np.ndarray, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Words, weights and intercept of the machine of each of G labels, with squared hinge loss.

    All are trained by one call, whose checks take longer than a small machine does. Rows of one
    label share no column with those of others, so the problem falls apart into one per label; a
    column of ones is the label's intercept.

    x: (m, V) csr, the rows of label g are ends[g]:ends[g+1]. positive: (m,) bool, see `_examples`.
    """
    from sklearn.svm import LinearSVC

    known, columns = [], []
    width, seen, place = 0, np.zeros(x.shape[1], bool), np.zeros(x.shape[1], np.int32)
    for first, last in pairwise(x.indptr[ends]):
        here = x.indices[first:last]
        seen[here] = True
        words = np.flatnonzero(seen)
        seen[words] = False
        place[words] = np.arange(width, width + len(words))
        columns.append(place[here])
        known.append(words.astype(np.int32))
        width += len(words)
    own_words = (x.data, np.concatenate(columns), x.indptr)
    label = np.repeat(np.arange(len(known)), np.diff(ends))
    ones = (np.ones(len(label)), label, np.arange(len(label) + 1))
    parts = [
        sparse.csr_matrix(own_words, shape=(len(label), width)),
        sparse.csr_matrix(ones, shape=(len(label), len(known))),
    ]
    model = LinearSVC(C=COST, dual=True, fit_intercept=False, tol=TOLERANCE, random_state=seed)
    learnt = model.fit(sparse.hstack(parts, "csr"), positive).coef_[0]
    *own, intercepts = np.split(learnt, np.cumsum([*map(len, known)]))
    for words, weights, intercept in zip(known, own, intercepts, strict=True):
        kept = np.flatnonzero(np.abs(weights) > PRUNE)
        yield words[kept], weights[kept].astype(np.float32), float(intercept)
