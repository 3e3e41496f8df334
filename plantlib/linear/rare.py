"""Labels of few documents on the scale of the others; docs/method.md, "The linear score".

The stack's logistic regression reads all labels, and nearly all of its cells are labels far below
any list. Its chances are right on average, but where a document's list ends the labels of few
documents are several times as likely as it says, and their scores differ too much. `raised`
therefore maps the sum of a rare label by a line, pivot + spread * (sum - pivot) + added, whose
pivot is the score at which lists end. Of a grid of lines it takes the one that finds most gold
labels of few documents in lists of 15 and leaves the first 5 places as good as any line does. It
reads training documents alone, scored by tables that have not seen them.

Training a decoder on top loses what was raised, since its loss wants chances that are right on
average. `added_to` chooses by the same rule, on dev, what is added to the biases of a trained
model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from scipy import sparse

from plantlib.linear import stacking
from plantlib.linear.stacking import Stack, hats_of
from plantlib.linear.tables import Table, fold_up
from plantlib.metrics.buckets import EDGES
from plantlib.metrics.documents import Scores, mean, ndcg_at_k, recall_at_k
from plantlib.metrics.topk import TopK

FIRST = 5  # places that stay as good as they are
PLACES = 15  # of a list in which labels of few documents are to be found
# labels of up to FULL documents take all of a line, those of NONE and more stay as they are
FULL = 3
NONE = 30
RAISES = np.arange(0, 3.1, 0.25)  # logits to add
SPREADS = (1.0, 0.75, 0.5, 0.35)  # factors of the distance from the pivot
ENOUGH = 200  # documents with labels that choose a raise in full
LOSS = 0.001  # of nDCG@5 below the best line that the chosen one may have


def raised(
    stack: Stack,
    parts: list[dict[str, Table]],
    counts: list[np.ndarray],
    weights: sparse.csr_matrix,
    labels: sparse.csr_matrix,
    fold: np.ndarray,
    *,
    seed: int = 0,
    documents: int = stacking.DOCUMENTS,
) -> Stack:
    """The stack with the line that labels of few documents are mapped by.

    Args:
        stack: weights of the terms, from `stacking.fit` with the same arguments.
        parts, counts, weights, labels, fold: as there.
        seed: of the documents that are drawn.
        documents: how many are read at most.

    Returns:
        The stack as it is where no document read has a gold label of the few bucket.
    """
    rows = stacking.drawn(fold, documents, seed)
    blocks = _scored(stack, parts, counts, weights, fold, rows)
    found = candidates(blocks, labels)
    if not found.few.nnz:
        return stack
    lines = lines_of(stack.knots, found.pivot())
    hats = hats_of(found.known.ravel(), stack.knots)
    scale, shift = lines[found.best(found.mapped(hats @ a, hats @ b) for a, b in lines)]
    return replace(stack, scale=scale, shift=shift)


def added_to(scores: Scores, gold: sparse.csr_matrix, counts: np.ndarray) -> np.ndarray:
    """Logits (L,) to add to each label's bias, chosen on documents that training has not seen.

    A label takes its `share_of` one of RAISES, and less than that where the documents are fewer
    than ENOUGH; they are all 0 where none has a gold label of the few bucket.

    Args:
        scores: of n documents, with the best labels of every bucket.
        gold: (n, L) their labels.
        counts: (L,) training documents per label.
    """
    share = share_of(counts)
    found = listed(scores, gold, counts)
    if not found.few.nnz:
        return np.zeros(len(counts), np.float32)
    own = share_of(found.known).ravel()
    best = found.best(found.mapped(1.0, added * own) for added in RAISES)
    sure = min(1.0, np.count_nonzero(np.diff(gold.indptr)) / ENOUGH)
    return (RAISES[best] * sure * share).astype(np.float32)


def share_of(counts) -> np.ndarray:
    """How much of a line a label of so many documents takes, between 0 and 1; one without any
    takes none, since nothing tells whether it should.
    """
    full, none = np.log(FULL), np.log(NONE)
    share = np.clip((none - np.log(np.maximum(counts, 1))) / (none - full), 0, 1)
    return np.where(np.asarray(counts) > 0, share, 0.0)


def lines_of(knots: tuple[int, ...], pivot: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Scale (K,) and shift (K,) of every line that is tried; the first changes nothing."""
    share = share_of(knots)
    return [
        (1 - share * (1 - spread), share * (added + (1 - spread) * pivot))
        for added, spread in product(RAISES, SPREADS)
    ]


