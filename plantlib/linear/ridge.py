"""Ridge regression of all labels on the words of documents, in closed form; docs/method.md, "The
linear score".

For every label it minimises sum_i (y_i - b - <x_i, w>)^2 + penalty |w|^2 with y in {0, 1} and
tf-idf rows x. All labels share one symmetric matrix, which is factored once: the products of
documents where these are fewer than the words, else those of words. So the price hardly grows with
the number of labels, while a support vector machine reads every document anew for every label, and
both rank labels alike (`benchmarks/bench_linear.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import linalg, sparse

from plantlib.kernels.counts import column_counts
from plantlib.linear.tables import Table

SIZE = 8192  # rows of the largest matrix that is factored
# multiply-adds of the products with all labels at most, in proportion to the square of the size
WORK = 4e11
EXACT = 2048  # up to so many rows it is factored in double precision
BLOCK = 512  # labels that are solved at a time


def size_for(labels: int) -> int:
    """Rows of the largest matrix that is factored for so many labels."""
    return int(min(SIZE, (WORK / max(labels, 1)) ** 0.5))


def fit(
    weights: sparse.csr_matrix,
    labels: sparse.csr_matrix,
    penalties: Mapping[float, float],
    *,
    bar=None,
) -> list[Table]:
    """The ridge regression of every label, at every penalty.

    Where documents and words are more than `size_for` allows, the most frequent words are read.

    Args:
        weights: (n, V) csr, tf-idf.
        labels: (n, L) csr.
        penalties: by penalty of squared weights the size up to which weights are dropped; the
            intercept makes up for them.
        bar: a progress bar that counts labels per penalty.

    Returns:
        (L, V) weights and (L,) intercepts per penalty; a label on no document scores 0, on every
        one 1.
    """
    # the words that are read, and the type in which they are solved
    count, vocabulary = weights.shape
    size = size_for(labels.shape[1])
    frequency = np.bincount(weights.indices, minlength=vocabulary)
    used = np.flatnonzero(frequency)
    if min(count, len(used)) > size:
        used = np.sort(np.argsort(-frequency, kind="stable")[:size])
    by_words = len(used) < count
    kind = np.float64 if min(count, len(used)) <= EXACT else np.float32
    x = sparse.csr_matrix(weights[:, used], dtype=kind)
    y = sparse.csc_matrix(labels, dtype=kind)
    centre = np.asarray(x.mean(0), kind).ravel()
    # one matrix for all labels and penalties
    products = _between_words(x, centre) if by_words else _between_documents(x)
    tables = []
    for penalty, prune in penalties.items():
        last = len(tables) == len(penalties) - 1
        factor = products if last else products.copy(order="F")
        factor[np.diag_indices(len(factor))] += penalty
        factor = linalg.cholesky(factor, lower=True, overwrite_a=True, check_finite=False)
        found = []
        for begin in range(0, labels.shape[1], BLOCK):
            w = _solve(factor, x, centre, y[:, begin : begin + BLOCK], by_words)
            found.append(_pruned(w, used, vocabulary, prune))
            if bar is not None:
                bar.update(w.shape[1])
        cells = sparse.vstack(found, "csr")
        rates = column_counts(labels) / count
        intercept = rates - cells[:, used] @ centre
        tables.append(Table(cells, intercept.astype(np.float32)))
    return tables


def _between_words(x: sparse.csr_matrix, centre: np.ndarray) -> np.ndarray:
    """(V, V) products of the columns of x (n, V) less their means, in blocks of columns."""
    turned = x.T.tocsr()
    products = np.empty((x.shape[1], x.shape[1]), x.dtype, order="F")
    for begin in range(0, len(products), BLOCK):
        part = slice(begin, begin + BLOCK)
        # the matrix is symmetric, so its rows are its columns
        products[:, part] = (turned[part] @ x).toarray().T
        products[:, part] -= x.shape[0] * np.outer(centre, centre[part])
    return products


def _between_documents(x: sparse.csr_matrix) -> np.ndarray:
    """(n, n) products of the rows of x (n, V) less their mean."""
    products = (x @ x.T.tocsr()).toarray(order="F")
    mean = products.mean(0)
    products += mean.mean() - mean - mean[:, None]
    return products


def _solve(
    factor: np.ndarray, x: sparse.csr_matrix, centre: np.ndarray, y: sparse.csc_matrix, by_words
) -> np.ndarray:
    """Weights (V, b) of labels y (n, b), with Z the centred x: (Z'Z + penalty I)^-1 Z'y by words,
    or the same as Z'(ZZ' + penalty I)^-1 y by documents.
    """
    options = {"overwrite_b": True, "check_finite": False}
    if by_words:
        counts = np.asarray(y.sum(0), x.dtype)
        right = (x.T @ y).toarray(order="F") - centre[:, None] * counts
        return linalg.cho_solve((factor, True), right, **options)
    right = y.toarray(order="F")
    right -= right.mean(0)
    a = linalg.cho_solve((factor, True), right, **options)
    return x.T @ a - np.outer(centre, a.sum(0))


def _pruned(w: np.ndarray, used: np.ndarray, vocabulary: int, prune: float) -> sparse.csr_matrix:
    """(b, V) csr float32 of the weights (U, b) above `prune` in size, of the words used (U,)."""
    words, labels = np.nonzero(np.abs(w) > prune)
    found = (w[words, labels].astype(np.float32), (labels, used[words]))
    return sparse.csr_matrix(found, shape=(w.shape[1], vocabulary))
