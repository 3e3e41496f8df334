"""A document's linear score over words: regressions, teachers and label centroids, stacked into one
table; docs/method.md, "The linear score".

Every term is linear in the tf-idf weights of a document, so with fixed weights they fold into one
(L, V) table and one intercept per label: u[b, l] = <tfidf[b], M[l]> + m[l]. The weights of the
terms (`linear.stacking`) are those under which the sum predicts training documents that it has not
seen (out of fold). While a decoder is trained on top, training documents carry the same out-of-fold
scores, since a linear model knows its own documents by heart. Only training rows are read. The
module that scores text is in `planting.scores`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy import sparse

from plantlib.data.tokens import smooth_idf, tfidf
from plantlib.kernels.counts import column_counts, presence
from plantlib.linear import confusable, rare, ridge, stacking
from plantlib.linear.stacking import Stack
from plantlib.linear.tables import Table, float32, fold_up, load_tables, save_tables
from plantlib.linear.terms import centroids, ppmi
from plantlib.teacher import mig
from plantlib.utils.checks import check_fields
from plantlib.utils.io import read_if_whole
from plantlib.utils.progress import tqdm

COUNTED = ("jaccard", "raw", "ppmi", "centroid")  # terms that are counted, not fitted

# penalties of the ridge regressions, and the size up to which their weights are dropped: long texts
# want a small penalty, short ones and frequent labels a large one, and the stack weighs them
PENALTIES = {0.2: 0.03, 1.5: 0.015}
TOP_K = 64  # tokens per label of MI and J, as the teacher has; PPMI and centroids keep 4 times it
MIN_DOCUMENTS = 2  # training documents that a word of the score has at least
# Above so many cells of (n, L) there are fewer folds, so that a large problem stays affordable, and
# one penalty: among many documents squared error ranks worse than a support vector machine does,
# which ridge regression only tells what is confusable.
LARGE_CELLS = 1.5e7
LARGE_FOLDS = 3
LARGE_PENALTIES = {0.5: 0.03}
SVM = "svm"


@dataclass(frozen=True)
class LinearConfig:
    """Option of the linear score.

    folds: parts of the training rows for out-of-fold scores, never more than there are rows; large
        problems have LARGE_FOLDS.
    """

    folds: int = 5

    def __post_init__(self):
        check_fields(self)
        if self.folds < 2:
            raise ValueError(f"folds={self.folds}: out-of-fold scores need at least 2")


def is_large(cells: int) -> bool:
    """Whether a problem with so many cells of (n, L) is a large one."""
    return cells > LARGE_CELLS


def penalties_of(large: bool) -> dict[float, float]:
    """The penalties of the ridge regressions, see `ridge.fit`."""
    return LARGE_PENALTIES if large else PENALTIES


def columns_of(large: bool = False) -> tuple[str, ...]:
    """Names of the tables that are summed."""
    ridges = (f"ridge {penalty:g}" for penalty in penalties_of(large))
    return (*ridges, *([SVM] if large else []), *COUNTED)


@dataclass(frozen=True, eq=False)
class LinearScore:
    """A fitted linear score of N documents.

    words: the V words. idf: (V,).
    tables: `tables[0]` from all training rows, `tables[k]` from all but those of part k.
    lines: scale and shift (L,) of each table, see `raised`.
    part: (N,), the part of a training row, 0 for the other documents.
    stack: the weights of the terms.
    tfidf: (N, V) csr.
    """

    words: list[str]
    idf: np.ndarray
    tables: list[Table]
    lines: list[tuple[np.ndarray, np.ndarray]]
    part: np.ndarray
    stack: Stack
    tfidf: sparse.csr_matrix

    def scores(self, rows) -> np.ndarray:
        """(b, L) float32 of documents `rows` (b,); a training row is scored by the table that has
        not seen it.
        """
        rows = np.asarray(rows)
        out = np.empty((len(rows), len(self.tables[0].intercept)), np.float32)
        for k in np.unique(self.part[rows]):
            here = self.part[rows] == k
            out[here] = self.tables[k].scores(self.tfidf[rows[here]])
        return out

    def raised(self, rows) -> np.ndarray:
        """As `scores`, with labels of few documents on the scale of the others (`linear.rare`).

        For lists by the score alone. A decoder is trained on `scores`, which are right on average:
        it would push down again what was raised.
        """
        return self.on_one_scale(rows, self.scores(rows))

    def on_one_scale(self, rows, scores: np.ndarray) -> np.ndarray:
        """`raised` of documents whose `scores` (b, L) are there already."""
        part = self.part[np.asarray(rows)]
        out = np.empty_like(scores)
        for k in np.unique(part):
            here = part == k
            scale, shift = self.lines[k]
            out[here] = shift + scale * scores[here]
        return out


def fit(
    words,
    labels: sparse.csr_matrix,
    train_rows: np.ndarray,
    *,
    config: LinearConfig = LinearConfig(),
    seed: int = 0,
    folder: str | Path | None = None,
    progress: bool = True,
) -> LinearScore:
    """Fit terms and stack on training rows.

    Args:
        words: `tokens.Words` of all N documents.
        labels: Y (N, L) csr.
        train_rows: (n,) documents to fit on.
        config: into how many folds they are cut.
        seed: of the folds, the solver and the stack's sample.
        folder: receives the tables of finished parts, so that a killed fit goes on with the next.
        progress: show a bar.

    Returns:
        The fitted score.

    Raises:
        ValueError: all training documents have the same words.
    """
    # cut the rows into folds; of very few documents each is a fold of its own
    train_rows = np.asarray(train_rows)
    large = is_large(len(train_rows) * labels.shape[1])
    folds = min(LARGE_FOLDS if large else config.folds, len(train_rows))
    weights = tfidf(words.counts, train_rows)
    # documents of the same words share a fold, so that some may be empty
    used, fold = np.unique(folds_of(weights[train_rows], folds, seed), return_inverse=True)
    folds = len(used)
    if folds < 2:
        raise ValueError(
            f"{len(train_rows)} training documents have the same words, so that no linear score can"
            " be tested on others: give documents of different words"
        )
    part = np.zeros(weights.shape[0], np.int32)
    part[train_rows] = fold + 1
    parts: list[dict[str, Table]] = []
    # the terms of every part
    names = columns_of(large)
    steps = (folds + 1) * labels.shape[1] * (len(names) - len(COUNTED))
    options = {"total": steps, "desc": "linear score", "unit": "label", "disable": not progress}
    with tqdm(**options) as bar:
        for k in range(-1, folds):
            rows = train_rows[fold != k]
            path = folder and Path(folder) / f"part{k + 1}.safetensors"
            made = _part(
                weights[rows], labels[rows], path, folds + 1, bar=bar, large=large, seed=seed
            )
            parts.append(made)
    # weigh the terms out of fold, and fold each part into one table
    counts = [column_counts(labels[train_rows[fold != k]]) for k in range(-1, folds)]
    stack = stacking.fit(
        parts[1:], counts[1:], weights[train_rows], labels[train_rows], fold, names, seed=seed
    )
    stack = rare.raised(
        stack, parts[1:], counts[1:], weights[train_rows], labels[train_rows], fold, seed=seed
    )
    tables = [fold_up(terms, stack, n) for terms, n in zip(parts, counts, strict=True)]
    lines = [stack.line_of(n) for n in counts]
    idf = smooth_idf(words.counts[train_rows]).astype(np.float32)
    return LinearScore(words.names, idf, tables, lines, part, stack, weights)


def folds_of(weights: sparse.csr_matrix, folds: int, seed: int = 0) -> np.ndarray:
    """(n,) fold of every row of weights (n, V), drawn evenly; copies of a text share one."""
    fold = np.random.default_rng(seed).permutation(weights.shape[0]) % folds
    first: dict[bytes, int] = {}
    for i, (begin, end) in enumerate(pairwise(weights.indptr)):
        content = weights.indices[begin:end].tobytes() + weights.data[begin:end].tobytes()
        fold[i] = fold[first.setdefault(content, i)]
    return fold


def _part(weights, labels, path: Path | None, count: int, *, bar, **options) -> dict[str, Table]:
    """The terms of one of `count` parts of the rows, read from `path` if it holds them and else
    written to it; options as for `terms_of`.
    """
    if path is not None and (stored := read_if_whole(path, load_tables)) is not None:
        bar.update(bar.total // count)
        return stored
    tables = terms_of(weights, labels, bar=bar, **options)
    if path is not None:
        save_tables(tables, path)
    return tables


def terms_of(
    weights: sparse.csr_matrix,
    labels: sparse.csr_matrix,
    *,
    large: bool = False,
    seed: int = 0,
    bar=None,
) -> dict[str, Table]:
    """Every term from n training rows.

    Args:
        weights: (n, V) csr, tf-idf.
        labels: (n, L) csr.
        large: fit what large problems have.
        seed: of the support vector machines.
        bar: a progress bar that counts labels per fitted term.

    Returns:
        {name: table} in the order of `columns_of`.
    """
    x = presence(weights != 0)
    counted = [
        mig.teach(x, labels, variant="jaccard", top_k=TOP_K).scores,
        mig.teach(x, labels, variant="raw", top_k=TOP_K).scores,
        mig.top_tokens(ppmi(x, labels).scores, 4 * TOP_K)[0],
        mig.top_tokens(centroids(weights, labels).scores, 4 * TOP_K)[0],
    ]
    no_intercept = np.zeros(labels.shape[1], np.float32)
    tables = ridge.fit(weights, labels, penalties_of(large), bar=bar)
    if large:
        tables.append(confusable.fit(weights, labels, tables[0], seed=seed, bar=bar))
    tables += [Table(float32(cells), no_intercept) for cells in counted]
    return dict(zip(columns_of(large), tables, strict=True))


def word_cells(score: LinearScore | None) -> dict[str, int]:
    """The entry of a record's model_size for the table that a model carries beside its trained
    parameters; none without a score.
    """
    return {} if score is None else {"word_cells": int(score.tables[0].cells.nnz)}
