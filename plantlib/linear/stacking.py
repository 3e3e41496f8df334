"""Weights of the linear score's terms, by how many training documents a label has;
docs/method.md, "The linear score".

The scales of the terms depend on a label's frequency (MI grows with it, and so does a fitted
regression), so that one weight per term would fit labels of medium frequency alone. Weights are
piecewise linear in the logarithm of a label's documents and never negative. They are fitted by
logistic regression to training documents that the terms have not seen (out of fold). With fixed
weights the sum folds into one table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import optimize, sparse

# In records and in names of checkpoints: raise it when the same terms come to another sum.
VERSION = 3
KNOTS = (1, 3, 10, 30, 100)  # documents per label at which the terms have weights of their own
RIDGE = 1e-3  # weight of the squared differences between neighbouring knots
STEPS = 200  # of the optimiser
DOCUMENTS = 2000  # training documents that are read at most
BLOCK = 64  # documents that are scored at a time


@dataclass(frozen=True, eq=False)
class Stack:
    """Weights of T terms at K knots; the score is weights * terms + intercept.

    terms: T names. knots: K numbers of documents per label.
    weights: (T, K), 0 or more. intercept: (K,).
    scale, shift: (K,), the line by which `linear.rare` maps the score where it stands alone: shift
    + scale * score; 1 and 0 change nothing.
    """

    terms: tuple[str, ...]
    knots: tuple[int, ...]
    weights: np.ndarray
    intercept: np.ndarray
    scale: np.ndarray
    shift: np.ndarray

    def of_labels(self, counts: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """{term: weights (L,)} and intercept (L,) of labels with `counts` (L,) training
        documents.
        """
        hats = hats_of(counts, self.knots)
        pairs = zip(self.terms, self.weights, strict=True)
        return {term: hats @ w for term, w in pairs}, hats @ self.intercept

    def line_of(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scale and shift (L,) of labels with `counts` (L,) training documents."""
        hats = hats_of(counts, self.knots)
        return hats @ self.scale, hats @ self.shift

    def about(self) -> dict:
        """For a run's record: version, knots, and what the stack has at them, to 4 digits."""

        def rounded(values) -> list[float]:
            return [float(f"{v:.4g}") for v in values]

        weights = {term: rounded(w) for term, w in zip(self.terms, self.weights, strict=True)}
        lines = {name: rounded(getattr(self, name)) for name in ("intercept", "scale", "shift")}
        return {"version": VERSION, "documents": list(self.knots), **weights, **lines}


def hats_of(counts: np.ndarray, knots: tuple[int, ...]) -> sparse.csr_matrix:
    """(n, K) csr, weights of the two neighbouring knots of each count (n,) for linear interpolation
    on a logarithmic scale; rows sum to 1.
    """
    counts = np.asarray(counts)
    places = np.log2(np.asarray(knots, float))
    if len(knots) == 1:
        return sparse.csr_matrix(np.ones((len(counts), 1)))
    at = np.log2(np.clip(counts, knots[0], knots[-1]))
    left = np.clip(np.searchsorted(places, at, side="right") - 1, 0, len(knots) - 2)
    share = (at - places[left]) / (places[left + 1] - places[left])
    rows = np.arange(len(counts))
    values = np.concatenate([1 - share, share])
    places_of_values = (np.concatenate([rows, rows]), np.concatenate([left, left + 1]))
    return sparse.csr_matrix((values, places_of_values), shape=(len(counts), len(knots)))


