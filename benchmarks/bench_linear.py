"""CPU seconds, memory and quality of the linear score -> results/bench/linear.csv.

    python benchmarks/bench_linear.py codiesp cooking        # beside the tuned SVM and Bonsai
    python benchmarks/bench_linear.py --growth 3000 10000 30000 100000

Times are CPU seconds of this process or of the peer's, which other work on the machine changes
little. The SVM's include its tuning; those of the linear score begin with words that are counted.
Quality is nDCG@5 and PSP@5 on dev. `--growth` generates corpora of so many documents and as many
labels, whose frequencies follow a power law, and prints the exponents at which time and memory grow
with the documents.
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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.common import append, peak_mib, restart_peak
from companion.peers import bare, library_peers
from companion.studies import label_tails
from plantlib.data.tokens import Words, words
from plantlib.linear import score as linear_score
from plantlib.metrics.documents import evaluate
from plantlib.training.inputs import Inputs
from plantlib.training.records import environment

METRICS = ("ndcg@5", "psp@5")
PEERS = ("SVM, tuned", "Bonsai")
COLUMNS = ["date", "device", "dataset", "documents", "labels", "system", "cpu_seconds", "peak_mib"]
COLUMNS += [*METRICS, "versions"]
# of a generated corpus
LABELS = 5  # per document, on average
BACKGROUND = 25  # other words of a document


def row_of(dataset: str, documents: int, labels: int, system: str, cpu: float, **more) -> dict:
    """One row of the table."""
    return {
        "date": datetime.date.today().isoformat(),
        "device": environment()["cpu"],
        "dataset": dataset,
        "documents": documents,
        "labels": labels,
        "system": system,
        "cpu_seconds": round(cpu, 1),
        "versions": " ".join(f"{p} {version(p)}" for p in ("scikit-learn", "scipy", "numpy")),
        **more,
    }


def ours(inputs: Inputs) -> dict:
    """The row of the linear score on a corpus."""
    train, dev, labels = inputs.rows["train"], inputs.rows["dev"], inputs.corpus.labels
    found = words(inputs.corpus.texts, train, linear_score.MIN_DOCUMENTS)
    restart_peak()
    began = time.process_time()
    linear = linear_score.fit(found, labels, train)
    cpu = time.process_time() - began
    scored = bare.scored(linear.raised, labels, dev, inputs.train_counts, auc=False)
    values = evaluate(scored, labels[dev], inputs.train_counts, len(train))
    quality = {name: round(float(values[name]), 4) for name in METRICS}
    sizes = (inputs.corpus.name, len(train), inputs.corpus.L)
    return row_of(*sizes, "linear score", cpu, peak_mib=round(peak_mib()), **quality)


def peer(inputs: Inputs, name: str) -> dict:
    """The row of a library's model: all options of its grid are trained, dev chooses one."""
    dev = inputs.corpus.labels[inputs.rows["dev"]]
    data = library_peers.Job.data_of(inputs)
    cpu, peak, tried = 0.0, 0.0, []
    for options in library_peers.PEERS[name].grid:
        report, scores = data.work(name, options, Path(sys.executable), 0, 1)
        cpu += report["train_cpu"]
        peak = max(peak, report["peak_memory_mb"])
        read = library_peers.collect(scores["dev"], dev, inputs)
        values = evaluate(read, dev, inputs.train_counts, len(inputs.rows["train"]))
        tried.append({metric: round(float(values[metric]), 4) for metric in METRICS})
    best = max(tried, key=lambda quality: quality["ndcg@5"])
    sizes = (inputs.corpus.name, len(inputs.rows["train"]), inputs.corpus.L)
    return row_of(*sizes, name, cpu, peak_mib=round(peak), **best)


def generated(documents: int, labels: int, seed: int = 0) -> tuple[Words, sparse.csr_matrix]:
    """Words and labels of a corpus whose labels follow a power law.

    A document has the words that its labels draw of their own, and words that all labels share.
    """
    rng = np.random.default_rng(seed)
    rank = np.arange(1, labels + 1, dtype=float)
    share = (1 / rank) / (1 / rank).sum()
    row = np.repeat(np.arange(documents), 1 + rng.poisson(LABELS - 1, documents))
    label = rng.choice(labels, len(row), p=share)
    y = sparse.csr_matrix((np.ones(len(row)), (row, label)), (documents, labels))
    y.data[:] = 1
    counts = label_tails.words_of(row, label, y.shape, BACKGROUND, rng)
    return Words([f"w{i}" for i in range(counts.shape[1])], counts), y


def growth(sizes: list[int]) -> list[dict]:
    """A row per size; prints the exponents of time and memory."""
    rows = []
    for size in sorted(sizes):
        found, y = generated(size, size)
        restart_peak()
        before = peak_mib()
        began = time.process_time()
        linear_score.fit(found, y, np.arange(size))
        cpu = time.process_time() - began
        more = {"peak_mib": round(peak_mib() - before)}
        rows.append(row_of("power law", size, size, "linear score", cpu, **more))
        print(rows[-1], flush=True)
    for column in ("cpu_seconds", "peak_mib"):
        values = np.log([row[column] for row in rows])
        slope = np.polyfit(np.log([row["documents"] for row in rows]), values, 1)[0]
        print(f"{column} grows as documents ** {slope:.2f}")
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Append a row per corpus and system, or per generated size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("datasets", nargs="*")
    parser.add_argument("--train", type=int, help="most training documents (default: all)")
    parser.add_argument("--dev", type=int, help="most dev documents (default: all)")
    parser.add_argument("--systems", nargs="+", default=["linear score", *PEERS])
    parser.add_argument("--growth", nargs="+", type=int, default=[], metavar="DOCUMENTS")
    options = parser.parse_args(arguments)
    table = ROOT / "results" / "bench" / "linear.csv"
    for dataset in options.datasets:
        inputs = library_peers.words_only(dataset, options.train, options.dev)
        for system in options.systems:
            row = ours(inputs) if system == "linear score" else peer(inputs, system)
            print(row, flush=True)
            append([row], table, COLUMNS)
    if len(options.growth) > 1:
        append(growth(options.growth), table, COLUMNS)


if __name__ == "__main__":
    main()
