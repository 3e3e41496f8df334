"""Fine-tuning: parameter groups, learning, the best dev epoch, early stopping, equal repeats.

docs/method.md, "Training" and "Choosing on dev, reading test once". All on the tiny corpus with
cached features. A second process is killed by SIGKILL and resumed; its weights must equal those of
an uninterrupted run.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from plantlib.metrics.documents import Scores, TopK, evaluate
from plantlib.planting import starts
from plantlib.training import schedules, train
from plantlib.training.ingredients import build_model, teacher_of, use_score
from plantlib.training.inputs import Documents
from plantlib.training.options import TrainConfig
from plantlib.training.train import fine_tune, score


def fresh_model(prepared, seed=0, start="random"):
    """A planted model as `run_start` gives it to `fine_tune`, without a backbone."""
    teacher = teacher_of(prepared)
    model = build_model(prepared, teacher)
    starts.plant(model.decoder, start, teacher, prepared.train_labels, seed=seed)
    use_score(model, start.split("+"), teacher, prepared)
    return model


def train_it(prepared, folder, model=None, *, seed=0, lr_outputs=0.05, lr_gains=1e-2, **options):
    """(model, history) of a short run on the tiny corpus."""
    model = model or fresh_model(prepared)
    config = TrainConfig(**{"epochs": 3, "batch_size": 8, "lr_queries": 0.05} | options)
    parts = prepared.documents("train"), prepared.documents("dev"), prepared.train_counts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedules, "LR_OUTPUTS", lr_outputs)
        patch.setattr(schedules, "LR_GAINS", lr_gains)
        history = fine_tune(model, *parts, folder, config=config, seed=seed, progress=False)
    return model, history


def dev_metric(prepared, model, metric="ndcg@5") -> float:
    scores, labels = score(model, prepared.documents("dev"), prepared.train_counts, auc=False)
    return evaluate(scores, labels, prepared.train_counts, 60)[metric]


def test_a_larger_epsilon_leaves_rare_labels_nearer_to_their_start(prepared, tmp_path, monkeypatch):
    moved = {}
    for epsilon in (1e-8, 1e-2):
        model = fresh_model(prepared)
        before = model.decoder.label_outputs.detach().clone().cpu()
        monkeypatch.setattr(train, "EPSILON", epsilon)
        train_it(prepared, tmp_path / str(epsilon), model, epochs=1)
        moved[epsilon] = (model.decoder.label_outputs.detach().cpu() - before).norm(dim=1).numpy()
    order = np.argsort(prepared.train_counts, kind="stable")
    share = moved[1e-2] / moved[1e-8]
    third = len(order) // 3
    assert (share < 1).all() and share[order[:third]].mean() < 0.8 * share[order[-third:]].mean()


def weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def without_times(history: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    """(model, history, folder) of one run, shared by several tests."""
    folder = tmp_path_factory.mktemp("trained")
    return *train_it(prepared, folder), folder


@pytest.mark.parametrize("backbone_state", ["none", "frozen", "open"])
def test_every_trainable_parameter_is_in_one_group(backbone_state, prepared, backbone, monkeypatch):
    model = fresh_model(prepared, start="lookup+score")
    if backbone_state != "none":
        model.attach_backbone(backbone)
        backbone.model.requires_grad_(backbone_state == "open")
    for name, value in (("LR_OUTPUTS", 2.0), ("LR_GAINS", 3.0), ("WEIGHT_DECAY", 0.5)):
        monkeypatch.setattr(schedules, name, value)
    config = TrainConfig(lr_queries=1.0, lr_backbone=4.0)
    options = {}
    for group in schedules.parameter_groups(model, config):
        for parameter in group["params"]:
            assert id(parameter) not in options, "a parameter is in two groups"
            options[id(parameter)] = (group["lr"], group["weight_decay"])
    expected = {
        "label_queries": (1.0, 0.5),
        "label_outputs": (2.0, 0.5),
        "label_bias": (2.0, 0.5),
        "planted_gain": (3.0, 0.0),
        "teacher_gain": (3.0, 0.0),
    }
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert options == {
        id(p): expected.get(n.removeprefix("decoder."), (4.0, 0.5)) for n, p in named.items()
    }
    assert len(options) == 5 + (
        len(list(backbone.model.parameters())) if backbone_state == "open" else 0
    )


def test_trainer_uses_the_groups_and_warms_up(prepared, tmp_path, monkeypatch):
    """AdamW has one rate per group, and warm-up, a share of the steps, scales all of them."""
    monkeypatch.setattr(schedules, "WARMUP", 0.2)
    monkeypatch.setattr(schedules, "LR_GAINS", 3.0)
    options = train._arguments(tmp_path, TrainConfig(epochs=5, batch_size=6))
    assert options.get_warmup_steps(50) == 10
    trainer = train.PlantTrainer(
        model=fresh_model(prepared),
        args=options,
        train_dataset=prepared.documents("train"),
        eval_dataset=prepared.documents("dev"),
        plant_config=TrainConfig(lr_queries=1.0),
        train_counts=prepared.train_counts,
    )
    trainer.create_optimizer_and_scheduler(50)
    assert [g["initial_lr"] for g in trainer.optimizer.param_groups] == [1.0, 1e-2, 3.0]
    for _ in range(5):
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert [round(g["lr"], 9) for g in trainer.optimizer.param_groups] == [0.5, 0.005, 1.5]


def test_fine_tuning_learns(prepared, tmp_path):
    model, history = train_it(
        prepared, tmp_path, epochs=8, lr_queries=0.1, lr_outputs=0.1, patience=8
    )
    before = dev_metric(prepared, fresh_model(prepared))
    assert dev_metric(prepared, model) > before + 0.15
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_model_is_left_at_its_best_dev_epoch(prepared, tmp_path, monkeypatch):
    """Dev metrics are set by the test; the weights must be those of the second evaluation."""
    dev_metrics = [0.2, 0.9, 0.5, 0.4]
    next_metric = iter(dev_metrics)
    weights_by_epoch = []
    real_evaluate = train.evaluate
    real_score = train.score

    def score_and_copy_weights(model, *args, **kwargs):
        weights_by_epoch.append(weights(model))
        return real_score(model, *args, **kwargs)

    def evaluate_with_set_metric(*args, **kwargs):
        return real_evaluate(*args, **kwargs) | {"ndcg@5": next(next_metric)}

    model = fresh_model(prepared)
    monkeypatch.setattr(train, "score", score_and_copy_weights)
    monkeypatch.setattr(train, "evaluate", evaluate_with_set_metric)
    _, history = train_it(prepared, tmp_path, model, epochs=4, patience=4)
    assert [row["ndcg@5"] for row in history] == dev_metrics
    assert train.chosen_epoch(history) == 2
    for name, value in weights(model).items():
        assert torch.equal(value, weights_by_epoch[1][name])
        assert name.endswith("gain") or not torch.equal(value, weights_by_epoch[3][name])


def test_early_stopping_stops(prepared, tmp_path, monkeypatch):
    """At rate zero nothing improves, so training stops after one epoch and `patience` more."""
    rates = dict.fromkeys(("lr_queries", "lr_outputs", "lr_gains"), 0.0)
    # killed before the Trainer has removed the checkpoint after the best
    with monkeypatch.context() as patch:
        patch.setattr("transformers.trainer.shutil.rmtree", lambda *a, **k: None)
        _, history = train_it(prepared, tmp_path, epochs=9, patience=1, **rates)
    assert [row["epoch"] for row in history] == [1, 2]
    model, again = train_it(prepared, tmp_path, epochs=9, patience=1, **rates)
    assert again == history, "a run killed after early stopping trained on"
    best = load_file(sorted(tmp_path.glob("checkpoint-*"))[0] / "model.safetensors")
    assert torch.equal(model.decoder.label_queries.cpu(), best["decoder.label_queries"])


def test_history_has_one_row_an_epoch(trained):
    _, history, _ = trained
    assert [row["epoch"] for row in history] == [1, 2, 3]
    for row in history:
        assert {"epoch", "train_loss", "seconds", "p@1", "p@5", "ndcg@5", "psp@5", "map"} <= set(
            row
        )
    seconds = [row["seconds"] for row in history]
    assert seconds == sorted(seconds)


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_are_not(prepared, trained, tmp_path):
    model, history, _ = trained
    again, same = train_it(prepared, tmp_path / "again")
    other, _ = train_it(prepared, tmp_path / "other", seed=1, epochs=1)
    for name, value in weights(model).items():
        assert torch.equal(weights(again)[name], value), name
    assert without_times(history) == without_times(same)
    assert not torch.allclose(
        weights(other)["decoder.label_outputs"], weights(model)["decoder.label_outputs"]
    )


def test_streaming_score_equals_a_dense_evaluation(prepared, trained):
    model, documents = trained[0], prepared.documents("test")
    for mode in (True, False):
        scores, labels = score(model.train(mode), documents, prepared.train_counts, batch_size=3)
        assert model.training == mode, "scoring leaves the mode as it was"
    batch = {n: x.to(model.device) for n, x in documents.collate(documents.rows.tolist()).items()}
    with torch.inference_mode():
        logits = (
            model(batch["token_ids"], batch["offsets"], batch["hidden_states"])
            .logits.double()
            .cpu()
            .numpy()
        )
    order = np.argsort(-logits, axis=1, kind="stable")
    np.testing.assert_array_equal(scores.topk.ids[:, :7], order)
    gold = labels.toarray() > 0
    ranks = np.argsort(order, axis=1)[gold] + 1
    np.testing.assert_array_equal(scores.gold_ranks, ranks)
    assert (labels != prepared.corpus.labels[documents.rows]).nnz == 0
    dense = evaluate(
        Scores(TopK.from_dense(logits, 100), gold_ranks=ranks), labels, prepared.train_counts, 60
    )
    streamed = evaluate(scores, labels, prepared.train_counts, 60)
    assert {k: streamed[k] for k in ("p@1", "ndcg@5", "psp@5", "map")} == pytest.approx(
        {k: dense[k] for k in ("p@1", "ndcg@5", "psp@5", "map")}
    )


def test_labels_reach_the_loss_as_positive_cells(prepared):
    documents = prepared.documents("train")
    batch = documents.collate([3, 7, 17, 22])
    size = 4 * prepared.corpus.L
    cells = prepared.corpus.labels[[3, 7, 17, 22]]
    assert set(batch) == {"token_ids", "offsets", "label_rows", "label_columns", "hidden_states"}
    assert len(batch["label_rows"]) == len(batch["label_columns"]) == cells.nnz < size
    assert not [
        name for name, x in batch.items() if x.shape == (4, prepared.corpus.L) or x.numel() == size
    ]
    assert {
        (int(r), int(c)) for r, c in zip(batch["label_rows"], batch["label_columns"], strict=True)
    } == set(zip(*(x.tolist() for x in cells.nonzero()), strict=True))
    lengths = batch["offsets"].diff().tolist()
    assert lengths == prepared.tokens.lengths[[3, 7, 17, 22]].tolist() and lengths[1] == 0


def test_documents_and_labels_must_cover_the_same_corpus(prepared):
    with pytest.raises(ValueError, match="100 tokenised documents and 60 label rows"):
        Documents(prepared.tokens, prepared.train_labels, np.arange(3))


@pytest.mark.parametrize("field", ["epochs", "batch_size", "accumulation", "patience"])
def test_config_refuses_zero(field):
    with pytest.raises(ValueError, match=f"{field}=0; give at least 1"):
        TrainConfig(**{field: 0})


def test_training_prints_nothing_and_warns_of_nothing(prepared, tmp_path, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_it(prepared, tmp_path, epochs=1)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_backbone_is_trained_when_it_is_part_of_the_model(prepared, backbone, tmp_path):
    documents = [
        Documents(prepared.tokens, prepared.corpus.labels, prepared.rows[s])
        for s in ("train", "dev")
    ]
    model = fresh_model(prepared).attach_backbone(backbone)
    before = copy.deepcopy(backbone.model.state_dict())
    config = TrainConfig(epochs=1, batch_size=16, lr_backbone=1e-2)
    fine_tune(model, *documents, prepared.train_counts, tmp_path, config=config, progress=False)
    name = "encoder.layer.0.attention.self.query.weight"
    assert not torch.allclose(backbone.model.state_dict()[name].cpu(), before[name])


SCRIPT = """
import json, pickle, sys, time
from pathlib import Path
import torch
from transformers import TrainerCallback
from plantlib.training import train
from plantlib.training.options import TrainConfig
from plantlib.training.train import fine_tune
from tests.tolerances import near

