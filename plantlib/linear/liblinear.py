"""One-vs-rest SVMs by LIBLINEAR, label by label, in one process or in several.

LIBLINEAR draws the order of its steps from one random generator per process, which each fit seeds.
Threads would take numbers out of each other's sequence, and two fits with one seed would end at
different weights. So labels are shared among processes, and what a label gets does not depend on
how many there are. scikit-learn alone is imported here, because every process imports this module.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import numpy as np
from scipy import sparse

Row = tuple[np.ndarray, np.ndarray, float]  # words, weights and intercept of a label

# Labels times (documents + OVERHEAD) from which a process repays its start: about a second of work.
WORK = 150_000
OVERHEAD = 500  # documents that take as long as the checks around a fit
MOST = 8  # processes; each takes about 150 MB
BLOCK = 32  # labels that a process solves at a time


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


def pruned(coef: np.ndarray, intercept: float, prune: float) -> Row:
    """The weights (V,) above `prune` in size with their words, and the intercept."""
    words = np.flatnonzero(np.abs(coef) > prune)
    return words.astype(np.int32), coef[words].astype(np.float32), intercept


def solve(
    x: sparse.csr_matrix, columns: sparse.csc_matrix, c: float, seed: int, prune: float
) -> Iterator[Row]:
    """The SVM of every label in turn.

    Args:
        x: (n, V) csr, tf-idf.
        columns: (n, L) csc, the labels.
        c: cost of an error.
        seed: of LIBLINEAR, for every label.
        prune: weights up to this size are dropped.
    """
    starts = range(0, columns.shape[1], BLOCK)
    blocks = (columns[:, start : start + BLOCK] for start in starts)
    count = processes(*columns.shape)
    if count == 1:
        solved = (_solve_block(x, block, c, seed, prune) for block in blocks)
    else:
        from joblib import Parallel, delayed

        # max_nbytes: documents go through pipes, and never into files of a temporary folder
        parallel = Parallel(n_jobs=count, return_as="generator", max_nbytes=None)
        solved = parallel(delayed(_solve_block)(x, block, c, seed, prune) for block in blocks)
    for rows in solved:
        yield from rows


def _solve_block(x, columns: sparse.csc_matrix, c: float, seed: int, prune: float) -> list[Row]:
    positives = (columns[:, [j]].toarray().ravel() > 0 for j in range(columns.shape[1]))
    return [pruned(*one_against_rest(x, positive, c, seed), prune) for positive in positives]


def processes(documents: int, labels: int) -> int:
    """How many processes share a problem of this size."""
    return max(1, min(cores(), MOST, labels * (documents + OVERHEAD) // WORK))


def cores() -> int:
    """Cores to use: OMP_NUM_THREADS where it is set, else all."""
    return int(os.environ.get("OMP_NUM_THREADS") or 0) or os.cpu_count() or 1


@contextlib.contextmanager
def workers(documents: int, labels: int) -> Iterator[None]:
    """On leaving, end the processes that `solve` began for problems of this size."""
    try:
        yield
    finally:
        if processes(documents, labels) > 1:
            from joblib.externals.loky import get_reusable_executor

            get_reusable_executor().shutdown(wait=True)
