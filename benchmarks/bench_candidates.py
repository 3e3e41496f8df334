"""The decoder on candidates against the decoder on all labels -> results/bench/candidates.csv.

    python benchmarks/bench_candidates.py                   # 4k to 1M generated labels
    python benchmarks/bench_candidates.py --sizes 131000    # candidates alone, also on a GPU
    python benchmarks/bench_candidates.py recall eurlex57k  # recall@C on a corpus's dev split

Time and memory are per document; every size runs in a process by itself. Tokens of generated
documents and labels follow one Zipf law over 30,000 tokens, with 16 tokens per label. A training
step is forward, backward and optimiser. Times are CPU time of one thread, so other work on the
machine does not count; on a GPU they are times of the clock. MiB are the peak of the steps beyond
what was resident before them, tables and optimiser state included. Recall compares rankings by MI,
by J and by both, over whole documents.
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
from plantlib.kernels import machine
from plantlib.planting.decoder import LabelDecoder, Packed
from plantlib.teacher import mig

SIZES = (4_000, 16_000, 64_000, 256_000, 1_000_000)
# the cost of all labels is proportional; more would not fit beside Adam's state
WHOLE = (4_000, 16_000, 64_000)
VOCABULARY = 30_000
TOKENS = 128  # per document
BATCH = 16
D = 128
LABEL_TOKENS = 16  # per label
STEPS = 4
DEVICE = machine.device()
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
    "device",
]


def zipf(rng: np.random.Generator, shape) -> np.ndarray:
    """Random token ids by a Zipf law."""
    p = 1 / (np.arange(VOCABULARY) + 10.0)
    return np.searchsorted(np.cumsum(p / p.sum()), rng.random(shape)).astype(np.int64)


def teacher_of(num_labels: int, rng) -> sparse.csr_matrix:
    """Scores csr (L, V) with LABEL_TOKENS tokens per label, higher for rarer tokens."""
    tokens = zipf(rng, (num_labels, LABEL_TOKENS))
    values = np.log(tokens + 10.0) * rng.uniform(0.5, 1, tokens.shape)
    indptr = np.arange(num_labels + 1) * LABEL_TOKENS
    scores = sparse.csr_matrix(
        (values.ravel().astype(np.float32), tokens.ravel().astype(np.int32), indptr),
        shape=(num_labels, VOCABULARY),
    )
    scores.sum_duplicates()
    return scores


def batches(rng):
    """STEPS + 1 batches of packed documents and their token weights."""
    for _ in range(STEPS + 1):
        ids = zipf(rng, (BATCH, TOKENS))
        rows = np.repeat(np.arange(BATCH), TOKENS)
        cells = (np.ones(ids.size, np.float32), (rows, ids.ravel()))
        weights = sparse.coo_matrix(cells, (BATCH, VOCABULARY)).tocsr()
        hidden = torch.randn(ids.size, D)
        offsets = torch.arange(BATCH + 1) * TOKENS
        yield Packed(hidden, torch.from_numpy(ids.ravel()), offsets), weights


def clock() -> float:
    """Seconds of this process, or of the clock when the GPU has finished."""
    if DEVICE.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def used_mib(restart: bool = False) -> float:
    """The peak of memory in use; restart: begin it again from what is in use now."""
    if DEVICE.type == "cpu":
        if restart:
            restart_peak()
        return peak_mib()
    if restart:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated() / 2**20


def timed(prepare, step, rng) -> dict:
    """Medians of ranking and stepping, and the peak of the steps.

    The first batch, which creates the optimiser state, is not counted.
    """
    ranking, stepping, resident = [], [], 0.0
    for i, (packed, weights) in enumerate(batches(rng)):
        begin = clock()
        ready = prepare(weights)
        middle = clock()
        step(Packed(*(part.to(DEVICE) for part in packed[:3])), weights, ready)
        if i:
            ranking.append(middle - begin)
            stepping.append(clock() - middle)
        else:
            resident = used_mib(restart=True)
    on_gpu = DEVICE.type == "cuda"
    return {
        "rank_ms_a_document": round(1e3 * float(np.median(ranking)) / BATCH, 3),
        "step_ms_a_document": round(1e3 * float(np.median(stepping)) / BATCH, 3),
        "step_mib_a_document": round(max(used_mib() - resident, 0) / BATCH, 3),
        "device": torch.cuda.get_device_name(DEVICE) if on_gpu else "",
    }


def candidate_row(num_labels: int, config: CandidateConfig) -> dict:
    """The row of the factorised decoder on candidates with SparseAdam."""
    rng = np.random.default_rng(0)
    scores = teacher_of(num_labels, rng)
    ranker = candidates.Ranker.of(scores)
    decoder = CandidateDecoder(num_labels, D, config.rank)
    plant(decoder, sparse.csr_matrix((8, num_labels), dtype=np.int32))
    decoder.to(DEVICE)
    optimisers = decoder.optimisers(1e-3)

    def step(packed, weights, ranked):
        # four gold labels per document
        rows, columns = np.repeat(np.arange(BATCH), 4), rng.integers(0, num_labels, 4 * BATCH)
        gold = sparse.csr_matrix((np.ones(4 * BATCH), (rows, columns)), (BATCH, num_labels))
        ids, positive = candidates.training_candidates(ranked, gold, config.width, rng)
        z = torch.from_numpy(candidates.pair_scores(scores, weights, ids)).to(DEVICE)
        logits = decoder(packed, torch.from_numpy(ids).long().to(DEVICE), scores, z)
        loss = candidate_bce(logits, torch.from_numpy(positive).to(DEVICE))
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()

    measured = timed(lambda w: ranker.rank(w, CHOICE * config.width)[0], step, rng)
    table = table_bytes(num_labels, D, config.rank) / 2**20
    return {
        "kind": "candidates",
        "labels": num_labels,
        "width": config.width,
        "rank": config.rank,
        "table_mib": round(table, 1),
        **measured,
    }


def whole_row(num_labels: int) -> dict:
    """The row of the decoder on all labels with Adam; there is nothing to rank."""
    rng = np.random.default_rng(0)
    scores = teacher_of(num_labels, rng)
    decoder = LabelDecoder(num_labels, D, VOCABULARY, scores.nnz).to(DEVICE)
    decoder.planted.load_relevance(scores)
    optimiser = torch.optim.Adam(decoder.parameters(), lr=1e-3)

    def step(packed, weights, _):
        rows = torch.arange(BATCH, device=DEVICE).repeat_interleave(4)
        columns = torch.from_numpy(rng.integers(0, num_labels, 4 * BATCH)).to(DEVICE)
        optimiser.zero_grad()
        decoder.loss(packed, rows, columns)[0].backward()
        optimiser.step()

    measured = timed(lambda w: None, step, rng)
    table = 4 * num_labels * (2 * D + 1) / 2**20
    return {"kind": "all labels", "labels": num_labels, "table_mib": round(table, 1), **measured}


def recall_rows(
    name: str, widths: tuple[int, ...] = (50, 100, 200, 500), per_token: int = 512
) -> list[dict]:
    """Rows of recall@C of each ranker on dev documents, for labels seen in train.

    The rankers read the words of whole documents.
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
    for ranker, lists in ids.items():
        about = {"kind": "recall", "corpus": f"{name} dev", "ranker": ranker, "labels": corpus.L}
        recalls = candidates.recall(lists, gold, widths)
        rows += [about | {"width": c, "recall": round(r, 4)} for c, r in recalls.items()]
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="*", default=["sizes"], help="nothing, or: recall CORPUS ...")
    parser.add_argument("--sizes", type=int, nargs="+", help="labels; candidates alone")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=ROOT / "results/bench/candidates.csv")
    options = parser.parse_args()
    if options.one:
        torch.manual_seed(0)
        form, size = options.one[0], int(options.one[1])
        candidate = form == "candidates"
        row = candidate_row(size, CandidateConfig()) if candidate else whole_row(size)
        append([row], options.out, COLUMNS)
    elif options.what[0] == "recall":
        for name in options.what[1:]:
            append(recall_rows(name), options.out, COLUMNS)
    else:
        command = [sys.executable, __file__, "--out", str(options.out), "--one"]
        whole = () if options.sizes else WHOLE
        for form, sizes in (("all", whole), ("candidates", options.sizes or SIZES)):
            for size in sizes:
                print(form, size, flush=True)
                subprocess.run([*command, form, str(size)], check=True)
    print(options.out.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
