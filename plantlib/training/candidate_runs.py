"""One run of the decoder on candidates: rank labels, plant a start, train, choose the epoch on dev,
read test once and write a record; docs/method.md, "Candidate labels".

The counterpart of `training.runs.run_start` for corpora where scoring every document against every
label is too much, on cached features; `candidate_fit` makes a `PlantModel` of it. The record states
recall@C of the candidates, which bounds every other number: gold labels outside them are missed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from plantlib.candidates import decoder as candidate_decoder
from plantlib.candidates import lists as candidates
from plantlib.candidates.decoder import LOOKUP_GAIN, CandidateConfig, CandidateDecoder
from plantlib.candidates.training import LEARNING_RATE, CandidateData, fit, score
from plantlib.kernels import Cells, machine
from plantlib.linear.score import LinearConfig, LinearScore, word_cells
from plantlib.metrics.documents import Scores, evaluate, ndcg_at_k
from plantlib.planting import starts
from plantlib.planting.contexts import cells_of
from plantlib.planting.decoder import Packed
from plantlib.teacher import crossfit, mig
from plantlib.teacher.mig import Teacher
from plantlib.training import artefacts, train
from plantlib.training.candidate_epochs import Kept
from plantlib.training.evaluation import add_to_rare, judge
from plantlib.training.ingredients import teacher_of
from plantlib.training.inputs import Inputs
from plantlib.training.options import HISTORY_METRICS
from plantlib.training.records import RunRecord, agrees, cpu_seconds, peak_memory, run_name
from plantlib.utils.base import DataError
from plantlib.utils.io import fingerprint_of, held, remove_unless_held
from plantlib.utils.progress import tqdm

# times the learning rate where training begins from the linear score, whose ranking larger steps
# would spoil
LINEAR_RATE = 0.1


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
        config: width of the lists.
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
        data = CandidateData.of_linear(packed, linear, relevance, config, progress)
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
    unplanted: dict[tuple[str, int], train.Trained] | None = None,
) -> tuple[RunRecord, CandidateDecoder]:
    """Rank, plant, train, keep the epoch with the best dev nDCG@5, read test once.

    A run that begins from a score may keep epoch 0, the score itself; and where it plants a lookup
    dev chooses between it and nothing planted, as in `training.runs`. A killed run goes on after
    its last whole epoch.

    Args:
        prepared: the corpus, with cached features.
        config: width, rank and epochs; the defaults when None.
        start: random, lookup, shuffled, score, linear, or two of them joined by "+".
        seed: of everything random but the linear score.
        results: folder that receives the record; None saves none.
        notebook: stated in the record.
        progress: show bars.
        unplanted: trainings in which nothing is planted, by start and seed, that the starts of a
            grid share.

    Returns:
        The record and the decoder as it was at the chosen epoch.

    Raises:
        ValueError: a start that candidates do not know.
        DataError: a training document has more labels than `width`, or there are no features.
    """
    config = config or CandidateConfig()
    candidate_decoder.parts_of(start)
    check_width(prepared.train_labels, config.width)
    run_id = run_id_of(prepared, start, config, seed)
    key = fingerprint_of(prepared.key, start, asdict(config), seed)
    folder = prepared.root / "checkpoints" / f"{run_id}-{key}"
    with held(folder):
        made = run(prepared, config, start, seed, run_id, folder, notebook, progress, unplanted)
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


@dataclass(eq=False)
class Training:
    """The trainings of one run, from one gain of its lookup after another.

    decoder: planted and trained in place. data: what it reads. gain: the one it was planted with.
    unplanted, reused: as for `runs.Run`.
    """

    prepared: Inputs
    config: CandidateConfig
    start: str
    seed: int
    data: CandidateData
    decoder: CandidateDecoder
    progress: bool
    unplanted: dict[tuple[str, int], train.Trained]
    gain: float = 0.0
    reused: list[train.Trained] = field(default_factory=list)

    @property
    def parts(self) -> list[str]:
        """The names that the start joins by "+"."""
        return candidate_decoder.parts_of(self.start)

    @property
    def gains(self) -> tuple[float, ...]:
        """The gains to try; 0 plants nothing."""
        if not {"lookup", "shuffled"} & set(self.parts):
            return (0.0,)
        return (LOOKUP_GAIN, 0.0) if starts.from_score(self.parts) else (LOOKUP_GAIN,)

    @property
    def read(self) -> CandidateData:
        """What the decoder reads: no planted cells where nothing is planted."""
        return self.data if self.gain else replace(self.data, relevance=None, own=None)

    def plant(self, gain: float) -> None:
        """Set every value of the decoder."""
        self.gain = gain
        labels = self.prepared.train_labels
        # initial values are drawn on the CPU, where they are the same on every machine
        decoder = self.decoder.cpu()
        candidate_decoder.plant(decoder, labels, self.start, seed=self.seed, gain=gain)
        decoder.to(machine.device())

    def fine_tune(self, folder: Path, what: str = "") -> list[dict]:
        """Train the decoder to its best dev epoch; the history, one dict per epoch."""
        if self.gain:
            return self._train(folder)
        key = (starts.unplanted(self.parts), self.seed)
        if (trained := self.unplanted.get(key)) is not None:
            self.decoder.load_state_dict(trained.values, strict=False)
            self.reused.append(trained)
            return trained.history
        began, cpu = time.perf_counter(), cpu_seconds()
        history = self._train(folder)
        values = {name: p.detach().clone() for name, p in self.decoder.named_parameters()}
        spent = time.perf_counter() - began, cpu_seconds() - cpu
        self.unplanted[key] = train.Trained(history, values, *spent)
        return history

    def _train(self, folder: Path) -> list[dict]:
        """Train from the last whole epoch where a run was killed, and load the best one."""
        kept = Kept(self.decoder, folder)
        clock = time.perf_counter()
        before = kept.history[-1]["seconds"] if kept.history else 0.0

        def after_epoch(epoch: int, loss: float | None) -> None:
            row = {"epoch": epoch, "seconds": round(before + time.perf_counter() - clock, 2)}
            if loss is not None:
                row["train_loss"] = round(loss, 4)
            kept.offer(row | self._dev_metrics())

        if {"linear", "score"} & set(self.parts) and not kept.history:
            after_epoch(0, None)
        fit(
            self.decoder,
            self.read,
            self.prepared.rows["train"],
            self.prepared.corpus.labels,
            self.config,
            rate=LEARNING_RATE * (LINEAR_RATE if "linear" in self.parts else 1.0),
            seed=self.seed,
            folder=folder,
            progress=self.progress,
            after_epoch=after_epoch,
        )
        kept.restore()
        return kept.history

    def scores(self, split: str) -> Scores:
        """The best labels of a split."""
        prepared = self.prepared
        rows, counts = prepared.rows[split], prepared.train_counts
        return score(self.decoder, self.read, rows, self.config, counts, edges=prepared.edges)

    def _dev_metrics(self) -> dict[str, float]:
        """The metrics that a history states."""
        prepared = self.prepared
        gold = prepared.corpus.labels[prepared.rows["dev"]]
        counts, documents = prepared.train_counts, len(prepared.rows["train"])
        found = evaluate(self.scores("dev"), gold, counts, documents)
        return {n: round(found[n], 6) for n in HISTORY_METRICS if np.isfinite(found.get(n, np.nan))}

    def dev_values(self) -> np.ndarray:
        """(n,) nDCG@5 of each dev document with a label."""
        gold = self.prepared.corpus.labels[self.prepared.rows["dev"]]
        values = ndcg_at_k(self.scores("dev").topk, gold, 5)
        return values[np.isfinite(values)]

    def raise_rare(self) -> dict:
        """As `evaluation.raise_rare`."""
        prepared = self.prepared
        gold = prepared.corpus.labels[prepared.rows["dev"]]
        bias = self.decoder.label_bias.weight.detach()[:, 0]
        added = add_to_rare(bias, self.scores("dev"), gold, prepared.train_counts)
        return {"rare_added": added}


def run(
    prepared: Inputs,
    config: CandidateConfig,
    start: str,
    seed: int,
    run_id: str,
    folder: Path,
    notebook: str | None,
    progress: bool,
    unplanted: dict[tuple[str, int], train.Trained] | None = None,
) -> Made:
    """As `run_candidates`, with the run's id and the folder of what survives a kill."""
    began, cpu = time.perf_counter(), cpu_seconds()
    resumed = folder.is_dir() and any(folder.iterdir())
    # rank and plant
    torch.manual_seed(seed)
    data, linear = data_of(prepared, config, start, seed, progress)
    times = {"teacher": round(time.perf_counter() - began, 2)}
    decoder = CandidateDecoder(prepared.corpus.L, prepared.hidden_size, config.rank)
    shared = {} if unplanted is None else unplanted
    training = Training(prepared, config, start, seed, data, decoder, progress, shared)
    # train; dev chooses the gain, the epoch, and how far rare labels are raised
    gains = training.gains
    if len(gains) > 1:
        steps = training.plant, training.fine_tune, training.dev_values
        history, chosen = train.choose(gains, *steps, folder)
    else:
        training.plant(gains[0])
        history, chosen = training.fine_tune(folder), {}
    chosen |= training.raise_rare()
    seconds, reused_cpu = (
        sum(getattr(t, of) for t in training.reused) for of in ("seconds", "cpu")
    )
    times["fine_tune"] = round(time.perf_counter() - began - times["teacher"] + seconds, 2)
    if not resumed:  # what a killed process spent is not known
        times["train_cpu"] = round(cpu_seconds() - cpu + reused_cpu, 2)
    # judge and record
    scores = {s: training.scores(s) for s in ("dev", "test") if len(prepared.rows[s])}
    record = _record(training, run_id, scores, history, times, linear, notebook)
    record = replace(record, params=record.params | chosen)
    return Made(record, decoder, training.read, linear, scores["dev"])


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
        candidate_decoder.parts_of(start)  # before the first run
    params = asdict(config) | {"inputs": prepared.key, "cross_fitted": True}
    records = []
    jobs = [(start, seed) for seed in seeds for start in starts]
    unplanted: dict[tuple[str, int], train.Trained] = {}
    for start, seed in tqdm(jobs, desc="runs", unit="run", disable=not progress):
        path = Path(results) / f"{run_id_of(prepared, start, config, seed)}.json"
        record = RunRecord.load(path) if path.exists() else None
        whole = record is not None and "rare_added" in record.params
        if not whole or record.seed != seed or not agrees(record, params):
            record, _ = run_candidates(
                prepared,
                config,
                start,
                seed=seed,
                results=results,
                notebook=notebook,
                progress=progress,
                unplanted=unplanted,
            )
        records.append(record)
    return records


