"""The k best labels of each document, in one order: best first, ties by smaller label id.

What every scorer gives and `metrics` reads; N documents, L labels, k places. Not here: what a place
is worth (`metrics`).
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
        """block: (b, L) numpy array or torch tensor of scores -> the k best of each row."""
        return cls(*decode_keys(largest(order_keys(unwrap(block)), k), block.shape[1]))

    @classmethod
    def from_sparse(cls, csr_scores: sparse.csr_matrix, k: int) -> TopK:
        """csr_scores: (N, L); stored entries, explicit zeros too, are scored, the others are not."""
        matrix = sparse.csr_matrix(csr_scores)
        refuse_nan(matrix.data)
        n, data = matrix.shape[0], matrix.data.astype(np.float32)
        rows = np.repeat(np.arange(n), np.diff(matrix.indptr))
        order = np.lexsort((matrix.indices, -data, rows))
        order = order[data[order] > -np.inf]
        place = np.arange(order.size) - np.searchsorted(rows[order], rows[order])
        order, place = order[place < k], place[place < k]
        ids, scores = np.full((n, k), -1, np.int32), np.full((n, k), -np.inf, np.float32)
        ids[rows[order], place], scores[rows[order], place] = matrix.indices[order], data[order]
        return cls(ids, scores)

    @classmethod
    def concat(cls, parts: Sequence[TopK]) -> TopK:
        """Stacks the documents of several TopK of equal k (ValueError otherwise)."""
        return cls(
            np.concatenate([p.ids for p in parts]), np.concatenate([p.scores for p in parts])
        )

    @classmethod
    def of_lists(cls, ids: np.ndarray, scores: np.ndarray) -> TopK:
        """ids (N, k), -1 for none, and their scores (N, k), put in order; a score where there is no
        id does not count.
        """
        scores = np.where(ids >= 0, scores, -np.inf).astype(np.float32)
        refuse_nan(scores)
        order = np.lexsort((ids, -scores), axis=1)
        return cls(np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1))

    def raised(self, added: np.ndarray) -> TopK:
        """The same places by score plus `added` (L,) of their label.

        Labels that have no place are not brought in: take all that a decoder has scored, not the
        best of them.
        """
        return self.of_lists(self.ids, self.scores + np.asarray(added, np.float32)[self.ids])

    def cut(self, k: int) -> TopK:
        """The first k places; unused ones behind them where there are fewer."""
        ids, scores = self.ids[:, :k], self.scores[:, :k]
        short = ((0, 0), (0, k - ids.shape[1]))
        return TopK(
            np.pad(ids, short, constant_values=-1), np.pad(scores, short, constant_values=-np.inf)
        )
