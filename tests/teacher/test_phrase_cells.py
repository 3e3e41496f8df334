"""Planted cells of phrases: tokens that a match touches, overlaps, and what is counted without a
training document.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy import sparse

from plantlib.backbones.words import WordTokenizer
from plantlib.teacher import phrases
from plantlib.teacher.phrase_cells import DocumentCells, PhraseList, places_of
from plantlib.teacher.phrases import Marks, teach
from tests.conftest import tiny_tokenizer

# "chest pain" is marked for label 0, "pain" for label 1; document 2 denies pain
TEXTS = ["chest pain", "pain, chest pain", "no pain"]
LABELS = sparse.csr_matrix([[1, 0], [1, 1], [0, 0]])
MARKS = Marks(np.array([0, 1, 1]), np.array([0, 0, 1]), [("chest", "pain")] * 2 + [("pain",)])


@pytest.fixture
def teacher():
    return teach(TEXTS, LABELS, marks=MARKS)


def dense(cells: DocumentCells, document: int, tokens: int) -> np.ndarray:
    """(tokens, 2) values of one document."""
    own = cells.select([document])
    table = np.zeros((tokens, 2))
    table[own.tokens, own.labels] = own.values
    return table


def test_every_token_that_a_match_touches_has_the_largest_weight(teacher):
    text = "Pain and chest  pain"
    tokenizer = tiny_tokenizer()
    [places] = places_of(tokenizer, [text])
    said = PhraseList.of(teacher).said([text])
    # chest pain: marked in 2 of 2 documents; pain: in 1 of 3
    whole, part = 2 / 3, 1 / 4
    doubled = said._replace(value=said.value / 2)
    cells = DocumentCells.of([doubled, said], [places], 2)
    table = dense(cells, 0, len(places.token))
    pains = [match.span() for match in re.finditer("pain", text.lower())]
    for (begin, end), values in zip(places.spans, table, strict=True):
        in_whole = begin >= text.index("chest")
        in_pain = any(first <= begin and end <= behind for first, behind in pains)
        np.testing.assert_allclose(values, [whole * in_whole, part * in_pain], rtol=1e-6)
    batch = cells.batch(np.array([3, 3 + len(places.token)]))
    assert (np.diff(batch["cell_labels"]) >= 0).all()
    np.testing.assert_array_equal(np.sort(batch["cell_positions"]), np.sort(cells.tokens + 3))


def test_words_without_places_of_their_own_share_the_token_of_their_word():
    tokenizer = WordTokenizer(["pain", "chest", "knee"])
    [places] = places_of(tokenizer, ["knee pain, chest pain"])
    assert places.token.tolist() == [0, 1, 2, 1]
    [short] = places_of(tokenizer, ["knee pain, chest pain"], 2)
    assert short.token.tolist() == [0, 1, 1]


def test_what_is_said_of_a_training_document_has_not_counted_it(teacher):
    said = PhraseList.of(teacher).said(TEXTS, teacher.held_out)
    np.testing.assert_allclose(
        said.scores((3, 2)).toarray(), teacher.held_out_scores().toarray(), rtol=1e-12
    )
    for left in range(3):
        others = [i for i in range(3) if i != left]
        kept = np.flatnonzero(MARKS.document != left)
        marks = Marks(
            np.searchsorted(others, MARKS.document[kept]),
            MARKS.label[kept],
            [MARKS.phrases[i] for i in kept],
        )
        again = teach([TEXTS[i] for i in others], LABELS[others], marks=marks)
        wanted = again.scores([TEXTS[left]]).toarray()[0]
        np.testing.assert_allclose(said.scores((3, 2)).toarray()[left], wanted, rtol=1e-6)


def test_parts_of_mentions_leave_out_short_words():
    whole = Marks(np.array([0]), np.array([1]), [("pain", "in", "knee")])
    found = set(phrases.parts(whole).phrases)
    assert found == {("pain",), ("knee",), ("pain", "in"), ("in", "knee")}
