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
from plantlib.metrics import mean, ndcg_at_k
from plantlib.topk import TopK

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of what was asked for, that dev chooses among


def rare(train_counts: np.ndarray, edges: Edges = EDGES) -> np.ndarray:
    """(L,) bool: labels of the few bucket and those without a training document."""
    return np.asarray(train_counts) <= checked(edges)[1]


def choose(
    ranking: TopK, Y: Any, which: np.ndarray, most: float, loss: float, shares: Iterable[float] = SHARES
) -> tuple[float, dict[str, float]]:
    """(what to add, dev's nDCG@5 of each share of `most`): the largest that costs at most `loss` of the nDCG@5 without it.

    ranking and Y: dev's candidates with their scores and its gold labels; which: (L,) bool, the labels to raise.
    """
    values = sorted({0.0, *(share * most for share in shares)})
    found = {value: mean(ndcg_at_k(ranking.raised(value * which), Y, min(5, ranking.k))) for value in values}
    kept = [value for value in values if found[value] >= found[0.0] - loss]
    return max(kept), {f"{value:g}": round(metric, 6) for value, metric in found.items()}
