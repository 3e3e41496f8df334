"""Explanations against gold words: gradients, faithfulness by hand, and going on after a stop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from companion.studies import contributions
from plantlib.utils.base import DataError
from plantlib.utils.io import read_json, write_json

REST = contributions.METHODS[2:]
TEXT = "the pulse was seen again today"


def test_gradient_times_input_is_the_change_by_a_longer_embedding(model):
    """Scaling one token's embedding by 1 + e moves the logit by e times the sum of the products."""
    [sizes] = contributions.gradients(model, TEXT, ["heart"])
    assert len(sizes) == len(model.tokenise([TEXT]).flat) and (sizes > 0).all()
    with torch.no_grad():
        model.decoder.label_outputs.zero_()
    assert not contributions.gradients(model, TEXT, ["heart"])[0].any(), "nothing reaches the logit"


def test_labels_measured_together_are_measured_as_each_alone(model):
    names = list(model.config.label2id)[:2]
    together = contributions.gradients(model, TEXT, names)
    alone = [contributions.gradients(model, TEXT, [name])[0] for name in names]
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))
    pairs = [(names[0], [(4, 9)]), (names[1], [(19, 24)])]
    rows = contributions.measure(model, TEXT, pairs, seed=0)
    one_by_one = [row for pair in pairs for row in contributions.measure(model, TEXT, [pair], 0)]
    for row, other in zip(rows, one_by_one, strict=True):
        if row["method"] != "random":  # drawn one after another
            assert row == pytest.approx(other, abs=1e-6)


def test_faithfulness_by_hand(model):
    """Without and with only the marked words, the score is that of the texts one would write."""
    with torch.no_grad():
        model.decoder.planted_gain.fill_(50.0)  # all attention on "pulse", which is planted
    rows = contributions.measure(model, TEXT, [("heart", [(4, 9)])], seed=0)
    assert [row["method"] for row in rows] == list(contributions.METHODS)
    by_method = {row["method"]: row for row in rows}
    whole, bare, alone = (
        model.explain(text, "heart").score
        for text in (TEXT, "the  was seen again today", " pulse    ")
    )
    assert by_method["attention"]["precision"] == 1 and by_method["attention"]["auc"] == 1
    assert by_method["attention"]["comprehensiveness"] == pytest.approx(whole - bare, abs=1e-6)
    assert by_method["attention"]["sufficiency"] == pytest.approx(whole - alone, abs=1e-6)
    assert contributions.measure(model, TEXT, [("heart", [(0, len(TEXT))])], seed=0) == []


def test_a_finished_seed_is_not_measured_again(model, marked, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(contributions.Corpus, "load", lambda name: marked)
    monkeypatch.setattr(contributions, "fit", lambda *_, seed, **__: trained.append(seed) or model)
    out = tmp_path / "found.json"
    arguments = ["--dataset", "tiny", "--split", "dev", "--out", str(out)]
    arguments += ["--figure", str(tmp_path / "found.png")]
    assert contributions.main([*arguments, "--seeds", "1"]) == 0
    assert contributions.main([*arguments, "--seeds", "2"]) == 0
    assert trained == [0, 1] and not (tmp_path / "found.partial").exists()
    table = contributions.table(read_json(out))
    assert np.isfinite(
        table.loc["contribution", list(contributions.MEASURES)].to_numpy(float)
    ).all()
    assert (tmp_path / "found.png").stat().st_size > 1000
    assert contributions.main([*arguments, "--documents", "9", "--seeds", "1"]) == 0
    assert trained == [0, 1, 0], "other options are measured anew"


def test_a_stopped_seed_goes_on_at_the_next_document(model, marked, tmp_path, monkeypatch):
    measure, texts = contributions.measure, []

    def stops(model, text, *rest):
        if len(texts) == 1:
            raise KeyboardInterrupt
        texts.append(text)
        return measure(model, text, *rest)

    asked = {"split": "dev", "documents": 9}  # two of them have a marked label
    partial = tmp_path / "found.partial"
    whole = contributions.report(marked, model, asked, 0, tmp_path / "other.json")
    monkeypatch.setattr(contributions, "measure", stops)
    with pytest.raises(KeyboardInterrupt):
        contributions.report(marked, model, asked, 0, partial)
    monkeypatch.setattr(contributions, "measure", measure)
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


def test_a_table_pairs_documents_and_says_which_way_a_measure_points(tmp_path):
    """Contributions are ten points better by AUC and worse by sufficiency, where less is better."""
    of_seed = {}
    for method, gain in (("contribution", 0.1), ("attention", 0.0), *((m, 0.5) for m in REST)):
        measures = {name: [gain, gain + 0.2, None] for name in ("auc", "sufficiency")}
        measures |= {name: [0.3, 0.3, None] for name in ("precision", "comprehensiveness")}
        of_seed[method] = measures
    asked = {"dataset": "tiny", "split": "dev", "backbone": "b", "start": "lookup", "tokens": 9}
    by_seed = {seed: {"labels": 4, "methods": of_seed} for seed in "01"}
    path = write_json(tmp_path / "found.json", {"asked": asked, "by_seed": by_seed})
    rows = contributions.table(read_json(path))
    assert rows.loc["attention", "auc diff"] == pytest.approx(0.1)
    assert rows.loc["attention", "auc"] == pytest.approx(0.1)
    assert contributions.in_words(rows) == (
        "Contributions against attention: better by AUC; worse by sufficiency; not told apart by"
        " precision at the span's length, comprehensiveness."
    )
    text = contributions.markdown(path)
    assert "| attention | 10.0 (+10.0 [+10.0, +10.0]) |" in text and "4 marked labels of 3" in text
