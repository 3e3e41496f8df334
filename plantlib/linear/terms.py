"""Terms of the linear score that are counted: positive pointwise MI and label centroids."""

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
