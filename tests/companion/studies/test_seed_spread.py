"""The study of seeds, on the tiny corpus."""

import dataclasses

import pandas as pd
import pytest
import torch

from companion.studies import seed_spread
from plantlib.training.options import TrainConfig


def test_a_training_is_measured_in_three_ways(prepared, tmp_path, monkeypatch):
    short = dataclasses.replace(seed_spread.CONFIG, train=TrainConfig(epochs=2))
    monkeypatch.setattr(seed_spread, "CONFIG", short)
    jobs = [(start, seed) for seed in (0, 1) for start in seed_spread.STARTS]
    table = seed_spread.run(prepared, jobs, tmp_path)
    ways = table.groupby(["start", "seed"])["way"].agg(tuple)
    assert set(ways) == {seed_spread.WAYS}
    assert table[["dev", "test"]].gt(0).all(axis=None)
    assert not list((prepared.root / "checkpoints").iterdir())
    monkeypatch.setattr(seed_spread, "training", None)
    assert len(seed_spread.run(prepared, jobs, tmp_path)) == len(table) == 12


def test_weights_are_averaged_over_epochs():
    epochs = [{"a": torch.tensor([1.0, 4.0])}, {"a": torch.tensor([3.0, 0.0])}]
    assert seed_spread.averaged(epochs)["a"].tolist() == [2, 2]


def test_the_summary_pairs_seeds():
    rows = [("c", start, seed, "best", value) for start, seed, value in (
        ("lookup+linear", 0, 0.5), ("lookup+linear", 1, 0.7), ("linear", 0, 0.4), ("linear", 1, 0.6)
    )]  # fmt: skip
    table = pd.DataFrame(rows, columns=[*seed_spread.KEY, "way", "test"])
    found = seed_spread.summary(table).loc[("c", "best")]
    assert found["mean", "difference"] == pytest.approx(10)
    assert found["deviation", "difference"] == pytest.approx(0)
    assert found["deviation", "linear"] == pytest.approx(10 * 2**0.5)
    assert found["seeds"].item() == 2
