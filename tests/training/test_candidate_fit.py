"""Models of very many labels: `fit` trains on candidates, and the model predicts, explains, is
saved and exported as every other one.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy import sparse

from plantlib import PlantModel, RunConfig, fit
from plantlib.candidates import lists
from plantlib.candidates.decoder import CandidateConfig
from plantlib.cli import main
from plantlib.metrics import documents
from plantlib.model import reading
from plantlib.sklearn import PlantClassifier
from plantlib.training import candidate_fit, candidate_runs, learning
from plantlib.training.options import TrainConfig
from tests.tolerances import assert_within_rounding

WIDTH = 3
CONFIG = RunConfig(train=TrainConfig(epochs=2))


@pytest.fixture(scope="module", autouse=True)
def small_is_large():
    """Every problem is too large to score whole, and dev prefers what was trained longest: the
    linear score of the tiny corpus leaves nothing to learn.
    """
    values = itertools.count(1)

    def evaluate(*arguments):
        return documents.evaluate(*arguments) | {"ndcg@5": next(values) / 1000}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidate_runs, "evaluate", evaluate)
        patch.setattr(candidate_fit, "CELLS", 0)
        patch.setattr(candidate_fit, "WIDTH", WIDTH)
        patch.setattr(candidate_runs, "LEARNING_RATE", 0.3)
        yield


@pytest.fixture(scope="module", params=["words", "tiny-bert"])
def model(request, corpus, backbone_folder, tmp_path_factory):
    backbone = "words" if request.param == "words" else backbone_folder
    root = tmp_path_factory.mktemp("candidates")
    return fit(corpus, backbone=backbone, config=CONFIG, root=root, progress=False)


def texts_of(corpus, split="test"):
    return [corpus.texts[i] for i in corpus.rows(split)]


def test_large_problems_that_begin_from_the_score_are_trained_on_candidates(monkeypatch):
    monkeypatch.setattr(candidate_fit, "CELLS", 100)
    assert candidate_fit.on_candidates(51, 2, "lookup+linear", CONFIG)
    assert not candidate_fit.on_candidates(50, 2, "lookup+linear", CONFIG)
    assert not candidate_fit.on_candidates(51, 2, "lookup", CONFIG)
    inattention = dataclasses.replace(CONFIG, keep=4)
    assert not candidate_fit.on_candidates(51, 2, "lookup+linear", inattention)
    many = sparse.csr_matrix(np.ones((2, 7), np.int32))
    assert candidate_fit.config_for(many, 5, 2) == CandidateConfig(width=7, rank=5, epochs=2)


@pytest.mark.parametrize("width", [1, 4, 30])
def test_lists_without_a_dense_score_are_those_of_the_dense_one(width):
    rng = np.random.default_rng(0)
    dense = rng.integers(-2, 3, (40, 23)) * (rng.random((40, 23)) < 0.3)
    intercept, shift = rng.integers(-2, 3, 23), rng.integers(-2, 3, 23)
    scale = rng.choice([0.5, 1.0], 23)
    sums = sparse.csr_matrix(dense, dtype=np.float32)
    ids, scores = lists.best_of_sums(sums, intercept, scale, shift, width)
    whole = (dense + intercept).astype(np.float32)
    wanted = lists.best_of(np.float32(shift + scale * whole), min(width, 23))
    np.testing.assert_array_equal(ids[:, :23], wanted)
    np.testing.assert_array_equal(scores[:, :23], np.take_along_axis(whole, wanted, 1))
    assert (ids[:, 23:] == -1).all() and (scores[:, 23:] == -np.inf).all()


def test_the_model_predicts_what_its_run_measured(model, corpus):
    assert model.config.candidates == WIDTH and model.decoder.output_rows.weight.abs().sum() > 0
    assert model.record.chosen_epoch == 2 and model.record.params["train"]["epochs"] == 2
    texts = texts_of(corpus)
    best = model.predict(texts, k=2)
    gold = corpus.labels[corpus.rows("test")]
    first = [corpus.label_names.index(row[0][0]) for row in best]
    right = np.asarray(gold[np.arange(len(texts)), first]).ravel() > 0
    has = np.diff(gold.indptr) > 0
    assert right[has].mean() == pytest.approx(model.record.metrics["p@1"])
    assert max(len(row) for row in model.predict(texts, k=50)) == WIDTH


def test_what_reads_all_logits_sees_the_same_candidates(model, corpus):
    texts = texts_of(corpus)
    for best, dense in zip(
        reading.places(model, texts, WIDTH), reading.logits(model, texts), strict=True
    ):
        dense = dense.numpy()
        assert ((dense > -np.inf).sum(1) == WIDTH).all()
        found = np.take_along_axis(dense, best.ids.astype(np.int64), 1)
        assert_within_rounding(best.scores, found, operations=200)
    alone = [model.predict([text], k=WIDTH)[0] for text in texts[:5]]
    together = model.predict(texts[:5], k=WIDTH)
    for one, several in zip(alone, together, strict=True):
        assert [label for label, _ in one] == [label for label, _ in several]


def test_a_saved_model_is_the_same(model, corpus, tmp_path):
    texts = texts_of(corpus)
    model.save_pretrained(tmp_path / "model")
    again = PlantModel.from_pretrained(tmp_path / "model")
    assert again.predict(texts, k=WIDTH) == model.predict(texts, k=WIDTH)
    with pytest.raises(ValueError, match="does not learn on"):
        learning.learn(again, texts, [[]] * len(texts))
    with pytest.raises(ValueError, match="trained by plantlib.fit alone"):
        ids, offsets = model.pack(model.tokenise(texts))
        scores = model.word_scores(texts)
        rows = torch.zeros(1, dtype=torch.long)
        model(ids, offsets, linear_scores=scores, label_rows=rows, label_columns=rows)


def test_an_explanation_adds_up_to_the_logit(model, corpus):
    text = max(texts_of(corpus), key=len)
    names = list(model.config.id2label.values())
    logits = next(reading.logits(model, [text]))[0].numpy()
    for label, _ in model.predict([text], k=WIDTH)[0]:
        explanation = model.explain(text, label)
        assert_within_rounding(explanation.logit, logits[names.index(label)], operations=200)
        *summands, (_, total) = explanation.table(2)
        assert sum(numbers[0] for _, numbers in summands) == pytest.approx(total[0], abs=1e-5)
    other = next(name for name in names if logits[names.index(name)] == -np.inf)
    assert np.isfinite(model.explain(text, other).logit)


def test_a_fit_that_was_not_saved_is_not_trained_again(corpus, tmp_path, monkeypatch):
    options = {"backbone": "words", "config": CONFIG, "root": tmp_path, "progress": False}
    first = fit(corpus, **options)
    loss = "plantlib.candidates.training.candidate_bce"
    monkeypatch.setattr(loss, lambda *_: pytest.fail("trained again"))
    again = fit(corpus, **options)
    texts = texts_of(corpus)
    assert again.predict(texts) == first.predict(texts)
    again.save_pretrained(tmp_path / "model")
    assert not any((tmp_path / "checkpoints").iterdir())


def test_a_tracker_is_refused(corpus, tmp_path):
    with pytest.raises(ValueError, match="which no tracker follows"):
        options = {"backbone": "words", "root": tmp_path, "progress": False}
        fit(corpus, report_to="tensorboard", **options)


def test_the_estimator_of_scikit_learn_trains_on_candidates(corpus):
    rows = corpus.rows("train")
    texts = [corpus.texts[i] for i in rows]
    labels = [[corpus.label_names[j] for j in corpus.labels[i].indices] for i in rows]
    estimator = PlantClassifier(backbone="words", epochs=2, progress=False).fit(texts, labels)
    chances = estimator.predict_proba(texts)
    assert ((chances > 0).sum(1) == WIDTH).all()
    assert estimator.score(texts, labels) > 0.5


def test_the_commands_read_a_model_on_candidates(corpus, tmp_path, capsys):
    table = tmp_path / "notes.csv"
    lines = ["text,labels"]
    for i in range(corpus.N):
        names = ";".join(corpus.label_names[j] for j in corpus.labels[i].indices)
        lines.append(f'"{corpus.texts[i]}",{names}')
    table.write_text("\n".join(lines))
    out, kept = str(tmp_path / "model"), ["--artefacts", str(tmp_path / "artefacts")]
    command = ["fit", str(table), "--out", out, "--backbone", "words", "--epochs", "1", *kept]
    assert main.main(command) == 0
    said = capsys.readouterr()
    assert "on its 3 best labels by the linear score" in said.err and "ndcg@5" in said.out
    assert main.main(command) == 0
    assert "has made" in capsys.readouterr().err
    note = tmp_path / "note.txt"
    note.write_text(texts_of(corpus)[0])
    for arguments in (
        ["predict", out, str(note)],
        ["predict", out, str(note), "--accepted"],
        ["explain", out, str(note)],
        ["review", out, str(note)],
        ["evaluate", out, str(table)],
        ["tune", out, str(table), "--rule", "labels"],
    ):
        assert main.main(arguments) == 0, capsys.readouterr().err
        assert capsys.readouterr().out or "--accepted" in arguments
    assert main.main(["learn", out, str(table), "--out", str(tmp_path / "more")]) == 1
    assert "does not learn on" in capsys.readouterr().err
