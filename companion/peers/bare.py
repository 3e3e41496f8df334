"""What stands beside planting: the bare teachers without any training, tf-idf with a linear model,
and their sum.

Realises the rows METHOD.md section 7 asks for: a companion that does not print "linear + planted
score, no attention" cannot claim that planting attention helps. Words, not word pieces; vocabulary,
idf, teacher and weights from training rows, the weight of the sum tuned on dev. Scores are handed
to the same streaming evaluation as the models'.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import sparse

from plantlib.linear.terms import one_against_rest
from plantlib.metrics.buckets import EDGES, Edges
from plantlib.metrics.documents import Scores, StreamingEvaluator
from plantlib.teacher.mig import Teacher
from plantlib.utils.progress import tqdm

Block = Callable[[np.ndarray], np.ndarray]  # rows (b,) -> scores (b, L)


def bare_teacher(weights: sparse.csr_matrix, teacher: Teacher) -> Block:
    """Scores of a teacher without training: the tf-idf weighted sum of its scores over a document's
    tokens.

    weights (N, V) tf-idf rows of all documents; teacher.scores (L, V).
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
    """One-vs-rest linear SVM (scikit-learn LinearSVC) on tf-idf; labels on every or no training row
    score a constant.
    """
    x, y = weights[rows], labels[rows].tocsc()
    coef, intercept = (
        np.zeros((labels.shape[1], x.shape[1]), np.float32),
        np.zeros(labels.shape[1], np.float32),
    )
    for label in tqdm(
        range(labels.shape[1]), desc="linear SVM", unit="label", disable=not progress
    ):
        coef[label], intercept[label] = one_against_rest(
            x, y[:, [label]].toarray().ravel() > 0, c, seed
        )
    return lambda part: weights[part] @ coef.T + intercept


def added(first: Block, second: Block, weight: float) -> Block:
    """first + weight x second."""
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
    """Scores of the documents `rows`, `size` at a time."""
    evaluator = StreamingEvaluator(labels[rows], train_counts, 100, edges, 2048 if auc else None)
    for begin in range(0, len(rows), size):
        part = np.arange(begin, min(begin + size, len(rows)))
        evaluator.update(part, np.asarray(block(rows[part]), np.float32))
    return evaluator.result()
