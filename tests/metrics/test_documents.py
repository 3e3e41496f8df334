"""Metrics and statistics against napkinxc, scikit-learn and slow loops.

docs/method.md, "Metrics". The inputs are random, with ties and documents without labels.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from plantlib.metrics import buckets, documents, statistics
from plantlib.metrics.documents import Scores, StreamingEvaluator, TopK

N, L = 60, 40


def make(seed: int, ties: bool = True) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    """Y with empty rows, scores with many ties, training counts (L,) of every bucket."""
    rng = np.random.default_rng(seed)
    gold = (rng.random((N, L)) < rng.random((1, L)) * 0.3) * 1.0
    gold[[0, 7, N - 1]] = 0
    scores = rng.standard_normal((N, L)) + gold
    scores = np.round(scores, 1) if ties else scores
    counts = rng.choice([0, 1, 5, 6, 50, 51, 300], L)
    return sparse.csr_matrix(gold), scores.astype(np.float32), counts


def slow_ranking(scores: np.ndarray) -> list[list[int]]:
    return [sorted(range(scores.shape[1]), key=lambda j: (-row[j], j)) for row in scores]


def streamed(Y, scores, counts, block=7, order=None, wrap=lambda x: x, **options) -> Scores:
    evaluator = StreamingEvaluator(Y, counts, **options)
    order = np.arange(len(scores)) if order is None else order
    for start in range(0, len(order), block):
        rows = order[start : start + block]
        evaluator.update(rows, wrap(scores[rows]))
    return evaluator.result()


@pytest.mark.parametrize("k", [1, 5, L, L + 3])
def test_topk_is_the_sorted_list_with_ties_by_label(k):
    _, scores, _ = make(0)
    scores[3] = 0.0
    scores[4, :20] = -0.0
    scores[5, 2:] = -np.inf
    topk = TopK.from_dense(scores, k)
    for row, (expected, ids) in enumerate(zip(slow_ranking(scores), topk.ids, strict=True)):
        used = [j for j in expected if scores[row, j] > -np.inf][:k]
        assert ids.tolist() == used + [-1] * (k - len(used))
        assert topk.scores[row, : len(used)].tolist() == scores[row, used].tolist()
        assert (topk.scores[row, len(used) :] == -np.inf).all()


def test_topk_from_sparse_torch_and_parts_equal_from_dense():
    torch = pytest.importorskip("torch")
    _, scores, _ = make(1)
    dense = TopK.from_dense(scores, 9)
    # shifted away from zero, so that every cell is stored
    shifted = TopK.from_sparse(sparse.csr_matrix(scores + 100), 9)
    assert (shifted.ids == TopK.from_dense(scores + 100, 9).ids).all()
    parts = TopK.concat(
        [TopK.from_dense(torch.from_numpy(part), 9) for part in np.array_split(scores, 4)]
    )
    keys = statistics.largest(statistics.order_keys(torch.from_numpy(scores)), 9)
    assert (parts.ids == dense.ids).all() and (parts.scores == dense.scores).all()
    assert (statistics.decode_keys(keys, L)[0] == dense.ids).all()
    half = torch.from_numpy(scores).bfloat16()
    assert (TopK.from_dense(half, 9).ids == TopK.from_dense(half.float().numpy(), 9).ids).all()


def test_topk_from_sparse_scores_stored_cells_only():
    matrix = sparse.csr_matrix(
        (np.array([0.0, -2.0, 5.0, -np.inf]), ([0, 0, 2, 2], [3, 1, 0, 4])), shape=(3, 5)
    )
    topk = TopK.from_sparse(matrix, 3)
    assert topk.ids.tolist() == [[3, 1, -1], [-1, -1, -1], [0, -1, -1]]
    assert topk.scores[0].tolist() == [0.0, -2.0, -np.inf]


@pytest.mark.parametrize("seed", range(3))
def test_ranking_metrics_equal_napkinxc(seed):
    oracle = pytest.importorskip("napkinxc.metrics")
    Y, scores, counts = make(seed)
    topk, ranking = TopK.from_dense(scores, 15), [row[:15] for row in slow_ranking(scores)]
    gold = [row.indices.tolist() for row in Y]
    some = [i for i, row in enumerate(gold) if row]
    inverse = documents.inverse_propensity(np.asarray(Y.sum(0)).ravel(), N)
    np.testing.assert_allclose(inverse, oracle.Jain_et_al_inverse_propensity(Y))
    inverse = documents.inverse_propensity(counts, 1000)
    precision = oracle.precision_at_k(gold, ranking, k=15)
    recall = oracle.recall_at_k([gold[i] for i in some], [ranking[i] for i in some], k=15)
    ndcg = oracle.ndcg_at_k([gold[i] for i in some], [ranking[i] for i in some], k=15)
    psp = oracle.psprecision_at_k(gold, ranking, inverse, k=15)
    for k in range(1, 16):
        assert documents.precision_at_k(topk, Y, k).mean() == pytest.approx(precision[k - 1])
        assert documents.mean(documents.recall_at_k(topk, Y, k)) == pytest.approx(recall[k - 1])
        assert documents.psp_at_k(topk, Y, k, inverse) == pytest.approx(psp[k - 1])
        assert documents.mean(documents.ndcg_at_k(topk, Y, k)) == pytest.approx(ndcg[k - 1])


def test_documents_without_gold_and_values_by_hand():
    Y = sparse.csr_matrix([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]])
    topk = TopK.from_dense(np.array([[4, 3, 2, 1], [4, 3, 2, 1], [4, 3, 2, 1.0]]), 4)
    np.testing.assert_array_equal(documents.precision_at_k(topk, Y, 2), [0.5, 0, 0.5])
    np.testing.assert_array_equal(documents.recall_at_k(topk, Y, 2), [0.5, np.nan, 1])
    np.testing.assert_array_equal(documents.r_precision_at_k(topk, Y, 3), [1, np.nan, 1])
    np.testing.assert_array_equal(documents.r_precision_at_k(topk, Y, 1), [1, np.nan, 0])
    np.testing.assert_allclose(documents.ndcg_at_k(topk, Y, 2)[0], 1 / (1 + 1 / np.log2(3)))
    extra = np.array([2, 1, 0])
    np.testing.assert_array_equal(documents.recall_at_k(topk, Y, 2, extra), [0.25, 0, 1])
    np.testing.assert_array_equal(
        documents.average_precision_at_k(topk, Y, 3), [(1 + 2 / 3) / 2, np.nan, 0.5]
    )


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_equals_scikit_learn(seed):
    from sklearn.metrics import average_precision_score, label_ranking_average_precision_score

    Y, scores, counts = make(seed, ties=False)
    result = streamed(Y, scores, counts)
    measured = documents.average_precision(result.gold_ranks, Y)
    some = np.flatnonzero(np.diff(Y.indptr))
    expected = [average_precision_score(Y[i].toarray().ravel(), scores[i]) for i in some]
    np.testing.assert_allclose(measured[some], expected)
    assert np.isnan(measured).sum() == N - some.size
    whole = label_ranking_average_precision_score(Y[some].toarray(), scores[some])
    assert documents.mean(measured) == pytest.approx(whole)
    assert documents.mean(
        documents.average_precision_at_k(TopK.from_dense(scores, L), Y, L)
    ) == pytest.approx(whole)


@pytest.mark.parametrize("seed", range(3))
def test_f1_equals_scikit_learn(seed):
    from sklearn.metrics import f1_score

    Y, scores, _ = make(seed)
    Y = documents.restrict_gold(Y, np.arange(L) != 5)
    for threshold in (-0.5, 0.7, 1.95, 99.0):
        measured = documents.f1_scores(
            documents.label_counts(TopK.from_dense(scores, L), Y, threshold)
        )
        predicted, gold = scores.astype(float) >= threshold, Y.toarray() > 0
        seen = gold.any(0)
        assert measured["micro_f1"] == pytest.approx(
            f1_score(gold, predicted, average="micro", zero_division=0)
        )
        by_label = f1_score(gold, predicted, average=None, zero_division=0)
        assert measured["macro_f1"] == pytest.approx(by_label[seen].mean())
        assert measured["macro_f1_all"] == pytest.approx(by_label.mean()) and not seen.all()
        tp = (predicted & gold).sum(0)
        p, r = (tp / (predicted.sum(0) + 1e-10)).mean(), (tp / (gold.sum(0) + 1e-10)).mean()
        assert measured["macro_f1_pr"] == pytest.approx(2 * p * r / (p + r + 1e-10))


@pytest.mark.parametrize("seed", range(4))
def test_tuned_threshold_is_the_best_of_all_cuts(seed):
    Y, scores, _ = make(seed)
    topk = TopK.from_dense(scores, 20)
    cut = documents.tune_threshold(topk, Y)
    value = {
        t: documents.f1_scores(documents.label_counts(topk, Y, t))["micro_f1"]
        for t in np.unique(topk.scores)
    }
    measured = documents.f1_scores(documents.label_counts(topk, Y, cut))["micro_f1"]
    assert measured == pytest.approx(max(value.values())) and measured > value[min(value)]
    with pytest.raises(ValueError, match="micro_f1"):
        documents.tune_threshold(topk, Y, by="accuracy")
    with pytest.raises(ValueError, match="no gold label"):
        documents.tune_threshold(topk, sparse.csr_matrix((N, L)))


def test_tuned_threshold_separates_neighbouring_float32():
    low = np.float32(0.1)
    high = np.nextafter(low, np.float32(1))
    topk = TopK.from_dense(np.array([[high, low]]), 2)
    assert low < documents.tune_threshold(topk, sparse.csr_matrix([[1, 0]])) <= high


def test_buckets_partition_the_labels():
    masks = buckets.frequency_buckets(np.array([0, 1, 5, 6, 50, 51]))
    assert {name: np.flatnonzero(mask).tolist() for name, mask in masks.items()} == {
        "zero": [0],
        "few": [1, 2],
        "medium": [3, 4],
        "head": [5],
    }
    for edges in ((5, 5, 9), (0, 9, 5), (0, 5), "0,5", None, (0.5, 1, 2)):
        with pytest.raises(ValueError, match="three growing"):
            buckets.frequency_buckets(np.array([1]), edges)


def test_a_data_set_has_buckets_of_its_own():
    """MIMIC-IV-few: none, 1 to 7, 8 and more; no label is medium, and its metrics are undefined."""
    edges, counts = buckets.edges_of({"bucket_edges": [0, 7, 7]}), np.array([0, 1, 7, 8, 60])
    assert buckets.edges_of({}) == buckets.EDGES
    assert buckets.in_words(edges) == "few, head: labels with 1 to 7, more training documents"
    Y = sparse.csr_matrix([[1, 0, 1, 0, 1], [0, 0, 0, 1, 0]])
    scores = np.array([[5, 4, 3, 2, 1.0], [1, 2, 3, 4, 5]])
    evaluator = documents.StreamingEvaluator(Y, counts, 5, edges)
    evaluator.update(np.arange(2), scores)
    metrics = documents.evaluate(evaluator.result(), Y, counts, 100, 0.5)
    assert (
        metrics["zero/p@1"] == 1
        and metrics["few/p@1"] == 0
        and metrics["few/rp@5"] == 1
        and np.isnan(metrics["medium/rp@5"])
    )
    assert metrics["head/p@1"] == 0 and metrics["head/p@5"] == pytest.approx(1 / 5)


def test_precision_in_a_bucket_is_over_documents_with_such_labels():
    Y, counts = sparse.csr_matrix([[1, 0], [0, 1], [0, 0]]), np.array([3, 100])
    evaluator = documents.StreamingEvaluator(Y, counts, 2)
    evaluator.update(np.arange(3), np.array([[1, 0.0], [0, 1], [1, 1]]))
    metrics = documents.evaluate(evaluator.result(), Y, counts, 100)
    assert metrics["few/p@1"] == metrics["head/p@1"] == 1 and metrics["p@1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "kind", ["numpy", "torch on the CPU", "torch as on an accelerator", "sparse"]
)
def test_streaming_equals_the_dense_answer(kind, monkeypatch):
    Y, scores, counts = make(3)
    wrap = {"numpy": lambda x: x, "sparse": lambda x: sparse.csr_matrix(x + 100)}.get(kind)
    if wrap is None:
        wrap = pytest.importorskip("torch").from_numpy
    if kind == "torch as on an accelerator":
        monkeypatch.setattr(documents, "unwrap", lambda block: block)
    order = np.random.default_rng(0).permutation(N)
    result = streamed(Y, scores, counts, order=order, wrap=wrap, k=17)
    assert (result.topk.ids == TopK.from_dense(scores, 17).ids).all()
    ranking = slow_ranking(scores)
    expected = [ranking[i].index(j) + 1 for i, j in zip(*Y.nonzero(), strict=True)]
    assert result.gold_ranks.tolist() == expected
    whole = TopK.from_dense(scores, L)
    for name, mask in result.masks.items():
        exact = documents.restrict(whole, mask)
        assert mask.any() and (result.buckets[name].ids == exact.ids[:, :15]).all()
        slow = [[j for j in row if mask[j]][:3] for row in ranking]
        assert exact.ids[:, :3].tolist() == slow
    other = streamed(Y, scores, counts).auc
    bound = result.auc["micro_auc_error"] + other["micro_auc_error"]
    assert result.auc["micro_auc"] == pytest.approx(other["micro_auc"], abs=bound) and bound < 0.03


def test_auc_equals_scikit_learn_within_its_bound():
    from sklearn.metrics import roc_auc_score

    for ties, bins in ((True, 2048), (False, 4096), (False, 64)):
        Y, scores, counts = make(5, ties)
        Y = documents.restrict_gold(Y, np.arange(L) != 9)
        gold = Y.toarray()
        both = (gold.sum(0) > 0) & (gold.sum(0) < N)
        auc = streamed(Y, scores, counts, auc_bins=bins, block=N if ties else 16).auc
        slack = 1e-12
        micro = roc_auc_score(gold.ravel(), scores.ravel())
        macro = roc_auc_score(gold[:, both], scores[:, both])
        assert abs(auc["micro_auc"] - micro) <= (0 if ties else auc["micro_auc_error"]) + slack
        assert abs(auc["macro_auc"] - macro) <= (0 if ties else auc["macro_auc_error"]) + slack
        assert 0 < auc["micro_auc_error"] < (0.02 if bins == 64 else 0.05)
        assert not both.all()


def test_streaming_refuses_what_would_be_wrong():
    Y, scores, counts = make(0)
    evaluator = StreamingEvaluator(Y, counts, k=5, auc_bins=None)
    evaluator.update(np.arange(10), scores[:10])
    for rows in (np.array([3]), np.array([20, 20])):
        with pytest.raises(ValueError, match="twice"):
            evaluator.update(rows, scores[rows])
    with pytest.raises(ValueError, match=r"wanted \(rows, labels\) = \(1, 40\)"):
        evaluator.update(np.array([11]), scores[11:12, :-1])
    with pytest.raises(ValueError, match="nan"):
        evaluator.update(np.array([11]), np.full((1, L), np.nan))
    with pytest.raises(ValueError, match="50 of 60 documents were never scored"):
        evaluator.result()
    with pytest.raises(ValueError, match="train_counts"):
        StreamingEvaluator(Y, counts[:-1])
    with pytest.raises(ValueError, match="holds 5 places"):
        documents.precision_at_k(TopK.from_dense(scores, 5), Y, 8)
    with pytest.raises(ValueError, match="documents"):
        documents.precision_at_k(TopK.from_dense(scores[:5], 5), Y, 5)


def test_labels_never_scored_add_nothing_to_map():
    Y = sparse.csr_matrix([[1, 1, 0]])
    result = streamed(Y, np.array([[-np.inf, 2.0, 1.0]]), np.ones(3))
    assert result.gold_ranks.tolist() == [0, 1]
    assert documents.average_precision(result.gold_ranks, Y).tolist() == [0.5]


def test_evaluate_agrees_with_its_parts_and_accounts_for_all_labels():
    Y, scores, counts = make(2)
    result = streamed(Y, scores, counts)
    extra = np.zeros(N, int)
    extra[:10] = 3
    measured = documents.evaluate(result, Y, counts, 1000, threshold=0.9, extra_gold=extra)
    assert set(measured) >= {
        "p@1",
        "p@3",
        "p@5",
        "p@8",
        "p@15",
        "r@5",
        "r@15",
        "rp@5",
        "ndcg@5",
        "ndcg@15",
        "psp@1",
        "psp@3",
        "psp@5",
        "map",
        "micro_f1",
        "macro_f1",
        "macro_f1_pr",
        "micro_auc",
        "macro_auc",
        "all/r@15",
        "all/ndcg@5",
        "all/rp@5",
        "all/map",
        "zero/rp@5",
        "few/rp@5",
        "few/r@15",
        "few/ndcg@5",
        "few/macro_f1",
        "medium/r@15",
        "head/macro_f1",
        "few/overall_r@15",
    }
    assert {name for name in measured if "/overall_" in name} == {
        f"{bucket}/overall_r@{k}" for bucket in result.masks for k in (5, 15)
    }
    assert all(type(value) is float for value in measured.values())
    assert measured["documents_without_gold"] == (np.diff(Y.indptr) == 0).sum() >= 3
    for name in ("r@15", "ndcg@5", "rp@5", "map"):
        assert measured[f"all/{name}"] < measured[name]
    few = result.masks["few"]
    dense = TopK.from_dense(scores[:, few], 15)
    assert measured["few/r@15"] == pytest.approx(
        documents.mean(documents.recall_at_k(dense, Y[:, few], 15))
    )
    first = np.argsort(-scores, axis=1, kind="stable")[:, :15]
    gold = [np.flatnonzero(row * few) for row in Y.toarray()]
    recalls = [
        len(set(places) & set(labels)) / len(labels)
        for places, labels in zip(first, gold, strict=True)
        if len(labels)
    ]
    assert measured["few/overall_r@15"] == pytest.approx(np.mean(recalls))
    assert measured["few/overall_r@15"] < measured["few/r@15"]
    from sklearn.metrics import f1_score

    chosen = Y.toarray()[:, few].any(0)
    by_label = f1_score(
        Y.toarray()[:, few], scores.astype(float)[:, few] >= 0.9, average=None, zero_division=0
    )
    assert measured["few/macro_f1"] == pytest.approx(by_label[chosen].mean())


def test_labels_with_1_to_50_documents_are_one_bucket_too():
    """Few and medium ranked together, as a dense ranking of these labels alone has it."""
    for seed in (2, 3):
        Y, scores, counts = make(seed)
        measured = documents.evaluate(streamed(Y, scores, counts), Y, counts, 1000)
        mask = (counts >= 1) & (counts <= 50)
        dense, gold = TopK.from_dense(scores[:, mask], 5), Y[:, mask]
        for name, metric in (("rp", documents.r_precision_at_k), ("ndcg", documents.ndcg_at_k)):
            expected = documents.mean(metric(dense, gold, 5))
            assert measured[f"1-50/{name}@5"] == pytest.approx(expected)
        bare = documents.evaluate(Scores(TopK.from_dense(scores, 8)), Y, counts, 1000)
        assert bare["1-50/rp@5"] <= measured["1-50/rp@5"]
    # a data set with other bounds has no such bucket
    evaluator = documents.StreamingEvaluator(Y, counts, edges=(0, 7, 7))
    evaluator.update(np.arange(N), scores)
    other = documents.evaluate(evaluator.result(), Y, counts, 1000)
    assert "few/rp@5" in other and not any(name.startswith("1-50") for name in other)


def test_evaluate_of_a_bare_topk_is_a_lower_bound_in_buckets():
    Y, scores, counts = make(2)
    exact = documents.evaluate(streamed(Y, scores, counts), Y, counts, 1000)
    bare = documents.evaluate(Scores(TopK.from_dense(scores, 8)), Y, counts, 1000)
    assert "map" not in bare and "map@8" in bare and "p@15" not in bare and "micro_f1" not in bare
    assert bare["p@8"] == exact["p@8"]
    pairs = [(bare[name], exact[name]) for name in ("few/rp@5", "head/rp@5", "medium/ndcg@5")]
    assert all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def test_per_document_is_json_and_averages_to_the_metric():
    Y, scores, counts = make(4)
    result = streamed(Y, scores, counts)
    measured, table = documents.per_document(result, Y), documents.evaluate(result, Y, counts, 1000)
    assert set(measured) == {"p@1", "p@5", "ndcg@5", "few/rp@5"}
    for name, values in measured.items():
        assert len(values) == N and all(v is None or round(v, 4) == v for v in values)
        assert statistics.mean_sd(values)[0] == pytest.approx(table[name], abs=1e-4)
    assert measured["ndcg@5"][0] is None and measured["p@1"][0] == 0.0


def test_perfect_scores_give_one_and_order_of_documents_does_not_matter():
    Y, scores, counts = make(6)
    perfect = documents.evaluate(streamed(Y, Y.toarray(), counts), Y, counts, 1000, threshold=0.5)
    names = (
        "rp@5",
        "ndcg@5",
        "ndcg@15",
        "map",
        "psp@1",
        "psp@5",
        "micro_f1",
        "macro_f1",
        "micro_auc",
        "few/rp@5",
    )
    assert [perfect[name] for name in names if name[:3] != "psp"] == pytest.approx([1.0] * 8)
    # among hits PSP prefers rare labels, so a perfect score adds the inverse propensity
    rarest = Y.toarray() * documents.inverse_propensity(counts, 1000)
    best = documents.evaluate(streamed(Y, rarest, counts), Y, counts, 1000)
    assert best["psp@1"] == pytest.approx(1) and best["psp@5"] == pytest.approx(1)
    order = np.random.default_rng(1).permutation(N)
    in_order = documents.evaluate(
        streamed(Y, scores, counts, block=N), Y, counts, 1000, threshold=1.0
    )
    shuffled = documents.evaluate(
        streamed(Y[order], scores[order], counts, block=N), Y[order], counts, 1000, threshold=1.0
    )
    assert in_order == pytest.approx(shuffled)


def test_a_worse_label_never_helps():
    Y, scores, counts = make(7)
    wrong = np.flatnonzero(Y[1].toarray().ravel() == 0)
    functions = (
        documents.precision_at_k,
        documents.recall_at_k,
        documents.r_precision_at_k,
        documents.ndcg_at_k,
    )
    worse = scores.copy()
    worse[1, wrong[:4]] += 50
    for function in functions:
        before, after = (function(TopK.from_dense(s, 5), Y, 5) for s in (scores, worse))
        assert after[1] < before[1]
        np.testing.assert_array_equal(np.delete(after, 1), np.delete(before, 1))


def test_the_ratio_of_two_differences_is_drawn_together():
    rng = np.random.default_rng(0)
    whole = 1 + rng.normal(size=(3, 200))
    half = statistics.bootstrap_ratio(whole / 2, whole)
    assert half == {name: pytest.approx(0.5) for name in ("ratio", "low", "high")}
    part = whole / 2 + 0.2 * rng.normal(size=whole.shape)
    found = statistics.bootstrap_ratio(part, whole)
    assert found["low"] < found["ratio"] < found["high"] and found["high"] - found["low"] < 0.3
    undefined = np.where(np.arange(200) < 3, np.nan, part)
    without = statistics.bootstrap_ratio(undefined, whole)
    assert without["ratio"] == pytest.approx(part[:, 3:].mean() / whole[:, 3:].mean())
    with pytest.raises(ValueError, match=r"a is \(3, 200\), b \(2, 200\)"):
        statistics.bootstrap_ratio(part, whole[:2])


def test_paired_bootstrap_is_paired_deterministic_and_covers():
    rng = np.random.default_rng(0)
    difficulty = rng.standard_normal(400)
    a = difficulty + 0.1 + 0.5 * rng.standard_normal(400)
    b = difficulty + 0.5 * rng.standard_normal(400)
    measured = statistics.paired_bootstrap(a, b)
    assert (
        measured == statistics.paired_bootstrap(a, b) != statistics.paired_bootstrap(a, b, seed=1)
    )
    se = (a - b).std(ddof=1) / 20
    assert measured["mean_difference"] == pytest.approx((a - b).mean())
    assert measured["high"] - measured["low"] == pytest.approx(2 * 1.96 * se, rel=0.05)
    # unpaired, the spread over documents would hide the difference
    assert measured["p_value"] < 0.05 and measured["low"] > 0
    opposite = statistics.paired_bootstrap(b, a)
    assert (
        opposite["mean_difference"] == pytest.approx(-measured["mean_difference"])
        and opposite["p_value"] < 0.05
    )
    assert statistics.paired_bootstrap(a, a)["p_value"] == 1.0
    assert statistics.paired_bootstrap([1.0] * 9, [0.0] * 9, samples=99)[
        "p_value"
    ] == pytest.approx(0.02)


def test_interval_covers_fresh_seeds_and_documents():
    # the truth is 0; seeds and documents both vary, and the seeds vary more
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        seeds = rng.standard_normal((5, 1))
        a = seeds + rng.standard_normal((5, 50)) + rng.standard_normal(50)
        measured = statistics.paired_bootstrap(a, np.zeros((5, 50)), samples=500)
        inside += measured["low"] <= 0 <= measured["high"]
    # documents alone would cover half of the time; five seeds cover nearly 95 %
    assert 170 <= inside <= 198


@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_drawn_seeds_vary_as_fresh_ones_would(seeds):
    values = np.random.default_rng(seeds).random((seeds, 8))
    widened = statistics._widened(values)
    assert widened.mean(1).var() == pytest.approx(values.mean(1).var(ddof=1))
    assert widened.mean() == pytest.approx(values.mean())


def test_seeds_are_paired_where_both_systems_have_as_many():
    rng = np.random.default_rng(0)
    shared = 5 * rng.standard_normal((3, 1))
    a = shared + 0.1 + 0.01 * rng.standard_normal((3, 40))
    b = shared + 0.01 * rng.standard_normal((3, 40))
    paired = statistics.paired_bootstrap(a, b, samples=500)
    unpaired = statistics.paired_bootstrap(a, b[:2], samples=500)
    assert paired["low"] > 0.05 and paired["high"] < 0.15
    assert unpaired["high"] - unpaired["low"] > 5
    # a peer without seeds: the spread of ours remains
    peer = statistics.paired_bootstrap(a, b[0], samples=500)
    assert peer["mean_difference"] == pytest.approx(a.mean() - b[0].mean())
    assert peer["high"] - peer["low"] > 1


def test_paired_bootstrap_with_undefined_documents():
    measured = statistics.paired_bootstrap([1, None, 0.5, 1], [0, 0, None, 1], samples=100)
    assert (measured["n"], measured["dropped"], measured["mean_difference"]) == (2, 2, 0.5)
    empty = statistics.paired_bootstrap([None], [1.0])
    assert empty["n"] == 0 and np.isnan(empty["p_value"])
    with pytest.raises(ValueError, match="2 and 3 documents"):
        statistics.paired_bootstrap([1, 2], [1, 2, 3])
    assert statistics.mean_sd([1, 3, None]) == (2.0, pytest.approx(2**0.5))
    assert np.isnan(statistics.mean_sd([1])[1]) and np.isnan(statistics.mean_sd([])[0])
