"""One score of many terms by boosted trees, for the official protocol of CodiEsp.

A sum with weights by label frequency (`linear.stacking`) cannot say that a marked phrase alone
decides, or that a label far below the document's best one is never right. Trees can (Friedman
2001). They read a cell of document and label: its terms, the label's training documents, its place
in the document's order by the sum of terms, that sum and its distance to the best one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse
from sklearn.ensemble import HistGradientBoostingClassifier

from plantlib.kernels.counts import column_counts

ABSENT = -1e9  # score of a label without a training document
BEST = 150  # places of a document that trees read, beside its own labels
OTHERS = 100  # further cells, drawn, which stand for all others
FORESTS = 3  # fitted with other seeds and averaged
OPTIONS = {
    "learning_rate": 0.05,
    "max_iter": 300,
    "max_leaf_nodes": 8,
    "min_samples_leaf": 30,
    "l2_regularization": 10.0,
    "max_features": 0.5,
}


def boosted(
    terms: dict[str, np.ndarray],
    labels: sparse.csr_matrix,
    train: np.ndarray,
    fold: np.ndarray,
    rows: np.ndarray,
    seed: int,
) -> np.ndarray:
    """(b, L) log-odds of the trees; ABSENT for labels without a training document.

    Args:
        terms: name -> (N, L), of training documents by what was made without their fold.
        labels: (N, L) csr, of which training rows are read.
        train: (n,) rows.
        fold: (n,) of the training rows.
        rows: (b,) of the documents to score.
        seed: of drawn cells and trees.
    """
    values = np.stack(list(terms.values()), 2)
    spread = values[train].std((0, 1)) + 1e-9
    cells = list(_cells(values, spread, labels, train, fold, seed))
    x, y, w = (np.concatenate(parts) for parts in zip(*cells, strict=True))
    forests = [
        HistGradientBoostingClassifier(random_state=FORESTS * seed + i, **OPTIONS).fit(x, y, w)
        for i in range(FORESTS)
    ]
    counts = column_counts(labels[train])
    known = np.flatnonzero(counts)
    scores = np.full((len(rows), labels.shape[1]), ABSENT, np.float32)
    for i, own in enumerate(values[rows]):
        read = features(own, spread, counts)[known]
        scores[i, known] = np.mean([f.decision_function(read) for f in forests], 0)
    return scores


def features(own: np.ndarray, spread: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(L, T + 4) what trees read of one document.

    Args:
        own: (L, T) its terms.
        spread: (T,) standard deviations, by which terms are summed.
        counts: (L,) training documents of the labels.
    """
    total = np.where(counts > 0, (own / spread).sum(1), ABSENT)
    place = np.empty(len(total))
    place[np.argsort(-total, kind="stable")] = np.arange(1, len(total) + 1)
    more = np.log(np.maximum(counts, 1)), np.log(place), total, total - total.max()
    return np.column_stack([own, *more])


def _cells(
    values: np.ndarray, spread: np.ndarray, labels: sparse.csr_matrix, train, fold, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Features, gold or not, and weights of the cells that are read of each training document.

    Labels that no other fold has seen are left out: their terms know nothing.
    """
    rng = np.random.default_rng(seed)
    own = labels[train]
    counts = [column_counts(own[fold != k]) for k in range(fold.max() + 1)]
    for i, row in enumerate(train):
        known = counts[fold[i]] > 0
        read = features(values[row], spread, counts[fold[i]])
        gold = np.zeros(len(known), bool)
        gold[own[i].indices] = True
        near = known & (gold | (read[:, -3] <= np.log(BEST)))
        far = np.flatnonzero(known & ~near)
        drawn = rng.choice(far, min(OTHERS, len(far)), replace=False)
        cells = np.concatenate([np.flatnonzero(near), drawn])
        weights = np.repeat([1.0, len(far) / max(len(drawn), 1)], [near.sum(), len(drawn)])
        yield read[cells], gold[cells], weights
