"""From scores to chances of being right: Platt scaling with a ceiling; docs/method.md, "Choosing
on dev, reading test once".

The curve is ceiling * sigmoid(slope * score + shift). The slope is above 0, so that chances fall as
scores do. The ceiling is the most that so many right labels can show: a text unlike all others may
get any score, and its chance stays below the ceiling.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import optimize
from scipy.special import expit

NONE = (1.0, 0.0, 1.0)  # the sigmoid of the score
FEW = 30  # right labels of dev below which a curve is a guess
FLATTEST = 0.01  # slope times the spread of the scores, at least: places differ in their chances
HIGHEST = 0.999  # of any chance


def fit(scores: np.ndarray, right: np.ndarray) -> list[float]:
    """Slope, shift and ceiling of the curve.

    Args:
        scores: (n,) of labels, best places of some documents.
        right: (n,) bool, whether each is a gold label.

    Returns:
        three numbers for `chances`; the curve of largest likelihood for Platt's smoothed targets,
        (p + 1) / (p + 2) for the p right places and 1 / (q + 2) for the q wrong ones.
    """
    scores = np.asarray(scores, np.float64)
    right = np.asarray(right, bool)
    positives = int(right.sum())
    negatives = right.size - positives
    ceiling = min((positives + 1) / (positives + 2), HIGHEST)
    centre = scores.mean() if scores.size else 0.0
    spread = scores.std() if scores.size else 0.0
    spread = spread if spread > 1e-9 else 1.0
    x = (scores - centre) / spread
    # targets stay below the ceiling, where the likelihood has its maximum
    target = np.where(right, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    target = np.minimum(target, ceiling)

    def loss(curve: np.ndarray) -> tuple[float, np.ndarray]:
        z = curve[0] * x + curve[1]
        sigma = expit(z)
        p = ceiling * sigma
        value = -(target * np.log(p + 1e-300) + (1 - target) * np.log1p(-p + 1e-300)).mean()
        slope = (p - target) * (1 - sigma) / np.maximum(1 - p, 1e-300)
        return value, np.array([(slope * x).mean(), slope.mean()])

    if not scores.size:
        return list(NONE)
    start = np.array([1.0, 0.0])
    bounds = [(FLATTEST, 50.0), (-50.0, 50.0)]
    slope, shift = optimize.minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B").x
    return [float(slope / spread), float(shift - slope * centre / spread), float(ceiling)]


def chances(scores: np.ndarray | float, calibration: Sequence[float] | None) -> np.ndarray:
    """Scores of any shape as chances of being right, float64.

    calibration: what `fit` returned; None for the plain sigmoid.
    """
    slope, shift, ceiling = calibration or NONE
    return ceiling * expit(slope * np.asarray(scores, np.float64) + shift)


def reliability(predicted: np.ndarray, right: np.ndarray, bins: int = 10) -> np.ndarray:
    """How often predictions of one size are right.

    Args:
        predicted: (n,) chances.
        right: (n,) bool.
        bins: parts of [0, 1].

    Returns:
        (m, 3): mean chance, share of right ones and number of predictions of every part that has
        some.
    """
    place = np.minimum((np.asarray(predicted) * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    kept = count > 0
    sums = [np.bincount(place, weights=w, minlength=bins) for w in (predicted, right)]
    return np.stack([*(total[kept] / count[kept] for total in sums), count[kept]], 1)
