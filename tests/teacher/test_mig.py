"""Mutual information, relevance and bare rankers, against scikit-learn, definitions and by hand.

docs/method.md, "Mutual information gain" and "The teacher", and fault 1 of "Faults of the published
code" (test rows in the teacher). Speed and memory are measured in benchmarks/bench_mig.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.metrics import mutual_info_score

from companion.peers import bare as peers
from plantlib.data.corpus import Corpus
from plantlib.data.tokens import words
from plantlib.kernels import machine
from plantlib.kernels.counts import (
    RELEVANCES,
    VARIANTS,
    blocks_of_labels,
    column_counts,
    dense_mutual_information,
    information,
    presence,
)
from plantlib.linear import terms
from plantlib.linear.terms import centroids
from plantlib.teacher import mig
from plantlib.teacher.mig import TeacherConfig
from plantlib.training.ingredients import teacher_of
from plantlib.training.inputs import Inputs
from tests.tolerances import assert_within_rounding, near

N, V, L = 60, 17, 9
TERMS = 20  # nine terms of f, whose sizes are at most N ln N, and a logarithm in each


def toy(seed: int = 0) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Counts X (N, V) and labels Y (N, L): with ties, and columns that are all or never present."""
    rng = np.random.default_rng(seed)
    y = rng.random((N, L)) < np.linspace(0.05, 0.6, L)
    x = rng.random((N, V)) < rng.random(V)
    x[:, 0] = y[:, 4]  # the event itself: J = 1
    x[:, 1] = ~y[:, 4]  # its absence: I as large, association negative
    x[:, 3] = x[:, 2]  # two equal tokens: ties
    x[:, 5], x[:, 6], y[:, 7], y[:, 8] = False, True, False, True
    return sparse.csr_matrix(x * rng.integers(1, 5, x.shape)), sparse.csr_matrix(y.astype(np.int32))


def all_scores(x, y, **options) -> np.ndarray:
    """(L, V) dense positive-association scores of every block."""
    blocks = [block.toarray() for _, block in mig.association_blocks(x, y, **options)]
    return np.concatenate(blocks)


def by_definition(x, y) -> np.ndarray:
    """I (V, L) from the four joint probabilities, p ln(p / (p p)), cell by cell."""
    x, y = x.toarray() > 0, y.toarray() > 0
    total = np.zeros((x.shape[1], y.shape[1]))
    for a in (x, ~x):
        for b in (y, ~y):
            joint = a.T.astype(float) @ b / len(x)
            margin = a.mean(0)[:, None] * b.mean(0)[None, :]
            total += np.where(
                joint > 0,
                joint * np.log(np.where(joint > 0, joint, 1) / np.where(margin > 0, margin, 1)),
                0,
            )
    return total


def positive(x, y) -> np.ndarray:
    """(L, V) bool: C N > n_t n_l."""
    x, y = (x.toarray() > 0).astype(int), (y.toarray() > 0).astype(int)
    return (y.T @ x) * len(x) > y.sum(0)[:, None] * x.sum(0)[None, :]


@pytest.mark.parametrize("seed", [0, 1])
def test_every_cell_equals_scikit_learn_and_the_definition(seed):
    x, y = toy(seed)
    got, dx, dy = dense_mutual_information(x, y), x.toarray() > 0, y.toarray() > 0
    oracle = np.array(
        [[mutual_info_score(dx[:, t], dy[:, label]) for label in range(L)] for t in range(V)]
    )
    assert_within_rounding(got, oracle, TERMS, size=np.log(N))
    assert_within_rounding(got, by_definition(x, y), TERMS, size=np.log(N))
    assert (got >= 0).all()


