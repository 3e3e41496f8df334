"""What decisions on top of a ranking are worth: rules for label sets, documents to review first,
and learning on from further documents (docs/method.md, "Label sets", "Documents to review",
"Learning from corrections").

One model of the quick tier is fitted to a cut of a corpus. Dev chooses each rule; test measures F1,
how many of the wrong decisions the documents hold that `plant review` lists first, against a random
order, and nDCG@5 before and after the model learned on from training documents that it had not
seen. `python -m companion.studies.decisions codiesp eurlex57k` writes numbers, no text. With
`--linear` the linear score alone decides, fitted to all training documents of a corpus and read
from the artefacts of a run where one made it: EURLEX57K takes minutes of CPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import sparse

from companion.peers import bare, library_peers
from plantlib.data.corpus import Corpus
from plantlib.linear.score import LinearConfig
from plantlib.metrics.choosing import CHOSEN, choose
from plantlib.metrics.documents import f1_scores, hits, label_counts, ndcg_at_k
from plantlib.metrics.topk import TopK
from plantlib.model import label_sets, reading, review
from plantlib.training import artefacts, evaluation, learning
from plantlib.training.records import environment, plain
from plantlib.training.runs import fit
from plantlib.utils.io import read_if_whole, read_json, write_json

FILE = "results/decisions.json"
MOST = {"train": 1000, "dev": 500, "test": 1000}  # documents
QUICK, LINEAR = "quick tier", "linear score"  # what decides
LATER = 50  # training documents that the model learns on from
SHARES = (0.1, 0.25, 0.5)  # of the documents, reviewed first


def cut(name: str, seed: int) -> tuple[Corpus, list[str], list[list[str]]]:
    """A corpus without LATER of its training documents, and these: texts and labels."""
    corpus = Corpus.load(name).labelled().with_dev().subset(**MOST, seed=seed)
    rows = np.random.default_rng(seed).choice(corpus.rows("train"), LATER, replace=False)
    texts = [corpus.texts[i] for i in rows]
    labels = [[corpus.label_names[j] for j in corpus.labels[i].indices] for i in rows]
    split = corpus.split.astype(object)
    split[rows] = "unlabelled"
    return replace(corpus, split=split).labelled(), texts, labels


def places_of(model, texts: list[str]) -> TopK:
    """The best places of some documents."""
    places = min(label_sets.PLACES, model.config.num_labels)
    return TopK.concat([TopK.from_dense(s.float(), places) for s in reading.logits(model, texts)])


def gold_of(corpus: Corpus, rows: np.ndarray, model) -> sparse.csr_matrix:
    """(n, L) labels of some documents in the columns of a model."""
    names = corpus.label_names
    lists = [[names[j] for j in corpus.labels[i].indices] for i in rows]
    return label_sets.in_columns(lists, list(model.config.id2label.values()))


def of_rules(
    dev: tuple[TopK, sparse.csr_matrix], test: tuple[TopK, sparse.csr_matrix], unseen: int = 0
) -> dict:
    """Micro- and macro-F1 of test by the rule and the metric that chose it on dev.

    unseen: gold cells of test whose label has no column; `micro_f1, all` counts them as missed.
    """
    found = {}
    for kind in CHOSEN:
        for by in ("micro_f1", "macro_f1"):
            counts = label_counts(*test, choose(*dev, kind, by))
            scores = f1_scores(counts)
            values = {name: scores[name] for name in ("micro_f1", "macro_f1")}
            right, accepted, gold = counts.sum(1)
            values["micro_f1, all"] = 2 * right / max(accepted + gold + unseen, 1)
            found[f"{kind}, by {by}"] = values
    return found


def of_review(model, texts: list[str], gold: sparse.csr_matrix) -> dict:
    """`of_order` of the documents as `plant review` lists them."""
    listed = review.review(model, texts)
    accepted = label_sets.label_sets(model, texts)
    names = list(model.config.id2label.values())
    chosen = label_sets.in_columns([[label for label, _ in row] for row in accepted], names)
    wrong = np.asarray(abs(chosen - gold).sum(1)).ravel()
    rows = [document.row for document in listed]
    return of_order(wrong[rows], [document.errors for document in listed])


def of_order(wrong: np.ndarray, expected: Sequence[float]) -> dict:
    """Share of the wrong decisions in the documents that are reviewed first.

    documents_to_80: share of the documents after which 80 % of them are found, in this order and
    in a random one.

    Args:
        wrong: (N,) wrong decisions of each document, in the order of the review.
        expected: (N,) how many were expected.
    """
    found = np.cumsum(wrong) / max(wrong.sum(), 1)
    n = len(wrong)
    result = {f"first {share:.0%}": found[max(round(share * n), 1) - 1] for share in SHARES}
    return result | {
        "wrong": wrong.sum(),
        "expected": sum(expected),
        "documents_to_80": (np.searchsorted(found, 0.8) + 1) / n,
        "documents_to_80_random": 0.8,
    }


def measure_linear(name: str, seed: int = 0) -> dict:
    """Rules and review of the linear score alone, fitted to all training documents."""
    inputs = library_peers.words_only(name, seed=seed)
    labels = inputs.corpus.labels
    began = time.process_time()
    linear = artefacts.linear_scores(inputs, LinearConfig(), seed=seed)
    seconds = time.process_time() - began
    decided = {}
    for split in ("dev", "test"):
        rows = inputs.rows[split]
        scored = bare.scored(linear.scores, labels, rows, inputs.train_counts, auc=False)
        decided[split] = scored.topk, labels[rows]
    unseen = int(inputs.extra_gold[inputs.rows["test"]].sum())
    # review what one threshold accepts, with chances from dev
    topk, gold = decided["test"]
    calibration = evaluation.calibrate(*decided["dev"])
    _, accepted, doubt = review.doubts(topk, choose(*decided["dev"]), calibration)
    right = (accepted & hits(topk, gold, topk.k)).sum(1)
    wrong = accepted.sum(1) + np.diff(gold.indptr) - 2 * right
    order = np.argsort(-doubt.sum(1), kind="stable")
    return plain(
        {
            "corpus": name,
            "seed": seed,
            "system": LINEAR,
            "documents": {split: len(inputs.rows[split]) for split in MOST},
            "labels": inputs.corpus.L,
            "unseen_gold": unseen,
            "rules": of_rules(decided["dev"], decided["test"], unseen),
            "review": of_order(wrong[order], doubt.sum(1)[order]),
            "cpu_seconds": seconds,
            "environment": environment(),
        }
    )


def measure(name: str, seed: int = 0) -> dict:
    """All measurements on one corpus."""
    corpus, later, labels = cut(name, seed)
    model = fit(corpus, backbone="words", seed=seed, progress=False)
    known = set(model.config.id2label.values())
    texts = {split: [corpus.texts[i] for i in corpus.rows(split)] for split in ("dev", "test")}
    gold = {split: gold_of(corpus, corpus.rows(split), model) for split in texts}
    places = {split: places_of(model, texts[split]) for split in texts}
    rules = of_rules(*((places[split], gold[split]) for split in ("dev", "test")))
    reviewed = of_review(model, texts["test"], gold["test"])
    # learn on
    began = time.process_time()
    learned = learning.learn(model, later, labels, progress=False)
    seconds = time.process_time() - began
    after = places_of(learned.model, texts["test"])
    wide = gold_of(corpus, corpus.rows("test"), learned.model)
    new = [j for j, x in learned.model.config.id2label.items() if x not in known]
    ndcg = {
        "before": np.nanmean(ndcg_at_k(places["test"], gold["test"], 5)),
        "after": np.nanmean(ndcg_at_k(after, wide, 5)),
        "before, labels of after": np.nanmean(ndcg_at_k(places["test"], wide, 5)),
    }
    return plain(
        {
            "corpus": name,
            "seed": seed,
            "system": QUICK,
            "documents": {split: int((corpus.split == split).sum()) for split in MOST},
            "labels": len(known),
            "backbone": "words",
            "rules": rules,
            "review": reviewed,
            "learned": {"documents": LATER, "new_labels": len(new), "cpu_seconds": seconds},
            "ndcg@5": ndcg,
            "environment": environment(),
        }
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure corpora that the file does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("datasets", nargs="+", help="known corpora, or folders of saved ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--linear", action="store_true", help="the linear score, all documents")
    parser.add_argument("--file", default=FILE)
    options = parser.parse_args(arguments)
    path = Path(options.file)
    rows = read_if_whole(path, read_json) or []
    system, make = (LINEAR, measure_linear) if options.linear else (QUICK, measure)
    for name in options.datasets:
        wanted = name, options.seed, system
        if any((row["corpus"], row["seed"], row["system"]) == wanted for row in rows):
            continue
        rows.append(make(name, options.seed))
        write_json(path, rows)
        print(f"{name}: {rows[-1]['rules']}, {rows[-1]['review']}, {rows[-1].get('ndcg@5', '')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
