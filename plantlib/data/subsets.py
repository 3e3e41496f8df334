"""Subsets of the training documents: k per label, or the growing sizes of a learning curve.

Every choice follows one hash order of the training documents, so a smaller subset lies inside a
larger one of the same seed, on every machine. Dev, test and the label columns stay whole.
`prepare(subset, label_space=...)` counts tokens and teacher on the rows of the subset alone
(docs/method.md, "Faults of the published code", 14).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from plantlib.data.corpus import Corpus
from plantlib.utils.base import DataError, hash_order

SHOTS = (1, 5, 10, 25, 50)


def ready(corpus: Corpus) -> Corpus:
    """The labelled documents of a corpus, with dev carved before anything is left out."""
    return corpus.labelled().with_dev()


def shot_of(corpus: Corpus, seed: int = 0) -> np.ndarray:
    """The smallest k at which `k_shot` keeps each training document.

    It is the smallest place that the document takes among the documents of one of its labels,
    counted from 1 in hash order.

    Returns:
        (training documents,) int64, 0 for a document without labels.
    """
    rows = corpus.rows("train")
    labels = corpus.labels[rows]
    seen = np.zeros(corpus.L, np.int64)  # documents so far, per label
    shot = np.zeros(rows.size, np.int64)
    for document in hash_order([corpus.ids[i] for i in rows], seed, "subset train"):
        columns = labels.indices[labels.indptr[document] : labels.indptr[document + 1]]
        seen[columns] += 1
        shot[document] = seen[columns].min() if columns.size else 0
    return shot


def k_shot(corpus: Corpus, k: int, seed: int = 0) -> Corpus:
    """The first k training documents of every label.

    A label keeps more than k documents where documents kept for other labels carry it too.
    Training documents without labels are left out. A smaller k gives a subset of a larger one, and
    every label with a training document keeps one, so the training label space stays.

    Args:
        corpus: to take documents from; dev is carved first if there is none.
        k: documents per label, at least 1.
        seed: of the hash order.

    Raises:
        DataError: k is not a whole number of at least 1.
    """
    if isinstance(k, bool) or int(k) != k or k < 1:
        raise DataError(
            f"k={k!r}: wanted a whole number of documents per label, 1 or more, e.g. one of {SHOTS}"
        )
    corpus = ready(corpus)
    shot, rows = shot_of(corpus, seed), corpus.rows("train")
    keep = np.ones(corpus.N, bool)
    keep[rows[(shot == 0) | (shot > k)]] = False
    return corpus._derive(
        f"{k}-shot: {int(keep[rows].sum())} training documents, seed {seed}",
        rows=np.flatnonzero(keep),
    )


def sizes(documents: int, first: int = 25, steps: int = 6) -> list[int]:
    """Training sizes of a learning curve, geometric from `first` to `documents`, both included.

    >>> sizes(9623, 25, 5)
    [25, 111, 490, 2173, 9623]
    """
    if not 1 <= first <= documents or steps < 2:
        raise DataError(
            f"a curve from {first} documents in {steps} steps over {documents}: wanted 2 steps or"
            " more and 1 <= first <= documents"
        )
    return sorted({int(round(x)) for x in np.geomspace(first, documents, steps)})


def learning_curve(
    corpus: Corpus, first: int = 25, steps: int = 6, seed: int = 0
) -> Iterator[tuple[int, Corpus]]:
    """Nested corpora of growing training size, with the label space of all training documents.

    Pass each to `prepare(..., label_space="all")`, so that labels without a document in a subset
    stay in the metrics.

    Args:
        corpus: to take documents from; dev is carved first if there is none.
        first: training documents of the smallest corpus.
        steps: number of sizes.
        seed: of the hash order.

    Yields:
        (training documents, corpus).
    """
    corpus = ready(corpus).seen_in_train()
    for size in sizes(corpus.rows("train").size, first, steps):
        yield size, corpus.subset(train=size, seed=seed)
