"""A document's linear score over words: one-vs-rest SVM, teachers and label centroids, stacked into
one table.

The peer of METHOD.md section 7 ("linear + planted score, no attention") as something a decoder can
start from. Every term is linear in the tf-idf weights of a document, so with fixed weights they
fold into one (L, V) table and one intercept a label: z[b, l] = <tfidf[b], M[l]> + m[l]. The weights
of the terms (`stacking.py`) are those under which the sum predicts training documents it has not
seen (out of fold); the same out-of-fold scores are what training documents carry while the decoder
is trained on top, since a linear model knows its own documents by heart. Only training rows are
read. Not here: the module that scores text (`word_score.py`).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy import sparse

from plantlib.data.tokens import smooth_idf, tfidf
from plantlib.kernels.counts import column_counts, presence
from plantlib.linear import solver, stacking
from plantlib.linear.stacking import Stack
from plantlib.linear.terms import centroids, one_against_rest, ppmi
from plantlib.teacher import mig
from plantlib.utils.io import atomic_path
from plantlib.utils.progress import tqdm

TERMS = ("svm", "jaccard", "raw", "ppmi", "centroid")


# the SVMs' costs: short texts want a small one, long ones a large one, and the stack weighs them
COSTS = (0.3, 3.0)
# smaller SVM weights are dropped at a cost of 1; the threshold grows as weights do, as cost ** 0.7
PRUNE = 0.03
TOP_K = 64  # tokens per label of MI and J, as the teacher has; PPMI and centroids keep 4 times it
MIN_DOCUMENTS = 2  # training documents that a word of the score has at least
# Above so many cells of (n, L) the SVMs of many labels are solved together (`solver.py`) instead of
# one by one by LIBLINEAR, at one cost and on fewer folds, so that large problems take hours at
# most.
LARGE_CELLS = 1.5e7
LARGE_COSTS = (1.0,)
LARGE_FOLDS = 3


@dataclass(frozen=True)
class LinearConfig:
    """folds: parts of the training rows for out-of-fold scores, where the problem is not large."""

    folds: int = 5

    def __post_init__(self):
        if self.folds < 2:
            raise ValueError(f"folds={self.folds}: out-of-fold scores need at least 2")


def is_large(cells: int) -> bool:
    """Whether (n, L) of so many cells is a large problem."""
    return cells > LARGE_CELLS


def columns_of(large: bool) -> tuple[str, ...]:
    """Names of the tables that are summed: the terms, the SVM once per cost."""
    costs = tuple(svm_name(c) for c in (LARGE_COSTS if large else COSTS))
    return tuple(name for term in TERMS for name in (costs if term == "svm" else (term,)))


def svm_name(c: float) -> str:
    """The name of the SVM's table at a cost."""
    return "svm" if c == 1 else f"svm {c:g}"


@dataclass(frozen=True, eq=False)
class Table:
    """z = weights @ cells.T + intercept: cells csr (L, V) float32, intercept (L,) float32."""

    cells: sparse.csr_matrix
    intercept: np.ndarray

    @cached_property
    def by_word(self) -> sparse.csr_matrix:
        """The cells as csr (V, L): a product with `cells.T` would turn the whole table round for
        every batch.
        """
        return self.cells.T.tocsr()

    def scores(self, weights: sparse.csr_matrix) -> np.ndarray:
        """(b, L) float32 of documents with tf-idf rows `weights` (b, V)."""
        return (weights @ self.by_word).toarray().astype(np.float32) + self.intercept


