"""The study of one gain against a gain per group of labels, on the tiny corpus."""

import numpy as np
import torch
from torch import nn

from companion.studies import bucket_gains, trainings


def test_labels_are_grouped_by_their_training_documents():
    counts = np.array([0, 1, 2, 5, 6, 50, 51, 900])
    assert bucket_gains.group_of(counts).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_only_what_dev_can_tell_is_changed():
    table = type("Table", (), {})()
    table.planted_values = torch.ones(4)
    table.planted_labels = torch.arange(4, dtype=torch.int32)
    model = nn.Module()
    model.decoder = type("Decoder", (), {"planted": table})()
    noise = np.linspace(-1, 1, 50)

    def dev_values():
        # label 0 is better left alone, label 2 better planted twice as far; the rest is noise
        rare, _, medium, frequent = table.planted_values.tolist()
        return 5 * medium - 5 * abs(1 - rare) + noise * (frequent - 1)

    chosen = bucket_gains.choose(model, np.array([1, 3, 20, 100]), dev_values)
    assert chosen == [1, 1, 2, 1]
    assert table.planted_values.tolist() == [1, 1, 2, 1]


def test_three_ways_are_measured_and_none_is_trained_twice(prepared, tmp_path, monkeypatch):
    table = bucket_gains.run(prepared, [0], tmp_path, epochs=1)
    assert table["way"].tolist() == [bucket_gains.NOTHING, bucket_gains.ONE, bucket_gains.BY_GROUP]
    assert table["dev"].iloc[2] >= table["dev"].iloc[1]
    monkeypatch.setattr(bucket_gains, "training", None)
    again = bucket_gains.run(prepared, [0], tmp_path, epochs=1)
    assert again.equals(trainings.load(tmp_path / bucket_gains.TABLE, bucket_gains.KEY))
