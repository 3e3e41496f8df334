"""Teachers of other scores: chi-squared against SciPy, pointwise MI by hand, random order."""

import numpy as np
import pytest
from scipy import sparse, stats

from plantlib.kernels.counts import RELEVANCES, VARIANTS
from plantlib.teacher import mig
from plantlib.teacher.mig import TeacherConfig
from plantlib.training.ingredients import teacher_of

X = sparse.csr_matrix(np.array([[1, 0, 1], [1, 0, 2], [0, 1, 1], [1, 1, 0], [0, 0, 1], [0, 1, 1]]))
Y = sparse.csr_matrix(np.array([[1, 0], [1, 0], [0, 1], [1, 0], [0, 0], [0, 1]]))


def test_chi_squared_equals_scipy_on_every_kept_cell():
    scores = mig.teach(X, Y, variant="chi2", top_k=None).scores.tocoo()
    assert scores.nnz >= 2
    for label, token, value in zip(scores.row, scores.col, scores.data, strict=True):
        x, y = X[:, [token]].toarray().ravel() > 0, Y[:, [label]].toarray().ravel() > 0
        table = [[(x & y).sum(), (x & ~y).sum()], [(~x & y).sum(), (~x & ~y).sum()]]
        assert value == pytest.approx(stats.chi2_contingency(table, correction=False).statistic)
        assert (x & y).sum() * 6 > x.sum() * y.sum()


def test_pointwise_mi_by_hand():
    scores = mig.teach(X, Y, variant="ppmi", top_k=None).scores.toarray()
    # token 0 in 3 documents, label 0 in the same 3
    assert scores[0, 0] == pytest.approx(np.log(3 * 6 / ((3 + 1) * 3)))
    assert scores[0, 1] == 0 and scores[0, 2] == 0


def test_random_teacher_keeps_to_the_words_of_the_label_and_follows_its_seed():
    first, same, other = (
        mig.teach(X, Y, variant="random", top_k=None, seed=s).scores for s in (0, 0, 1)
    )
    expected = mig.teach(X, Y, variant="raw", top_k=None).scores
    assert (first != same).nnz == 0 and (first != other).nnz > 0
    assert np.array_equal(first.toarray() > 0, expected.toarray() > 0)


@pytest.mark.parametrize("variant", mig.OTHERS)
def test_memory_and_rare_tokens_are_treated_as_for_mutual_information(variant):
    """Tokens in fewer than 4 documents are left out; every label is a block if memory is small."""
    options = {"variant": variant, "top_k": None}
    one, many = (mig.teach(X, Y, memory_mb=mb, **options).scores for mb in (256.0, 1e-9))
    assert (one.toarray() > 0).tolist() == (many.toarray() > 0).tolist()
    if variant != "random":  # which draws its scores block by block
        assert (one != many).nnz == 0
    rare = np.flatnonzero(np.asarray((X > 0).sum(0)).ravel() < 4)
    common = mig.teach(X, Y, min_documents=4, **options).scores
    assert not set(common.indices) & set(rare) and set(one.indices) & set(rare)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_seed_is_for_the_random_teacher_only(variant):
    first, other = (mig.teach(X, Y, variant=variant, seed=seed).scores for seed in (0, 1))
    assert (first != other).nnz == 0


@pytest.mark.parametrize("variant", mig.OTHERS)
@pytest.mark.parametrize("relevance", RELEVANCES)
def test_top_k_and_relevance_are_those_of_mig(variant, relevance):
    teacher = mig.teach(X, Y, variant=variant, top_k=1, relevance=relevance)
    assert (
        np.diff(teacher.scores.indptr).max() == 1
        and teacher.variant == variant
        and teacher.n_train == 6
    )
    assert 0 < teacher.relevance.data.min() <= teacher.relevance.data.max() <= 1.0


def test_defaults_are_those_of_runs_and_unknown_variants_are_named():
    same = mig.teach(X, Y, **mig.TeacherConfig().counting)
    assert (same.scores != mig.teach(X, Y).scores).nnz == 0 and (
        same.relevance != mig.teach(X, Y).relevance
    ).nnz == 0
    with pytest.raises(ValueError, match="variant='bm25'.*chi2"):
        mig.teach(X, Y, variant="bm25")


@pytest.mark.parametrize("variant", mig.OTHERS)
def test_a_corpus_is_taught_by_its_training_rows_alone(prepared, variant):
    teacher = teacher_of(prepared, TeacherConfig(variant=variant, top_k=5))
    rows = prepared.rows["train"]
    alone = mig.teach(
        prepared.counts[rows],
        prepared.corpus.labels[rows],
        variant=variant,
        top_k=5,
        relevance="score",
    )
    assert (
        (teacher.scores != alone.scores).nnz == 0
        and teacher.n_train == len(rows)
        and teacher.scores.nnz > 0
    )
