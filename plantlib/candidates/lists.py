"""Candidate labels of a document from the sparse teacher, for label sets too large to score whole;
METHOD.md section 1.

A `Ranker` keeps the best `per_token` labels of every token, so that ranking a document costs what
its tokens list, not L. MI favours frequent labels and J rare ones: `interleaved` takes turns. True
labels join the candidates in training alone (`training_candidates`); what `Ranker.rank` gives for
prediction takes no labels (METHOD.md section 6, fault 11), and `recall` says what it loses. The
decoder on such (B, C) lists is in `candidate_decoder.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from plantlib.teacher import mig
from plantlib.utils.base import DataError
from plantlib.utils.progress import tqdm

NONE = -1  # an unused place
PER_TOKEN = 512  # labels that the ranker keeps per token: its memory is this times the vocabulary
HARD = 0.5  # share of the negatives that are the highest ranked ones


@dataclass(frozen=True, eq=False)
class Ranker:
    """Token -> its best labels: csr-like `indptr` (V+1), `labels` (M,) int32 and `values` (M,)
    float32.
    """

    indptr: np.ndarray
    labels: np.ndarray
    values: np.ndarray
    num_labels: int

    @classmethod
    def of(cls, scores: sparse.csr_matrix, per_token: int = PER_TOKEN) -> Ranker:
        """From a teacher's scores, csr (L, V): the `per_token` labels a token speaks for most, ties
        to the smaller id.
        """
        if per_token < 1:
            raise ValueError(f"per_token={per_token}: keep at least 1 label a token")
        best, _ = mig.top_tokens(scores.T.tocsr(), per_token)
        return cls(
            best.indptr.astype(np.int64),
            best.indices.astype(np.int32),
            best.data.astype(np.float32),
            scores.shape[0],
        )

    def rank(
        self, weights: sparse.csr_matrix, width: int, progress: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """ids (n, width) int32, best first, and scores (n, width) float32, of documents with token
        weights (n, V).

        A document's score of a label is the weighted sum over its tokens. Unused places hold -1 and
        minus infinity.
        """
        n = weights.shape[0]
        ids, scores = np.full((n, width), NONE, np.int32), np.full((n, width), -np.inf, np.float32)
        for i in tqdm(range(n), desc="candidates", unit="doc", disable=not progress or n < 5000):
            part = slice(weights.indptr[i], weights.indptr[i + 1])
            labels, sums = self._sums(weights.indices[part], weights.data[part])
            kept = _best(labels, sums, width)
            ids[i, : kept.size], scores[i, : kept.size] = labels[kept], sums[kept]
        return ids, scores

    def _sums(self, tokens: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels the tokens list, ascending, and their sums; nothing of size L is made."""
        first = self.indptr[tokens]
        count = self.indptr[tokens + 1] - first
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        index = np.repeat(first, count) + within
        labels, values = (
            self.labels[index],
            self.values[index] * np.repeat(weights, count).astype(np.float32),
        )
        order = np.argsort(labels, kind="stable")
        labels, values = labels[order], values[order]
        starts = (
            np.flatnonzero(np.append(True, labels[1:] != labels[:-1]))
            if labels.size
            else np.zeros(0, np.int64)
        )
        return labels[starts], np.add.reduceat(values, starts) if starts.size else values


def _best(labels: np.ndarray, sums: np.ndarray, width: int) -> np.ndarray:
    """Places of the `width` highest sums, best first, ties to the smaller label."""
    if sums.size > width:
        edge = np.partition(sums, sums.size - width)[sums.size - width]
        places = np.flatnonzero(sums >= edge)
    else:
        places = np.arange(sums.size)
    return places[np.lexsort((labels[places], -sums[places]))][:width]


def interleaved(first: np.ndarray, second: np.ndarray, width: int) -> np.ndarray:
    """(n, width) ids taking turns between two rankings (n, .), each label once."""
    out = np.full((len(first), width), NONE, np.int32)
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        turns = np.full(2 * max(a.size, b.size), NONE, np.int32)
        turns[: 2 * a.size : 2], turns[1 : 2 * b.size : 2] = a, b
        turns = turns[turns != NONE]
        _, place = np.unique(turns, return_index=True)
        chosen = turns[np.sort(place)][:width]
        out[i, : chosen.size] = chosen
    return out


def recall(ids: np.ndarray, gold: sparse.csr_matrix, widths: tuple[int, ...]) -> dict[int, float]:
    """Share of a document's gold labels among its first C candidates, mean over documents with
    gold, for each C of `widths`.

    What candidates lose no decoder finds again: this bounds every recall after it.
    """
    if max(widths) > ids.shape[1]:
        raise ValueError(
            f"recall at {max(widths)} of {ids.shape[1]} candidates: rank at least that many"
        )
    found: dict[int, list[float]] = {c: [] for c in widths}
    for i, row in enumerate(ids):
        own = gold.indices[gold.indptr[i] : gold.indptr[i + 1]]
        if own.size:
            hit = np.isin(row, own)
            for c in widths:
                found[c].append(hit[:c].sum() / own.size)
    return {c: float(np.mean(values)) if values else float("nan") for c, values in found.items()}


