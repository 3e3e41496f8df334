"""Rules of label sets against brute force, and the promised recall against its definition and on
documents that were held out.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import sparse

from plantlib.metrics import choosing
from plantlib.metrics.documents import Scores, evaluate
from plantlib.metrics.label_rules import LabelRule, place_terms
from plantlib.metrics.topk import TopK

LABELS = 12


def drawn(documents: int, seed: int = 0) -> tuple[np.ndarray, sparse.csr_matrix]:
    """Logits and gold labels whose best cut differs from label to label; ties occur."""
    rng = np.random.default_rng(seed)
    shift = rng.normal(size=LABELS)
    truth = rng.normal(size=(documents, LABELS)) + np.linspace(-2, 0.5, LABELS)
    gold = (truth > 0).astype(int)
    gold[0] = 0
    scores = np.round(truth + shift + rng.normal(size=truth.shape), 1).astype(np.float32)
    return scores, sparse.csr_matrix(gold)


def f1(accepted: np.ndarray, gold: np.ndarray, by: str) -> float:
    """F1 by its definition on dense matrices."""
    right = accepted * gold
    if by == "micro_f1":
        return 2 * right.sum() / (accepted.sum() + gold.sum())
    axis = 0 if by == "macro_f1" else 1
    total = accepted.sum(axis) + gold.sum(axis)
    each = np.where(total > 0, 2 * right.sum(axis) / np.maximum(total, 1), 1.0)
    return float(each[gold.sum(0) > 0].mean() if by == "macro_f1" else each.mean())


@pytest.fixture(scope="module")
def documents():
    scores, gold = drawn(300)
    return scores, TopK.from_dense(scores, LABELS), gold


@pytest.mark.parametrize("by", choosing.METRICS)
def test_no_other_threshold_is_better(documents, by):
    scores, topk, gold = documents
    rule = choosing.choose(topk, gold, "threshold", by)
    dense = gold.toarray()
    assert rule.value == pytest.approx(f1(scores >= rule.threshold, dense, by))
    best = max(f1(scores >= cut, dense, by) for cut in np.unique(scores))
    assert rule.value == pytest.approx(best)


@pytest.mark.parametrize("by", choosing.METRICS)
def test_no_other_budget_is_better(documents, by):
    scores, topk, gold = documents
    rule = choosing.choose(topk, gold, "budget", by)
    values = []
    for size in range(1, LABELS + 1):
        best = LabelRule("budget", budget=size).accepts(scores)
        assert (best.sum(1) == size).all()
        values.append(f1(best, gold.toarray(), by))
    assert rule.budget == 1 + int(np.argmax(values))
    assert rule.value == pytest.approx(max(values))


def test_the_own_threshold_of_a_label_is_its_best(documents):
    scores, topk, gold = documents
    dense = gold.toarray()
    own = choosing._own(topk, gold, "macro_f1", 0.0, -9.0)
    for j in range(LABELS):
        column = dense[:, [j]]
        values = [f1(scores[:, [j]] >= cut, column, "micro_f1") for cut in np.unique(scores[:, j])]
        assert f1(scores[:, [j]] >= own[j], column, "micro_f1") == pytest.approx(max(values))
    pooled = 0.6
    own = choosing._own(topk, gold, "micro_f1", pooled, -9.0)
    for j in range(LABELS):
        added = [
            2 * (dense[:, j] * (scores[:, j] >= cut)).sum() - pooled * (scores[:, j] >= cut).sum()
            for cut in (*np.unique(scores[:, j]), own[j], np.inf)
        ]
        assert added[-2] == pytest.approx(max(added))


def test_thresholds_of_labels_gain_where_labels_differ_and_lose_little_where_they_do_not():
    scores, gold = drawn(3000)
    held_scores, held = drawn(3000, seed=0)[0][1500:], gold[1500:].toarray()
    topk = TopK.from_dense(scores[:1500], LABELS)
    for by in ("micro_f1", "macro_f1"):
        one = choosing.choose(topk, gold[:1500], "threshold", by)
        each = choosing.choose(topk, gold[:1500], "labels", by)
        better = f1(each.accepts(held_scores), held, by)
        assert better > f1(one.accepts(held_scores), held, by) + 0.01
        # the value of dev comes from held-out folds, so that other documents keep it
        assert each.value == pytest.approx(better, abs=0.02)
    # labels that do not differ, in few documents: own thresholds are chance and cost little
    lost = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        truth = rng.normal(size=(1060, LABELS)) - 1
        gold = (truth > 0).astype(int)
        scores = (truth + rng.normal(size=truth.shape)).astype(np.float32)
        topk = TopK.from_dense(scores[:60], LABELS)
        rules = [
            choosing.choose(topk, sparse.csr_matrix(gold[:60]), k) for k in choosing.CHOSEN[:2]
        ]
        one, each = (f1(rule.accepts(scores[60:]), gold[60:], "micro_f1") for rule in rules)
        lost.append(one - each)
    assert np.mean(lost) < 0.01


def uneven(count: int, spread: float, seed: int) -> tuple[np.ndarray, sparse.csr_matrix]:
    """Documents of different numbers of labels, whose scores are `spread` too high or too low."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(count, LABELS)) - 1 + rng.normal(size=(count, 1))
    wrong = spread * rng.normal(size=(count, 1)) + rng.normal(size=truth.shape)
    return (2 * truth + wrong).astype(np.float32), sparse.csr_matrix((truth > 0).astype(int))


