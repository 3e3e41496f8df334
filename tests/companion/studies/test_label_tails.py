"""Label sets that are generated to published sizes, and what is measured on them."""

from __future__ import annotations

import numpy as np
import pytest

from companion.studies import label_tails, questions
from companion.studies.label_tails import Size


@pytest.mark.parametrize("name", label_tails.SIZES)
def test_a_generated_set_has_the_published_sizes(name):
    size = label_tails.scaled(label_tails.SIZES[name], 0.01)
    wanted = label_tails.documents_per_label(size)
    assert wanted.min() == pytest.approx(1) and (np.diff(wanted) < 0).all()
    assert wanted.sum() == pytest.approx(size.documents * size.mean, rel=1e-6)
    counts, y = label_tails.generated(size, np.random.default_rng(0))
    assert y.shape == (size.documents + label_tails.HELD_OUT, size.labels)
    # a label that a document draws twice is one label of it
    assert 0.9 * size.mean < y.nnz / y.shape[0] < 1.02 * size.mean
    assert np.diff(y.indptr).min() == 1 and (y.sum(0) > 0).mean() > 0.99
    assert counts.shape[0] == y.shape[0] and np.diff(counts.indptr).min() > 0


def test_lists_find_labels_by_their_words_and_not_by_others(monkeypatch):
    size = Size(600, 150, 2.0, 5)
    monkeypatch.setattr(label_tails, "HELD_OUT", 100)
    monkeypatch.setattr(label_tails, "WIDTHS", (5, 128))
    found = label_tails.measure(size, np.random.default_rng(0))
    assert found["train_documents"] == 600 and 0 < found["labels_of_few"] < 150
    assert found["recall"]["all"]["5"] > 0.5 and found["step_ms"] > 0
    assert set(found["seconds"]) == {"generate", "count", "lists of words", "rank"}
    words_of = label_tails.words_of

    def unlike(row, label, *rest):
        return words_of(row, np.zeros_like(label), *rest)

    monkeypatch.setattr(label_tails, "words_of", unlike)
    without = label_tails.measure(size, np.random.default_rng(0))
    assert without["recall"]["all"]["5"] < 0.5 * found["recall"]["all"]["5"]


def test_the_answer_states_what_was_run_and_what_was_not(tmp_path, monkeypatch):
    small = Size(600, 150, 2.0, 5)
    monkeypatch.setattr(label_tails, "SIZES", {"Small": small, "Other": small})
    monkeypatch.setattr(label_tails, "HELD_OUT", 100)
    label_tails.run(["Small"], results=tmp_path)
    answer, runs = questions.label_sets(tmp_path)
    assert "**Small** (600 documents, 150 labels)" in answer and "Not run: Other." in answer
    assert runs == "labels-small"
    # a trial with a part of the documents is no answer
    label_tails.run(["Small"], share=0.5, results=tmp_path)
    assert "Not run yet" in questions.label_sets(tmp_path)[0]
