"""One-vs-rest L2-loss SVMs of many labels at once: Newton steps by conjugate gradients, a block of
labels a product.

For a label with signs y in {-1, 1} it minimises |w|^2 / 2 + c sum_i max(0, 1 - y_i <x_i, w>)^2, x_i
= (its tf-idf, 1), the objective of scikit-learn's LinearSVC (Fan et al. 2008, LIBLINEAR). LIBLINEAR
copies and reads all documents for each label; here one sparse product serves a block of labels.
Leaving out most of the negatives instead is no way out: nearly all of them lie at the margin of a
rare label, and SVMs of a sample of them rank labels far worse (`benchmarks/bench_svm.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

# fewest and most labels a product; cells (n, b) that stay in a processor's cache
BLOCKS, CACHED = (16, 64), 750_000
NEWTON_STEPS, CG_STEPS, LINE_STEPS = 20, 4, 4
TOLERANCE = 0.05


@dataclass(frozen=True, eq=False)
class Documents:
    """x: csr (n, V + 1) float32 whose last column is 1; turned: its transpose as csr; squares (V +
    1,): column sums of x^2.
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
    """How many labels are solved together: beyond what the cache holds, a product waits for memory."""
    return int(np.clip(CACHED // max(documents, 1), *BLOCKS))


def solve(
    documents: Documents,
    positive: np.ndarray,
    c: float = 1.0,
    tolerance: float = TOLERANCE,
    steps: int = NEWTON_STEPS,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """Weights (V + 1, b) float32, the intercept last, of labels whose documents `positive` (n, b)
    bool marks.

    A label is done with the step from which no more than `tolerance` of its loss was to be gained,
    or after `steps`. start: weights to begin from, near the solution if they are those of nearly
    the same documents.
    """
    y = np.where(positive, 1, -1).astype(np.float32)
    if start is None:
        start = np.zeros((documents.x.shape[1], y.shape[1]), np.float32)
        start[-1] = -1  # of a rare label all but a few documents then lie where they belong
    w = np.array(start, np.float32)
    z = documents.x @ w
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
    """Solve (I + 2 c X'AX) d = -slope roughly, by a few preconditioned conjugate gradients; active
    (n, b) is A's diagonal.
    """
    # the diagonal as if active documents were drawn evenly: exact enough to tame the column of ones
    scale = 1 / (1 + 2 * c * documents.squares[:, None] * active.mean(0))
    d, rest = np.zeros_like(slope), -slope
    p = scale * rest
    energy = (rest * p).sum(0)
    for _ in range(CG_STEPS):
        hp = p + 2 * c * (documents.turned @ (active * (documents.x @ p)))
        length = energy / np.maximum((p * hp).sum(0), 1e-30)
        d += length * p
        rest -= length * hp
        scaled = scale * rest
        before, energy = energy, (rest * scaled).sum(0)
        p = scaled + energy / np.maximum(before, 1e-30) * p
    return d


def _line(w, move, z, shift, y, c: float) -> np.ndarray:
    """(b,) step lengths that minimise the loss along `move`: Newton's method on a convex piecewise
    quadratic.
    """
    first, second = (w * move).sum(0), (move * move).sum(0)
    length = np.ones(w.shape[1], np.float32)
    for _ in range(LINE_STEPS):
        margin = z + length * shift
        pull = (y * margin < 1) * shift
        slope = first + length * second + 2 * c * (pull * (margin - y)).sum(0)
        curve = second + 2 * c * (pull * shift).sum(0)
        length = np.clip(length - slope / np.maximum(curve, 1e-30), 1e-3, 4).astype(np.float32)
    return length
