"""Mutual information gain (MIG): counts of token and label presence -> J -> graded relevance,
sparse throughout.

Realises METHOD.md sections 1 and 2. Rows are the training split only: the functions see nothing
else, and a label without training documents gets no teacher. Counts are exact integers and one
table f(n) = n ln n gives all logarithms, so no epsilon is needed and no value is negative. Memory
is bounded by blocks of labels. It builds no dense (V, L) table; `dense_mutual_information` does, as
the definition that toy corpora are checked against.
"""

from __future__ import annotations

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
from plantlib.utils.reprs import Card, Rich

OTHERS = ("chi2", "ppmi", "random")  # associations that are not mutual information, for comparison


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher's options; see `teach`."""

    variant: str = "raw"
    top_k: int = 64
    relevance: str = "score"


def association_of_counts(
    counts: sparse.csr_matrix, begin: int, margins: Margins, variant: str
) -> sparse.csr_matrix:
    """Positive-association scores, csr (B, V), of the co-occurrence counts C' (B, V) of labels
    begin, ..., begin + B - 1.
    """
    m = margins
    rows = np.repeat(np.arange(begin, begin + counts.shape[0]), np.diff(counts.indptr))
    positive = counts.data.astype(np.int64) * m.n > m.n_t[counts.indices] * m.n_l[rows]
    rows, columns, both = rows[positive], counts.indices[positive], counts.data[positive]
    info = information(both, m.n_t[columns], m.n_l[rows], m.n, m.f)
    score = normalise(info, m.h_t[columns], m.h_l[rows], variant)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows - begin, minlength=counts.shape[0]))])
    return sparse.csr_matrix((score, columns, indptr), shape=counts.shape)


