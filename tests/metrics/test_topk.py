"""Lists of labels: sorted, unused places last, cut and padded."""

import numpy as np

from plantlib.metrics.topk import TopK

IDS = np.array([[2, 0, 1], [0, -1, 3]], np.int32)
SCORES = np.array([[1.0, 3.0, 3.0], [-2.0, 9.0, -5.0]], np.float32)


def test_lists_are_sorted_and_unused_places_come_last():
    """The score of an unused place is ignored, that of label 0 is not; the smaller id wins ties."""
    found = TopK.of_lists(IDS, SCORES)
    assert found.ids.tolist() == [[0, 1, 2], [0, 3, -1]]
    assert found.scores.tolist() == [[3.0, 3.0, 1.0], [-2.0, -5.0, -np.inf]]


def test_cutting_drops_places_or_pads_with_unused_ones():
    found = TopK.of_lists(IDS, SCORES)
    assert found.cut(2).ids.tolist() == [[0, 1], [0, 3]]
    longer = found.cut(5)
    assert longer.ids.tolist() == [[0, 1, 2, -1, -1], [0, 3, -1, -1, -1]]
    assert (longer.scores[:, 3:] == -np.inf).all()
