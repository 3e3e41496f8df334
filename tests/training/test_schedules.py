"""Rates by depth, schedules and gradual unfreezing.

docs/method.md, "Training". Depth is tested on real architectures; runs, also killed ones, are on
the tiny corpus and the tiny backbone.
"""

from __future__ import annotations

import pytest
import torch

from plantlib.backbones import adapters, loading
from plantlib.backbones.awd_lstm import AwdLstmConfig, AwdLstmModel
from plantlib.planting import starts
from plantlib.training import schedules, train
from plantlib.training.ingredients import build_model, teacher_of, use_score
from plantlib.training.options import SCHEDULES, TrainConfig
from plantlib.training.train import fine_tune


def model_of(prepared, backbone_folder):
    """A planted model whose backbone may be trained in full."""
    model = build_model(prepared, teacher_of(prepared))
    starts.plant(model.decoder, "random", teacher_of(prepared), prepared.train_labels)
    use_score(model, ["random"], teacher_of(prepared), prepared)
    return model.attach_backbone(loading.load(backbone_folder, dropout=0.0))


def fit(prepared, model, folder, **options):
    config = TrainConfig(
        **{"epochs": 3, "patience": 3, "batch_size": 10, "lr_backbone": 0.01} | options
    )
    parts = [prepared.documents(s, cached=False) for s in ("train", "dev")]
    return fine_tune(model, *parts, prepared.train_counts, folder, config=config, progress=False)


def backbone_weights(model) -> dict[str, torch.Tensor]:
    return {n: p.detach().cpu().clone() for n, p in model.backbone.named_parameters()}


@pytest.mark.parametrize("warmup", [0.05, 0.1, 0.5, 1.0, 3])
@pytest.mark.parametrize("steps", [1, 2, 9, 19, 40])
def test_one_cycle_is_defined_for_every_number_of_steps(steps, warmup):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=1e-2)
    schedule = schedules.one_cycle(optimizer, steps, warmup)
    rates = []
    for _ in range(steps):
        parameter.grad = torch.ones(1)
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert all(0 < rate <= 1.001e-2 for rate in rates) and max(rates) > 5e-3


@pytest.mark.parametrize(
    ("name", "layers"), [("minilm", 6), ("tiny-llama", 2), ("tiny-deepseek-v3", 2)]
)
def test_depth_is_read_from_the_names(name, layers):
    for adapted in (False, True):
        model = loading.load(name).model
        model = adapters.add_lora(model) if adapted else model
        depths = schedules.depths(name for name, _ in model.named_parameters())
        assert set(depths.values()) == set(range(layers + 1))
        assert all((depth == 0) == ("embed" in name) for name, depth in depths.items())


def test_depth_of_the_awd_lstm():
    model = AwdLstmModel(AwdLstmConfig(vocab_size=9, hidden_size=4, lstm_size=4))
    depths = schedules.depths(name for name, _ in model.named_parameters())
    assert depths["embeddings.weight"] == 0
    assert depths["layers.0.weight_hh_l0"] == 1
    assert depths["layers.2.bias_ih_l0"] == 3


def test_rates_fall_by_layer():
    rates = schedules.layer_rates(
        ["embeddings.word", "layer.0.x", "layer.1.x", "norm.weight"], 1.0, 2.0
    )
    assert rates == {
        "embeddings.word": 0.25,
        "layer.0.x": 0.5,
        "layer.1.x": 1.0,
        "norm.weight": 1.0,
    }
    model = AwdLstmModel(AwdLstmConfig(vocab_size=9, hidden_size=4, lstm_size=4))
    groups = schedules.parameter_groups(model, TrainConfig(lr_backbone=1.0, layer_decay=2.6))
    assert [g["lr"] for g in groups] == pytest.approx([2.6**-3, 2.6**-2, 2.6**-1, 1.0])
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


def test_stages_name_what_is_trained():
    names = ["embeddings.word", "layer.0.x", "layer.1.x", "pooler.weight"]
    assert schedules.trained_in("head", names) == set()
    assert schedules.trained_in("last 1", names) == {"layer.1.x", "pooler.weight"}
    assert schedules.trained_in("last 2", names) == {"layer.0.x", "layer.1.x", "pooler.weight"}
    assert schedules.trained_in("all", names) == schedules.trained_in("last 9", names) == set(names)


