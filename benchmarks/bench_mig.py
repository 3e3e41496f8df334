"""Mutual information on one core against the published algorithm -> results/bench/mig.csv.

    python benchmarks/bench_mig.py [--dataset eurlex57k]

X is word presence and Y the labels of the training rows. If the data set cannot be read, random
data of its size with Zipf frequencies takes its place and the row says so. `mig.teach` runs in a
process by itself, which gives CPU seconds and peak memory beyond the inputs. The published
algorithm visits 4 N V L cells, so it is timed on a sample and extrapolated.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: one thread on both sides

import numpy as np
from common import append, peak_mib
from scipy import sparse

from plantlib.data.corpus import Corpus
from plantlib.data.tokens import words
from plantlib.kernels.counts import dense_mutual_information, presence
from plantlib.teacher import mig
from plantlib.training.records import environment

COLUMNS = (
    "date device dataset N V L seconds mib baseline_seconds_sample ratio_extrapolated versions"
).split()
ROOT = Path(__file__).resolve().parent.parent
LABELS_AT_ONCE = 200  # of the published code
EURLEX57K = (45_000, 39_209, 4_108)


def training_rows(dataset: str, min_documents: int) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Word counts X (N, V) and labels Y (N, L) of a corpus's training rows, seen labels only."""
    corpus = Corpus.load(dataset).labelled().seen_in_train()
    rows = corpus.rows("train")
    texts = [corpus.texts[i] for i in rows]
    return words(texts, np.arange(len(rows)), min_documents).counts, corpus.labels[rows]


def zipf_rows(shape=EURLEX57K, document_tokens=185, document_labels=5, seed=0):
    """X and Y of the size of EURLEX57K with Zipf frequencies and without association."""
    rng = np.random.default_rng(seed)

    def draw(columns: int, per_document: int) -> sparse.csr_matrix:
        p = 1 / np.arange(1, columns + 1)
        cells = rng.choice(columns, (shape[0], per_document), p=p / p.sum())
        rows = np.repeat(np.arange(shape[0]), per_document)
        return presence(
            sparse.csr_matrix((np.ones(cells.size), (rows, cells.ravel())), (shape[0], columns))
        )

    return draw(shape[1], 2 * document_tokens), draw(shape[2], document_labels)


def published_counts(x: sparse.csr_matrix, y: sparse.csr_matrix) -> np.ndarray:
    """Joint counts (V, L, 2, 2), dense, by the published pass over the documents."""
    joint = np.zeros((x.shape[1], y.shape[1], 2, 2))
    for i in range(x.shape[0]):
        token, label = x[i].toarray()[0] > 0, y[i].toarray()[0] > 0
        for a, with_token in ((0, ~token), (1, token)):
            for b, with_label in ((0, ~label), (1, label)):
                joint[:, :, a, b] += with_token[:, None] & with_label[None, :]
    return joint


def published_information(joint: np.ndarray, n: int) -> np.ndarray:
    """MI (V, L) of the joint counts, in a second dense (V, L, 2, 2) tensor."""
    joint = joint / n
    independent = joint.sum(3, keepdims=True) * joint.sum(2, keepdims=True)
    safe = np.where(joint > 0, joint, 1.0)
    return (joint * np.log(safe / np.where(joint > 0, independent, 1.0))).sum((2, 3))


def time_published(x, y, documents=100, tokens=2_000, seed=0) -> tuple[float, float]:
    """CPU seconds of the published algorithm on a random sample, and extrapolated to x and y.

    Counting grows with N V L and the rest with V L. The values are compared with ours.
    """
    rng = np.random.default_rng(seed)

    def pick(size: int, most: int) -> np.ndarray:
        return np.sort(rng.choice(size, min(size, most), replace=False))

    # a sample of documents, tokens and labels
    rows = pick(x.shape[0], documents)
    sx = presence(x[rows][:, pick(x.shape[1], tokens)])
    sy = presence(y[rows][:, pick(y.shape[1], LABELS_AT_ONCE)])
    # time both steps, check the values
    began = time.process_time()
    joint = published_counts(sx, sy)
    counting = time.process_time() - began
    values = published_information(joint, len(rows))
    closing = time.process_time() - began - counting
    np.testing.assert_allclose(values, dense_mutual_information(sx, sy), atol=1e-9)
    passes = x.shape[1] / sx.shape[1] * y.shape[1] / sy.shape[1]
    return counting + closing, passes * (counting * x.shape[0] / len(rows) + closing)


def measure(folder: Path) -> None:
    """Print CPU seconds of `teach` and the peak MiB that it adds to the inputs in `folder`."""
    x, y = (sparse.load_npz(folder / f"{name}.npz") for name in "xy")
    before, began = peak_mib(), time.process_time()
    mig.teach(x, y, variant="jaccard", top_k=64, relevance="grade")
    print(time.process_time() - began, peak_mib() - before)


def time_teach(x, y) -> tuple[float, float]:
    """CPU seconds and MiB of `teach`, measured in another process."""
    with tempfile.TemporaryDirectory() as folder:
        sparse.save_npz(f"{folder}/x.npz", x, compressed=False)
        sparse.save_npz(f"{folder}/y.npz", y, compressed=False)
        command = [sys.executable, __file__, "--measure", folder]
        return tuple(map(float, subprocess.check_output(command, text=True).split()))


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    corpus_help = "a corpus by name, or 'zipf' for generated data"
    parser.add_argument("--dataset", default="eurlex57k", help=corpus_help)
    words_help = "leave out words of fewer training documents"
    parser.add_argument("--min-documents", type=int, default=2, help=words_help)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        return measure(options.measure)
    # inputs
    dataset = options.dataset
    try:
        x, y = zipf_rows() if dataset == "zipf" else training_rows(dataset, options.min_documents)
    except (ValueError, OSError) as error:
        print(
            f"{dataset} cannot be read ({error}); timing generated Zipf data instead",
            file=sys.stderr,
        )
        dataset, (x, y) = "zipf", zipf_rows()
    # measurements and the row
    seconds, mib = time_teach(x, y)
    sample, extrapolated = time_published(x, y)
    about = environment()
    versions = [f"{package} {version(package)}" for package in ("plantlib", "numpy", "scipy")]
    row = {
        "date": datetime.date.today().isoformat(),
        "device": about["cpu"],
        "dataset": dataset,
        "N": x.shape[0],
        "V": x.shape[1],
        "L": y.shape[1],
        "seconds": round(seconds, 2),
        "mib": round(mib),
        "baseline_seconds_sample": round(sample, 2),
        "ratio_extrapolated": round(extrapolated / seconds),
        "versions": " ".join([*versions, f"python {about['python']}"]),
    }
    append([row], ROOT / "results/bench/mig.csv", COLUMNS)
    print("\n".join(f"{name:24} {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