@dataclass(frozen=True, eq=False)
class LinearScore:
    """What the stack has learnt: `tables[0]` from all training rows, `tables[k]` from all but part
    k.

    part (N,): 0 for documents that no table has seen, else the part a training row belongs to.
    stack: the weights of the terms. tfidf (N, V).
    """

    words: list[str]
    idf: np.ndarray
    tables: list[Table]
    part: np.ndarray
    stack: Stack
    tfidf: sparse.csr_matrix

    def scores(self, rows) -> np.ndarray:
        """(b, L) float32 of documents `rows`; a training row is scored by the table that has not
        seen it.
        """
        rows = np.asarray(rows)
        out = np.empty((len(rows), len(self.tables[0].intercept)), np.float32)
        for k in np.unique(self.part[rows]):
            here = self.part[rows] == k
            out[here] = self.tables[k].scores(self.tfidf[rows[here]])
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
    """Fit the stack on `train_rows`; words: `tokens.Words` of all N documents, labels Y (N, L).

    folder keeps the tables of finished parts, so that a killed fit goes on with the next part.
    """
    train_rows = np.asarray(train_rows)
    large = is_large(len(train_rows) * labels.shape[1])
    folds = LARGE_FOLDS if large else config.folds
    if len(train_rows) < folds:
        raise ValueError(
            f"{len(train_rows)} training documents cannot be cut into {folds} folds; lower folds"
        )
    weights = tfidf(words.counts, train_rows)
    fold = folds_of(weights[train_rows], folds, seed)
    part = np.zeros(weights.shape[0], np.int32)
    part[train_rows] = fold + 1
    parts: list[dict[str, Table]] = []
    names = columns_of(large)
    steps = (folds + 1) * labels.shape[1] * max(sum(name.startswith("svm") for name in names), 1)
    with tqdm(total=steps, desc="linear score", unit="label", disable=not progress) as bar:
        # all rows last: they may begin from what the folds found, no fold may begin from what has
        # seen its documents
        for k in [*range(folds), -1]:
            rows = train_rows[fold != k]
            path = folder and Path(folder) / f"part{k + 1}.safetensors"
            parts.append(
                _part(
                    weights[rows],
                    labels[rows],
                    path,
                    bar,
                    parts=folds + 1,
                    large=large,
                    seed=seed,
                    before=parts if large and k < 0 else (),
                )
            )
    parts = [parts.pop(), *parts]
    counts = [column_counts(labels[train_rows[fold != k]]) for k in range(-1, folds)]
    found = stacking.fit(
        parts[1:], counts[1:], weights[train_rows], labels[train_rows], fold, names, seed=seed
    )
    tables = [_fold_up(part, found, count) for part, count in zip(parts, counts, strict=True)]
    idf = smooth_idf(words.counts[train_rows]).astype(np.float32)
    return LinearScore(words.names, idf, tables, part, found, weights)


def folds_of(weights: sparse.csr_matrix, folds: int, seed: int = 0) -> np.ndarray:
    """(n,) fold of every row of weights (n, V), drawn evenly; rows of the same words, copies of a
    text, share one.
    """
    fold = np.random.default_rng(seed).permutation(weights.shape[0]) % folds
    first: dict[bytes, int] = {}
    for i, (begin, end) in enumerate(pairwise(weights.indptr)):
        read = weights.indices[begin:end].tobytes() + weights.data[begin:end].tobytes()
        fold[i] = fold[first.setdefault(read, i)]
    return fold