def test_unfreezing_stage_by_stage(prepared, backbone_folder, tmp_path, monkeypatch):
    """The first epoch leaves the backbone, the second trains its layer, the third all of it."""
    model = model_of(prepared, backbone_folder)
    weights = [backbone_weights(model)]
    score = train.score

    def score_and_copy_weights(model, *args, **kwargs):
        weights.append(backbone_weights(model))
        return score(model, *args, **kwargs)

    monkeypatch.setattr(train, "score", score_and_copy_weights)
    fit(prepared, model, tmp_path, stages=("head", "last 1", "all"))
    moved = [
        {name for name in weights[0] if not torch.equal(weights[i][name], weights[i + 1][name])}
        for i in range(3)
    ]
    layer = {name for name in weights[0] if name.startswith("encoder.layer.0")}
    assert moved[0] == set() and layer <= moved[1] and not any("embeddings" in n for n in moved[1])
    assert any("embeddings" in n for n in moved[2])
    assert all(p.requires_grad for p in model.backbone.parameters()), "gradients are on again"


def test_best_epoch_of_a_frozen_stage_has_the_first_backbone(
    prepared, backbone_folder, tmp_path, monkeypatch
):
    """If the head's epoch is the best, the changes of later stages to the backbone are undone."""
    model = model_of(prepared, backbone_folder)
    before = backbone_weights(model)
    evaluate = train.evaluate
    dev_metrics = iter([0.9, 0.5, 0.4])
    monkeypatch.setattr(
        train, "evaluate", lambda *a, **k: evaluate(*a, **k) | {"ndcg@5": next(dev_metrics)}
    )
    history = fit(prepared, model, tmp_path, stages=("head", "all"))
    assert train.chosen_epoch(history) == 1
    for name, value in backbone_weights(model).items():
        assert torch.equal(value, before[name]), name


def test_interrupted_run_resumes_in_its_stage(prepared, backbone_folder, tmp_path, monkeypatch):
    options = {"stages": ("head", "head", "all")}
    whole = model_of(prepared, backbone_folder)
    fit(prepared, whole, tmp_path / "whole", **options)

    class Dies(train._Progress):
        def on_step_end(self, args, state, control, **kwargs):
            super().on_step_end(args, state, control, **kwargs)
            if state.global_step == 15:  # in the third of three epochs of six steps
                raise KeyboardInterrupt

    cut = model_of(prepared, backbone_folder)
    with monkeypatch.context() as patch:
        patch.setattr(train, "_Progress", Dies)
        with pytest.raises(KeyboardInterrupt):
            fit(prepared, cut, tmp_path / "cut", **options)
    again = model_of(prepared, backbone_folder)
    fit(prepared, again, tmp_path / "cut", **options)
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_warm_up_and_do_what_their_name_says(
    schedule, prepared, backbone_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(schedules, "WARMUP", 0.25)
    monkeypatch.setattr(schedules, "LR_OUTPUTS", 1.0)
    config = TrainConfig(schedule=schedule)
    trainer = train.PlantTrainer(
        model=model_of(prepared, backbone_folder),
        args=train._arguments(tmp_path, config),
        train_dataset=prepared.documents("train"),
        eval_dataset=prepared.documents("dev"),
        plant_config=config,
        train_counts=prepared.train_counts,
    )
    trainer.create_optimizer_and_scheduler(40)
    rates = []
    for _ in range(40):
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        rates.append(trainer.optimizer.param_groups[1]["lr"])
    assert rates[2] < rates[6] < rates[9] == pytest.approx(1.0, abs=0.05), (
        "rises for a quarter of the steps"
    )
    assert rates[-1] == pytest.approx(1.0 if schedule == "constant" else 0.0, abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": ("heads",)}, "stage 'heads' is not known; use 'head', 'last N'"),
        ({"stages": ("last 0",)}, "stage 'last 0' is not known"),
        (
            {"schedule": "round"},
            "schedule='round' is not known; use one of linear, cosine, one_cycle, constant",
        ),
        ({"layer_decay": 0}, "layer_decay=0; give a number above 0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)
