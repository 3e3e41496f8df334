"""Few-shot subsets of a corpus: k documents a label, and learning curves; nested, seeded, the label
space left as it is.

Every choice follows one hash order of the training documents, so a smaller subset lies inside a
larger one of the same seed, on every machine. Dev and test stay whole. Nothing else is built here:
`pipeline.prepare(subset, label_space=...)` makes tokens, counts and the teacher from the rows a
subset holds, never from those it left out (METHOD.md section 6, fault 14). Buckets by training
frequency are in `buckets.frequency_buckets`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from plantlib.data.corpus import Corpus
from plantlib.utils.base import DataError, hash_order

SHOTS = (1, 5, 10, 25, 50)


def ready(corpus: Corpus) -> Corpus:
    """What a subset is taken from: no unlabelled documents, dev carved before anything is left out."""
    return corpus.labelled().with_dev()


def shot_of(corpus: Corpus, seed: int = 0) -> np.ndarray:
    """(training documents,) int64: the smallest k at which `k_shot` keeps a document, 0 for one
    without labels.

    That is the smallest place a document takes among the documents of one of its labels, counted
    from 1 in hash order.
    """
    rows = corpus.rows("train")
    order = hash_order([corpus.ids[i] for i in rows], seed, "subset train")
    labels, seen = corpus.labels[rows], np.zeros(corpus.L, np.int64)
    shot = np.zeros(rows.size, np.int64)
    for document in order:
        own = labels.indices[labels.indptr[document] : labels.indptr[document + 1]]
        seen[own] += 1
        shot[document] = seen[own].min(initial=np.iinfo(np.int64).max) if own.size else 0
    return shot


def k_shot(corpus: Corpus, k: int, seed: int = 0) -> Corpus:
    """The first k training documents of every label: each label keeps min(k, its documents) at
    least, often more.

    A label is in more documents than k where documents of other labels carry it too. Documents
    without labels are left out. Nested in k; the columns stay, and since every label with a
    training document keeps one, so does the training label space.
    """
    if isinstance(k, bool) or int(k) != k or k < 1:
        raise DataError(
            f"k={k!r}: wanted a whole number of documents a label, 1 or more, e.g. one of {SHOTS}"
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
    """Training sizes of a learning curve: geometric from `first` to all, whole numbers, both ends
    included.

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
    """(size, corpus of that many training documents) by growing size, nested; columns are the full
    training label space.

    Hand each to `prepare(..., label_space="all")`: labels without a document in a subset then stay
    and count.
    """
    corpus = ready(corpus).seen_in_train()
    for size in sizes(corpus.rows("train").size, first, steps):
        yield size, corpus.subset(train=size, seed=seed)
