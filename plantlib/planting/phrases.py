"""Phrases as a part of a PlantModel: cells of attention and terms of the score of whole texts;
docs/method.md, "Planted phrases".

Buffers only, saved with the model and not trained: the tries, the weights of phrases for labels,
and the weights of the lists (`linear.phrase_term`). Their gains are the decoder's `planted_gain`
and `linear_gain`. How phrases are counted is in `teacher.phrases`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from plantlib.linear.phrase_term import TextScore, logs_of
from plantlib.teacher.phrase_cells import DocumentCells, PhraseList, Said, places_of
from plantlib.teacher.phrase_matching import Trie
from plantlib.teacher.phrases import SOURCES


class Heard(NamedTuple):
    """What phrases say of b texts: their score (b, L) float32 and their cells."""

    scores: torch.Tensor
    cells: DocumentCells

    def select(self, rows: Sequence[int]) -> Heard:
        """That of texts `rows`."""
        return Heard(self.scores[list(rows)], self.cells.select(rows))


class Mention(NamedTuple):
    """A phrase in a text that speaks for a label: text[begin:end], where it comes from, its weight
    p and what it adds to the logit, shared evenly among the places where it stands.
    """

    begin: int
    end: int
    source: str
    weight: float
    adds: float


class PhraseTable(nn.Module):
    """One list of phrases; see `teacher.phrase_cells.PhraseList`.

    sizes: form of the words, and numbers of edges, phrases and cells, as `sizes_of` gives them.
    """

    def __init__(self, sizes: dict[str, Any], num_labels: int):
        super().__init__()
        self.form = sizes["form"]
        edges, phrases, cells = (sizes[name] for name in ("edges", "phrases", "cells"))
        whole = {"keys": edges, "ends": edges + 1, "indptr": phrases + 1}
        for name, size in whole.items():
            self.register_buffer(name, torch.zeros(size, dtype=torch.long))
        self.register_buffer("labels", torch.zeros(cells, dtype=torch.int32))
        self.register_buffer("sources", torch.zeros(cells, dtype=torch.int8))
        self.register_buffer("values", torch.zeros(cells))
        self.register_buffer("weight", torch.zeros(num_labels))
        self._list: PhraseList | None = None

    def load(self, phrases: PhraseList, weight: np.ndarray) -> None:
        """Fill from a list and its weight (L,) in the score."""
        columns = {
            "keys": phrases.trie.keys,
            "ends": phrases.trie.phrase,
            "indptr": phrases.indptr,
            "labels": phrases.labels,
            "sources": phrases.sources,
            "values": phrases.values,
            "weight": weight,
        }
        for name, column in columns.items():
            getattr(self, name).copy_(torch.from_numpy(np.ascontiguousarray(column)))
        self.set_words(phrases.trie.words)

    def set_words(self, words: list[str]) -> None:
        """Name the words of the trie, so that texts can be matched."""
        keys, ends, indptr, labels, values, sources = (
            getattr(self, name).cpu().numpy()
            for name in ("keys", "ends", "indptr", "labels", "values", "sources")
        )
        trie = Trie(words, keys, ends, _depth(keys, len(words)), self.form)
        self._list = PhraseList(trie, indptr, labels, values, sources)

    @property
    def phrases(self) -> PhraseList:
        """The list; ValueError where its words are not known yet."""
        if self._list is None:
            raise ValueError("these phrases have no words; fill them with load or set_words")
        return self._list


def _depth(keys: np.ndarray, words: int) -> int:
    """Words of the longest phrase of a trie, whose edges come one level after the other."""
    depth, begin, end = 0, 0, 1
    nodes = keys // max(words, 1)
    while begin < end:
        # edges from the nodes of this level lead to the next one
        first, last = np.searchsorted(nodes, [begin, end])
        begin, end = int(first) + 1, int(last) + 1
        depth += int(last > first)
    return depth


def sizes_of(lists: Sequence[PhraseList]) -> list[dict[str, Any]]:
    """What a configuration says of lists of phrases."""
    return [
        {
            "form": one.trie.form,
            "edges": len(one.trie.keys),
            "phrases": len(one.indptr) - 1,
            "cells": len(one.labels),
        }
        for one in lists
    ]


class PhraseScore(nn.Module):
    """J lists of phrases, from raw texts to planted cells and to the score (B, L).

    sizes: of the lists, see `sizes_of`. num_labels: L.
    """

    intercept: torch.Tensor
    columns: torch.Tensor

    def __init__(self, sizes: Sequence[dict[str, Any]], num_labels: int):
        super().__init__()
        self.tables = nn.ModuleList(PhraseTable(one, num_labels) for one in sizes)
        self.register_buffer("intercept", torch.zeros(num_labels))
        # attention plants what phrases say of label l in the column columns[l]
        self.register_buffer("columns", torch.arange(num_labels))

    def load(
        self, lists: Sequence[PhraseList], score: TextScore, columns: np.ndarray | None = None
    ) -> None:
        """Fill from counted lists and their fitted weights.

        columns: (L,) a permutation of labels for the shuffled control; None plants as counted.
        """
        for table, phrases, weight in zip(self.tables, lists, score.weights, strict=True):
            table.load(phrases, weight)
        self.intercept.copy_(torch.from_numpy(score.intercept))
        if columns is not None:
            self.columns.copy_(torch.from_numpy(columns))

    @property
    def words(self) -> list[list[str]]:
        """The words of every list."""
        return [table.phrases.trie.words for table in self.tables]

    def set_words(self, words: Sequence[list[str]]) -> None:
        """Name the words of every list."""
        for table, own in zip(self.tables, words, strict=True):
            table.set_words(own)

    def forward(self, texts: Sequence[str], tokenizer: Any, max_tokens: int | None) -> Heard:
        """What the phrases say of b texts, on the module's device.

        tokenizer, max_tokens: of the tokens that cells are planted at.
        """
        shape = (len(texts), len(self.intercept))
        said = [table.phrases.said(texts) for table in self.tables]
        total = np.tile(self.intercept.cpu().numpy(), (len(texts), 1))
        for one, table in zip(said, self.tables, strict=True):
            logs = logs_of(one.scores(shape))
            total += logs.multiply(table.weight.cpu().numpy()[None]).toarray()
        places = places_of(tokenizer, texts, max_tokens)
        cells = DocumentCells.of(said, places, shape[1]).relabelled(self.columns.cpu().numpy())
        scores = torch.from_numpy(total.astype(np.float32)).to(self.intercept.device)
        return Heard(scores, cells)

    def mentions(self, text: str, column: int) -> list[Mention]:
        """The phrases in a text that speak for a label, in reading order within each list.

        What a list adds for the label is shared among its phrases by their -ln(1 - p).
        """
        found = []
        for table in self.tables:
            said = table.phrases.said([text])
            own = Said(*(part[said.label == column] for part in said))
            v = own.scores((1, len(self.intercept)))
            adds = float(logs_of(v)[0, column]) * float(table.weight[column])
            cells, inverse, places = np.unique(own.cell, return_inverse=True, return_counts=True)
            by_cell = np.zeros(len(cells))
            by_cell[inverse] = -np.log1p(-own.value.astype(np.float64))
            share = by_cell / max(by_cell.sum(), np.finfo(float).tiny) / places
            for i, of in enumerate(inverse.tolist()):
                source = SOURCES[table.phrases.sources[own.cell[i]]]
                begin, end = int(own.start[i]), int(own.end[i])
                found.append(Mention(begin, end, source, float(own.value[i]), adds * share[of]))
        return found
