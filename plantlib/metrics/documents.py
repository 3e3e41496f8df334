"""Document-level metrics of extreme multi-label classification (docs/method.md, "Metrics").

`StreamingEvaluator` reads scores in blocks and keeps a `TopK` over all labels, one `TopK` per
frequency bucket, the exact ranks of the gold labels and score histograms, never an (N, L) matrix.
`evaluate` makes the metrics of it. A document without a gold label counts 0 in P@k; R, RP, nDCG and
AP are undefined there (nan) and leave the mean. Bootstrap intervals are in `statistics`.

N documents, L labels, k places. The metric functions share their arguments:
    topk: best k labels of N documents. Y: (N, L) sparse gold labels of the same documents.
    k: places read, at most those of `topk`.
    extra_gold: (N,) gold labels per document outside the label space, counted as missed.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from plantlib.metrics.buckets import EDGES, Edges, few_of_eurlex, frequency_buckets
from plantlib.metrics.label_rules import LabelRule
from plantlib.metrics.statistics import (
    UNSCORED,
    AucHistogram,
    decode_keys,
    largest,
    order_keys,
    to_numpy,
    unwrap,
)
from plantlib.metrics.topk import TopK, restrict

BUCKET_DEPTH = 15
AUC_LABELS = 65_536  # most labels that the AUC is measured for: 512 MiB of histograms


@dataclass(frozen=True)
class Scores:
    """What `evaluate` needs of a system's scores; only `topk` is required.

    topk: best labels of each document.
    buckets: name -> TopK among that bucket's labels alone.
    masks: name -> (L,) bool, the bucket's labels.
    gold_ranks: (nnz(Y),) int64, rank from 1 of each gold label in the order of Y.indices, 0 if it
        was never scored.
    auc: micro_auc, macro_auc and the bounds of their error.
    """

    topk: TopK
    buckets: dict[str, TopK] | None = None
    masks: dict[str, np.ndarray] | None = None
    gold_ranks: np.ndarray | None = None
    auc: dict[str, float] | None = None


def gold_matrix(Y: Any) -> sparse.csr_matrix:
    """A copy of Y (N, L) as CSR with sorted indices, no duplicates and no stored zeros.

    `Scores.gold_ranks` follows this order.
    """
    Y = sparse.csr_matrix(Y, copy=True)
    Y.sum_duplicates()
    Y.eliminate_zeros()
    return Y


def _rows(matrix: sparse.csr_matrix) -> np.ndarray:
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def hits(topk: TopK, Y: Any, k: int) -> np.ndarray:
    """(N, k) bool: whether the place holds a gold label.

    Raises:
        ValueError: `topk` and Y differ in documents or labels, or `topk` has fewer than k places.
    """
    Y = gold_matrix(Y)
    n, n_labels = Y.shape
    if len(topk.ids) != n:
        raise ValueError(
            f"TopK has {len(topk.ids)} documents, Y {n}: pass the rows of one split, in one order"
        )
    if not 1 <= k <= topk.k:
        raise ValueError(
            f"TopK holds {topk.k} places, metric at k={k} wanted: build the TopK with k >= {k}"
        )
    ids = topk.ids[:, :k].astype(np.int64)
    if ids.size and ids.max() >= n_labels:
        raise ValueError(
            f"TopK names label {ids.max()}, Y has {n_labels} labels: both need the same label order"
        )
    # gold cells and places as numbers in one order; -1 ends the list of gold cells, so that a
    # search beyond the last one finds no hit
    gold = _rows(Y) * n_labels + Y.indices
    places = np.arange(n)[:, None] * n_labels + ids
    return (np.append(gold, -1)[np.searchsorted(gold, places)] == places) & (ids >= 0)


def _gold_count(Y: Any, extra_gold: np.ndarray | None) -> np.ndarray:
    return np.diff(gold_matrix(Y).indptr) + (0 if extra_gold is None else np.asarray(extra_gold))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1e-300), np.nan)


def mean(values: np.ndarray) -> float:
    """Mean over the documents where the metric is defined; nan if there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def precision_at_k(topk: TopK, Y: Any, k: int) -> np.ndarray:
    """(N,) hits / k; 0 for a document without gold labels; unused places are misses."""
    return hits(topk, Y, k).sum(1) / k


def precision_where_gold(topk: TopK, Y: Any, k: int) -> np.ndarray:
    """(N,) P@k, nan for a document without gold labels: within a bucket most have none."""
    return np.where(_gold_count(Y, None) > 0, precision_at_k(topk, Y, k), np.nan)


