"""Models whose logits are summed, such as a forward and a backward model; one record for the sum.

See docs/method.md, "The first version (v1)". Members may have different backbones and tokenizers,
but the same labels in the same order. Threshold and calibration of the sum come from dev; test is
read once. Nothing is trained here: `runs.run_start` trains the members.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch

from plantlib.metrics.calibration import chances
from plantlib.metrics.documents import Scores, StreamingEvaluator
from plantlib.metrics.topk import TopK
from plantlib.model import reading
from plantlib.model.plant_model import PlantModel
from plantlib.planting.l2r import check_same
from plantlib.training.evaluation import AUC_BINS, calibrate, judge
from plantlib.training.inputs import Documents, Inputs
from plantlib.training.records import RunRecord, peak_memory, plain
from plantlib.utils.checks import check_whole, is_whole
from plantlib.utils.folders import atomic_folder, verify
from plantlib.utils.io import fingerprint_of, read_json, write_json

SUM = " ensemble"  # the system of summed logits: this after the system of the first member


class Ensemble:
    """Models of one label space, and the sum of their logits.

    Args:
        models: at least two.
        threshold: score above which the sum predicts a label.
        calibration: the curve from summed logits to scores, see `metrics.calibration`.

    Raises:
        ValueError: fewer than two models, or models of different labels.
    """

    def __init__(
        self,
        models: list[PlantModel],
        threshold: float = 0.5,
        calibration: list[float] | None = None,
    ):
        if len(models) < 2:
            raise ValueError(
                f"an ensemble of {len(models)} model(s); give two at least, or use the model itself"
            )
        self.names = label_names(models[0])
        for model in models[1:]:
            check_same("labels", label_names(model), self.names)
        self.models = list(models)
        self.threshold = threshold
        self.calibration = calibration

    @torch.inference_mode()
    def logits(self, texts: list[str]) -> torch.Tensor:
        """(B, L) summed logits of B texts; each model uses its own tokenizer."""
        logits = []
        for model in self.models:
            [of_model] = reading.logits(model, texts, max(len(texts), 1))
            logits.append(of_model.float().cpu())
        return sum(logits)

    def predict(
        self, texts: list[str], k: int = 8, batch: int = 16
    ) -> list[list[tuple[str, float]]]:
        """The k best labels of each text, best first.

        Args:
            texts: N documents.
            k: labels per document, at most L.
            batch: documents read at a time.

        Returns:
            for each text, pairs of a label and its calibrated score.

        Raises:
            ValueError: one string instead of a list.
        """
        if isinstance(texts, str):
            raise ValueError("predict takes a list of texts, got one string; write predict([text])")
        check_whole("k", k)
        check_whole("batch", batch)
        predictions = []
        for begin in range(0, len(texts), batch):
            logits = self.logits(texts[begin : begin + batch])
            best = TopK.from_dense(logits, min(k, len(self.names)))
            scores = chances(best.scores, self.calibration)
            for ids, row in zip(best.ids.tolist(), scores.tolist(), strict=True):
                predictions.append([(self.names[i], s) for i, s in zip(ids, row, strict=True)])
        return predictions

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder: each member as a model that can be loaded alone, and ensemble.json."""
        with atomic_folder(folder, "ensemble") as temporary:
            for i, model in enumerate(self.models):
                model.save_pretrained(temporary / f"member-{i}")
            about = {
                "members": len(self.models),
                "threshold": self.threshold,
                "calibration": self.calibration,
            }
            write_json(temporary / "ensemble.json", about)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Ensemble:
        """Load what `save_pretrained` wrote."""
        folder = Path(folder)
        verify(folder, "ensemble", "copy the whole folder again, or save the ensemble again")
        about = read_json(folder / "ensemble.json")
        if not isinstance(about, dict) or not is_whole(about.get("members")):
            raise ValueError(f"{folder}/ensemble.json is not as Ensemble wrote it; save it again")
        members = [folder / f"member-{i}" for i in range(about["members"])]
        models = [PlantModel.from_pretrained(member) for member in members]
        return cls(models, about["threshold"], about["calibration"])


def label_names(model: PlantModel) -> list[str]:
    """Names of the labels in the order of the logits."""
    return [model.config.id2label[i] for i in range(model.config.num_labels)]


