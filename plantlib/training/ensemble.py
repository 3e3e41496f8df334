"""Several PlantModels whose logits are summed, as the first version's forward and backward models
are; one record for the sum.

Realises METHOD.md section 4, "forward and backward models, predictions summed". Members may read
with different backbones and tokenizers, but must name the same labels in the same order. Threshold
and calibration of the sum come from dev; test is read once. Members are trained by
`runs.run_start`; nothing is trained here.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch

from plantlib.metrics.documents import Scores, StreamingEvaluator
from plantlib.model.plant_model import PlantModel
from plantlib.planting.l2r import check_same
from plantlib.training.evaluation import calibrate, judge
from plantlib.training.inputs import Documents, Inputs
from plantlib.training.records import RunRecord, peak_memory, plain
from plantlib.utils.io import atomic_path, fingerprint_of, read_json, write_json

SUM = " ensemble"  # after a member's system: the system of summed logits


class Ensemble:
    """Models of one label space; `predict` sums their logits. threshold and calibration (slope,
    shift) belong to the sum.
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
        self.models, self.threshold, self.calibration = list(models), threshold, calibration

    @torch.inference_mode()
    def logits(self, texts: list[str]) -> torch.Tensor:
        """(B, L) summed logits; every model tokenises the texts its own way."""
        found = [
            model.eval()(
                *model._packed(model.tokenise(texts)), linear_scores=model.word_scores(texts)
            )
            for model in self.models
        ]
        return sum(one.logits.float().cpu() for one in found)

    def predict(
        self, texts: list[str], k: int = 8, batch: int = 16
    ) -> list[list[tuple[str, float]]]:
        """The k best labels of every text with scores calibrated on dev."""
        if isinstance(texts, str):
            raise ValueError("predict takes a list of texts, got one string; write predict([text])")
        out, (slope, shift) = [], self.calibration or [1.0, 0.0]
        for begin in range(0, len(texts), batch):
            best = self.logits(texts[begin : begin + batch]).topk(min(k, len(self.names)), dim=1)
            scores = torch.sigmoid(best.values * slope + shift)
            out += [
                [(self.names[i], s) for i, s in zip(*row, strict=True)]
                for row in zip(best.indices.tolist(), scores.tolist(), strict=True)
            ]
        return out

    def save_pretrained(self, folder: str | Path) -> None:
        """One folder: every member as a model of its own, and ensemble.json."""
        with atomic_path(folder) as temporary:
            Path(temporary).mkdir(parents=True, exist_ok=True)
            for i, model in enumerate(self.models):
                model.save_pretrained(Path(temporary) / f"member-{i}")
            about = {
                "members": len(self.models),
                "threshold": self.threshold,
                "calibration": self.calibration,
            }
            write_json(Path(temporary) / "ensemble.json", about)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Ensemble:
        """Load what save_pretrained wrote."""
        about = read_json(Path(folder) / "ensemble.json")
        models = [
            PlantModel.from_pretrained(Path(folder) / f"member-{i}")
            for i in range(about["members"])
        ]
        return cls(models, about["threshold"], about["calibration"])


def label_names(model: PlantModel) -> list[str]:
    """Names of the labels in the order of the logits."""
    return [model.config.id2label[i] for i in range(model.config.num_labels)]


def score(
    models: list[PlantModel],
    documents: list[Documents],
    train_counts: np.ndarray,
    *,
    batch_size=16,
    auc=True,
) -> Scores:
    """Scores of a split from summed logits; documents[i] holds the same rows as models[i] reads
    them.
    """
    rows, labels = documents[0].rows, documents[0].labels[documents[0].rows]
    evaluator = StreamingEvaluator(
        labels, train_counts, 100, documents[0].edges, 2048 if auc else None
    )
    order = np.argsort(-documents[0].tokens.lengths[rows], kind="stable")
    with torch.inference_mode():
        for begin in range(0, len(order), batch_size):
            part = order[begin : begin + batch_size]
            found = [
                _logits(m.eval(), d, rows[part]) for m, d in zip(models, documents, strict=True)
            ]
            evaluator.update(part, sum(found))
    return evaluator.result()


def _logits(model: PlantModel, documents: Documents, rows: np.ndarray) -> torch.Tensor:
    device = next(model.parameters()).device
    batch = documents.collate([int(r) for r in rows])
    return (
        model(**{n: v.to(device) for n, v in batch.items() if not n.startswith("label_")})
        .logits.float()
        .cpu()
    )


def run_ensemble(
    members: list[tuple[Inputs, PlantModel]],
    *,
    results: str | Path | None = None,
    run_id: str | None = None,
    notebook: str | None = None,
) -> tuple[RunRecord, Ensemble]:
    """Threshold and calibration of the sum from dev, one reading of test, one record; members are
    models of `run_start`.
    """
    (first, one), began = members[0], time.perf_counter()
    for prepared, model in members[1:]:
        if (
            prepared.corpus.fingerprint() != first.corpus.fingerprint()
            or model.record.seed != one.record.seed
        ):
            raise ValueError(
                f"members were trained on {first.corpus.name!r} and {prepared.corpus.name!r}, seeds"
                f" {one.record.seed} and {model.record.seed}; an ensemble is stated on one corpus,"
                " one set of documents and one seed"
            )
    ensemble = Ensemble([model for _, model in members])
    train_counts, dev_labels = first.train_counts, first.corpus.labels[first.rows["dev"]]
    read = {
        split: [_documents(prepared, model, split) for prepared, model in members]
        for split in ("dev", "test")
    }
    dev = score(ensemble.models, read["dev"], train_counts, auc=False)
    judged = judge(first, dev, score(ensemble.models, read["test"], train_counts))
    ensemble.threshold, ensemble.calibration = (
        judged["threshold"],
        calibrate(dev.topk, dev_labels),
    )
    system = one.record.system + SUM
    record = RunRecord(
        id=run_id or f"{one.record.id}-ensemble",
        kind="planted",
        system=system,
        seed=one.record.seed,
        params={
            "members": [model.record.id for _, model in members],
            "inputs": [p.key for p, _ in members],
            "made_of": made_of([model.record for _, model in members]),
            "tuning": one.record.params.get("tuning", "frozen"),
        },
        notebook=notebook,
        backbone=" + ".join(str(model.record.backbone) for _, model in members),
        times={"evaluate": round(time.perf_counter() - began, 2)},
        peak_memory_mb=peak_memory(),
        **judged,
    )
    if results is not None:
        record.save(results)
    return record, ensemble


def made_of(records: list[RunRecord]) -> str:
    """16 hex digits of the members' parameters, trained gains among them: of other trainings it is
    another sum.
    """
    return fingerprint_of(json.dumps(plain([record.params for record in records]), sort_keys=True))


def _documents(prepared: Inputs, model: PlantModel, split: str) -> Documents:
    """As the model was trained to read them: from cached features while it has no backbone of its
    own.
    """
    documents = prepared.documents(split, cached=model.backbone is None)
    documents.linear = model.linear_of(prepared.corpus.texts)
    return documents
