"""Names of codes in sentences: coverage and mass by hand, and codes that no document was given."""

import numpy as np
import pytest
from scipy import sparse

from companion.studies import official, official_names

TEXTS = ["He had pneumonia. A fracture of the left femur was seen.", "Fracture femur.", "Nothing."]
NAMES = [("Fractures of femur", "Broken thigh"), ("Typhoid pneumonia",), ()]


def test_coverage_and_mass_are_those_of_the_best_sentence_and_text():
    coverage, mass = official_names.matches(TEXTS, np.array([0, 2]), NAMES)
    # three sentences are read; each stem of the names stands in one of them or in none
    one, none = np.log(4 / 2), np.log(4 / 1)
    np.testing.assert_allclose(coverage[0], [1, one / (one + none), 0], rtol=1e-6)
    np.testing.assert_allclose(mass[0, :2], [2 * one, one - none], rtol=1e-6)
    np.testing.assert_allclose(coverage[1], [1, 0, 0])
    assert mass[2, 2] == official_names.NOTHING and mass[2, 0] == pytest.approx(-2 * one)


def test_the_best_codes_of_each_document_are_picked_among_those_allowed():
    mass = np.array([[5.0, 1.0, 0.0, 2.0], [0.0, 1.0, 9.0, 2.0]])
    allowed = np.array([False, True, True, True])
    assert official_names.best_of(mass, allowed).tolist() == [1, 2, 3]


def test_a_code_without_a_training_document_is_found_by_its_name(monkeypatch):
    words = [f"{chr(97 + i // 26)}{chr(97 + i % 26)}itis" for i in range(40)]
    texts = [f"case {i} with {words[i % 40]} today" for i in range(240)]
    labels = sparse.csr_matrix((np.ones(240), (np.arange(240), np.arange(240) % 40)), (240, 40))
    # the last ten codes have no training document; singletons teach what a name is worth
    rare = np.flatnonzero((np.arange(240) % 40 >= 20) & (np.arange(240) >= 40))
    keep = np.setdiff1d(np.arange(200), rare[rare < 200])
    train = keep[keep % 40 < 30]
    empty = {name: np.zeros(0, int) for name in ("document", "label", "start", "end", "mention")}
    split = np.array(["train"] * 240)
    data = official.Data(texts, texts, labels, split, empty, [f"c{i}" for i in range(40)])
    names = {f"c{i}": (word,) for i, word in enumerate(words)} | {"x": ("unheard of",)}
    monkeypatch.setattr(official_names, "terminology", lambda: names)
    found, terms, named = official.with_names(data, train)
    assert found.names[:40] == data.names and found.labels.shape[1] == len(found.names)
    assert (found.labels[:, :40] != labels).nnz == 0 and found.labels[:, 40:].nnz == 0
    assert named[:40].all()
    fold = np.arange(len(train)) % 5
    test = np.arange(30, 40)
    scores = official.boosted(terms, found.labels, train, fold, test, 0, named)
    assert (scores[:, :40].argmax(1) == test).all()
