"""Time and memory a document of the decoder on candidates against the one on all labels ->
results/bench/candidates.csv.

    python benchmarks/bench_candidates.py                  # generated labels, 4k to 1M; each size
    in a process of its own
    python benchmarks/bench_candidates.py recall eurlex57k # recall@C of MI, J and both on a
    corpus's dev split, whole documents

Generated: tokens of documents and of labels follow one Zipf law over 30,000 tokens, 16 tokens a
label. A training step is forward, backward and optimiser. Times are CPU time of this one thread, so
other work on the machine does not enter. MiB are the peak of the steps beyond what was resident
before them (tables and optimiser state made).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.common import append, peak_mib, restart_peak
from plantlib.candidates import lists as candidates
from plantlib.candidates.decoder import (
    CandidateConfig,
    CandidateDecoder,
    candidate_bce,
    plant,
    table_bytes,
)
from plantlib.candidates.training import CHOICE
from plantlib.planting.decoder import LabelDecoder, Packed
from plantlib.teacher import mig

SIZES = (4_000, 16_000, 64_000, 256_000, 1_000_000)
# all labels cost in proportion; more would not fit beside Adam's state
WHOLE = (4_000, 16_000, 64_000)
VOCABULARY, TOKENS, BATCH, D, A_LABEL, STEPS = 30_000, 128, 16, 128, 16, 4
COLUMNS = [
    "kind",
    "corpus",
    "ranker",
    "labels",
    "width",
    "rank",
    "rank_ms_a_document",
    "step_ms_a_document",
    "step_mib_a_document",
    "table_mib",
    "recall",
]


def zipf(rng: np.random.Generator, shape) -> np.ndarray:
    """Token ids by a Zipf law."""
    p = 1 / (np.arange(VOCABULARY) + 10.0)
    return np.searchsorted(np.cumsum(p / p.sum()), rng.random(shape)).astype(np.int64)


def teacher_of(num_labels: int, rng) -> sparse.csr_matrix:
    """Scores csr (L, V), A_LABEL tokens a label; the rarer the token, the higher."""
    tokens = zipf(rng, (num_labels, A_LABEL))
    values = np.log(tokens + 10.0) * rng.uniform(0.5, 1, tokens.shape)
    indptr = np.arange(num_labels + 1) * A_LABEL
    made = sparse.csr_matrix(
        (values.ravel().astype(np.float32), tokens.ravel().astype(np.int32), indptr),
        shape=(num_labels, VOCABULARY),
    )
    made.sum_duplicates()
    return made


def batches(rng):
    """STEPS + 1 batches of packed documents and their token weights."""
    for _ in range(STEPS + 1):
        ids = zipf(rng, (BATCH, TOKENS))
        rows = np.repeat(np.arange(BATCH), TOKENS)
        weights = sparse.coo_matrix(
            (np.ones(ids.size, np.float32), (rows, ids.ravel())), (BATCH, VOCABULARY)
        ).tocsr()
        packed = Packed(
            torch.randn(ids.size, D),
            torch.from_numpy(ids.ravel()),
            torch.arange(BATCH + 1) * TOKENS,
        )
        yield packed, weights, rng


def timed(prepare, step, rng) -> dict:
    """Medians of ranking and stepping, and the peak of the steps; the first batch warms up and
    makes optimiser state.
    """
    ranking, stepping, resident = [], [], 0.0
    for i, (packed, weights, _) in enumerate(batches(rng)):
        begin = time.process_time()
        ready = prepare(weights)
        middle = time.process_time()
        step(packed, weights, ready)
        if i:
            ranking.append(middle - begin)
            stepping.append(time.process_time() - middle)
        else:
            restart_peak()
            resident = peak_mib()
    return {
        "rank_ms_a_document": round(1e3 * float(np.median(ranking)) / BATCH, 3),
        "step_ms_a_document": round(1e3 * float(np.median(stepping)) / BATCH, 3),
        "step_mib_a_document": round(max(peak_mib() - resident, 0) / BATCH, 3),
    }


def candidate_row(num_labels: int, config: CandidateConfig) -> dict:
    """The decoder on candidates, factorised, SparseAdam."""
    rng = np.random.default_rng(0)
    scores = teacher_of(num_labels, rng)
    ranker, decoder = (candidates.Ranker.of(scores), CandidateDecoder(num_labels, D, config.rank))
    plant(decoder, sparse.csr_matrix((8, num_labels), dtype=np.int32))
    optimisers = decoder.optimisers(1e-3)

    def step(packed, weights, ranked):
        gold = sparse.csr_matrix(
            (
                np.ones(4 * BATCH),
                (np.repeat(np.arange(BATCH), 4), rng.integers(0, num_labels, 4 * BATCH)),
            ),
            (BATCH, num_labels),
        )
        ids, positive = candidates.training_candidates(ranked, gold, config.width, rng)
        z = torch.from_numpy(candidates.pair_scores(scores, weights, ids))
        loss = candidate_bce(
            decoder(packed, torch.from_numpy(ids).long(), scores, z), torch.from_numpy(positive)
        )
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()

    found = timed(lambda w: ranker.rank(w, CHOICE * config.width)[0], step, rng)
    table = table_bytes(num_labels, D, config.rank) / 2**20
    return {
        "kind": "candidates",
        "labels": num_labels,
        "width": config.width,
        "rank": config.rank,
        "table_mib": round(table, 1),
        **found,
    }


def whole_row(num_labels: int) -> dict:
    """The decoder on all labels, Adam; nothing to rank."""
    rng = np.random.default_rng(0)
    scores = teacher_of(num_labels, rng)
    decoder = LabelDecoder(num_labels, D, VOCABULARY, scores.nnz)
    decoder.planted.load_relevance(scores)
    optimiser = torch.optim.Adam(decoder.parameters(), lr=1e-3)

    def step(packed, weights, _):
        rows, columns = (
            torch.arange(BATCH).repeat_interleave(4),
            torch.from_numpy(rng.integers(0, num_labels, 4 * BATCH)),
        )
        optimiser.zero_grad()
        decoder.loss(packed, rows, columns)[0].backward()
        optimiser.step()

    found = timed(lambda w: None, step, rng)
    table = 4 * num_labels * (2 * D + 1) / 2**20
    return {"kind": "all labels", "labels": num_labels, "table_mib": round(table, 1), **found}


def recall_rows(
    name: str, widths: tuple[int, ...] = (50, 100, 200, 500), per_token: int = 512
) -> list[dict]:
    """recall@C of each ranker on dev documents of a corpus, words of whole documents, labels seen
    in train.
    """
    from plantlib import Corpus
    from plantlib.data.tokens import tfidf, words

    corpus = Corpus.load(name).labelled().with_dev().seen_in_train()
    train, dev = corpus.rows("train"), corpus.rows("dev")[:2000]
    counts = words(corpus.texts, train).counts
    weights, gold = tfidf(counts, train)[dev], corpus.labels[dev]
    ids, rows, depth = {}, [], max(widths)
    for ranker, variant in (("MI", "raw"), ("J", "jaccard")):
        teacher = mig.teach(counts[train], corpus.labels[train], variant=variant)
        began = time.process_time()
        ids[ranker] = candidates.Ranker.of(teacher.scores, per_token).rank(weights, depth)[0]
        print(ranker, round(1e3 * (time.process_time() - began) / len(dev), 2), "ms a document")
    ids["MI and J"] = candidates.interleaved(ids["MI"], ids["J"], depth)
    for ranker, found in ids.items():
        about = {"kind": "recall", "corpus": f"{name} dev", "ranker": ranker, "labels": corpus.L}
        rows += [
            about | {"width": c, "recall": round(r, 4)}
            for c, r in candidates.recall(found, gold, widths).items()
        ]
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="*", default=["sizes"], help="nothing, or: recall CORPUS ...")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=ROOT / "results/bench/candidates.csv")
    given = parser.parse_args()
    if given.one:
        torch.manual_seed(0)
        form, size = given.one[0], int(given.one[1])
        append(
            [candidate_row(size, CandidateConfig()) if form == "candidates" else whole_row(size)],
            given.out,
            COLUMNS,
        )
    elif given.what[0] == "recall":
        for name in given.what[1:]:
            append(recall_rows(name), given.out, COLUMNS)
    else:
        for form, sizes in (("all", WHOLE), ("candidates", SIZES)):
            for size in sizes:
                print(form, size, flush=True)
                subprocess.run(
                    [sys.executable, __file__, "--one", form, str(size), "--out", str(given.out)],
                    check=True,
                )
    print(given.out.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
