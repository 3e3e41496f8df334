"""Chances follow the order of the scores, are right on a large dev and modest on a small one."""

import numpy as np
import pytest
from scipy import sparse
from scipy.special import expit

from plantlib.metrics import calibration
from plantlib.metrics.topk import TopK
from plantlib.training import evaluation


def drawn(n, slope=1.5, shift=-2.0, seed=0):
    """(n,) scores, and whether each is right, by a known logistic curve."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=n) * 2 + 1
    return scores, rng.random(n) < expit(slope * scores + shift)


def test_a_known_curve_is_found():
    slope, shift, ceiling = calibration.fit(*drawn(40_000))
    assert ceiling == calibration.HIGHEST
    # four standard errors of each, by the Fisher information of 40,000 draws
    scores, _ = drawn(40_000)
    p = expit(1.5 * scores - 2)
    x = np.stack([scores, np.ones_like(scores)])
    error = np.sqrt(np.diag(np.linalg.inv((x * (p * (1 - p))) @ x.T)))
    # the ceiling bends the curve by at most a thousandth
    assert abs(slope - 1.5) < 4 * error[0] + 0.02
    assert abs(shift + 2) < 4 * error[1] + 0.02


def test_chances_on_other_documents_are_shares_of_right_ones():
    curve = calibration.fit(*drawn(3000))
    scores, right = drawn(20_000, seed=1)
    for mean, share, count in calibration.reliability(calibration.chances(scores, curve), right):
        assert abs(mean - share) < 4 * np.sqrt(0.25 / count) + 0.02


@pytest.mark.parametrize(
    "right",
    [
        [True, False, False, False],
        [False, False, False, True],
        [False, False, False, False],
        [True, True, True, True],
    ],
    ids=["falls", "rises", "none right", "all right"],
)
def test_chances_fall_as_scores_do_and_never_reach_0_or_1(right):
    """Even where dev says the opposite, or nothing."""
    scores = np.array([1.0, 2.0, 3.0, 4.0])
    curve = calibration.fit(scores, np.array(right))
    assert curve[0] > 0
    few = calibration.chances(np.array([-1e6, 1.0, 2.0, 3.0, 4.0, 1e6]), curve)
    assert (np.diff(few) > 0).all()
    most = (sum(right) + 1) / (sum(right) + 2)
    assert few[-1] <= min(most, calibration.HIGHEST) < 0.99995


def test_noise_gives_the_share_of_right_ones():
    rng = np.random.default_rng(3)
    right = rng.random(5000) < 0.2
    curve = calibration.fit(rng.normal(size=5000), right)
    found = calibration.chances(np.array([-2.0, 0.0, 2.0]), curve)
    np.testing.assert_allclose(found, right.mean(), atol=4 * np.sqrt(0.16 / 5000) * 3)


def test_separable_scores_are_smoothed_by_platts_targets():
    """Eight right above eight wrong: the chance at the top is not above 9/10."""
    scores = np.r_[np.full(8, 5.0), np.full(8, -5.0)]
    curve = calibration.fit(scores, scores > 0)
    top, bottom = calibration.chances(np.array([5.0, -5.0]), curve)
    assert top <= 9 / 10 and bottom == pytest.approx(1 / 10, abs=0.01)


def test_size_and_place_of_scores_do_not_matter():
    scores, right = drawn(2000)
    expected = calibration.chances(scores, calibration.fit(scores, right))
    moved = 1000 * scores + 5e4
    found = calibration.chances(moved, calibration.fit(moved, right))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_equal_scores_get_one_chance():
    curve = calibration.fit(np.full(40, 2.0), np.arange(40) < 10)
    assert calibration.chances(2.0, curve) == pytest.approx(0.25, abs=0.03)
    assert calibration.fit(np.zeros(0), np.zeros(0, bool)) == list(calibration.NONE)


@pytest.mark.parametrize(("right", "warns"), [(29, True), (30, False)])
def test_few_right_labels_of_dev_are_said(right, warns, recwarn):
    topk = TopK.from_dense(np.random.default_rng(0).normal(size=(right, 3)), 3)
    gold = sparse.csr_matrix(np.eye(3, dtype=int)[np.arange(right) % 3])
    evaluation.calibrate(topk, gold)
    said = [str(w.message) for w in recwarn]
    assert bool(said) == warns
    if warns:
        assert "29 right labels" in said[0] and "give more dev documents" in said[0]


def test_reliability_counts_every_prediction_once():
    found = calibration.reliability(np.array([0.05, 0.07, 0.95, 1.0]), np.array([0, 1, 1, 1]))
    np.testing.assert_allclose(found, [[0.06, 0.5, 2], [0.975, 1.0, 2]])


def test_without_a_calibration_chances_are_the_plain_sigmoid():
    np.testing.assert_array_equal(calibration.chances([-3.0, 0.0, 2.5], None), expit([-3, 0, 2.5]))
