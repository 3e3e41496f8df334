"""SVMs of many labels at once against scikit-learn's LinearSVC, the same objective, and against
their own optimum.
"""

import numpy as np
import pytest
from scipy import sparse

from plantlib.linear import solver
from plantlib.linear.liblinear import one_against_rest


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    topics = rng.random((6, 60)) ** 6
    mix = rng.dirichlet(np.full(6, 0.3), 300)
    counts = rng.poisson(30 * mix @ (topics / topics.sum(1, keepdims=True)))
    weights = sparse.csr_matrix(counts / np.linalg.norm(counts, axis=1, keepdims=True).clip(1e-9))
    threshold = np.quantile(mix, [0.6, 0.9, 0.99, 1], axis=0).T.ravel()
    return weights, np.repeat(mix, 4, axis=1) >= threshold


def loss(weights, positive, solved, c):
    """(b,) by the definition."""
    z = weights @ solved[:-1] + solved[-1]
    return (solved**2).sum(0) / 2 + c * (np.maximum(0, 1 - np.where(positive, 1, -1) * z) ** 2).sum(
        0
    )


@pytest.mark.parametrize("c", [0.3, 1.0, 10.0])
def test_the_solution_is_that_of_liblinear(documents, c):
    weights, positive = documents
    assert positive.sum(0).min() == 1, "a label with one document is among them"
    ours = solver.solve(solver.Documents.of(weights), positive, c, tolerance=1e-6, steps=300)
    theirs = np.stack(
        [np.append(*one_against_rest(weights, column, c, 0)) for column in positive.T], 1
    )
    np.testing.assert_allclose(
        loss(weights, positive, ours, c), loss(weights, positive, theirs, c), rtol=1e-3
    )
    np.testing.assert_allclose(ours, theirs, atol=0.03 * np.abs(theirs).max())


def test_the_usual_tolerance_is_near_the_optimum(documents):
    weights, positive = documents
    found = solver.solve(solver.Documents.of(weights), positive)
    best = solver.solve(solver.Documents.of(weights), positive, tolerance=1e-7, steps=300)
    gap = loss(weights, positive, found, 1.0) / loss(weights, positive, best, 1.0) - 1
    assert gap.min() > -1e-4 and gap.max() < 0.1


def test_a_label_does_not_depend_on_the_others_of_its_block(documents):
    weights, positive = documents
    together = solver.solve(solver.Documents.of(weights), positive)
    alone = solver.solve(solver.Documents.of(weights), positive[:, [5]])
    np.testing.assert_allclose(together[:, [5]], alone, atol=1e-3)


def test_documents_without_words_leave_the_intercept(documents):
    _, positive = documents
    found = solver.solve(
        solver.Documents.of(sparse.csr_matrix((300, 5))), positive, tolerance=1e-6, steps=100
    )
    assert not found[:-1].any()
    share = positive.mean(0)
    np.testing.assert_allclose(found[-1], 2 * share - 1, atol=0.01)


def test_a_start_near_the_solution_saves_steps(documents):
    weights, positive = documents
    read = solver.Documents.of(weights)
    best = solver.solve(read, positive, tolerance=1e-7, steps=300)
    one_step = solver.solve(read, positive, steps=1, start=best + 0.01)
    cold = solver.solve(read, positive, steps=1)
    wanted, near, far = (loss(weights, positive, w, 1.0) for w in (best, one_step, cold))
    np.testing.assert_allclose(near, wanted, rtol=0.02)
    assert (far > near).all()


def test_blocks_shrink_as_documents_grow():
    assert [solver.block_of(n) for n in (0, 1000, 20_000, 45_000, 10**6)] == [64, 64, 37, 16, 16]