def recall_at_k(topk: TopK, Y: Any, k: int, extra_gold: np.ndarray | None = None) -> np.ndarray:
    """(N,) hits / |gold|, where |gold| includes extra_gold."""
    return _ratio(hits(topk, Y, k).sum(1), _gold_count(Y, extra_gold))


def r_precision_at_k(
    topk: TopK, Y: Any, k: int, extra_gold: np.ndarray | None = None
) -> np.ndarray:
    """(N,) RP@k = hits / min(k, |gold|) (Chalkidis et al. 2019)."""
    return _ratio(hits(topk, Y, k).sum(1), np.minimum(k, _gold_count(Y, extra_gold)))


def ndcg_at_k(topk: TopK, Y: Any, k: int, extra_gold: np.ndarray | None = None) -> np.ndarray:
    """(N,) binary nDCG@k with discount 1/log2(place + 1); the ideal has min(k, |gold|) hits."""
    discount = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate([[0.0], discount.cumsum()])
    best_hits = np.minimum(k, _gold_count(Y, extra_gold)).astype(int)
    return _ratio(hits(topk, Y, k) @ discount, ideal[best_hits])


def inverse_propensity(
    train_counts: np.ndarray, n_train: int, a: float = 0.55, b: float = 1.5
) -> np.ndarray:
    """Inverse propensities 1 + C (n_l + b)^-a with C = (ln n - 1)(b + 1)^a (Jain et al. 2016).

    Args:
        train_counts: (L,) n_l, training documents per label.
        n_train: n, training documents.
        a, b: constants of the data set; these are the usual ones.

    Returns:
        (L,) float64.
    """
    counts = np.asarray(train_counts, np.float64)
    return 1 + (np.log(n_train) - 1) * (b + 1) ** a * (counts + b) ** -a


def psp_at_k(topk: TopK, Y: Any, k: int, inverse: np.ndarray) -> float:
    """PSP@k of the corpus: the sum of `inverse` (L,) over hits / the best possible sum.

    The form is that of the extreme classification repository.
    """
    Y = gold_matrix(Y)
    reached = inverse[topk.ids[:, :k]][hits(topk, Y, k)].sum()
    # best possible: the k largest weights of each document; sorting keeps `rows` as it is
    rows, weight = _rows(Y), inverse[Y.indices]
    weight = weight[np.lexsort((-weight, rows))]
    return float(_ratio(reached, weight[np.arange(rows.size) - Y.indptr[rows] < k].sum()))


def average_precision(
    gold_ranks: np.ndarray, Y: Any, extra_gold: np.ndarray | None = None
) -> np.ndarray:
    """(N,) average precision from the exact ranks of the gold labels.

    gold_ranks: (nnz(Y),) as in `Scores`; a label that was never scored (rank 0) adds nothing.
    """
    Y = gold_matrix(Y)
    rows = _rows(Y)
    ranks = np.where(gold_ranks > 0, gold_ranks, np.inf)
    ranks = ranks[np.lexsort((ranks, rows))]
    place = np.arange(rows.size) - Y.indptr[rows] + 1
    return _ratio(
        np.bincount(rows, place / ranks, minlength=Y.shape[0]), _gold_count(Y, extra_gold)
    )


def average_precision_at_k(
    topk: TopK, Y: Any, k: int, extra_gold: np.ndarray | None = None
) -> np.ndarray:
    """(N,) AP@k: the sum of P@i over hits at places i <= k, / min(k, |gold|).

    Its mean is MAP@k, not MAP.
    """
    hit = hits(topk, Y, k)
    precisions = (hit * hit.cumsum(1) / np.arange(1, k + 1)).sum(1)
    return _ratio(precisions, np.minimum(k, _gold_count(Y, extra_gold)))


def restrict_gold(Y: Any, mask: np.ndarray) -> sparse.csr_matrix:
    """Y (N, L) with the columns outside `mask` (L,) emptied; the shape stays."""
    return gold_matrix(gold_matrix(Y) @ sparse.diags(np.asarray(mask, np.float64)))


def label_counts(topk: TopK, Y: Any, threshold: float | LabelRule) -> np.ndarray:
    """Counts per label of the places of `topk` with score >= threshold, or that a rule accepts.

    Returns:
        (3, L) int64: true positives, predictions, gold documents.
    """
    relevant = hits(topk, Y, topk.k)
    predicted = rule_of(threshold).in_places(topk)
    lists = topk.ids[predicted & relevant], topk.ids[predicted], gold_matrix(Y).indices
    return np.stack([np.bincount(x, minlength=Y.shape[1]) for x in lists])


