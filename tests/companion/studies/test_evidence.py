"""Attention compared with evidence: measures worked out by hand, pairs, report and command.

The tiny corpus marks its theme words, and the command runs on it with the tiny backbone in seconds.
The report holds numbers only, and no training document is read.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from companion.report import plots
from companion.studies import evidence
from plantlib import prepare
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.utils.base import DataError
from tests.conftest import THEMES, tiny_corpus


def marked_corpus():
    """The tiny corpus with every theme word marked as evidence of its label."""
    corpus = tiny_corpus()
    rows = []
    for i, text in enumerate(corpus.texts):
        for j in corpus.labels[i].indices:
            name = corpus.label_names[j]
            at = 0
            for word in text.split():
                at = text.index(word, at)
                if word in THEMES[name]:
                    rows.append((corpus.ids[i], name, at, at + len(word), word))
                at += len(word)
    return replace(
        corpus, evidence=pd.DataFrame(rows, columns=["id", "label", "start", "end", "text"])
    )


@pytest.fixture(scope="module")
def marked(backbone_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("evidence")
    return prepare(
        marked_corpus(), backbone=backbone_folder, max_tokens=None, root=root, progress=False
    )


@pytest.mark.parametrize(
    "weights, marks, auc, precision, iou",
    [
        ([0.5, 0.3, 0.2, 0.0], [1, 1, 0, 0], 1.0, 1.0, 0.8 / 1.2),
        ([0.5, 0.5, 0.0, 0.0], [1, 1, 0, 0], 1.0, 1.0, 1.0),
        ([0.0, 0.0, 0.5, 0.5], [1, 1, 0, 0], 0.0, 0.0, 0.0),
        # marked 3rd and 1st of 4: two of four pairs won, and one tie with an unmarked token
        ([0.4, 0.2, 0.2, 0.2], [1, 0, 1, 0], 0.75, 0.5 + 0.5 / 3, 0.6 / 1.4),
        ([0.25] * 4, [1, 0, 0, 0], 0.5, 0.25, 0.25 / 1.75),
        # no weight at all
        ([0.0] * 4, [1, 0, 0, 0], 0.5, 0.25, 0.25 / 1.75),
    ],
)
def test_measures_by_hand(weights, marks, auc, precision, iou):
    measures = evidence.agreement(np.array(weights), np.array(marks, bool))
    assert measures == {
        "auc": pytest.approx(auc),
        "precision": pytest.approx(precision),
        "iou": pytest.approx(iou),
    }


def test_auc_equals_that_of_scikit_learn():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    weights = rng.integers(0, 5, 50) / 5
    marks = rng.random(50) < 0.2
    assert evidence.agreement(weights, marks)["auc"] == pytest.approx(roc_auc_score(marks, weights))


def test_without_both_kinds_of_token_there_is_no_measure():
    for marks in ([False, False], [True, True], []):
        assert all(
            np.isnan(v)
            for v in evidence.agreement(np.ones(len(marks)), np.array(marks, bool)).values()
        )


def test_tokens_that_share_a_character_are_marked():
    spans = [(0, 3), (4, 10), (10, 11), (12, 14)]
    assert evidence.token_marks(spans, [(3, 5), (10, 12)]).tolist() == [False, True, True, False]
    assert (
        evidence.token_marks(spans, []).tolist() == [False] * 4
        and evidence.token_marks([], [(0, 1)]).tolist() == []
    )


def test_pairs_are_of_the_split_and_point_at_the_words(marked):
    corpus = marked.corpus
    pairs = list(evidence.pairs(marked, "test"))
    assert {row for row, *_ in pairs} <= set(corpus.rows("test")) and len(pairs) > 15
    for row, columns, marks in pairs:
        for column, marked_tokens in zip(columns, marks, strict=True):
            words = {marked.vocabulary[t] for t in marked.tokens[row][marked_tokens]}
            assert words and words <= set(THEMES[corpus.label_names[column]])
            assert column in corpus.labels[row].indices
    with pytest.raises(DataError, match="split='train': use dev or test"):
        next(evidence.pairs(marked, "train"))
    with pytest.raises(DataError, match="tiny marks no evidence"):
        next(evidence.pairs(replace(marked, corpus=tiny_corpus()), "test"))


def test_only_evidence_in_the_tokens_read_counts(marked):
    first = marked.tokens.from_lists([marked.tokens[i][:3] for i in range(len(marked.tokens))])
    short = replace(marked, max_tokens=3, tokens=first)
    for row, columns, marks in evidence.pairs(short, "test"):
        assert (
            marks.shape == (len(columns), min(3, len(marked.tokens[row])))
            and marks.any(1).all()
            and not marks.all(1).any()
        )


@pytest.fixture(scope="module")
def report(marked):
    config = RunConfig(train=TrainConfig(epochs=1))
    return evidence.report(marked, [0, 1], "test", config, progress=False)


def test_the_report_shows_planting_and_holds_no_text(report, marked):
    mean = {system: buckets["all"] for system, buckets in report["mean"].items()}
    assert (
        mean["lookup, before training"]["auc"]
        > 0.9
        > 0.65
        > mean[evidence.RANDOM_BEFORE]["auc"]
        > 0.35
    )
    assert mean[evidence.TEACHER]["auc"] > 0.9 and mean["shuffled, before training"]["auc"] < 0.75
    assert {"random, after training", "lookup, after training", "l2r, after training"} <= set(mean)
    difference = report["difference"][evidence.RANDOM_BEFORE]["lookup, before training"]["auc"]
    assert difference["low"] > 0.2
    text = json.dumps(report, allow_nan=False)
    assert not any(f'"{word}"' in text for words in THEMES.values() for word in words)
    assert (
        report["pairs"]["documents"] <= 20
        and report["seeds"] == [0, 1]
        and report["dataset"]["test"] == 20
    )


def test_a_second_report_reads_the_trained_decoders(report, marked, monkeypatch):
    from plantlib.training import runs

    monkeypatch.setattr(runs, "run_start", lambda *a, **k: pytest.fail("trained again"))
    again = evidence.report(
        marked, [0, 1], "test", RunConfig(train=TrainConfig(epochs=1)), progress=False
    )
    assert again["mean"] == report["mean"] and again["difference"] == report["difference"]


def test_the_figure_has_a_row_per_system(report):
    table = evidence.table(report)
    ax = plots.evidence_agreement(
        table[table["bucket"] == "all"], chance=report["pairs"]["chance precision"]
    )
    assert len(ax.get_yticklabels()) == table["system"].nunique() == 8
    with pytest.raises(ValueError, match="expected rows with"):
        plots.evidence_agreement(table.drop(columns="auc"))


def test_a_corpus_without_evidence_is_one_line(tmp_path, capsys, backbone_folder, monkeypatch):
    folder = tiny_corpus().save(tmp_path / "tiny")
    monkeypatch.setattr("plantlib.training.artefacts.root_of", lambda root=None: tmp_path)
    status = evidence.main(
        ["--dataset", str(folder), "--backbone", backbone_folder, "--out", str(tmp_path / "e.json")]
    )
    assert status == 1 and "marks no evidence" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "e.json").exists()
