"""Mutual information gain (MIG): which tokens speak for which labels, counted on training rows.

See docs/method.md, "Mutual information gain" and "The teacher". The functions see only the rows
they are given: pass training rows. Counts are exact integers and one table f(n) = n ln n gives
every logarithm, so no epsilon is needed and no value is negative. Everything is sparse, and memory
is bounded by blocks of labels; only impl="reference" builds a dense table, for toy corpora.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from plantlib.kernels import machine
from plantlib.kernels.counts import (
    RELEVANCES,
    VARIANTS,
    Margins,
    blocks_of_labels,
    check_choice,
    check_request,
    column_counts,
    dense_mutual_information,
    entropy,
    information,
    normalise,
    presence,
)
from plantlib.utils.checks import check_fields
from plantlib.utils.reprs import Card, Rich

OTHERS = ("chi2", "ppmi", "random")  # associations that are not mutual information, for comparison


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher's options; see `teach`.

    cross_fitted: a training document reads the lists of its own labels as they are counted without
    it (`teacher.crossfit`); otherwise it reads what it has been counted for.
    """

    variant: str = "raw"
    top_k: int = 64
    relevance: str = "score"
    cross_fitted: bool = True

    @property
    def counting(self) -> dict:
        """The options that `teach` takes."""
        return {"variant": self.variant, "top_k": self.top_k, "relevance": self.relevance}

    def __post_init__(self):
        check_fields(self)
        if self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}; give at least 1")


def association_of_counts(
    counts: sparse.csr_matrix, begin: int, margins: Margins, variant: str
) -> sparse.csr_matrix:
    """Scores of a block of labels, for cells where the token speaks for the label (C N > n_t n_l).

    Args:
        counts: (B, V) csr, documents with both, of labels begin, ..., begin + B - 1.
        begin: the block's first label.
        margins: document counts of all training rows.
        variant: one of `VARIANTS`, see docs/method.md, "Mutual information gain".

    Returns:
        (B, V) csr, at least 0.
    """
    m = margins
    rows = np.repeat(np.arange(begin, begin + counts.shape[0]), np.diff(counts.indptr))
    positive = counts.data.astype(np.int64) * m.n > m.n_t[counts.indices] * m.n_l[rows]
    rows, columns, both = rows[positive], counts.indices[positive], counts.data[positive]
    info = information(both, m.n_t[columns], m.n_l[rows], m.n, m.f)
    score = normalise(info, m.h_t[columns], m.h_l[rows], variant)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows - begin, minlength=counts.shape[0]))])
    return sparse.csr_matrix((score, columns, indptr), shape=counts.shape)


def associations(
    both: np.ndarray, n_t: np.ndarray, n_l: int, n: int, variant: str, f: np.ndarray
) -> np.ndarray:
    """Scores of cells of one label, -1 where the token does not speak for it.

    Args:
        both, n_t: integers of one shape, documents with token and label and with the token.
        n_l, n: documents with the label, all documents.
        variant: one of `VARIANTS`, "chi2" or "ppmi".
        f: `n_log_n` of n or more.
    """
    if variant in VARIANTS:
        info = information(both, n_t, n_l, n, f)
        scores = normalise(info, entropy(n_t, n, f), entropy(n_l, n, f), variant)
    else:
        scores = _other(both, n_t, n_l, n, variant)
        scores = np.where(scores > 0, scores, -1.0)
    return np.where(both * n > n_t * n_l, scores, -1.0)


def association_blocks(
    x: sparse.csr_matrix, y: sparse.csr_matrix, *, variant: str, memory_mb: float = 256.0
) -> Iterator[tuple[int, sparse.csr_matrix]]:
    """Yield (first label, scores of a block of B labels), block by block.

    Args:
        x: (N, V) csr, token counts or presence of training rows.
        y: (N, L) csr, their labels.
        variant: one of `VARIANTS`.
        memory_mb: bound on the co-occurrence cells of one block.

    Returns:
        Pairs of an int and a (B, V) csr as `association_of_counts` returns it.

    Raises:
        ValueError: unknown variant, rows that do not match, or no rows.
    """
    check_request(x, y, variant)
    x, y = presence(x), presence(y)
    margins = Margins.of(x.shape[0], column_counts(x), column_counts(y))
    y_t = y.T.tocsr()
    for begin, end in blocks_of_labels(x, y, memory_mb):
        yield begin, association_of_counts((y_t[begin:end] @ x).tocsr(), begin, margins, variant)


