"""SVMs of many labels together against LIBLINEAR label by label -> results/bench/svm.csv.

    python benchmarks/bench_svm.py   # EURLEX57K, 5,000 training documents, 1,500 of dev
    python benchmarks/bench_svm.py --train 20000 --solvers together

The cost is 1, and times are CPU seconds of one thread. Quality is that of the SVMs alone on dev.
LIBLINEAR reads all documents, or per label a sample: its documents and a tenth of the others, half
of them those nearest to the label's centroid. With `weighted` the random half is weighted like all
documents it was drawn from.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from scipy import sparse
from sklearn.svm import LinearSVC

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.common import append
from companion.peers import bare as peers
from plantlib.data.corpus import Corpus
from plantlib.data.tokens import tfidf, words
from plantlib.kernels.counts import column_counts
from plantlib.linear import score as linear_score
from plantlib.linear import terms
from plantlib.metrics.documents import evaluate
from plantlib.training.records import environment
from plantlib.utils.progress import tqdm

METRICS = ("p@1", "p@5", "ndcg@5", "psp@5", "few/rp@5", "few/r@15")
COLUMNS = [
    "date",
    "device",
    "dataset",
    "documents",
    "labels",
    "solver",
    "cpu_seconds",
    *METRICS,
    "versions",
]
SOLVERS = ("together", "liblinear", "sample", "sample, weighted")
SHARE = 0.1  # of the negatives


def sampled(
    weights: sparse.csr_matrix, labels: sparse.csr_matrix, weighted: bool
) -> linear_score.Table:
    """LIBLINEAR on a sample of the negatives of each label."""
    n, columns, by_word = weights.shape[0], labels.tocsc(), weights.T.tocsr()
    centroids = terms.centroids(weights, labels).scores.tocsr()
    half = int(SHARE * n / 2)
    cells, intercept = [], []
    for label in tqdm(range(labels.shape[1]), desc="sample", unit="label"):
        # the negatives nearest to the centroid, and random others
        positive = columns[:, [label]].toarray().ravel() > 0
        near = np.where(positive, -1, (centroids[label] @ by_word).toarray().ravel())
        hard = np.argpartition(-near, half)[:half]
        drawn = np.random.default_rng([0, label]).choice(n, half, replace=False)
        easy = np.setdiff1d(drawn, [*hard, *np.flatnonzero(positive)])
        rows = np.concatenate([np.flatnonzero(positive), hard, easy])
        row_weights = np.ones(len(rows))
        if weighted:
            others = n - positive.sum() - len(hard)
            row_weights[len(rows) - len(easy) :] = others / max(len(easy), 1)
        svm = LinearSVC(random_state=0)
        model = svm.fit(weights[rows], positive[rows], sample_weight=row_weights)
        cells.append(sparse.csr_matrix(model.coef_[0].astype(np.float32)))
        intercept.append(model.intercept_[0])
    return linear_score.Table(sparse.vstack(cells, "csr"), np.array(intercept, np.float32))


def tables_of(
    solver: str, weights: sparse.csr_matrix, labels: sparse.csr_matrix
) -> linear_score.Table:
    """The SVMs of one solver."""
    if solver.startswith("sample"):
        return sampled(weights, labels, weighted="weighted" in solver)
    with tqdm(total=labels.shape[1], desc=solver, unit="label") as bar:
        return linear_score.svm(weights, labels, large=solver == "together", prune=0.0, bar=bar)


def main(arguments: list[str] | None = None) -> None:
    """Fit the SVMs, score dev, and append one row per solver."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", nargs="?", default="eurlex57k")
    parser.add_argument("--train", type=int, default=5000)
    parser.add_argument("--dev", type=int, default=1500)
    parser.add_argument("--solvers", nargs="+", default=SOLVERS, choices=SOLVERS)
    options = parser.parse_args(arguments)
    # tf-idf weights, and the labels that occur in train
    corpus = Corpus.load(options.dataset).with_dev().subset(options.train, options.dev, 1)
    train, dev = corpus.rows("train"), corpus.rows("dev")
    weights = tfidf(words(corpus.texts, train).counts, train)
    counts = column_counts(corpus.labels[train])
    labels, counts = corpus.labels[:, counts > 0], counts[counts > 0]
    # one row per solver
    for solver in options.solvers:
        began = time.process_time()
        table = tables_of(solver, weights[train], labels[train])
        seconds = round(time.process_time() - began, 1)
        scored = peers.scored(
            lambda part, table=table: table.scores(weights[part]), labels, dev, counts, auc=False
        )
        metrics = evaluate(scored, labels[dev], counts, len(train))
        row = {
            "date": datetime.date.today().isoformat(),
            "device": environment()["cpu"],
            "dataset": corpus.name,
            "documents": len(train),
            "labels": labels.shape[1],
            "solver": solver,
            "cpu_seconds": seconds,
            **{m: round(float(metrics[m]), 4) for m in METRICS},
            "versions": " ".join(f"{p} {version(p)}" for p in ("scikit-learn", "scipy", "numpy")),
        }
        append([row], ROOT / "results" / "bench" / "svm.csv", COLUMNS)
        print(row, flush=True)


if __name__ == "__main__":
    main()