def training_candidates(
    ranked: np.ndarray,
    gold: sparse.csr_matrix,
    width: int,
    rng: np.random.Generator,
    hard: float = HARD,
    *,
    unlisted: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """ids (b, width) and positive (b, width) bool for training: the gold labels, then negatives the
    ranker takes for gold.

    ranked (b, M): the ranker's lists, M >= width gives a choice. A share `hard` of the negatives
    are the highest ranked ones, the rest are drawn from the list's remainder. unlisted: gold labels
    outside the first `width` of a list are trained too, though prediction never asks for them
    there; negatives come from the whole list either way. Raises DataError where a document has more
    than `width` gold labels.
    """
    ids, positive = (
        np.full((len(ranked), width), NONE, np.int32),
        np.zeros((len(ranked), width), bool),
    )
    for i, row in enumerate(ranked):
        own = gold.indices[gold.indptr[i] : gold.indptr[i + 1]]
        if own.size > width:
            raise DataError(
                f"a document has {own.size} labels and {width} candidate places; use a width of"
                f" {own.size} or more"
            )
        wrong = row[(row != NONE) & ~np.isin(row, own)]
        own = own if unlisted else own[np.isin(own, row[:width])]
        room = min(width - own.size, wrong.size)
        sure = wrong[: round(hard * room)]
        rest = wrong[sure.size :]
        drawn = rng.choice(rest, room - sure.size, replace=False) if room > sure.size else rest[:0]
        ids[i, : own.size + room] = np.concatenate([own, sure, drawn])
        positive[i, : own.size] = True
    return ids, positive


def pair_scores(
    scores: sparse.csr_matrix, weights: sparse.csr_matrix, ids: np.ndarray
) -> np.ndarray:
    """(b, C) float32 exact teacher scores of given pairs; scores csr (L, V), weights csr (b, V),
    ids (b, C), -1 none.

    From the labels' rows, so a label that the pruned ranker missed gets the score it would have
    had: a positive that was added in training cannot be told by a missing score.
    """
    out, scratch = np.zeros(ids.shape, np.float32), np.zeros(scores.shape[1], np.float32)
    for i, row in enumerate(ids):
        part = slice(weights.indptr[i], weights.indptr[i + 1])
        scratch[weights.indices[part]] = weights.data[part]
        used = row != NONE
        out[i, used] = scores[row[used]] @ scratch
        scratch[weights.indices[part]] = 0
    return out


def listed_scores(ranked: np.ndarray, scores: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """(b, C) the scores (b, M) that lists ranked (b, M) gave to ids (b, C), 0 where an id is -1.

    Raises ValueError for an id that is not in its document's list: its score is not known here.
    """
    # one search for all documents: an id's key tells its document too
    # beyond the largest id, and -1 of the next document
    step = 2 + max(ranked.max(initial=0), ids.max(initial=0))
    document = np.arange(len(ids))[:, None] * step
    keys, wanted = (ranked + document).ravel(), (ids.clip(min=0) + document).ravel()
    order = np.argsort(keys)
    place = order[np.searchsorted(keys, wanted, sorter=order).clip(max=keys.size - 1)]
    unlisted = (keys[place] != wanted) & (ids.ravel() != NONE)
    if unlisted.any():
        raise ValueError(
            f"label {ids.ravel()[unlisted][0]} is not among the listed candidates of its document;"
            " list more"
        )
    return np.where(ids == NONE, scores.dtype.type(0), scores.ravel()[place].reshape(ids.shape))


def planted_cells(relevance: sparse.csr_matrix, labels: np.ndarray, token_ids: np.ndarray):
    """(positions, places in `labels`, G) of planted cells of packed tokens (S,), by label; from the
    labels' rows alone.

    relevance csr (L, V); labels (U,) distinct ids. Costs U K and the cells found, whatever L is.
    """
    rows = relevance[labels]
    order = np.argsort(token_ids, kind="stable")
    ordered = token_ids[order]
    first = np.searchsorted(ordered, rows.indices, side="left")
    count = np.searchsorted(ordered, rows.indices, side="right") - first
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    places = np.repeat(np.repeat(np.arange(len(labels)), np.diff(rows.indptr)), count)
    return (
        order[np.repeat(first, count) + within],
        places,
        np.repeat(rows.data, count).astype(np.float32),
    )
