"""The cross-fitted teacher: a training document's own lists, counted without it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import sparse

from plantlib.teacher import label_texts
from plantlib.teacher.crossfit import withhold
from plantlib.teacher.mig import Teacher, TeacherConfig, teach


def random_corpus(seed: int, documents: int = 14, tokens: int = 20, labels: int = 6):
    """Presence of tokens and labels; some labels have one document, one has all."""
    rng = np.random.default_rng(seed)
    x = sparse.csr_matrix((rng.random((documents, tokens)) < 0.25).astype(int))
    y = (rng.random((documents, labels)) < 0.3).astype(int)
    y[:, 0] = 0
    y[3, 0] = 1
    y[:, 1] = 1
    return x, sparse.csr_matrix(y)


def seen_by(i: int, x, y, teacher: Teacher, withheld) -> tuple[np.ndarray, np.ndarray]:
    """Relevance and scores (own labels, own tokens) that document i reads in training."""
    tokens, labels, relevance, scores = withheld.document(i)
    seen = []
    for table, change in ((teacher.relevance, relevance), (teacher.scores, scores)):
        values = table.toarray().astype(np.float32)
        values[labels, tokens] += change
        seen.append(values[np.ix_(y[i].indices, x[i].indices)])
    return seen[0], seen[1]


@pytest.mark.parametrize("variant", ["raw", "jaccard", "label_entropy", "chi2", "ppmi"])
@pytest.mark.parametrize("relevance", ["score", "grade"])
@pytest.mark.parametrize("top_k", [3, 64])
def test_it_equals_counting_again_without_the_document(variant, relevance, top_k):
    config = TeacherConfig(variant, top_k, relevance)
    for seed in range(3):
        x, y = random_corpus(seed)
        teacher = teach(x, y, **config.counting)
        withheld = withhold(x, y, teacher, config)
        for i in range(x.shape[0]):
            others = np.arange(x.shape[0]) != i
            again = teach(x[others], y[others], **config.counting)
            place = np.ix_(y[i].indices, x[i].indices)
            # the change is a difference of float32 numbers: one rounding
            bound = np.finfo(np.float32).eps * max(1.0, float(again.scores.max()))
            for seen, table in zip(
                seen_by(i, x, y, teacher, withheld), (again.relevance, again.scores), strict=True
            ):
                wanted = table.toarray().astype(np.float32)[place]
                np.testing.assert_allclose(seen, wanted, rtol=0, atol=bound)
                assert ((seen == 0) == (wanted == 0)).all()


def test_blocks_of_labels_do_not_change_it():
    x, y = random_corpus(0)
    teacher = teach(x, y)
    whole, blocks = (withhold(x, y, teacher, memory_mb=mb) for mb in (256, 0.001))
    for name in ("indptr", "tokens", "labels", "relevance", "scores"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(blocks, name))


def test_a_label_with_one_document_teaches_that_document_nothing():
    x, y = random_corpus(0)
    teacher = teach(x, y)
    relevance, scores = seen_by(3, x, y, teacher, withhold(x, y, teacher))
    assert teacher.relevance[0, x[3].indices].nnz > 0
    assert not relevance[0].any() and not scores[0].any()


def test_other_labels_and_documents_read_the_teacher_as_it_is():
    x, y = random_corpus(1)
    withheld = withhold(x, y, teach(x, y))
    for i in range(x.shape[0]):
        tokens, labels, *_ = withheld.document(i)
        assert set(labels) <= set(y[i].indices) and set(tokens) <= set(x[i].indices)


def test_words_of_label_texts_stay_and_what_was_counted_goes():
    x, y = random_corpus(2)
    rng = np.random.default_rng(2)
    text = sparse.csr_matrix((rng.random((y.shape[1], x.shape[1])) < 0.2).astype(int))
    words = label_texts.teach(text, x, variant="raw", top_k=4, relevance="score")
    config = TeacherConfig(top_k=4)
    options = {"top_k": 4, "relevance": "score", "vocabulary": 20}
    both = label_texts.joined(teach(x, y, **config.counting), words, **options)
    withheld = withhold(x, y, both, config, words)
    for i in range(x.shape[0]):
        others = np.arange(x.shape[0]) != i
        again = label_texts.joined(teach(x[others], y[others], top_k=4), words, **options)
        place = np.ix_(y[i].indices, x[i].indices)
        seen, _ = seen_by(i, x, y, both, withheld)
        np.testing.assert_allclose(seen, again.relevance.toarray()[place], atol=1e-6)


def test_cells_of_a_batch_lie_at_every_place_of_their_token():
    x, y = random_corpus(3)
    teacher = teach(x, y)
    withheld = withhold(x, y, teacher)
    batch = [5, 0, 9]
    # every token twice, the second time in reverse order
    texts = [np.concatenate([x[i].indices, x[i].indices[::-1]]) for i in batch]
    ids = np.concatenate(texts)
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
    cells = withheld.cells(batch, ids, offsets)
    assert (np.diff(cells["cell_labels"]) >= 0).all()
    found = sorted(zip(*(cells[name].tolist() for name in cells), strict=True))
    wanted = []
    for b, i in enumerate(batch):
        for token, label, value, _ in zip(*withheld.document(i), strict=True):
            places = offsets[b] + np.flatnonzero(texts[b] == token)
            wanted += [(int(p), int(label), float(value)) for p in places]
    assert len(found) == 2 * sum(len(withheld.document(i)[0]) for i in batch) > 0
    assert found == sorted(wanted)


def test_the_shuffled_control_moves_what_is_withheld_with_its_list():
    x, y = random_corpus(4)
    teacher = teach(x, y)
    order = teacher.shuffled_order(0)
    withheld = withhold(x, y, teacher)
    moved = withheld.relabelled(order)
    for name, values in withheld.score_changes(range(x.shape[0])).items():
        assert (moved.score_changes(range(x.shape[0]))[name] == values).all(), "scores stay"
    shuffled = teacher.shuffled(0)
    for i, j in itertools.product(range(x.shape[0]), range(y.shape[1])):
        others = np.arange(x.shape[0]) != i
        again = teach(x[others], y[others]).relevance[order[j]].toarray()[0]
        if not y[i, order[j]]:
            continue
        tokens, labels, relevance, _ = moved.document(i)
        seen = shuffled.relevance[j].toarray()[0]
        seen[tokens[labels == j]] += relevance[labels == j]
        np.testing.assert_allclose(seen[x[i].indices], again[x[i].indices], atol=1e-6)
