"""The official protocol of CodiEsp: measures by hand, mentions, and evidence that is never read."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from companion.studies import official, official_names
from plantlib.teacher import phrases as counted
from plantlib.teacher.phrases import Marks
from plantlib.utils.io import write_json

CODES = {"fever": 0, "cough": 1, "chest pain": 2, "old fracture": 3}


def test_average_precision_counts_gold_codes_that_are_not_ranked():
    scores = np.array([[3.0, 2.0, 1.0, official.ABSENT], [0.0, 0.0, 0.0, 0.0]])
    labels = sparse.csr_matrix([[1, 0, 1, 1], [0, 0, 0, 0]])
    first, second = official.average_precisions(scores, labels)
    # found at places 1 and 3, the third gold code never
    assert first == pytest.approx((1 / 1 + 2 / 3) / 3)
    assert np.isnan(second)


def test_the_threshold_is_the_one_with_the_best_micro_f1():
    scores = np.array([[0.9, 0.8, 0.1], [0.7, 0.3, 0.2]])
    labels = sparse.csr_matrix([[1, 0, 0], [1, 1, 0]])
    threshold = official.best_threshold(scores, labels)
    assert 0.2 < threshold < 0.3
    # three of four above it are right, of three
    assert official.micro_f1(scores, labels, threshold) == pytest.approx(2 * 3 / (4 + 3))


def test_pieces_are_joined_and_parted():
    phrases = [("left", "kidney", "stone"), ("pain",), ("acute",)]
    marks = Marks(np.array([0, 1, 1]), np.array([5, 6, 6]), phrases)
    whole = official.joined(marks, np.array([10, 11, 11]))
    assert whole.phrases == [("left", "kidney", "stone"), ("pain", "acute")]
    assert whole.document.tolist() == [0, 1] and whole.label.tolist() == [5, 6]
    found = counted.parts(whole)
    assert found.phrases[:5] == [
        ("left",),
        ("left", "kidney"),
        ("kidney",),
        ("kidney", "stone"),
        ("stone",),
    ]
    assert found.label.tolist() == [5] * 5 + [6] * 2


def tiny() -> official.Data:
    """36 train, 12 dev and 12 test documents whose phrases are marked, some also denied."""
    rng = random.Random(0)
    texts, rows, columns, spans = [], [], [], []
    for i in range(60):
        own = rng.sample(list(CODES), rng.choice((1, 2)))
        text = f"case {i % 7}"
        for name in own:
            text += " with "
            spans.append((i, CODES[name], len(text), len(text) + len(name), len(spans)))
            text += name
            rows.append(i)
            columns.append(CODES[name])
        denied = rng.choice([name for name in CODES if name not in own])
        texts.append(text + f" but no {denied}" * rng.choice((0, 1)))
    labels = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), (60, len(CODES)))
    split = np.array(["train"] * 36 + ["dev"] * 12 + ["test"] * 12)
    names = ("document", "label", "start", "end", "mention")
    of_names = dict(zip(names, np.array(spans).T, strict=True))
    return official.Data(texts, texts, labels, split, of_names, list(CODES))


@pytest.fixture
def data(monkeypatch) -> official.Data:
    made = tiny()
    monkeypatch.setattr(official, "load", lambda task: made)
    return made


@pytest.mark.parametrize("supervision", official.SUPERVISIONS["D"])
def test_a_supervision_is_measured_with_and_without_dev(data, supervision, monkeypatch):
    texts = {name: (name,) for name in CODES} | {"z99": ("a code of nobody",)}
    monkeypatch.setattr(official_names, "terminology", lambda: texts)
    found = official.measure("D", supervision, [0], True)
    assert [row["documents"] for row in found["rows"]] == [36, 48]
    assert found["rows"][0]["threshold"] == found["rows"][1]["threshold"]
    # by chance the mean would be about one half
    assert all(row["map"] > 0.8 for row in found["rows"])
    assert ("pieces" in found["terms"]) == (not supervision.startswith("codes"))
    assert ("coverage" in found["terms"]) == supervision.endswith("names")


def test_evidence_of_dev_and_test_is_never_read(data, monkeypatch):
    expected = official.measure("D", "spans", [0], True)["rows"]
    later = np.flatnonzero(data.spans["document"] >= 48)
    spans = {name: values.copy() for name, values in data.spans.items()}
    spans["label"][later] = np.random.default_rng(0).permutation(spans["label"][later])
    spans["end"][later] = spans["start"][later] + 1
    monkeypatch.setattr(official, "load", lambda task: replace(data, spans=spans))
    assert official.measure("D", "spans", [0], True)["rows"] == expected
    # dev is read where it joins the training documents, and only there
    dev = np.flatnonzero((data.spans["document"] >= 36) & (data.spans["document"] < 48))
    spans["label"][dev] = (spans["label"][dev] + 1) % len(CODES)
    changed = official.measure("D", "spans", [0], True)["rows"]
    assert changed[0] == expected[0] and changed[1] != expected[1]


def test_the_table_has_published_rows_and_means_of_ours(tmp_path):
    (tmp_path / official.PUBLISHED).write_text(
        "task,documents,system,supervision,map,micro_f1,source\nD,750,theirs,spans,0.6,,paper\n"
    )
    rows = [
        {"documents": 750, "seed": seed, "map": value, "micro_f1": 0.7}
        for seed, value in enumerate((0.65, 0.67))
    ]
    found = {"task": "D", "supervision": "spans", "terms": ["pieces"], "rows": rows}
    write_json(official.file_of(tmp_path, "D", "spans"), found)
    lines = official.table(tmp_path).splitlines()
    assert "ours, 2 seeds" in lines[2] and "| 66.0 |" in lines[2] and "| 70.0 |" in lines[2]
    assert "theirs" in lines[3] and "| 60.0 |" in lines[3] and "| - |" in lines[3]