def fit(
    parts,
    counts,
    weights: sparse.csr_matrix,
    labels: sparse.csr_matrix,
    fold: np.ndarray,
    terms: tuple[str, ...],
    *,
    seed: int = 0,
    documents: int = DOCUMENTS,
    sample: int = 100,
) -> Stack:
    """Logistic regression of labels on out-of-fold terms.

    Of a document all positive cells are read, the `sample` cells with the highest sum of terms and
    `sample` random others, weighted to stand for all others. A label without a document in a part
    is left out there: it says nothing about that part's terms.

    Args:
        parts: for every fold the terms {name: table} made without it.
        counts: for every fold (L,) training documents per label of that part.
        weights: (n, V) csr, tf-idf of the training rows.
        labels: (n, L) csr.
        fold: (n,) of the training rows.
        terms: T names to weigh.
        seed: of the documents and cells that are drawn.
        documents: how many are read at most.
        sample: see above.

    Returns:
        The weights at KNOTS.
    """
    # draw cells: terms, label or not, weight, and documents of the label
    rng = np.random.default_rng(seed)
    rows = drawn(fold, documents, seed)
    x, y, w, n = [], [], [], []
    for k, block in blocks_of(rows, fold):
        known = counts[k]
        tables = [parts[k][term].scores(weights[block]) for term in terms]
        for i, row in enumerate(block):
            scores = np.stack([table[i] for table in tables], 1)
            cells, weight = sampled(scores, labels[row].indices, sample, rng)
            used = known[cells] > 0
            cells = cells[used]
            x.append(scores[cells])
            y.append(np.isin(cells, labels[row].indices))
            w.append(weight[used])
            n.append(known[cells])
    x, y, w, n = (np.concatenate(v) for v in (x, y, w, n))
    # fit
    hats = hats_of(n, KNOTS)
    by_knot, intercept = logistic(x.astype(np.float64), y, w / len(rows), hats, RIDGE)
    return Stack(terms, KNOTS, by_knot, intercept, np.ones(len(KNOTS)), np.zeros(len(KNOTS)))


def drawn(fold: np.ndarray, documents: int, seed: int) -> np.ndarray:
    """At most so many of the n documents of fold (n,), in order."""
    return np.sort(np.random.default_rng(seed).permutation(len(fold))[:documents])


def blocks_of(rows: np.ndarray, fold: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Pairs of a fold and some of its rows, BLOCK at most."""
    for k in np.unique(fold[rows]):
        own = rows[fold[rows] == k]
        for start in range(0, len(own), BLOCK):
            yield int(k), own[start : start + BLOCK]


def sampled(terms: np.ndarray, gold: np.ndarray, sample: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """Labels (m,) of one document and how many labels each stands for.

    terms: (L, T) scores. gold: the document's labels. sample: how many of the highest and how many
    random others.
    """
    count = len(terms)
    total = (terms / np.maximum(np.abs(terms).max(0), 1e-12)).sum(1)
    sure = np.union1d(np.argpartition(-total, min(sample, count - 1))[:sample], gold)
    rest = np.setdiff1d(np.arange(count), sure)
    drawn = rng.choice(rest, min(sample, len(rest)), replace=False)
    stands_for = len(rest) / max(len(drawn), 1)
    weight = np.concatenate([np.ones(len(sure)), np.full(len(drawn), stands_for)])
    return np.concatenate([sure, drawn]), weight


def logistic(x, y, w, hats: sparse.csr_matrix, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Weighted logistic regression of labels on terms times hats, by L-BFGS.

    Args:
        x: (n, T) terms. y: (n,) bool. w: (n,) weights.
        hats: (n, K) csr, see `hats_of`.
        ridge: weight of the squared differences between neighbouring knots.

    Returns:
        Weights (T, K), 0 or more, and intercept (K,).
    """
    # one column per term and knot, and one intercept per knot; terms are scaled to one spread
    knots = hats.shape[1]
    total = max(w.sum(), 1e-12)
    centre = (w @ x) / total
    spread = np.maximum(np.sqrt(w @ (x - centre) ** 2 / total), 1e-12)
    columns = [sparse.diags(column) @ hats for column in (x / spread).T]
    design = sparse.hstack([*columns, hats], format="csr")
    transposed = design.T.tocsr()
    width = design.shape[1]
    # differences between neighbouring knots of every term and of the intercept
    steps = None
    if knots > 1:
        difference = np.diff(np.eye(knots), axis=0)
        steps = sparse.block_diag([difference] * (width // knots), format="csr")

    def loss(theta):
        s = design @ theta
        value = w @ (np.logaddexp(0, s) - y * s)
        # exp overflows to infinity where the chance is 0, which is right
        with np.errstate(over="ignore"):
            slope = transposed @ (w * (1 / (1 + np.exp(-s)) - y))
        if steps is not None:
            change = steps @ theta
            value, slope = value + ridge * change @ change, slope + 2 * ridge * (steps.T @ change)
        return float(value), slope

    start = np.append(np.full(width - knots, 0.1), np.full(knots, -3.0))
    bounds = [(0.0, None)] * (width - knots) + [(None, None)] * knots
    fitted = optimize.minimize(
        loss, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": STEPS}
    )
    return fitted.x[:-knots].reshape(-1, knots) / spread[:, None], fitted.x[-knots:]
