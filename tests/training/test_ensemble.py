"""Ensembles: logits are summed, the record is of the sum, and saving keeps predictions.

Members of different labels, corpora or seeds are refused.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import sparse

from plantlib import RunConfig
from plantlib.data.tokens import Ragged
from plantlib.training import artefacts
from plantlib.training.ensemble import Ensemble, run_ensemble, score
from plantlib.training.inputs import Documents
from plantlib.training.options import TrainConfig
from plantlib.training.records import RunRecord
from plantlib.training.runs import run_start
from tests.conftest import OPERATIONS
from tests.tolerances import assert_within_rounding, near

QUICK = RunConfig(train=TrainConfig(epochs=1))


def trained(prepared, *starts) -> list:
    """Members: the inputs and a model of one epoch, for each start."""
    runs = [run_start(prepared, start, 0, config=QUICK, progress=False) for start in starts]
    return [(prepared, model) for _, model in runs]


@pytest.fixture(scope="module")
def members(prepared):
    return trained(prepared, "lookup", "random")


def test_predictions_are_of_the_sum_and_survive_saving(members, corpus, tmp_path):
    record, ensemble = run_ensemble(members, results=tmp_path)
    for inputs, model in members:
        model.attach_backbone(artefacts.load_backbone(inputs))
    texts = corpus.texts[80:90]
    summed = sum(m.eval()(*m.pack(m.tokenise(texts))).logits.cpu() for _, m in members)
    assert_within_rounding(ensemble.logits(texts), summed, OPERATIONS)

    # scores are calibrated logits of the sum
    slope, shift, ceiling = ensemble.calibration
    for predictions, logits in zip(ensemble.predict(texts, k=2), summed, strict=True):
        label, label_score = predictions[0]
        best = int(logits.argmax())
        assert label == ensemble.names[best]
        probability = ceiling * torch.sigmoid(logits[best] * slope + shift).item()
        assert label_score == near(probability, OPERATIONS)

    # saved and loaded
    ensemble.save_pretrained(tmp_path / "e")
    loaded = Ensemble.from_pretrained(tmp_path / "e")
    for loaded_model, (_, model) in zip(loaded.models, members, strict=True):
        loaded_model.to(model.device)
    assert loaded.predict(texts) == ensemble.predict(texts)
    assert loaded.threshold == ensemble.threshold
    saved = RunRecord.load(tmp_path / f"{record.id}.json")
    assert saved.system == "lookup ensemble"
    assert saved.params["members"] == [model.record.id for _, model in members]
    assert record.id.endswith("-ensemble") and saved.metrics["p@1"] == record.metrics["p@1"]


class Fixed(torch.nn.Module):
    """A model that gives every document the same logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(logits))

    def forward(self, offsets, **_):
        return type("Output", (), {"logits": self.logits.expand(len(offsets) - 1, -1)})()


def test_scores_are_those_of_a_sum_by_hand():
    """The sum ranks a label first that neither of two models ranks first."""
    tokens = Ragged.from_lists([np.array([1]), np.array([1, 2])])
    labels = sparse.csr_matrix(np.array([[0, 1, 0], [0, 1, 0]]))
    documents = Documents(tokens, labels, np.arange(2))
    models = [Fixed([3.0, 2.0, -3.0]), Fixed([-3.0, 2.0, 3.0])]
    scores = score(models, [documents] * 2, np.ones(3, int), auc=False)
    assert scores.topk.ids[:, 0].tolist() == [1, 1]
    assert scores.topk.scores[0, 0] == pytest.approx(4.0)


def test_members_that_do_not_fit_together_are_refused(members, monkeypatch):
    models = [model for _, model in members]
    with pytest.raises(ValueError, match="an ensemble of 1"):
        Ensemble(models[:1])
    with monkeypatch.context() as patch:
        patch.setattr(models[1], "record", dataclasses.replace(models[1].record, seed=5))
        with pytest.raises(ValueError, match="seeds 0 and 5"):
            run_ensemble(members)
    names = {i: f"x{i}" for i in range(models[1].config.num_labels)}
    with monkeypatch.context() as patch:
        patch.setattr(models[1].config, "id2label", names)
        with pytest.raises(ValueError, match="labels differ"):
            Ensemble(models)


def test_members_that_plant_a_linear_score_are_summed_like_others(prepared):
    members = trained(prepared, "lookup+linear", "lookup")
    record, ensemble = run_ensemble(members)
    assert record.metrics["p@1"] > 0
    for _, model in members:
        model.attach_backbone(artefacts.load_backbone(prepared))
    text = prepared.corpus.texts[int(prepared.rows["test"][0])]
    logits = [
        model(
            *model.pack(model.tokenise([text])), linear_scores=model.word_scores([text])
        ).logits.cpu()
        for _, model in members
    ]
    assert_within_rounding(ensemble.logits([text]), sum(logits), OPERATIONS)
