"""The k best labels of each document, best first, ties by smaller label id.

Every scorer returns a `TopK` and the metrics in `documents` read it. N documents, L labels, k
places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from plantlib.metrics.statistics import decode_keys, largest, order_keys, refuse_nan, unwrap


@dataclass(frozen=True)
class TopK:
    """The k best labels of each document, best first, ties by smaller label id.

    ids: (N, k) int32, -1 in unused places; scores: (N, k) float32, -inf in unused places.
    Scores are compared as float32; a score of -inf means "not scored" and never takes a place.
    """

    ids: np.ndarray
    scores: np.ndarray

    @property
    def k(self) -> int:
        return self.ids.shape[1]

    @classmethod
    def from_dense(cls, block: Any, k: int) -> TopK:
        """The k best of each row of `block`, (N, L) scores as a numpy array or torch tensor."""
        return cls(*decode_keys(largest(order_keys(unwrap(block)), k), block.shape[1]))

    @classmethod
    def from_sparse(cls, csr_scores: sparse.csr_matrix, k: int) -> TopK:
        """The k best of each row of csr_scores (N, L).

        Stored entries are scored, explicit zeros too; the others are not.
        """
        matrix = sparse.csr_matrix(csr_scores)
        refuse_nan(matrix.data)
        n, data = matrix.shape[0], matrix.data.astype(np.float32)
        # entries by row, falling score, label id; those without a score leave
        rows = np.repeat(np.arange(n), np.diff(matrix.indptr))
        order = np.lexsort((matrix.indices, -data, rows))
        order = order[data[order] > -np.inf]
        place = np.arange(order.size) - np.searchsorted(rows[order], rows[order])
        # the first k of each row
        order, place = order[place < k], place[place < k]
        ids = np.full((n, k), -1, np.int32)
        scores = np.full((n, k), -np.inf, np.float32)
        ids[rows[order], place] = matrix.indices[order]
        scores[rows[order], place] = data[order]
        return cls(ids, scores)

    @classmethod
    def concat(cls, parts: Sequence[TopK]) -> TopK:
        """The documents of several TopK, one after another; ValueError unless k is the same."""
        return cls(
            np.concatenate([p.ids for p in parts]), np.concatenate([p.scores for p in parts])
        )

    @classmethod
    def of_lists(cls, ids: np.ndarray, scores: np.ndarray) -> TopK:
        """Sort lists of labels.

        Args:
            ids: (N, k) label ids, -1 for none.
            scores: (N, k) their scores; where the id is -1 the score is ignored.
        """
        scores = np.where(ids >= 0, scores, -np.inf).astype(np.float32)
        refuse_nan(scores)
        order = np.lexsort((ids, -scores), axis=1)
        return cls(np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1))

    @classmethod
    def merged(cls, parts: Sequence[TopK]) -> TopK:
        """The best labels of the same documents from lists that share no label, k as before."""
        ids, scores = ([getattr(p, of) for p in parts] for of in ("ids", "scores"))
        return cls.of_lists(np.concatenate(ids, 1), np.concatenate(scores, 1)).cut(parts[0].k)

    def cut(self, k: int) -> TopK:
        """The first k places, padded with unused ones if there are fewer."""
        ids, scores = self.ids[:, :k], self.scores[:, :k]
        missing = ((0, 0), (0, k - ids.shape[1]))
        return TopK(
            np.pad(ids, missing, constant_values=-1),
            np.pad(scores, missing, constant_values=-np.inf),
        )


def restrict(topk: TopK, mask: np.ndarray) -> TopK:
    """The labels of `topk` that lie in `mask` (L,), moved left; the number of places stays.

    `topk` may lack labels of the mask below its k places, so metrics of the result are lower
    bounds. `documents.StreamingEvaluator` ranks buckets exactly.
    """
    keep = (topk.ids >= 0) & np.asarray(mask)[topk.ids]
    order = np.argsort(~keep, axis=1, kind="stable")
    ids = np.where(keep, topk.ids, -1)
    scores = np.where(keep, topk.scores, np.float32(-np.inf))
    return TopK(np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1))