def top_tokens(
    scores: sparse.csr_matrix, k: int | None
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """The k best tokens of each label; the smaller token id wins a tie.

    Args:
        scores: (L, V) csr.
        k: tokens kept per label, None for all.

    Returns:
        Their scores and ranks, (L, V) csr each with sorted columns. The best token has rank 1,
        because a sparse matrix cannot store 0.
    """
    indptr, columns, values, ranks = [0], [], [], []
    for begin, end in zip(scores.indptr[:-1], scores.indptr[1:], strict=True):
        ids, row = scores.indices[begin:end], scores.data[begin:end]
        best = np.lexsort((ids, -row))[:k]
        by_column = np.argsort(ids[best], kind="stable")
        columns.append(ids[best][by_column])
        values.append(row[best][by_column])
        ranks.append(by_column + 1)
        indptr.append(indptr[-1] + len(best))
    indices = np.concatenate(columns or [np.zeros(0)]).astype(np.int32)

    def stack(rows: list) -> sparse.csr_matrix:
        data = np.concatenate(rows or [np.zeros(0)])
        return sparse.csr_matrix((data, indices, np.asarray(indptr)), shape=scores.shape)

    return stack(values), stack(ranks).astype(np.int64)


def grades(ranks: np.ndarray, vocabulary: int) -> np.ndarray:
    """Published grades, 1 to 101, of ranks (0 = best) among `vocabulary` tokens.

    101 less the rank's place among 101 quantile edges; see docs/method.md, "The teacher".
    """
    edges = np.concatenate([[0.0], np.logspace(-4, 0, 100)])
    return 101 - np.searchsorted(edges, np.asarray(ranks) / vocabulary, side="left")


@dataclass(frozen=True, eq=False)
class Teacher(Rich):
    """What MIG teaches: the best K tokens of each label.

    scores: (L, V) csr, the association scores R. relevance: (L, V) csr on the same cells, G in
    (0, 1], see `relevance_of`. variant: the kind of score. n_train: documents counted.
    """

    scores: sparse.csr_matrix
    relevance: sparse.csr_matrix
    variant: str
    n_train: int

    @property
    def num_labels(self) -> int:
        return self.scores.shape[0]

    @property
    def taught(self) -> np.ndarray:
        """(L,) bool: labels with at least one kept token."""
        return np.diff(self.scores.indptr) > 0

    def shuffled_order(self, seed: int) -> np.ndarray:
        """(L,) the label whose list each label takes in `shuffled`."""
        taught = np.flatnonzero(self.taught)
        order = np.arange(self.num_labels)
        order[taught] = np.random.default_rng(seed).permutation(taught)
        return order

    def shuffled(self, seed: int) -> Teacher:
        """A control: the taught labels exchange their token lists at random."""
        order = self.shuffled_order(seed)
        return Teacher(self.scores[order], self.relevance[order], self.variant, self.n_train)

    def __repr__(self) -> str:
        return f"Teacher({self._about()})"

    def _about(self) -> str:
        taught = f"{int(self.taught.sum()):,} of {self.num_labels:,} labels taught"
        return f"{self.variant}, {taught}, {self.scores.nnz:,} cells, {self.n_train:,} documents"

    def _card(self) -> Card:
        tokens = np.diff(self.scores.indptr)[self.taught]
        best = self.scores.max(axis=1).toarray()[self.taught, 0]
        rows = [
            [name, *np.quantile(values, (0, 0.5, 1)).tolist()]
            for name, values in (("tokens kept", tokens), ("best score", best))
            if len(values)
        ]
        return Card("teacher", self._about(), ["per label", "least", "median", "most"], rows)


def teach(
    x: sparse.csr_matrix,
    y: sparse.csr_matrix,
    *,
    variant: str = "raw",
    top_k: int | None = 64,
    relevance: str = "score",
    min_documents: int = 1,
    memory_mb: float = 256.0,
    impl: str = "auto",
    device=None,
    seed: int = 0,
) -> Teacher:
    """Build the teacher from training rows; see docs/method.md, "The teacher".

    Args:
        x: (N, V) csr, token counts or presence.
        y: (N, L) csr, labels.
        variant: a form of mutual information (`VARIANTS`), or one of `OTHERS` for comparison.
            "chi2" is N (C N - n_t n_l)^2 / (n_t n_l (N - n_t)(N - n_l)). "ppmi" is
            ln(C N / ((n_t + 1) n_l)); the 1 damps tokens seen once, which plain PMI ranks first.
            "random" puts the tokens of a label's documents in random order.
        top_k: tokens kept per label, None for all with positive association.
        relevance: "score" divides by the label's best score, "grade" is the published grade.
        min_documents: tokens in fewer training documents are not counted.
        memory_mb: bound on the co-occurrence cells held at once; the result needs L x top_k cells.
        impl: "torch" is the sparse CPU path, "triton" the fused kernels, "reference" a dense table
            for toy sizes; all give the same bits. "auto" takes "triton" if `device` is a GPU,
            Triton is installed and the problem is within the kernels' limits, else "torch".
            `OTHERS` always use the CPU.
        device: where the kernels run.
        seed: of the variant "random".

    Raises:
        ValueError: an unknown option, rows that do not match, or no rows.
    """
    check_choice("variant", variant, (*VARIANTS, *OTHERS))
    check_request(x, y, variant if variant in VARIANTS else "raw")
    check_choice("relevance", relevance, RELEVANCES)
    # drop rare tokens
    x = presence(x)
    documents = column_counts(x)
    if min_documents > 1:
        x = x @ sparse.diags((documents >= min_documents).astype(np.int32), dtype=np.int32)
    vocabulary = max(int((documents >= max(min_documents, 1)).sum()), 1)
    # score every cell, keep the best, grade them
    if variant in OTHERS:
        scores, ranks = _best_of_others(x.tocsr(), presence(y), variant, top_k, memory_mb, seed)
    else:
        impl = _implementation(impl, device, x.shape[0], top_k)
        scores, ranks = _best(x, y, variant, top_k, memory_mb, impl, device)
    return Teacher(scores, relevance_of(scores, ranks, relevance, vocabulary), variant, x.shape[0])


def _implementation(impl: str, device, documents: int, top_k: int | None) -> str:
    """`impl` with "auto" resolved. Without a device PyTorch is not imported."""
    if impl == "torch" or (impl == "auto" and device is None):
        return "torch"
    import torch

    if impl != "auto":
        default = "cuda" if torch.cuda.is_available() else "cpu"
        return machine.implementation(impl, torch.empty(0, device=device or default))
    if torch.device(device).type != "cuda" or not machine.has_triton():
        return "torch"
    from plantlib.kernels import cooccurrence

    try:
        cooccurrence.check_limits(documents, top_k)
    except ValueError:
        return "torch"
    return "triton"


def _best(
    x, y, variant: str, top_k: int | None, memory_mb: float, impl: str, device
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """(scores, ranks) of each label's best tokens by mutual information."""
    if impl == "reference":
        return top_tokens(_dense_associations(x, y, variant), top_k)
    if impl == "triton":
        from plantlib.kernels import cooccurrence

        scores = cooccurrence.top_associations(x, y, variant=variant, top_k=top_k, device=device)
        return top_tokens(scores, top_k)
    blocks = association_blocks(x, y, variant=variant, memory_mb=memory_mb)
    return _stacked(top_tokens(block, top_k) for _, block in blocks)


def _stacked(blocks) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """(scores, ranks) of all labels from those of blocks of labels."""
    scores, ranks = zip(*blocks, strict=True)
    return sparse.vstack(scores, format="csr"), sparse.vstack(ranks, format="csr")


def _dense_associations(x, y, variant: str) -> sparse.csr_matrix:
    """(L, V) csr of positive associations, computed as a dense table."""
    x, y = presence(x), presence(y)
    n, n_t, n_l = x.shape[0], column_counts(x)[:, None], column_counts(y)[None, :]
    score = normalise(dense_mutual_information(x, y), entropy(n_t, n), entropy(n_l, n), variant).T
    label, token = np.nonzero(((x.T @ y).toarray().astype(np.int64) * n > n_t * n_l).T)
    indptr = np.searchsorted(label, np.arange(y.shape[1] + 1))
    return sparse.csr_matrix((score[label, token], token, indptr), shape=score.shape)


def ranked(
    scores: sparse.csr_matrix,
    variant: str,
    n_train: int,
    *,
    top_k: int | None,
    relevance: str,
    vocabulary: int,
) -> Teacher:
    """A Teacher from scores that were computed elsewhere.

    Args:
        scores: (L, V) csr.
        variant: the name of the score.
        n_train: documents the scores come from.
        top_k: tokens kept per label, None for all.
        relevance: "score" or "grade", as in `teach`.
        vocabulary: tokens that a rank is measured against.

    Raises:
        ValueError: unknown relevance.
    """
    check_choice("relevance", relevance, RELEVANCES)
    scores, ranks = top_tokens(scores, top_k)
    return Teacher(scores, relevance_of(scores, ranks, relevance, vocabulary), variant, n_train)


def relevance_of(
    scores: sparse.csr_matrix, ranks: sparse.csr_matrix, kind: str, vocabulary: int
) -> sparse.csr_matrix:
    """Graded relevance G in (0, 1]; see docs/method.md, "The teacher".

    Args:
        scores: (L, V) csr.
        ranks: (L, V) csr on the same cells, 1 for a label's best token.
        kind: "grade" for the published grade / 101, "score" for the score / the label's best score.
        vocabulary: tokens that a grade is measured against.
    """
    relevance = scores.copy()
    if kind == "grade":
        relevance.data = grades(ranks.data - 1, vocabulary) / 101.0
    else:
        # 0.0 stands at the end, so that the start of an empty last row is a valid index
        starts = np.minimum(scores.indptr[:-1], scores.nnz)
        best = np.maximum.reduceat(np.append(scores.data, 0.0), starts)
        rows = np.repeat(np.arange(scores.shape[0]), np.diff(scores.indptr))
        relevance.data = scores.data / np.maximum(best[rows], np.finfo(float).tiny)
    return relevance


def _best_of_others(
    x, y, variant: str, top_k: int | None, memory_mb: float, seed: int
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """(scores, ranks) of each label's best tokens by an association of `OTHERS`."""
    margins = Margins.of(x.shape[0], column_counts(x), column_counts(y))
    y_t = y.T.tocsr()
    return _stacked(
        top_tokens(association_of_others(y_t[begin:end] @ x, begin, margins, variant, seed), top_k)
        for begin, end in blocks_of_labels(x, y, memory_mb)
    )


def association_of_others(
    counts, begin: int, margins: Margins, variant: str, seed: int = 0
) -> sparse.csr_matrix:
    """As `association_of_counts` for a variant of `OTHERS`; the formulas are in `teach`.

    seed: of the variant "random", which draws a new order for every block.
    """
    counts, m = counts.tocsr(), margins
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    both, n_t, n_l = counts.data.astype(np.int64), m.n_t[counts.indices], m.n_l[begin + rows]
    if variant == "random":
        data = np.random.default_rng([seed, begin]).random(len(both)) + 1e-3
    else:
        data = _other(both, n_t, n_l, m.n, variant)
    data = np.where(both * m.n > n_t * n_l, np.maximum(data, 0.0), 0.0)
    scores = sparse.csr_matrix((data, counts.indices, counts.indptr), counts.shape)
    scores.eliminate_zeros()
    return scores


def _other(both, n_t, n_l, n: int, variant: str) -> np.ndarray:
    """ "chi2" or "ppmi" of broadcastable counts."""
    both, n_t, n_l = (np.asarray(counts, np.float64) for counts in (both, n_t, n_l))
    if variant == "chi2":
        excess = both * n - n_t * n_l
        return n * excess**2 / np.maximum(n_t * n_l * (n - n_t) * (n - n_l), 1.0)
    return np.log(np.maximum(both * n / ((n_t + 1) * np.maximum(n_l, 1.0)), 1e-12))
