"""One run of the decoder on candidates, to a RunRecord: a ranking, a start, the best epoch by dev.

The counterpart of `runs.run_start` for corpora where every document against every label is too
much, on the cached features of a frozen backbone. The record states recall@C of the candidates,
which bounds every other number; labels outside a document's candidates are missed.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy import sparse

from plantlib.candidates import decoder as candidate_decoder
from plantlib.candidates import lists as candidates
from plantlib.candidates.decoder import CandidateConfig, CandidateDecoder
from plantlib.candidates.training import LEARNING_RATE, CandidateData, fit, ranking, score
from plantlib.kernels import machine
from plantlib.linear.score import LinearConfig, LinearScore, word_cells
from plantlib.metrics.buckets import EDGES, Edges, checked
from plantlib.metrics.documents import Scores, evaluate, mean, ndcg_at_k
from plantlib.metrics.topk import TopK
from plantlib.planting.decoder import Packed
from plantlib.teacher import mig
from plantlib.training import artefacts
from plantlib.training.evaluation import judge
from plantlib.training.inputs import Inputs
from plantlib.training.options import HISTORY_METRICS
from plantlib.training.records import RunRecord, agrees, peak_memory, run_name
from plantlib.utils.base import DataError
from plantlib.utils.io import atomic_path, fingerprint_of, read_json, write_json
from plantlib.utils.progress import tqdm

# times the learning rate where training begins from the linear score, whose ranking larger steps
# would spoil
LINEAR_RATE = 0.1
RARE_LOSS = 0.002  # of dev's nDCG@5, what raising labels of few documents in the end may cost
RAISED = ", rare raised"  # what the name of a start is followed by where rare labels are


def data_of(
    prepared: Inputs,
    config: CandidateConfig,
    start: str = "lookup+score",
    seed: int = 0,
    progress: bool = True,
) -> tuple[CandidateData, LinearScore | None]:
    """Rankings, scores and packed features of a prepared corpus for `start`, and the linear score
    where it plants one.
    """
    if prepared.features is None:
        raise DataError("candidates are trained on cached features; call prepare(..., frozen=True)")
    parts, train, counts = (
        candidate_decoder.parts_of(start),
        prepared.rows["train"],
        prepared.counts,
    )
    features = replace(prepared.features, standard=artefacts.standard(prepared))
    taught = mig.teach(counts[train], prepared.train_labels, variant="raw", relevance="score")
    relevance = (taught.shuffled(seed) if "shuffled" in parts else taught).relevance

    def packed(rows: np.ndarray) -> Packed:
        tokens = prepared.tokens.select(rows)
        ids = torch.from_numpy(tokens.flat.astype(np.int64))
        return Packed(
            torch.from_numpy(features.documents(rows)), ids, torch.from_numpy(tokens.offsets)
        )

    if "linear" in parts:
        # one linear score for all seeds: candidates stay the same, and it is the longest step of a
        # large corpus
        linear = artefacts.linear_scores(prepared, LinearConfig(), progress)
        added = config.rare * rare(prepared.train_counts, prepared.edges)
        return CandidateData.of_linear(packed, linear, relevance, config, progress, added), linear
    both = (
        taught,
        mig.teach(counts[train], prepared.train_labels, variant="jaccard", relevance="score"),
    )
    data = CandidateData.of_teachers(
        packed, counts, train, prepared.corpus.L, both, relevance, config, progress
    )
    return data if "score" in parts else replace(data, scores=None), None


def run_candidates(
    prepared: Inputs,
    config: CandidateConfig | None = None,
    start: str = "lookup+score",
    *,
    seed: int = 0,
    results: str | Path | None = None,
    notebook: str | None = None,
    progress: bool = True,
) -> tuple[RunRecord, CandidateDecoder]:
    """Rank, plant, train, keep the epoch with the best dev nDCG@5, read test once; the record is
    saved when asked.

    A run that begins from a score may keep epoch 0, the score itself. With `config.rare` and the
    linear score, labels of few documents keep their score and are raised in the end as far as dev
    allows (`rare_labels.py`). A killed run goes on after its last whole epoch.
    """
    began, cpu, config = time.perf_counter(), time.process_time(), config or CandidateConfig()
    labels, rows = prepared.corpus.labels, prepared.rows
    parts = check_start(start, config)
    check_width(prepared.train_labels, config.width)
    torch.manual_seed(seed)
    data, linear = data_of(prepared, config, start, seed, progress)
    times = {"teacher": round(time.perf_counter() - began, 2)}
    decoder = CandidateDecoder(labels.shape[1], prepared.hidden_size, config.rank)
    candidate_decoder.plant(decoder, prepared.train_labels, start, seed=seed)
    decoder.to(machine.device())
    run_id = run_id_of(prepared, start, config, seed)
    folder = (
        prepared.root
        / "checkpoints"
        / f"{run_id}-{fingerprint_of(prepared.key, start, asdict(config), seed)}"
    )
    kept = Kept(decoder, folder)
    resumed = bool(kept.history)
    clock, before = (
        time.perf_counter(),
        kept.history[-1].get("seconds", 0.0) if kept.history else 0.0,
    )

    def after_epoch(epoch: int, loss: float | None) -> None:
        seconds = round(before + time.perf_counter() - clock, 2)
        dev = score(decoder, data, rows["dev"], config, prepared.train_counts, edges=prepared.edges)
        found = evaluate(dev, labels[rows["dev"]], prepared.train_counts, len(rows["train"]))
        row = {"epoch": epoch, "seconds": seconds} | (
            {} if loss is None else {"train_loss": round(loss, 4)}
        )
        kept.offer(
            row
            | {
                name: round(found[name], 6)
                for name in HISTORY_METRICS
                if np.isfinite(found.get(name, np.nan))
            }
        )

    if {"linear", "score"} & set(parts) and not kept.history:
        after_epoch(0, None)
    rate = LEARNING_RATE * (LINEAR_RATE if "linear" in parts else 1.0)
    # where labels of few documents are raised their outputs and biases do not learn, so that the
    # score speaks for them
    still = rare(prepared.train_counts, prepared.edges) if config.rare else None
    fit(
        decoder,
        data,
        rows["train"],
        labels,
        config,
        rate=rate,
        seed=seed,
        folder=folder,
        progress=progress,
        after_epoch=after_epoch,
        still=still,
    )
    kept.restore()
    about = raise_rare(decoder, data, prepared, config) if config.rare else {}
    times["fine_tune"] = round(time.perf_counter() - began - times["teacher"], 2)
    if not resumed:  # what a killed process spent is not known
        times["train_cpu"] = round(time.process_time() - cpu, 2)
    found = {
        s: score(decoder, data, rows[s], config, prepared.train_counts, edges=prepared.edges)
        for s in ("dev", "test")
    }
    record = _record(
        prepared, config, start, seed, run_id, data, found, kept, times, linear, notebook
    )
    record = replace(record, params=record.params | about)
    if results is not None:
        record.save(results)
    shutil.rmtree(folder, ignore_errors=True)
    return record, decoder


def raise_rare(
    decoder: CandidateDecoder, data: CandidateData, prepared: Inputs, config: CandidateConfig
) -> dict:
    """Add to the biases of labels of few documents what dev allows; what the record says of it."""
    which, dev = rare(prepared.train_counts, prepared.edges), prepared.rows["dev"]
    listed = ranking(decoder, data, dev, config)
    added, tried = choose(listed, prepared.corpus.labels[dev], which, config.rare, RARE_LOSS)
    with torch.no_grad():
        decoder.label_bias.weight += (
            added * torch.from_numpy(which).to(decoder.label_bias.weight)[:, None]
        )
    return {"rare_added": added, "rare_tried": tried}


def candidate_grid(
    prepared: Inputs,
    starts=("lookup+score",),
    seeds=(0, 1, 2),
    *,
    config: CandidateConfig | None = None,
    results: str | Path,
    notebook: str | None = None,
    progress: bool = True,
) -> list[RunRecord]:
    """Every start with every seed; runs whose record stands in `results` with the same parameters
    are read, not repeated.
    """
    config, records = config or CandidateConfig(), []
    for start in starts:
        # a misspelt start is an error before the first run, not after it
        check_start(start, config)
    wanted = asdict(config) | {"inputs": prepared.key}
    jobs = [(start, seed) for seed in seeds for start in starts]
    for start, seed in tqdm(jobs, desc="runs", unit="run", disable=not progress):
        path = Path(results) / f"{run_id_of(prepared, start, config, seed)}.json"
        record = RunRecord.load(path) if path.exists() else None
        if record is None or record.seed != seed or not agrees(record, wanted):
            record, _ = run_candidates(
                prepared,
                config,
                start,
                seed=seed,
                results=results,
                notebook=notebook,
                progress=progress,
            )
        records.append(record)
    return records


def check_start(start: str, config: CandidateConfig) -> list[str]:
    """The parts of a start; ValueError for one that candidates do not know, or that lists none by a
    linear score to raise.
    """
    parts = candidate_decoder.parts_of(start)
    if config.rare and "linear" not in parts:
        raise ValueError(
            f"rare={config.rare} raises labels in the linear score's lists, and start {start!r} has"
            " none; use linear or lookup+linear, or rare=0"
        )
    return parts


def check_width(labels: sparse.csr_matrix, width: int) -> None:
    """DataError where a training document has more labels than candidate places; labels (n, L)."""
    most = int(np.diff(labels.indptr).max(initial=0))
    if most > width:
        raise DataError(
            f"a training document has {most} labels and {width} candidate places; use {most}"
            " candidates or more"
        )


def run_id_of(prepared: Inputs, start: str, config: CandidateConfig, seed: int) -> str:
    """The name of a run, with its number of candidates, and whether rare labels are raised."""
    return run_name(prepared, f"{start}-{config.width}c{'-rare' if config.rare else ''}", seed)


class Kept:
    """The best epoch of a decoder by dev nDCG@5, the earliest if tied, on disk beside the history."""

    def __init__(self, decoder: CandidateDecoder, folder: Path):
        self.decoder, self.best, self.log = (
            decoder,
            folder / "best.safetensors",
            folder / "history.json",
        )
        done = folder / "epoch.safetensors"
        self.history: list[dict] = (
            read_json(self.log) if self.log.exists() and done.exists() else []
        )

    def offer(self, row: dict) -> None:
        """Add an epoch's row, and keep the decoder if none before was as good."""
        # an epoch that a kill cut off after this point is done again
        before = [r for r in self.history if r["epoch"] < row["epoch"]]
        if all(row["ndcg@5"] > r["ndcg@5"] for r in before):
            with atomic_path(self.best) as path:
                save_file(
                    {name: p.detach().contiguous() for name, p in self.decoder.named_parameters()},
                    path,
                )
        self.history = [*before, row]
        write_json(self.log, self.history)

    @property
    def chosen(self) -> int:
        return max(self.history, key=lambda row: (row["ndcg@5"], -row["epoch"]))["epoch"]

    def restore(self) -> None:
        """Put the best epoch back into the decoder."""
        self.decoder.load_state_dict(load_file(self.best))


