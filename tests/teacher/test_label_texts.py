"""Label texts: their teacher by hand, joined with the MIG teacher, planted, and where they lie."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import sparse

from plantlib import prepare
from plantlib.data import sources
from plantlib.data.corpus import Corpus
from plantlib.data.streaming import LABEL_TEXTS_FILE, write_label_texts
from plantlib.kernels.counts import column_counts
from plantlib.planting import starts
from plantlib.teacher import label_texts, mig
from plantlib.teacher.mig import TeacherConfig
from plantlib.training import artefacts, runs, train
from plantlib.training.ingredients import build_model, teacher_of, with_label_texts
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.utils.base import DataError
from plantlib.utils.io import write_json
from tests.tolerances import assert_within_rounding

# tokens: 0 in every document, 1 in one of four, 2 in none, 3 in two
COUNTS = sparse.csr_matrix(np.array([[1, 3, 0, 1], [2, 0, 0, 1], [1, 0, 0, 0], [1, 0, 0, 0]]))
# label 0: tokens 0, 1, 2; label 1: token 2 alone; label 2: no text
WORDS = sparse.csr_matrix(np.array([[1, 1, 2, 0], [0, 0, 1, 0], [0, 0, 0, 0]]))


def test_a_description_is_one_more_document_of_its_label_by_hand():

    def xlogx(*p):
        return sum(x * np.log(x) for x in p if x)

    # 5 documents, one of them with the label; token 1 is in it and in 1 other, token 2 in 0 others
    one = xlogx(1 / 5, 1 / 5, 3 / 5) - 2 * 0 - xlogx(1 / 5, 4 / 5) - xlogx(2 / 5, 3 / 5)
    none = -xlogx(1 / 5, 4 / 5)  # the token is the label: I = H
    # two of three labels have a text: a token of both weighs ln(1 + 2/2) / ln(1 + 2)
    shared = np.log(2) / np.log(3)
    scores = label_texts.scores_of(WORDS, COUNTS).toarray()
    expected = np.array(
        [
            [0, one / np.sqrt(3), none * shared / np.sqrt(3), 0],
            [0, 0, none * shared, 0],
            [0, 0, 0, 0],
        ]
    )
    assert_within_rounding(scores, expected, operations=10)
    taught = label_texts.teach(WORDS, COUNTS, weight=3.0)
    assert_within_rounding(taught.scores.toarray(), 3 * expected, operations=10)
    assert taught.relevance.max() == 1 and taught.taught.tolist() == [True, True, False]
    jaccard = label_texts.scores_of(WORDS, COUNTS, "jaccard").toarray()
    assert jaccard[1, 2] == pytest.approx(shared), "J of a token that is the label is 1"


def test_rare_words_of_few_labels_weigh_most():
    words = sparse.csr_matrix(np.array([[1, 1, 0], [1, 0, 1], [1, 0, 0]]))
    assert label_texts.rarity(words) == pytest.approx([np.log(2) / np.log(4), 1, 1])
    with pytest.raises(ValueError, match="label texts have 3 tokens, documents 4"):
        label_texts.scores_of(words, COUNTS)


def test_only_labels_with_few_documents_get_words_and_the_others_keep_their_teacher():
    labels = sparse.csr_matrix(np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]]))
    teacher = mig.teach(COUNTS, labels, variant="raw", relevance="score")
    words = label_texts.limited(label_texts.teach(WORDS, COUNTS), column_counts(labels), few=1)
    assert words.scores.nnz == 0, "labels 0 and 1 have two documents, label 2 no text"
    words = label_texts.limited(label_texts.teach(WORDS, COUNTS), np.array([2, 0, 0]), few=1)
    both = label_texts.joined(teacher, words, vocabulary=3)
    assert (both.scores[0] != teacher.scores[0]).nnz == 0 and both.scores[1, 2] == words.scores[
        1, 2
    ] > 0
    assert both.relevance.max() == 1 and both.n_train == 4


@pytest.fixture(scope="module")
def described(corpus):
    return dataclasses.replace(
        corpus,
        label_texts={"only test": "a comet, comets", "rare tin": "tin", "heart": "of the heart"},
    )


@pytest.fixture(scope="module")
def ready(described, backbone_folder, tmp_path_factory):
    return prepare(
        described,
        backbone=backbone_folder,
        max_tokens=None,
        label_space="all",
        progress=False,
        root=tmp_path_factory.mktemp("texts"),
    )


def test_a_start_with_text_teaches_labels_without_documents(ready, monkeypatch, tmp_path):
    monkeypatch.setenv("PLANT_HOME", str(tmp_path))
    teacher, config = teacher_of(ready), TeacherConfig()
    names, vocabulary = ready.corpus.label_names, ready.vocabulary
    unseen, head = names.index("only test"), names.index("heart")
    assert ready.train_counts[unseen] == 0 and not teacher.taught[unseen]
    teachers = {
        start: with_label_texts(ready, teacher, start.split("+"), config)
        for start in ("text", "lookup+text", "score+text", "lookup+score+text")
    }
    comet = vocabulary.index("comet")
    for start, t in teachers.items():
        assert t.relevance[unseen, comet] == 1 and t.scores[unseen, comet] > 0, start
        assert (t.relevance[head].nnz > 0) == ("lookup" in start) and (t.scores[head].nnz > 0) == (
            "score" in start
        )
        if "lookup" in start:
            assert (t.relevance[head] != teacher.relevance[head]).nnz == 0
    bare = dataclasses.replace(
        ready, corpus=dataclasses.replace(ready.corpus, label_texts={"heart": "heart"})
    )
    with pytest.raises(DataError, match="with at most 5 training documents has a text"):
        with_label_texts(bare, teacher, ["text"], config)


def test_documents_outside_train_change_nothing(
    ready, described, backbone_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("PLANT_HOME", str(tmp_path))
    held = np.flatnonzero(described.split != "train")
    texts = list(described.texts)
    for i in held:
        texts[i] = "comet tin gold pulse"
    other = prepare(
        dataclasses.replace(described, texts=texts),
        backbone=backbone_folder,
        max_tokens=None,
        label_space="all",
        progress=False,
        root=tmp_path,
    )
    teachers = [
        with_label_texts(p, teacher_of(p), ["lookup", "text"], TeacherConfig())
        for p in (ready, other)
    ]
    assert (teachers[0].scores != teachers[1].scores).nnz == 0 and (
        teachers[0].relevance != teachers[1].relevance
    ).nnz == 0


def test_zero_shot_labels_are_found_by_their_words(ready, monkeypatch, tmp_path):
    monkeypatch.setenv("PLANT_HOME", str(tmp_path))
    config = RunConfig(train=TrainConfig(epochs=1, batch_size=8))
    gap = {}
    for start in ("lookup+score", "lookup+score+text"):
        record, model = runs.run_start(ready, start, config=config, progress=False)
        assert (
            record.dataset["label_space"] == "all labels of the corpus"
            and "all-labels" in record.id
        )
        assert "zero/r@15" in record.metrics
        model.attach_backbone(artefacts.load_backbone(ready))
        model.config.calibration = None
        comet, other = (
            dict(row)["only test"]
            for row in model.predict(["comet comet", "patient seen"], k=ready.corpus.L)
        )
        gap[start] = comet - other
    assert gap["lookup+score+text"] > 0.01 > 3 * abs(gap["lookup+score"]), (
        f"the label's score must follow its word: {gap}"
    )


@pytest.mark.parametrize(
    ("unseen", "loss"), [("still", "bce"), ("still", "approx_ndcg"), ("negatives", "bce")]
)
def test_what_was_planted_for_labels_without_documents_outlives_training(
    unseen, loss, ready, tmp_path
):
    """Rows of labels left out of the loss keep their bits; as negatives they change."""
    model, teacher = build_model(ready, teacher_of(ready)), teacher_of(ready)
    starts.plant(model.decoder, "lookup", teacher, ready.train_labels)
    model.teacher_score, still = None, torch.from_numpy(ready.train_counts == 0)
    parameters = (
        model.decoder.label_queries,
        model.decoder.label_outputs,
        model.decoder.label_bias,
    )
    before = [p.detach().clone() for p in parameters]
    config = TrainConfig(epochs=2, batch_size=8, unseen=unseen, loss=loss)
    train.fine_tune(
        model,
        ready.documents("train"),
        ready.documents("dev"),
        ready.train_counts,
        tmp_path,
        config=config,
        progress=False,
    )
    for old, new in zip(before, parameters, strict=True):
        new = new.detach().cpu()
        assert not torch.equal(old[~still], new[~still]), "the other labels learn"
        assert torch.equal(old[still], new[still]) == (unseen == "still")


def test_a_start_with_text_trains_with_labels_without_documents_still(ready, tmp_path, monkeypatch):
    monkeypatch.setenv("PLANT_HOME", str(tmp_path))
    unseen = ready.train_counts == 0
    _, model = runs.run_start(
        ready, "lookup+score+text", config=RunConfig(train=TrainConfig(epochs=1)), progress=False
    )
    assert (
        not model.decoder.label_outputs[unseen].any() and model.decoder.label_outputs[~unseen].any()
    )
    prior = starts.prior_log_odds(ready.train_labels)
    assert torch.equal(model.decoder.label_bias.detach().cpu()[unseen], prior[unseen])
    assert RunConfig().train_for(["lookup", "score"]).unseen == "negatives"


def test_texts_lie_beside_the_corpus_and_win_over_its_own(described, tmp_path, monkeypatch):
    monkeypatch.setenv("PLANT_HOME", str(tmp_path))
    folder = described.save(tmp_path / "tiny")
    by_name = dict(zip(described.label_names, label_texts.read(described), strict=True))
    assert by_name["rare tin"] == "tin" and by_name["lung"] is None
    write_label_texts(folder, {"rare tin": "tin. stannum", "lung": "", "unknown": "x"})
    read = dict(zip(described.label_names, label_texts.read(described), strict=True))
    assert (
        read["rare tin"] == "tin. stannum"
        and read["lung"] is None
        and read["heart"] == "of the heart"
    )
    assert Corpus.load(folder).fingerprint() == described.fingerprint(), (
        "label_texts.json must not change the corpus's fingerprint"
    )
    write_json(folder / LABEL_TEXTS_FILE, ["rare tin"])
    with pytest.raises(DataError, match="does not map label names to texts"):
        label_texts.read(described)


def test_scripts_write_inclusion_terms_and_other_names(tmp_path):
    codes = sources.script("clinical").with_inclusion_terms(
        {"i50.9": "Heart failure, unspecified", "none": "no code"}
    )
    assert codes["i50.9"].startswith(
        "Heart failure, unspecified. Cardiac, heart or myocardial failure NOS"
    )
    assert codes["none"] == "no code"
    write_json(
        tmp_path / "EURLEX57K.json",
        {"1107": {"label": "blue-veined cheese", "alt_labels": ["Stilton"]}, "5": "x"},
    )
    assert sources.script("get_eurlex57k").long_texts(tmp_path) == {
        "1107": "blue-veined cheese. Stilton",
        "5": "x",
    }
    write_json(
        tmp_path / "debtags_vocabulary.json", {"a::b": {"name": "B", "description": "About b."}}
    )
    assert sources.script("get_debtags").long_texts(tmp_path, {"c": "C"}) == {
        "c": "C",
        "a::b": "B. About b.",
    }


def test_what_was_measured_is_a_row_a_system(tmp_path):
    row = {"dataset": "a", "documents": {"train": 9}, "of_them_in_test": 3}
    values = dict.fromkeys(label_texts.SHOWN, 0.5)
    rows = [
        row | {"system": "bare MI", "seed": 0, "metrics": values | {"zero/r@15": None}},
        *(row | {"system": "lookup", "seed": s, "metrics": values | {"ndcg@5": s}} for s in (0, 1)),
    ]
    table = label_texts.measured(write_json(tmp_path / "zero_shot.json", {"rows": rows}))
    assert table.index.get_level_values("system").tolist() == ["bare MI", "lookup"] and table[
        "seeds"
    ].tolist() == [1, 2]
    assert table["ndcg@5"].tolist() == [50, 50] and np.isnan(table["zero/r@15"].iloc[0])
    assert not len(label_texts.measured(tmp_path / "none.json"))