def score(
    models: list[PlantModel],
    documents: list[Documents],
    train_counts: np.ndarray,
    *,
    batch_size: int = 16,
    auc: bool = True,
) -> Scores:
    """Scores of a split from summed logits.

    Args:
        documents: the same rows of a corpus for each model, in the tokens that it reads.
        train_counts: (L,) training documents per label, for the frequency buckets.
        batch_size: documents read at a time.
        auc: collect what AUC needs.
    """
    first = documents[0]
    evaluator = StreamingEvaluator(
        first.labels[first.rows], train_counts, 100, first.edges, AUC_BINS if auc else None
    )
    order = np.argsort(-first.tokens.lengths[first.rows], kind="stable")
    with torch.inference_mode():
        for begin in range(0, len(order), batch_size):
            part = order[begin : begin + batch_size]
            members = zip(models, documents, strict=True)
            logits = sum(_logits(model, read, first.rows[part]) for model, read in members)
            evaluator.update(part, logits)
    return evaluator.result()


def _logits(model: PlantModel, documents: Documents, rows: np.ndarray) -> torch.Tensor:
    """(b, L) logits of one model for the documents in `rows` (b,)."""
    device = next(model.parameters()).device
    batch = documents.collate([int(row) for row in rows])
    tensors = {n: value.to(device) for n, value in batch.items() if not n.startswith("label_")}
    return model.eval()(**tensors).logits.float().cpu()


def run_ensemble(
    members: list[tuple[Inputs, PlantModel]],
    *,
    results: str | Path | None = None,
    run_id: str | None = None,
    notebook: str | None = None,
) -> tuple[RunRecord, Ensemble]:
    """Sum the members' logits, take threshold and calibration from dev, and read test once.

    Args:
        members: models of `runs.run_start`, with the inputs they were trained on.
        results: folder the record is saved in; None saves nothing.
        run_id: name of the record, and of its file; that of the first member and "-ensemble" when
            None.
        notebook: stated in the record.

    Returns:
        the record of the sum, and the ensemble.

    Raises:
        ValueError: members of different documents, labels or seeds.
    """
    began = time.perf_counter()
    first = members[0][0]
    models = [model for _, model in members]
    records = [model.record for model in models]
    for (inputs, _), record in zip(members, records, strict=True):
        same_corpus = inputs.corpus.fingerprint() == first.corpus.fingerprint()
        if not same_corpus or record.seed != records[0].seed:
            raise ValueError(
                f"members were trained on {first.corpus.name!r} and {inputs.corpus.name!r}, seeds"
                f" {records[0].seed} and {record.seed}; the members of an ensemble need the same"
                " documents and the same seed"
            )
    ensemble = Ensemble(models)

    # dev decides, test is read once
    dev_documents = [_documents(inputs, model, "dev") for inputs, model in members]
    test_documents = [_documents(inputs, model, "test") for inputs, model in members]
    dev = score(models, dev_documents, first.train_counts, auc=False)
    judged = judge(first, dev, score(models, test_documents, first.train_counts))
    ensemble.threshold = judged["threshold"]
    ensemble.calibration = calibrate(dev.topk, first.corpus.labels[first.rows["dev"]])

    record = RunRecord(
        id=run_id or f"{records[0].id}-ensemble",
        kind="planted",
        system=records[0].system + SUM,
        seed=records[0].seed,
        params={
            "members": [record.id for record in records],
            "inputs": [inputs.key for inputs, _ in members],
            "made_of": made_of(records),
            "tuning": records[0].params.get("tuning", "frozen"),
        },
        notebook=notebook,
        backbone=" + ".join(str(record.backbone) for record in records),
        times={"evaluate": round(time.perf_counter() - began, 2)},
        peak_memory_mb=peak_memory(),
        **judged,
    )
    if results is not None:
        record.save(results)
    return record, ensemble


def made_of(records: list[RunRecord]) -> str:
    """Fingerprint (16 hex digits) of the members' parameters.

    Trained gains are among them, so it changes when a member is trained again.
    """
    return fingerprint_of(json.dumps(plain([record.params for record in records]), sort_keys=True))


def _documents(inputs: Inputs, model: PlantModel, split: str) -> Documents:
    """A split as the model was trained to read it: from cached features if it has no backbone."""
    documents = inputs.documents(split, cached=model.backbone is None)
    documents.linear = reading.linear_of(model, inputs.corpus.texts)
    return documents
