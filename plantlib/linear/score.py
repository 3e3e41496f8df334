"""A document's linear score over words: one-vs-rest SVMs, teachers and label centroids, stacked
into one table; docs/method.md, "The linear score".

Every term is linear in the tf-idf weights of a document, so with fixed weights they fold into one
(L, V) table and one intercept per label: u[b, l] = <tfidf[b], M[l]> + m[l]. The weights of the
terms (`linear.stacking`) are those under which the sum predicts training documents that it has not
seen (out of fold). While a decoder is trained on top, training documents carry the same out-of-fold
scores, since a linear model knows its own documents by heart. Only training rows are read. The
module that scores text is in `planting.scores`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy import sparse

from plantlib.data.tokens import smooth_idf, tfidf
from plantlib.kernels.counts import column_counts, presence
from plantlib.linear import liblinear, rare, solver, stacking
from plantlib.linear.stacking import Stack
from plantlib.linear.tables import Table, float32, fold_up, load_tables, mean_of, save_tables
from plantlib.linear.terms import centroids, ppmi
from plantlib.teacher import mig
from plantlib.utils.checks import check_fields
from plantlib.utils.io import read_if_whole
from plantlib.utils.progress import tqdm

TERMS = ("svm", "jaccard", "raw", "ppmi", "centroid")

# the SVMs' costs: short texts want a small one, long ones a large one, and the stack weighs them
COSTS = (0.3, 3.0)
# smaller SVM weights are dropped at a cost of 1; the threshold grows as weights do, as cost ** 0.7
PRUNE = 0.03
TOP_K = 64  # tokens per label of MI and J, as the teacher has; PPMI and centroids keep 4 times it
MIN_DOCUMENTS = 2  # training documents that a word of the score has at least
# Above so many cells of (n, L) the SVMs of many labels are solved together (`solver.py`) instead of
# one by one by LIBLINEAR, at one cost and on fewer folds, so that a large problem stays affordable.
LARGE_CELLS = 1.5e7
LARGE_COSTS = (1.0,)
LARGE_FOLDS = 3


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


def columns_of(large: bool) -> tuple[str, ...]:
    """Names of the tables that are summed: the terms, the SVM once per cost."""
    costs = tuple(svm_name(c) for c in (LARGE_COSTS if large else COSTS))
    return tuple(name for term in TERMS for name in (costs if term == "svm" else (term,)))


def svm_name(c: float) -> str:
    """The name of the SVM's table at a cost."""
    return "svm" if c == 1 else f"svm {c:g}"


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
    steps = (folds + 1) * labels.shape[1] * max(sum(name.startswith("svm") for name in names), 1)
    options = {"total": steps, "desc": "linear score", "unit": "label", "disable": not progress}
    with liblinear.workers(len(train_rows), labels.shape[1]), tqdm(**options) as bar:
        # all rows come last: their SVMs may begin from those of the folds; those of a fold must not
        # begin from any that have seen its documents
        for k in [*range(folds), -1]:
            rows = train_rows[fold != k]
            path = folder and Path(folder) / f"part{k + 1}.safetensors"
            parts.append(
                _part(
                    weights[rows],
                    labels[rows],
                    path,
                    bar,
                    count=folds + 1,
                    large=large,
                    seed=seed,
                    before=parts if large and k < 0 else (),
                )
            )
    # weigh the terms out of fold, and fold each part into one table
    parts = [parts.pop(), *parts]
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