def test_thresholds_of_places_gain_where_documents_differ_and_lose_little_where_they_do_not():
    scores, gold = uneven(3000, 3, 0)
    topk, held = TopK.from_dense(scores[:1500], LABELS), gold[1500:].toarray()
    one, placed = (choosing.choose(topk, gold[:1500], kind) for kind in ("threshold", "places"))
    better = f1(placed.accepts(scores[1500:]), held, "micro_f1")
    assert better > f1(one.accepts(scores[1500:]), held, "micro_f1") + 0.02
    # the value of dev comes from held-out folds, so that other documents keep it
    assert placed.value == pytest.approx(better, abs=0.02)
    lost = []
    for seed in range(8):
        scores, gold = uneven(1060, 0, seed)
        topk, held = TopK.from_dense(scores[:60], LABELS), gold[60:].toarray()
        rules = [choosing.choose(topk, gold[:60], kind) for kind in ("threshold", "places")]
        one, placed = (f1(rule.accepts(scores[60:]), held, "micro_f1") for rule in rules)
        lost.append(one - placed)
    assert np.mean(lost) < 0.01


def test_the_threshold_of_a_place_follows_from_its_terms():
    scores = np.array([[2.0, 1.0, -1.0], [5.0, -4.0, -np.inf]])
    terms = place_terms(scores, 1.0)
    expected = np.log((1 / (1 + np.exp(-(scores - 1.0)))).sum(1))
    for i, e in enumerate(expected):
        for j, p in enumerate(np.log([1, 2, 3])):
            assert terms[i, j] == pytest.approx([1, p, e, p * p, p * e, e * e])
    # a second place must be .5 above the threshold, a third .79
    rule = LabelRule("places", threshold=1.0, shift=[0, 0.5 / np.log(2), 0, 0, 0, 0], places=3)
    assert rule.accepts(np.array([[3.0, 1.6, 1.4, 0.9], [1.9, 1.7, 1.6, 1.2]])).tolist() == [
        [True, True, False, False],
        [True, True, False, False],
    ]
    assert rule.accepts(np.array([[-np.inf, 3.0, -np.inf, -np.inf]])).tolist() == [
        [False, True, False, False]
    ]


def test_rules_that_documents_choose_hold_for_one_document_too():
    topk = TopK.from_dense(np.array([[2.0, 1.0, -1.0]], np.float32), 3)
    for kind in choosing.CHOSEN:
        rule = choosing.choose(topk, sparse.csr_matrix([[1, 0, 0]]), kind)
        assert rule.in_places(topk).tolist()[0][0]


def test_a_threshold_is_shrunk_by_the_documents_of_its_label(documents):
    scores, topk, gold = documents
    common, shrunk = choosing._shrunk(topk, gold, "macro_f1")
    assert (shrunk[0] == common).all()
    own = choosing._own(topk, gold, "macro_f1", 0.0, common)
    count = np.asarray(gold.sum(0)).ravel()
    for m, cuts in zip(choosing.SHRINKAGE[1:], shrunk[1:], strict=True):
        assert cuts == pytest.approx((count * own + m * common) / (count + m))


