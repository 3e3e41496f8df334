"""LabelRule: which labels of a document are accepted; docs/method.md, "Label sets".

A rule is numbers only, so that a model carries it in its configuration. How its numbers are chosen
is in `choosing`. N documents, L labels, k places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from scipy.special import expit

from plantlib.metrics.topk import TopK

KINDS = ("threshold", "labels", "places", "budget", "recall")

TERMS = 6  # of `place_terms`
LEAST_EXPECTED = 0.01  # labels of a document, so that a document without any has a logarithm


@dataclass(frozen=True)
class LabelRule:
    """Which labels of a document are accepted.

    Attributes:
        kind: "threshold", one cut for all labels; "labels", one per label; "places", one that
            depends on a label's place and on how many labels are expected in the document;
            "budget", the same number of labels for every document; "recall", one cut that keeps a
            promised recall.
        threshold: logit from which a label is accepted; of "labels", the one that the others are
            shrunk to; of "places", the one that `shift` moves.
        thresholds: (L,) logits, of "labels".
        shift: (6,) by how much each of `place_terms` raises the threshold, of "places".
        places: best places of a document that can be accepted, of "places".
        budget: labels per document, of "budget".
        by: the metric that chose, None for "recall" and where nothing was chosen.
        value: that metric on the documents that chose; of "labels" and "places" on folds that
            were held out.
        recall: promised recall, of "recall".
        documents: how many documents chose.

    Raises:
        ValueError: an unknown kind, or one that lacks its numbers.
    """

    kind: str = "threshold"
    threshold: float = 0.0
    thresholds: list[float] | None = None
    shift: list[float] | None = None
    places: int | None = None
    budget: int | None = None
    by: str | None = None
    value: float | None = None
    recall: float | None = None
    documents: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"rule={self.kind!r} is not known; use one of {', '.join(KINDS)}")
        needed = {"labels": self.thresholds, "budget": self.budget, "recall": self.recall}
        needed["places"] = None if self.places is None else self.shift
        if self.kind in needed and needed[self.kind] is None:
            raise ValueError(f"a rule of kind {self.kind!r} lacks its numbers; choose it again")
        if self.shift is not None and len(self.shift) != TERMS:
            raise ValueError(
                f"a shift of {len(self.shift)} numbers, wanted {TERMS}; choose it again"
            )

    @classmethod
    def of(cls, about: Mapping[str, Any] | None, threshold: float) -> LabelRule:
        """The rule that `as_dict` described, or `threshold` for all labels where it is None.

        Raises:
            ValueError: the entries are not those of a rule.
        """
        if about is None:
            return cls(threshold=threshold)
        names = {item.name for item in fields(cls)}
        if set(about) - names or "kind" not in about:
            raise ValueError(f"a rule has {sorted(about)}, wanted {sorted(names)}; choose it again")
        return cls(**about)

    def as_dict(self) -> dict[str, Any]:
        """The rule as JSON holds it, without what its kind does not use."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def has_cuts(self) -> bool:
        """Whether a label is accepted by its own score alone."""
        return self.kind not in ("budget", "places")

    def cuts(self, labels: int) -> np.ndarray:
        """(L,) float64 logits from which each of `labels` labels is accepted.

        Raises:
            ValueError: the rule has no cuts of labels ("budget", "places"), or those of another
                number of labels.
        """
        if not self.has_cuts:
            raise ValueError(
                f"a rule of kind {self.kind!r} has no thresholds of labels; read what it accepts"
            )
        if self.thresholds is None:
            return np.full(labels, self.threshold)
        if len(self.thresholds) != labels:
            raise ValueError(
                f"the rule has {len(self.thresholds)} thresholds for {labels} labels; choose it"
                " with this model"
            )
        return np.asarray(self.thresholds, np.float64)

    def in_places(self, topk: TopK) -> np.ndarray:
        """(N, k) bool: whether the label of each place is accepted."""
        used = topk.ids >= 0
        if self.kind == "budget":
            return used & (np.arange(topk.k) < (self.budget or 0))
        if self.kind == "places":
            return used & self._above_places(topk.scores)
        cuts = self.threshold if self.thresholds is None else np.asarray(self.thresholds)[topk.ids]
        return used & (topk.scores.astype(np.float64) >= cuts)

    def accepts(self, scores: np.ndarray) -> np.ndarray:
        """(N, L) bool: whether each label is accepted, from all logits (N, L) of N documents."""
        labels = scores.shape[1]
        if self.has_cuts:
            return scores.astype(np.float64) >= self.cuts(labels)
        best = TopK.from_dense(scores, min(self.budget or self.places or 1, labels))
        accepted = np.zeros(scores.shape, bool)
        rows, places = np.nonzero(self.in_places(best))
        accepted[rows, best.ids[rows, places]] = True
        return accepted

    def _above_places(self, scores: np.ndarray) -> np.ndarray:
        """(N, k) bool, of sorted scores (N, k): which reach the threshold of their place."""
        read = scores[:, : self.places].astype(np.float64)
        cuts = self.threshold + place_terms(read, self.threshold) @ np.array(self.shift)
        accepted = np.zeros(scores.shape, bool)
        accepted[:, : self.places] = read >= cuts
        return accepted

    def __str__(self) -> str:
        if self.kind == "recall":
            return (
                f"threshold {self.threshold:.4f}, which keeps a mean recall of {self.recall:g} on"
                f" documents like the {self.documents:,} that chose it"
            )
        words = {
            "threshold": f"threshold {self.threshold:.4f}",
            "labels": f"a threshold for each label around {self.threshold:.4f}",
            "places": f"a threshold for each place and document around {self.threshold:.4f}",
            "budget": f"the {self.budget} best labels of each document",
        }[self.kind]
        if self.kind == "places" and not any(self.shift or ()):
            words = f"threshold {self.threshold:.4f}, since held-out places gain nothing by others"
        if self.value is None:
            return words
        return f"{words}, chosen by {self.by} ({self.value:.4f}) on {self.documents:,} documents"


def place_terms(scores: np.ndarray, threshold: float) -> np.ndarray:
    """(N, k, 6) float64, what moves the threshold of a place: 1, p, e, p^2, p e and e^2.

    p is the logarithm of the place, counted from 1, and e that of the expected number of labels of
    the document, the sum over its k places of sigmoid(score - threshold).

    Args:
        scores: (N, k) float64 logits, best first; -inf in unused places.
        threshold: of all labels.
    """
    expected = expit(scores - threshold).sum(1, keepdims=True)
    e = np.broadcast_to(np.log(np.maximum(expected, LEAST_EXPECTED)), scores.shape)
    p = np.broadcast_to(np.log(np.arange(1, scores.shape[1] + 1)), scores.shape)
    return np.stack([np.ones(scores.shape), p, e, p * p, p * e, e * e], 2)
