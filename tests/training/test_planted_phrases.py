"""The starts `evidence` and `phrases`: what is planted, what a training document has not counted,
the control, saving, explanations; docs/method.md, "Planted phrases".
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
import torch

from plantlib import Corpus, PlantModel, RunConfig, prepare
from plantlib.cli import main
from plantlib.model import reading
from plantlib.planting import l2r
from plantlib.teacher import mig
from plantlib.training import artefacts
from plantlib.training.ingredients import build_model, ingredients, own_cells, use_score
from plantlib.training.options import TrainConfig
from plantlib.training.phrases import key_of, planted_phrases
from plantlib.training.runs import run_start
from plantlib.utils.base import DataError
from tests.cli.test_main import COLUMNS, write_table
from tests.conftest import THEMES

QUICK = RunConfig(train=TrainConfig(epochs=1))


def spans_of(corpus: Corpus) -> pd.DataFrame:
    """Every word of a label's theme in a document that carries the label."""
    rows = [
        (name, label, match.start(), match.end(), match[0])
        for name, text, row in zip(corpus.ids, corpus.texts, corpus.labels, strict=True)
        for label in (corpus.label_names[j] for j in row.indices)
        for match in re.finditer("|".join(THEMES[label]), text)
    ]
    return pd.DataFrame(rows, columns=["id", "label", "start", "end", "text"])


