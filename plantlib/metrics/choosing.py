"""Choose a `LabelRule` on labelled documents; docs/method.md, "Label sets".

One threshold, thresholds per label that are shrunk to it, or a budget of labels per document, each
by the metric asked for; and the threshold of a promised recall, by split conformal risk control
(Angelopoulos et al. 2024). The documents must not be those that the model was trained on. N
documents, L labels, k places.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from plantlib.metrics.documents import f1_scores, gold_matrix, hits, label_counts, tune_threshold
from plantlib.metrics.label_rules import LabelRule
from plantlib.metrics.topk import TopK

CHOSEN = ("threshold", "labels", "budget")
METRICS = ("micro_f1", "macro_f1", "sample_f1")
CUTS = 256  # thresholds tried where the best one has no closed form
FOLDS = 5  # of the documents, to choose how far thresholds of labels are shrunk
# documents with a label from which its own threshold weighs as much as the common one; infinity is
# the common threshold alone
SHRINKAGE = (np.inf, 300.0, 100.0, 30.0, 10.0, 3.0)


def metric(rule: LabelRule, topk: TopK, gold: sparse.csr_matrix, by: str) -> float:
    """F1 of a rule on N documents.

    by: "micro_f1", cells pooled; "macro_f1", mean over labels with a gold document; "sample_f1",
        mean over documents, 1 where nothing is right and nothing accepted.
    """
    if by in ("micro_f1", "macro_f1"):
        return f1_scores(label_counts(topk, gold, rule))[by]
    return sample_f1(rule.in_places(topk), topk, gold)


def sample_f1(accepted: np.ndarray, topk: TopK, gold: sparse.csr_matrix) -> float:
    """Mean over documents of the F1 of `accepted` (N, k) places against the gold labels."""
    right = (accepted & hits(topk, gold, topk.k)).sum(1)
    total = accepted.sum(1) + np.diff(gold.indptr)
    return float(np.where(total > 0, 2 * right / np.maximum(total, 1), 1.0).mean())


def check_choice(kind: str, by: str) -> None:
    """ValueError for a kind of rule that `choose` does not know, or an unknown metric."""
    if kind not in CHOSEN:
        raise ValueError(f"rule={kind!r} is not known; use one of {', '.join(CHOSEN)}")
    if by not in METRICS:
        raise ValueError(f"by={by!r} is not known; use one of {', '.join(METRICS)}")


def choose(
    topk: TopK, gold: sparse.csr_matrix, kind: str = "threshold", by: str = "micro_f1"
) -> LabelRule:
    """The rule of a kind that is best by a metric.

    Args:
        topk: best places of N documents; labels below them are never accepted.
        gold: (N, L) gold labels of the same documents.
        kind: one of CHOSEN; see `LabelRule`.
        by: one of METRICS.

    Raises:
        ValueError: an unknown kind or metric, or no place holds a gold label.
    """
    check_choice(kind, by)
    gold = gold_matrix(gold)
    if not hits(topk, gold, topk.k).any():
        raise ValueError(
            "no gold label is among the best places of these documents; give documents with labels"
            " that the model knows"
        )
    return {"threshold": _one, "labels": _each, "budget": _budget}[kind](topk, gold, by)


def _rule(kind: str, topk: TopK, by: str, value: float | None = None, **numbers) -> LabelRule:
    return LabelRule(kind, by=by, value=value, documents=len(topk.ids), **numbers)


def _one(topk: TopK, gold: sparse.csr_matrix, by: str) -> LabelRule:
    """One threshold: exact by micro_f1, the best of CUTS quantiles of the right scores else."""
    if by == "micro_f1":
        tried = [tune_threshold(topk, gold)]
    else:
        right = topk.scores[hits(topk, gold, topk.k)].astype(np.float64)
        tried = np.unique(np.quantile(right, np.linspace(0, 1, CUTS))).tolist()
    rules = [_rule("threshold", topk, by, threshold=cut) for cut in tried]
    values = [metric(rule, topk, gold, by) for rule in rules]
    best = len(values) - 1 - int(np.argmax(values[::-1]))  # the highest of equal ones
    return _rule("threshold", topk, by, values[best], threshold=tried[best])


def _budget(topk: TopK, gold: sparse.csr_matrix, by: str) -> LabelRule:
    rules = [_rule("budget", topk, by, budget=size) for size in range(1, topk.k + 1)]
    values = [metric(rule, topk, gold, by) for rule in rules]
    best = int(np.argmax(values))
    return _rule("budget", topk, by, values[best], budget=best + 1)


def _each(topk: TopK, gold: sparse.csr_matrix, by: str) -> LabelRule:
    """A threshold per label; documents that are held out choose how far they are shrunk."""
    fold = np.random.default_rng(0).permutation(len(topk.ids)) % FOLDS
    accepted = np.zeros((len(SHRINKAGE), *topk.ids.shape), bool)
    for i in np.unique(fold):
        outside, inside = fold != i, fold == i
        part = TopK(topk.ids[outside], topk.scores[outside])
        if not hits(part, gold[outside], part.k).any():
            continue
        held = TopK(topk.ids[inside], topk.scores[inside])
        for j, cuts in enumerate(_shrunk(part, gold[outside], by)[1]):
            accepted[j, inside] = held.scores.astype(np.float64) >= cuts[held.ids]
    values = [_pooled(places, topk, gold, by) for places in accepted & (topk.ids >= 0)]
    best = int(np.argmax(values))  # the strongest shrinkage of equal ones
    threshold, cuts = _shrunk(topk, gold, by)
    return _rule(
        "labels", topk, by, values[best], threshold=threshold, thresholds=cuts[best].tolist()
    )


def _pooled(accepted: np.ndarray, topk: TopK, gold: sparse.csr_matrix, by: str) -> float:
    """The metric of accepted places (N, k) that several rules chose."""
    if by == "sample_f1":
        return sample_f1(accepted, topk, gold)
    right = accepted & hits(topk, gold, topk.k)
    lists = topk.ids[right], topk.ids[accepted], gold.indices
    return f1_scores(np.stack([np.bincount(x, minlength=gold.shape[1]) for x in lists]))[by]


def _shrunk(topk: TopK, gold: sparse.csr_matrix, by: str) -> tuple[float, list[np.ndarray]]:
    """The common threshold, and (L,) thresholds for each of SHRINKAGE.

    A label with p gold documents gets (p own + m common) / (p + m).
    """
    one = _one(topk, gold, by)
    own = _own(topk, gold, by, metric(one, topk, gold, "micro_f1"), one.threshold)
    positives = np.bincount(gold.indices, minlength=gold.shape[1])
    weights = [positives / (positives + m) for m in SHRINKAGE]
    return one.threshold, [one.threshold + w * (own - one.threshold) for w in weights]


def _own(topk: TopK, gold: sparse.csr_matrix, by: str, f1: float, common: float) -> np.ndarray:
    """(L,) the best threshold of each label by itself, `common` where no place shows one.

    By macro_f1 the label's own F1 is best. Else it is what the label adds to micro F1, twice its
    right places less `f1` times its accepted ones, at the micro F1 of the common threshold; a label
    that adds nothing anywhere is best never accepted.
    """
    used = topk.ids >= 0
    right = hits(topk, gold, topk.k)[used]
    labels = topk.ids[used].astype(np.int64)
    scores = topk.scores[used].astype(np.float64)
    order = np.lexsort((-scores, labels))
    labels, scores, right = labels[order], scores[order], right[order]
    # within each label: right and accepted places down to each one
    first = np.flatnonzero(np.append(True, labels[1:] != labels[:-1]))
    start = np.repeat(first, np.diff(np.append(first, len(labels))))
    total = np.append(0, right.cumsum())
    positive = total[1:] - total[start]
    accepted = np.arange(len(labels)) - start + 1
    gold_count = np.bincount(gold.indices, minlength=gold.shape[1])[labels]
    if by == "macro_f1":
        gain = 2 * positive / (accepted + gold_count)
    else:
        gain = 2 * positive - f1 * accepted
    # equal scores enter together
    follower = np.append(scores[1:], -np.inf)
    last = np.append(labels[1:] != labels[:-1], True)
    gain = np.where(last | (follower < scores), gain, -np.inf)
    best = np.maximum.reduceat(gain, first)
    place = np.flatnonzero(gain == np.repeat(best, np.diff(np.append(first, len(labels)))))
    place = place[np.unique(labels[place], return_index=True)[1]]
    between = np.where(last[place], scores[place], (scores[place] + follower[place]) / 2)
    own = np.full(gold.shape[1], common)
    own[labels[place]] = between
    useless = labels[first][best <= 0]
    own[useless] = common if by == "macro_f1" else np.nextafter(scores[first], np.inf)[best <= 0]
    return own


def promise_recall(scores: np.ndarray, gold: sparse.csr_matrix, recall: float) -> LabelRule:
    """The highest threshold that keeps a mean recall, by split conformal risk control.

    If the n documents with a gold label and a new one are exchangeable, the expected recall of the
    new one is at least `recall`, whatever the model. They are not where they trained the model or
    chose anything about it, or come from elsewhere. Labels the model does not know are left out.

    Args:
        scores: (P,) logits of the gold labels, in the order of gold.indices.
        gold: (N, L) gold labels; documents without any do not count.
        recall: promised share of a document's gold labels, above 0 and below 1.

    Raises:
        ValueError: the recall is out of range, or there are too few documents to promise it.
    """
    if not 0 < recall < 1:
        raise ValueError(f"recall={recall}; give a share above 0 and below 1, such as 0.9")
    counts = np.diff(gold.indptr)
    documents = int((counts > 0).sum())
    # with a loss of at most 1, mean loss of n documents: (n mean + 1) / (n + 1) <= 1 - recall
    room = (1 - recall) * (documents + 1) - 1
    if room < 0:
        needed = int(np.ceil(1 / (1 - recall) - 1 - 1e-9))
        raise ValueError(
            f"{documents} documents with labels are too few to promise recall={recall}; give at"
            f" least {needed}, or promise less"
        )
    scores = np.asarray(scores, np.float64)
    order = np.argsort(scores, kind="stable")
    share = 1 / np.repeat(np.maximum(counts, 1), counts)[order]
    # missed below each gold score, where that score is the threshold: equal ones are kept together
    ordered = scores[order]
    missed = np.append(0.0, share.cumsum())[np.searchsorted(ordered, ordered, side="left")]
    kept = np.flatnonzero(missed <= room + 1e-9)
    threshold = float(ordered[kept[-1]])
    return LabelRule("recall", threshold, recall=recall, documents=documents)
