"""What the starts `evidence` and `phrases` plant: lists of phrases counted on the training
documents, and what they say of every document; docs/method.md, "Planted phrases".

A training document is read by weights counted without it. For marked phrases and texts of labels
that is exact (`PhraseTeacher.held_out`); mined n-grams are chosen by the labels of their documents,
so those of a training document are mined without its fold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from plantlib.backbones import loading
from plantlib.data.corpus import Corpus
from plantlib.linear import phrase_term
from plantlib.linear.phrase_term import TextScore
from plantlib.linear.score import LinearScore
from plantlib.planting import starts
from plantlib.teacher import label_texts, phrases
from plantlib.teacher.phrase_cells import BLOCK, DocumentCells, PhraseList, Said, places_of
from plantlib.teacher.phrases import PhraseTeacher
from plantlib.training.inputs import Inputs
from plantlib.utils.base import DataError
from plantlib.utils.io import fingerprint_of

NGRAMS = 16  # n-grams that are mined for each label
FOLDS = 5  # parts of the training documents by which n-grams are mined

Reader = Callable[[np.ndarray], Said]  # rows -> what a list says of them


@dataclass(frozen=True, eq=False)
class PlantedPhrases:
    """What phrases say of the N documents of a corpus.

    names: of J lists. lists: as counted on all training documents. logs: (N, L) csr of each, see
    `linear.phrase_term`. cells: of attention. columns: (L,) the permutation of the shuffled
    control, or None.
    """

    names: list[str]
    lists: list[PhraseList]
    logs: list[sparse.csr_matrix]
    cells: DocumentCells
    columns: np.ndarray | None = None

    def score(self, linear: LinearScore | None, inputs: Inputs, seed: int) -> TextScore:
        """The score of whole texts, with the linear score as its first term where there is one."""
        labels, rows = inputs.corpus.labels, inputs.rows["train"]
        return phrase_term.fit(linear, self.names, self.logs, labels, rows, seed=seed)

    def shuffled(self, order: np.ndarray) -> PlantedPhrases:
        """The control: attention plants for label l what phrases say of label order[l]; what they
        add to the score stays.
        """
        columns = np.empty(len(order), np.int64)
        columns[order] = np.arange(len(order))
        cells = self.cells.relabelled(columns)
        return PlantedPhrases(self.names, self.lists, self.logs, cells, columns)

    def about(self) -> dict:
        """For a record: phrases and cells of each list."""
        sizes = zip(self.names, self.lists, strict=True)
        return {
            name: {"phrases": len(one.indptr) - 1, "cells": len(one.labels)} for name, one in sizes
        }


def key_of(corpus: Corpus, rows: np.ndarray, start: str) -> str:
    """Fingerprint of what the phrases of a start are made of beside texts and labels; "" where it
    plants none.

    rows: (n,) the training documents; evidence of others has no part in it.
    """
    parts = start.split("+")
    if not set(starts.PHRASE_STARTS) & set(parts):
        return ""
    texts = sorted(corpus.label_texts.items()) if "phrases" in parts else []
    marks = []
    if "evidence" in parts and corpus.evidence is not None:
        training = {corpus.ids[i] for i in rows}
        spans = corpus.evidence[corpus.evidence["id"].isin(training)]
        marks = spans[["id", "label", "start", "end"]].astype(str).to_numpy().tolist()
    return fingerprint_of(texts, marks)


def planted_phrases(
    inputs: Inputs, parts: Sequence[str], cross_fitted: bool = True
) -> PlantedPhrases:
    """Count phrases on the training rows and match them in all documents.

    Args:
        parts: names that the start joins by "+"; `evidence` and `phrases` are read.
        cross_fitted: read training documents by weights that have not counted them.

    Raises:
        DataError: there is no evidence for `evidence`, or no phrase for `phrases`.
    """
    readers: dict[str, tuple[PhraseList, Reader]] = {}
    if "evidence" in parts:
        readers |= _of_evidence(inputs, cross_fitted)
    if "phrases" in parts:
        readers |= _of_texts(inputs, cross_fitted)
    tokenizer = loading.tokenizer_of(inputs.backbone, inputs.trust_remote_code)
    corpus = inputs.corpus
    logs: list[list[sparse.csr_matrix]] = [[] for _ in readers]
    cells = []
    for rows in _blocks(np.arange(corpus.N)):
        said = [read(rows) for _, read in readers.values()]
        for one, by_list in zip(said, logs, strict=True):
            by_list.append(phrase_term.logs_of(one.scores((len(rows), corpus.L))))
        places = places_of(tokenizer, [corpus.texts[i] for i in rows], inputs.max_tokens)
        cells.append(DocumentCells.of(said, places, corpus.L))
    return PlantedPhrases(
        list(readers),
        [phrases for phrases, _ in readers.values()],
        [sparse.vstack(blocks, format="csr") for blocks in logs],
        DocumentCells.joined(cells),
    )


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for begin in range(0, len(rows), BLOCK):
        yield rows[begin : begin + BLOCK]


def _of_evidence(inputs: Inputs, cross_fitted: bool) -> dict[str, tuple[PhraseList, Reader]]:
    """Marked phrases by words and by stems, and their parts."""
    corpus, train = inputs.corpus, inputs.rows["train"]
    if corpus.evidence is None:
        raise DataError(
            f"start 'evidence': corpus {corpus.name!r} has no evidence; read it with"
            " evidence='spans.csv', or leave this part out of the start"
        )
    marks = phrases.marks_of(corpus, train)
    if not marks.phrases:
        raise DataError(
            f"start 'evidence': no training document of corpus {corpus.name!r} has a marked word of"
            " a label seen in training; check ids and labels of the evidence, or leave this part"
            " out of the start"
        )
    by_name = {
        "evidence": (marks, "words"),
        "evidence, stems": (phrases.marks_of(corpus, train, "stems"), "stems"),
        "evidence, parts": (phrases.parts(marks), "words"),
    }
    texts, labels = [corpus.texts[i] for i in train], inputs.train_labels
    return {
        name: _reader(inputs, phrases.teach(texts, labels, marks=own, form=form), cross_fitted)
        for name, (own, form) in by_name.items()
        if own.phrases
    }


def _of_texts(inputs: Inputs, cross_fitted: bool) -> dict[str, tuple[PhraseList, Reader]]:
    """Texts of labels, and n-grams of training documents."""
    corpus, train = inputs.corpus, inputs.rows["train"]
    texts, labels = [corpus.texts[i] for i in train], inputs.train_labels
    found = {}
    own = [[text] if text else [] for text in label_texts.read(corpus)]
    if any(phrases.phrase_of(text) for texts_of in own for text in texts_of):
        teacher = phrases.teach(texts, labels, label_texts=own)
        found["label texts"] = _reader(inputs, teacher, cross_fitted)
    ngrams = _of_ngrams(inputs, texts, cross_fitted)
    if ngrams is not None:
        found["n-grams"] = ngrams
    if not found:
        raise DataError(
            f"start 'phrases': no label of corpus {corpus.name!r} has a text, and no phrase stands"
            " in two training documents of a label; leave this part out of the start"
        )
    return found


def _reader(
    inputs: Inputs, teacher: PhraseTeacher, cross_fitted: bool
) -> tuple[PhraseList, Reader]:
    """A teacher's list, and what it says of documents; training ones read exact counts without
    them.
    """
    listed = PhraseList.of(teacher)
    texts = inputs.corpus.texts
    place = np.full(len(texts), -1)
    if cross_fitted:
        place[inputs.rows["train"]] = np.arange(len(inputs.rows["train"]))

    def read(rows: np.ndarray) -> Said:
        return _by_kind(
            rows,
            place[rows] >= 0,
            lambda own: listed.said([texts[i] for i in own]),
            lambda own: listed.said(
                [texts[i] for i in own],
                lambda document, cell: teacher.held_out(place[own][document], cell),
            ),
        )

    return listed, read


def _by_kind(rows: np.ndarray, training: np.ndarray, whole: Reader, held_out: Reader) -> Said:
    """What is said of rows (b,), of training ones by `held_out`, ordered by document."""
    parts = []
    for chosen, read in ((~training, whole), (training, held_out)):
        if chosen.any():
            said = read(rows[chosen])
            parts.append(said._replace(document=np.flatnonzero(chosen)[said.document]))
    return _ordered(parts)


def _ordered(parts: list[Said]) -> Said:
    """What was said of different documents, ordered by document."""
    joined = Said(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    order = np.argsort(joined.document, kind="stable")
    return Said(*(column[order] for column in joined))


def _of_ngrams(
    inputs: Inputs, texts: list[str], cross_fitted: bool
) -> tuple[PhraseList, Reader] | None:
    """Mined n-grams; None where there is none."""
    labels, train = inputs.train_labels, inputs.rows["train"]
    whole = _mined(texts, labels)
    if whole is None:
        return None
    every = inputs.corpus.texts
    fold = np.full(len(every), -1)
    by_fold: dict[int, PhraseList | None] = {}
    if cross_fitted and len(train) > 1:
        folds = min(FOLDS, len(train))
        fold[train] = np.random.default_rng(0).permutation(len(train)) % folds
        for k in range(folds):
            others = np.flatnonzero(fold[train] != k)
            by_fold[k] = _mined([texts[i] for i in others], labels[others])

    def read(rows: np.ndarray) -> Said:
        parts = []
        for k in np.unique(fold[rows]).tolist():
            chosen = np.flatnonzero(fold[rows] == k)
            listed = whole if k < 0 else by_fold[k]
            if listed is not None:
                said = listed.said([every[i] for i in rows[chosen]])
                parts.append(said._replace(document=chosen[said.document]))
        return _ordered(parts) if parts else whole.said([])

    return whole, read


def _mined(texts: list[str], labels: sparse.csr_matrix) -> PhraseList | None:
    """The list of n-grams mined from these documents; None where there is none."""
    try:
        return PhraseList.of(phrases.teach(texts, labels, ngrams=NGRAMS))
    except DataError:
        return None
