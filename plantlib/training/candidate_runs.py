"""One run of the decoder on candidates: rank labels, plant a start, train, choose the epoch on dev,
read test once and write a record; docs/method.md, "Candidate labels".

The counterpart of `training.runs.run_start` for corpora where scoring every document against every
label is too much, on cached features; `candidate_fit` makes a `PlantModel` of it. The record states
recall@C of the candidates, which bounds every other number: gold labels outside them are missed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from scipy import sparse

from plantlib.candidates import decoder as candidate_decoder
from plantlib.candidates import lists as candidates
from plantlib.candidates.decoder import CandidateConfig, CandidateDecoder
from plantlib.candidates.training import LEARNING_RATE, CandidateData, fit, ranking, score
from plantlib.kernels import Cells, machine
from plantlib.linear.score import LinearConfig, LinearScore, word_cells
from plantlib.metrics.buckets import EDGES, Edges, checked
from plantlib.metrics.documents import Scores, evaluate, mean, ndcg_at_k
from plantlib.metrics.topk import TopK
from plantlib.planting.contexts import cells_of
from plantlib.planting.decoder import Packed
from plantlib.teacher import crossfit, mig
from plantlib.teacher.mig import Teacher
from plantlib.training import artefacts
from plantlib.training.evaluation import judge
from plantlib.training.ingredients import teacher_of
from plantlib.training.inputs import Inputs
from plantlib.training.options import HISTORY_METRICS
from plantlib.training.records import RunRecord, agrees, cpu_seconds, peak_memory, run_name
from plantlib.utils.base import DataError
from plantlib.utils.io import (
    Damaged,
    fingerprint_of,
    held,
    read_json,
    remove_unless_held,
    write_json,
)
from plantlib.utils.progress import tqdm
from plantlib.utils.tensors import check_tensors, save_tensors

# times the learning rate where training begins from the linear score, whose ranking larger steps
# would spoil
LINEAR_RATE = 0.1
RARE_LOSS = 0.002  # of dev's nDCG@5, that raising labels of few documents may cost at most
RAISED = ", rare raised"  # follows the start in the record's system where rare labels are raised


def data_of(
    prepared: Inputs,
    config: CandidateConfig,
    start: str = "lookup+score",
    seed: int = 0,
    progress: bool = True,
) -> tuple[CandidateData, LinearScore | None]:
    """What a run of `start` reads, and the linear score where the start plants it.

    Args:
        prepared: the corpus, with cached features.
        config: width of the lists, and what is added to rare labels when they are ranked.
        start: a start that `candidates.decoder.parts_of` knows.
        seed: of the permutation of `shuffled`.
        progress: show bars.

    Raises:
        DataError: the corpus was prepared without features.
    """
    if prepared.features is None:
        raise DataError("candidates are trained on cached features; call prepare(..., frozen=True)")
    # the teacher that is planted, and hidden states
    parts = candidate_decoder.parts_of(start)
    train, counts = prepared.rows["train"], prepared.counts
    teacher = teacher_of(prepared)
    relevance = own = None
    if {"lookup", "shuffled"} & set(parts):
        relevance, own = _planted(prepared, teacher, seed if "shuffled" in parts else None)
    features = replace(prepared.features, standard=artefacts.standard(prepared))

    def packed(rows: np.ndarray) -> Packed:
        tokens = prepared.tokens.select(rows)
        hidden = torch.from_numpy(features.documents(rows))
        ids = torch.from_numpy(tokens.flat.astype(np.int64))
        return Packed(hidden, ids, torch.from_numpy(tokens.offsets))

    # lists by the linear score or by the teachers
    if "linear" in parts:
        # one linear score for all seeds: candidates stay the same, and fitting it takes longest on
        # a large corpus
        linear = artefacts.linear_scores(prepared, LinearConfig(), progress=progress)
        added = config.rare * rare(prepared.train_counts, prepared.edges)
        data = CandidateData.of_linear(packed, linear, relevance, config, progress, added)
        return replace(data, own=own), linear
    other = mig.teach(counts[train], prepared.train_labels, variant="jaccard", relevance="score")
    data = CandidateData.of_teachers(
        packed, counts, train, prepared.corpus.L, (teacher, other), relevance, config, progress
    )
    return replace(data, own=own, scores=data.scores if "score" in parts else None), None


def _planted(
    prepared: Inputs, teacher: Teacher, shuffle: int | None
) -> tuple[sparse.csr_matrix, Callable[[np.ndarray, Packed], Cells | None]]:
    """G (L, V) to plant, and the cells that training documents read beside it.

    shuffle: the seed of the control that permutes the lists among labels; None leaves them.
    """
    train = prepared.rows["train"]
    withheld = crossfit.withhold(prepared.train_tokens, prepared.train_labels, teacher)
    if shuffle is not None:
        withheld = withheld.relabelled(teacher.shuffled_order(shuffle))
        teacher = teacher.shuffled(shuffle)
    place_of = {int(row): i for i, row in enumerate(train)}

    def own(rows: np.ndarray, packed: Packed) -> Cells | None:
        places = [place_of[int(row)] for row in rows]
        cells = withheld.cells(places, packed.token_ids.numpy(), packed.offsets.numpy())
        return cells_of({name: torch.from_numpy(values) for name, values in cells.items()})

    return teacher.relevance, own


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
    """Rank, plant, train, keep the epoch with the best dev nDCG@5, read test once.

    A run that begins from a score may keep epoch 0, the score itself. With `config.rare` labels of
    few documents keep their linear score and are raised at the end as far as dev allows
    (`raise_rare`). A killed run goes on after its last whole epoch.

    Args:
        prepared: the corpus, with cached features.
        config: width, rank, epochs and `rare`; the defaults when None.
        start: random, lookup, shuffled, score, linear, or two of them joined by "+".
        seed: of everything random but the linear score.
        results: folder that receives the record; None saves none.
        notebook: stated in the record.
        progress: show bars.

    Returns:
        The record and the decoder as it was at the chosen epoch.

    Raises:
        ValueError: a start that candidates do not know, or `rare` without the linear score.
        DataError: a training document has more labels than `width`, or there are no features.
    """
    config = config or CandidateConfig()
    check_start(start, config)
    check_width(prepared.train_labels, config.width)
    run_id = run_id_of(prepared, start, config, seed)
    key = fingerprint_of(prepared.key, start, asdict(config), seed)
    folder = prepared.root / "checkpoints" / f"{run_id}-{key}"
    with held(folder):
        made = run(prepared, config, start, seed, run_id, folder, notebook, progress)
        if results is not None:
            made.record.save(results)
        remove_unless_held(folder)
    return made.record, made.decoder


@dataclass(frozen=True, eq=False)
class Made:
    """What a run made: its record, the decoder at the chosen epoch, what that read, and the scores
    of dev.
    """

    record: RunRecord
    decoder: CandidateDecoder
    data: CandidateData
    linear: LinearScore | None
    dev: Scores


def run(
    prepared: Inputs,
    config: CandidateConfig,
    start: str,
    seed: int,
    run_id: str,
    folder: Path,
    notebook: str | None,
    progress: bool,
) -> Made:
    """As `run_candidates`, with the run's id and the folder of what survives a kill."""
    began = time.perf_counter()
    cpu = cpu_seconds()
    labels, rows = prepared.corpus.labels, prepared.rows
    parts = candidate_decoder.parts_of(start)
    # rank and plant
    torch.manual_seed(seed)
    data, linear = data_of(prepared, config, start, seed, progress)
    times = {"teacher": round(time.perf_counter() - began, 2)}
    decoder = CandidateDecoder(labels.shape[1], prepared.hidden_size, config.rank)
    candidate_decoder.plant(decoder, prepared.train_labels, start, seed=seed)
    decoder.to(machine.device())
    # train, from the last whole epoch where a run was killed
    kept = Kept(decoder, folder)
    resumed = bool(kept.history)
    clock = time.perf_counter()
    before = kept.history[-1]["seconds"] if kept.history else 0.0

    def after_epoch(epoch: int, loss: float | None) -> None:
        seconds = round(before + time.perf_counter() - clock, 2)
        dev = score(decoder, data, rows["dev"], config, prepared.train_counts, edges=prepared.edges)
        metrics = evaluate(dev, labels[rows["dev"]], prepared.train_counts, len(rows["train"]))
        row = {"epoch": epoch, "seconds": seconds}
        if loss is not None:
            row["train_loss"] = round(loss, 4)
        for name in HISTORY_METRICS:
            if np.isfinite(metrics.get(name, np.nan)):
                row[name] = round(metrics[name], 6)
        kept.offer(row)

    if {"linear", "score"} & set(parts) and not kept.history:
        after_epoch(0, None)
    rate = LEARNING_RATE * (LINEAR_RATE if "linear" in parts else 1.0)
    # the outputs and biases of labels that are raised are not trained: only the score ranks them
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
    # the best epoch, and rare labels raised
    kept.restore()
    about = raise_rare(decoder, data, prepared, config) if config.rare else {}
    times["fine_tune"] = round(time.perf_counter() - began - times["teacher"], 2)
    if not resumed:  # what a killed process spent is not known
        times["train_cpu"] = round(cpu_seconds() - cpu, 2)
    # judge and record
    scores = {
        s: score(decoder, data, rows[s], config, prepared.train_counts, edges=prepared.edges)
        for s in ("dev", "test")
        if len(rows[s])
    }
    record = _record(
        prepared, config, start, seed, run_id, data, scores, kept, times, linear, notebook
    )
    record = replace(record, params=record.params | about)
    return Made(record, decoder, data, linear, scores["dev"])


