"""The decoder of METHOD.md section 4 on candidates: (B, C) logits, factorised queries and outputs, gradients a row.

Q = A B and W = A' B' with A, A' (L, r), B, B' (r, D). A step touches the rows of A of its own candidates, in the optimiser too
(sparse gradients), so its time and memory do not grow with L; only the tables do, r numbers a label. Both factors start from
random values or from the singular vectors of planted queries, never from zeros (METHOD.md section 6, fault 6).
Attention is `kernels.attend` with candidates; where candidates come from is in `candidates.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import nn
from torch.nn import functional

from plantlib import candidates as lists
from plantlib import kernels, planting
from plantlib.decoder import Packed
from plantlib.kernels import Cells
from plantlib.metrics import TopK
from plantlib.mig import Teacher
from plantlib.progress import tqdm


@dataclass(frozen=True)
class CandidateConfig:
    """Options of a decoder on candidates: `width` C places in training and prediction, `rank` r of the factors."""

    width: int = 128
    rank: int = 32
    per_token: int = 512  # labels the ranker keeps a token
    choice: int = 2  # times width: how deep the list is that negatives are drawn from
    hard: float = 0.5
    epochs: int = 4
    batch_size: int = 16
    learning_rate: float = 1e-2
    lookup_gain: float = 4.0
    score_gain: float = 1.0
    init_std: float = 0.02
    seed: int = 0

    def __post_init__(self):
        for name in ("width", "rank", "per_token", "choice", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; give at least 1")
        if not 0 <= self.hard <= 1:
            raise ValueError(f"hard={self.hard}; give a share of the negatives between 0 and 1")


class CandidateDecoder(nn.Module):
    """Planted label attention over each document's own candidates.

    num_labels L, hidden_size D, rank r. The rows of L-sized tables get sparse gradients; use `optimisers`.
    """

    def __init__(self, num_labels: int, hidden_size: int, rank: int, impl: str = "auto"):
        super().__init__()
        if not 1 <= rank <= hidden_size:
            raise ValueError(f"rank={rank}: wanted 1 to the hidden size {hidden_size}")
        self.query_rows = nn.Embedding(num_labels, rank, sparse=True)
        self.output_rows = nn.Embedding(num_labels, rank, sparse=True)
        self.label_bias = nn.Embedding(num_labels, 1, sparse=True)
        self.query_basis = nn.Parameter(torch.zeros(rank, hidden_size))
        self.output_basis = nn.Parameter(torch.zeros(rank, hidden_size))
        self.planted_gain = nn.Parameter(torch.zeros(()))
        self.teacher_gain = nn.Parameter(torch.zeros(()))
        self.impl = impl

    def forward(
        self, packed: Packed, candidates: torch.Tensor, relevance: sparse.csr_matrix | None = None,
        teacher_scores: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Logits (B, C) of candidates (B, C), minus infinity where a place is -1; relevance G csr (L, V); scores z (B, C)."""
        absent = candidates < 0
        labels, places = torch.unique(candidates.clamp(min=0), return_inverse=True)
        cells = None
        if relevance is not None:
            found = lists.planted_cells(relevance, labels.cpu().numpy(), packed.token_ids.cpu().numpy())
            cells = Cells(*(torch.from_numpy(x).to(labels.device) for x in found)) if len(found[0]) else None
        value, _ = kernels.attend(
            packed.hidden_states, packed.offsets, self.query_rows(labels) @ self.query_basis,
            self.output_rows(labels) @ self.output_basis, cells, self.planted_gain,
            candidates=places.masked_fill(absent, -1), impl=self.impl,
        )  # fmt: skip
        logits = value + self.label_bias(labels)[:, 0][places]
        if teacher_scores is not None:
            logits = logits + self.teacher_gain * teacher_scores
        return logits.masked_fill(absent, float("-inf"))

    def optimisers(self, learning_rate: float) -> list[torch.optim.Optimizer]:
        """Adam for what all labels share, SparseAdam for the rows."""
        rows = [self.query_rows.weight, self.output_rows.weight, self.label_bias.weight]
        shared = [self.query_basis, self.output_basis, self.planted_gain, self.teacher_gain]
        return [torch.optim.SparseAdam(rows, lr=learning_rate), torch.optim.Adam(shared, lr=learning_rate)]


def plant(decoder: CandidateDecoder, labels, config: CandidateConfig, queries: torch.Tensor | None = None) -> None:
    """Set every value: random factors of product std `init_std`, or those of planted queries (L, D); labels Y (n, L)."""
    generator = torch.Generator().manual_seed(config.seed)
    rank = decoder.query_basis.shape[0]
    # a product of two such factors has standard deviation init_std
    std = (config.init_std / rank**0.5) ** 0.5
    with torch.no_grad():
        for table in (decoder.query_rows.weight, decoder.query_basis, decoder.output_rows.weight, decoder.output_basis):
            table.normal_(0, std, generator=generator)
        decoder.label_bias.weight.copy_(planting.prior_log_odds(labels)[:, None])
        decoder.planted_gain.fill_(config.lookup_gain)
        decoder.teacher_gain.fill_(config.score_gain)
        if queries is not None:
            left, right = factors(queries, rank)
            decoder.query_rows.weight.copy_(left)
            decoder.query_basis.copy_(right)


