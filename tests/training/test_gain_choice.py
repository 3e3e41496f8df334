"""The choice of gains on dev: a lookup's gain after one epoch, the linear score's after training.

docs/method.md, "Training". Killed choices and runs must resume to the same numbers.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from plantlib.linear.score import LinearConfig
from plantlib.planting.starts import StartConfig
from plantlib.training import runs, train
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.runs import finished, run_start

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


@pytest.mark.parametrize(
    "metric_of, best",
    [({4: 0.5, 1: 0.7, 0: 0.6}, 1), ({4: 0.7, 1: 0.7, 0: 0.6}, 4)],
    ids=["best", "tied"],
)
def test_the_best_of_dev_is_chosen_and_the_model_stands_at_its_start(metric_of, best, tmp_path):
    planted_gains = []

    def fit(folder, callbacks):
        return [{"p@1": metric_of[planted_gains[-1]]}]

    gain, tried = train.choose(metric_of, planted_gains.append, fit, tmp_path, "p@1")
    assert gain == best
    assert tried == {str(gain): metric for gain, metric in metric_of.items()}
    assert planted_gains == [*metric_of, best]


def test_the_chosen_run_is_the_run_of_that_gain(prepared, chosen):
    """Trials change nothing: the numbers equal those of a run with the chosen gain alone."""
    gain, tried = chosen.params["gain_chosen"], chosen.params["gains_tried"]
    assert list(tried) == ["4", "1", "0"] and tried[f"{gain:g}"] == max(tried.values())
    assert chosen.history[0]["ndcg@5"] == tried[f"{gain:g}"] and len(chosen.history) == 2
    config = replace(CONFIG, other_gains=(), start=StartConfig(lookup_gain=gain))
    alone, _ = run_start(prepared, "lookup+linear", 0, config=config, progress=False)
    assert "gains_tried" not in alone.params
    assert [row["ndcg@5"] for row in alone.history] == [row["ndcg@5"] for row in chosen.history]
    assert alone.metrics == pytest.approx(chosen.metrics, abs=1e-6, nan_ok=True)
    assert alone.params["final_gains"] == pytest.approx(chosen.params["final_gains"], abs=1e-6)


def test_a_run_of_one_epoch_is_its_own_trial(prepared):
    config = replace(CONFIG, other_gains=(1.0,), train=TrainConfig(epochs=1))
    record, _ = run_start(prepared, "lookup+linear", 0, config=config, progress=False)
    assert len(record.history) == 1 and record.history[0]["ndcg@5"] == max(
        record.params["gains_tried"].values()
    )


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
    monkeypatch.setattr(runs.train, "fine_tune", note_folder)
    again, _ = run_start(prepared, "lookup+linear", 0, config=CONFIG, progress=False)
    assert folders[2:] == ["gain-0.0", f"gain-{chosen.params['gain_chosen']}"], (
        "a trial was repeated"
    )
    assert again.history[-1]["ndcg@5"] == chosen.history[-1]["ndcg@5"]
    assert again.params["gains_tried"] == chosen.params["gains_tried"]


class Killed(TrainerCallback):
    """Interrupts training at the beginning of the third epoch."""

    def on_epoch_begin(self, args, state, control, **kwargs):
        if state.epoch >= 2:
            raise KeyboardInterrupt


def test_a_run_killed_after_the_choice_goes_on_from_its_last_epoch(prepared, monkeypatch):
    """Its trials are not repeated, and its numbers equal those of an uninterrupted run."""
    config = replace(CONFIG, train=TrainConfig(epochs=3, patience=3))
    fine_tune = train.fine_tune
    folders = []

    def note_folder(*args, **options):
        folders.append(args[4].name)
        return fine_tune(*args, **options)

    def killed_after_the_trials(*args, **options):
        is_trial = bool(options["callbacks"])
        return note_folder(*args, **options if is_trial else options | {"callbacks": [Killed()]})

    monkeypatch.setattr(runs.train, "fine_tune", killed_after_the_trials)
    with pytest.raises(KeyboardInterrupt):
        run_start(prepared, "lookup+linear", 0, config=config, progress=False)
    assert len(folders) == 4, "three trials, then the run of the chosen gain"
    monkeypatch.setattr(runs.train, "fine_tune", note_folder)
    again, _ = run_start(prepared, "lookup+linear", 0, config=config, progress=False)
    assert folders[4:] == folders[3:4], "a trial was repeated"
    monkeypatch.setattr(runs.train, "fine_tune", fine_tune)
    whole, _ = run_start(prepared, "lookup+linear", 0, config=config, progress=False)
    assert [row["ndcg@5"] for row in again.history] == [
        row["ndcg@5"] for row in whole.history
    ] and len(whole.history) == 3
    assert again.metrics == pytest.approx(whole.metrics, abs=1e-6, nan_ok=True)
    assert again.params["final_gains"] == pytest.approx(whole.params["final_gains"], abs=1e-6)


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
