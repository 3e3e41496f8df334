"""The phrase teacher: phrases with a weight for a label, from marked evidence, label texts and
n-grams; docs/method.md, "Phrases and evidence".

A phrase s speaks for label l with the weight p = m / (n + 1). n training documents hold the phrase;
in m of them it is marked as evidence of l. A phrase that also stands unmarked, as negated findings
do, weighs less. Where nothing is marked, m counts the documents that hold the phrase and carry the
label. A label's own text counts as one more document, in which it is marked.

A document's score is 1 - prod(1 - p) over the different phrases that stand in it. A training
document reads weights that were counted without it, else training would trust them too much. Only
training documents are read. How phrases are found is in `phrase_matching.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

import numpy as np
from scipy import sparse

from plantlib.data.corpus import Corpus
from plantlib.kernels.counts import column_counts, presence
from plantlib.teacher import mig
from plantlib.teacher.phrase_matching import FORMS, Trie, phrase_of, words_of
from plantlib.utils.base import DataError

SOURCES = ("evidence", "label text", "n-gram")
Phrase = tuple[str, ...]
LONGEST_NGRAM = 4
PART_WORDS = 4  # words of the longest part of a mention that is a phrase of its own
NGRAM_DOCUMENTS = 2  # training documents that a mined n-gram stands in at least
# Counters of the first pass over n-grams, 4 bytes each. Two n-grams that share a counter may both
# pass it; the second pass counts the survivors one by one.
COUNTERS = 1 << 22
MULTIPLIER = np.uint64(6364136223846793005)  # of the hash of n-grams
BLOCK = 1024  # documents that are matched or scored at a time


@dataclass(frozen=True, eq=False)
class Marks:
    """M phrases that are marked as evidence in training documents.

    document: (M,) rows 0 to n - 1 of the training documents.
    label: (M,) columns of the labels.
    phrases: M phrases.
    """

    document: np.ndarray
    label: np.ndarray
    phrases: list[Phrase]

    @classmethod
    def of_spans(
        cls,
        texts: Sequence[str],
        document: np.ndarray,
        label: np.ndarray,
        start: np.ndarray,
        end: np.ndarray,
        form: str = "words",
    ) -> Marks:
        """Marks from M spans; a phrase is made of all words that a span touches.

        texts: of the n training documents. document, label, start, end: (M,) row, column and
        characters [start, end) of each span. Spans that touch no word are left out.
        """
        kept: list[int] = []
        phrases: list[Phrase] = []
        order = np.argsort(document, kind="stable")
        at = -1
        for i in order.tolist():
            if document[i] != at:
                at = int(document[i])
                words, places = words_of(texts[at], form)
            first = int(np.searchsorted(places[:, 1], start[i], side="right"))
            behind = int(np.searchsorted(places[:, 0], end[i], side="left"))
            if first < behind:
                kept.append(i)
                phrases.append(tuple(words[first:behind]))
        return cls(np.asarray(document)[kept], np.asarray(label)[kept], phrases)


@dataclass(frozen=True, eq=False)
class PhraseTeacher:
    """S phrases and C cells (phrase, label) counted on n training documents.

    phrases: S phrases; trie: finds them.
    documents: (S,) training documents that hold each phrase.
    cells: (S, L) csr of ones, whose order numbers the cells.
    marked: (C,) training documents in which the phrase is marked for the label, or carries it.
    told: (C,) bool, the phrase is a text of the label.
    source: (C,) the first of SOURCES that gave the cell.
    holds: (n, S) csr, phrases of the training documents.
    marks: (n, C) csr, cells that a training document has counted in `marked`.
    """

    phrases: list[Phrase]
    trie: Trie
    documents: np.ndarray
    cells: sparse.csr_matrix
    marked: np.ndarray
    told: np.ndarray
    source: np.ndarray
    holds: sparse.csr_matrix
    marks: sparse.csr_matrix

    @property
    def num_labels(self) -> int:
        """L."""
        return self.cells.shape[1]

    def weights(self) -> sparse.csr_matrix:
        """(S, L) csr of p."""
        phrase = np.repeat(np.arange(len(self.phrases)), np.diff(self.cells.indptr))
        p = (self.marked + self.told) / (self.documents[phrase] + self.told + 1)
        return sparse.csr_matrix((p, self.cells.indices, self.cells.indptr), self.cells.shape)

    def scores(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """(b, L) csr of the scores 1 - prod(1 - p) of b texts."""
        p = self.weights().data
        blocks = [sparse.csr_matrix((0, self.num_labels))]
        for begin in range(0, len(texts), BLOCK):
            holds = held_by(texts[begin : begin + BLOCK], self.trie, len(self.phrases))
            document, cell, _ = self._cells_of(holds)
            blocks.append(self._combined(document, cell, p[cell], holds.shape[0]))
        return sparse.vstack(blocks, format="csr")

    def held_out_scores(self) -> sparse.csr_matrix:
        """(n, L) csr of the scores of the training documents, each by weights counted without
        it.
        """
        blocks = []
        for begin in range(0, self.holds.shape[0], BLOCK):
            holds, marks = (m[begin : begin + BLOCK] for m in (self.holds, self.marks))
            document, cell, phrase = self._cells_of(holds)
            own = np.asarray(marks[document, cell]).ravel()
            p = self._without(cell, phrase, own)
            blocks.append(self._combined(document, cell, p, holds.shape[0]))
        return sparse.vstack(blocks, format="csr")

    def held_out(self, document: np.ndarray, cell: np.ndarray) -> np.ndarray:
        """(M,) weights of cells (M,), each counted without its training document (M,), which holds
        the cell's phrase.
        """
        own = np.asarray(self.marks[document, cell]).ravel() if len(cell) else np.zeros(0)
        phrase = np.searchsorted(self.cells.indptr, cell, side="right") - 1
        return self._without(cell, phrase, own)

    def _without(self, cell: np.ndarray, phrase: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Weights without one document that holds the phrase; own: whether it marks it."""
        told = self.told[cell]
        return (self.marked[cell] - own + told) / (self.documents[phrase] - 1 + told + 1)

    def _cells_of(self, holds: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Document, cell and phrase of every cell whose phrase a document holds; holds: (b, S)."""
        begin = self.cells.indptr[holds.indices]
        count = self.cells.indptr[holds.indices + 1] - begin
        pair = np.repeat(np.arange(holds.nnz), count)
        within = np.arange(len(pair)) - np.repeat(np.cumsum(count) - count, count)
        document = np.repeat(np.arange(holds.shape[0]), np.diff(holds.indptr))
        return document[pair], begin[pair] + within, holds.indices[pair]

    def _combined(
        self, document: np.ndarray, cell: np.ndarray, p: np.ndarray, documents: int
    ) -> sparse.csr_matrix:
        """1 - prod(1 - p) by document and label; document, cell, p: one entry per pair."""
        shape = (documents, self.num_labels)
        pair = (document, self.cells.indices[cell])
        total = sparse.csr_matrix((-np.log1p(-p), pair), shape)
        total.sum_duplicates()
        total.data = -np.expm1(-total.data)
        total.eliminate_zeros()
        return total


def held_by(texts: Sequence[str], trie: Trie, phrases: int) -> sparse.csr_matrix:
    """(b, S) csr of ones: which of S phrases stand in b texts."""
    matches = trie.match(texts)
    ones = np.ones(len(matches), np.int32)
    pair = (matches.document, matches.phrase)
    return presence(sparse.csr_matrix((ones, pair), (len(texts), phrases)))


def marks_of(corpus: Corpus, train: np.ndarray, form: str = "words") -> Marks:
    """What is marked in documents `train` (n,) of a corpus with evidence; no other is read.

    form: of the words.
    """
    row = {corpus.ids[i]: place for place, i in enumerate(train)}
    column = {name: j for j, name in enumerate(corpus.label_names)}
    spans = corpus.evidence
    own = spans[spans["id"].isin(row) & spans["label"].isin(column)]
    document = own["id"].map(row).to_numpy(np.int64)
    label = own["label"].map(column).to_numpy(np.int64)
    start, end = (own[name].to_numpy(np.int64) for name in ("start", "end"))
    texts = [corpus.texts[i] for i in train]
    return Marks.of_spans(texts, document, label, start, end, form)


def parts(marks: Marks) -> Marks:
    """All runs of up to PART_WORDS words inside phrases, but for words of under four letters."""
    document, label, found = [], [], []
    rows = zip(marks.document.tolist(), marks.label.tolist(), marks.phrases, strict=True)
    for row, column, phrase in rows:
        for first in range(len(phrase)):
            for behind in range(first + 1, min(first + PART_WORDS, len(phrase)) + 1):
                part = phrase[first:behind]
                if part != phrase and (len(part) > 1 or len(part[0]) > 3):
                    document.append(row)
                    label.append(column)
                    found.append(part)
    return Marks(np.array(document, np.int64), np.array(label, np.int64), found)


def of_corpus(corpus: Corpus, *, ngrams: int = 0, form: str = "words") -> PhraseTeacher:
    """The phrase teacher of a corpus, from the evidence of its training documents and the texts of
    its labels. Evidence of other documents is not read.

    Args:
        corpus: with a training document.
        ngrams, form: see `teach`.

    Raises:
        DataError: there is no phrase, or no training document.
        ValueError: an unknown form.
    """
    train = corpus.rows("train")
    texts = [corpus.texts[i] for i in train]
    marks = None if corpus.evidence is None else marks_of(corpus, train, form)
    own_texts = [corpus.label_texts.get(name) for name in corpus.label_names]
    return teach(
        texts,
        corpus.labels[train],
        marks=marks,
        label_texts=[[text] if text else [] for text in own_texts],
        ngrams=ngrams,
        form=form,
    )


def teach(
    texts: Sequence[str],
    labels: sparse.csr_matrix,
    *,
    marks: Marks | None = None,
    label_texts: Sequence[Sequence[str]] | None = None,
    ngrams: int = 0,
    form: str = "words",
) -> PhraseTeacher:
    """Count phrases on training documents.

    Args:
        texts: of the n training documents.
        labels: (n, L) csr, their labels.
        marks: phrases that are marked as evidence, in the same form.
        label_texts: for each label its texts, such as a name and synonyms.
        ngrams: n-grams of up to LONGEST_NGRAM words that are mined per label, 0 for none.
        form: of the words, "words" or "stems".

    Raises:
        DataError: there is no phrase.
        ValueError: texts, labels and label texts do not fit each other, or an unknown form.
    """
    labels = presence(labels)
    _check(texts, labels, label_texts, form)
    # cells by source: (phrase, label)
    by_source = [
        list(zip(marks.phrases, marks.label.tolist(), strict=True)) if marks else [],
        _of_label_texts(label_texts or [], form),
        mined(texts, labels, ngrams, form) if ngrams else [],
    ]
    phrases = sorted({phrase for pairs in by_source for phrase, _ in pairs})
    if not phrases:
        raise DataError(
            "there is no phrase to teach: give evidence, label texts or a number of n-grams, of"
            " texts that hold words"
        )
    place = {phrase: i for i, phrase in enumerate(phrases)}
    trie = Trie.of(phrases, form)
    # which training document holds which phrase; a marked one stands there by definition
    begins = range(0, len(texts), BLOCK)
    blocks = [held_by(texts[begin : begin + BLOCK], trie, len(phrases)) for begin in begins]
    holds = sparse.vstack(blocks, format="csr")
    if marks:
        columns = np.array([place[p] for p in marks.phrases], np.int64)
        ones = np.ones(len(columns), np.int32)
        holds = presence(holds + sparse.csr_matrix((ones, (marks.document, columns)), holds.shape))
    # number the cells
    width = labels.shape[1]
    keys = [_keys(pairs, place, width) for pairs in by_source]
    every = np.unique(np.concatenate(keys))
    source = np.full(len(every), len(SOURCES), np.int8)
    for number in reversed(range(len(SOURCES))):
        source[np.searchsorted(every, keys[number])] = number
    told = np.zeros(len(every), bool)
    told[np.searchsorted(every, keys[1])] = True
    phrase = every // width
    indptr = np.searchsorted(phrase, np.arange(len(phrases) + 1))
    shape = (len(phrases), width)
    cells = sparse.csr_matrix((np.ones(len(every)), every % width, indptr), shape)
    counted = _marks_of(marks, place, every, source, holds, labels)
    return PhraseTeacher(
        phrases,
        trie,
        column_counts(holds),
        cells,
        column_counts(counted),
        told,
        source,
        holds,
        counted,
    )


def _check(texts: Sequence[str], labels: sparse.csr_matrix, label_texts, form: str) -> None:
    if form not in FORMS:
        raise ValueError(f"form={form!r} is not known; use one of {', '.join(FORMS)}")
    if len(texts) != labels.shape[0]:
        raise ValueError(
            f"{len(texts)} texts and {labels.shape[0]} rows of labels; give the training documents"
            " of both"
        )
    if label_texts is not None and len(label_texts) != labels.shape[1]:
        raise ValueError(
            f"texts of {len(label_texts)} labels for {labels.shape[1]} labels; give a list for each"
            " label, empty where it has no text"
        )


def _keys(pairs: list[tuple[Phrase, int]], place: dict[Phrase, int], width: int) -> np.ndarray:
    """phrase * L + label of each pair."""
    return np.array([place[phrase] * width + label for phrase, label in pairs], np.int64)


def _of_label_texts(label_texts: Sequence[Sequence[str]], form: str) -> list[tuple[Phrase, int]]:
    pairs = [(phrase_of(t, form), label) for label, own in enumerate(label_texts) for t in own]
    return [(phrase, label) for phrase, label in pairs if phrase]


def _marks_of(
    marks: Marks | None,
    place: dict[Phrase, int],
    every: np.ndarray,
    source: np.ndarray,
    holds: sparse.csr_matrix,
    labels: sparse.csr_matrix,
) -> sparse.csr_matrix:
    """(n, C) csr of ones: the cells that each training document counts in m."""
    width = labels.shape[1]
    shape = (labels.shape[0], len(every))
    counted = sparse.csr_matrix(shape, dtype=np.int32)
    # evidence: what is marked in the document
    if marks and len(marks.phrases):
        key = _keys(list(zip(marks.phrases, marks.label.tolist(), strict=True)), place, width)
        ones = np.ones(len(key), np.int32)
        column = np.searchsorted(every, key)
        counted = counted + sparse.csr_matrix((ones, (marks.document, column)), shape)
    # the rest: labels of the documents that hold the phrase
    others = np.flatnonzero(source > 0)
    if len(others):
        holding = holds[:, every[others] // width]
        carrying = labels[:, every[others] % width]
        both = holding.multiply(carrying).tocoo()
        rest = sparse.csr_matrix((both.data, (both.row, others[both.col])), shape)
        counted = counted + rest
    return presence(counted)


def mined(
    texts: Sequence[str], labels: sparse.csr_matrix, per_label: int, form: str = "words"
) -> list[tuple[Phrase, int]]:
    """The n-grams of highest mutual information with each label, as pairs (phrase, label).

    Two passes over the texts. The first counts documents per n-gram in COUNTERS hashed counters,
    the second keeps n-grams whose counter reaches NGRAM_DOCUMENTS, so that memory follows the
    n-grams that repeat and not all that occur.

    Args:
        texts: of the n training documents.
        labels: (n, L) csr.
        per_label: n-grams kept per label.
        form: of the words.
    """
    counters = np.zeros(COUNTERS, np.int32)
    for text in texts:
        places = [np.zeros(0, np.int64), *_counters_of(words_of(text, form)[0])]
        counters[np.unique(np.concatenate(places))] += 1
    place: dict[Phrase, int] = {}
    rows, columns = [], []
    for row, text in enumerate(texts):
        words, _ = words_of(text, form)
        own = set()
        for length, places in enumerate(_counters_of(words), 1):
            for begin in np.flatnonzero(counters[places] >= NGRAM_DOCUMENTS).tolist():
                own.add(tuple(words[begin : begin + length]))
        rows += [row] * len(own)
        columns += [place.setdefault(phrase, len(place)) for phrase in sorted(own)]
    pair = (np.array(rows, np.int64), np.array(columns, np.int64))
    ones = np.ones(len(rows), np.int32)
    counts = sparse.csr_matrix((ones, pair), (len(texts), len(place)))
    teacher = mig.teach(counts, labels, top_k=per_label, min_documents=NGRAM_DOCUMENTS)
    phrases = list(place)
    best = teacher.scores.tocoo()
    return [(phrases[c], int(r)) for r, c in zip(best.row, best.col, strict=True)]


def _counters_of(words: list[str]) -> list[np.ndarray]:
    """The counter of every n-gram by its first word, an array for each length; the same on every
    machine.
    """
    numbers = np.array([_number(word) for word in words], np.uint64)
    total = np.zeros(len(words), np.uint64)
    counters = []
    for length in range(1, min(LONGEST_NGRAM, len(words)) + 1):
        total = total[: len(words) - length + 1] * MULTIPLIER + numbers[length - 1 :]
        counters.append((total % np.uint64(COUNTERS)).astype(np.int64))
    return counters


@lru_cache(maxsize=1 << 17)
def _number(word: str) -> int:
    return crc32(word.encode())