def test_cells_without_a_common_document_have_their_closed_form():
    x, y = toy()
    both = (presence(x).T @ y).toarray()
    n_t, n_l = (
        np.broadcast_to(c, both.shape)
        for c in (column_counts(x)[:, None], column_counts(y)[None, :])
    )
    apart = (both == 0) & (n_t > 0) & (n_l > 0)
    assert apart[1, 4] and apart.sum() > 3

    def f(n):
        return n * np.log(n) if n else 0.0

    got = dense_mutual_information(x, y)
    for t, label in np.argwhere(apart):
        a, b = int(n_t[t, label]), int(n_l[t, label])
        wanted = (f(N - a - b) - f(N - a) - f(N - b) + f(N)) / N
        assert got[t, label] == near(wanted, TERMS, size=np.log(N), dtype=torch.float64)
    same = near(got[0, 4], TERMS, size=np.log(N), dtype=torch.float64)
    assert got[1, 4] == same, "absence has the same information"


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_follows_its_formula_where_association_is_positive(variant):
    x, y = toy()

    def entropy(p):
        return -sum(np.where(q > 0, q * np.log(np.where(q > 0, q, 1)), 0) for q in (p, 1 - p))

    h_t, h_l = (entropy((m.toarray() > 0).mean(0)) for m in (x, y))
    info, keep = by_definition(x, y).T, positive(x, y)
    below = {
        "raw": 1.0,
        "label_entropy": h_l[:, None],
        "jaccard": h_t[None, :] + h_l[:, None] - info,
    }[variant]
    got = all_scores(x, y, variant=variant)
    wanted = np.divide(info, below, out=np.zeros_like(info), where=keep)
    # dividing by a small entropy enlarges the error of the information
    smallest = np.broadcast_to(below, info.shape)[keep].min()
    assert_within_rounding(got, wanted, TERMS, size=np.log(N) / min(1, smallest))
    assert (got >= 0).all() and (got[~keep] == 0).all() and keep[4, 0] and not keep[4, 1]
    if variant != "raw":
        assert got[4, 0] == got.max()
        assert got.max() == near(1.0, TERMS, size=np.log(N) / below[4, 0], dtype=torch.float64)
    if variant == "jaccard":
        assert (got <= 1).all()


def test_no_value_is_negative_where_rounding_bites():
    n = 99_991
    n_t, n_l = np.meshgrid(np.arange(1, n, 3_331), np.arange(1, n, 4_999))
    both = n_t * n_l // n  # independence: the true value is about 1e-12
    assert (information(both, n_t, n_l, n) >= 0).all()


@pytest.mark.parametrize("k", [1, 3, None])
def test_top_tokens_breaks_ties_by_the_smaller_id_and_stays_sparse(k):
    scores = np.array([[0.2, 0.5, 0.5, 0.1, 0.5], [0, 0, 0, 0, 0], [0.3, 0.3, 0.3, 0.3, 0.0]])
    best, ranks = mig.top_tokens(sparse.csr_matrix(scores), k)
    assert sparse.issparse(best) and sparse.issparse(ranks) and best.shape == scores.shape
    for row, best_of_row, rank in zip(scores, best.toarray(), ranks.toarray(), strict=True):
        order = [t for t in sorted(range(5), key=lambda t: (-row[t], t)) if row[t] > 0][:k]
        assert np.flatnonzero(best_of_row).tolist() == sorted(order)
        assert [int(rank[t]) for t in order] == list(range(1, len(order) + 1)) and (
            best_of_row[order] == row[order]
        ).all()


def test_top_tokens_equals_a_full_sort_on_random_rows_with_ties():
    rng = np.random.default_rng(3)
    scores = sparse.csr_matrix(np.round(rng.random((40, 90)), 1) * (rng.random((40, 90)) < 0.6))
    best, ranks = mig.top_tokens(scores, 8)
    for row, rank in zip(scores.toarray(), ranks.toarray(), strict=True):
        order = np.lexsort((np.arange(90), -row))[:8]
        assert rank[order].tolist() == list(range(1, 9))
    assert best.has_sorted_indices and (np.diff(best.indptr) == 8).all()


def test_teacher_holds_at_most_k_tokens_a_label_as_csr():
    x, y = toy()
    teacher, full = mig.teach(x, y, top_k=3), mig.teach(x, y, top_k=None)
    for matrix in (teacher.scores, teacher.relevance):
        assert sparse.issparse(matrix) and matrix.format == "csr" and matrix.shape == (L, V)
        assert np.diff(matrix.indptr).max() == 3
    assert full.scores.nnz == positive(x, y).sum()
    row = full.scores[2].toarray().ravel()
    assert set(teacher.scores[2].indices) == set(np.lexsort((np.arange(V), -row))[:3])
    assert not teacher.taught[7] and not teacher.taught[8], (
        "a label of no or all documents has no token that speaks for it"
    )


def test_grades_are_the_published_search_and_near_the_closed_form():
    vocabulary = 39_209
    ranks = np.unique(np.geomspace(1, vocabulary - 1, 400).astype(int))
    edges = [0.0, *np.logspace(-4, 0, 100)]
    slow = [101 - sum(edge < rank / vocabulary for edge in edges) for rank in ranks]
    assert mig.grades(ranks, vocabulary).tolist() == slow
    assert mig.grades(np.array([0]), vocabulary) == 101 and mig.grades(ranks, vocabulary).min() == 1
    inside = ranks / vocabulary > 1e-4
    closed = 1 - 24.75 * np.log10(ranks[inside] / vocabulary)
    assert np.abs(mig.grades(ranks[inside], vocabulary) - closed).max() <= 1.0