def test_a_rule_reads_places_as_it_reads_all_scores_and_survives_json(documents):
    scores, topk, gold = documents
    rules = [choosing.choose(topk, gold, kind) for kind in choosing.CHOSEN]
    rows, columns = gold.nonzero()
    rules.append(choosing.promise_recall(scores[rows, columns], gold, 0.8))
    for rule in rules:
        placed = np.zeros(scores.shape, bool)
        np.put_along_axis(placed, topk.ids.astype(int), rule.in_places(topk), axis=1)
        assert np.array_equal(placed, rule.accepts(scores))
        assert LabelRule.of(json.loads(json.dumps(rule.as_dict())), 0.0) == rule
        assert f"{rule.documents} documents" in str(rule) or f"the {rule.documents} " in str(rule)
        measured = evaluate(Scores(topk), gold, np.ones(LABELS), 10, rule)
        assert measured["micro_f1"] == pytest.approx(f1(placed, gold.toarray(), "micro_f1"))
    assert LabelRule.of(None, 0.25) == LabelRule(threshold=0.25)
    assert str(LabelRule(threshold=0.25)) == "threshold 0.2500"
    unused = TopK(np.full((1, 2), -1, np.int32), np.full((1, 2), -np.inf, np.float32))
    assert not any(rule.in_places(unused).any() for rule in rules)


def recalls(scores: np.ndarray, gold: np.ndarray, cut: float) -> np.ndarray:
    return ((scores >= cut) * gold).sum(1)[gold.any(1)] / gold.sum(1)[gold.any(1)]


@pytest.mark.parametrize("recall", [0.5, 0.8, 0.95])
def test_promised_recall_is_the_highest_threshold_of_its_definition(documents, recall):
    scores, _, gold = documents
    dense = gold.toarray()
    rows, columns = gold.nonzero()
    rule = choosing.promise_recall(scores[rows, columns], gold, recall)
    n = int(dense.any(1).sum())
    assert rule.documents == n
    bound = [
        (n * (1 - recalls(scores, dense, cut).mean()) + 1) / (n + 1) <= 1 - recall + 1e-9
        for cut in np.unique(scores)
    ]
    assert rule.threshold == pytest.approx(float(np.unique(scores)[bound][-1]))


def test_promised_recall_holds_on_documents_that_were_held_out():
    """Mean recall over draws of 60 documents that promise and 200 that are judged.

    It is at least the promise, up to three standard errors of the mean over draws, and no more
    than the guarantee's slack of 1 / (n + 1) and a step of the loss above it.
    """
    scores, gold = drawn(260)
    dense = gold.toarray()
    rng = np.random.default_rng(2)
    means = []
    for _ in range(300):
        order = rng.permutation(len(dense))
        first, rest = order[:60], order[60:]
        rows, columns = gold[first].nonzero()
        rule = choosing.promise_recall(scores[first][rows, columns], gold[first], 0.8)
        means.append(recalls(scores[rest], dense[rest], rule.threshold).mean())
    error = np.std(means) / np.sqrt(len(means))
    assert 0.8 - 3 * error <= np.mean(means) <= 0.8 + 3 * error + 2 / 56 + 0.02


def test_what_cannot_be_chosen_is_refused(documents):
    scores, topk, gold = documents
    with pytest.raises(ValueError, match="rule='best'"):
        choosing.choose(topk, gold, "best")
    with pytest.raises(ValueError, match="by='f2'"):
        choosing.choose(topk, gold, "labels", "f2")
    with pytest.raises(ValueError, match="no gold label"):
        choosing.choose(topk, gold * 0, "labels")
    few = gold[1:5]
    values = np.zeros(few.nnz)
    with pytest.raises(ValueError, match="at least 9"):
        choosing.promise_recall(values, few, 0.9)
    for recall in (0, 1, 1.5):
        with pytest.raises(ValueError, match="recall="):
            choosing.promise_recall(values, few, recall)
    with pytest.raises(ValueError, match="lacks its numbers"):
        LabelRule("labels")
    with pytest.raises(ValueError, match="not known"):
        LabelRule("best")
    with pytest.raises(ValueError, match="thresholds for 3 labels"):
        choosing.choose(topk, gold, "labels").cuts(3)
