"""Weights of the linear score's terms: how much each counts for a label with so many training
documents.

The terms of `linear_score.py` have scales that depend on a label's frequency (MI grows with it, the
SVM's margin too), so one weight a term fits the labels in the middle alone. Weights are piecewise
linear in the logarithm of a label's documents, never negative, and fitted by logistic regression to
training documents that the terms have not seen (out of fold). With fixed weights the sum folds into
one table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, sparse

KNOTS = (1, 3, 10, 30, 100)  # documents per label at which the terms have weights of their own
RIDGE = 1e-3  # weight of the squared differences between neighbouring knots
STEPS = 200  # of the optimiser


@dataclass(frozen=True, eq=False)
class Stack:
    """weights (T, K) >= 0 of T terms and intercept (K,) at `knots`, K numbers of documents a label."""

    terms: tuple[str, ...]
    knots: tuple[int, ...]
    weights: np.ndarray
    intercept: np.ndarray

    def of_labels(self, counts: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """({term: (L,)}, intercept (L,)) for labels with `counts` (L,) training documents."""
        hats = hats_of(counts, self.knots)
        return {
            term: hats @ w for term, w in zip(self.terms, self.weights, strict=True)
        }, hats @ self.intercept

    def about(self) -> dict:
        """What a run's record says: knots, and the weights of every term at them."""
        rounded = lambda values: [float(f"{v:.4g}") for v in values]  # noqa: E731
        found = {term: rounded(w) for term, w in zip(self.terms, self.weights, strict=True)}
        return {"documents": list(self.knots), **found, "intercept": rounded(self.intercept)}


def hats_of(counts: np.ndarray, knots: tuple[int, ...]) -> sparse.csr_matrix:
    """(n, K) interpolation weights of each count between its two neighbouring knots, on a
    logarithmic scale; rows sum to 1.
    """
    counts, places = np.asarray(counts), np.log2(np.asarray(knots, float))
    if len(knots) == 1:
        return sparse.csr_matrix(np.ones((len(counts), 1)))
    at = np.log2(np.clip(counts, knots[0], knots[-1]))
    left = np.clip(np.searchsorted(places, at, side="right") - 1, 0, len(knots) - 2)
    share = (at - places[left]) / (places[left + 1] - places[left])
    rows = np.arange(len(counts))
    cells = (
        np.concatenate([1 - share, share]),
        (np.concatenate([rows, rows]), np.concatenate([left, left + 1])),
    )
    return sparse.csr_matrix(cells, shape=(len(counts), len(knots)))


def fit(
    parts,
    counts,
    weights: sparse.csr_matrix,
    labels: sparse.csr_matrix,
    fold: np.ndarray,
    terms: tuple[str, ...],
    *,
    seed: int = 0,
    documents: int = 2000,
    sample: int = 100,
) -> Stack:
    """Logistic regression of labels on out-of-fold terms.

    parts[k]: the terms made without fold k, counts[k] (L,) their documents a label; weights (n, V),
    labels (n, L) and fold (n,) of the training rows. Of a document all positive cells are read, the `sample` highest of
    every term's sum and `sample` random others, weighted to stand for all. Labels that a part knows
    no document of say nothing about its terms and are left out.
    """
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(fold))[:documents])
    x, y, w, n = [], [], [], []
    for row in rows:
        part, known = parts[fold[row]], counts[fold[row]]
        found = np.stack([part[t].scores(weights[row])[0] for t in terms], 1)
        cells, weight = sampled(found, labels[row].indices, sample, rng)
        used = known[cells] > 0
        cells, weight = cells[used], weight[used]
        x.append(found[cells])
        y.append(np.isin(cells, labels[row].indices))
        w.append(weight)
        n.append(known[cells])
    x, y, w, n = (np.concatenate(v) for v in (x, y, w, n))
    return Stack(
        terms, KNOTS, *logistic(x.astype(np.float64), y, w / len(rows), hats_of(n, KNOTS), RIDGE)
    )


def sampled(terms: np.ndarray, gold: np.ndarray, sample: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """Cells of one document and the number of cells each stands for."""
    count = len(terms)
    first = (terms / np.maximum(np.abs(terms).max(0), 1e-12)).sum(1)
    sure = np.union1d(np.argpartition(-first, min(sample, count - 1))[:sample], gold)
    rest = np.setdiff1d(np.arange(count), sure)
    drawn = rng.choice(rest, min(sample, len(rest)), replace=False)
    weight = np.concatenate(
        [np.ones(len(sure)), np.full(len(drawn), len(rest) / max(len(drawn), 1))]
    )
    return np.concatenate([sure, drawn]), weight


def logistic(x, y, w, hats: sparse.csr_matrix, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """(weights (T, K) >= 0, intercept (K,)): weighted logistic regression of y (n,) on terms x (n,
    T) times hats (n, K).
    """
    knots, total = hats.shape[1], max(w.sum(), 1e-12)
    centre = (w @ x) / total
    spread = np.maximum(np.sqrt(w @ (x - centre) ** 2 / total), 1e-12)
    columns = [sparse.diags(column) @ hats for column in (x / spread).T]
    design = sparse.hstack([*columns, hats], format="csr")
    turned, width = design.T.tocsr(), design.shape[1]
    # neighbouring knots of one term, and of the intercept
    steps = (
        sparse.block_diag([np.diff(np.eye(knots), axis=0)] * (width // knots), format="csr")
        if knots > 1
        else None
    )

    def loss(theta):
        s = design @ theta
        value = w @ (np.logaddexp(0, s) - y * s)
        slope = turned @ (w * (1 / (1 + np.exp(-s)) - y))
        if steps is not None:
            change = steps @ theta
            value, slope = value + ridge * change @ change, slope + 2 * ridge * (steps.T @ change)
        return float(value), slope

    start = np.append(np.full(width - knots, 0.1), np.full(knots, -3.0))
    bounds = [(0.0, None)] * (width - knots) + [(None, None)] * knots
    found = optimize.minimize(
        loss, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": STEPS}
    )
    return found.x[:-knots].reshape(-1, knots) / spread[:, None], found.x[-knots:]
