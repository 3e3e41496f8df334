"""Does it hold for 131,000 labels and more? Time, memory and recall of candidates on label sets
that are generated to published sizes.

The texts of LF-AmazonTitles-131K and Amazon-670K cannot be had here. The Extreme Classification
Repository (http://manikvarma.org/downloads/XC/XMLRepository.html) states their documents, labels,
mean labels per document and mean documents per label. A generated set has the same: the documents
of its labels fall by a power law whose rarest label has one document, so that the mean fixes the
exponent, and a document has one label and a Poisson number of further ones. A document holds words
that its labels draw of their own, hashed so that labels share them, and words that say nothing.
Recall here says what ranking by counted words can reach where words do speak for labels; it is not
that of the real sets.

    python -m companion.runner runs/questions-labels.yaml
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse

from companion.studies import steps
from plantlib.candidates import lists
from plantlib.candidates.decoder import (
    CandidateConfig,
    CandidateDecoder,
    candidate_bce,
    plant,
    table_bytes,
)
from plantlib.candidates.training import BATCH_SIZE, CHOICE
from plantlib.data.sources import checkout
from plantlib.data.tokens import tfidf
from plantlib.kernels.counts import column_counts
from plantlib.metrics.buckets import EDGES
from plantlib.planting.decoder import Packed
from plantlib.teacher import mig
from plantlib.training.records import peak_memory

STUDY = "labels"
# of a generated document
OWN = 8  # words that a label brings
DRAWN = 4  # of them in each of its documents
SHARED = 20_000  # words that all labels share
HELD_OUT = 1000  # documents that are ranked and not counted
WIDTHS = (32, 128, 256)
HIDDEN = 64  # as of word vectors
BATCHES = 20  # steps of training that are timed


class Size(NamedTuple):
    """What the repository states of a data set.

    documents: for training. labels: L. mean: labels per document. others: words of a generated
    document beside those of its labels.
    """

    documents: int
    labels: int
    mean: float
    others: int


SIZES = {
    "LF-AmazonTitles-131K": Size(294_805, 131_073, 2.29, 5),
    "Amazon-670K": Size(490_449, 670_091, 5.45, 25),
}


def run(
    sizes: Sequence[str] = tuple(SIZES),
    share: float = 1.0,
    seed: int = 0,
    results: str | Path | None = None,
    force: bool = False,
) -> Path:
    """Generate and measure the sizes that the file lacks.

    Args:
        sizes: names of SIZES.
        share: of the documents and of the labels, for a trial.
        seed: of what is drawn.
        results: results/ of the checkout when None.
        force: measure everything again.

    Returns:
        `results`.
    """
    results = Path(results or checkout() / "results")
    for name in sizes:
        size = scaled(SIZES[name], share)
        about = {"size": size._asdict(), "seed": seed, "held_out": HELD_OUT}
        path = results / steps.FOLDER / f"{STUDY}-{name.lower()}.json"
        steps.Steps(path, about, force)(
            "candidates", lambda size=size: measure(size, np.random.default_rng(seed))
        )
    return results


def scaled(size: Size, share: float) -> Size:
    """A part of the documents and of the labels of a size."""
    documents, labels = max(int(size.documents * share), 1), max(int(size.labels * share), 1)
    return size._replace(documents=documents, labels=labels)


def documents_per_label(size: Size) -> np.ndarray:
    """(L,) falling float: a power law whose rarest label has one document and whose sum is that of
    all labels of all documents.
    """
    rank = np.arange(1, size.labels + 1, dtype=float)
    wanted = max(size.documents * size.mean, size.labels)
    low, high = 0.0, 3.0
    for _ in range(60):
        exponent = (low + high) / 2
        total = ((size.labels / rank) ** exponent).sum()
        low, high = (exponent, high) if total < wanted else (low, exponent)
    return (size.labels / rank) ** exponent


def generated(size: Size, rng: np.random.Generator) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Word counts (N + HELD_OUT, V) and labels (N + HELD_OUT, L), csr; the last rows are held
    out.
    """
    count = size.documents + HELD_OUT
    frequency = documents_per_label(size)
    row = np.repeat(np.arange(count), 1 + rng.poisson(size.mean - 1, count))
    # every label has the documents that its frequency says, as far as whole numbers go
    ends = np.round(np.cumsum(frequency) / frequency.sum() * len(row)).astype(np.int64)
    label = rng.permutation(np.repeat(np.arange(size.labels), np.diff(ends, prepend=0)))
    y = sparse.csr_matrix((np.ones(len(row), np.int32), (row, label)), (count, size.labels))
    y.data[:] = 1
    return words_of(row, label, y.shape, size.others, rng), y


