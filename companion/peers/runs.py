"""The rows without attention as run records: bare teachers, the SVM, and the SVM plus a teacher;
METHOD.md section 7.

On the documents and label space of a `Prepared` corpus, whole documents in words; evaluated as the
models are. The scores themselves are made in `peers.py`, those of other libraries in
`library_peers.py`.

Wall seconds: `train`, and `predict` of all test documents, from tf-idf to the scores of all labels;
`train_cpu` and `predict_cpu` are CPU seconds of the process. Counting words and tf-idf, which every
row needs, are in each row's `train`; choosing the weight of a sum on dev is not. `peak_memory_mb`
is that of the whole calling process.
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
    """The rows without attention on the same documents and label space: bare teachers, SVM, SVM + w
    x J and + w x MI.

    A sum costs what the SVM and its teacher cost.
    """
    _import_first()
    (weights, x, y), reading = timed(lambda: _read(prepared))
    rows, labels = prepared.rows["train"], prepared.corpus.labels
    teachers = {
        "J": lambda: mig.teach(x, y, variant="jaccard", top_k=64),
        "MI": lambda: mig.teach(x, y, variant="raw", top_k=64),
        "PPMI": lambda: ppmi(x, y),
        "centroid": lambda: centroids(weights[rows], y),
    }
    made = {
        name: timed(lambda teach=teach: peers.bare_teacher(weights, teach()))
        for name, teach in teachers.items()
    }
    svm, of_svm = timed(lambda: peers.linear_svm(weights, labels, rows, progress=progress))

    def row(
        system: str, kind: str, block: peers.Block, params: dict, took: np.ndarray
    ) -> RunRecord:
        return _peer_record(
            prepared, system, kind, block, params, reading + took, results, notebook
        )

    records = [
        row(f"bare {name}", "teacher", block, {}, took) for name, (block, took) in made.items()
    ]
    records.append(row("SVM", "linear", svm, {"C": 1.0}, of_svm))
    for name in ("J", "MI"):
        block, took = made[name]
        weight = tuned_weight(prepared, svm, block)
        both, params = peers.added(svm, block, weight), {"C": 1.0, "weight": weight}
        records.append(row(f"SVM + {name}", "linear", both, params, of_svm + took))
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
    """The score that `linear` begins from, nothing trained on top: what attention adds is the
    difference to it.

    A seed draws the folds of the stack, as it does in a run of that seed; finished records are
    read. A record knows the seconds of training where every part of the score was made for it: what
    a run left on disk is read in a fraction of them.
    """
    config, records = config or LinearConfig(), []
    for seed in seeds:
        path = (
            None
            if results is None
            else Path(results) / f"{run_name(prepared, LINEAR_SCORE, seed)}.json"
        )
        found = RunRecord.load(path) if path is not None and path.exists() else None
        if found is None or not same_score(found, prepared, config, seed):
            _import_first()
            stood = _finished_parts(prepared)
            linear, took = timed(
                lambda seed=seed: artefacts.linear_scores(
                    prepared, config, seed=seed, progress=progress
                )
            )
            made_now = len(_finished_parts(prepared) - stood) == len(linear.tables)
            found = _peer_record(
                prepared,
                LINEAR_SCORE,
                "linear",
                linear.scores,
                params_of(prepared, config),
                took if made_now else None,
                results,
                notebook,
                seed=seed,
                teacher={"linear": linear.stack.about()},
                size=word_cells(linear),
            )
        records.append(found)
    return records


def params_of(prepared: Inputs, config: LinearConfig) -> dict:
    """What a record of the linear score says of how it was made."""
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
    """The weight of `second` with the best dev metric; both blocks are evaluated on dev only."""
    dev, labels = prepared.rows["dev"], prepared.corpus.labels
    value = lambda w: evaluate(  # noqa: E731
        peers.scored(
            peers.added(first, second, w),
            labels,
            dev,
            prepared.train_counts,
            auc=False,
            edges=prepared.edges,
        ),
        labels[dev],
        prepared.train_counts,
        len(prepared.rows["train"]),
    )[metric]
    return max(grid, key=value)


def timed(make: Callable[[], Any]) -> tuple[Any, np.ndarray]:
    """(what `make()` gives, (2,) wall seconds and CPU seconds of this process that it took)."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = make()
    return made, np.array([time.perf_counter() - wall, time.process_time() - cpu])


def _import_first() -> None:
    """What is imported while the rows are made, so that no second of it is counted as training."""
    import sklearn.feature_extraction.text
    import sklearn.svm  # noqa: F401


def _read(prepared: Inputs) -> tuple[sparse.csr_matrix, sparse.csr_matrix, sparse.csr_matrix]:
    """tf-idf (N, V) of all documents; word counts (n, V) and labels (n, L) of the training rows."""
    train = prepared.rows["train"]
    counts = words(prepared.corpus.texts, train).counts
    return tfidf(counts, train), counts[train], prepared.train_labels


def _finished_parts(prepared: Inputs) -> set[Path]:
    """The files of linear scores that `Prepared.linear` keeps, one a table."""
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
    """took: (2,) seconds of making `block` as `timed` gives them, None where not known; size: the
    record's model_size.
    """
    rows, labels, spent = prepared.rows, prepared.corpus.labels, []

    def watched(part: np.ndarray) -> np.ndarray:
        scores, seconds = timed(lambda: block(part))
        spent.append(seconds)
        return scores

    dev = peers.scored(
        block, labels, rows["dev"], prepared.train_counts, auc=False, edges=prepared.edges
    )
    test = peers.scored(watched, labels, rows["test"], prepared.train_counts, edges=prepared.edges)
    record = RunRecord(
        id=run_name(prepared, system, seed),
        kind=kind,
        system=system,
        seed=seed,
        teacher=teacher or {},
        params=params | {"text": "whole document, words"},
        notebook=notebook,
        times=_seconds("train", took) | _seconds("predict", sum(spent)),
        peak_memory_mb=peak_memory(),
        model_size=size,
        **judge(prepared, dev, test),
    )
    if results is not None:
        record.save(results)
    return record


def _seconds(stage: str, took: np.ndarray | None) -> dict[str, float]:
    """A stage's entries of `times`: none where its seconds are not known."""
    return {} if took is None else {stage: round(took[0], 4), f"{stage}_cpu": round(took[1], 4)}