def _part(weights, labels, path: Path | None, bar, *, count: int, **options) -> dict[str, Table]:
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
    before=(),
) -> dict[str, Table]:
    """Every term from n training rows.

    Args:
        weights: (n, V) csr, tf-idf.
        labels: (n, L) csr.
        large: solve the SVMs of many labels together.
        seed: of LIBLINEAR.
        bar: a progress bar that counts labels per SVM.
        before: terms of other parts, whose SVMs are averaged to begin from.

    Returns:
        {name: table} in the order of `columns_of`.
    """
    x = presence(weights != 0)
    no_intercept = np.zeros(labels.shape[1], np.float32)
    tables = {}
    makers = {
        "jaccard": lambda: mig.teach(x, labels, variant="jaccard", top_k=TOP_K).scores,
        "raw": lambda: mig.teach(x, labels, variant="raw", top_k=TOP_K).scores,
        "ppmi": lambda: mig.top_tokens(ppmi(x, labels).scores, 4 * TOP_K)[0],
        "centroid": lambda: mig.top_tokens(centroids(weights, labels).scores, 4 * TOP_K)[0],
    }
    for term in TERMS:
        if term != "svm":
            tables[term] = Table(float32(makers[term]()), no_intercept)
            continue
        for c in LARGE_COSTS if large else COSTS:
            name = svm_name(c)
            start = mean_of([part[name] for part in before])
            tables[name] = svm(weights, labels, c, large=large, seed=seed, bar=bar, start=start)
    return tables


def svm(
    weights: sparse.csr_matrix,
    labels: sparse.csr_matrix,
    c: float = 1.0,
    *,
    large: bool = False,
    seed: int = 0,
    prune: float = PRUNE,
    bar=None,
    start: Table | None = None,
) -> Table:
    """One-vs-rest SVMs with pruned weights; a label on no row scores -1, on every row 1.

    Args:
        weights: (n, V) csr, tf-idf.
        labels: (n, L) csr.
        c: cost of an error.
        large: solve blocks of labels together instead of one by one by LIBLINEAR.
        seed: of LIBLINEAR.
        prune: weights up to prune * c ** 0.7 are dropped.
        bar: a progress bar that counts labels.
        start: SVMs of nearly the same rows that those of a large problem begin from; it saves steps
            and changes no optimum.

    Returns:
        (L, V) weights and (L,) intercepts.
    """
    prune = prune * c**0.7
    columns = labels.tocsc()
    by_label: list = [None] * labels.shape[1]
    if large:
        solved = _together(weights, columns, c, prune, start)
    else:
        solved = enumerate(liblinear.solve(weights, columns, c, seed, prune))
    for label, row in solved:
        by_label[label] = row
        if bar is not None:
            bar.update()
    # one table of all labels
    words, values, intercepts = zip(*by_label, strict=True)
    indptr = np.cumsum([0, *(len(row) for row in words)])
    shape = (labels.shape[1], weights.shape[1])
    cells = sparse.csr_matrix((np.concatenate(values), np.concatenate(words), indptr), shape=shape)
    return Table(cells, np.array(intercepts, np.float32))


def _together(weights, columns: sparse.csc_matrix, c: float, prune: float, start: Table | None):
    """Pairs of a label and its `liblinear.Row` by `linear.solver`; labels of similar frequency
    share a block, since they take as many steps.
    """
    documents = solver.Documents.of(weights)
    counts = np.diff(columns.indptr)

    def solve(block: np.ndarray) -> list[liblinear.Row]:
        # labels on no row or on every row are constants
        constant = (counts[block] == 0) | (counts[block] == len(documents))
        solved = np.zeros((weights.shape[1] + 1, len(block)), np.float32)
        solved[-1] = np.where(counts[block] == 0, -1, 1)
        if not constant.all():
            mixed = block[~constant]
            begin = None
            if start is not None:
                begin = np.vstack([start.cells[mixed].toarray().T, start.intercept[mixed]])
            positive = columns[:, mixed].toarray() > 0
            solved[:, ~constant] = solver.solve(documents, positive, c, start=begin)
        return [liblinear.pruned(w[:-1], float(w[-1]), prune) for w in solved.T]

    order, size = np.argsort(-counts, kind="stable"), solver.block_of(len(documents))
    blocks = [order[i : i + size] for i in range(0, len(order), size)]
    # SciPy's products release the interpreter, so threads can share one copy of the documents
    with ThreadPoolExecutor(liblinear.cores()) as pool:
        for block, rows in zip(blocks, pool.map(solve, blocks), strict=True):
            yield from zip(block, rows, strict=True)


def word_cells(score: LinearScore | None) -> dict[str, int]:
    """The entry of a record's model_size for the table that a model carries beside its trained
    parameters; none without a score.
    """
    return {} if score is None else {"word_cells": int(score.tables[0].cells.nnz)}
