"""Candidate labels of a document from the sparse teacher, for label sets too large to score whole;
docs/method.md, "Candidate labels".

A `Ranker` keeps the best labels of every token, so that ranking a document costs what its tokens
list, not L. MI favours frequent labels and J rare ones: `interleaved` takes turns. Gold labels join
the candidates in training alone (`training_candidates`); `Ranker.rank`, which prediction uses,
reads no labels, and `recall` measures what candidates lose. The decoder on such (B, C) lists is in
`candidates.decoder`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from plantlib.metrics.statistics import largest, order_keys
from plantlib.teacher import mig
from plantlib.utils.base import DataError
from plantlib.utils.progress import tqdm

NONE = -1  # an unused place
PER_TOKEN = 512  # labels that the ranker keeps per token: its memory is this times the vocabulary
HARD = 0.5  # share of the negatives that are the highest ranked ones


@dataclass(frozen=True, eq=False)
class Ranker:
    """The best labels of every token.

    indptr: (V+1), where the list of each token begins.
    labels: (M,) int32. values: (M,) float32, the teacher's scores.
    num_labels: L.
    """

    indptr: np.ndarray
    labels: np.ndarray
    values: np.ndarray
    num_labels: int

    @classmethod
    def of(cls, scores: sparse.csr_matrix, per_token: int = PER_TOKEN) -> Ranker:
        """From a teacher's scores, csr (L, V): the `per_token` labels of highest score per token,
        ties to the smaller id.
        """
        if per_token < 1:
            raise ValueError(f"per_token={per_token}: keep at least 1 label per token")
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
        """Rank labels for n documents by the weighted sum of scores over their tokens.

        Args:
            weights: (n, V) csr, token weights.
            width: labels per document.
            progress: show a bar for 5,000 documents or more.

        Returns:
            ids (n, width) int32, best first, and scores (n, width) float32; unused places hold -1
            and minus infinity.
        """
        n = weights.shape[0]
        ids = np.full((n, width), NONE, np.int32)
        scores = np.full((n, width), -np.inf, np.float32)
        for i in tqdm(range(n), desc="candidates", unit="doc", disable=not progress or n < 5000):
            part = slice(weights.indptr[i], weights.indptr[i + 1])
            labels, sums = self._sums(weights.indices[part], weights.data[part])
            best = _best(labels, sums, width)
            ids[i, : best.size] = labels[best]
            scores[i, : best.size] = sums[best]
        return ids, scores

    def _sums(self, tokens: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels that the tokens list, ascending, and their sums; nothing of size L is made."""
        # the lists of all tokens, one after the other
        first = self.indptr[tokens]
        count = self.indptr[tokens + 1] - first
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        index = np.repeat(first, count) + within
        labels = self.labels[index]
        values = self.values[index] * np.repeat(weights, count).astype(np.float32)
        if not labels.size:
            return labels, values
        # sum the values of each label
        order = np.argsort(labels, kind="stable")
        labels, values = labels[order], values[order]
        starts = np.flatnonzero(np.append(True, labels[1:] != labels[:-1]))
        return labels[starts], np.add.reduceat(values, starts)


def _best(labels: np.ndarray, sums: np.ndarray, width: int) -> np.ndarray:
    """Places of the `width` highest sums, best first, ties to the smaller label."""
    if sums.size > width:
        edge = np.partition(sums, sums.size - width)[sums.size - width]
        places = np.flatnonzero(sums >= edge)
    else:
        places = np.arange(sums.size)
    return places[np.lexsort((labels[places], -sums[places]))][:width]


def best_of(scores: np.ndarray, depth: int) -> np.ndarray:
    """(b, depth) int32 ids of the highest of (b, L) scores, best first, ties to the smaller id."""
    # the lower half of a key is the label, counted from the end
    keys = largest(order_keys(np.asarray(scores)), depth)
    return (scores.shape[1] - 1 - (keys & 0xFFFFFFFF)).astype(np.int32)