@pytest.fixture(scope="module")
def marked(corpus, backbone_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("marked")
    with_spans = dataclasses.replace(corpus, evidence=spans_of(corpus))
    return prepare(with_spans, backbone=backbone_folder, max_tokens=None, root=root, progress=False)


@pytest.fixture(scope="module")
def run(marked):
    """Record and model of `evidence+linear`, with its backbone."""
    record, model = run_start(marked, "evidence+linear", config=QUICK, progress=False)
    return record, model.attach_backbone(artefacts.load_backbone(marked))


def same(one, other) -> bool:
    """Whether two corpora's phrases say the same of all documents."""
    return all(
        np.array_equal(getattr(one.cells, name), getattr(other.cells, name))
        for name in ("indptr", "tokens", "labels", "values")
    ) and all((a != b).nnz == 0 for a, b in zip(one.logs, other.logs, strict=True))


def test_evidence_of_dev_and_test_is_never_read(marked):
    """Their spans are dealt out to other labels at random; then they are left out."""
    spans, rng = marked.corpus.evidence, np.random.default_rng(0)
    training = {marked.corpus.ids[i] for i in marked.rows["train"]}
    own = spans["id"].isin(training)
    permuted = spans.copy()
    permuted.loc[~own, "label"] = rng.permutation(spans.loc[~own, "label"])
    assert (permuted["label"] != spans["label"]).any()
    wanted = planted_phrases(marked, ["evidence"])
    key = key_of(marked.corpus, marked.rows["train"], "evidence")
    for frame in (permuted, spans[own].reset_index(drop=True)):
        changed = dataclasses.replace(
            marked, corpus=dataclasses.replace(marked.corpus, evidence=frame)
        )
        assert same(wanted, planted_phrases(changed, ["evidence"]))
        assert key_of(changed.corpus, changed.rows["train"], "evidence") == key
    # spans of training documents are read
    left = spans[own].iloc[::2].reset_index(drop=True)
    fewer = dataclasses.replace(marked.corpus, evidence=left)
    assert not same(
        wanted, planted_phrases(dataclasses.replace(marked, corpus=fewer), ["evidence"])
    )
    assert key_of(fewer, marked.rows["train"], "evidence") != key


def test_a_training_document_reads_phrases_that_have_not_counted_it(marked):
    """Planted again without the document, it is read as any other."""
    phrases = planted_phrases(marked, ["evidence"])
    whole = planted_phrases(marked, ["evidence"], cross_fitted=False)
    differ = 0
    for row in marked.rows["train"][[3, 17, 22, 40]]:
        train = marked.rows["train"][marked.rows["train"] != row]
        again = planted_phrases(dataclasses.replace(marked, train_rows=train), ["evidence"])
        for log, wanted, counted in zip(phrases.logs, again.logs, whole.logs, strict=True):
            np.testing.assert_allclose(log[row].toarray(), wanted[row].toarray(), rtol=1e-4)
            differ += (abs(log[row] - counted[row]) > 1e-3).nnz > 0
        own, wanted = phrases.cells.select([row]), again.cells.select([row])
        np.testing.assert_array_equal(own.tokens, wanted.tokens)
        np.testing.assert_array_equal(own.labels, wanted.labels)
        np.testing.assert_allclose(own.values, wanted.values, rtol=1e-6)
    assert differ


def test_mined_phrases_of_a_training_document_are_mined_without_its_fold(marked):
    """Words of one document and label are no n-grams of others: "tin" stands in one training
    document of its label, "gold" in three.
    """
    phrases = planted_phrases(marked, ["phrases"])
    column = marked.corpus.label_names.index("rare gold")
    gold = [row for row in marked.rows["train"] if "gold" in marked.corpus.texts[row].split()]
    values = phrases.cells.select(gold)
    whole = planted_phrases(marked, ["phrases"], cross_fitted=False).cells.select(gold)
    assert (values.labels == column).sum() > 0
    assert values.values[values.labels == column].max() < whole.values.max()


def test_a_start_without_evidence_or_phrases_is_refused(prepared):
    with pytest.raises(DataError, match="has no evidence; read it with evidence="):
        ingredients(prepared, "evidence", RunConfig(), progress=False)
    for start in ("evidence+outputs", "phrases+outputs"):
        with pytest.raises(ValueError, match="outputs beside linear, evidence or phrases"):
            ingredients(prepared, start, RunConfig(), progress=False)


def test_the_control_moves_what_attention_plants_and_leaves_the_score(marked):
    plain = ingredients(marked, "evidence", RunConfig(), progress=False)
    control = ingredients(marked, "shuffled+evidence", RunConfig(), progress=False)
    order = plain.teacher.shuffled_order(0)
    rows = marked.rows["dev"]
    of_plain, of_control = (
        np.zeros((len(rows), 80, marked.corpus.L), np.float32) for _ in range(2)
    )
    for i, row in enumerate(rows):
        for made, table in ((plain, of_plain), (control, of_control)):
            own = made.cells.select([row])
            table[i, own.tokens, own.labels] = own.values
    np.testing.assert_array_equal(of_control, of_plain[:, :, order])
    assert (of_control != of_plain).any()
    np.testing.assert_array_equal(plain.scored.scores(rows), control.scored.scores(rows))
    # the token teacher has no part in either
    assert not plain.teacher.relevance.nnz and not control.teacher.relevance.nnz


def test_texts_are_read_as_in_training_and_planting_shows(marked):
    """Attention of an untrained model, by text and by the cells of the corpus."""
    made = ingredients(marked, "evidence+lookup", RunConfig(), progress=False)
    model = build_model(marked, made)
    use_score(model, ["evidence", "lookup"], made.teacher, marked)
    model.attach_backbone(artefacts.load_backbone(marked)).eval()
    torch.nn.init.normal_(model.decoder.label_outputs, generator=torch.Generator().manual_seed(0))
    rows = [int(row) for row in marked.rows["test"][:6]]
    texts = [marked.corpus.texts[row] for row in rows]
    logits = {}
    for gain in (0.0, 4.0):
        model.decoder.planted_gain.data.fill_(gain)
        model.decoder.linear_gain.data.fill_(1.0)
        batch = marked.documents("test", linear=made.scored, cells=made.cells).collate(rows)
        with torch.no_grad():
            of_corpus = model(**batch).logits
        [of_texts] = reading.logits(model, texts)
        # cached hidden states have half precision, eleven bits
        torch.testing.assert_close(of_texts, of_corpus, rtol=2**-10, atol=2**-10)
        logits[gain] = of_texts
    assert (logits[0.0] - logits[4.0]).abs().max() > 0.1


def test_a_saved_model_predicts_the_same_and_explains_with_phrases(run, marked, tmp_path):
    record, model = run
    assert record.params["phrases"] and record.teacher["phrases"]["evidence"]["phrases"] > 5
    model.decoder.planted_gain.data.fill_(4.0)
    texts = [marked.corpus.texts[row] for row in marked.rows["test"]]
    model.save_pretrained(tmp_path / "model")
    again = PlantModel.from_pretrained(tmp_path / "model")
    assert again.predict(texts, k=3) == model.predict(texts, k=3)
    text = "the Pulse, with a valve and no sign"
    explanation = again.explain(text, "heart")
    [logits] = reading.logits(again, [text])
    wanted = float(logits[0, again.config.label2id["heart"]])
    assert explanation.logit == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    rows = {(phrase, source) for phrase, source, _, _ in explanation.mention_rows()}
    assert rows == {("pulse", "evidence"), ("valve", "evidence")}
    # the phrases' part of the score: the score of words is that of the rest
    words = again.word_score(*again.pack(again.word_score.word_ids([text])))
    heard = again.heard([text]).scores - again.phrase_score.intercept
    column = again.config.label2id["heart"]
    added = sum(one.adds for one in explanation.mentions)
    gain = again.decoder.linear_gain.item()
    assert added == pytest.approx(gain * float(heard[0, column]), rel=1e-4)
    assert explanation.parts["linear score"] == pytest.approx(
        gain * float(words[0, column] - again.word_score.intercept[column]) + added, rel=1e-4
    )
    assert any("from evidence" in line for line in explanation.lines())
    assert not again.explain(text, "skin").mentions


def test_queries_learn_to_rank_the_tokens_of_phrases(marked):
    """The closed form is the ridge regression of the planted values on hidden states."""
    made = ingredients(marked, "closed_form+evidence", RunConfig(), progress=False)
    rows, features = marked.rows["train"], marked.features
    nothing = dataclasses.replace(
        mig.teach(marked.train_tokens, marked.train_labels), relevance=made.teacher.relevance
    )
    queries = l2r.closed_form(features, rows, nothing, False, own_cells(marked, made)).numpy()
    hidden = np.concatenate([features.documents([row]) for row in rows]).astype(np.float64)
    target = []
    for row in rows:
        own = made.cells.select([row])
        table = np.zeros((len(features.tokens[row]), marked.corpus.L))
        table[own.tokens, own.labels] = own.values
        target.append(table)
    centred = hidden - hidden.mean(0)
    gram = centred.T @ centred
    ridge = l2r.RIDGE * np.trace(gram) / gram.shape[0] + 1e-8
    wanted = np.linalg.solve(gram + ridge * np.eye(len(gram)), centred.T @ np.concatenate(target)).T
    assert np.abs(queries - wanted).max() < 1e-3 * np.abs(wanted).max()
    trained = l2r.pretrain(
        "listnet",
        features,
        rows,
        nothing,
        label_names=marked.corpus.label_names,
        tokens=marked.vocabulary,
        labels=marked.corpus.labels,
        withheld=own_cells(marked, made),
        config=l2r.L2RConfig(epochs=1),
        progress=False,
    )
    assert trained.label_queries.abs().max() > 0


def test_plant_fit_reads_evidence(corpus, backbone_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "mine.csv", corpus, ("train", "dev", "test"))
    spans_of(corpus).to_csv("spans.csv", index=False)
    options = ["--split", "part", "--id", "case", "--epochs", "1", "--backbone", backbone_folder]
    fit = ["fit", "mine.csv", *COLUMNS, *options, "--artefacts", "work", "--start", "evidence"]
    assert main.main([*fit, "--out", "none"]) == 1
    assert "has no evidence; read it with --evidence 'spans.csv'" in capsys.readouterr().err
    assert main.main([*fit, "--out", "m", "--evidence", "spans.csv"]) == 0
    assert main.main(["evaluate", "m", "mine.csv", *COLUMNS, "--split", "part"]) == 0
    assert "p@1" in capsys.readouterr().out
    # the same command finds its model; with other evidence it does not
    assert main.main([*fit, "--out", "m", "--evidence", "spans.csv"]) == 0
    spans_of(corpus).iloc[::2].to_csv("spans.csv", index=False)
    assert main.main([*fit, "--out", "m", "--evidence", "spans.csv"]) == 1
    assert "holds a model already" in capsys.readouterr().err