def association_blocks(
    x: sparse.csr_matrix, y: sparse.csr_matrix, *, variant="jaccard", memory_mb=256.0
):
    """Yield (first label, csr (labels of the block, V)) of positive-association scores.

    x (N, V), y (N, L) training rows. Kept are cells with C N > n_t n_l: the token's presence speaks
    for the label. variant: "jaccard" J = I / (H(t) + H(l) - I), "label_entropy" I / H(l), "raw" I.
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
    """The k best tokens of each label row: (scores, ranks) as csr, columns sorted; ties go to the
    smaller token id.

    ranks hold 1 for the best token (0 cannot be stored sparsely).
    """
    indptr, columns, values, ranks = [0], [], [], []
    for row in range(scores.shape[0]):
        part = slice(scores.indptr[row], scores.indptr[row + 1])
        order = np.lexsort((scores.indices[part], -scores.data[part]))[:k]
        by_column = np.argsort(scores.indices[part][order], kind="stable")
        columns.append(scores.indices[part][order][by_column])
        values.append(scores.data[part][order][by_column])
        ranks.append(by_column + 1)
        indptr.append(indptr[-1] + len(order))
    pack = [np.concatenate(a) if a else np.zeros(0) for a in (columns, values, ranks)]
    build = lambda data: sparse.csr_matrix(
        (data, pack[0].astype(np.int32), np.asarray(indptr)), shape=scores.shape
    )  # noqa: E731
    return build(pack[1]), build(pack[2].astype(np.int64))


def grades(ranks: np.ndarray, vocabulary: int) -> np.ndarray:
    """Published grade of a rank (0 = best) among `vocabulary` tokens: 101 - searchsorted over 101
    quantile edges.
    """
    edges = np.concatenate([[0.0], np.logspace(-4, 0, 100)])
    return 101 - np.searchsorted(edges, np.asarray(ranks) / vocabulary, side="left")


@dataclass(frozen=True, eq=False)
class Teacher(Rich):
    """What MIG teaches: `scores` and `relevance` G, csr (L, V), the best K tokens a label.

    relevance lies in (0, 1]: the published grade / 101 ("grade") or the score / the label's best
    score ("score").
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
        """(L,) bool: labels that have a teacher, i.e. at least one training document."""
        return np.diff(self.scores.indptr) > 0

    def shuffled(self, seed: int) -> Teacher:
        """The control: the taught labels' token lists permuted among those labels; shape kept,
        meaning lost.
        """
        taught = np.flatnonzero(self.taught)
        order = np.arange(self.num_labels)
        order[taught] = np.random.default_rng(seed).permutation(taught)
        return Teacher(self.scores[order], self.relevance[order], self.variant, self.n_train)

    def __repr__(self) -> str:
        cells, labels = self.scores.nnz, int(self.taught.sum())
        taught = f"{labels:,} of {self.num_labels:,} labels taught"
        return f"Teacher({self.variant}, {taught}, {cells:,} cells, {self.n_train:,} documents)"

    def _card(self) -> Card:
        tokens = np.diff(self.scores.indptr)[self.taught]
        best = [
            self.scores.data[a:b].max()
            for a, b in zip(self.scores.indptr, self.scores.indptr[1:], strict=False)
            if b > a
        ]
        rows = [
            [name, *np.quantile(values, (0, 0.5, 1)).tolist()]
            for name, values in (("tokens kept", tokens), ("best score", best))
            if len(values)
        ]
        return Card(
            "teacher",
            repr(self)[len("Teacher(") : -1],
            ["a label", "least", "median", "most"],
            rows,
        )


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
    """Build the teacher from training rows: x (N, V) token presence or counts, y (N, L) labels.

    variant: a form of mutual information (`VARIANTS`), or one of `OTHERS` for comparison. "chi2": N
    (C N - n_t n_l)^2 / (n_t n_l (N - n_t)(N - n_l)). "ppmi": ln(C N / ((n_t + 1) n_l)), whose 1
    damps tokens seen once, which plain PMI puts on top. "random": the tokens of a label's documents
    in random order, drawn by `seed`: such a teacher knows which words a label's documents hold and
    not which of them matter. top_k: tokens kept per label, None for all with positive association.
    relevance: "score" divides by the label's best score, "grade" is the published grade by rank.
    min_documents: rarer tokens are not counted. memory_mb bounds the co-occurrence cells held at
    once; the result holds L x top_k cells. impl: "torch" is the sparse CPU path, "triton" the fused
    kernels, "reference" a dense table for toy sizes; all give the same bits. "auto" takes "triton"
    where `device` names a GPU, Triton is installed and the kernels' limits hold, and "torch"
    otherwise. `OTHERS` have the CPU path alone.
    """
    check_choice("variant", variant, (*VARIANTS, *OTHERS))
    check_request(x, y, variant if variant in VARIANTS else "raw")
    check_choice("relevance", relevance, RELEVANCES)
    x = presence(x)
    seen = column_counts(x)
    if min_documents > 1:
        x = x @ sparse.diags((seen >= min_documents).astype(np.int32), dtype=np.int32)
    vocabulary = max(int((seen >= max(min_documents, 1)).sum()), 1)
    if variant in OTHERS:
        scores, ranks = _best_of_others(x.tocsr(), presence(y), variant, top_k, memory_mb, seed)
    else:
        chosen = _implementation(impl, device, x.shape[0], top_k)
        scores, ranks = _best(x, y, variant, top_k, memory_mb, chosen, device)
    return Teacher(scores, relevance_of(scores, ranks, relevance, vocabulary), variant, x.shape[0])


def _implementation(impl: str, device, documents: int, top_k: int | None) -> str:
    """`impl` with "auto" resolved: "torch" without a look at PyTorch or Triton where no device is
    named.
    """
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
    x, y, variant, top_k, memory_mb, chosen: str, device
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """(scores, ranks) of the best tokens a label, by one implementation."""
    if chosen == "reference":
        return top_tokens(_dense_associations(x, y, variant), top_k)
    if chosen == "triton":
        from plantlib.kernels import cooccurrence

        return top_tokens(
            cooccurrence.top_associations(x, y, variant=variant, top_k=top_k, device=device), top_k
        )
    blocks = association_blocks(x, y, variant=variant, memory_mb=memory_mb)
    scores, ranks = zip(*(top_tokens(block, top_k) for _, block in blocks), strict=True)
    return sparse.vstack(scores, format="csr"), sparse.vstack(ranks, format="csr")


