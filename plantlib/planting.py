"""Starts: the values a LabelDecoder begins from. Everything else about a run is the same, but for `score`, which adds a term.

Realises METHOD.md section 4, "initialisations that differ ONLY in where Q and gamma start". A start is one name or several
joined by "+": `random`; `l2r` or `closed_form` (planted queries); `lookup` (the teacher as attention bias); `shuffled` (the
lookup of a teacher permuted among labels, the control); `score` (the teacher's own document score as a term of the logit);
`text` (labels with no or few documents are taught by their own words too, in the attention and in the score: `label_texts`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import nn

from plantlib.decoder import LabelDecoder, PlantedTable
from plantlib.l2r import Planted
from plantlib.mig import Teacher, column_counts

STARTS = ("random", "l2r", "closed_form", "lookup", "shuffled", "score", "text")
BIASED = {"lookup", "shuffled", "text"}  # these plant the attention bias
SCORED = {"score", "text"}  # and these the document score
QUERY_STARTS = ("l2r", "closed_form")


@dataclass(frozen=True)
class StartConfig:
    """Sizes of the initial values, the same for every start."""

    lookup_gain: float = 4.0  # gamma of `lookup` and `shuffled`
    score_gain: float = 1.0  # delta of `score`
    init_std: float = 0.02  # of Q and W
    seed: int = 0


def parts_of(start: str) -> list[str]:
    """The parts of a start name; raises ValueError for an unknown or contradictory one."""
    parts = start.split("+")
    unknown = [p for p in parts if p not in STARTS]
    if unknown:
        raise ValueError(
            f"start {start!r}: {unknown[0]!r} is not known; use {', '.join(STARTS)}, or several joined by '+'"
        )
    repeated = len(set(parts)) < len(parts)
    clash = "shuffled" in parts and BIASED & set(parts) != {"shuffled"}
    if repeated or sum(p in QUERY_STARTS for p in parts) > 1 or clash:
        raise ValueError(
            f"start {start!r} plants the same values twice; name each part once, and one of l2r, "
            "closed_form and shuffled beside neither lookup nor text"
        )
    return parts


def plant(
    decoder: LabelDecoder, start: str, teacher: Teacher, labels: sparse.csr_matrix, *,
    planted: Planted | None = None, config: StartConfig = StartConfig(),
) -> None:  # fmt: skip
    """Set every value of `decoder` for `start`; labels are the training rows of Y (n, L), for the bias only.

    The random values come from one generator in one order, so two starts of one seed share all they do not plant.
    """
    parts = parts_of(start)
    wanted = next((p for p in parts if p in QUERY_STARTS), None)
    if wanted and planted is None:
        raise ValueError(f"start {start!r} needs pretrained queries; run l2r.pretrain and pass planted=")
    generator = torch.Generator().manual_seed(config.seed)
    with torch.no_grad():
        decoder.label_queries.normal_(0, config.init_std, generator=generator)
        decoder.label_outputs.normal_(0, config.init_std, generator=generator)
        decoder.label_bias.copy_(prior_log_odds(labels))
        decoder.planted_gain.fill_(config.lookup_gain if BIASED & set(parts) else 0.0)
        decoder.teacher_gain.fill_(config.score_gain if SCORED & set(parts) else 0.0)
        if wanted:
            if planted.label_queries.shape != decoder.label_queries.shape:
                raise ValueError(
                    f"planted queries are {tuple(planted.label_queries.shape)}, the decoder wants "
                    f"{tuple(decoder.label_queries.shape)} (labels, hidden size); pretrain on this corpus and backbone"
                )
            decoder.label_queries.copy_(planted.label_queries)
    decoder.planted.load_relevance((teacher.shuffled(config.seed) if "shuffled" in parts else teacher).relevance)


def prior_log_odds(labels: sparse.csr_matrix) -> torch.Tensor:
    """(L,) log-odds of each label among training documents, half a document added to both sides."""
    n = labels.shape[0]
    count = column_counts(labels)
    return torch.from_numpy(np.log((count + 0.5) / (n - count + 0.5)).astype(np.float32))


class TeacherScore(nn.Module):
    """z[b, l]: the teacher's own score of a document, the tf-idf weighted sum of MI over its tokens.

    Divided by one number, the standard deviation of the scores on training documents, so that a planted gain of 1 is of the
    size of a logit. Buffers only; what it knows comes from training rows.
    """

    def __init__(self, num_tokens: int, num_labels: int, num_cells: int):
        super().__init__()
        self.num_labels = num_labels
        self.register_buffer("idf", torch.ones(num_tokens))
        self.register_buffer("scale", torch.ones(()))
        self.table = PlantedTable(num_tokens, num_cells)

    def load_teacher(self, teacher: Teacher, counts: sparse.csr_matrix) -> None:
        """Fill from a teacher and the token counts (n, V) of the training rows."""
        n, df = counts.shape[0], column_counts(counts)
        self.idf.copy_(torch.from_numpy((np.log((1 + n) / (1 + df)) + 1).astype(np.float32)))
        self.table.load_relevance(teacher.scores)
        weighted = counts.astype(np.float64)
        weighted.data = (1 + np.log(weighted.data)) * self.idf.numpy()[weighted.indices]
        norm = np.sqrt(np.asarray(weighted.multiply(weighted).sum(1))).clip(min=1e-12)
        self.scale.fill_(_spread(weighted.multiply(1 / norm).tocsr(), teacher.scores.T.tocsr()))

    def forward(self, token_ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """token_ids (S,) packed, offsets (B+1) -> z (B, L)."""
        batch, vocabulary = len(offsets) - 1, len(self.idf)
        document = torch.repeat_interleave(
            torch.arange(batch, device=token_ids.device), offsets.diff().to(token_ids.device)
        )
        keys, counts = torch.unique(document * vocabulary + token_ids, return_counts=True)
        document, token = keys // vocabulary, keys % vocabulary
        weight = (1 + counts.to(self.idf.dtype).log()) * self.idf[token]
        norm = self.idf.new_zeros(batch).index_add_(0, document, weight**2).sqrt().clamp(min=1e-12)
        weight = weight / norm[document] / self.scale
        z = self.idf.new_zeros(batch * self.num_labels)
        cells = self.table.cells(token)
        if cells is not None:
            where = document[cells.positions] * self.num_labels + cells.labels
            z.index_add_(0, where, weight[cells.positions] * cells.values)
        return z.view(batch, self.num_labels)


def _spread(weights: sparse.csr_matrix, by_token: sparse.csr_matrix, rows: int = 512) -> float:
    """Standard deviation of the non-zero scores weights @ by_token, block by block of rows; 1 where there is no spread."""
    count, total, squares, largest = 0, 0.0, 0.0, 0.0
    for begin in range(0, weights.shape[0], rows):
        data = (weights[begin : begin + rows] @ by_token).data
        count, total, squares = count + data.size, total + data.sum(), squares + (data**2).sum()
        largest = max(largest, np.abs(data).max(initial=0.0))
    spread = float(np.sqrt(max(squares / count - (total / count) ** 2, 0.0))) if count else 0.0
    # equal scores have no spread to divide by (rounding may leave a trace of one)
    return spread if spread > 1e-6 * largest else 1.0