def rule_of(threshold: float | LabelRule) -> LabelRule:
    """A threshold as a rule; a rule as it is."""
    return threshold if isinstance(threshold, LabelRule) else LabelRule(threshold=threshold)


def f1_scores(counts: np.ndarray, missed: int = 0) -> dict[str, float]:
    """F1 from `label_counts` (3, L); select columns first to look at a bucket.

    missed: gold cells without a column, which micro_f1 counts.

    Returns:
        micro_f1: all cells pooled.
        macro_f1: mean of label F1 over labels with a gold document in the evaluated split.
        macro_f1_pr: harmonic mean of macro-P and macro-R, both means over all L labels, 0 where a
            label has no prediction (P) or no gold document (R), as CAML computes it.
        macro_f1_all: mean of label F1 over all L labels, 0 where undefined.
        A value is nan if nothing is defined.
    """
    tp, predicted, gold = counts.astype(np.float64)
    f1 = np.nan_to_num(_ratio(2 * tp, predicted + gold))
    precision, recall = (
        np.nan_to_num(_ratio(tp, n)).mean() if tp.size else np.nan for n in (predicted, gold)
    )
    return {
        "micro_f1": float(_ratio(2 * tp.sum(), predicted.sum() + gold.sum() + missed)),
        "macro_f1": mean(f1[gold > 0]),
        "macro_f1_pr": (
            0.0 if precision + recall == 0 else float(2 * precision * recall / (precision + recall))
        ),
        "macro_f1_all": mean(f1),
    }


def tune_threshold(topk_dev: TopK, Y_dev: Any, by: str = "micro_f1") -> float:
    """The threshold (predict when score >= threshold) with the best micro F1 on dev.

    Every distinct threshold is tried; the highest wins a tie. The search is exact for the labels
    that `topk_dev` holds, and the value lies midway between the two scores it separates.

    Raises:
        ValueError: `by` is not micro_f1, or `topk_dev` holds no gold label. One threshold for all
            labels is a micro choice.
    """
    if by != "micro_f1":
        raise ValueError(f"threshold tuned by {by!r}: wanted 'micro_f1'")
    used = topk_dev.ids >= 0
    relevant = hits(topk_dev, Y_dev, topk_dev.k)[used]
    scores = topk_dev.scores[used].astype(np.float64)
    if not relevant.any():
        raise ValueError(
            "no gold label among the dev TopK: check the label order or use a deeper TopK"
        )
    # micro F1 of predicting the first 1, 2, ... of all labels in order of score
    order = np.argsort(-scores, kind="stable")
    scores, relevant = scores[order], relevant[order]
    f1 = 2 * relevant.cumsum() / (np.arange(1, relevant.size + 1) + gold_matrix(Y_dev).nnz)
    # equal scores enter together; the last place is a cut as well
    best = np.argmax(np.where(np.append(scores[1:] < scores[:-1], True), f1, -1.0))
    return float((scores[best] + np.append(scores, scores[-1])[best + 1]) / 2)


