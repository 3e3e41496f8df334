"""Documents to review: expected errors by their definition, and found sooner than by chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plantlib import RunConfig
from plantlib.backbones import loading
from plantlib.metrics.calibration import chances
from plantlib.metrics.label_rules import LabelRule
from plantlib.model import reading
from plantlib.model.label_sets import rule_of
from plantlib.model.review import SHOWN, review
from plantlib.training.runs import run_start


@pytest.fixture(scope="module")
def model(prepared, backbone_folder):
    """A model that knows the words and decides wrongly now and then."""
    config = RunConfig(other_gains=(), linear_weights=())
    _, model = run_start(prepared, "lookup", config=config, progress=False)
    return model.attach_backbone(loading.load(backbone_folder))


def test_errors_are_expected_by_their_definition(model, prepared):
    texts = prepared.corpus.texts[:30]
    scores = torch.cat(list(reading.logits(model, texts))).numpy()
    chance = chances(scores, model.config.calibration)
    for rule in (None, LabelRule("budget", budget=2).as_dict()):
        model.config.label_rule = rule
        accepted = rule_of(model).accepts(scores)
        expected = np.where(accepted, 1 - chance, chance)
        found = review(model, texts, batch=7)
        assert [document.row for document in found] == np.argsort(
            -expected.sum(1).round(12), kind="stable"
        ).tolist()
        for document in found:
            assert document.errors == pytest.approx(expected[document.row].sum(), abs=1e-6)
            doubts = [1 - p if yes else p for _, p, yes in document.doubtful]
            assert doubts == sorted(doubts, reverse=True)
            assert doubts[0] == pytest.approx(expected[document.row].max(), abs=1e-6)
            assert len(doubts) == min(SHOWN, len(model.config.id2label))
    model.config.label_rule = None


def test_the_first_half_holds_more_errors_than_the_second(model, prepared):
    """On test documents, which chose neither threshold nor calibration."""
    rows = prepared.rows["test"]
    texts = [prepared.corpus.texts[i] for i in rows]
    gold = prepared.corpus.labels[rows].toarray() > 0
    scores = torch.cat(list(reading.logits(model, texts))).numpy()
    wrong = (rule_of(model).accepts(scores) != gold).sum(1)
    order = [document.row for document in review(model, texts)]
    half = len(order) // 2
    assert wrong.sum() > 0
    assert wrong[order[:half]].sum() > wrong[order[half:]].sum()