def raise_rare(
    decoder: CandidateDecoder, data: CandidateData, prepared: Inputs, config: CandidateConfig
) -> dict:
    """Add to the biases of labels of few documents what dev allows; the entries of the record's
    params.
    """
    which = rare(prepared.train_counts, prepared.edges)
    dev = prepared.rows["dev"]
    listed = ranking(decoder, data, dev, config)
    added, tried = choose(listed, prepared.corpus.labels[dev], which, config.rare, RARE_LOSS)
    with torch.no_grad():
        bias = decoder.label_bias.weight
        bias += added * torch.from_numpy(which).to(bias)[:, None]
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
    """A record of every start with every seed; those that are in the folder `results` with the same
    options and inputs are read, the others are made.
    """
    config = config or CandidateConfig()
    for start in starts:
        check_start(start, config)  # before the first run
    params = asdict(config) | {"inputs": prepared.key, "cross_fitted": True}
    records = []
    jobs = [(start, seed) for seed in seeds for start in starts]
    for start, seed in tqdm(jobs, desc="runs", unit="run", disable=not progress):
        path = Path(results) / f"{run_id_of(prepared, start, config, seed)}.json"
        record = RunRecord.load(path) if path.exists() else None
        if record is None or record.seed != seed or not agrees(record, params):
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
    """The parts of a start; ValueError for one that candidates do not know, or that has no linear
    score while `config.rare` asks for one.
    """
    parts = candidate_decoder.parts_of(start)
    if config.rare and "linear" not in parts:
        raise ValueError(
            f"rare={config.rare} raises labels in the linear score's lists, and start {start!r} has"
            " none; use linear or lookup+linear, or rare=0"
        )
    return parts


