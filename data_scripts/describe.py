"""Write sizes and label frequencies of built corpora to results/corpora.json.

    python -m data_scripts.describe codiesp eurlex57k cooking debtags

The file holds counts of the training split, no text and no label name. Credentialed corpora are
refused, as everything made of them stays in the data folder (`plantlib/data/privacy.py`); notebook
01 draws their label frequencies from the corpus.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from plantlib import Corpus
from plantlib.data import privacy
from plantlib.data.credentials import PrivacyError
from plantlib.data.sources import checkout
from plantlib.kernels.counts import column_counts
from plantlib.metrics.buckets import edges_of, frequency_buckets
from plantlib.utils.io import read_json, write_json

POINTS = 40  # of a rank-frequency curve


def describe(corpus: Corpus) -> dict:
    """Sizes of a corpus and its rank-frequency curve.

    The curve is given by places (label ranks, 1 is the most frequent) and counts (training
    documents at these ranks). PrivacyError for a credentialed corpus.
    """
    if privacy.is_credentialed(corpus):
        raise PrivacyError(
            f"{corpus.name} is under a data-use agreement: its counts stay in the data folder; use"
            " notebook 01 with dataset="
        )
    corpus = corpus.labelled().with_dev()
    train = corpus.rows("train")
    counts = np.sort(column_counts(corpus.labels[train]))[::-1]
    used = counts[counts > 0]
    places = np.zeros(0, int)
    if len(used):
        places = np.unique(np.geomspace(1, len(used), POINTS).round().astype(int))
    masks = frequency_buckets(counts, edges_of(corpus.manifest))
    buckets = {name: int(mask.sum()) for name, mask in masks.items()}
    return {
        "fingerprint": corpus.fingerprint(),
        "synthetic": bool(corpus.manifest.get("synthetic", False)),
        "documents": {split: len(corpus.rows(split)) for split in ("train", "dev", "test")},
        "labels": corpus.L,
        "labels_by_training_documents": buckets,
        "labels_a_document": round(float(np.diff(corpus.labels.indptr)[train].mean()), 2),
        "median_words": int(np.median([len(corpus.texts[i].split()) for i in train])),
        "places": places.tolist(),
        "counts": used[places - 1].tolist(),
    }


def main(arguments: list[str] | None = None) -> int:
    """Describe the named corpora; entries of other corpora in the file stay as they are."""
    parser = argparse.ArgumentParser(
        prog="python -m data_scripts.describe", description=__doc__.split("\n")[0]
    )
    parser.add_argument("datasets", nargs="+")
    parser.add_argument("--out", type=Path, default=checkout() / "results" / "corpora.json")
    options = parser.parse_args(arguments)
    corpora = read_json(options.out) if options.out.exists() else {}
    for name in options.datasets:
        about = corpora[name] = describe(Corpus.load(name))
        print(f"{name}: {about['labels']} labels, {about['labels_by_training_documents']}")
    write_json(options.out, dict(sorted(corpora.items())))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
