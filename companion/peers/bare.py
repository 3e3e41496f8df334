"""Scores of the peers without attention: bare teachers, a linear SVM, and their sum.

Without the row "linear plus planted score, no attention" a gain of planted attention would be
unproven (docs/method.md, "Controls and peers"). They read words, not word pieces; vocabulary, idf,
teacher and weights come from training rows, and dev chooses the weight of the sum. The scores are
evaluated like those of the models.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import sparse
from sklearn.svm import LinearSVC

from plantlib.metrics.buckets import EDGES, Edges
from plantlib.metrics.documents import Scores, StreamingEvaluator
from plantlib.teacher.mig import Teacher
from plantlib.utils.progress import tqdm

Block = Callable[[np.ndarray], np.ndarray]  # rows (b,) -> scores (b, L)


def bare_teacher(weights: sparse.csr_matrix, teacher: Teacher) -> Block:
    """Scores of a teacher without training: the sum of its scores, weighted by tf-idf.

    weights: (N, V) tf-idf of all documents, csr; teacher: its scores are (L, V).
    """
    by_token = teacher.scores.T.tocsr()
    return lambda rows: (weights[rows] @ by_token).toarray()


def linear_svm(
    weights: sparse.csr_matrix,
    labels: sparse.csr_matrix,
    rows: np.ndarray,
    *,
    c: float = 1.0,
    seed: int = 0,
    progress=True,
) -> Block:
    """One-vs-rest linear SVMs (LinearSVC of scikit-learn) on tf-idf.

    A label of all training rows, or of none, scores a constant.

    Args:
        weights: (N, V) tf-idf of all documents, csr.
        labels: (N, L) csr.
        rows: (n,) training rows.
        c: cost of an error.
        seed: of the solver.
        progress: show a bar.
    """
    x = weights[rows]
    y = labels[rows].tocsc()
    coef = np.zeros((labels.shape[1], x.shape[1]), np.float32)
    intercept = np.zeros(labels.shape[1], np.float32)
    for label in tqdm(
        range(labels.shape[1]), desc="linear SVM", unit="label", disable=not progress
    ):
        coef[label], intercept[label] = one_against_rest(
            x, y[:, [label]].toarray().ravel() > 0, c, seed
        )
    return lambda part: weights[part] @ coef.T + intercept


def one_against_rest(
    x: sparse.csr_matrix, positive: np.ndarray, c: float, seed: int
) -> tuple[np.ndarray, float]:
    """Weights (V,) and intercept of one LinearSVC; a label on no row scores -1, on every row 1.

    x: (n, V) csr. positive: (n,) bool. c: cost. seed: of LIBLINEAR.
    """
    if not positive.any() or positive.all():
        return np.zeros(x.shape[1]), 1.0 if positive.all() else -1.0
    model = LinearSVC(C=c, random_state=seed).fit(x, positive)
    return model.coef_[0], float(model.intercept_[0])


def added(first: Block, second: Block, weight: float) -> Block:
    """The scores first + weight * second."""
    return lambda rows: first(rows) + weight * second(rows)


def scored(
    block: Block,
    labels: sparse.csr_matrix,
    rows: np.ndarray,
    train_counts: np.ndarray,
    auc: bool = True,
    size: int = 256,
    edges: Edges = EDGES,
) -> Scores:
    """Evaluate the scores of some documents.

    Args:
        block: function from rows (b,) to scores (b, L).
        labels: (N, L) csr, all documents.
        rows: (n,) documents to score.
        train_counts: (L,) training documents per label.
        auc: collect what the AUC needs.
        size: documents scored at a time.
        edges: bounds of the label buckets.
    """
    evaluator = StreamingEvaluator(labels[rows], train_counts, 100, edges, 2048 if auc else None)
    for begin in range(0, len(rows), size):
        part = np.arange(begin, min(begin + size, len(rows)))
        evaluator.update(part, np.asarray(block(rows[part]), np.float32))
    return evaluator.result()