def check_width(labels: sparse.csr_matrix, width: int) -> None:
    """Raise DataError where a document of labels (n, L) has more than `width` of them."""
    most = int(np.diff(labels.indptr).max(initial=0))
    if most > width:
        raise DataError(
            f"a training document has {most} labels and {width} candidate places; use {most}"
            " candidates or more"
        )


def run_id_of(prepared: Inputs, start: str, config: CandidateConfig, seed: int) -> str:
    """The id of a run, which states its number of candidates and whether rare labels are raised."""
    return run_name(prepared, f"{start}-{config.width}c{'-rare' if config.rare else ''}", seed)


class Kept:
    """The best epoch of a decoder by dev nDCG@5, the earliest if tied, kept on disk with the
    history.

    decoder: the one that is trained. folder: receives the files; the history of an earlier, killed
    run is read from it.
    """

    def __init__(self, decoder: CandidateDecoder, folder: Path):
        self.decoder = decoder
        self.folder = folder
        self.best = folder / "best.safetensors"
        self.log = folder / "history.json"
        self.history: list[dict] = self._stored()

    def _stored(self) -> list[dict]:
        """The history of a killed run; empty, and its files removed, where one of them is
        damaged.
        """
        epoch = self.folder / "epoch.safetensors"
        if not (self.log.exists() and epoch.exists()):
            return []
        try:
            check_tensors(epoch)
            check_tensors(self.best)
            stored = read_json(self.log)
            if stored["fingerprint"] != fingerprint_of(stored["epochs"]):
                raise Damaged(f"{self.log} is damaged: it is not what was written")
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"{error}; the run begins again", file=sys.stderr, flush=True)
            for path in (epoch, self.best, self.log):
                path.unlink(missing_ok=True)
            return []
        return stored["epochs"]

    def offer(self, row: dict) -> None:
        """Add an epoch's row to the history, and keep the decoder if no earlier epoch was as
        good.
        """
        # an epoch that was killed after this point is trained again
        before = [r for r in self.history if r["epoch"] < row["epoch"]]
        if all(row["ndcg@5"] > r["ndcg@5"] for r in before):
            tensors = {n: p.detach().contiguous() for n, p in self.decoder.named_parameters()}
            save_tensors(self.best, tensors)
        self.history = [*before, row]
        about = {"epochs": self.history, "fingerprint": fingerprint_of(self.history)}
        write_json(self.log, about)

    @property
    def chosen(self) -> int:
        """The best epoch."""
        return max(self.history, key=lambda row: (row["ndcg@5"], -row["epoch"]))["epoch"]

    def restore(self) -> None:
        """Load the best epoch into the decoder."""
        self.decoder.load_state_dict(load_file(check_tensors(self.best)), strict=False)


