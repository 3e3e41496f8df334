"""CPU seconds of prediction by saved models -> results/bench/predict.csv.

    python benchmarks/bench_predict.py                    # the models that bench_fit.py has saved
    python benchmarks/bench_predict.py model/ codiesp

The documents are those of the corpus's test split, in their order, 1,000 of them at most. Times are
CPU time of one thread, so other work on the machine does not count. `load` is from the folder to
the model, `first` the first document after it, `one` the median of single documents, `rest` is per
document of many. Peers stand in `fit.csv`.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.bench_fit import MODELS
from benchmarks.common import append, peak_mib
from plantlib import Corpus, PlantModel
from plantlib.training.records import environment

MOST = 1000  # documents
SINGLE = 20  # documents read one at a time
COLUMNS = ["date", "device", "corpus", "backbone", "labels", "documents", "load_s", "first_ms"]
COLUMNS += ["one_ms", "rest_ms", "documents_per_s", "peak_mib"]


def measure(folder: str, name: str) -> dict:
    """One row: CPU times of loading the model in `folder` and of predicting corpus `name`."""
    corpus = Corpus.load(name)
    texts = [corpus.texts[i] for i in corpus.rows("test")[:MOST]]
    began = time.process_time()
    model = PlantModel.from_pretrained(folder)
    loaded = time.process_time()
    model.predict(texts[:1])
    first = time.process_time()
    single = []
    for text in texts[:SINGLE]:
        before = time.process_time()
        model.predict([text])
        single.append(time.process_time() - before)
    before = time.process_time()
    model.predict(texts)
    each = (time.process_time() - before) / len(texts)
    return {
        "date": datetime.date.today().isoformat(),
        "device": environment()["cpu"],
        "corpus": corpus.name,
        "backbone": model.config.backbone_name,
        "labels": model.config.num_labels,
        "documents": len(texts),
        "load_s": round(loaded - began, 2),
        "first_ms": round(1e3 * (first - loaded), 1),
        "one_ms": round(1e3 * statistics.median(single), 1),
        "rest_ms": round(1e3 * each, 3),
        "documents_per_s": round(1 / each),
        "peak_mib": round(peak_mib()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="folder that plant fit wrote")
    parser.add_argument("corpus", nargs="?", help="a known corpus or the folder of a saved one")
    options = parser.parse_args()
    if bool(options.model) != bool(options.corpus):
        parser.error("give a model and a corpus, or neither")
    torch.set_num_threads(1)
    saved = sorted(path for path in MODELS.glob("*-*") if path.is_dir())
    jobs = [(str(path), path.name.rpartition("-")[0]) for path in saved]
    if options.model:
        jobs = [(options.model, options.corpus)]
    for job in jobs:
        row = measure(*job)
        print(row, flush=True)
        append([row], ROOT / "results" / "bench" / "predict.csv", COLUMNS)


if __name__ == "__main__":
    main()
