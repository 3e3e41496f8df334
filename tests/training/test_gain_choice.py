"""The choice of gains on dev, a lookup's and the linear score's, after training.

docs/method.md, "Training". Killed choices and runs must resume to the same numbers.
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from plantlib.linear.score import LinearConfig
from plantlib.planting.starts import StartConfig
from plantlib.training import runs, train
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.runs import finished, run_grid, run_start
from tests.tolerances import near

CONFIG = RunConfig(
    linear=LinearConfig(folds=2), train=TrainConfig(epochs=2, patience=2), other_gains=(1.0, 0.0)
)


@pytest.fixture(scope="module")
def chosen(prepared):
    return run_start(prepared, "lookup+linear", 0, config=CONFIG, progress=False)[0]


def test_gains_are_tried_from_the_linear_score_with_a_frozen_backbone_alone():
    config = RunConfig(other_gains=(1.0, 4.0))
    for start in (["lookup", "linear"], ["shuffled", "linear"]):
        assert config.gains_for(start) == [4.0, 1.0], "no gain twice, lookup_gain first"
    for start in (["lookup"], ["linear"], ["lookup", "score"], ["random"]):
        assert config.gains_for(start) == [4.0]
    assert replace(config, tuning="lora").gains_for(["lookup", "linear"]) == [4.0]
    assert RunConfig(other_gains=(), start=StartConfig(lookup_gain=2.0)).gains_for(
        ["lookup", "linear"]
    ) == [2.0]
    with pytest.raises(ValueError, match="0 or more"):
        RunConfig(other_gains=(-1.0,))


def judged(values: dict[float, list[float]], tmp_path) -> tuple:
    """`train.choose` where a gain has these dev values; and the gains it has trained from."""
    begun = []

    def fit(folder, what):
        assert folder == tmp_path / f"gain-{float(begun[-1])!r}"
        return [{"gain": begun[-1]}]

    history, told = train.choose(
        list(values), begun.append, fit, lambda: np.array(values[begun[-1]]), tmp_path
    )
    return told["gain_chosen"], history, told, begun


def test_the_least_gain_is_kept_that_dev_cannot_tell_from_the_best(tmp_path):
    # 4 is better in each document; the paired difference has hardly a spread
    better = {4.0: [0.31, 0.52, 0.71, 0.91], 0.0: [0.3, 0.5, 0.7, 0.9]}
    gain, history, told, begun = judged(better, tmp_path)
    assert (gain, history, begun) == (4.0, [{"gain": 4.0}], [4.0, 0.0, 4.0])
    assert told["gains_tried"] == {"4": 0.6125, "0": 0.6}
    differences = np.array([0.01, 0.02, 0.01, 0.01])
    error = differences.std(ddof=1) / 2
    assert told["gains_behind"]["0"] == pytest.approx(differences.mean() / error, abs=1e-3)
    # the same mean, from one document alone: one standard error exactly
    by_chance = {4.0: [0.35, 0.5, 0.7, 0.9], 0.0: [0.3, 0.5, 0.7, 0.9]}
    gain, _, told, begun = judged(by_chance, tmp_path)
    assert gain == 0.0 and begun == [4.0, 0.0] and told["gains_behind"]["0"] == pytest.approx(1.0)
    # a worse one is never kept for being less
    worse = {4.0: [0.3, 0.5], 1.0: [0.6, 0.7], 0.0: [0.2, 0.1]}
    assert judged(worse, tmp_path)[0] == 1.0


def test_equal_values_are_no_difference():
    assert train.standard_errors(np.zeros(3)) == train.standard_errors(np.zeros(1)) == 0.0
    assert train.standard_errors(np.full(3, 0.5)) == math.inf
    assert train.standard_errors(np.array([-0.5])) == -math.inf


def test_the_chosen_run_is_the_run_of_that_gain(prepared, chosen):
    """Other gains change nothing: the numbers equal those of a run with the chosen gain alone."""
    gain, tried = chosen.params["gain_chosen"], chosen.params["gains_tried"]
    assert list(tried) == ["4", "1", "0"]
    best = chosen.history[chosen.chosen_epoch - 1]["ndcg@5"]
    assert best == pytest.approx(tried[f"{gain:g}"], abs=1e-6)
    config = replace(CONFIG, other_gains=(), start=StartConfig(lookup_gain=gain))
    alone, _ = run_start(prepared, "lookup+linear", 0, config=config, progress=False)
    assert "gains_tried" not in alone.params
    assert [row["ndcg@5"] for row in alone.history] == [row["ndcg@5"] for row in chosen.history]
    assert alone.metrics == near(chosen.metrics, operations=0)
    assert alone.params["final_gains"] == near(chosen.params["final_gains"], operations=0)


@pytest.mark.parametrize("start", ["lookup+linear", "shuffled+linear"])
def test_refused_planting_is_the_control(prepared, start):
    """With a gain of 0 the numbers are those of the start that plants nothing."""
    config = replace(CONFIG, other_gains=(), start=StartConfig(lookup_gain=0.0))
    refused, model = run_start(prepared, start, 0, config=config, progress=False)
    control, _ = run_start(prepared, "linear", 0, config=CONFIG, progress=False)
    assert refused.metrics == pytest.approx(control.metrics, abs=0, nan_ok=True)
    assert refused.history[-1]["train_loss"] == control.history[-1]["train_loss"]
    assert control.params["final_gains"]["planted"] == 0.0, "the control cannot raise its table"


def test_starts_of_a_grid_share_the_training_with_nothing_planted(
    prepared, chosen, tmp_path, monkeypatch
):
    """It is trained once a seed, and every number is that of a run alone."""
    trained = []
    fine_tune = train.fine_tune
    monkeypatch.setattr(
        train, "fine_tune", lambda *a, **k: trained.append(k["what"]) or fine_tune(*a, **k)
    )
    three = ("lookup+linear", "linear", "shuffled+linear")
    records = run_grid(prepared, three, (0,), config=CONFIG, results=tmp_path, progress=False)
    choices = [r.params["gain_chosen"] for r in records if r.system != "linear"]
    # a chosen gain is set again from its checkpoints, unless it was the last one
    again = [f"gain {gain:g}" for gain in choices if gain > 0]
    assert sorted(trained) == sorted(["gain 4", "gain 1", "gain 4", "gain 1", "gain 0", *again])
    alone, _ = run_start(prepared, "linear", 0, config=CONFIG, progress=False)
    for record, other in zip(records, (chosen, alone), strict=False):
        assert record.metrics == pytest.approx(other.metrics, abs=0, nan_ok=True)
        assert record.params == other.params
    assert all(record.times["train_cpu"] > 0 for record in records)


def test_a_killed_choice_goes_on_where_it_was(prepared, chosen, monkeypatch):
    fine_tune = train.fine_tune
    folders = []

    def note_folder(*args, **options):
        folders.append(args[4].name)
        return fine_tune(*args, **options)

    def killed_in_the_third(*args, **options):
        if len(folders) == 2:
            raise KeyboardInterrupt
        return note_folder(*args, **options)

    monkeypatch.setattr(runs.train, "fine_tune", killed_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        run_start(prepared, "lookup+linear", 0, config=CONFIG, progress=False)
    assert folders == ["gain-4.0", "gain-1.0"]
    # what is whole is read again
    monkeypatch.setattr(runs.train, "fine_tune", note_folder)
    steps = []
    step = train.PlantTrainer.training_step

    def note_step(trainer, *args, **options):
        steps.append(Path(trainer.args.output_dir).name)
        return step(trainer, *args, **options)

    monkeypatch.setattr(train.PlantTrainer, "training_step", note_step)
    again, _ = run_start(prepared, "lookup+linear", 0, config=CONFIG, progress=False)
    assert set(steps) == {"gain-0.0"}, "what was trained before the kill was trained again"
    assert [row["ndcg@5"] for row in again.history] == [row["ndcg@5"] for row in chosen.history]
    assert again.params["gains_tried"] == chosen.params["gains_tried"]
    assert again.metrics == near(chosen.metrics, operations=0)


def test_the_weight_of_the_score_is_the_best_of_dev_and_the_smallest_if_tied():
    gain = nn.Parameter(torch.tensor(0.5))
    metric_of = {0.5: 0.1, 1.0: 0.7, 1.5: 0.7, 0.75: 0.2}
    judged = []

    def judge() -> float:
        judged.append(round(gain.item(), 6))
        return metric_of[judged[-1]]

    assert train.weigh(gain, (3.0, 1.0, 2.0, 1.5), judge) == (
        2.0,
        {"1": 0.1, "1.5": 0.2, "2": 0.7, "3": 0.7},
    )
    assert gain.item() == 1.0 and gain.requires_grad
    assert judged == [0.5, 0.75, 1.0, 1.5], "multiples of the trained gain, 0.5"


def test_the_weight_is_chosen_after_training_and_judged_as_it_was_chosen(prepared, chosen):
    """Only the gain changes, and factor 1 has the dev metric of the chosen epoch."""
    weight, tried = chosen.params["linear_weight"], chosen.params["linear_weights_tried"]
    assert list(tried) == ["1", "1.5", "2", "3"] and tried[f"{weight:g}"] == max(tried.values())
    assert tried["1"] == pytest.approx(chosen.history[chosen.chosen_epoch - 1]["ndcg@5"], abs=1e-6)
    plain, _ = run_start(
        prepared, "lookup+linear", 0, config=replace(CONFIG, linear_weights=()), progress=False
    )
    doubled, _ = run_start(
        prepared, "lookup+linear", 0, config=replace(CONFIG, linear_weights=(2.0,)), progress=False
    )
    trained = plain.params["final_gains"]["linear"]
    assert "linear_weight" not in plain.params and chosen.params["final_gains"][
        "linear"
    ] == pytest.approx(weight * trained)
    assert doubled.params["final_gains"]["linear"] == pytest.approx(2 * trained), (
        "a single multiple needs no choice"
    )
    assert [row["ndcg@5"] for row in doubled.history] == [row["ndcg@5"] for row in plain.history]
    assert doubled.threshold != plain.threshold, "the threshold is that of the chosen weight"


def test_a_score_is_weighed_where_dev_is_cached(prepared):
    assert (
        RunConfig().weights_for(["lookup", "linear"])
        == RunConfig().weights_for(["linear"])
        == (1.0, 1.5, 2.0, 3.0)
    )
    assert (
        RunConfig().weights_for(["lookup", "score"])
        == RunConfig(tuning="lora").weights_for(["linear"])
        == ()
    )
    with pytest.raises(ValueError, match="above 0"):
        RunConfig(linear_weights=(1.0, 0.0))


def test_a_record_with_other_choices_is_made_again(prepared, chosen, tmp_path):
    path = chosen.save(tmp_path)
    assert finished(path, prepared, CONFIG, 0) == chosen
    for other in ({"other_gains": ()}, {"linear_weights": ()}, {"linear_weights": (1.0,)}):
        assert finished(path, prepared, replace(CONFIG, **other), 0) is None
