"""Planted outputs: W and beta of every label in closed form, from what planted attention reads in
training documents; docs/method.md, "Starts".

With the queries and gains already planted, the context of label l in document d is c[d,l] = sum_t
A[d,t,l] H[d,t]. The outputs are those of linear discriminant analysis, W_l = S^-1 (mu_l - m_l):
mu_l is the mean context of the label's documents, drawn to the background mean m_l where they are
few; S is one covariance for all labels, shrunk to its mean variance. Only training rows are read.
Held are (L, D) numbers, and the (T, L) attention of one document.
"""

from __future__ import annotations

import numpy as np
import torch

from plantlib.kernels.reference import keep_top_k
from plantlib.planting.contexts import cells_of, together
from plantlib.planting.decoder import LabelDecoder
from plantlib.utils.progress import tqdm

SHRINKAGE = 0.5  # share of the mean variance in S, which few documents estimate
HALFWAY = 1.0  # documents at which a label's mean counts as much as the background
SCALE = 0.25  # of W, times that of the discriminant analysis
BACKGROUND = 64  # training documents, drawn by seed, that m_l is the mean over


def plant_outputs(model, documents, progress: bool = True, seed: int = 0) -> None:
    """Set `label_outputs` and the bias of `model.decoder` from training documents.

    Args:
        model: a PlantModel whose queries and gains are planted.
        documents: the training split, with `rows` and `collate` as `train.Documents` has them.
        progress: show a bar.
        seed: draws the BACKGROUND documents.
    """
    decoder, rows = model.decoder, documents.rows
    drawn = set(np.random.default_rng(seed).permutation(len(rows))[:BACKGROUND].tolist())
    size = decoder.label_outputs.shape
    # sums over contexts: of a label's documents, of the background, and of their outer products
    of_labels = torch.zeros(size)
    of_background = torch.zeros(size)
    spread = torch.zeros(size[1], size[1])
    counts = torch.zeros(size[0])
    contexts = 0
    with torch.no_grad():
        for i, row in enumerate(
            tqdm(rows, desc="planted outputs", unit="document", disable=not progress)
        ):
            batch = documents.collate([int(row)])
            labels = batch["label_columns"]
            if len(batch["token_ids"]) == 0:
                continue
            if len(labels):
                read = contexts_of(model, batch, labels)
                of_labels.index_add_(0, labels, read)
                counts.index_add_(0, labels, torch.ones(len(labels)))
                spread += read.T @ read
                contexts += len(labels)
            if i in drawn:
                of_background += contexts_of(model, batch, torch.arange(size[0]))
        # means, and the covariance within labels
        mean = of_labels / counts.clamp(min=1)[:, None]
        background = of_background / max(len(drawn), 1)
        within = spread / max(contexts, 1) - (counts[:, None] * mean).T @ mean / max(contexts, 1)
        variance = within.diagonal().mean().clamp(min=1e-8)
        shrunk = (1 - SHRINKAGE) * within + SHRINKAGE * variance * torch.eye(size[1])
        trust = (counts / (counts + HALFWAY))[:, None]
        outputs = SCALE * torch.linalg.solve(shrunk, (trust * (mean - background)).T).T
        decoder.label_outputs.copy_(outputs)
        # the output is zero in the middle between a label's documents and the background
        decoder.label_bias -= (outputs * (mean + background)).sum(1) / 2


def contexts_of(model, batch: dict, labels: torch.Tensor) -> torch.Tensor:
    """c (n, D) of one document for labels (n,), under the attention that is planted now.

    batch: the document as `train.Documents.collate` gives it.
    """
    decoder: LabelDecoder = model.decoder
    hidden = batch.get("hidden_states")
    if hidden is None:
        hidden = model.encode(batch["token_ids"], batch["offsets"])
    hidden = model.standardise(hidden).to(decoder.label_queries.dtype)
    cells = together(decoder.planted.cells(batch["token_ids"]), cells_of(batch))
    scores, _ = decoder.token_scores(hidden, cells, labels)
    attention = torch.softmax(keep_top_k(scores.T, decoder.keep), -1)
    return attention @ hidden