def _dense_associations(x, y, variant: str) -> sparse.csr_matrix:
    """Positive associations, csr (L, V), by way of the dense table."""
    x, y = presence(x), presence(y)
    n, n_t, n_l = x.shape[0], column_counts(x)[:, None], column_counts(y)[None, :]
    score = normalise(dense_mutual_information(x, y), entropy(n_t, n), entropy(n_l, n), variant).T
    label, token = np.nonzero(((x.T @ y).toarray().astype(np.int64) * n > n_t * n_l).T)
    indptr = np.searchsorted(label, np.arange(y.shape[1] + 1))
    return sparse.csr_matrix((score[label, token], token, indptr), shape=score.shape)


def ranked(
    scores, variant: str, n_train: int, *, top_k: int | None, relevance: str, vocabulary: int
) -> Teacher:
    """A Teacher of given scores, csr (L, V): the best top_k tokens a label, graded as `teach`
    grades them.
    """
    check_choice("relevance", relevance, RELEVANCES)
    scores, ranks = top_tokens(scores, top_k)
    return Teacher(scores, relevance_of(scores, ranks, relevance, vocabulary), variant, n_train)


def relevance_of(scores, ranks, kind: str, vocabulary: int) -> sparse.csr_matrix:
    """G in (0, 1], csr (L, V), from scores and their ranks (1 for the best) among `vocabulary`
    tokens.
    """
    graded = scores.copy()
    if kind == "grade":
        graded.data = grades(ranks.data - 1, vocabulary) / 101.0
    else:
        best = np.maximum.reduceat(
            np.append(scores.data, 0.0), np.minimum(scores.indptr[:-1], scores.nnz)
        )
        rows = np.repeat(np.arange(scores.shape[0]), np.diff(scores.indptr))
        graded.data = scores.data / np.maximum(best[rows], np.finfo(float).tiny)
    return graded


def _best_of_others(x, y, variant: str, top_k: int | None, memory_mb: float, seed: int):
    """(scores, ranks) of the best tokens per label by an association of `OTHERS`, in blocks of
    labels.
    """
    margins, y_t = Margins.of(x.shape[0], column_counts(x), column_counts(y)), y.T.tocsr()
    best = [
        top_tokens(association_of_others(y_t[begin:end] @ x, begin, margins, variant, seed), top_k)
        for begin, end in blocks_of_labels(x, y, memory_mb)
    ]
    scores, ranks = (sparse.vstack(part, format="csr") for part in zip(*best, strict=True))
    return scores, ranks


def association_of_others(
    counts, begin: int, margins: Margins, variant: str, seed: int = 0
) -> sparse.csr_matrix:
    """Scores, csr (B, V), of co-occurrence counts (B, V) of labels begin, ..., where the token
    speaks for the label.
    """
    counts, m = counts.tocsr(), margins
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    both, n_t, n_l = (
        counts.data.astype(np.float64),
        m.n_t[counts.indices].astype(float),
        m.n_l[begin + rows].astype(float),
    )
    excess = both * m.n - n_t * n_l
    if variant == "chi2":
        data = m.n * excess**2 / np.maximum(n_t * n_l * (m.n - n_t) * (m.n - n_l), 1.0)
    elif variant == "ppmi":
        data = np.log(np.maximum(both * m.n / ((n_t + 1) * n_l), 1e-12))
    else:
        data = np.random.default_rng([seed, begin]).random(len(both)) + 1e-3
    found = sparse.csr_matrix(
        (np.where(excess > 0, np.maximum(data, 0.0), 0.0), counts.indices, counts.indptr),
        counts.shape,
    )
    found.eliminate_zeros()
    return found
