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

ABSENT = -1e9  # score of a label that is not ranked
BEST = 150  # places of a document that trees read, beside its own labels
OTHERS = 100  # further cells, drawn, which stand for all others
RANKED = 2500  # places of a document that trees give a score
FORESTS = 3  # fitted with other seeds and averaged
PLACE = -3  # column of `features`
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
    named: np.ndarray | None = None,
) -> np.ndarray:
    """(b, L) log-odds of the trees; ABSENT for labels with neither a training document nor a name.

    Args:
        terms: name -> (N, L), of training documents by what was made without their fold.
        labels: (N, L) csr, of which training rows are read.
        train: (n,) rows.
        fold: (n,) of the training rows.
        rows: (b,) of the documents to score.
        seed: of drawn cells and trees.
        named: (L,) bool, labels that a term knows without a training document; none by default.
    """
    values = np.stack(list(terms.values()), 2)
    spread = values[train].std((0, 1)) + 1e-9
    counts = column_counts(labels[train])
    scores = np.full((len(rows), labels.shape[1]), ABSENT, np.float32)
    for alone in (None,) if named is None else (None, named):
        known = kind_of(counts, alone)
        if not known.any():
            continue
        cells = list(_cells(values, spread, labels, train, fold, seed, alone))
        x, y, w = (np.concatenate(parts) for parts in zip(*cells, strict=True))
        forests = [
            HistGradientBoostingClassifier(random_state=FORESTS * seed + i, **OPTIONS).fit(x, y, w)
            for i in range(FORESTS)
        ]
        for i, own in enumerate(values[rows]):
            read = features(own, spread, counts, known)
            ranked = np.flatnonzero(known & (read[:, PLACE] <= np.log(RANKED)))
            scores[i, ranked] = np.mean([f.decision_function(read[ranked]) for f in forests], 0)
    return scores


def kind_of(counts: np.ndarray, named: np.ndarray | None) -> np.ndarray:
    """(L,) bool, the labels with one of `counts` (L,) training documents; of `named` ones (L,)
    those without any. Each kind has trees and places of its own, since many labels that are known
    by name alone would push the others down.
    """
    return counts > 0 if named is None else named & (counts == 0)


def features(
    own: np.ndarray, spread: np.ndarray, counts: np.ndarray, known: np.ndarray
) -> np.ndarray:
    """(L, T + 4) what trees read of one document: terms, training documents, place, sum of terms,
    and the sum's distance to the best one.

    Args:
        own: (L, T) its terms.
        spread: (T,) standard deviations, by which terms are summed.
        counts: (L,) training documents of the labels.
        known: (L,) bool, labels of the kind that is ranked.
    """
    total = np.where(known, (own / spread).sum(1), ABSENT)
    place = np.empty(len(total))
    place[np.argsort(-total, kind="stable")] = np.arange(1, len(total) + 1)
    more = np.log(np.maximum(counts, 1)), np.log(place), total, total - total.max()
    return np.column_stack([own, *more])


def _cells(
    values: np.ndarray, spread: np.ndarray, labels: sparse.csr_matrix, train, fold, seed, named
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Features, gold or not, and weights of the cells of a kind that are read of each training
    document; the kind of a label is what the other folds know of it.
    """
    rng = np.random.default_rng(seed)
    own = labels[train]
    counts = [column_counts(own[fold != k]) for k in range(fold.max() + 1)]
    for i, row in enumerate(train):
        known = kind_of(counts[fold[i]], named)
        read = features(values[row], spread, counts[fold[i]], known)
        gold = np.zeros(len(known), bool)
        gold[own[i].indices] = True
        near = known & (gold | (read[:, PLACE] <= np.log(BEST)))
        far = np.flatnonzero(known & ~near)
        drawn = rng.choice(far, min(OTHERS, len(far)), replace=False)
        cells = np.concatenate([np.flatnonzero(near), drawn])
        weights = np.repeat([1.0, len(far) / max(len(drawn), 1)], [near.sum(), len(drawn)])
        yield read[cells], gold[cells], weights
