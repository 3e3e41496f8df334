"""CPU seconds of prediction by a saved model -> results/bench/predict.csv.

    python benchmarks/bench_predict.py model/ codiesp

The documents are those of the corpus's test split, in their order, 1,000 of them at most. Times are
CPU time of one thread, so other work on the machine does not count. `load` is from the folder to
the model, `first` the first document after it, `rest` is per document.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.common import append, peak_mib
from plantlib import Corpus, PlantModel

MOST = 1000  # documents
COLUMNS = ["corpus", "backbone", "labels", "documents", "load_s", "first_ms", "rest_ms", "peak_mib"]


def measure(folder: str, name: str) -> dict:
    """One row: CPU times of loading the model in `folder` and of predicting corpus `name`."""
    corpus = Corpus.load(name)
    texts = [corpus.texts[i] for i in corpus.rows("test")[:MOST]]
    began = time.process_time()
    model = PlantModel.from_pretrained(folder)
    loaded = time.process_time()
    model.predict(texts[:1])
    first = time.process_time()
    model.predict(texts)
    ended = time.process_time()
    return {
        "corpus": corpus.name,
        "backbone": model.config.backbone_name,
        "labels": model.config.num_labels,
        "documents": len(texts),
        "load_s": round(loaded - began, 2),
        "first_ms": round(1e3 * (first - loaded), 1),
        "rest_ms": round(1e3 * (ended - first) / len(texts), 2),
        "peak_mib": round(peak_mib()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder that plant fit wrote")
    parser.add_argument("corpus", help="a known corpus or the folder of a saved one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    row = measure(options.model, options.corpus)
    print(row)
    append([row], ROOT / "results" / "bench" / "predict.csv", COLUMNS)


if __name__ == "__main__":
    main()