@pytest.mark.parametrize("kind", RELEVANCES)
def test_relevance_lies_in_zero_one_and_follows_the_scores(kind):
    x, y = toy()
    teacher = mig.teach(x, y, relevance=kind, top_k=None)
    for scores, relevance in zip(teacher.scores, teacher.relevance, strict=True):
        if scores.nnz:
            assert relevance.data.max() == 1.0 and relevance.data.min() > 0
            assert (np.diff(relevance.data[np.argsort(-scores.data, kind="stable")]) <= 0).all()
            if kind == "score":
                assert_within_rounding(relevance.data, scores.data / scores.data.max(), 1)


def test_grade_relevance_counts_only_tokens_that_are_there():
    x, y = toy()
    wide = sparse.hstack([x, sparse.csr_matrix((N, 500), dtype=x.dtype)]).tocsr()
    np.testing.assert_array_equal(mig.teach(wide, y).relevance.data, mig.teach(x, y).relevance.data)


@pytest.mark.parametrize("memory_mb", [1e-9, 0.002])
def test_many_blocks_give_the_teacher_of_one(memory_mb):
    x, y = toy()
    ranges = list(blocks_of_labels(presence(x), presence(y), memory_mb))
    assert (
        len(ranges) > 2
        and [r[0] for r in ranges[1:]] == [r[1] for r in ranges[:-1]]
        and ranges[-1][1] == L
    )
    one, many = mig.teach(x, y), mig.teach(x, y, memory_mb=memory_mb)
    for a, b in ((one.scores, many.scores), (one.relevance, many.relevance)):
        assert (a != b).nnz == 0 and a.indices.tolist() == b.indices.tolist()


IMPLEMENTATIONS = [
    "torch",
    "reference",
    pytest.param(
        "triton",
        marks=pytest.mark.skipif(
            not (machine.has_triton() and machine.interpreted()),
            reason="Triton's interpreter is off or triton is not installed",
        ),
    ),
]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "options", [{}, {"variant": "raw", "relevance": "score", "min_documents": 20, "top_k": 3}]
)
def test_every_implementation_gives_the_same_bits(impl, options):
    x, y = toy()
    result, expected = mig.teach(x, y, impl=impl, **options), mig.teach(x, y, **options)
    for a, b in ((result.scores, expected.scores), (result.relevance, expected.relevance)):
        assert a.indptr.tolist() == b.indptr.tolist() and a.indices.tolist() == b.indices.tolist()
        assert a.shape == b.shape and a.data.tobytes() == b.data.tobytes()


def test_the_dense_reference_keeps_all_tokens_too():
    x, y = toy()
    assert (
        mig.teach(x, y, top_k=None, impl="reference").scores != mig.teach(x, y, top_k=None).scores
    ).nnz == 0


@pytest.mark.skipif(not machine.has_triton(), reason="triton is not installed")
def test_auto_takes_the_kernels_on_a_named_gpu_within_their_limits():
    def chosen(device, n=100, top_k=64):
        return mig._implementation("auto", device, n, top_k)

    assert chosen("cuda") == chosen("cuda:0") == "triton"
    for outside in ((None,), ("cpu",), ("cuda", 2**24 + 1), ("cuda", 9, None), ("cuda", 9, 513)):
        assert chosen(*outside) == "torch", outside
    assert mig._implementation("torch", "cuda", 9, 3) == "torch"


def test_an_entry_stored_twice_is_one_document():
    x, y = toy()
    twice = sparse.csr_matrix(
        (np.repeat(x.data, 2), np.repeat(x.indices, 2), 2 * x.indptr), shape=x.shape
    )
    assert (
        mig.teach(twice, y).scores != mig.teach(x, y).scores
    ).nnz == 0 and twice.nnz == 2 * x.nnz


def test_rare_tokens_can_be_left_out():
    x, y = toy()
    teacher = mig.teach(x, y, min_documents=20)
    assert set(teacher.scores.indices) <= set(np.flatnonzero(column_counts(x) >= 20))
    assert len(set(mig.teach(x, y).scores.indices)) > len(set(teacher.scores.indices)) > 0


def prepared(texts, labels, split) -> Inputs:
    """Inputs over word tokens, as `prepare` makes them, without tokenizer and backbone."""
    corpus = Corpus.from_lists("toy", [str(i) for i in range(len(texts))], texts, labels, split)
    vocabulary = sorted({w for text in texts for w in text.split()} | {"unused"})
    from plantlib.data.tokens import Ragged

    tokens = Ragged.from_lists([[vocabulary.index(w) for w in text.split()] for text in texts])
    extra = np.zeros(len(texts), int)
    return Inputs(corpus, "none", tokens, vocabulary, extra, None, None, None, 0, "key")


