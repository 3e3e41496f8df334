"""The decoder on candidates: (B, C) logits, factorised queries and outputs, gradients by row;
docs/method.md, "Candidate labels".

Q = A B and W = A' B' with A, A' (L, r) and B, B' (r, D). A step touches only the rows of A of its
own candidates, in the optimiser too (sparse gradients), so its time and memory do not grow with L;
only the tables do, by r numbers per label. Both factors start from random values or from the
singular vectors of planted queries, never both from zero, where neither could move (docs/method.md,
"Faults of the published code"). Attention is `kernels.attend` with candidates. Where candidates
come from is in `candidates.lists`, training in `candidates.training`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy import sparse
from torch import nn
from torch.nn import functional

from plantlib import kernels
from plantlib.candidates import lists
from plantlib.kernels import Cells
from plantlib.planting import starts
from plantlib.planting.contexts import together
from plantlib.planting.decoder import Packed, PlantedTable
from plantlib.utils.checks import check_fields

LOOKUP_GAIN = starts.StartConfig.lookup_gain  # gamma at the start, as without candidates


@dataclass(frozen=True)
class CandidateConfig:
    """Options of a run on candidates.

    width: C, places in training and prediction.
    rank: r of the factors.
    epochs: passes over the training documents.
    """

    width: int = 128
    rank: int = 32
    epochs: int = 4

    def __post_init__(self):
        check_fields(self)
        for name in ("width", "rank", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; give at least 1")


def among(cells: Cells | None, labels: torch.Tensor) -> Cells | None:
    """Cells of some labels by their places in `labels` (U,), which is sorted; None without any."""
    if cells is None:
        return None
    places = torch.searchsorted(labels, cells.labels).clamp(max=len(labels) - 1)
    kept = labels[places] == cells.labels
    if not kept.any():
        return None
    return Cells(cells.positions[kept], places[kept], cells.values[kept])


class CandidateDecoder(nn.Module):
    """Planted label attention over each document's own candidates.

    The rows of L-sized tables get sparse gradients: train with `optimisers`. As a part of a
    `PlantModel` it carries what it reads beside them: the planted table, and the line by which the
    linear score ranks candidates, `list_scale` and `list_shift` (L,).

    num_labels: L. hidden_size: D. rank: r. impl: of the kernels. num_tokens, num_cells: V and M of
    the planted table; without one, G is given to `forward`.
    """

    # as a `LabelDecoder` with one softmax over all tokens is described
    contexts, stateful, keep, l2r, reads_distinct = "mixed", "exact", None, None, False
    list_scale: torch.Tensor
    list_shift: torch.Tensor

    def __init__(
        self,
        num_labels: int,
        hidden_size: int,
        rank: int,
        impl: str = "auto",
        num_tokens: int = 1,
        num_cells: int = 0,
    ):
        super().__init__()
        if not 1 <= rank <= hidden_size:
            raise ValueError(f"rank={rank}: wanted 1 to the hidden size {hidden_size}")
        self.query_rows = nn.Embedding(num_labels, rank, sparse=True)
        self.output_rows = nn.Embedding(num_labels, rank, sparse=True)
        self.label_bias = nn.Embedding(num_labels, 1, sparse=True)
        self.query_basis = nn.Parameter(torch.zeros(rank, hidden_size))
        self.output_basis = nn.Parameter(torch.zeros(rank, hidden_size))
        self.planted_gain = nn.Parameter(torch.zeros(()))
        self.score_gain = nn.Parameter(torch.zeros(()))
        self.planted = PlantedTable(num_tokens, num_cells)
        self.register_buffer("list_scale", torch.ones(num_labels))
        self.register_buffer("list_shift", torch.zeros(num_labels))
        self.impl = impl

    @cached_property
    def relevance(self) -> sparse.csr_matrix:
        """G (L, V) of the planted table, by label; made when it is first read."""
        table = self.planted
        parts = (table.planted_values, table.planted_labels, table.planted_indptr)
        arrays = tuple(part.cpu().numpy() for part in parts)
        shape = (len(arrays[2]) - 1, len(self.list_scale))
        return sparse.csr_matrix(arrays, shape=shape).T.tocsr()

    @property
    def keeps(self) -> list[int | None]:
        """Inattention's K of the one softmax: all tokens."""
        return [None]

    def bias_of(self, labels: torch.Tensor) -> torch.Tensor:
        """(U,) biases of some labels (U,)."""
        return self.label_bias(labels)[:, 0]

    @property
    def linear_gain(self) -> torch.Tensor:
        """The gain of the linear score."""
        return self.score_gain

    def token_scores(
        self, hidden: torch.Tensor, cells: None, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Learned scores and outputs of every token for some labels, (S, U) each.

        hidden: (S, D). cells: none are added here. labels: (U,) ids.
        """
        queries = self.query_rows(labels) @ self.query_basis
        outputs = self.output_rows(labels) @ self.output_basis
        return hidden @ queries.T, hidden @ outputs.T

    def listed(self, sums: sparse.csr_matrix, intercept: np.ndarray, width: int):
        """The candidates of documents by the linear score; see `lists.best_of_sums`."""
        lines = self.list_scale.cpu().numpy(), self.list_shift.cpu().numpy()
        return lists.best_of_sums(sums, intercept, *lines, width)

    def forward(
        self,
        packed: Packed,
        candidates: torch.Tensor,
        relevance: sparse.csr_matrix | None = None,
        scores: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits of documents on their candidates.

        Args:
            packed: B documents; their own cells are planted beside those of `relevance`.
            candidates: (B, C) label ids, -1 in unused places.
            relevance: G (L, V) csr to plant; None plants nothing.
            scores: (B, C), the teacher's or the linear score, added with a trained gain.

        Returns:
            (B, C), minus infinity in unused places.
        """
        # the labels of this batch; an unused place must add none, or a step would move it
        absent = candidates < 0
        present = candidates[~absent] if not absent.all() else candidates.new_zeros(1)
        labels = torch.unique(present)
        places = torch.searchsorted(labels, candidates.masked_fill(absent, labels[0]))
        # their planted cells
        cells = among(packed.cells, labels)
        if relevance is not None:
            arrays = lists.planted_cells(
                relevance, labels.cpu().numpy(), packed.token_ids.cpu().numpy()
            )
            if len(arrays[0]):
                planted = Cells(*(torch.from_numpy(x).to(labels.device) for x in arrays))
                cells = together(planted, cells)
        # attention, bias and score
        value, _ = kernels.attend(
            packed.hidden_states,
            packed.offsets,
            self.query_rows(labels) @ self.query_basis,
            self.output_rows(labels) @ self.output_basis,
            cells,
            self.planted_gain,
            candidates=places.masked_fill(absent, -1),
            impl=self.impl,
        )
        logits = value + self.bias_of(labels)[places]
        if scores is not None:
            logits = logits + self.score_gain * scores
        return logits.masked_fill(absent, float("-inf"))

    def optimisers(self, learning_rate: float) -> list[torch.optim.Optimizer]:
        """SparseAdam for the rows of labels, Adam for what all labels share."""
        rows = [self.query_rows.weight, self.output_rows.weight, self.label_bias.weight]
        shared = [self.query_basis, self.output_basis, self.planted_gain, self.score_gain]
        return [
            torch.optim.SparseAdam(rows, lr=learning_rate),
            torch.optim.Adam(shared, lr=learning_rate),
        ]


def plant(
    decoder: CandidateDecoder,
    labels: sparse.csr_matrix,
    start: str = "lookup+score",
    queries: torch.Tensor | None = None,
    seed: int = 0,
    gain: float = LOOKUP_GAIN,
) -> None:
    """Set every value of `decoder` for `start`.

    The random values of a seed are the same for all starts. With the linear score the rows of the
    output factor and the bias are zero, so that attention adds nothing before it is trained; the
    basis stays random, or neither factor would ever move.

    Args:
        decoder: of L labels and hidden size D; it is changed in place.
        labels: (n, L) csr, training rows of Y; the bias is their log-odds.
        start: a start that `parts_of` knows.
        queries: (L, D) planted queries; random factors when None.
        seed: of the random values.
        gain: of the lookup at the start, where the start plants one.
    """
    parts = parts_of(start)
    generator = torch.Generator().manual_seed(seed)
    rank = decoder.query_basis.shape[0]
    # the product of two such factors has standard deviation INIT_STD
    std = (starts.INIT_STD / rank**0.5) ** 0.5
    with torch.no_grad():
        for table in (
            decoder.query_rows.weight,
            decoder.query_basis,
            decoder.output_rows.weight,
            decoder.output_basis,
        ):
            table.normal_(0, std, generator=generator)
        decoder.label_bias.weight.copy_(starts.prior_log_odds(labels)[:, None])
        decoder.planted_gain.fill_(gain if {"lookup", "shuffled"} & set(parts) else 0.0)
        added = {"linear": starts.LINEAR_GAIN, "score": starts.SCORE_GAIN}
        decoder.score_gain.fill_(sum(gain for part, gain in added.items() if part in parts))
        if "linear" in parts:
            decoder.label_bias.weight.zero_()
            decoder.output_rows.weight.zero_()
        if queries is not None:
            left, right = factors(queries, rank)
            decoder.query_rows.weight.copy_(left)
            decoder.query_basis.copy_(right)


def parts_of(start: str) -> list[str]:
    """The parts of a start that candidates know, with the teacher's or the linear score, not both;
    ValueError for others.
    """
    parts = starts.parts_of(start)
    unknown = set(parts) - {"random", "lookup", "shuffled", "score", "linear"}
    if unknown or {"score", "linear"} <= set(parts):
        raise ValueError(
            f"start {start!r} is not one of candidates; use random, lookup, shuffled, score,"
            " linear, or lookup or shuffled with one of score, linear"
        )
    return parts


def factors(queries: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A (L, r) and B (r, D), the best product of rank r for Q (L, D), with the singular values
    shared between both; O(L D^2).
    """
    values, vectors = torch.linalg.eigh(queries.T.double() @ queries.double())
    basis, root = vectors[:, -rank:].flip(1), values[-rank:].flip(0).clamp(min=0) ** 0.25
    left = (queries.double() @ basis) / root.clamp(min=1e-12)
    return left.to(queries.dtype), (root[:, None] * basis.T).to(queries.dtype)


def candidate_bce(logits: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of logits (B, C) over the places in use, summed over candidates, mean
    over documents; positive (B, C) bool.
    """
    used = logits > float("-inf")
    loss = functional.binary_cross_entropy_with_logits(
        logits[used], positive[used].to(logits.dtype), reduction="sum"
    )
    return loss / max(len(logits), 1)


def table_bytes(num_labels: int, hidden_size: int, rank: int) -> int:
    """Bytes of the float32 parameters of a CandidateDecoder."""
    return 4 * (num_labels * (2 * rank + 1) + 2 * rank * hidden_size + 2)