class StreamingEvaluator:
    """Collects what the metrics need while a model predicts each document once, in any order.

    It holds (N, k) places, (N, 15) per bucket, the rank of each gold label and, for the AUC,
    (L, auc_bins) int32 counts (33 MB for 4,108 labels).

    Args:
        Y: (N, L) gold labels.
        train_counts: (L,) training documents per label.
        k: places kept over all labels.
        edges: bounds of the frequency buckets.
        auc_bins: bins of the AUC histograms; None leaves the AUC out, and so do more than
            `AUC_LABELS` labels, with a warning.
    """

    def __init__(
        self,
        Y: Any,
        train_counts: np.ndarray,
        k: int = 100,
        edges: Edges = EDGES,
        auc_bins: int | None = 2048,
    ) -> None:
        self.Y, self.k = gold_matrix(Y), k
        n, self.n_labels = self.Y.shape
        if np.shape(train_counts) != (self.n_labels,):
            raise ValueError(
                f"train_counts has shape {np.shape(train_counts)}, wanted ({self.n_labels},): one"
                " per label"
            )
        self.masks = frequency_buckets(train_counts, edges)
        self._seen = np.zeros(n, bool)
        depths = {"": k} | dict.fromkeys(self.masks, BUCKET_DEPTH)
        self._places = {name: np.full((n, depth), UNSCORED - 1) for name, depth in depths.items()}
        self._ranks, self._gold_bins = np.zeros((2, self.Y.nnz), np.int64)
        if auc_bins and self.n_labels > AUC_LABELS:
            warnings.warn(
                f"AUC is left out: its histograms of {self.n_labels:,} labels would take"
                f" {self.n_labels * auc_bins * 4 / 2**30:.1f} GiB; it is measured up to"
                f" {AUC_LABELS:,} labels",
                UserWarning,
                stacklevel=2,
            )
            auc_bins = None
        self._auc = AucHistogram(self.n_labels, auc_bins) if auc_bins else None

    def update(self, rows: np.ndarray, scores: Any) -> None:
        """Read the scores of some documents.

        Args:
            rows: (b,) rows of Y.
            scores: (b, L) numpy array, torch tensor or scipy sparse matrix, whose stored cells
                alone are scored.

        Raises:
            ValueError: a row was read before, the shape does not fit, or a score is nan.
        """
        rows, scores = np.asarray(rows), unwrap(scores)
        if tuple(scores.shape) != (rows.size, self.n_labels):
            raise ValueError(
                f"block of {tuple(scores.shape)}, wanted (rows, labels) ="
                f" {(rows.size, self.n_labels)}"
            )
        if self._seen[rows].any() or np.unique(rows).size < rows.size:
            raise ValueError("a document was scored twice: feed each row of Y exactly once")
        if sparse.issparse(scores):
            stored = scores.tocoo()
            scores = np.full(scores.shape, -np.inf, np.float32)
            scores[stored.row, stored.col] = stored.data
        # best places over all labels and within each bucket, then the ranks of the gold labels
        keys = order_keys(scores)
        self._places[""][rows] = largest(keys, self.k)
        for name, mask in self.masks.items():
            self._places[name][rows] = largest(keys[:, np.flatnonzero(mask)], BUCKET_DEPTH)
        self._rank_gold(rows, keys, self._auc.add(scores) if self._auc else None)
        self._seen[rows] = True

    def _rank_gold(self, rows: np.ndarray, keys: Any, bins: Any) -> None:
        """Rank the j-th gold label of all documents at once: one more than the larger keys."""
        first, count = self.Y.indptr[rows], self.Y.indptr[rows + 1] - self.Y.indptr[rows]
        for j in range(count.max(initial=0)):
            documents = np.flatnonzero(count > j)
            place = first[documents] + j
            labels = self.Y.indices[place].astype(np.int64)
            gold_keys = keys[documents, labels]
            rank = (keys[documents] > gold_keys[:, None]).sum(1) + 1
            self._ranks[place] = to_numpy(rank * (gold_keys >= UNSCORED))
            self._gold_bins[place] = 0 if bins is None else bins[documents, labels]

    def result(self) -> Scores:
        """The collected scores; ValueError if a row of Y was never read."""
        if not self._seen.all():
            raise ValueError(
                f"{(~self._seen).sum()} of {self._seen.size} documents were never scored: feed"
                " every row"
            )
        topk = {
            name: TopK(*decode_keys(keys, self.n_labels)) for name, keys in self._places.items()
        }
        auc = None
        if self._auc and self._seen.size:
            auc = self._auc.result(self.Y.indices, self._gold_bins)
        return Scores(topk.pop(""), topk, self.masks, self._ranks, auc)


def _over(functions: tuple, topk: TopK, Y: Any, **options: Any) -> dict[str, float]:
    """Means over documents of (name, metric, values of k); k beyond `topk` are left out."""
    return {
        f"{name}@{k}": mean(f(topk, Y, k, **options))
        for name, f, ks in functions
        for k in ks
        if k <= topk.k
    }


