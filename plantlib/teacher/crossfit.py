"""The teacher without the document that it guides: exact leave-one-out of a document's own lists.

A training document has been counted for the lists of its labels. A label with one training document
is taught the words of just that document, and attention planted there finds them without fail in
training and nothing of the kind later. So a training document reads the lists of its own labels as
they are counted without it; other documents, and the lists of other labels, read the teacher as it
is. Leaving a document out takes one from C, n_t, n_l and N where it holds token and label, so no
counting is repeated. See docs/method.md, "The cross-fitted teacher".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from plantlib.kernels.counts import Margins, blocks_of_labels, column_counts, presence
from plantlib.teacher.mig import Teacher, TeacherConfig, associations, grades


@dataclass(frozen=True, eq=False)
class Withheld:
    """What changes for n training documents when none of them is counted for its own labels.

    A cell is a token of a document and one of the document's labels; the cells of document i are
    those from indptr[i] to indptr[i + 1], sorted by token.

    indptr: (n + 1,). tokens, labels: (M,) ids. relevance, scores: (M,) what is added to the
    teacher's relevance and score. score_labels: (M,) ids of the labels whose scores change, where
    the shuffled control has moved the lists; None where they are `labels`.
    """

    indptr: np.ndarray
    tokens: np.ndarray
    labels: np.ndarray
    relevance: np.ndarray
    scores: np.ndarray
    score_labels: np.ndarray | None = None

    def document(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, labels, relevance and scores of document i."""
        part = slice(self.indptr[i], self.indptr[i + 1])
        return self.tokens[part], self.labels[part], self.relevance[part], self.scores[part]

    def cells(
        self, documents: Sequence[int], ids: np.ndarray, offsets: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The changes of relevance at the tokens of a packed batch, sorted by label.

        Args:
            documents: (B,) numbers of the batch's documents.
            ids: (S,) token ids of the batch. offsets: (B + 1,) where each document begins.

        Returns:
            cell_positions in the batch, cell_labels and cell_values, (M,) each.
        """
        positions, cells = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for b, i in enumerate(documents):
            begin, end = offsets[b], offsets[b + 1]
            order = begin + np.argsort(ids[begin:end], kind="stable")
            of_cells = self.tokens[self.indptr[i] : self.indptr[i + 1]]
            first = np.searchsorted(ids[order], of_cells, side="left")
            count = np.searchsorted(ids[order], of_cells, side="right") - first
            # each cell once for every place of its token
            within = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count)
            positions.append(order[np.repeat(first, count) + within])
            cells.append(self.indptr[i] + np.repeat(np.arange(len(of_cells)), count))
        place, cell = np.concatenate(positions), np.concatenate(cells)
        order = np.argsort(self.labels[cell], kind="stable")
        place, cell = place[order], cell[order]
        return {
            "cell_positions": place,
            "cell_labels": self.labels[cell].astype(np.int64),
            "cell_values": self.relevance[cell],
        }

    def cells_of(self, i: int, ids: np.ndarray) -> dict[str, np.ndarray]:
        """`cells` of document i alone; ids: (T,) its tokens."""
        return self.cells([i], ids, np.array([0, len(ids)]))

    def score_changes(self, documents: Sequence[int]) -> dict[str, np.ndarray]:
        """The changes of scores for documents (B,): score_rows from 0 to B - 1, score_tokens,
        score_labels and score_values, (M,) each.
        """
        parts = [np.arange(self.indptr[i], self.indptr[i + 1]) for i in documents]
        cells = np.concatenate(parts)
        labels = self.labels if self.score_labels is None else self.score_labels
        return {
            "score_rows": np.repeat(np.arange(len(documents)), [len(part) for part in parts]),
            "score_tokens": self.tokens[cells].astype(np.int64),
            "score_labels": labels[cells].astype(np.int64),
            "score_values": self.scores[cells],
        }

    def only(self, relevance: bool, scores: bool) -> Withheld:
        """The changes of relevance, of scores, or of both."""
        parts = {"relevance": self.relevance * relevance, "scores": self.scores * scores}
        return replace(self, **parts)

    def relabelled(self, order: np.ndarray) -> Withheld:
        """The shuffled control: label l takes the list that label order[l] had, a permutation.

        Scores of documents are not shuffled, so their changes stay.
        """
        new = np.empty(len(order), self.labels.dtype)
        new[order] = np.arange(len(order))
        return replace(self, labels=new[self.labels], score_labels=self.labels)


def withhold(
    x: sparse.csr_matrix,
    y: sparse.csr_matrix,
    teacher: Teacher,
    config: TeacherConfig = TeacherConfig(),
    words: Teacher | None = None,
    memory_mb: float = 256.0,
) -> Withheld:
    """Compare the teacher with what it would be without each document.

    Equal to counting again without the document, for the labels that the document has. The variant
    "random" is not counted and changes nothing.

    Args:
        x: (n, V) csr, token counts or presence of the training rows.
        y: (n, L) csr, their labels.
        teacher: counted on x and y with `config`, and joined with `words` if there are any.
        config: how tokens are scored, kept and graded.
        words: scores of the labels' own texts, which `label_texts.joined` has added.
        memory_mb: bound on the co-occurrence cells held at once.
    """
    x, y = presence(x), presence(y)
    parts: list[tuple[np.ndarray, ...]] = []
    if config.variant != "random" and x.shape[0] > 1:
        parts = list(_changes(x, y, teacher, config, words, memory_mb))
    kinds = (np.int64, np.int32, np.int32, np.float32, np.float32)
    columns = list(zip(*parts, strict=True)) or [()] * len(kinds)
    rows, tokens, labels, relevance, scores = (
        np.concatenate(column).astype(kind) if column else np.zeros(0, kind)
        for column, kind in zip(columns, kinds, strict=True)
    )
    order = np.lexsort((labels, tokens, rows))
    indptr = np.concatenate([[0], np.bincount(rows, minlength=x.shape[0]).cumsum()])
    return Withheld(indptr, tokens[order], labels[order], relevance[order], scores[order])


def _changes(
    x: sparse.csr_matrix,
    y: sparse.csr_matrix,
    teacher: Teacher,
    config: TeacherConfig,
    words: Teacher | None,
    memory_mb: float,
) -> Iterator[tuple[np.ndarray, ...]]:
    """Rows, tokens, labels, relevance and scores of the changed cells of a document and a label."""
    margins = Margins.of(x.shape[0], column_counts(x), column_counts(y))
    vocabulary = int((margins.n_t > 0).sum())
    with_all = _Lists(x.shape[1])
    without = _Lists(x.shape[1])
    y_t = y.T.tocsr()
    for begin, end in blocks_of_labels(x, y, memory_mb):
        counts = (y_t[begin:end] @ x).tocsr()
        counts.sort_indices()
        for label in range(begin, end):
            by_label = _OneLabel(counts[label - begin], label, margins, vocabulary, config, words)
            with_all.write(*_row(teacher.scores, label), _row(teacher.relevance, label)[1])
            for i in y_t[label].indices:
                tokens = x.indices[x.indptr[i] : x.indptr[i + 1]]
                without.write(*by_label.without(tokens))
                relevance = without.relevance[tokens] - with_all.relevance[tokens]
                scores = without.scores[tokens] - with_all.scores[tokens]
                without.clear()
                cells = np.flatnonzero((relevance != 0) | (scores != 0))
                rows, labels = np.full((2, len(cells)), [[i], [label]])
                yield rows, tokens[cells], labels, relevance[cells], scores[cells]
            with_all.clear()


class _Lists:
    """One list spread over all V tokens, so that it can be read at the tokens of a document."""

    def __init__(self, vocabulary: int):
        self.scores = np.zeros(vocabulary, np.float32)
        self.relevance = np.zeros(vocabulary, np.float32)
        self.ids = np.zeros(0, np.int64)

    def write(self, ids: np.ndarray, scores: np.ndarray, relevance: np.ndarray) -> None:
        """Spread the scores and relevance of the tokens `ids`; the rest must be clear."""
        self.ids = ids
        self.scores[ids] = scores
        self.relevance[ids] = relevance

    def clear(self) -> None:
        """Set what `write` has set to zero again."""
        self.scores[self.ids] = 0.0
        self.relevance[self.ids] = 0.0


def _row(table: sparse.csr_matrix, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and values of one row."""
    part = slice(table.indptr[row], table.indptr[row + 1])
    return table.indices[part], table.data[part]


def graded(scores: np.ndarray, relevance: str, vocabulary: int) -> np.ndarray:
    """Graded relevance of one list, best first, as `mig.relevance_of` gives it."""
    if relevance == "grade":
        return grades(np.arange(len(scores)), vocabulary) / 101.0
    return scores / max(scores[0], np.finfo(float).tiny) if len(scores) else scores


class _OneLabel:
    """The best tokens of one label when one of its documents is not counted.

    counts: (1, V) csr, documents of the label with each token. vocabulary: tokens that any
    document has. words: as in `withhold`.
    """

    def __init__(
        self,
        counts: sparse.csr_matrix,
        label: int,
        margins: Margins,
        vocabulary: int,
        config: TeacherConfig,
        words: Teacher | None,
    ):
        self.config = config
        self.vocabulary = vocabulary
        self.n_t = margins.n_t
        self.tokens = counts.indices
        self.words = None if words is None else _row(words.scores, label)
        both = counts.data.astype(np.int64)
        n, n_l, n_t = margins.n, int(margins.n_l[label]), margins.n_t[self.tokens]
        # a token that the left out document lacks keeps C and n_t
        lacks = both < n_l
        self.absent = np.full(len(both), -1.0)
        self.absent[lacks] = associations(
            both[lacks], n_t[lacks], n_l - 1, n - 1, config.variant, margins.f
        )
        self.present = associations(both - 1, n_t - 1, n_l - 1, n - 1, config.variant, margins.f)
        order = np.lexsort((self.tokens, -self.absent))
        self.order = order[self.absent[order] >= 0]
        self.held = np.zeros(len(both), bool)

    def without(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, scores and relevance of the label's list without the document of these tokens."""
        ids, scores = self._best(tokens)
        if self.words is not None:
            ids, scores = best_of(*_summed(ids, scores, *self.words), self.config.top_k)
        seen_elsewhere = self.vocabulary - int((self.n_t[tokens] == 1).sum())
        return ids, scores, graded(scores, self.config.relevance, max(seen_elsewhere, 1))

    def _best(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and scores of the best counted tokens, best first."""
        top_k = self.config.top_k
        own = np.searchsorted(self.tokens, tokens)
        self.held[own] = True
        others = self.order[: top_k + len(own)]
        others = others[~self.held[others]][:top_k]
        self.held[own] = False
        own = own[self.present[own] >= 0]
        ids = self.tokens[np.concatenate([others, own])]
        scores = np.concatenate([self.absent[others], self.present[own]])
        return best_of(ids, scores, top_k)


def best_of(ids: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best scores, best first; the smaller id wins a tie."""
    order = np.lexsort((ids, -scores))[:k]
    return ids[order], scores[order]


def _summed(
    ids: np.ndarray, scores: np.ndarray, more_ids: np.ndarray, more_scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of two lists added by token."""
    union, place = np.unique(np.concatenate([ids, more_ids]), return_inverse=True)
    return union, np.bincount(place, np.concatenate([scores, more_scores]), len(union))