def best_of_sums(
    sums: sparse.csr_matrix, intercept: np.ndarray, scale: np.ndarray, shift: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best labels of documents by a linear score; nothing of size (b, L) is made.

    A label that shares no word with a document has its intercept for a score, and of these only the
    best can be candidates.

    Args:
        sums: (b, L) csr float32, what the words of each document add.
        intercept: (L,) float32, the rest of the score.
        scale, shift: (L,), labels are ranked by shift + scale * score.
        width: labels per document.

    Returns:
        ids (b, width) int32, best first, ties to the smaller id, and their scores (b, width),
        float32 and without the line; the last places hold -1 and minus infinity where width is
        above L.
    """
    count = sums.shape[1]
    intercept, scale, shift = (np.asarray(x, np.float32) for x in (intercept, scale, shift))
    ids = np.full((sums.shape[0], width), NONE, np.int32)
    scores = np.full((sums.shape[0], width), -np.inf, np.float32)
    order = np.argsort(-(shift + scale * intercept), kind="stable")
    shared = np.zeros(count, bool)
    for i in range(sums.shape[0]):
        part = slice(sums.indptr[i], sums.indptr[i + 1])
        labels = sums.indices[part]
        # the best labels that share no word
        shared[labels] = True
        first = order[: width + len(labels)]
        others = first[~shared[first]][:width]
        shared[labels] = False
        both = np.concatenate([labels, others])
        found = intercept[both]
        found[: len(labels)] += sums.data[part]
        best = _best(both, shift[both] + scale[both] * found, width)
        ids[i, : best.size] = both[best]
        scores[i, : best.size] = found[best]
    return ids, scores


def interleaved(first: np.ndarray, second: np.ndarray, width: int) -> np.ndarray:
    """(n, width) ids that take turns between two rankings (n, .), each label once."""
    out = np.full((len(first), width), NONE, np.int32)
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        turns = np.full(2 * max(a.size, b.size), NONE, np.int32)
        turns[: 2 * a.size : 2] = a
        turns[1 : 2 * b.size : 2] = b
        turns = turns[turns != NONE]
        _, place = np.unique(turns, return_index=True)
        chosen = turns[np.sort(place)][:width]
        out[i, : chosen.size] = chosen
    return out


def recall(ids: np.ndarray, gold: sparse.csr_matrix, widths: tuple[int, ...]) -> dict[int, float]:
    """Share of a document's gold labels among its first C candidates: a bound of every recall
    after it.

    Args:
        ids: (n, M) candidates, best first.
        gold: (n, L) csr.
        widths: each C, at most M.

    Returns:
        {C: mean over documents that have gold labels}, nan without any.

    Raises:
        ValueError: a width is larger than M.
    """
    if max(widths) > ids.shape[1]:
        raise ValueError(
            f"recall at {max(widths)} of {ids.shape[1]} candidates: rank at least that many"
        )
    shares: dict[int, list[float]] = {c: [] for c in widths}
    for i, row in enumerate(ids):
        true = gold.indices[gold.indptr[i] : gold.indptr[i + 1]]
        if true.size:
            hit = np.isin(row, true)
            for c in widths:
                shares[c].append(hit[:c].sum() / true.size)
    return {c: float(np.mean(values)) if values else float("nan") for c, values in shares.items()}


def training_candidates(
    ranked: np.ndarray,
    gold: sparse.csr_matrix,
    width: int,
    rng: np.random.Generator,
    hard: float = HARD,
    *,
    unlisted: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Candidates for training: the gold labels, then negatives that the ranker takes for gold.

    Args:
        ranked: (b, M) the ranker's lists; more than `width` places leave a choice of negatives.
        gold: (b, L) csr.
        width: places per document.
        rng: draws negatives.
        hard: share of the negatives that are the highest ranked ones; the others are drawn from the
            rest of the list.
        unlisted: also train gold labels outside the first `width` of a list, though prediction
            never asks for them there. Negatives come from the whole list either way.

    Returns:
        ids (b, width), -1 in unused places, and positive (b, width) bool.

    Raises:
        DataError: a document has more than `width` gold labels.
    """
    ids = np.full((len(ranked), width), NONE, np.int32)
    positive = np.zeros((len(ranked), width), bool)
    for i, row in enumerate(ranked):
        true = gold.indices[gold.indptr[i] : gold.indptr[i + 1]]
        if true.size > width:
            raise DataError(
                f"a document has {true.size} labels and {width} candidate places; use a width of"
                f" {true.size} or more"
            )
        wrong = row[(row != NONE) & ~np.isin(row, true)]
        if not unlisted:
            true = true[np.isin(true, row[:width])]
        # the highest ranked negatives, and some drawn from the rest
        room = min(width - true.size, wrong.size)
        first = wrong[: round(hard * room)]
        rest = wrong[first.size :]
        more = room - first.size
        drawn = rng.choice(rest, more, replace=False) if more else rest[:0]
        ids[i, : true.size + room] = np.concatenate([true, first, drawn])
        positive[i, : true.size] = True
    return ids, positive


def pair_scores(
    scores: sparse.csr_matrix, weights: sparse.csr_matrix, ids: np.ndarray
) -> np.ndarray:
    """Exact teacher scores of documents and labels.

    They come from the labels' rows, so a label that the pruned ranker missed gets the score it
    would have had: training cannot tell a gold label that was added by a missing score.

    Args:
        scores: (L, V) csr, the teacher's.
        weights: (b, V) csr, token weights.
        ids: (b, C) labels, -1 in unused places.

    Returns:
        (b, C) float32, 0 in unused places.
    """
    out = np.zeros(ids.shape, np.float32)
    scratch = np.zeros(scores.shape[1], np.float32)  # the weights of one document
    for i, row in enumerate(ids):
        part = slice(weights.indptr[i], weights.indptr[i + 1])
        scratch[weights.indices[part]] = weights.data[part]
        used = row != NONE
        out[i, used] = scores[row[used]] @ scratch
        scratch[weights.indices[part]] = 0
    return out


def listed_scores(ranked: np.ndarray, scores: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The scores that lists gave to their labels.

    Args:
        ranked: (b, M) label ids of each document's list.
        scores: (b, M) their scores.
        ids: (b, C) labels to look up, -1 in unused places.

    Returns:
        (b, C), 0 in unused places.

    Raises:
        ValueError: an id is not in its document's list.
    """
    # one search for all documents: a key holds document and label; the step leaves room for the
    # largest id, and for the -1 of the next document
    step = 2 + max(ranked.max(initial=0), ids.max(initial=0))
    document = np.arange(len(ids))[:, None] * step
    listed = (ranked + document).ravel()
    keys = (ids.clip(min=0) + document).ravel()
    order = np.argsort(listed)
    place = order[np.searchsorted(listed, keys, sorter=order).clip(max=listed.size - 1)]
    unlisted = (listed[place] != keys) & (ids.ravel() != NONE)
    if unlisted.any():
        raise ValueError(
            f"label {ids.ravel()[unlisted][0]} is not among the listed candidates of its document;"
            " list more"
        )
    return np.where(ids == NONE, scores.dtype.type(0), scores.ravel()[place].reshape(ids.shape))


def planted_cells(
    relevance: sparse.csr_matrix, labels: np.ndarray, token_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Planted cells of packed tokens for some labels, from the labels' rows alone: the cost does
    not depend on L.

    Args:
        relevance: G (L, V) csr.
        labels: (U,) distinct ids.
        token_ids: (S,).

    Returns:
        Positions in `token_ids`, places in `labels` and values of G, (M,) each, by label.
    """
    rows = relevance[labels]
    # where each planted token stands, by a search in the sorted tokens
    order = np.argsort(token_ids, kind="stable")
    ordered = token_ids[order]
    first = np.searchsorted(ordered, rows.indices, side="left")
    count = np.searchsorted(ordered, rows.indices, side="right") - first
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    places = np.repeat(np.repeat(np.arange(len(labels)), np.diff(rows.indptr)), count)
    positions = order[np.repeat(first, count) + within]
    return positions, places, np.repeat(rows.data, count).astype(np.float32)