def _part(weights, labels, path: Path | None, bar, *, parts: int, **options) -> dict[str, Table]:
    """The terms of one of `parts` parts of the rows, read from `path` where they stand; options as
    for `terms_of`.
    """
    if path is not None and path.exists():
        bar.update(bar.total // parts)
        return load_tables(path)
    found = terms_of(weights, labels, bar=bar, **options)
    if path is not None:
        save_tables(found, path)
    return found


def terms_of(
    weights: sparse.csr_matrix,
    labels: sparse.csr_matrix,
    *,
    large: bool = False,
    seed: int = 0,
    bar=None,
    before=(),
) -> dict[str, Table]:
    """Every term from training rows alone: weights (n, V) tf-idf, labels (n, L); before: parts
    whose SVMs are a start.
    """
    x, nothing, found = presence(weights != 0), np.zeros(labels.shape[1], np.float32), {}
    makers = {
        "jaccard": lambda: mig.teach(x, labels, variant="jaccard", top_k=TOP_K).scores,
        "raw": lambda: mig.teach(x, labels, variant="raw", top_k=TOP_K).scores,
        "ppmi": lambda: mig.top_tokens(ppmi(x, labels).scores, 4 * TOP_K)[0],
        "centroid": lambda: mig.top_tokens(centroids(weights, labels).scores, 4 * TOP_K)[0],
    }
    for term in TERMS:
        if term != "svm":
            found[term] = Table(_float32(makers[term]()), nothing)
            continue
        for c in LARGE_COSTS if large else COSTS:
            name = svm_name(c)
            start = mean_of([part[name] for part in before])
            found[name] = svm(weights, labels, c, large=large, seed=seed, bar=bar, start=start)
    return found


def mean_of(tables: list[Table]) -> Table | None:
    """The mean of tables of one size, None of none."""
    if not tables:
        return None
    cells = sum(table.cells for table in tables) / len(tables)
    return Table(_float32(cells), np.mean([table.intercept for table in tables], 0, np.float32))


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
    """One-vs-rest SVM of cost `c` with pruned weights; a label on no row scores -1, on every row 1.

    start: where the SVMs of a large problem begin, those of nearly the same rows; it saves steps
    and changes no optimum.
    """
    prune = prune * c**0.7
    columns = labels.tocsc()
    solve, blocks = (
        _together(weights, columns, c, start) if large else _one_by_one(weights, columns, c, seed)
    )

    def one(block: np.ndarray):
        solved = [
            (np.flatnonzero(np.abs(coef) > prune), coef, intercept)
            for coef, intercept in solve(block)
        ]
        return [
            (kept.astype(np.int32), coef[kept].astype(np.float32), intercept)
            for kept, coef, intercept in solved
        ]

    # liblinear and SciPy's products let go of the interpreter while they work, so threads share one
    # copy of the documents
    found = [None] * labels.shape[1]
    with ThreadPoolExecutor(_threads()) as pool:
        for block, rows in zip(blocks, pool.map(one, blocks), strict=True):
            for label, row in zip(block, rows, strict=True):
                found[label] = row
            if bar is not None:
                bar.update(len(block))
    indptr = np.cumsum([0, *(len(kept) for kept, _, _ in found)])
    cells = sparse.csr_matrix(
        (
            np.concatenate([v for _, v, _ in found]),
            np.concatenate([k for k, _, _ in found]),
            indptr,
        ),
        shape=(labels.shape[1], weights.shape[1]),
    )
    return Table(cells, np.array([b for _, _, b in found], np.float32))


def _one_by_one(weights, columns: sparse.csc_matrix, c: float, seed: int):
    """(block of labels -> [(weights (V,), intercept)], blocks): LIBLINEAR, a label a block."""

    def solve(block: np.ndarray):
        return [
            one_against_rest(weights, columns[:, label].toarray().ravel() > 0, c, seed)
            for label in block
        ]

    return solve, np.arange(columns.shape[1])[:, None]


def _together(weights, columns: sparse.csc_matrix, c: float, start: Table | None):
    """The same for many labels at once; labels of like frequency, which take as many steps, share a
    block.
    """
    documents, counts = solver.Documents.of(weights), np.diff(columns.indptr)

    def solve(block: np.ndarray):
        constant = (counts[block] == 0) | (counts[block] == len(documents))
        solved = np.zeros((weights.shape[1] + 1, len(block)), np.float32)
        solved[-1] = np.where(counts[block] == 0, -1, 1)
        if not constant.all():
            asked = block[~constant]
            begin = (
                None
                if start is None
                else np.vstack([start.cells[asked].toarray().T, start.intercept[asked]])
            )
            solved[:, ~constant] = solver.solve(
                documents, columns[:, asked].toarray() > 0, c, start=begin
            )
        return [(w[:-1], float(w[-1])) for w in solved.T]

    order, size = np.argsort(-counts, kind="stable"), solver.block_of(len(documents))
    return solve, [order[i : i + size] for i in range(0, len(order), size)]


def _fold_up(part: dict[str, Table], stack: Stack, counts: np.ndarray) -> Table:
    """The weighted sum of terms as one table; counts (L,): documents a label that the terms were
    made from.
    """
    weights, shift = stack.of_labels(counts)
    cells = sum(sparse.diags(w) @ part[term].cells for term, w in weights.items()).tocsr()
    cells.eliminate_zeros()
    cells.sort_indices()
    shift = shift + sum(w * part[term].intercept for term, w in weights.items())
    return Table(_float32(cells), np.asarray(shift, np.float32))


def save_tables(tables: dict[str, Table], path: str | Path) -> None:
    """Tables as one safetensors file."""
    from safetensors.numpy import save_file

    arrays = {}
    for name, table in tables.items():
        cells = table.cells
        arrays |= {
            f"{name}.indptr": cells.indptr.astype(np.int64),
            f"{name}.indices": cells.indices.astype(np.int32),
        }
        arrays |= {f"{name}.data": cells.data, f"{name}.intercept": table.intercept}
    width = {name: str(table.cells.shape[1]) for name, table in tables.items()}
    with atomic_path(path) as temporary:
        save_file(
            {k: np.ascontiguousarray(v) for k, v in arrays.items()}, temporary, metadata=width
        )


def word_cells(score: LinearScore | None) -> dict[str, int]:
    """What a RunRecord's model_size says of the table that a model carries beside its trained
    parameters.
    """
    return {} if score is None else {"word_cells": int(score.tables[0].cells.nnz)}


def load_tables(path: str | Path) -> dict[str, Table]:
    """What `save_tables` wrote."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        width = {name: int(v) for name, v in file.metadata().items()}
        get = lambda name: [
            file.get_tensor(f"{name}.{part}") for part in ("data", "indices", "indptr", "intercept")
        ]  # noqa: E731
        found = {}
        for name in width:
            data, indices, indptr, intercept = get(name)
            found[name] = Table(
                sparse.csr_matrix((data, indices, indptr), shape=(len(intercept), width[name])),
                intercept,
            )
    return found


def _float32(cells) -> sparse.csr_matrix:
    return sparse.csr_matrix(cells, dtype=np.float32)


def _threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or 0) or os.cpu_count() or 1