@dataclass(frozen=True, eq=False)
class Candidates:
    """The labels that may stand in the first PLACES of n documents under a line.

    ids: (n, m) labels, -1 in unused places. sums: (n, m) their scores before the line. known:
    (n, m) documents per label.
    gold, few: (n, L) csr, the gold labels that the table of the document knows, and those of them
    that are in its few bucket.
    """

    ids: np.ndarray
    sums: np.ndarray
    known: np.ndarray
    gold: sparse.csr_matrix
    few: sparse.csr_matrix

    def pivot(self) -> float:
        """The score in the last of the first PLACES, the median over documents."""
        sums = np.where(self.ids < 0, -np.inf, self.sums)
        k = min(PLACES, sums.shape[1])
        last = -np.partition(-sums, k - 1, 1)[:, k - 1]
        return float(np.median(last[last > -np.inf])) if (last > -np.inf).any() else 0.0

    def mapped(self, scale, shift) -> np.ndarray:
        """(n, m) scores under a line; scale, shift: a number, or (n * m,) of every place."""
        scores = (scale * self.sums.ravel() + shift).reshape(self.ids.shape)
        return np.where(self.ids < 0, -np.inf, scores)

    def metrics(self, scores: np.ndarray) -> tuple[float, float]:
        """nDCG@5, and recall of `few` in the first PLACES, of lists by `scores` (n, m)."""
        order = np.argsort(-scores, 1, kind="stable")[:, :PLACES]
        best = TopK(np.take_along_axis(self.ids, order, 1), np.take_along_axis(scores, order, 1))
        first = ndcg_at_k(best, self.gold, min(FIRST, best.k))
        return mean(first), mean(recall_at_k(best, self.few, best.k))

    def best(self, tried: Iterable[np.ndarray]) -> int:
        """Which of some scores (n, m) finds most of `few`, of those that leave the first places as
        good as any does.
        """
        values = np.array([self.metrics(scores) for scores in tried])
        allowed = values[:, 0] >= values[:, 0].max() - LOSS
        return int(np.argmax(np.where(allowed, values[:, 1], -1)))


def listed(scores: Scores, gold: sparse.csr_matrix, counts: np.ndarray) -> Candidates:
    """The labels in the lists of n documents, over all labels and of each bucket.

    Arguments as for `added_to`.
    """
    parts = [scores.topk, *scores.buckets.values()]
    ids, sums = (np.concatenate([getattr(p, of) for p in parts], 1) for of in ("ids", "scores"))
    # a label of the common list stands in its bucket's list again
    order = np.argsort(ids, 1, kind="stable")
    ids, sums = (np.take_along_axis(values, order, 1) for values in (ids, sums))
    ids[:, 1:][ids[:, 1:] == ids[:, :-1]] = -1
    few = _columns(gold, scores.masks["few"])
    return Candidates(ids, sums, np.asarray(counts)[ids], gold, few)


def candidates(blocks, labels: sparse.csr_matrix) -> Candidates:
    """Of the labels that lines move the 2 * PLACES best of each document, of the others PLACES.

    blocks: rows (b,), scores (b, L) and documents per label (L,). labels: (n, L).
    """
    ids, sums, counts, gold, few = [], [], [], [], []
    for rows, scores, known in blocks:
        moved = known < NONE
        # a label that no document of the part has is not scored
        own = _best(np.where(moved & (known > 0), scores, -np.inf), 2 * PLACES)
        others = _best(np.where(moved, -np.inf, scores), PLACES)
        here = np.concatenate([own, others], 1)
        used = np.concatenate([moved[own] & (known[own] > 0), ~moved[others]], 1)
        ids.append(np.where(used, here, -1))
        sums.append(np.take_along_axis(scores, here, 1))
        counts.append(known[here])
        gold.append(_columns(labels[rows], known > 0))
        few.append(_columns(labels[rows], (known > EDGES[0]) & (known <= EDGES[1])))
    stacked = (np.concatenate(values) for values in (ids, sums, counts))
    return Candidates(*stacked, sparse.vstack(gold, "csr"), sparse.vstack(few, "csr"))


def _scored(
    stack: Stack, parts, counts, weights: sparse.csr_matrix, fold: np.ndarray, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Blocks of rows, their scores out of fold, and the documents per label of the part."""
    table, of = None, -1
    for k, block in stacking.blocks_of(rows, fold):
        if k != of:
            table, of = fold_up(parts[k], stack, counts[k]), k
        yield block, table.scores(weights[block]), counts[k]


def _columns(labels: sparse.csr_matrix, which: np.ndarray) -> sparse.csr_matrix:
    """labels (n, L) without the columns that are not in which (L,)."""
    kept = labels.copy()
    kept.data = kept.data * which[kept.indices]
    kept.eliminate_zeros()
    return kept


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """(b, min(k, L)) the best labels of every row of scores (b, L), in no order."""
    k = min(k, scores.shape[1])
    return np.argpartition(-scores, k - 1, axis=1)[:, :k]