def check_width(labels: sparse.csr_matrix, width: int) -> None:
    """Raise DataError where a document of labels (n, L) has more than `width` of them."""
    most = int(np.diff(labels.indptr).max(initial=0))
    if most > width:
        raise DataError(
            f"a training document has {most} labels and {width} candidate places; use {most}"
            " candidates or more"
        )


def run_id_of(prepared: Inputs, start: str, config: CandidateConfig, seed: int) -> str:
    """The id of a run, which states its number of candidates."""
    return run_name(prepared, f"{start}-{config.width}c", seed)


def _record(
    training: Training,
    run_id: str,
    scores: dict[str, Scores],
    history: list[dict],
    times: dict[str, float],
    linear: LinearScore | None,
    notebook: str | None,
) -> RunRecord:
    """The record of a run: threshold from dev, metrics and recall@C of test."""
    prepared, config, data = training.prepared, training.config, training.data
    labels, test = prepared.corpus.labels, prepared.rows["test"]
    judged = judge(prepared, scores["dev"], scores.get("test"))
    if "test" in scores:
        width = min(config.width, data.ranked.shape[1])
        reach = candidates.recall(data.ranked[test], labels[test], (width,))
        judged["metrics"] |= {f"recall@{c} of candidates": value for c, value in reach.items()}
    size = candidate_decoder.table_bytes(labels.shape[1], prepared.hidden_size, config.rank) // 4
    gains = {"planted": training.decoder.planted_gain.item(), "teacher": 0.0, "linear": 0.0}
    if data.scores is not None:
        gains["linear" if linear else "teacher"] = training.decoder.score_gain.item()
    return RunRecord(
        id=run_id,
        kind="planted",
        system=training.start,
        seed=training.seed,
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
        history=history,
        chosen_epoch=train.chosen_epoch(history),
        times=times,
        peak_memory_mb=peak_memory(),
        model_size={"trained_parameters": size} | word_cells(linear),
        **judged,
    )
