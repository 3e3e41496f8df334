"""Rare labels raised in a ranking: so much of a logit for each label of few documents as dev's first places can do without.

A likely label stands before a rare one in any ranking by probability, so that lists of 15 hold few labels with 1 to 5 training
documents, true or not. Whoever reads such a list for its rare labels adds a constant to them (METHOD.md section 7: head and
tail at once). Where candidates are listed that costs nothing; in the ranking itself dev says how much is too much.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from plantlib.buckets import EDGES, Edges, checked
from plantlib.metrics import TopK, mean, ndcg_at_k

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of what was asked for, that dev chooses among


def rare(train_counts: np.ndarray, edges: Edges = EDGES) -> np.ndarray:
    """(L,) bool: labels of the few bucket and those without a training document."""
    return np.asarray(train_counts) <= checked(edges)[1]


def raised(ranking: TopK, added: np.ndarray) -> TopK:
    """The places of `ranking` by score plus `added` (L,) of their label, ties to the smaller id; as many places.

    Labels that the ranking does not hold are not brought in: give all candidates, not the best of them.
    """
    used = ranking.ids >= 0
    scores = ranking.scores + np.where(used, np.asarray(added, np.float32)[ranking.ids], np.float32(0))
    order = np.lexsort((ranking.ids, -scores), axis=1)
    return TopK(np.take_along_axis(ranking.ids, order, 1), np.take_along_axis(scores, order, 1).astype(np.float32))


def choose(
    ranking: TopK, Y: Any, which: np.ndarray, most: float, loss: float, shares: Iterable[float] = SHARES
) -> tuple[float, dict[str, float]]:
    """(what to add, dev's nDCG@5 of each share of `most`): the largest that costs at most `loss` of the nDCG@5 without it.

    ranking and Y: dev's candidates with their scores and its gold labels; which: (L,) bool, the labels to raise.
    """
    values = sorted({0.0, *(share * most for share in shares)})
    found = {value: mean(ndcg_at_k(raised(ranking, value * which), Y, min(5, ranking.k))) for value in values}
    kept = [value for value in values if found[value] >= found[0.0] - loss]
    return max(kept), {f"{value:g}": round(metric, 6) for value, metric in found.items()}
