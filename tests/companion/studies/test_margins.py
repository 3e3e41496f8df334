"""The study of what planting adds to the margins of gold labels."""

import numpy as np
import pytest
import torch
from torch import nn

from companion.studies import margins, trainings


class Known(nn.Module):
    """A model whose logits are written in the test."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, rows):
        return type("Output", (), {"logits": self.logits[rows]})


def test_a_margin_is_measured_from_the_fifth_best_of_the_labels_that_are_absent():
    from scipy import sparse

    class Two:
        rows = np.array([0, 1])
        labels = sparse.csr_matrix(np.array([[1, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 1]]))

        @staticmethod
        def collate(rows):
            return {"rows": torch.tensor(rows)}

    logits = [[3.0, 5.0, 4.0, 2.0, 1.0, 0.5, -1.0], [6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 2.5]]
    frame = margins.margins(Known(logits), Two, np.array([2, 1, 1, 1, 1, 1, 9]))
    # the document 0 lacks the labels 1 to 5, whose least logit is .5
    assert frame.to_numpy().tolist() == [[2, 2.5], [9, -1.5], [9, 0.5]]


def test_three_models_are_compared_and_none_is_trained_twice(prepared, tmp_path, monkeypatch):
    table = margins.run(prepared, [0], tmp_path, epochs=1)
    added = margins.added(table, prepared.corpus.name)
    assert list(added.columns) == [margins.COUNTED, margins.CROSS_FITTED]
    least = added.xs("test", level="split").dropna().index[0][0]
    first = added.xs(("test", least), level=("split", "least")).iloc[0]
    both = table.set_index(["split", "least", "planted"])["margin"]
    for planted in added.columns:
        want = both["test", least, planted] - both["test", least, margins.NOTHING]
        assert first[planted] == pytest.approx(want, abs=1e-9)
    monkeypatch.setattr(margins, "training", None)
    assert margins.run(prepared, [0], tmp_path).equals(
        trainings.load(tmp_path / margins.TABLE, margins.KEY)
    )