def evaluate(
    scores: Scores,
    Y: Any,
    train_counts: np.ndarray,
    n_train: int,
    threshold: float | LabelRule | None = None,
    extra_gold: np.ndarray | None = None,
) -> dict[str, float]:
    """All metrics of a split.

    Args:
        scores: of N documents, e.g. from `StreamingEvaluator.result`.
        Y: (N, L) gold labels of the same documents.
        train_counts: (L,) training documents per label.
        n_train: training documents.
        threshold: for F1, or a rule; without it F1 is left out.
        extra_gold: (N,) gold labels without a column; metrics named 'all/...' count them.

    Returns:
        One flat dict of fractions, nan where undefined. 'few/rp@5' ranks the labels of a bucket
        among themselves over the documents that have one, 'few/overall_r@15' ranks all labels.
        '1-50/rp@5' does so for few and medium together, where these have 1 to 50 documents.
        Values of k beyond the depth of the TopK are left out, and without `gold_ranks` there is
        MAP@k instead of MAP. 'documents_without_gold' are not in R, RP, nDCG and MAP;
        'documents_cut' have the last place of the TopK accepted, so F1 may miss some of
        their predictions.
    """
    Y, topk = gold_matrix(Y), scores.topk
    # metrics over all labels; the first group is undefined for a document without gold labels
    undefined = (
        ("r", recall_at_k, (5, 15)),
        ("rp", r_precision_at_k, (5,)),
        ("ndcg", ndcg_at_k, (5, 15)),
    )
    out = {
        "documents": float(Y.shape[0]),
        "documents_without_gold": float((np.diff(Y.indptr) == 0).sum()),
    }
    out |= _over((("p", precision_at_k, (1, 3, 5, 8, 15)), *undefined), topk, Y)
    inverse = inverse_propensity(train_counts, n_train)
    out |= {f"psp@{k}": psp_at_k(topk, Y, k, inverse) for k in (1, 3, 5) if k <= topk.k}
    out |= _map(scores, Y) | (scores.auc or {})
    if extra_gold is not None:
        with_extra = _over(undefined, topk, Y, extra_gold=extra_gold) | _map(scores, Y, extra_gold)
        out |= {f"all/{name}": x for name, x in with_extra.items()}
    # F1 at the threshold
    if threshold is not None:
        counts = label_counts(topk, Y, threshold)
        cut = rule_of(threshold).in_places(topk)[:, -1]
        out |= f1_scores(counts) | {"documents_cut": float(cut.sum())}
        if extra_gold is not None:
            out["all/micro_f1"] = f1_scores(counts, extra_gold.sum())["micro_f1"]
    # metrics within each frequency bucket
    in_buckets = (
        ("rp", r_precision_at_k, (5,)),
        ("r", recall_at_k, (15,)),
        ("ndcg", ndcg_at_k, (5,)),
        ("p", precision_where_gold, (1, 5, 8)),
    )
    masks = scores.masks or frequency_buckets(train_counts)
    for name, mask in masks.items():
        ranking = scores.buckets[name] if scores.buckets else restrict(topk, mask)
        gold = restrict_gold(Y, mask)
        out |= {f"{name}/{key}": x for key, x in _over(in_buckets, ranking, gold).items()}
        out |= {f"{name}/overall_{key}": x for key, x in _over(undefined[:1], topk, gold).items()}
        if threshold is not None:
            out[f"{name}/macro_f1"] = f1_scores(counts[:, mask])["macro_f1"]
    if (mask := few_of_eurlex(train_counts, masks)) is not None:
        both = scores.buckets and TopK.merged([scores.buckets[x] for x in ("few", "medium")])
        found = _over(in_buckets[::2], both or restrict(topk, mask), restrict_gold(Y, mask))
        out |= {f"1-50/{key}": x for key, x in found.items()}
    return out


def _map(scores: Scores, Y: Any, extra: np.ndarray | None = None) -> dict[str, float]:
    if scores.gold_ranks is not None:
        return {"map": mean(average_precision(scores.gold_ranks, Y, extra))}
    k = scores.topk.k
    return {f"map@{k}": mean(average_precision_at_k(scores.topk, Y, k, extra))}


def per_document(scores: Scores, Y: Any) -> dict[str, list[float | None]]:
    """p@1, p@5, ndcg@5 and, if `scores` has masks, few/rp@5 of each document of Y (N, L).

    Returns:
        name -> N values with 4 decimals, None where undefined.
    """
    topk, masks = scores.topk, scores.masks
    values = {
        "p@1": precision_at_k(topk, Y, 1),
        "p@5": precision_at_k(topk, Y, 5),
        "ndcg@5": ndcg_at_k(topk, Y, 5),
    }
    if masks:
        few = scores.buckets["few"] if scores.buckets else restrict(topk, masks["few"])
        values["few/rp@5"] = r_precision_at_k(few, restrict_gold(Y, masks["few"]), 5)
    return {
        name: [None if np.isnan(x) else round(float(x), 4) for x in value]
        for name, value in values.items()
    }
