"""Scores of a split, and what is decided and measured by them: docs/method.md, "Choosing on dev,
reading test once".

Threshold and calibration come from dev; test is scored once, after training. An (N, L) matrix of
scores never exists: of a document its best k labels and the ranks of its gold labels are kept.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from scipy import sparse

from plantlib.linear import rare
from plantlib.linear.phrase_term import TextScore
from plantlib.linear.score import LinearScore
from plantlib.metrics import calibration
from plantlib.metrics.choosing import choose
from plantlib.metrics.documents import (
    Scores,
    StreamingEvaluator,
    evaluate,
    f1_scores,
    hits,
    label_counts,
    ndcg_at_k,
    per_document,
    tune_threshold,
)
from plantlib.metrics.topk import TopK
from plantlib.model import reading
from plantlib.model.plant_model import PlantModel
from plantlib.teacher.phrase_cells import DocumentCells
from plantlib.training.inputs import Documents, Inputs
from plantlib.utils.progress import tqdm

AUC_BINS = 2048  # of the histogram of scores that the AUC of a label is read from


def score(
    model: PlantModel,
    documents: Documents,
    train_counts: np.ndarray,
    batch_size: int = 16,
    auc: bool = True,
    k: int = 100,
    progress: bool = False,
) -> tuple[Scores, sparse.csr_matrix]:
    """Scores of a data set by one forward pass, documents batched by length.

    Args:
        train_counts: (L,) training documents per label, for the frequency buckets.
        auc: collect what AUC needs; dev does without.
        k: places kept per document.

    Returns:
        the scores, and the gold labels (n, L) of the same documents.
    """
    labels = documents.labels[documents.rows]
    evaluator = StreamingEvaluator(
        labels, train_counts, k, documents.edges, AUC_BINS if auc else None
    )
    order = np.argsort(-documents.tokens.lengths[documents.rows], kind="stable")
    device = next(model.parameters()).device
    # word vectors are read once for each distinct word of many documents
    planted_apart = documents.withheld is not None or documents.cells is not None
    states = None if planted_apart else reading.word_states(model, documents.features)
    if states is not None:
        batch_size = reading.distinct_batch(batch_size, labels.shape[1])
    training = model.training
    model.eval()
    with torch.inference_mode():
        for begin in tqdm(range(0, len(order), batch_size), desc="batches", disable=not progress):
            part = order[begin : begin + batch_size]
            rows = [int(row) for row in documents.rows[part]]
            batch = documents.collate(rows, hidden=states is None)
            if states is not None:
                read = (batch["token_ids"], batch["offsets"], batch.get("linear_scores"))
                evaluator.update(part, reading.of_distinct(model, states, *read).float())
                continue
            # without labels the model computes no loss
            batch = {
                name: value.to(device)
                for name, value in batch.items()
                if not name.startswith("label_")
            }
            evaluator.update(part, model(**batch).logits.float())
    model.train(training)
    return evaluator.result(), labels


def judge(inputs: Inputs, dev: Scores, test: Scores | None) -> dict:
    """Choose the threshold of F1 on dev, then measure test, where there is one.

    Returns:
        the fields dataset, threshold, metrics and per_document of a RunRecord. Metrics that end in
        `_by_label` have thresholds of labels, those that end in `_by_place` thresholds of places
        and documents, by micro F1 of dev.
    """
    rows = inputs.rows
    dev_gold = inputs.corpus.labels[rows["dev"]]
    threshold = tune_threshold(dev.topk, dev_gold)
    chosen = {"dataset": inputs.about(), "threshold": threshold}
    if test is None:
        return chosen | {"metrics": {}, "per_document": {}}
    gold = inputs.corpus.labels[rows["test"]]
    extra_gold = inputs.extra_gold[rows["test"]]
    metrics = evaluate(test, gold, inputs.train_counts, len(rows["train"]), threshold, extra_gold)
    for kind, end in (("labels", "_by_label"), ("places", "_by_place")):
        counts = label_counts(test.topk, gold, choose(dev.topk, dev_gold, kind))
        own = f1_scores(counts)
        metrics |= {f"{name}{end}": own[name] for name in ("micro_f1", "macro_f1")}
        metrics[f"all/micro_f1{end}"] = f1_scores(counts, extra_gold.sum())["micro_f1"]
    return chosen | {"metrics": metrics, "per_document": per_document(test, gold)}


def judge_model(
    model: PlantModel,
    inputs: Inputs,
    cached: bool = True,
    linear: LinearScore | TextScore | None = None,
    cells: DocumentCells | None = None,
) -> dict:
    """Score dev, then test where there is one, and `judge`.

    The model keeps the threshold and the calibration.

    Args:
        cached: read cached features of the frozen backbone.
        linear: the score of whole texts, where the start plants one.
        cells: planted cells of phrases, where it plants them.
    """
    dev, dev_labels = dev_scores(model, inputs, cached, linear, cells)
    test = None
    if len(inputs.rows["test"]):
        documents = inputs.documents("test", cached, linear, cells=cells)
        test, _ = score(model, documents, inputs.train_counts)
    judged = judge(inputs, dev, test)
    model.config.threshold = judged["threshold"]
    model.config.calibration = calibrate(dev.topk, dev_labels)
    return judged


def raise_rare(
    model: PlantModel,
    inputs: Inputs,
    cached: bool = True,
    linear: LinearScore | TextScore | None = None,
    cells: DocumentCells | None = None,
) -> dict:
    """Add to the biases of labels of few documents what dev allows, see `linear.rare`.

    Arguments as for `judge_model`.

    Returns:
        the entry of the record's params, the logits that labels of up to 3 documents got; none for
        the published running state, which reads its own biases.
    """
    if model.decoder.stateful == "v1":
        return {}
    dev, labels = dev_scores(model, inputs, cached, linear, cells)
    return {"rare_added": add_to_rare(model.decoder.label_bias, dev, labels, inputs.train_counts)}


def add_to_rare(
    bias: torch.Tensor, dev: Scores, labels: sparse.csr_matrix, train_counts: np.ndarray
) -> float:
    """Add to biases (L,), in place, what `rare.added_to` chooses on dev; the most of it."""
    added = rare.added_to(dev, labels, train_counts)
    with torch.no_grad():
        bias += torch.from_numpy(added).to(bias)
    return float(added.max())


def dev_scores(
    model: PlantModel,
    inputs: Inputs,
    cached: bool,
    linear: LinearScore | TextScore | None,
    cells: DocumentCells | None,
) -> tuple[Scores, sparse.csr_matrix]:
    """`score` of dev without AUC; arguments as for `judge_model`."""
    documents = inputs.documents("dev", cached, linear, cells=cells)
    return score(model, documents, inputs.train_counts, auc=False)


def dev_values(
    model: PlantModel,
    inputs: Inputs,
    linear: LinearScore | TextScore | None = None,
    cells: DocumentCells | None = None,
) -> np.ndarray:
    """(n,) `CHOSEN_BY`, nDCG@5, of each dev document with a label, on cached features."""
    scores, labels = dev_scores(model, inputs, True, linear, cells)
    values = ndcg_at_k(scores.topk, labels, 5)
    return values[np.isfinite(values)]


def calibrate(topk: TopK, labels: sparse.csr_matrix) -> list[float]:
    """The curve from scores to chances of being right, `metrics.calibration.fit` on dev.

    Warns where dev has fewer right labels among its best places than a curve needs.

    Args:
        topk: best places of the dev documents.
        labels: (n, L) gold labels of the same documents.
    """
    used = topk.ids >= 0
    right = hits(topk, labels, topk.k)[used]
    if right.sum() < calibration.FEW:
        warnings.warn(
            f"dev has {int(right.sum())} right labels among the best {topk.k} of its"
            f" {len(topk.ids)} documents, and calibration wants {calibration.FEW}: read the scores"
            " as an order, not as chances, or give more dev documents",
            stacklevel=2,
        )
    return calibration.fit(topk.scores[used], right)