def test_teacher_does_not_change_with_test_labels_or_test_texts():
    texts = [
        "red apple",
        "red wine",
        "green pear",
        "green tea",
        "red pear",
        "green apple",
        "red tea",
        "wine pear",
    ]
    labels = [
        ["r"],
        ["r"],
        ["g"],
        ["g"],
        ["r"],
        ["g"],
        ["r", "only-test"],
        ["only-test", "only-dev"],
    ]
    split = ["train"] * 5 + ["dev", "test", "test"]
    inputs = prepared(texts, labels, split)
    other_texts = texts[:6] + ["pear pear apple", "green green tea"]
    other = prepared(other_texts, labels[:6] + [["g", "only-test"], ["r", "only-dev"]], split)
    assert (
        inputs.corpus.label_names == other.corpus.label_names
        and inputs.vocabulary == other.vocabulary
    )
    for config in (TeacherConfig(), TeacherConfig(variant="jaccard", relevance="grade")):
        a, b = teacher_of(inputs, config), teacher_of(other, config)
        assert (
            a.n_train == b.n_train == 5
            and (a.scores != b.scores).nnz == 0
            and (a.relevance != b.relevance).nnz == 0
        )
        unseen = [inputs.corpus.label_names.index(name) for name in ("only-test", "only-dev")]
        assert not a.taught[unseen].any() and a.taught.sum() == 2
    everything = mig.teach(inputs.counts, inputs.corpus.labels)
    assert everything.taught[unseen].all(), "a teacher of all rows would differ"


def test_shuffled_keeps_the_rows_and_moves_their_meaning():
    teacher = mig.teach(*toy())
    shuffled, same = teacher.shuffled(1), teacher.shuffled(1)

    def rows(teacher):
        return [tuple(np.r_[row.indices, row.data]) for row in teacher.relevance]

    assert sorted(rows(shuffled)) == sorted(rows(teacher)) and rows(shuffled) == rows(same) != rows(
        teacher
    )
    assert (shuffled.taught == teacher.taught).all() and rows(teacher.shuffled(2)) != rows(shuffled)


def test_errors_name_the_sizes_and_the_choices():
    x, y = toy()
    with pytest.raises(ValueError, match=rf"tokens have {N} rows and labels {N - 7}"):
        mig.teach(x, y[7:])
    with pytest.raises(ValueError, match="no training rows"):
        mig.teach(x[:0], y[:0])
    with pytest.raises(ValueError, match="variant='bm25'.*jaccard"):
        mig.teach(x, y, variant="bm25")
    with pytest.raises(ValueError, match="relevance='rank'.*grade"):
        mig.teach(x, y, relevance="rank")
    with pytest.raises(ValueError, match="impl='cuda'.*triton, torch, reference"):
        mig.teach(x, y, impl="cuda")


def test_bare_rankers_equal_sums_by_hand():
    texts = ["red red apple", "red wine", "green apple", "green wine tea"]
    y = sparse.csr_matrix(np.array([[1, 0], [1, 0], [0, 1], [0, 1]]))
    counts = words(texts, np.arange(4), min_documents=1)
    assert counts.names == ["apple", "green", "red", "tea", "wine"]
    weights = sparse.csr_matrix(counts.counts.multiply([[1.0], [0.5], [0.25], [2.0]]))
    teacher = mig.teach(counts.counts, y, variant="raw")
    got, table = peers.bare_teacher(weights, teacher)(np.array([3, 0])), teacher.scores.toarray()
    for row, document in zip(got, (3, 0), strict=True):
        w = weights[document].toarray().ravel()
        for label in range(2):
            assert row[label] == pytest.approx(
                sum(w[t] * table[label, t] for t in range(5)), abs=1e-12
            )
    # ln(C N / ((n_t + 1) n_l)); n_l = 2, N = 4
    ppmi = terms.ppmi(counts.counts, y).scores.toarray()
    red = np.log(2 * 4 / (3 * 2))
    wanted = np.array([[0, 0, red, 0, 0], [0, red, 0, 0, 0]])
    assert_within_rounding(ppmi, wanted, operations=5)
    middle = centroids(sparse.csr_matrix(counts.counts, dtype=float), y).scores.toarray()
    assert_within_rounding(middle[0], np.array([1, 0, 3, 0, 1]) / np.sqrt(11), operations=10)
    assert_within_rounding(middle[1], np.array([1, 2, 0, 1, 1]) / np.sqrt(7), operations=10)
