"""Phrases as terms of the score of whole texts: docs/method.md, "Planted phrases".

    u[b, l] = a[l] linear[b, l] + sum over lists j of w[j, l] ln(1 + v[j, b, l] / FLOOR) + c[l]

v is what the phrases of one list say of a document, 1 - prod(1 - p). Weights and intercept are
piecewise linear in the logarithm of a label's training documents, and fitted to training documents
that neither the linear score nor the phrases have counted, as the terms of the linear score are
(`stacking.py`). Without a linear score the first summand is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from plantlib.kernels.counts import column_counts
from plantlib.linear import stacking
from plantlib.linear.score import LinearScore
from plantlib.linear.tables import Table, float32

FLOOR = 1e-3  # a chance below it says nothing
SAMPLE = 100  # cells with the highest terms, and as many others, that are read of a document
BLOCK = 64  # documents whose linear scores are computed at a time


@dataclass(frozen=True, eq=False)
class TextScore:
    """The score u of N documents, from phrases and, where there is one, the linear score.

    linear: scaled by a, or None. logs: J lists, (N, L) csr of ln(1 + v / FLOOR).
    weights: (J, L) float32. intercept: (L,) float32. stack: what was fitted.
    """

    linear: LinearScore | None
    logs: list[sparse.csr_matrix]
    weights: np.ndarray
    intercept: np.ndarray
    stack: stacking.Stack

    def scores(self, rows: Sequence[int]) -> np.ndarray:
        """(b, L) float32 of documents `rows` (b,); a training row is scored by what has not counted
        it.
        """
        rows = np.asarray(rows)
        total = np.tile(self.intercept, (len(rows), 1))
        if self.linear is not None:
            total += self.linear.scores(rows)
        for log, weight in zip(self.logs, self.weights, strict=True):
            cells = log[rows]
            cells.data = cells.data * weight[cells.indices]
            total += cells.toarray()
        return total.astype(np.float32)


def logs_of(scores: sparse.csr_matrix) -> sparse.csr_matrix:
    """ln(1 + v / FLOOR) of scores v (b, L)."""
    logs = scores.astype(np.float32)
    logs.data = np.log1p(scores.data / FLOOR).astype(np.float32)
    return logs


def fit(
    linear: LinearScore | None,
    names: Sequence[str],
    logs: list[sparse.csr_matrix],
    labels: sparse.csr_matrix,
    train_rows: np.ndarray,
    *,
    seed: int = 0,
) -> TextScore:
    """Weigh the terms on training documents.

    Args:
        linear: fitted on the same rows, or None.
        names: of the J lists.
        logs: see `TextScore`; those of training rows are counted without the document.
        labels: Y (N, L) csr.
        train_rows: (n,).
        seed: of the documents and cells that are drawn.
    """
    train_rows = np.asarray(train_rows)
    own = labels[train_rows]
    count = column_counts(own)
    fold = np.zeros(len(train_rows), np.int64) if linear is None else linear.part[train_rows]
    known = {int(k): column_counts(own[fold != k]) for k in np.unique(fold)}
    rng = np.random.default_rng(seed)
    x, y, w, n = [], [], [], []
    chosen = stacking.drawn(fold, stacking.DOCUMENTS, seed)
    for begin in range(0, len(chosen), BLOCK):
        block = chosen[begin : begin + BLOCK]
        rows = train_rows[block]
        terms = [log[rows].toarray() for log in logs]
        if linear is not None:
            terms.insert(0, linear.scores(rows))
        for i, row in enumerate(block):
            gold = own[row].indices
            cells, weight = stacking.sampled(
                np.stack([term[i] for term in terms], 1), gold, SAMPLE, rng
            )
            right = np.isin(cells, gold)
            seen = count[cells] - right if linear is None else known[int(fold[row])][cells]
            used = seen > 0
            x.append(np.stack([term[i][cells[used]] for term in terms], 1))
            y.append(right[used])
            w.append(weight[used])
            n.append(seen[used])
    x, y, w, n = (np.concatenate(parts) for parts in (x, y, w, n))
    hats = stacking.hats_of(n, stacking.KNOTS)
    by_knot, shift = stacking.logistic(
        x.astype(np.float64), y, w / len(chosen), hats, stacking.RIDGE
    )
    terms = (*(() if linear is None else ("linear",)), *names)
    flat = np.ones(len(stacking.KNOTS)), np.zeros(len(stacking.KNOTS))
    stack = stacking.Stack(terms, stacking.KNOTS, by_knot, shift, *flat)
    weights, intercept = stack.of_labels(np.maximum(count, 1))
    if linear is not None:
        linear = scaled(linear, weights.pop("linear"))
    by_list = np.stack([weights[name] for name in names]).astype(np.float32)
    return TextScore(linear, logs, by_list, intercept.astype(np.float32), stack)


def scaled(linear: LinearScore, scale: np.ndarray) -> LinearScore:
    """A linear score times `scale` (L,)."""
    tables = [
        Table(
            float32(sparse.diags(scale) @ table.cells), (scale * table.intercept).astype(np.float32)
        )
        for table in linear.tables
    ]
    return replace(linear, tables=tables)
