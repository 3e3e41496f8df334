"""Terms of the linear score that need no attention: positive pointwise MI, label centroids and
one-vs-rest SVMs.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from plantlib.kernels.counts import Margins, column_counts, presence
from plantlib.teacher import mig
from plantlib.teacher.mig import Teacher


def ppmi(x: sparse.csr_matrix, y: sparse.csr_matrix) -> Teacher:
    """Positive pointwise MI of token and label, all tokens of each label.

    x: (n, V) token presence or counts. y: (n, L) labels of the same training rows.
    """
    x, y = presence(x), presence(y)
    margins = Margins.of(x.shape[0], column_counts(x), column_counts(y))
    scores = mig.association_of_others(y.T @ x, 0, margins, "ppmi")
    return Teacher(scores, scores, "ppmi", x.shape[0])


def centroids(weights: sparse.csr_matrix, y: sparse.csr_matrix) -> Teacher:
    """Label centroids (Rocchio): the mean tf-idf vector of a label's documents, at length one,
    (L, V).

    weights: (n, V) tf-idf. y: (n, L) labels of the same training rows.
    """
    total = (presence(y).T.astype(np.float64) @ weights).tocsr()
    norm = np.sqrt(np.asarray(total.multiply(total).sum(1))).ravel().clip(min=1e-12)
    unit = (sparse.diags(1 / norm) @ total).tocsr()
    return Teacher(unit, unit, "centroid", weights.shape[0])


def one_against_rest(
    x: sparse.csr_matrix, positive: np.ndarray, c: float, seed: int
) -> tuple[np.ndarray, float]:
    """Weights (V,) and intercept of one LinearSVC; a label on no row scores -1, on every row 1.

    x: (n, V) csr. positive: (n,) bool. c: cost. seed: of LIBLINEAR.
    """
    from sklearn.svm import LinearSVC

    if not positive.any() or positive.all():
        return np.zeros(x.shape[1]), 1.0 if positive.all() else -1.0
    model = LinearSVC(C=c, random_state=seed).fit(x, positive)
    return model.coef_[0], float(model.intercept_[0])
