"""What phrases say at the tokens of documents: planted cells (token, label, value), and the
documents' scores; docs/method.md, "Planted phrases".

A match plants its weight p at every token that it touches. Of matches that overlap, the largest
weight for a label holds at a token. How phrases are weighed is in `phrases.py`, how they are found
in `phrase_matching.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import sparse

from plantlib.data.tokens import word_spans
from plantlib.teacher.crossfit import Withheld
from plantlib.teacher.phrase_matching import Trie
from plantlib.teacher.phrases import PhraseTeacher

LEAST = 0.05  # weights below are not planted in attention: they would move it by a fifth at most
BLOCK = 256  # documents that are matched at a time


class Said(NamedTuple):
    """What matches say: one entry per match and label, (M,) each.

    document: row of the texts that were matched, ascending. start, end: characters [start, end) of
    the match. cell: number of the phrase's cell. label: its column. value: its weight p.
    """

    document: np.ndarray
    start: np.ndarray
    end: np.ndarray
    cell: np.ndarray
    label: np.ndarray
    value: np.ndarray

    def scores(self, shape: tuple[int, int]) -> sparse.csr_matrix:
        """(b, L) csr of 1 - prod(1 - p) over the different phrases of each document."""
        cells = int(self.cell.max(initial=0)) + 1
        _, first = np.unique(self.document * cells + self.cell, return_index=True)
        pair = (self.document[first], self.label[first])
        total = sparse.csr_matrix((-np.log1p(-self.value[first].astype(np.float64)), pair), shape)
        total.sum_duplicates()
        total.data = -np.expm1(-total.data)
        return total


@dataclass(frozen=True, eq=False)
class PhraseList:
    """S phrases and their C cells, as a model carries them.

    trie: finds the phrases. indptr: (S + 1,), where the cells of each phrase begin.
    labels, values, sources: (C,) columns, weights p and places in `phrases.SOURCES`.
    """

    trie: Trie
    indptr: np.ndarray
    labels: np.ndarray
    values: np.ndarray
    sources: np.ndarray

    @classmethod
    def of(cls, teacher: PhraseTeacher) -> PhraseList:
        """The phrases of a teacher with the weights counted on all its documents."""
        weights = teacher.weights()
        return cls(
            teacher.trie,
            weights.indptr.astype(np.int64),
            weights.indices.astype(np.int32),
            weights.data.astype(np.float32),
            teacher.source.astype(np.int8),
        )

    def said(
        self,
        texts: Sequence[str],
        held_out: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    ) -> Said:
        """What the phrases in b texts say.

        held_out: `PhraseTeacher.held_out` where the texts are its training documents, in order.
        """
        matches = self.trie.match(texts)
        begin = self.indptr[matches.phrase]
        count = self.indptr[matches.phrase + 1] - begin
        of = np.repeat(np.arange(len(matches)), count)
        cell = begin[of] + np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
        document = matches.document[of]
        value = self.values[cell] if held_out is None else held_out(document, cell)
        return Said(document, matches.start[of], matches.end[of], cell, self.labels[cell], value)


class Places(NamedTuple):
    """Where tokens stand in a text: spans (P, 2) in reading order, and the token (P,) of each."""

    spans: np.ndarray
    token: np.ndarray


def places_of(tokenizer, texts: Sequence[str], max_tokens: int | None = None) -> list[Places]:
    """The places of the tokens that are read of each text.

    tokenizer: of a backbone; one of word vectors has one token for all places of a word.
    max_tokens: after which texts are cut.
    """
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_offsets_mapping=True,
        truncation=max_tokens is not None,
        max_length=max_tokens,
        verbose=False,
    )
    if not hasattr(tokenizer, "words"):
        spans = [np.array(own, np.int64).reshape(-1, 2) for own in encoded["offset_mapping"]]
        return [Places(own, np.arange(len(own))) for own in spans]
    places = []
    for text, ids in zip(texts, encoded["input_ids"], strict=True):
        token = {word: i for i, word in enumerate(tokenizer.convert_ids_to_tokens(ids))}
        known = [(span, token[word]) for word, span in word_spans(text) if word in token]
        spans = np.array([span for span, _ in known], np.int64).reshape(-1, 2)
        places.append(Places(spans, np.array([i for _, i in known], np.int64)))
    return places


@dataclass(frozen=True, eq=False)
class DocumentCells:
    """Planted cells of N documents; those of document i are from indptr[i] to indptr[i + 1].

    tokens: (M,) places among the document's tokens. labels, values: (M,).
    """

    indptr: np.ndarray
    tokens: np.ndarray
    labels: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, said: Iterable[Said], places: Sequence[Places], num_labels: int) -> DocumentCells:
        """The cells of documents from what several lists of phrases say about them.

        places: of the tokens of each document.
        """
        offsets = np.concatenate([[0], np.cumsum([len(own.token) for own in places])])
        counts = [int(own.token.max(initial=-1)) + 1 for own in places]
        begins = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        keys, values = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
        for one in said:
            one = Said(*(column[one.value >= LEAST] for column in one))
            first, behind = _touched(one, places, offsets)
            count = behind - first
            of = np.repeat(np.arange(len(count)), count)
            place = first[of] + np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
            token = np.concatenate([np.zeros(0, np.int64), *(own.token for own in places)])[place]
            position = begins[one.document[of]] + token
            keys.append(position * num_labels + one.label[of])
            values.append(one.value[of].astype(np.float32))
        # the largest value of a place and a label holds
        key, value = np.concatenate(keys), np.concatenate(values)
        order = np.lexsort((-value, key))
        key, first = np.unique(key[order], return_index=True)
        position, label = key // num_labels, key % num_labels
        document = np.searchsorted(begins, position, side="right") - 1
        indptr = np.searchsorted(position, begins)
        return cls(
            indptr,
            (position - begins[document]).astype(np.int32),
            label.astype(np.int32),
            value[order][first],
        )

    @classmethod
    def joined(cls, blocks: Sequence[DocumentCells]) -> DocumentCells:
        """The cells of several blocks of documents, one after the other."""
        sizes = np.concatenate([np.zeros(0, np.int64), *(np.diff(b.indptr) for b in blocks)])
        columns = [
            np.concatenate([getattr(b, name) for b in blocks])
            for name in ("tokens", "labels", "values")
        ]
        return cls(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), *columns)

    def relabelled(self, columns: np.ndarray) -> DocumentCells:
        """What was said of label l is said of columns[l]."""
        labels = columns[self.labels].astype(np.int32)
        return DocumentCells(self.indptr, self.tokens, labels, self.values)

    def select(self, rows: Sequence[int]) -> DocumentCells:
        """The cells of documents `rows` (b,), in their order."""
        parts = [slice(self.indptr[row], self.indptr[row + 1]) for row in rows]
        sizes = [part.stop - part.start for part in parts]
        columns = [
            np.concatenate([own[:0], *(own[part] for part in parts)])
            for own in (self.tokens, self.labels, self.values)
        ]
        return DocumentCells(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), *columns)

    def batch(self, offsets: np.ndarray) -> dict[str, np.ndarray]:
        """The cells of all documents in a packed batch, sorted by label.

        offsets: (N + 1,), where each document begins.

        Returns:
            cell_positions in the batch, cell_labels and cell_values, (M,) each.
        """
        begin = np.repeat(np.asarray(offsets)[:-1], np.diff(self.indptr))
        order = np.argsort(self.labels, kind="stable")
        return {
            "cell_positions": (begin + self.tokens)[order].astype(np.int64),
            "cell_labels": self.labels[order].astype(np.int64),
            "cell_values": self.values[order],
        }


@dataclass(frozen=True, eq=False)
class OwnCells:
    """What training documents have for themselves while queries are pretrained: cells of phrases,
    and what the token teacher withholds. It is read as a `Withheld` is.

    rows: (n,) training documents.
    """

    cells: DocumentCells
    rows: np.ndarray
    withheld: Withheld | None

    def cells_of(self, i: int, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Cells of training document i, whose token ids are `ids` (T,); see `Withheld.cells`."""
        own = self.cells.select([int(self.rows[i])]).batch(np.array([0, len(ids)]))
        return own if self.withheld is None else together(own, self.withheld.cells_of(i, ids))


def _touched(
    said: Said, places: Sequence[Places], offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """First place that each match touches and the one behind the last, (M,) each, counted through
    the places of all documents; offsets: where those of a document begin.
    """
    first, behind = np.zeros((2, len(said.document)), np.int64)
    bounds = np.searchsorted(said.document, np.arange(len(places) + 1))
    for document, one in enumerate(places):
        own = slice(bounds[document], bounds[document + 1])
        spans = one.spans
        first[own] = np.searchsorted(spans[:, 1], said.start[own], side="right")
        behind[own] = np.searchsorted(spans[:, 0], said.end[own], side="left")
    behind = np.maximum(first, behind)
    return first + offsets[said.document], behind + offsets[said.document]


def together(*cells: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The cells of several sources for one batch, sorted by label; values of one place add up."""
    names = ("cell_positions", "cell_labels", "cell_values")
    joined = {name: np.concatenate([own[name] for own in cells]) for name in names}
    order = np.argsort(joined["cell_labels"], kind="stable")
    return {name: column[order] for name, column in joined.items()}
