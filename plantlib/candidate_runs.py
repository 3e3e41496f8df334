"""One run of the decoder on candidates, to a RunRecord: MI and J rank, positives join in training alone, the best epoch by dev.

The counterpart of `runs.run_start` for label sets too large to score whole, on the cached features of a frozen backbone. The
record states recall@C of the candidates, which bounds every other number; labels outside a document's candidates are missed.
"""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from plantlib import candidate_decoder, candidates, mig
from plantlib.candidate_decoder import CandidateConfig, CandidateData, CandidateDecoder
from plantlib.data import DataError
from plantlib.decoder import Packed
from plantlib.metrics import Scores, TopK, mean, ndcg_at_k
from plantlib.pipeline import Prepared
from plantlib.results import RunRecord
from plantlib.runs import peak_memory, run_name


def data_of(prepared: Prepared, config: CandidateConfig, progress: bool = True) -> CandidateData:
    """Rankings, weights and packed features of a prepared corpus; teachers MI and J of its training rows."""
    if prepared.features is None:
        raise DataError("candidates are trained on cached features; call prepare(..., frozen=True)")
    train, counts = prepared.rows["train"], prepared.counts
    features = replace(prepared.features, standard=prepared.standard)
    taught = tuple(mig.teach(counts[train], prepared.train_labels, variant=v, relevance="score") for v in ("raw", "jaccard"))

    def packed(rows: np.ndarray) -> Packed:
        tokens = prepared.tokens.select(rows)
        ids = torch.from_numpy(tokens.flat.astype(np.int64))
        return Packed(torch.from_numpy(features.documents(rows)), ids, torch.from_numpy(tokens.offsets))

    return CandidateData.of(packed, counts, train, prepared.corpus.labels, taught, config, progress)


def run_candidates(
    prepared: Prepared, config: CandidateConfig | None = None, *, results: str | Path | None = None,
    progress: bool = True,
) -> tuple[RunRecord, CandidateDecoder]:  # fmt: skip
    """Rank, plant, train, keep the epoch with the best dev nDCG@5, read test once; the record is saved when asked."""
    began, labels, rows, config = time.perf_counter(), prepared.corpus.labels, prepared.rows, config or CandidateConfig()
    torch.manual_seed(config.seed)
    data = data_of(prepared, config, progress)
    times = {"teacher": round(time.perf_counter() - began, 2)}
    decoder = CandidateDecoder(labels.shape[1], prepared.hidden_size, config.rank)
    candidate_decoder.plant(decoder, prepared.train_labels, config)
    history, best = [], (-1.0, 0, decoder.state_dict())

    def after_epoch(epoch: int, loss: float) -> None:
        nonlocal best
        value = mean(ndcg_at_k(candidate_decoder.predict(decoder, data, rows["dev"], config), labels[rows["dev"]], 5))
        history.append({"epoch": epoch, "train_loss": round(loss, 4), "ndcg@5": value})
        if value > best[0]:
            best = (value, epoch, copy.deepcopy(decoder.state_dict()))

    candidate_decoder.fit(decoder, data, rows["train"], labels, config, progress, after_epoch)
    decoder.load_state_dict(best[2])
    times["fine_tune"] = round(time.perf_counter() - began - times["teacher"], 2)
    found = {s: candidate_decoder.predict(decoder, data, rows[s], config) for s in ("dev", "test")}
    record = _record(prepared, config, data, found, history, best[1], times)
    if results is not None:
        record.save(results)
    return record, decoder


def _record(prepared, config, data, found: dict[str, TopK], history, chosen: int, times) -> RunRecord:
    """Threshold from dev, metrics and recall@C of test."""
    labels, test = prepared.corpus.labels, prepared.rows["test"]
    judged = prepared.judge(Scores(found["dev"]), Scores(found["test"]))
    reach = candidates.recall(data.ranked[test], labels[test], (config.width,))
    judged["metrics"] |= {f"recall@{c} of candidates": value for c, value in reach.items()}
    size = candidate_decoder.table_bytes(labels.shape[1], prepared.hidden_size, config.rank) // 4
    return RunRecord(
        id=run_name(prepared, "candidates", config.seed), kind="planted", system="candidates",
        seed=config.seed, params=asdict(config) | {"max_tokens": prepared.max_tokens, "inputs": prepared.key},
        backbone=Path(prepared.backbone).name, teacher={"variant": "MI and J", "top_k": 64}, history=history,
        chosen_epoch=chosen, times=times, peak_memory_mb=peak_memory(), model_size={"trained_parameters": size}, **judged,
    )  # fmt: skip
