"""Labels without a training document, with and without label text -> results/zero_shot.json.

    python benchmarks/bench_zero_shot.py bare codiesp eurlex57k  # teachers over words, untrained
    python benchmarks/bench_zero_shot.py trained codiesp  # frozen MiniLM, 128 tokens, 2 seeds
    python benchmarks/bench_zero_shot.py trained eurlex57k --train 1000 --dev 500 --test 2000

The label space is every label of the corpus, so labels without a training document can be ranked.
recall@15 and RP@5 of the zero bucket rank these labels among themselves, nDCG@5 ranks all labels.
Label texts come from terminologies. Options were chosen on dev, and test is read once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

from companion.peers import bare as peers
from plantlib import Corpus, prepare
from plantlib.data.tokens import WORD
from plantlib.kernels.counts import column_counts
from plantlib.metrics.documents import evaluate
from plantlib.teacher import label_texts, mig
from plantlib.training import runs
from plantlib.training.options import RunConfig, TrainConfig
from plantlib.utils.io import read_json, write_json
from plantlib.utils.progress import tqdm

METRICS = ("zero/r@15", "zero/rp@5", "few/r@15", "few/rp@5", "ndcg@5", "p@1", "psp@5")
STARTS = ("lookup+score", "lookup+score+text")


def bare_rows(name: str) -> list[dict]:
    """Rows of the MI teacher, the label texts and their sum, over words of whole documents."""
    corpus = Corpus.load(name).labelled().with_dev()
    train, test = corpus.rows("train"), corpus.rows("test")
    words = [text or "" for text in label_texts.read(corpus)]
    # words of a zero-shot label may occur in no training document
    vectorizer = CountVectorizer(token_pattern=WORD, dtype=np.int32)
    vectorizer.fit([*(corpus.texts[i] for i in train), *words])
    x, held = (
        vectorizer.transform([corpus.texts[i] for i in rows]).tocsr() for rows in (train, test)
    )
    y = corpus.labels[train]
    weights = TfidfTransformer(sublinear_tf=True).fit(x).transform(held).tocsr()
    counts, gold = column_counts(y), corpus.labels[test]
    teacher = mig.teach(x, y, variant="raw", relevance="score")
    text = label_texts.teach(vectorizer.transform(words).tocsr(), x)
    both = label_texts.joined(teacher, label_texts.limited(text, counts), vocabulary=x.shape[1])
    rows = []
    params = {"text": "whole documents, words"}
    for system, scorer in (("bare MI", teacher), ("bare text", text), ("bare MI + text", both)):
        score = peers.bare_teacher(weights, scorer)
        scores = peers.scored(score, gold, np.arange(len(test)), counts, auc=False)
        metrics = evaluate(scores, gold, counts, len(train))
        rows.append(row_of(corpus, counts, gold, system, 0, metrics, params))
    return rows


def row_of(
    corpus: Corpus, counts: np.ndarray, gold, system: str, seed: int, metrics: dict, params: dict
) -> dict:
    """One result, as results/zero_shot.json stores it."""
    unseen = counts == 0
    return {
        "dataset": corpus.name,
        "fingerprint": corpus.fingerprint(),
        "system": system,
        "seed": seed,
        "label_space": "all labels of the corpus",
        "labels": corpus.L,
        "labels_without_training_document": int(unseen.sum()),
        "of_them_in_test": int((unseen & (column_counts(gold) > 0)).sum()),
        "documents": {"train": int((corpus.split == "train").sum()), "test": gold.shape[0]},
        "labels_with_text": sum(t is not None for t in label_texts.read(corpus)),
        "params": params,
        "metrics": {
            m: None if np.isnan(metrics[m]) else round(float(metrics[m]), 4) for m in METRICS
        },
    }


def trained_rows(
    name: str, tokens: int, seeds: int, epochs: int, caps: dict, starts
) -> Iterator[dict]:
    """Rows of the starts, fine-tuned on cached features of frozen MiniLM."""
    prepared = prepare(name, backbone="minilm", max_tokens=tokens, label_space="all", **caps)
    config = RunConfig(train=TrainConfig(epochs=epochs))
    gold = prepared.corpus.labels[prepared.rows["test"]]
    pairs = [(seed, start) for seed in range(seeds) for start in starts]
    for seed, start in tqdm(pairs, desc=name, unit="run"):
        record, _ = runs.run_start(prepared, start, seed, config=config, progress=False)
        params = {
            "backbone": "minilm, frozen",
            "tokens": tokens,
            "epochs": epochs,
            "chosen_epoch": record.chosen_epoch,
            "seconds": record.times["fine_tune"],
        }
        yield row_of(
            prepared.corpus, prepared.train_counts, gold, start, seed, record.metrics, params
        )


def merged(old: list[dict], new: list[dict]) -> list[dict]:
    """All rows; a new one replaces that of the same data set, documents, system and seed."""

    def key(row: dict) -> tuple:
        return row["dataset"], row["documents"]["train"], row["system"], row["seed"]

    new_keys = {key(row) for row in new}
    return sorted([*(row for row in old if key(row) not in new_keys), *new], key=key)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["bare", "trained"])
    parser.add_argument("datasets", nargs="+")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--starts", default=",".join(STARTS), help="starts, separated by commas")
    for split in ("train", "dev", "test"):
        about = f"at most so many {split} documents, with `trained`"
        parser.add_argument(f"--{split}", type=int, help=about)
    parser.add_argument("--out", type=Path, default=Path("results/zero_shot.json"))
    options = parser.parse_args()
    caps = {f"{split}_documents": getattr(options, split) for split in ("train", "dev", "test")}
    for name in options.datasets:
        if options.what == "bare":
            new = bare_rows(name)
        else:
            starts = options.starts.split(",")
            new = trained_rows(name, options.tokens, options.seeds, options.epochs, caps, starts)
        # written row by row, so finished rows survive an interruption
        for row in new:
            old = read_json(options.out)["rows"] if options.out.exists() else []
            write_json(options.out, {"schema": 1, "split": "test", "rows": merged(old, [row])})
            print(name, row["system"], row["seed"], row["metrics"], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
