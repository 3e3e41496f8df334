"""The peers without attention as run records: bare teachers, the SVM, sums of both, linear score.

They read the words of whole documents and are evaluated like the models, on the same documents and
label space (docs/method.md, "Controls and peers"). `bare.py` makes the scores; the peers of other
libraries are in `library_peers.py`.

Times of a record: `train`, and `predict` of all test documents from tf-idf to the scores of all
labels, in seconds of wall time; `train_cpu` and `predict_cpu` are CPU seconds of the process.
Counting words and tf-idf, which every peer needs, are part of each `train`; choosing the weight of
a sum on dev is not. `peak_memory_mb` is that of the calling process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from companion.peers import bare as peers
from plantlib.data.tokens import tfidf, words
from plantlib.linear.score import LinearConfig, word_cells
from plantlib.linear.terms import centroids, ppmi
from plantlib.metrics.documents import evaluate
from plantlib.teacher import mig
from plantlib.training import artefacts
from plantlib.training.evaluation import judge
from plantlib.training.inputs import Inputs
from plantlib.training.records import RunRecord, agrees, peak_memory, run_name

LINEAR_SCORE = "linear score"


def run_peers(
    prepared: Inputs,
    *,
    results: str | Path | None = None,
    notebook: str | None = None,
    progress: bool = True,
) -> list[RunRecord]:
    """The records of the bare teachers, the SVM, "SVM + J" and "SVM + MI".

    The time of a sum is that of the SVM and its teacher together.

    Args:
        prepared: the corpus.
        results: folder that the records are saved to; nothing is saved when None.
        notebook: named in the records.
        progress: show a bar.
    """
    # bare teachers and SVM, each with its time
    _import_first()
    (weights, x, y), reading = timed(lambda: _read(prepared))
    rows = prepared.rows["train"]
    labels = prepared.corpus.labels
    teachers = {
        "J": lambda: mig.teach(x, y, variant="jaccard", top_k=64),
        "MI": lambda: mig.teach(x, y, variant="raw", top_k=64),
        "PPMI": lambda: ppmi(x, y),
        "centroid": lambda: centroids(weights[rows], y),
    }
    bare = {
        name: timed(lambda teach=teach: peers.bare_teacher(weights, teach()))
        for name, teach in teachers.items()
    }
    svm, svm_seconds = timed(lambda: peers.linear_svm(weights, labels, rows, progress=progress))

    # their records, and those of the sums
    def record(
        system: str, kind: str, block: peers.Block, params: dict, seconds: np.ndarray
    ) -> RunRecord:
        seconds = reading + seconds
        return _peer_record(prepared, system, kind, block, params, seconds, results, notebook)

    records = [
        record(f"bare {name}", "teacher", block, {}, seconds)
        for name, (block, seconds) in bare.items()
    ]
    records.append(record("SVM", "linear", svm, {"C": 1.0}, svm_seconds))
    for name in ("J", "MI"):
        block, seconds = bare[name]
        weight = tuned_weight(prepared, svm, block)
        both = peers.added(svm, block, weight)
        params = {"C": 1.0, "weight": weight}
        records.append(record(f"SVM + {name}", "linear", both, params, svm_seconds + seconds))
    return records


def run_linear_score(
    prepared: Inputs,
    seeds: Iterable[int] = (0,),
    *,
    config: LinearConfig | None = None,
    results: str | Path | None = None,
    notebook: str | None = None,
    progress: bool = True,
) -> list[RunRecord]:
    """The records of the linear score (docs/method.md, "The linear score"), without attention.

    The starts with `linear` begin from it, so attention adds the difference to it. Its seconds of
    training are recorded only where every part of the score was made in this call; parts that an
    earlier run left on disk are read in a fraction of the time.

    Args:
        prepared: the corpus.
        seeds: each draws the folds as in a run with that seed.
        config: options of the score.
        results: folder of the records; a score whose record is there is not repeated. Nothing is
            saved when None.
        notebook: named in the records.
        progress: show bars.
    """
    config = config or LinearConfig()
    records = []
    for seed in seeds:
        path = Path(results or ".") / f"{run_name(prepared, LINEAR_SCORE, seed)}.json"
        record = RunRecord.load(path) if results is not None and path.exists() else None
        if record is None or not same_score(record, prepared, config, seed):
            _import_first()
            before = _finished_parts(prepared)
            linear, seconds = timed(
                lambda seed=seed: artefacts.linear_scores(
                    prepared, config, seed=seed, progress=progress
                )
            )
            all_new = len(_finished_parts(prepared) - before) == len(linear.tables)
            record = _peer_record(
                prepared,
                LINEAR_SCORE,
                "linear",
                linear.raised,
                params_of(prepared, config),
                seconds if all_new else None,
                results,
                notebook,
                seed=seed,
                teacher={"linear": linear.stack.about()},
                size=word_cells(linear),
            )
        records.append(record)
    return records


def params_of(prepared: Inputs, config: LinearConfig) -> dict:
    """`RunRecord.params` of the linear score."""
    return {"linear": asdict(config), "inputs": prepared.key}


def same_score(record: RunRecord, prepared: Inputs, config: LinearConfig, seed: int) -> bool:
    """Whether a record of the linear score is of this corpus with this seed and these options."""
    return record.seed == seed and agrees(record, params_of(prepared, config))


def tuned_weight(
    prepared: Inputs,
    first,
    second,
    metric: str = "ndcg@5",
    grid=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
) -> float:
    """The weight of `second` with which the sum has the best dev metric.

    first, second: functions from rows (b,) to scores (b, L); grid: the weights tried.
    """
    dev = prepared.rows["dev"]
    labels = prepared.corpus.labels
    counts = prepared.train_counts

    def value(weight: float) -> float:
        both = peers.added(first, second, weight)
        scores = peers.scored(both, labels, dev, counts, auc=False, edges=prepared.edges)
        return evaluate(scores, labels[dev], counts, len(prepared.rows["train"]))[metric]

    return max(grid, key=value)


def timed(make: Callable[[], Any]) -> tuple[Any, np.ndarray]:
    """(result of `make()`, (2,) seconds it took: wall time, CPU time of this process)."""
    wall = time.perf_counter()
    cpu = time.process_time()
    result = make()
    return result, np.array([time.perf_counter() - wall, time.process_time() - cpu])


def _import_first() -> None:
    """Import what the peers need, so that the import is not timed as training."""
    import sklearn.feature_extraction.text
    import sklearn.svm  # noqa: F401


def _read(prepared: Inputs) -> tuple[sparse.csr_matrix, sparse.csr_matrix, sparse.csr_matrix]:
    """tf-idf (N, V) of all documents; word counts (n, V) and labels (n, L) of the training rows."""
    train = prepared.rows["train"]
    counts = words(prepared.corpus.texts, train).counts
    return tfidf(counts, train), counts[train], prepared.train_labels


def _finished_parts(prepared: Inputs) -> set[Path]:
    """The files of linear scores under artefacts/, one per table."""
    return set((prepared.root / "linear").glob("*/part*.safetensors"))


def _peer_record(
    prepared,
    system,
    kind,
    block,
    params,
    took,
    results,
    notebook,
    seed: int = 0,
    teacher: dict | None = None,
    size: dict | None = None,
) -> RunRecord:
    """Evaluate a peer on dev and test and record it.

    block: function from rows (b,) to scores (b, L); took: (2,) seconds of training as `timed`
    returns them, None where they are unknown; size: `RunRecord.model_size`.
    """
    rows = prepared.rows
    labels = prepared.corpus.labels
    counts = prepared.train_counts
    predicting = np.zeros(2)

    def timed_block(part: np.ndarray) -> np.ndarray:
        nonlocal predicting
        scores, seconds = timed(lambda: block(part))
        predicting = predicting + seconds
        return scores

    dev = peers.scored(block, labels, rows["dev"], counts, auc=False, edges=prepared.edges)
    test = peers.scored(timed_block, labels, rows["test"], counts, edges=prepared.edges)
    record = RunRecord(
        id=run_name(prepared, system, seed),
        kind=kind,
        system=system,
        seed=seed,
        teacher=teacher or {},
        params=params | {"text": "whole document, words"},
        notebook=notebook,
        times=_seconds("train", took) | _seconds("predict", predicting),
        peak_memory_mb=peak_memory(),
        model_size=size,
        **judge(prepared, dev, test),
    )
    if results is not None:
        record.save(results)
    return record


def _seconds(stage: str, took: np.ndarray | None) -> dict[str, float]:
    """The entries of a stage in `RunRecord.times`, none where its seconds are unknown."""
    return {} if took is None else {stage: round(took[0], 4), f"{stage}_cpu": round(took[1], 4)}
