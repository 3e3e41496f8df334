"""Boosted trees over terms: what they read, and that they find what a sum of terms cannot."""

import numpy as np
from scipy import sparse

from companion.studies import official_sum


def test_a_cell_is_read_with_its_place_and_its_distance_to_the_best():
    own = np.array([[1.0, 2.0], [3.0, 0.0], [9.0, 9.0], [0.0, 2.0]])
    counts = np.array([1, 4, 0, 2])
    found = official_sum.features(own, np.array([1.0, 2.0]), counts, counts > 0)
    np.testing.assert_array_equal(found[:, :2], own)
    known = [0, 1, 3]
    np.testing.assert_allclose(found[known, 2], np.log([1, 4, 2]))
    np.testing.assert_allclose(found[known, 3], np.log([2, 1, 3]))
    np.testing.assert_allclose(found[known, 4], [2, 3, 1])
    np.testing.assert_allclose(found[known, 5], [-1, 0, -2])


def problem(seed: int = 0):
    """300 documents of 12 labels: right is a label of which just one of two terms is high."""
    rng = np.random.default_rng(seed)
    terms = rng.integers(0, 2, (2, 300, 12)).astype(np.float32)
    gold = (terms[0] != terms[1]) & (rng.random((300, 12)) < 0.9)
    gold[:, 11] = False
    fold = rng.integers(0, 5, 200)
    return {"a": terms[0], "b": terms[1]}, sparse.csr_matrix(gold.astype(float)), fold


def test_trees_find_what_no_sum_of_terms_does():
    terms, labels, fold = problem()
    test = official_sum.boosted(terms, labels, np.arange(200), fold, np.arange(200, 300), 0)
    right = labels[200:].toarray() > 0
    assert test[:, :11][right[:, :11]].mean() > test[:, :11][~right[:, :11]].mean() + 3
    assert (test[:, 11] == official_sum.ABSENT).all(), "no training document has this label"


def test_labels_of_other_documents_are_not_read():
    terms, labels, fold = problem(1)
    train = np.arange(200)
    rows = np.arange(300)
    expected = official_sum.boosted(terms, labels, train, fold, rows, 0)
    changed = labels.tolil()
    changed[200:] = 1 - labels[200:].toarray()
    again = official_sum.boosted(terms, changed.tocsr(), train, fold, rows, 0)
    np.testing.assert_array_equal(again, expected)