folder, inputs, slow = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "slow"
model, documents, dev, counts = torch.load(inputs, weights_only=False)
torch.set_num_threads(1)


class Log(train._Progress):
    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        with (folder / "steps.log").open("a") as f:
            f.write(f"{state.global_step}\\n")
        if slow and (folder / "checkpoint-16").exists():
            time.sleep(60)  # wait to be killed, in the third epoch


train._Progress = Log
config = TrainConfig(epochs=4, batch_size=8, patience=4, lr_queries=0.05)
history = fine_tune(model, documents, dev, counts, folder, config=config, progress=False)
torch.save(model.state_dict(), folder / "final.pt")
(folder / "history.json").write_text(json.dumps(history))
"""


def test_killed_run_resumes_to_the_same_numbers(prepared, tmp_path):
    """SIGKILL after the second epoch's checkpoint, with a half-written third one beside it."""
    (tmp_path / "job.py").write_text(SCRIPT)
    torch.save(
        (
            fresh_model(prepared),
            prepared.documents("train"),
            prepared.documents("dev"),
            prepared.train_counts,
        ),
        tmp_path / "inputs.pt",
    )
    cut = tmp_path / "cut"
    whole = tmp_path / "whole"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}

    def start(folder: Path, pace: str) -> subprocess.Popen:
        folder.mkdir(exist_ok=True)
        command = [
            sys.executable,
            str(tmp_path / "job.py"),
            str(folder),
            str(tmp_path / "inputs.pt"),
            pace,
        ]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def steps(folder: Path) -> list[int]:
        return [int(line) for line in (folder / "steps.log").read_text().split()]

    # kill the run in its third epoch, and leave a half-written checkpoint of that epoch
    victim = start(cut, "slow")
    deadline = time.monotonic() + 600
    while not (cut / "steps.log").exists() or steps(cut)[-1:] != [17]:
        assert victim.poll() is None and time.monotonic() < deadline, (
            victim.stdout and victim.communicate(timeout=5)[0]
        )
        time.sleep(0.05)
    victim.kill()
    victim.communicate()
    (cut / "checkpoint-24").mkdir()
    (cut / "checkpoint-24" / "model.safetensors").write_bytes(b"half")

    # resume it, and meanwhile train without interruption here
    again = start(cut, "fast")
    model = fresh_model(prepared)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    _, history = train_it(prepared, whole, model, epochs=4, patience=4, lr_outputs=0.01)
    torch.set_num_threads(threads)
    output, _ = again.communicate(timeout=600)
    assert again.returncode == 0, output
    assert steps(cut) == [*range(1, 18), *range(17, 33)], (
        "resumed at the checkpoint of step 16, not restarted"
    )
    resumed = torch.load(cut / "final.pt")
    for name, value in model.state_dict().items():
        assert torch.equal(resumed[name], value), name
    assert without_times(json.loads((cut / "history.json").read_text())) == without_times(history)
