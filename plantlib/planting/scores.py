"""Document scores that a start can plant as a term of the logit: the teacher's over tokens, and the
linear score over words; docs/method.md, "The teacher" and "The linear score".

Both are modules of a PlantModel with buffers only: they are saved with it and not trained. Their
gains are the decoder's `teacher_gain` and `linear_gain`. How the linear score is fitted is in
`linear.score`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import nn
from torch.nn import functional

from plantlib.data.tokens import Ragged, smooth_idf, word_analyser, word_spans
from plantlib.kernels import machine
from plantlib.linear.score import LinearScore
from plantlib.planting.decoder import PlantedTable
from plantlib.teacher.mig import Teacher


class ScoreChanges(NamedTuple):
    """Changes of the teacher's scores for single documents of a batch, (M,) each: the document's
    place in the batch, a token that it has, a label, and what is added to their score.
    """

    rows: torch.Tensor
    tokens: torch.Tensor
    labels: torch.Tensor
    values: torch.Tensor


def changes_of(batch: Mapping[str, Any]) -> ScoreChanges | None:
    """The changes that a batch brings along: score_rows, score_tokens and so on."""
    if batch.get("score_rows") is None or not len(batch["score_rows"]):
        return None
    return ScoreChanges(*(batch[f"score_{name}"] for name in ScoreChanges._fields))


class TeacherScore(nn.Module):
    """z[b, l]: the teacher's score of a document, the tf-idf weighted sum of MI over its tokens.

    Divided by one number, the standard deviation of the scores of training documents, so that with
    a gain of 1 it is of the size of a logit.

    num_tokens: V. num_labels: L. num_cells: cells of the teacher's scores.
    """

    def __init__(self, num_tokens: int, num_labels: int, num_cells: int):
        super().__init__()
        self.num_labels = num_labels
        self.register_buffer("idf", torch.ones(num_tokens))
        self.register_buffer("scale", torch.ones(()))
        self.table = PlantedTable(num_tokens, num_cells)

    def load_teacher(self, teacher: Teacher, counts: sparse.csr_matrix) -> None:
        """Fill from a teacher and the token counts (n, V) of the training rows."""
        self.idf.copy_(torch.from_numpy(smooth_idf(counts).astype(np.float32)))
        self.table.load_relevance(teacher.scores)
        # the spread of the scores on unit-length tf-idf rows
        weighted = counts.astype(np.float64)
        weighted.data = (1 + np.log(weighted.data)) * self.idf.numpy()[weighted.indices]
        norm = np.sqrt(np.asarray(weighted.multiply(weighted).sum(1))).clip(min=1e-12)
        self.scale.fill_(_spread(weighted.multiply(1 / norm).tocsr(), teacher.scores.T.tocsr()))

    def weights(
        self, token_ids: torch.Tensor, offsets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Document, token and weight, (M,) each: the tf-idf weight over `scale` of every distinct
        token of a document.

        token_ids: (S,) packed. offsets: (B+1).
        """
        batch, vocabulary, device = len(offsets) - 1, len(self.idf), token_ids.device
        lengths = offsets.diff().to(device)
        document = torch.repeat_interleave(torch.arange(batch, device=device), lengths)
        keys, counts = torch.unique(document * vocabulary + token_ids, return_counts=True)
        document = keys // vocabulary
        token = keys % vocabulary
        weight = (1 + counts.to(self.idf.dtype).log()) * self.idf[token]
        with machine.fixed_order():
            squares = self.idf.new_zeros(batch).index_add_(0, document, weight**2)
        norm = squares.sqrt().clamp(min=1e-12)
        return document, token, weight / norm[document] / self.scale

    def added(self, token_ids: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """(T, U) what each token of one document adds to its score for U labels.

        A token that occurs several times is one summand of the score; its occurrences share it
        evenly.

        token_ids: (T,) of the document. columns: (U,) ids of labels.
        """
        offsets = torch.tensor([0, len(token_ids)], device=token_ids.device)
        _, tokens, weight = self.weights(token_ids, offsets)
        added = self.idf.new_zeros(len(tokens), len(columns))
        cells = self.table.cells(tokens)
        if cells is not None:
            values = weight[cells.positions] * cells.values
            for i, column in enumerate(columns.tolist()):
                of_label = cells.labels == column
                added[cells.positions[of_label], i] = values[of_label]
        # from distinct tokens, which are sorted, to their occurrences
        place = torch.searchsorted(tokens, token_ids)
        return added[place] / torch.bincount(place, minlength=len(tokens))[place, None]

    def forward(
        self, token_ids: torch.Tensor, offsets: torch.Tensor, changes: ScoreChanges | None = None
    ) -> torch.Tensor:
        """z (B, L) of packed token_ids (S,) with offsets (B+1).

        changes: what is added to the teacher's scores for these documents alone.
        """
        batch = len(offsets) - 1
        document, token, weight = self.weights(token_ids, offsets)
        if token_ids.device.type == "cpu":
            z = self._dense_product(document, token, weight, batch).flatten()
        else:
            z = self.idf.new_zeros(batch * self.num_labels)
            cells = self.table.cells(token)
            if cells is not None:
                where = document[cells.positions] * self.num_labels + cells.labels
                with machine.fixed_order():
                    z.index_add_(0, where, weight[cells.positions] * cells.values)
        if changes is not None:
            vocabulary = len(self.idf)
            wanted = changes.rows * vocabulary + changes.tokens
            place = torch.searchsorted(document * vocabulary + token, wanted)
            with machine.fixed_order():
                where = changes.rows * self.num_labels + changes.labels
                z.index_add_(0, where, weight[place] * changes.values)
        return z.view(batch, self.num_labels)

    def _product(
        self, document: torch.Tensor, token: torch.Tensor, weight: torch.Tensor, batch: int
    ) -> sparse.csr_matrix:
        """z (B, L) as one sparse product of SciPy, which sorts no cells; see `weights`."""
        ends = np.bincount(document.cpu().numpy(), minlength=batch).cumsum()
        documents = sparse.csr_matrix(
            (weight.cpu().numpy(), token.cpu().numpy(), np.concatenate([[0], ends])),
            shape=(batch, len(self.idf)),
        )
        table = self.table
        cells = (table.planted_values, table.planted_labels, table.planted_indptr)
        by_token = sparse.csr_matrix(
            tuple(tensor.cpu().numpy() for tensor in cells), shape=(len(self.idf), self.num_labels)
        )
        return documents @ by_token

    def _dense_product(
        self, document: torch.Tensor, token: torch.Tensor, weight: torch.Tensor, batch: int
    ) -> torch.Tensor:
        """`_product` as a dense tensor (B, L); MKL, where there is one, halves the time."""
        if not torch.backends.mkl.is_available():
            return torch.from_numpy(self._product(document, token, weight, batch).toarray())
        ends = torch.bincount(document, minlength=batch).cumsum(0)
        ends = functional.pad(ends, (1, 0))
        size = (batch, len(self.idf))
        documents = _csr(ends.int(), token.int(), weight, size)
        table = self.table
        cells = (table.planted_indptr.int(), table.planted_labels, table.planted_values)
        by_token = _csr(*cells, (len(self.idf), self.num_labels))
        return torch.addmm(weight.new_zeros(batch, self.num_labels), documents, by_token)


def _csr(ends, columns, values, size) -> torch.Tensor:
    """A sparse matrix, without a look at each index and without PyTorch's word that it is new."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(ends, columns, values, size, check_invariants=False)


def _spread(weights: sparse.csr_matrix, by_token: sparse.csr_matrix, rows: int = 512) -> float:
    """Standard deviation of the non-zero scores weights (n, V) @ by_token (V, L), 1 where there is
    none; `rows` documents at a time.
    """
    count, total, squares, largest = 0, 0.0, 0.0, 0.0
    for begin in range(0, weights.shape[0], rows):
        data = (weights[begin : begin + rows] @ by_token).data
        count, total, squares = count + data.size, total + data.sum(), squares + (data**2).sum()
        largest = max(largest, np.abs(data).max(initial=0.0))
    spread = float(np.sqrt(max(squares / count - (total / count) ** 2, 0.0))) if count else 0.0
    # equal scores have no spread, but rounding may leave a trace of one
    return spread if spread > 1e-6 * largest else 1.0


class WordScore(TeacherScore):
    """The linear score u[b, l] = <tfidf[b], M[l]> + m[l], from raw text to (B, L).

    num_words: words of the score. num_labels: L. num_cells: cells of M.
    """

    def __init__(self, num_words: int, num_labels: int, num_cells: int):
        super().__init__(num_words, num_labels, num_cells)
        self.register_buffer("intercept", torch.zeros(num_labels))
        self.place: dict[str, int] = {}

    def load_linear(self, linear: LinearScore) -> None:
        """Fill from a fitted score: the table made from all training rows."""
        table = linear.tables[0]
        self.idf.copy_(torch.from_numpy(linear.idf))
        self.intercept.copy_(torch.from_numpy(table.intercept))
        self.table.load_relevance(sparse.csr_matrix(table.cells))
        self.set_words(linear.words)

    def set_words(self, words: list[str]) -> None:
        """Name the word ids; ValueError unless the module was built for as many words."""
        if len(words) != len(self.idf):
            raise ValueError(
                f"{len(words)} words for a score over {len(self.idf)}; load the word list it was"
                " saved with"
            )
        self.place = {word: i for i, word in enumerate(words)}

    @property
    def words(self) -> list[str]:
        """The words by id."""
        return list(self.place)

    def word_ids(self, texts: list[str]) -> Ragged:
        """Ids of the known words of every text, in reading order; ValueError without a word
        list.
        """
        return Ragged.from_lists(self.word_lists(texts))

    def word_lists(self, texts: list[str]) -> list[list[int]]:
        """`word_ids` as lists."""
        if not self.place:
            raise ValueError("this score has no word list; fill it with load_linear or set_words")
        analyse, place = word_analyser(), self.place.get
        return [[i for i in map(place, analyse(text)) if i is not None] for text in texts]

    def sums(self, words: Ragged) -> sparse.csr_matrix:
        """(n, L) csr, what the words of documents add to u; words: their ids, see `word_ids`."""
        ids = torch.from_numpy(words.flat.astype(np.int64)).to(self.idf.device)
        offsets = torch.from_numpy(words.offsets).to(self.idf.device)
        return self._product(*self.weights(ids, offsets), len(words))

    def places(self, text: str) -> tuple[list[tuple[int, int]], torch.Tensor]:
        """Character spans of the known words of a text, and their ids (T,); in reading order."""
        known = [(span, self.place[w]) for w, span in word_spans(text) if w in self.place]
        ids = torch.tensor([i for _, i in known], dtype=torch.long, device=self.idf.device)
        return [span for span, _ in known], ids

    def forward(self, word_ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """u (B, L) of packed word_ids (S,) with offsets (B+1)."""
        return super().forward(word_ids, offsets) + self.intercept
