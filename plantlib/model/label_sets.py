"""The label sets of a PlantModel: choose its `LabelRule` on labelled documents, and accept by it;
docs/method.md, "Label sets".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from plantlib.metrics import choosing
from plantlib.metrics.calibration import chances
from plantlib.metrics.label_rules import LabelRule
from plantlib.metrics.topk import TopK
from plantlib.model import reading
from plantlib.utils.base import DataError
from plantlib.utils.folders import list_again
from plantlib.utils.io import read_json, write_json

PLACES = 100  # per document, among which a rule is chosen


def rule_of(model: Any) -> LabelRule:
    """The rule that a model carries: the one it was given, or the threshold of its training."""
    return LabelRule.of(model.config.label_rule, model.config.threshold)


def choose(
    model: Any,
    texts: list[str],
    gold: sparse.csr_matrix,
    rule: str = "threshold",
    by: str = "micro_f1",
    recall: float | None = None,
    batch: int = 16,
) -> LabelRule:
    """Choose the rule of a model on documents that did not train it; the model keeps the rule.

    Args:
        model: a PlantModel with a backbone.
        texts: N documents.
        gold: (N, L) their labels, in the columns of the model.
        rule: "threshold", "labels", "places" or "budget"; see `LabelRule`.
        by: the metric that chooses; "micro_f1", "macro_f1" or "sample_f1".
        recall: promise this mean recall instead; see `choosing.promise_recall`.
        batch: documents read at a time.

    Returns:
        the rule.

    Raises:
        ValueError: an unknown rule or metric, a recall that cannot be promised, or documents
            without a label that the model knows.
    """
    gold = sparse.csr_matrix(gold)
    gold.sort_indices()
    if not gold.nnz:
        raise DataError("no document has a label that the model knows; check the labels")
    if recall is not None:
        choosing.promise_recall(np.zeros(gold.nnz), gold, recall)  # refused before any long work
    else:
        choosing.check_choice(rule, by)
    places = []
    right = []
    begin = 0
    for logits in reading.logits(model, texts, batch):
        scores = logits.float().cpu().numpy()
        part = gold[begin : begin + len(scores)].tocoo()
        right.append(scores[part.row, part.col])
        places.append(TopK.from_dense(scores, min(PLACES, scores.shape[1])))
        begin += len(scores)
    if recall is not None:
        chosen = choosing.promise_recall(np.concatenate(right), gold, recall)
    else:
        chosen = choosing.choose(TopK.concat(places), gold, rule, by)
    model.config.label_rule = chosen.as_dict()
    return chosen


def label_sets(model: Any, texts: list[str], batch: int = 16) -> list[list[tuple[str, float]]]:
    """The labels of each text that the model's rule accepts, best first, with their chances.

    A document may have none. See `PlantModel.predict` for the scores.
    """
    rule = rule_of(model)
    names = model.config.id2label
    sets = []
    for logits in reading.logits(model, texts, batch):
        scores = logits.float().cpu().numpy()
        accepted = rule.accepts(scores)
        most = max(int(accepted.sum(1).max(initial=0)), 1)
        best = TopK.from_dense(np.where(accepted, scores, -np.inf), most)
        chance = chances(best.scores, model.config.calibration)
        for ids, row in zip(best.ids.tolist(), chance.tolist(), strict=True):
            sets.append([(names[i], s) for i, s in zip(ids, row, strict=True) if i >= 0])
    return sets


def in_columns(labels: Sequence[Sequence[str]], names: Sequence[str]) -> sparse.csr_matrix:
    """(N, L) csr of ones: lists of labels in the columns `names`; other labels are left out."""
    column = {name: i for i, name in enumerate(names)}
    known = [sorted({column[x] for x in row if x in column}) for row in labels]
    indptr = np.cumsum([0, *(len(row) for row in known)])
    indices = np.array([i for row in known for i in row], np.int64)
    shape = (len(known), len(column))
    return sparse.csr_matrix((np.ones(len(indices), np.int32), indices, indptr), shape=shape)


def save_rule(model: Any, folder: str | Path) -> None:
    """Write the model's rule into the configuration of its saved folder; nothing else changes."""
    path = Path(folder) / "config.json"
    write_json(path, read_json(path) | {"label_rule": model.config.label_rule})
    list_again(folder, path.name)
