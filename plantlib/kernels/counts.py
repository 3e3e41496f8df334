"""Exact counts, entropies and mutual information (docs/method.md, "Mutual information gain").

This is what the Triton kernels must reproduce. Counts are integers and logarithms come from one
float64 table, so that every implementation can give the same bits. n documents, V tokens, L labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

VARIANTS = ("jaccard", "label_entropy", "raw")
RELEVANCES = ("grade", "score")


def presence(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Ones where an (N, V) count matrix is not zero, int32 so that products count exactly."""
    present = sparse.csr_matrix(counts, dtype=np.int32, copy=True)
    present.sum_duplicates()  # an entry stored twice is one document
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
    """I(t;l) in nats.

    Args:
        both, with_token, with_label: broadcastable integer arrays, documents with both, with the
            token and with the label.
        n: all documents.
        table: `n_log_n(n)`, if it is there already.
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
    """H in nats of an event in `count` (integers of any shape) of `n` documents."""
    f = n_log_n(n) if table is None else table
    return (f[n] - f[count] - f[n - count]) / n


def normalise(info, h_t, h_l, variant: str) -> np.ndarray:
    """The score of a variant from broadcastable I(t;l), H(t) and H(l): J, I / H(l) or I."""
    tiny = np.finfo(float).tiny
    if variant == "jaccard":
        return info / np.maximum(h_t + h_l - info, tiny)
    return info / np.maximum(h_l, tiny) if variant == "label_entropy" else info


def dense_mutual_information(x: sparse.csr_matrix, y: sparse.csr_matrix) -> np.ndarray:
    """I(t;l) of presence x (N, V) and y (N, L), dense (V, L) float64, for toy corpora and tests."""
    x, y = presence(x), presence(y)
    both = (x.T @ y).toarray()
    return information(both, column_counts(x)[:, None], column_counts(y)[None, :], x.shape[0])


def column_counts(x: sparse.csr_matrix) -> np.ndarray:
    """(columns,) int64 stored entries per column: of presence, the documents of each token."""
    return np.bincount(x.indices, minlength=x.shape[1]).astype(np.int64)


def blocks_of_labels(x: sparse.csr_matrix, y: sparse.csr_matrix, memory_mb: float):
    """`blocks_of_cells` of X'Y, with an upper bound of its cells, from presence x and y."""
    yield from blocks_of_cells(np.minimum(tokens_beside(x, y), x.shape[1]), memory_mb)


def tokens_beside(x: sparse.csr_matrix, y: sparse.csr_matrix) -> np.ndarray:
    """(L,) int64: the tokens of a label's documents, counted per document.

    x (N, V) and y (N, L) are presence.
    """
    return np.asarray(y.T @ np.diff(x.indptr).astype(np.int64))


def blocks_of_cells(cells_of_label: np.ndarray, memory_mb: float):
    """Ranges [begin, end) of labels whose cells fit `memory_mb` at 64 bytes each.

    cells_of_label: (L,). A label that does not fit makes a range by itself.
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
    """Counts of single events and what follows from them."""

    n: int  # documents
    n_t: np.ndarray  # (V,) int64, documents with a token
    n_l: np.ndarray  # (L,) int64, documents with a label
    f: np.ndarray  # (n + 1,) float64, `n_log_n(n)`
    h_t: np.ndarray  # (V,) float64 entropies
    h_l: np.ndarray  # (L,) float64 entropies

    @classmethod
    def of(cls, n: int, n_t: np.ndarray, n_l: np.ndarray) -> Margins:
        f = n_log_n(n)
        return cls(n, n_t, n_l, f, entropy(n_t, n, f), entropy(n_l, n, f))


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """ValueError for a value of option `name` that is not among `choices`."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known; use one of {', '.join(choices)}")


def check_request(x, y, variant: str) -> None:
    """ValueError for an unknown variant, or if x (N, V) and y (N, L) differ in N or are empty."""
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
