"""The ensemble: logits are summed, the record is that of the sum, labels and corpora must agree,
saving keeps predictions.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from plantlib import RunConfig
from plantlib.training import artefacts
from plantlib.training.ensemble import Ensemble, run_ensemble, score
from plantlib.training.options import TrainConfig
from plantlib.training.records import RunRecord
from plantlib.training.runs import run_start
from plantlib.training.train import Documents


@pytest.fixture(scope="module")
def members(prepared):
    """Two starts of one seed, each with its backbone."""
    config = RunConfig(train=TrainConfig(epochs=1))
    made = [
        run_start(prepared, start, 0, config=config, progress=False)[1]
        for start in ("lookup", "random")
    ]
    return [(prepared, model) for model in made]


def test_predictions_are_of_the_sum_and_survive_saving(members, prepared, corpus, tmp_path):
    record, ensemble = run_ensemble(members, results=tmp_path)
    for ready, model in members:
        model.attach_backbone(artefacts.load_backbone(ready))
    texts = corpus.texts[80:90]
    summed = sum(m.eval()(*m._packed(m.tokenise(texts))).logits.cpu() for _, m in members)
    torch.testing.assert_close(ensemble.logits(texts), summed.detach())
    slope, shift = ensemble.calibration
    best = ensemble.predict(texts, k=2)
    for row, logits in zip(best, summed, strict=True):
        top = int(logits.argmax())
        chance = torch.sigmoid(logits[top] * slope + shift).item()
        assert row[0][0] == ensemble.names[top] and row[0][1] == pytest.approx(chance, abs=1e-5)
    ensemble.save_pretrained(tmp_path / "e")
    loaded = Ensemble.from_pretrained(tmp_path / "e")
    for one, (_, model) in zip(loaded.models, members, strict=True):
        one.to(model.device)
    assert (
        loaded.predict(texts) == ensemble.predict(texts) and loaded.threshold == ensemble.threshold
    )
    saved = RunRecord.load(tmp_path / f"{record.id}.json")
    assert saved.system == "lookup ensemble" and saved.params["members"] == [
        m.record.id for _, m in members
    ]
    assert record.id.endswith("-ensemble") and saved.metrics["p@1"] == record.metrics["p@1"]


def test_scores_are_those_of_a_sum_by_hand():
    """Two models of fixed logits; the sum ranks a label first that neither ranks first alone."""

    class Fixed(torch.nn.Module):
        def __init__(self, logits):
            super().__init__()
            self.logits = torch.nn.Parameter(torch.tensor(logits))

        def forward(self, offsets, **_):
            return type("O", (), {"logits": self.logits.expand(len(offsets) - 1, -1)})()

    from plantlib.data.tokens import Ragged

    tokens = Ragged.from_lists([np.array([1]), np.array([1, 2])])
    documents = Documents(tokens, sparse.csr_matrix(np.array([[0, 1, 0], [0, 1, 0]])), np.arange(2))
    models = [Fixed([3.0, 2.0, -3.0]), Fixed([-3.0, 2.0, 3.0])]
    found = score(models, [documents] * 2, np.ones(3, int), auc=False)
    assert found.topk.ids[:, 0].tolist() == [1, 1] and found.topk.scores[0, 0] == pytest.approx(4.0)


def test_contradictory_members_are_refused(members):
    with pytest.raises(ValueError, match="an ensemble of 1"):
        Ensemble([members[0][1]])
    other = RunRecord(
        **{
            f: getattr(members[0][1].record, f)
            for f in ("id", "kind", "dataset", "system", "metrics")
        },
        seed=5,
    )
    kept, members[1][1].record = members[1][1].record, other
    with pytest.raises(ValueError, match="seeds 0 and 5"):
        run_ensemble(members)
    members[1][1].record = kept
    config = members[1][1].config
    names, config.id2label = config.id2label, {i: f"x{i}" for i in range(config.num_labels)}
    with pytest.raises(ValueError, match="labels differ"):
        Ensemble([m for _, m in members])
    config.id2label = names


def test_members_that_plant_a_linear_score_are_summed_like_others(prepared):
    quick, starts = RunConfig(train=TrainConfig(epochs=1)), ("lookup+linear", "lookup")
    members = [
        (prepared, run_start(prepared, start, config=quick, progress=False)[1]) for start in starts
    ]
    record, ensemble = run_ensemble(members)
    assert record.metrics["p@1"] > 0
    for _, model in members:
        model.attach_backbone(artefacts.load_backbone(prepared))
    text = prepared.corpus.texts[int(prepared.rows["test"][0])]
    alone = [
        m(*m._packed(m.tokenise([text])), linear_scores=m.word_scores([text])).logits.cpu()
        for _, m in members
    ]
    assert torch.allclose(ensemble.logits([text]), sum(alone), atol=1e-4)