def _record(
    prepared,
    config,
    start,
    seed,
    run_id,
    data,
    scores: dict[str, Scores],
    kept: Kept,
    times,
    linear,
    notebook,
) -> RunRecord:
    """The record of a run: threshold from dev, metrics and recall@C of test."""
    labels, test = prepared.corpus.labels, prepared.rows["test"]
    judged = judge(prepared, scores["dev"], scores.get("test"))
    if "test" in scores:
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
            "cross_fitted": True,
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


SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # shares of `rare` that dev chooses among


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
    """Choose on dev how far labels are raised: as far as it costs at most `loss` of nDCG@5.

    Args:
        ranking: dev's candidates with their scores.
        Y: (n, L) gold labels of dev.
        which: (L,) bool, the labels to raise.
        most: logits to add at most.
        loss: of nDCG@5 that it may cost.
        shares: of `most`, to try; 0 is always tried.

    Returns:
        The logits to add, and dev's nDCG@5 of each value tried.
    """
    values = sorted({0.0, *(share * most for share in shares)})
    tried = {
        value: mean(ndcg_at_k(ranking.raised(value * which), Y, min(5, ranking.k)))
        for value in values
    }
    allowed = [value for value in values if tried[value] >= tried[0.0] - loss]
    return max(allowed), {f"{value:g}": round(metric, 6) for value, metric in tried.items()}