def words_of(
    row: np.ndarray,
    label: np.ndarray,
    shape: tuple[int, int],
    others: int,
    rng: np.random.Generator,
) -> sparse.csr_matrix:
    """(N, V) counts of the words of documents with some labels.

    Args:
        row, label: (P,) documents and labels.
        shape: N and L.
        others: words of a document beside those of its labels.
        rng: draws words.
    """
    # a label's own words are hashed into a vocabulary that grows more slowly than the labels
    count, labels = shape
    size = SHARED + int(OWN * labels**0.75)
    drawn = rng.integers(OWN, size=(len(row), DRAWN))
    of_labels = SHARED + (label[:, None] * 7919 + drawn * 104729) % (size - SHARED)
    background = np.minimum(rng.zipf(1.2, count * others), SHARED) - 1
    columns = np.concatenate([of_labels.ravel(), background])
    rows = np.concatenate([np.repeat(row, DRAWN), np.repeat(np.arange(count), others)])
    return sparse.csr_matrix((np.ones(len(rows), np.int32), (rows, columns)), (count, size))


def measure(size: Size, rng: np.random.Generator) -> dict:
    """CPU seconds by stage, memory, and recall of candidates of one size."""
    seconds: dict[str, float] = {}

    def timed(stage: str, make: Callable):
        began = time.process_time()
        made = make()
        seconds[stage] = seconds.get(stage, 0.0) + time.process_time() - began
        return made

    counts, y = timed("generate", lambda: generated(size, rng))
    train = np.arange(size.documents)
    held_out = np.arange(size.documents, counts.shape[0])
    x, labels = counts[train], y[train]
    weights = tfidf(counts, train)
    ids, teacher = [], None
    depth = CHOICE * max(WIDTHS)
    for variant in ("raw", "jaccard"):
        made = timed("count", lambda v=variant: mig.teach(x, labels, variant=v))
        ranker = timed("lists of words", lambda made=made: lists.Ranker.of(made.scores))
        ranked = timed("rank", lambda r=ranker: r.rank(weights[held_out], depth)[0])
        ids.append(ranked)
        teacher = teacher or made
    both = lists.interleaved(*ids, max(WIDTHS))
    known = column_counts(labels)
    gold = y[held_out]
    reach = {"all": lists.recall(both, gold, WIDTHS)}
    few = (known > EDGES[0]) & (known <= EDGES[1])
    of_few = gold @ sparse.diags(few.astype(np.float64), format="csr")
    of_few.eliminate_zeros()
    reach["few"] = lists.recall(both, of_few, WIDTHS)
    config = CandidateConfig()
    step = training(teacher, counts, y, ids[0], held_out, config, rng)
    return {
        "train_documents": size.documents,
        "labels": size.labels,
        "cells": int(labels.nnz),
        "labels_of_few": int(few.sum()),
        "most_documents": int(known.max()),
        "seconds": {stage: round(value, 1) for stage, value in seconds.items()},
        "rank_ms": round(1e3 * seconds["rank"] / HELD_OUT, 2),
        "step_ms": round(1e3 * step, 2),
        "width": config.width,
        "tables_mib": round(table_bytes(size.labels, HIDDEN, config.rank) / 2**20),
        "peak_mib": round(peak_memory()),
        "recall": {
            of: {str(width): round(value, 4) for width, value in found.items()}
            for of, found in reach.items()
        },
    }


def training(
    teacher, counts, y, ranked: np.ndarray, rows: np.ndarray, config: CandidateConfig, rng
) -> float:
    """CPU seconds of a training step per document, the median of BATCHES.

    Args:
        teacher: what is planted.
        counts: (N, V). y: (N, L).
        ranked: lists of `rows`.
        rows: documents to step on.
        config: width and rank.
        rng: draws negatives.
    """
    decoder = CandidateDecoder(y.shape[1], HIDDEN, config.rank)
    plant(decoder, y, "lookup")
    optimisers = decoder.optimisers(1e-2)
    vectors = torch.randn(counts.shape[1], HIDDEN, generator=torch.Generator().manual_seed(0))
    times = []
    for begin in range(0, min(BATCHES * BATCH_SIZE, len(rows)), BATCH_SIZE):
        part = slice(begin, begin + BATCH_SIZE)
        read = counts[rows[part]]
        tokens = torch.from_numpy(read.indices.astype(np.int64))
        packed = Packed(vectors[tokens], tokens, torch.from_numpy(read.indptr.astype(np.int64)))
        began = time.process_time()
        ids, positive = lists.training_candidates(ranked[part], y[rows[part]], config.width, rng)
        logits = decoder(packed, torch.from_numpy(ids).long(), teacher.relevance)
        loss = candidate_bce(logits, torch.from_numpy(positive))
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
        times.append((time.process_time() - began) / read.shape[0])
    return float(np.median(times[1:] or times))


def load(results: str | Path) -> list[dict]:
    """What the study has measured, the smaller label set first: the entries of `measure`, with the
    data set's name.
    """
    names = {f"{STUDY}-{name.lower()}": name for name in SIZES}
    found = []
    for stem, file in steps.load(results, STUDY).items():
        size = Size(**file["about"]["size"])
        if stem in names and size == SIZES[names[stem]] and "candidates" in file["steps"]:
            found.append({"name": names[stem], "file": stem} | file["steps"]["candidates"])
    return sorted(found, key=lambda row: row["labels"])
