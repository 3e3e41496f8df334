"""The rows without attention as run records: bare teachers, the SVM, and the SVM plus a teacher; METHOD.md section 7.

On the documents and label space of a `Prepared` corpus, whole documents in words; evaluated as the models are. The scores
themselves are made in `peers.py`, those of other libraries in `library_peers.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from plantlib import mig, peers
from plantlib.linear_score import LinearConfig
from plantlib.metrics import evaluate
from plantlib.pipeline import Prepared
from plantlib.results import RunRecord, plain
from plantlib.runs import peak_memory, run_name
from plantlib.tokens import tfidf, words

LINEAR_SCORE = "linear score"


def run_peers(
    prepared: Prepared, *, results: str | Path | None = None, notebook: str | None = None, progress: bool = True
) -> list[RunRecord]:
    """The rows without attention on the same documents and label space: bare teachers, SVM, SVM + w x J and + w x MI."""
    rows, labels = prepared.rows, prepared.corpus.labels
    began = time.perf_counter()
    counts = words(prepared.corpus.texts, rows["train"]).counts
    weights = tfidf(counts, rows["train"])
    x, y = counts[rows["train"]], prepared.train_labels
    taught = {"J": mig.teach(x, y, top_k=64), "MI": mig.teach(x, y, variant="raw", top_k=64)}
    taught |= {"PPMI": peers.ppmi(x, y), "centroid": peers.centroids(weights[rows["train"]], y)}
    blocks = {f"bare {name}": peers.bare_teacher(weights, teacher) for name, teacher in taught.items()}
    seconds = {name: round(time.perf_counter() - began, 2) for name in blocks}
    began = time.perf_counter()
    svm = peers.linear_svm(weights, labels, rows["train"], progress=progress)
    seconds["SVM"] = round(time.perf_counter() - began, 2)
    records = [
        _peer_record(prepared, name, "teacher", block, {}, seconds[name], results, notebook) for name, block in blocks.items()
    ]
    records.append(_peer_record(prepared, "SVM", "linear", svm, {"C": 1.0}, seconds["SVM"], results, notebook))
    for name in ("J", "MI"):
        weight = tuned_weight(prepared, svm, blocks[f"bare {name}"])
        block = peers.added(svm, blocks[f"bare {name}"], weight)
        records.append(
            _peer_record(
                prepared,
                f"SVM + {name}",
                "linear",
                block,
                {"C": 1.0, "weight": weight},
                seconds["SVM"],
                results,
                notebook,
            )
        )
    return records


def run_linear_score(
    prepared: Prepared, seeds: Iterable[int] = (0,), *, config: LinearConfig | None = None,
    results: str | Path | None = None, notebook: str | None = None, progress: bool = True,
) -> list[RunRecord]:  # fmt: skip
    """The score that `linear` begins from, nothing trained on top: what attention adds is the difference to it.

    A seed draws the folds of the stack, as it does in a run of that seed; finished records are read.
    """
    records = []
    for seed in seeds:
        own = replace(config or LinearConfig(), seed=seed)
        path = None if results is None else Path(results) / f"{run_name(prepared, LINEAR_SCORE, seed)}.json"
        wanted = {"linear": plain(asdict(own)), "inputs": prepared.key}
        found = RunRecord.load(path) if path is not None and path.exists() else None
        if found is None or any(found.params.get(name) != value for name, value in wanted.items()):
            # a run that began from it may have left it on disk: how long it takes is told there
            linear = prepared.linear(own, progress)
            found = _peer_record(
                prepared, LINEAR_SCORE, "linear", linear.scores, wanted, None, results, notebook,
                seed=seed, teacher={"linear": linear.stack.about()},
            )  # fmt: skip
        records.append(found)
    return records


def tuned_weight(
    prepared: Prepared, first, second, metric: str = "ndcg@5", grid=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
) -> float:
    """The weight of `second` with the best dev metric; both blocks are evaluated on dev only."""
    dev, labels = prepared.rows["dev"], prepared.corpus.labels
    value = lambda w: evaluate(  # noqa: E731
        peers.scored(peers.added(first, second, w), labels, dev, prepared.train_counts, auc=False, edges=prepared.edges),
        labels[dev],
        prepared.train_counts,
        len(prepared.rows["train"]),
    )[metric]
    return max(grid, key=value)


def _peer_record(
    prepared, system, kind, block, params, seconds, results, notebook, seed: int = 0, teacher: dict | None = None
) -> RunRecord:
    rows, labels = prepared.rows, prepared.corpus.labels
    dev = peers.scored(block, labels, rows["dev"], prepared.train_counts, auc=False, edges=prepared.edges)
    test = peers.scored(block, labels, rows["test"], prepared.train_counts, edges=prepared.edges)
    record = RunRecord(
        id=run_name(prepared, system, seed),
        kind=kind,
        system=system,
        seed=seed,
        teacher=teacher or {},
        params=params | {"text": "whole document, words"},
        notebook=notebook,
        times={} if seconds is None else {"train": seconds},
        peak_memory_mb=peak_memory(),
        **prepared.judge(dev, test),
    )
    if results is not None:
        record.save(results)
    return record
