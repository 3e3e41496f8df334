"""One-vs-rest L2-loss SVMs of many labels at once: Newton steps by conjugate gradients, one sparse
product per block of labels; docs/method.md, "The linear score".

For a label with signs y in {-1, 1} it minimises |w|^2 / 2 + c sum_i max(0, 1 - y_i <x_i, w>)^2 with
x_i = (tf-idf, 1), the objective of scikit-learn's LinearSVC (Fan et al. 2008, LIBLINEAR). LIBLINEAR
copies and reads all documents for each label; here one sparse product serves a block of labels.
Leaving out most negatives is no alternative: nearly all of them lie at the margin of a rare label,
and SVMs of a sample of them rank labels far worse (`benchmarks/bench_svm.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

BLOCKS = (16, 64)  # fewest and most labels per product
CACHED = 750_000  # cells (n, b) that stay in a processor's cache
# at most so many Newton steps, and in each so many of conjugate gradients and of the line search
NEWTON_STEPS = 20
CG_STEPS = 4
LINE_STEPS = 4
TOLERANCE = 0.05  # share of a label's loss that a further step may still gain


@dataclass(frozen=True, eq=False)
class Documents:
    """Documents as the solver reads them.

    x: (n, V + 1) csr float32, its last column is 1.
    turned: the transpose of x, csr.
    squares: (V + 1,) column sums of x^2.
    """

    x: sparse.csr_matrix
    turned: sparse.csr_matrix
    squares: np.ndarray

    def __len__(self) -> int:
        return self.x.shape[0]

    @classmethod
    def of(cls, weights: sparse.csr_matrix) -> Documents:
        """From tf-idf rows (n, V)."""
        x = sparse.hstack([weights, np.ones((weights.shape[0], 1))], format="csr", dtype=np.float32)
        squares = np.asarray(x.multiply(x).sum(0), np.float32).ravel()
        return cls(x, x.T.tocsr(), squares)


def block_of(documents: int) -> int:
    """How many labels are solved together: more than the cache holds would wait for memory."""
    return int(np.clip(CACHED // max(documents, 1), *BLOCKS))


def solve(
    documents: Documents,
    positive: np.ndarray,
    c: float = 1.0,
    tolerance: float = TOLERANCE,
    steps: int = NEWTON_STEPS,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """Solve b labels together.

    Args:
        documents: n of them.
        positive: (n, b) bool, the documents of each label.
        c: cost of an error.
        tolerance: a label is done when a step could gain no more than this share of its loss.
        steps: Newton steps at most.
        start: (V + 1, b) weights to begin from; those of nearly the same documents are close to the
            solution.

    Returns:
        (V + 1, b) float32, the intercepts last.
    """
    # begin
    y = np.where(positive, 1, -1).astype(np.float32)
    if start is None:
        start = np.zeros((documents.x.shape[1], y.shape[1]), np.float32)
        start[-1] = -1  # puts nearly all documents of a rare label on the right side
    w = np.array(start, np.float32)
    z = documents.x @ w
    # Newton steps for the labels that are left
    left = np.arange(y.shape[1])
    for _ in range(steps):
        wl, zl, yl = w[:, left], z[:, left], y[:, left]
        gap = np.maximum(0, 1 - yl * zl)
        loss = (wl * wl).sum(0) / 2 + c * (gap * gap).sum(0)
        slope = wl - 2 * c * (documents.turned @ (gap * yl))
        move = _newton_step(documents, (gap > 0).astype(np.float32), slope, c)
        shift = documents.x @ move
        length = _line(wl, move, zl, shift, yl, c)
        w[:, left] = wl + length * move
        z[:, left] = zl + length * shift
        left = left[-(slope * move).sum(0) / 2 > tolerance * loss]
        if not len(left):
            break
    return w


def _newton_step(
    documents: Documents, active: np.ndarray, slope: np.ndarray, c: float
) -> np.ndarray:
    """(V + 1, b) rough solution d of (I + 2 c X'AX) d = -slope, by a few steps of preconditioned
    conjugate gradients; active (n, b) is A's diagonal.
    """
    # the diagonal as if active documents were drawn evenly: exact enough for the column of ones
    scale = 1 / (1 + 2 * c * documents.squares[:, None] * active.mean(0))
    d = np.zeros_like(slope)
    rest = -slope
    p = scale * rest
    energy = (rest * p).sum(0)
    for _ in range(CG_STEPS):
        hp = p + 2 * c * (documents.turned @ (active * (documents.x @ p)))
        length = energy / np.maximum((p * hp).sum(0), 1e-30)
        d += length * p
        rest -= length * hp
        scaled = scale * rest
        before = energy
        energy = (rest * scaled).sum(0)
        p = scaled + energy / np.maximum(before, 1e-30) * p
    return d


def _line(w, move, z, shift, y, c: float) -> np.ndarray:
    """(b,) step lengths that minimise the loss along `move` (V + 1, b), by Newton's method on a
    convex piecewise quadratic function.

    w: (V + 1, b) weights. z, shift: (n, b) scores and their change. y: (n, b) signs.
    """
    first = (w * move).sum(0)
    second = (move * move).sum(0)
    length = np.ones(w.shape[1], np.float32)
    for _ in range(LINE_STEPS):
        margin = z + length * shift
        pull = (y * margin < 1) * shift
        slope = first + length * second + 2 * c * (pull * (margin - y)).sum(0)
        curve = second + 2 * c * (pull * shift).sum(0)
        length = np.clip(length - slope / np.maximum(curve, 1e-30), 1e-3, 4).astype(np.float32)
    return length
