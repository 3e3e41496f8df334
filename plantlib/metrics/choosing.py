"""Choose a `LabelRule` on labelled documents; docs/method.md, "Label sets".

One threshold, thresholds per label that are shrunk to it or per place and document, or a budget of
labels per document, each by the metric asked for; and the threshold of a promised recall, by split
conformal risk control (Angelopoulos et al. 2024). The documents must not be those that the model
was trained on. N documents, L labels, k places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from plantlib.metrics.documents import f1_scores, gold_matrix, hits, label_counts, tune_threshold
from plantlib.metrics.label_rules import LabelRule, place_terms
from plantlib.metrics.topk import TopK

CHOSEN = ("threshold", "labels", "places", "budget")
METRICS = ("micro_f1", "macro_f1", "sample_f1")
CUTS = 256  # thresholds tried where the best one has no closed form
FOLDS = 5  # of the documents, to choose how far thresholds of labels or places are moved
# documents with a label from which its own threshold weighs as much as the common one; infinity is
# the common threshold alone
SHRINKAGE = (np.inf, 300.0, 100.0, 30.0, 10.0, 3.0)
HOPELESS = 6.0  # below the threshold, a place says nothing about where to cut
LEAST_SLOPE = 1e-3  # of the chance of a place in its score, which divides the other slopes


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
    makers = {"threshold": _one, "labels": _each, "places": _placed, "budget": _budget}
    return makers[kind](topk, gold, by)


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
    """A threshold per label, shrunk as far as held-out documents want it."""

    def make(topk: TopK, gold: sparse.csr_matrix) -> list[LabelRule]:
        threshold, cuts = _shrunk(topk, gold, by)
        return [
            _rule("labels", topk, by, threshold=threshold, thresholds=own.tolist()) for own in cuts
        ]

    accepted, _ = _held_out(make, topk, gold)
    values = [_pooled(places, topk, gold, by) for places in accepted]
    best = int(np.argmax(values))  # the strongest shrinkage of equal ones
    return replace(make(topk, gold)[best], value=values[best])


def _placed(topk: TopK, gold: sparse.csr_matrix, by: str) -> LabelRule:
    """A threshold per place and document where held-out folds gain by it, on average, by more than
    one standard error; else the common one.
    """

    def make(topk: TopK, gold: sparse.csr_matrix) -> list[LabelRule]:
        return _shifted(topk, gold, by)

    accepted, fold = _held_out(make, topk, gold)
    gains = []
    for i in np.unique(fold):
        inside = fold == i
        part = TopK(topk.ids[inside], topk.scores[inside])
        common, shifted = (_pooled(a[inside], part, gold[inside], by) for a in accepted)
        gains.append(shifted - common)
    error = np.std(gains, ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else np.inf
    best = int(np.mean(gains) > error)
    value = _pooled(accepted[best], topk, gold, by)
    return replace(make(topk, gold)[best], value=value)


def _held_out(
    make: Callable[[TopK, sparse.csr_matrix], list[LabelRule]], topk: TopK, gold: sparse.csr_matrix
) -> tuple[np.ndarray, np.ndarray]:
    """What rules accept in documents that did not make them.

    Args:
        make: best places and gold labels of some documents -> R rules.
        topk, gold: of N documents.

    Returns:
        (R, N, k) bool, each fold by the rules of the others; and (N,) the fold.
    """
    fold = np.random.default_rng(0).permutation(len(topk.ids)) % FOLDS
    parts = {}
    for i in np.unique(fold):
        outside, inside = fold != i, fold == i
        part = TopK(topk.ids[outside], topk.scores[outside])
        held = TopK(topk.ids[inside], topk.scores[inside])
        if hits(part, gold[outside], part.k).any():
            parts[i] = [rule.in_places(held) for rule in make(part, gold[outside])]
    rules = next(iter(parts.values()), None) or make(topk, gold)
    accepted = np.zeros((len(rules), *topk.ids.shape), bool)
    for i, part in parts.items():
        accepted[:, fold == i] = part
    return accepted, fold


def _shifted(topk: TopK, gold: sparse.csr_matrix, by: str) -> list[LabelRule]:
    """Rules of kind "places": the common threshold alone, and one moved by `_shift`."""
    threshold = _one(topk, gold, by).threshold
    scores = topk.scores.astype(np.float64)
    terms = place_terms(scores, threshold)
    shift = _shift(scores - threshold, terms, hits(topk, gold, topk.k))
    # what is left of a score is cut as a score is
    level = TopK.of_lists(topk.ids, scores - terms @ shift)
    shift[0] = _one(level, gold, by).threshold - threshold
    return [
        _rule("places", topk, by, threshold=threshold, shift=one.tolist(), places=topk.k)
        for one in (np.zeros_like(shift), shift)
    ]


def _shift(margin: np.ndarray, terms: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(6,) by how much each of `place_terms` moves the score of equal chance, 0 for the constant.

    A logistic regression of right places on the score and the terms.

    Args:
        margin: (N, k) scores minus the threshold; places far below it are left out.
        terms: (N, k, 6).
        right: (N, k) bool.
    """
    shift = np.zeros(terms.shape[2])
    read = margin >= -HOPELESS
    if 0 < right[read].sum() < read.sum():
        x = np.column_stack([margin[read], terms[read][:, 1:]])
        slopes = LogisticRegression(max_iter=1000).fit(x, right[read]).coef_[0]
        shift[1:] = -slopes[1:] / max(slopes[0], LEAST_SLOPE)
    return shift


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