def factors(queries: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A (L, r), B (r, D): the best rank-r product for Q (L, D), the singular values shared between both; O(L D^2)."""
    values, vectors = torch.linalg.eigh(queries.T.double() @ queries.double())
    basis, root = vectors[:, -rank:].flip(1), values[-rank:].flip(0).clamp(min=0) ** 0.25
    left = (queries.double() @ basis) / root.clamp(min=1e-12)
    return left.to(queries.dtype), (root[:, None] * basis.T).to(queries.dtype)


def candidate_bce(logits: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy over the places in use, summed over candidates, mean over documents."""
    used = logits > float("-inf")
    loss = functional.binary_cross_entropy_with_logits(logits[used], positive[used].to(logits.dtype), reduction="sum")
    return loss / max(len(logits), 1)


@dataclass(frozen=True, eq=False)
class CandidateData:
    """Documents with what candidates need: `packed(rows)`, tf-idf weights (N, V), the teacher and its rankings."""

    packed: Callable[[np.ndarray], Packed]
    weights: sparse.csr_matrix
    teacher: Teacher
    ranked: np.ndarray  # (N, choice * width)
    spread: float

    @classmethod
    def of(cls, packed, counts: sparse.csr_matrix, train: np.ndarray, labels, teachers: tuple[Teacher, Teacher],
           config: CandidateConfig, progress: bool = True) -> CandidateData:  # fmt: skip
        """counts (N, V) of all documents; teachers (MI, J) of the training rows; labels are read for nothing but their L."""
        from plantlib.tokens import tfidf

        weights, depth = tfidf(counts, train), config.choice * config.width
        if labels.shape[1] != teachers[0].num_labels:
            raise ValueError(f"{labels.shape[1]} labels and a teacher of {teachers[0].num_labels}; pass one label space")
        ids = [lists.Ranker.of(t.scores, config.per_token).rank(weights, depth, progress)[0] for t in teachers]
        ranked = lists.interleaved(*ids, depth)
        sample = lists.pair_scores(teachers[0].scores, weights[train[:512]], ranked[train[:512]])
        return cls(packed, weights, teachers[0], ranked, float(sample[sample > 0].std()) or 1.0)

    def logits(self, decoder: CandidateDecoder, rows: np.ndarray, ids: np.ndarray) -> torch.Tensor:
        """(b, C) logits of documents `rows` on candidates ids (b, C), the teacher's document scores among them."""
        scores = torch.from_numpy(lists.pair_scores(self.teacher.scores, self.weights[rows], ids) / self.spread)
        return decoder(self.packed(rows), torch.from_numpy(ids).long(), self.teacher.relevance, scores)


def fit(decoder: CandidateDecoder, data: CandidateData, train: np.ndarray, labels: sparse.csr_matrix,
        config: CandidateConfig, progress: bool = True, after_epoch: Callable[[int, float], None] | None = None,
) -> list[float]:  # fmt: skip
    """Train on positives and the ranker's negatives; the mean loss of every epoch. labels Y (N, L), training rows read.

    after_epoch: called with the epoch, from 1, and its loss.
    """
    rng, optimisers, losses = np.random.default_rng(config.seed), decoder.optimisers(config.learning_rate), []
    steps = range(0, len(train), config.batch_size)
    with tqdm(total=config.epochs * len(steps), desc="candidates", unit="step", disable=not progress) as bar:
        for epoch in range(1, config.epochs + 1):
            order, total = rng.permutation(train), 0.0
            for begin in steps:
                rows = order[begin : begin + config.batch_size]
                ids, positive = lists.training_candidates(data.ranked[rows], labels[rows], config.width, rng, config.hard)
                loss = candidate_bce(data.logits(decoder, rows, ids), torch.from_numpy(positive))
                for optimiser in optimisers:
                    optimiser.zero_grad()
                loss.backward()
                for optimiser in optimisers:
                    optimiser.step()
                total += loss.item() * len(rows)
                bar.update()
            losses.append(total / len(train))
            if after_epoch is not None:
                after_epoch(epoch, losses[-1])
    return losses


@torch.inference_mode()
def predict(decoder: CandidateDecoder, data: CandidateData, rows: np.ndarray, config: CandidateConfig, k: int = 100) -> TopK:
    """The k best labels of documents among their first `width` candidates; no true label is taken, none is needed."""
    parts = []
    for begin in range(0, len(rows), config.batch_size):
        part = rows[begin : begin + config.batch_size]
        ids = data.ranked[part][:, : config.width]
        logits = data.logits(decoder, part, ids).numpy()
        order = np.lexsort((ids, -logits), axis=1)[:, :k]
        kept, best = np.take_along_axis(ids, order, 1), np.take_along_axis(logits, order, 1).astype(np.float32)
        short = ((0, 0), (0, k - kept.shape[1])) if kept.shape[1] < k else ((0, 0), (0, 0))
        parts.append(TopK(np.pad(kept, short, constant_values=-1), np.pad(best, short, constant_values=-np.inf)))
    return TopK.concat(parts)


def table_bytes(num_labels: int, hidden_size: int, rank: int) -> int:
    """Bytes of the float32 parameters."""
    return 4 * (num_labels * (2 * rank + 1) + 2 * rank * hidden_size + 2)
