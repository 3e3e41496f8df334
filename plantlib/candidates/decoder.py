"""The decoder of METHOD.md section 4 on candidates: (B, C) logits, factorised queries and outputs,
gradients a row.

Q = A B and W = A' B' with A, A' (L, r), B, B' (r, D). A step touches the rows of A of its own
candidates, in the optimiser too (sparse gradients), so its time and memory do not grow with L; only
the tables do, r numbers a label. Both factors start from random values or from the singular vectors
of planted queries, never from zeros (METHOD.md section 6, fault 6). Attention is `kernels.attend`
with candidates; where candidates come from is in `candidates.py`, training in
`candidate_training.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy import sparse
from torch import nn
from torch.nn import functional

from plantlib import kernels
from plantlib.candidates import lists
from plantlib.kernels import Cells
from plantlib.planting import starts
from plantlib.planting.decoder import Packed

LOOKUP_GAIN = starts.StartConfig.lookup_gain  # gamma at the start, as without candidates


@dataclass(frozen=True)
class CandidateConfig:
    """Options of a decoder on candidates: `width` C places in training and prediction, `rank` r of
    the factors.
    """

    width: int = 128
    rank: int = 32
    epochs: int = 4
    # logits for labels of few documents where the linear score lists candidates, at most so many in
    # the end
    rare: float = 0.0

    def __post_init__(self):
        if self.rare < 0:
            raise ValueError(f"rare={self.rare}; give 0 or more")
        for name in ("width", "rank", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; give at least 1")


class CandidateDecoder(nn.Module):
    """Planted label attention over each document's own candidates.

    num_labels L, hidden_size D, rank r. The rows of L-sized tables get sparse gradients; use
    `optimisers`.
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
        self.score_gain = nn.Parameter(torch.zeros(()))
        self.impl = impl

    def forward(
        self,
        packed: Packed,
        candidates: torch.Tensor,
        relevance: sparse.csr_matrix | None = None,
        scores: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits (B, C) of candidates (B, C), minus infinity where a place is -1; relevance G csr
        (L, V); scores (B, C): the teacher's or the linear score, added with a learned gain.
        """
        absent = candidates < 0
        # a label that stands nowhere here must not be among those that a step moves
        present = candidates[~absent] if not absent.all() else candidates.new_zeros(1)
        labels = torch.unique(present)
        places = torch.searchsorted(labels, candidates.masked_fill(absent, labels[0]))
        cells = None
        if relevance is not None:
            found = lists.planted_cells(
                relevance, labels.cpu().numpy(), packed.token_ids.cpu().numpy()
            )
            cells = (
                Cells(*(torch.from_numpy(x).to(labels.device) for x in found))
                if len(found[0])
                else None
            )
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
        logits = value + self.label_bias(labels)[:, 0][places]
        if scores is not None:
            logits = logits + self.score_gain * scores
        return logits.masked_fill(absent, float("-inf"))

    def hold(self, still: torch.Tensor) -> None:
        """Drop the gradients of outputs and biases of the labels `still` (L,) bool: a step then
        leaves them as they are.
        """
        for table in (self.output_rows.weight, self.label_bias.weight):
            found = table.grad.coalesce()
            moved = ~still[found.indices()[0]]
            kept = found.indices()[:, moved], found.values()[moved]
            table.grad = torch.sparse_coo_tensor(*kept, table.shape, check_invariants=False)

    def optimisers(self, learning_rate: float) -> list[torch.optim.Optimizer]:
        """Adam for what all labels share, SparseAdam for the rows."""
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
) -> None:
    """Set every value for `start`; labels Y (n, L) of the training rows.

    Random factors have a product of std `starts.INIT_STD`; queries, planted ones (L, D), take their
    place. The random values of a seed are the same for all starts. From the linear score the rows
    of the output factor and the bias are zero, so that attention adds nothing before it has learnt
    something; the basis stays random, or neither factor would ever move.
    """
    parts = parts_of(start)
    generator = torch.Generator().manual_seed(seed)
    rank = decoder.query_basis.shape[0]
    # a product of two such factors has standard deviation INIT_STD
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
        decoder.planted_gain.fill_(LOOKUP_GAIN if {"lookup", "shuffled"} & set(parts) else 0.0)
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
    """The parts of a start that candidates know; one score is added to the logits, the teacher's or
    the linear one.
    """
    parts = starts.parts_of(start)
    if set(parts) - {"random", "lookup", "shuffled", "score", "linear"} or {
        "score",
        "linear",
    } <= set(parts):
        raise ValueError(
            f"start {start!r} is not one of candidates; use random, lookup, shuffled, score,"
            " linear, or lookup or shuffled with one of score, linear"
        )
    return parts


def factors(queries: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A (L, r), B (r, D): the best rank-r product for Q (L, D), the singular values shared between
    both; O(L D^2).
    """
    values, vectors = torch.linalg.eigh(queries.T.double() @ queries.double())
    basis, root = vectors[:, -rank:].flip(1), values[-rank:].flip(0).clamp(min=0) ** 0.25
    left = (queries.double() @ basis) / root.clamp(min=1e-12)
    return left.to(queries.dtype), (root[:, None] * basis.T).to(queries.dtype)


def candidate_bce(logits: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy over the places in use, summed over candidates, mean over documents."""
    used = logits > float("-inf")
    loss = functional.binary_cross_entropy_with_logits(
        logits[used], positive[used].to(logits.dtype), reduction="sum"
    )
    return loss / max(len(logits), 1)


def table_bytes(num_labels: int, hidden_size: int, rank: int) -> int:
    """Bytes of the float32 parameters."""
    return 4 * (num_labels * (2 * rank + 1) + 2 * rank * hidden_size + 2)
