"""Planted outputs against linear discriminant analysis, contexts by hand, and what they are worth
before any training.
"""

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from plantlib.backbones.adapters import LoraOptions
from plantlib.planting import outputs as planted_outputs
from plantlib.planting import starts
from plantlib.training.ingredients import teacher_of
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.runs import build_model, run_start, use_score
from plantlib.training.train import score
from tests.conftest import OPERATIONS
from tests.tolerances import assert_within_rounding


def model_of(prepared, start="lookup"):
    teacher = teacher_of(prepared)
    model = build_model(prepared, teacher)
    starts.plant(model.decoder, start, teacher, prepared.train_labels)
    use_score(model, start.split("+"), teacher, prepared)
    return model


def first_place(model, prepared) -> float:
    """P@1 on test."""
    scores, labels = score(
        model.eval(), prepared.documents("test"), prepared.train_counts, auc=False
    )
    return float(np.mean([labels[i, best] > 0 for i, best in enumerate(scores.topk.ids[:, 0])]))


def test_context_is_the_attention_weighted_mean(prepared):
    model, row = model_of(prepared), int(prepared.rows["train"][3])
    batch = prepared.documents("train").collate([row])
    labels = torch.tensor([2, 0])
    found = planted_outputs.contexts_of(model, batch, labels)
    cells, hidden = model.decoder.planted.cells(batch["token_ids"]), batch["hidden_states"]
    for place, label in enumerate(labels.tolist()):
        scores = hidden @ model.decoder.label_queries[label]
        for position, column, value in zip(
            cells.positions, cells.labels, cells.values, strict=True
        ):
            scores[position] += model.decoder.planted_gain * value * (column == label)
        wanted = (torch.softmax(scores, 0)[:, None] * hidden).sum(0)
        assert_within_rounding(found[place], wanted, OPERATIONS)


def test_equals_discriminant_analysis_where_every_document_has_one_label(monkeypatch):
    """Two labels, one context a document: W_1 - W_0 is proportional to scikit-learn's LDA
    direction.
    """
    rng = np.random.default_rng(0)
    y = np.arange(80) % 2
    x = rng.normal(size=(80, 3)) @ np.diag([1.0, 2.0, 0.5]) + np.outer(y, [1.0, -1.0, 0.5])

    class Decoder:
        label_outputs, label_bias = torch.zeros(2, 3), torch.zeros(2)

    class Model:
        decoder = Decoder()

    class Rows:
        rows = np.arange(80)

        def collate(self, rows):
            return {
                "row": rows[0],
                "label_columns": torch.tensor([y[rows[0]]]),
                "token_ids": torch.ones(1),
            }

    monkeypatch.setattr(
        planted_outputs,
        "contexts_of",
        lambda model, batch, labels: torch.tensor(x[batch["row"]]).float().repeat(len(labels), 1),
    )
    constants = {"SHRINKAGE": 0.0, "HALFWAY": 0.0, "SCALE": 1.0, "BACKGROUND": 80}
    for name, value in constants.items():
        monkeypatch.setattr(planted_outputs, name, value)
    planted_outputs.plant_outputs(Model, Rows(), progress=False)
    ours = (Model.decoder.label_outputs[1] - Model.decoder.label_outputs[0]).numpy()
    lda = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y).coef_[0]
    assert ours @ lda / np.linalg.norm(ours) / np.linalg.norm(lda) == pytest.approx(1.0, abs=1e-3)
    # at the middle between label and background the bias makes the output zero
    background, mean = x.mean(0), x[y == 1].mean(0)
    middle = torch.tensor((background + mean) / 2).float()
    assert float(
        Model.decoder.label_outputs[1] @ middle + Model.decoder.label_bias[1]
    ) == pytest.approx(0.0, abs=1e-4)


def test_planted_outputs_rank_before_training_and_read_training_rows_alone(prepared):
    model, bare = model_of(prepared), model_of(prepared)
    asked = []
    documents = prepared.documents("train")
    collate = documents.collate
    documents.collate = lambda rows: asked.extend(rows) or collate(rows)
    planted_outputs.plant_outputs(model, documents, progress=False)
    assert set(asked) == set(prepared.rows["train"].tolist())
    assert first_place(model, prepared) > first_place(bare, prepared) + 0.1
    assert (
        model.decoder.label_outputs.isfinite().all() and model.decoder.label_bias.isfinite().all()
    )


def test_a_run_plants_them_and_refuses_what_has_no_cached_features(prepared):
    record, model = run_start(
        prepared, "lookup+outputs", config=RunConfig(train=TrainConfig(epochs=1)), progress=False
    )
    assert record.system == "lookup+outputs" and record.metrics["p@1"] > 0
    with pytest.raises(ValueError, match="use tuning='frozen'"):
        run_start(
            prepared, "outputs", config=RunConfig(tuning="lora", lora=LoraOptions()), progress=False
        )
    with pytest.raises(ValueError, match="outputs beside linear"):
        starts.parts_of("linear+outputs")


def test_ranking_loss_over_labels_trains_and_an_unknown_one_is_refused(prepared):
    record, _ = run_start(
        prepared,
        "lookup",
        config=RunConfig(train=TrainConfig(epochs=2, loss="approx_ndcg")),
        progress=False,
    )
    losses = [row["train_loss"] for row in record.history]
    assert all(0 <= loss <= 1 for loss in losses) and losses[1] < losses[0]
    with pytest.raises(ValueError, match="loss='hinge'"):
        TrainConfig(loss="hinge")
