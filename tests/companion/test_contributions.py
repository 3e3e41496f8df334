"""Explanations against gold words: gradients, faithfulness by hand, and going on after a stop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from companion.studies import contributions
from plantlib.utils.base import DataError
from plantlib.utils.io import read_json

TEXT = "the pulse was seen again today"


def test_gradient_times_input_is_the_change_by_a_longer_embedding(model):
    """Scaling one token's embedding by 1 + e moves the logit by e times the sum of the products."""
    sizes = contributions.gradients(model, TEXT, "heart")
    assert len(sizes) == len(model.tokenise([TEXT]).flat) and (sizes > 0).all()
    with torch.no_grad():
        model.decoder.label_outputs.zero_()
    assert not contributions.gradients(model, TEXT, "heart").any(), "nothing reaches the logit"


def test_faithfulness_by_hand(model):
    """Without and with only the marked words, the score is that of the texts one would write."""
    with torch.no_grad():
        model.decoder.planted_gain.fill_(50.0)  # all attention on "pulse", which is planted
    rows = contributions.measure_pair(model, TEXT, "heart", [(4, 9)], seed=0)
    assert [row["method"] for row in rows] == list(contributions.METHODS)
    by_method = {row["method"]: row for row in rows}
    whole, bare, alone = (
        model.explain(text, "heart").score
        for text in (TEXT, "the  was seen again today", " pulse    ")
    )
    assert by_method["attention"]["precision"] == 1 and by_method["attention"]["auc"] == 1
    assert by_method["attention"]["comprehensiveness"] == pytest.approx(whole - bare, abs=1e-6)
    assert by_method["attention"]["sufficiency"] == pytest.approx(whole - alone, abs=1e-6)
    assert contributions.measure_pair(model, TEXT, "heart", [(0, len(TEXT))], seed=0) == []


def test_a_finished_seed_is_not_measured_again(model, marked, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(contributions.Corpus, "load", lambda name: marked)
    monkeypatch.setattr(contributions, "fit", lambda *_, seed, **__: trained.append(seed) or model)
    out = tmp_path / "found.json"
    arguments = ["--dataset", "tiny", "--split", "dev", "--out", str(out)]
    assert contributions.main([*arguments, "--seeds", "1"]) == 0
    assert contributions.main([*arguments, "--seeds", "2"]) == 0
    assert trained == [0, 1] and not (tmp_path / "found.partial").exists()
    table = contributions.table(read_json(out))
    assert list(table.columns) == list(contributions.MEASURES)
    assert np.isfinite(table.loc["contribution"].to_numpy()).all()
    assert contributions.main([*arguments, "--documents", "9", "--seeds", "1"]) == 0
    assert trained == [0, 1, 0], "other options are measured anew"


def test_a_stopped_seed_goes_on_at_the_next_document(model, marked, tmp_path, monkeypatch):
    measure, texts = contributions.measure_pair, []

    def stops(model, text, *rest):
        if len(texts) == 1:
            raise KeyboardInterrupt
        texts.append(text)
        return measure(model, text, *rest)

    asked = {"split": "dev", "documents": 9}  # two of them have a marked label
    partial = tmp_path / "found.partial"
    whole = contributions.report(marked, model, asked, 0, tmp_path / "other.json")
    monkeypatch.setattr(contributions, "measure_pair", stops)
    with pytest.raises(KeyboardInterrupt):
        contributions.report(marked, model, asked, 0, partial)
    monkeypatch.setattr(contributions, "measure_pair", measure)
    assert len(read_json(partial)["rows"]) == 1
    assert contributions.report(marked, model, asked, 0, partial) == whole


def test_a_text_is_cut_to_what_attention_reads(model):
    model.config.max_tokens = 2
    read = contributions.as_read(model, TEXT)
    assert TEXT.startswith(read) and read == TEXT[: contributions.spans_of(model, TEXT)[-1][1]]
    assert len(model.tokenise([read]).flat) == 2


def test_a_corpus_without_evidence_is_refused(model, corpus, marked):
    with pytest.raises(DataError, match="first 2 documents of test mark no evidence"):
        contributions.marked_labels(marked, model, "test", 2)
    with pytest.raises(DataError, match="marks no evidence"):
        contributions.marked_labels(corpus, model, "dev", 1)
