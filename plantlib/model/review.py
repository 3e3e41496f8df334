"""Which documents a person should look at first: those in which a PlantModel expects most errors;
docs/method.md, "Documents to review".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plantlib.metrics.calibration import chances
from plantlib.metrics.label_rules import LabelRule
from plantlib.metrics.topk import TopK
from plantlib.model import reading
from plantlib.model.label_sets import PLACES, rule_of

SHOWN = 5  # doubtful labels of a document


@dataclass(frozen=True)
class Review:
    """What a person finds in a document, as far as the model knows.

    Attributes:
        row: the document's place among those that were read.
        errors: expected number of labels that are accepted wrongly or left out wrongly, among the
            best 100.
        doubtful: up to five labels whose right decision is least sure, most doubtful first: label,
            chance of being right, whether it is accepted.
    """

    row: int
    errors: float
    doubtful: list[tuple[str, float, bool]]


def doubts(
    best: TopK, rule: LabelRule, calibration: Sequence[float] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the k best places of N documents: the chance of being right, whether the rule accepts
    them, and the chance that this decision is wrong; (N, k) each.

    calibration: as `metrics.calibration.chances` takes it.
    """
    chance = chances(best.scores, calibration)
    accepted = rule.in_places(best)
    return chance, accepted, np.where(accepted, 1 - chance, chance)


def review(model: Any, texts: list[str], batch: int = 16) -> list[Review]:
    """N documents, those with most expected errors first; equal ones in their order.

    An accepted label of chance p is wrong with 1 - p, and one that is left out with p. The chances
    are calibrated on dev, see `metrics.calibration`.

    Args:
        model: a PlantModel with a backbone.
        texts: N documents.
        batch: documents read at a time.
    """
    rule = rule_of(model)
    names = model.config.id2label
    found = []
    for logits in reading.logits(model, texts, batch):
        best = TopK.from_dense(logits.float(), min(PLACES, logits.shape[1]))
        chance, accepted, wrong = doubts(best, rule, model.config.calibration)
        for ids, p, yes, doubt in zip(best.ids, chance, accepted, wrong, strict=True):
            order = np.argsort(-doubt, kind="stable")[:SHOWN]
            shown = [i for i in order if ids[i] >= 0]  # of candidates alone
            doubtful = [(names[int(ids[i])], float(p[i]), bool(yes[i])) for i in shown]
            found.append(Review(len(found), float(doubt.sum()), doubtful))
    return sorted(found, key=lambda document: -document.errors)
