"""Exact co-occurrence counts, entropies and mutual information on the CPU: the specification of the
Triton kernels.

Counts are integers and logarithms come from one float64 table, so that every implementation can
give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

VARIANTS = ("jaccard", "label_entropy", "raw")
RELEVANCES = ("grade", "score")


def presence(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Binary (N, V) presence of a (N, V) count matrix, int32 so that products count exactly."""
    present = sparse.csr_matrix(counts, dtype=np.int32, copy=True)
    # an entry stored twice is one document, not two
    present.sum_duplicates()
    present.eliminate_zeros()
    present.data[:] = 1
    return present


def n_log_n(n: int) -> np.ndarray:
    """f(0), ..., f(n) with f(x) = x ln x and f(0) = 0, float64."""
    x = np.arange(n + 1, dtype=np.float64)
    x[1:] *= np.log(x[1:])
    return x


def information(
    both, with_token, with_label, n: int, table: np.ndarray | None = None
) -> np.ndarray:
    """I(t;l) in nats from integer counts: documents with both, with the token, with the label, and
    all `n`.

    Any broadcastable integer arrays. One sum of f over the four cells and the four marginals, all
    divided by n.
    """
    f = n_log_n(n) if table is None else table
    cells = (
        f[both]
        + f[with_token - both]
        + f[with_label - both]
        + f[n - with_token - with_label + both]
    )
    margins = f[with_token] + f[n - with_token] + f[with_label] + f[n - with_label]
    return np.maximum((cells - margins + f[n]) / n, 0.0)


def entropy(count, n: int, table: np.ndarray | None = None) -> np.ndarray:
    """H in nats of an event seen in `count` of `n` documents."""
    f = n_log_n(n) if table is None else table
    return (f[n] - f[count] - f[n - count]) / n


def normalise(info, h_t, h_l, variant: str) -> np.ndarray:
    """The score of a cell from I(t;l), H(t) and H(l), broadcastable: J, I / H(l) or I."""
    tiny = np.finfo(float).tiny
    if variant == "jaccard":
        return info / np.maximum(h_t + h_l - info, tiny)
    return info / np.maximum(h_l, tiny) if variant == "label_entropy" else info


def dense_mutual_information(x: sparse.csr_matrix, y: sparse.csr_matrix) -> np.ndarray:
    """I(t;l) of every cell, (V, L) dense float64: for toy corpora and tests."""
    x, y = presence(x), presence(y)
    both = (x.T @ y).toarray()
    return information(both, column_counts(x)[:, None], column_counts(y)[None, :], x.shape[0])


def column_counts(x: sparse.csr_matrix) -> np.ndarray:
    """Documents a column is present in, (columns,) int64."""
    return np.bincount(x.indices, minlength=x.shape[1]).astype(np.int64)


def blocks_of_labels(x: sparse.csr_matrix, y: sparse.csr_matrix, memory_mb: float):
    """Label ranges whose co-occurrence cells stay under `memory_mb`, at 64 bytes a cell; the count
    is an upper bound.
    """
    yield from blocks_of_cells(np.minimum(tokens_beside(x, y), x.shape[1]), memory_mb)


def tokens_beside(x: sparse.csr_matrix, y: sparse.csr_matrix) -> np.ndarray:
    """(L,) int64: distinct tokens of a label's documents, summed over the documents, from presence
    x (N, V) and y (N, L).
    """
    return np.asarray(y.T @ np.diff(x.indptr).astype(np.int64))


def blocks_of_cells(cells_of_label: np.ndarray, memory_mb: float):
    """Ranges [begin, end) of labels whose cells together stay under `memory_mb`, at 64 bytes a
    cell; one label at least.
    """
    budget = memory_mb * 2**20 / 64
    begin, load = 0, 0.0
    for label, cells in enumerate(np.asarray(cells_of_label, np.float64)):
        if load + cells > budget and label > begin:
            yield begin, label
            begin, load = label, 0.0
        load += cells
    yield begin, len(cells_of_label)


@dataclass(frozen=True, eq=False)
class Margins:
    """Documents: all `n`, with a token `n_t` (V,), with a label `n_l` (L,), int64; the table f and
    both entropies, float64.
    """

    n: int
    n_t: np.ndarray
    n_l: np.ndarray
    f: np.ndarray
    h_t: np.ndarray
    h_l: np.ndarray

    @classmethod
    def of(cls, n: int, n_t: np.ndarray, n_l: np.ndarray) -> Margins:
        f = n_log_n(n)
        return cls(n, n_t, n_l, f, entropy(n_t, n, f), entropy(n_l, n, f))


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """ValueError for a value of option `name` that is not among `choices`."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known; use one of {', '.join(choices)}")


def check_request(x, y, variant: str) -> None:
    """ValueError for an unknown variant, for rows that do not match and for none at all."""
    check_choice("variant", variant, VARIANTS)
    if x.shape[0] != y.shape[0]:
        raise ValueError(
            f"tokens have {x.shape[0]} rows and labels {y.shape[0]}; pass the same training rows of"
            " both, e.g. x[rows], y[rows]"
        )
    if x.shape[0] == 0:
        raise ValueError(
            "no training rows were given; MIG needs at least one document of the training split"
        )