def _record(
    prepared,
    config,
    start,
    seed,
    run_id,
    data,
    found: dict[str, Scores],
    kept: Kept,
    times,
    linear,
    notebook,
) -> RunRecord:
    """Threshold from dev, metrics and recall@C of test."""
    labels, test = prepared.corpus.labels, prepared.rows["test"]
    judged = judge(prepared, found["dev"], found["test"])
    width = min(config.width, data.ranked.shape[1])
    reach = candidates.recall(data.ranked[test], labels[test], (width,))
    judged["metrics"] |= {f"recall@{c} of candidates": value for c, value in reach.items()}
    size = candidate_decoder.table_bytes(labels.shape[1], prepared.hidden_size, config.rank) // 4
    gains = {"planted": kept.decoder.planted_gain.item(), "teacher": 0.0, "linear": 0.0}
    if data.scores is not None:
        gains["linear" if linear else "teacher"] = kept.decoder.score_gain.item()
    return RunRecord(
        id=run_id,
        kind="planted",
        system=f"{start}{RAISED if config.rare else ''}",
        seed=seed,
        notebook=notebook,
        params=asdict(config)
        | {
            "max_tokens": prepared.max_tokens,
            "inputs": prepared.key,
            "final_gains": gains,
            "candidates": "linear score" if linear else "MI and J",
            "unlisted": data.unlisted,
            "linear": asdict(LinearConfig()) if linear else None,
        },
        backbone=Path(prepared.backbone).name,
        teacher={"variant": "raw", "top_k": 64}
        | ({"linear": linear.stack.about()} if linear else {}),
        history=kept.history,
        chosen_epoch=kept.chosen,
        times=times,
        peak_memory_mb=peak_memory(),
        model_size={"trained_parameters": size} | word_cells(linear),
        **judged,
    )


SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of what was asked for, that dev chooses among


def rare(train_counts: np.ndarray, edges: Edges = EDGES) -> np.ndarray:
    """(L,) bool: labels of the few bucket and those without a training document."""
    return np.asarray(train_counts) <= checked(edges)[1]


def choose(
    ranking: TopK,
    Y: Any,
    which: np.ndarray,
    most: float,
    loss: float,
    shares: Iterable[float] = SHARES,
) -> tuple[float, dict[str, float]]:
    """(what to add, dev's nDCG@5 of each share of `most`): the largest that costs at most `loss` of
    the nDCG@5 without it.

    ranking and Y: dev's candidates with their scores and its gold labels; which: (L,) bool, the
    labels to raise.
    """
    values = sorted({0.0, *(share * most for share in shares)})
    found = {
        value: mean(ndcg_at_k(ranking.raised(value * which), Y, min(5, ranking.k)))
        for value in values
    }
    kept = [value for value in values if found[value] >= found[0.0] - loss]
    return max(kept), {f"{value:g}": round(metric, 6) for value, metric in found.items()}
