"""WordScore: the linear score of `linear_score.py` as a module of a PlantModel, from raw text to z (B, L).

Realises METHOD.md section 4, "the teacher's own document score can be planted as well", with words instead of word pieces and
the linear model beside the teachers. Buffers and a word list only, saved with the model; nothing here is trained: its gain is
the decoder's `linear_gain`.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from plantlib.linear_score import LinearScore
from plantlib.planting import TeacherScore
from plantlib.tokens import Ragged, word_analyser


class WordScore(TeacherScore):
    """z[b, l] = <tfidf[b], M[l]> + m[l] over packed word ids; num_words V, num_labels L, num_cells of M."""

    def __init__(self, num_words: int, num_labels: int, num_cells: int):
        super().__init__(num_words, num_labels, num_cells)
        self.register_buffer("intercept", torch.zeros(num_labels))
        self.place: dict[str, int] = {}

    def load_linear(self, linear: LinearScore) -> None:
        """Fill from a fitted stack: the table made from all training rows."""
        table = linear.tables[0]
        self.idf.copy_(torch.from_numpy(linear.idf))
        self.intercept.copy_(torch.from_numpy(table.intercept))
        self.table.load_relevance(sparse.csr_matrix(table.cells))
        self.set_words(linear.words)

    def set_words(self, words: list[str]) -> None:
        """Name the word ids; the module must have been built for as many."""
        if len(words) != len(self.idf):
            raise ValueError(f"{len(words)} words for a score over {len(self.idf)}; load the word list it was saved with")
        self.place = {word: i for i, word in enumerate(words)}

    @property
    def words(self) -> list[str]:
        return list(self.place)

    def word_ids(self, texts: list[str]) -> Ragged:
        """Ids of the known words of every text, in order of reading."""
        if not self.place:
            raise ValueError("this score has no word list; fill it with load_linear or set_words")
        analyse = word_analyser()
        return Ragged.from_lists([
            np.array([self.place[w] for w in analyse(text) if w in self.place], np.int32) for text in texts
        ])  # fmt: skip

    def forward(self, word_ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """word_ids (S,) packed, offsets (B+1) -> z (B, L)."""
        return super().forward(word_ids, offsets) + self.intercept

    def parts(self, text: str, columns: list[int], k: int = 10) -> list[list[tuple[str, float]]]:
        """Per label of `columns` the k words of `text` that add most to its z, with what they add; its intercept is in none."""
        read = self.word_ids([text])
        ids, offsets = torch.from_numpy(read.flat.astype(np.int64)), torch.from_numpy(read.offsets)
        _, words, weight = self.weights(ids.to(self.idf.device), offsets.to(self.idf.device))
        cells, names, found = self.table.cells(words), self.words, []
        for column in columns if cells is not None else ():
            own = cells.labels == column
            positions = cells.positions[own]
            added = weight[positions] * cells.values[own]
            best = added.argsort(descending=True, stable=True)[:k].tolist()
            found.append([(names[int(words[positions[i]])], float(added[i])) for i in best if added[i] > 0])
        return found or [[] for _ in columns]
