"""Transplanted attention: what moves, what trains, and effects that add up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from companion.studies import steps, trained, transplants
from plantlib.training.ingredients import teacher_of
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.training.prepare import prepare
from tests.companion.studies.test_evidence import marked_corpus

CONFIG = RunConfig(train=TrainConfig(epochs=1))


@pytest.fixture(scope="module")
def inputs(backbone_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("transplants")
    return prepare(marked_corpus(), backbone=backbone_folder, root=root, progress=False)


@pytest.fixture(scope="module")
def files(inputs, tmp_path_factory):
    """What the study writes for one seed, twice."""
    folder = tmp_path_factory.mktemp("results")
    path = folder / steps.FOLDER / "transplants-tiny-s0.json"
    transplants.measure(inputs, CONFIG, 0, steps.Steps(path, {"seed": 0}))
    return 2 * list(steps.load(folder, "transplants").values())


def test_a_joined_model_attends_as_the_donor_and_ends_in_the_hosts_outputs(inputs):
    teacher = teacher_of(inputs)
    host, donor = (
        trained.after(inputs, start, 0, CONFIG, teacher, progress=False)
        for start in ("random", "lookup")
    )
    decoder = transplants.joined(inputs, teacher, host, donor).decoder
    assert torch.equal(decoder.label_queries, donor.label_queries)
    assert decoder.planted_gain == donor.planted_gain != host.planted_gain
    assert torch.equal(decoder.label_outputs, host.label_outputs)
    assert torch.equal(decoder.label_bias, host.label_bias)
    trains = {name for name, p in decoder.named_parameters() if p.requires_grad}
    assert trains == {"label_outputs", "label_bias"}


def test_attention_stays_while_outputs_train(inputs, monkeypatch):
    teacher = teacher_of(inputs)
    donor = trained.after(inputs, "lookup", 0, CONFIG, teacher, progress=False)
    host = trained.before(inputs, "random", 1, CONFIG, teacher)
    models = []
    join = transplants.joined
    monkeypatch.setattr(
        transplants, "joined", lambda *parts: models.append(join(*parts)) or models[0]
    )
    found = transplants.transplanted(inputs, CONFIG, 0, teacher, host, donor, "planted")
    decoder = models[0].decoder
    assert torch.equal(decoder.label_queries, donor.label_queries)
    assert decoder.planted_gain == donor.planted_gain
    assert not torch.equal(decoder.label_outputs, host.label_outputs)
    assert len(found["average_precision"]) == inputs.corpus.L
    assert len(found["per_document"]["ndcg@5"]) == len(inputs.rows["test"])


def test_attention_and_host_add_up_to_the_whole(files):
    assert len(files) == 2
    for metric in transplants.METRICS:
        rows = transplants.effects(files, metric).set_index("effect")
        whole, attention, host = rows["value"][list(transplants.EFFECTS[:3])]
        assert whole == pytest.approx(attention + host, abs=1e-12)
        assert (rows["low"] <= rows["value"]).all() and (rows["value"] <= rows["high"]).all()


def test_a_share_is_given_only_where_the_whole_differs_from_zero(files):
    def shifted(by):
        file = {"steps": {name: dict(step) for name, step in files[0]["steps"].items()}}
        values = [0.1, 0.2, 0.3, 0.4]
        for (host, attention), gain in zip(transplants.CELLS, by, strict=True):
            step = file["steps"][f"{host} with attention of {attention}"]
            step["per_document"] = {"ndcg@5": [value + gain for value in values]}
        return file

    found = transplants.effects([shifted((0, 0.3, 0.1, 0.4, 0))] * 2, "ndcg@5").set_index("effect")
    assert found["value"]["mediated share"] == pytest.approx(0.75)
    none = transplants.effects([shifted((0, 0.3, -0.3, 0, 0))] * 2, "ndcg@5")
    assert "mediated share" not in set(none["effect"])


def test_the_change_by_label_follows_attention(files):
    found = transplants.by_label(files)
    assert found["low"] <= found["correlation"] <= found["high"] and found["labels"] > 2
    without = [
        {"steps": {k: v for k, v in file["steps"].items() if k != "labels"}} for file in files
    ]
    assert transplants.by_label(without) is None
    x = np.arange(12.0).reshape(2, 6)
    assert transplants.correlation(x, 2 * x)["correlation"] == pytest.approx(1.0)
    assert transplants.correlation(x, -x)["high"] == pytest.approx(-1.0)


def test_steps_are_not_made_twice_and_begin_anew_with_other_options(tmp_path):
    path = tmp_path / "x.json"
    made = []

    def make(value):
        made.append(value)
        return {"value": value}

    first = steps.Steps(path, {"seed": 0})
    assert first("a", lambda: make(1))["value"] == 1
    again = steps.Steps(path, {"seed": 0})
    assert again("a", lambda: make(2))["value"] == 1 and made == [1]
    assert steps.Steps(path, {"seed": 1})("a", lambda: make(3))["value"] == 3
    assert steps.Steps(path, {"seed": 1}, force=True).values == {}
