"""Phrases: words and places, the trie against a plain search, weights by hand, held-out counts."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from plantlib.data.corpus import Corpus
from plantlib.teacher import phrases
from plantlib.teacher.phrase_matching import Trie, phrase_of, words_of
from plantlib.teacher.phrases import Marks, teach
from plantlib.utils.base import DataError

# case, an accent in one character and in two, punctuation, an underscore, letters without spaces
TEXT = "Fiebre, no DOLOR-torácico; cefale\u0301a_2x 心不全"


def test_words_lose_case_accents_and_punctuation_and_keep_their_places():
    words, places = words_of(TEXT)
    expected = ["fiebre", "no", "dolor", "toracico", "cefalea", "2x", "心", "不", "全"]
    assert words == expected
    assert [TEXT[a:b] for a, b in places] == [
        *("Fiebre", "no", "DOLOR", "torácico", "cefale\u0301a", "2x", "心", "不", "全")
    ]
    assert phrase_of(TEXT) == tuple(expected)
    # the fast pattern and the one for all scripts find the same words
    plain = "Dolor_2x (torácico) l'été n.º 5"
    assert words_of(plain + " 全")[0][:-1] == words_of(plain)[0]


def test_stems_join_inflected_forms():
    assert phrase_of("Fracturas óseas", "stems") == phrase_of("fractura ósea", "stems")
    assert phrase_of("s", "stems") == ("s",)


def naive(phrase_list, texts, inner):
    """Document, phrase, first and last word of every match, by comparing at every place."""
    found = []
    for row, text in enumerate(texts):
        words = words_of(text)[0]
        own = [
            (row, number, at, at + len(phrase) - 1)
            for number, phrase in enumerate(phrase_list)
            for at in range(len(words))
            if tuple(words[at : at + len(phrase)]) == phrase
        ]
        held = [m for m in own if any(o != m and o[2] <= m[2] and m[3] <= o[3] for o in own)]
        found += [m for m in own if inner or m not in held]
    return sorted(found)


@pytest.mark.parametrize("inner", [True, False])
def test_the_trie_finds_what_a_plain_search_finds(inner, monkeypatch):
    rng = random.Random(0)
    texts = [" ".join(rng.choices("abcd", k=rng.randrange(12))) for _ in range(60)]
    chosen = sorted({tuple(rng.choices("abcde", k=rng.randrange(1, 5))) for _ in range(40)})
    trie = Trie.of(chosen)
    assert trie.phrases == chosen
    matches = trie.match(texts, inner)
    columns = (matches.document, matches.phrase, matches.first, matches.last)
    assert sorted(zip(*(c.tolist() for c in columns), strict=True)) == naive(chosen, texts, inner)
    for row, phrase, start, end in zip(
        matches.document, matches.phrase, matches.start, matches.end, strict=True
    ):
        assert phrase_of(texts[row][start:end]) == chosen[phrase]
    # batches do not change what is found
    monkeypatch.setattr("plantlib.teacher.phrase_matching.BATCH_WORDS", 7)
    again = trie.match(texts, inner)
    for name in matches.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(again, name), getattr(matches, name))


def test_a_phrase_does_not_go_on_into_the_next_document():
    assert not len(Trie.of([("a", "b")]).match(["x a", "b"]))


def test_a_trie_refuses_empty_and_repeated_phrases():
    with pytest.raises(ValueError, match="phrase 1 has no words"):
        Trie.of([("a",), ()])
    with pytest.raises(ValueError, match="twice"):
        Trie.of([("a",), ("a",)])
    assert not len(Trie.of([]).match(["a b"]))


# documents 0 and 1 mark fever for label 0, document 2 denies it, document 3 marks pain for label 1
TEXTS = ["High fever.", "FEVER and pain", "no fever", "chest pain"]
LABELS = sparse.csr_matrix([[1, 0], [1, 0], [0, 0], [0, 1]])
FEVER = Marks(np.array([0, 1, 3]), np.array([0, 0, 1]), [("fever",), ("fever",), ("pain",)])


def test_weights_shrink_for_phrases_that_also_stand_unmarked():
    teacher = teach(TEXTS, LABELS, marks=FEVER)
    assert teacher.phrases == [("fever",), ("pain",)]
    assert teacher.documents.tolist() == [3, 2]
    # fever: marked in 2 of 3 documents; pain: in 1 of 2
    np.testing.assert_array_equal(teacher.weights().toarray(), [[2 / 4, 0], [0, 1 / 3]])
    scores = teacher.scores(["Pain, fever, fever!", "none"]).toarray()
    np.testing.assert_allclose(scores, [[1 / 2, 1 / 3], [0, 0]], rtol=1e-12)


def test_two_phrases_of_a_label_add_up_as_chances_do():
    both = Marks(np.array([0, 0]), np.array([0, 0]), [("high", "fever"), ("fever",)])
    teacher = teach(TEXTS, LABELS, marks=both)
    # high fever: 1 of 1; fever: 1 of 3
    score = teacher.scores(["high fever"]).toarray()
    np.testing.assert_allclose(score, [[1 - (1 - 1 / 2) * (1 - 1 / 4), 0]], rtol=1e-12)


def test_training_documents_are_scored_by_counts_without_them():
    teacher = teach(TEXTS, LABELS, marks=FEVER)
    held_out = teacher.held_out_scores().toarray()
    for row in range(4):
        others = [i for i in range(4) if i != row]
        chosen = np.flatnonzero(FEVER.document != row)
        left = Marks(
            np.searchsorted(others, FEVER.document[chosen]),
            FEVER.label[chosen],
            [FEVER.phrases[i] for i in chosen],
        )
        without = teach([TEXTS[i] for i in others], LABELS[others], marks=left)
        expected = without.scores([TEXTS[row]]).toarray()[0]
        np.testing.assert_allclose(held_out[row], expected, rtol=1e-12)


def test_blocks_of_documents_change_nothing(monkeypatch):
    expected = teach(TEXTS, LABELS, marks=FEVER)
    monkeypatch.setattr(phrases, "BLOCK", 3)
    teacher = teach(TEXTS, LABELS, marks=FEVER)
    for made, wanted in (
        (teacher.scores(TEXTS), expected.scores(TEXTS)),
        (teacher.held_out_scores(), expected.held_out_scores()),
    ):
        assert wanted.nnz and (made != wanted).nnz == 0
    assert teacher.scores([]).shape == (0, 2)


def test_label_texts_are_one_more_document_that_marks_them():
    teacher = teach(TEXTS, LABELS, label_texts=[["fever"], ["Chest pain", "angina"]])
    weights = dict(zip(teacher.phrases, teacher.weights().toarray().tolist(), strict=True))
    # angina is in no document; chest pain in one that carries the label; fever in 3, 2 carry it
    assert weights[("angina",)] == [0, 1 / 2]
    assert weights[("chest", "pain")] == [0, 2 / 3]
    assert weights[("fever",)] == [3 / 5, 0]


def test_n_grams_that_repeat_and_go_with_a_label_are_mined():
    texts = ["atrial fibrillation today", "old atrial fibrillation", "today old", "old today"]
    labels = sparse.csr_matrix([[1], [1], [0], [0]])
    teacher = teach(texts, labels, ngrams=8)
    assert ("atrial", "fibrillation") in teacher.phrases
    assert ("fibrillation", "today") not in teacher.phrases  # in one document only
    assert ("old",) not in teacher.phrases  # its documents carry the label less often
    assert set(teacher.source) == {2}
    p = teacher.weights()[teacher.phrases.index(("atrial", "fibrillation"))].toarray()
    np.testing.assert_array_equal(p, [[2 / 3]])


def test_shared_counters_change_nothing(monkeypatch):
    expected = phrases.mined(TEXTS, LABELS, 8)
    monkeypatch.setattr(phrases, "COUNTERS", 1)
    assert sorted(phrases.mined(TEXTS, LABELS, 8)) == sorted(expected)
    assert expected


def test_a_span_takes_all_words_that_it_touches():
    text = "A small, left-sided hernia."
    start = np.array([text.index("mall"), 0, text.index(","), text.index("sided")])
    end = np.array([text.index("left") + 2, 1, text.index(",") + 1, len(text)])
    rows = np.zeros(4, np.int64)
    marks = Marks.of_spans([text], rows, np.arange(4), start, end)
    assert marks.phrases == [("small", "left"), ("a",), ("sided", "hernia")]
    assert marks.label.tolist() == [0, 1, 3]  # the comma alone is no phrase


def test_a_corpus_gives_evidence_of_its_training_documents_alone():
    frame = pd.DataFrame(
        [
            ("a", "R50", 5, 10, "fever"),
            ("b", "R50", 0, 5, "FEVER"),
            ("d", "R07", 6, 10, "pain"),
            ("e", "R07", 0, 4, "sore"),
            ("f", "R50", 0, 3, "hot"),
        ],
        columns=["id", "label", "start", "end", "text"],
    )
    labels = [["R50"], ["R50"], [], ["R07"], ["R07"], ["R50"]]
    split = ["train"] * 4 + ["dev", "test"]
    texts = [*TEXTS, "sore chest", "hot and cold"]
    parts = {"evidence": frame, "label_texts": {"R07": "Angina"}}
    corpus = Corpus.from_lists("tiny", list("abcdef"), texts, labels, split, **parts)
    teacher = phrases.of_corpus(corpus)
    assert teacher.phrases == [("angina",), ("fever",), ("pain",)]
    weights = teacher.weights().toarray()
    np.testing.assert_array_equal(weights, [[1 / 2, 0], [0, 2 / 4], [1 / 3, 0]])
    # other evidence of dev and test changes nothing, not even where it is out of place
    frame.loc[3:, "label"] = frame.loc[3:, "label"].to_numpy()[::-1]
    frame.loc[3:, "end"] = 999
    again = phrases.of_corpus(dataclasses.replace(corpus, evidence=frame))
    assert again.phrases == teacher.phrases
    np.testing.assert_array_equal(again.weights().toarray(), weights)


def test_teach_refuses_what_does_not_fit():
    with pytest.raises(DataError, match="no phrase to teach"):
        teach(TEXTS, LABELS)
    with pytest.raises(ValueError, match="4 texts and 1 rows"):
        teach(TEXTS, LABELS[:1], marks=FEVER)
    with pytest.raises(ValueError, match="texts of 1 labels for 2"):
        teach(TEXTS, LABELS, label_texts=[["fever"]])
    with pytest.raises(ValueError, match="form='letters'"):
        teach(TEXTS, LABELS, marks=FEVER, form="letters")
