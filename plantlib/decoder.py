"""LabelDecoder: planted label attention, inattention and the exact streaming state; METHOD.md section 4.

    A[b,:,l]    = softmax over real tokens of ( <H[b,t], Q[l]> + gamma G[ids[b,t], l] )
    logit[b,l]  = sum_t A[b,t,l] <H[b,t], W[l]> + beta[l] + delta z[b,l] + lambda u[b,l]
z is the teacher's score of a document over tokens, u the linear score over words; both are options of a start.
Every start uses this module with the same parameters and shapes; only the values they begin from differ (`l2r.plant`).
It knows nothing of backbones and files. No tensor of size (B, L, D) or (B, T, L) is ever built; see `kernels`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import nn

from plantlib import kernels
from plantlib.kernels import Cells


class Packed(NamedTuple):
    """B documents without padding: hidden_states (S, D), token_ids (S,), offsets (B+1)."""

    hidden_states: torch.Tensor
    token_ids: torch.Tensor
    offsets: torch.Tensor


class AttentionState(NamedTuple):
    """What a document leaves behind when a segment has been read, (B, L) each: O(L) memory for any length.

    `log_sum_exp` = m + ln s and `value` = o / s of the online softmax triple (running max m, sum s, value o).
    With inattention, the best K scores and outputs so far, (B, L, K), are carried instead.
    """

    log_sum_exp: torch.Tensor
    value: torch.Tensor
    kept_scores: torch.Tensor | None = None
    kept_outputs: torch.Tensor | None = None


def pack(hidden_states: torch.Tensor, token_ids: torch.Tensor, mask: torch.Tensor) -> Packed:
    """Drop padding and special tokens: hidden_states (B, T, D), token_ids (B, T), mask (B, T) true on real tokens."""
    mask = mask.bool()
    offsets = torch.cat([mask.new_zeros(1, dtype=torch.long), mask.sum(1).cumsum(0)])
    return Packed(hidden_states[mask], token_ids[mask], offsets)


class PlantedTable(nn.Module):
    """The teacher's relevance G as token -> (label, value) lists, so that the cells of a document are found by its ids.

    Buffers, saved with the model: indptr (V+1), labels (M,), values (M,). Replaceable, never trained.
    """

    def __init__(self, num_tokens: int, num_cells: int):
        super().__init__()
        self.register_buffer("planted_indptr", torch.zeros(num_tokens + 1, dtype=torch.long))
        self.register_buffer("planted_labels", torch.zeros(num_cells, dtype=torch.int32))
        self.register_buffer("planted_values", torch.zeros(num_cells))

    def load_relevance(self, relevance: sparse.csr_matrix) -> None:
        """Fill the table from G, csr (L, V)."""
        by_token = relevance.T.tocsr()
        by_token.sort_indices()
        if by_token.shape[0] + 1 != len(self.planted_indptr) or by_token.nnz != len(self.planted_labels):
            raise ValueError(
                f"the table holds {len(self.planted_indptr) - 1} tokens and {len(self.planted_labels)} cells, the teacher "
                f"{by_token.shape[0]} and {by_token.nnz}; build the model from this teacher's sizes"
            )
        self.planted_indptr.copy_(torch.from_numpy(by_token.indptr.astype(np.int64)))
        self.planted_labels.copy_(torch.from_numpy(by_token.indices.astype(np.int32)))
        self.planted_values.copy_(torch.from_numpy(by_token.data.astype(np.float32)))

    def cells(self, token_ids: torch.Tensor) -> Cells | None:
        """Planted cells of packed tokens (S,), sorted by label; None where there are none."""
        first = self.planted_indptr[token_ids]
        count = self.planted_indptr[token_ids + 1] - first
        total = int(count.sum())
        if total == 0:
            return None
        positions = torch.repeat_interleave(torch.arange(len(token_ids), device=token_ids.device), count)
        within = torch.arange(total, device=token_ids.device) - torch.repeat_interleave(count.cumsum(0) - count, count)
        index = first[positions] + within
        labels, order = self.planted_labels[index].long().sort(stable=True)
        return Cells(positions[order], labels, self.planted_values[index][order])


class LabelDecoder(nn.Module):
    """One query, one output vector and one bias a label over the tokens of a document.

    num_labels L, hidden_size D, num_tokens V and num_cells M size the planted table; keep is inattention's K.
    """

    def __init__(
        self, num_labels: int, hidden_size: int, num_tokens: int = 1, num_cells: int = 0,
        keep: int | None = None, impl: str = "auto",
    ):  # fmt: skip
        super().__init__()
        self.label_queries = nn.Parameter(torch.zeros(num_labels, hidden_size))
        self.label_outputs = nn.Parameter(torch.zeros(num_labels, hidden_size))
        self.label_bias = nn.Parameter(torch.zeros(num_labels))
        self.planted_gain = nn.Parameter(torch.zeros(()))
        self.teacher_gain = nn.Parameter(torch.zeros(()))
        self.linear_gain = nn.Parameter(torch.zeros(()))
        self.planted = PlantedTable(num_tokens, num_cells)
        self.keep, self.impl = keep, impl

    def forward(self, packed: Packed, teacher_scores=None, linear_scores=None) -> torch.Tensor:
        """Logits (B, L) of packed documents; teacher_scores z and linear_scores u (B, L), or None where none is planted."""
        return self.finish(self.read(packed), teacher_scores, linear_scores)

    def loss(self, packed: Packed, rows, columns, teacher_scores=None, linear_scores=None):
        """(binary cross-entropy summed over labels, mean over B; logits (B, L) without a graph).

        rows, columns (P,): the positive cells of (B, L). The same numbers as `forward` and the loss after it, at
        three quarters of the products where gradients are wanted.
        """
        hidden = packed.hidden_states.to(self.label_queries.dtype)
        added = self.offset(teacher_scores, linear_scores)
        added = added.expand(len(packed.offsets) - 1, -1)
        cells = self.planted.cells(packed.token_ids)
        return kernels.attend_bce(
            hidden, packed.offsets, self.label_queries, self.label_outputs, rows, columns, cells, self.planted_gain,
            self.keep, added=added, impl=self.impl,
        )  # fmt: skip

    def read(self, packed: Packed, state: AttentionState | None = None) -> AttentionState:
        """Read one segment of B documents after `state`; equal to reading all segments at once."""
        hidden = packed.hidden_states.to(self.label_queries.dtype)
        cells = self.planted.cells(packed.token_ids)
        if self.keep is not None and state is not None:
            if state.kept_scores is None:
                raise ValueError("with inattention the first segment is read after start_state(batch), not after nothing")
            return self._read_kept(hidden, packed, cells, state)
        value, log_sum = kernels.attend(
            hidden, packed.offsets, self.label_queries, self.label_outputs, cells, self.planted_gain, self.keep,
            impl=self.impl,
        )  # fmt: skip
        return AttentionState(log_sum, value) if state is None else merge(state, AttentionState(log_sum, value))

    def start_state(self, batch: int) -> AttentionState:
        """The state before the first token; needed to stream with inattention."""
        shape = (batch, len(self.label_bias))
        empty = self.label_bias.new_full(shape, float("-inf"))
        if self.keep is None:
            return AttentionState(empty, torch.zeros_like(empty))
        none = self.label_bias.new_zeros((*shape, 0))
        return AttentionState(empty, torch.zeros_like(empty), none, none)

    def _read_kept(self, hidden, packed, cells, state) -> AttentionState:
        scores, outputs = self.token_scores(hidden, cells)
        kept_scores, kept_outputs = [], []
        for b in range(len(packed.offsets) - 1):
            part = slice(int(packed.offsets[b]), int(packed.offsets[b + 1]))
            s = torch.cat([state.kept_scores[b], scores[part].T], -1)  # (L, K + T)
            o = torch.cat([state.kept_outputs[b], outputs[part].T], -1)
            if s.shape[-1] < self.keep:
                s = nn.functional.pad(s, (0, self.keep - s.shape[-1]), value=float("-inf"))
                o = nn.functional.pad(o, (0, self.keep - o.shape[-1]))
            # a stable sort keeps the earlier token where scores are equal, as the kernel does
            best = torch.argsort(s, dim=-1, descending=True, stable=True)[:, : self.keep]
            kept_scores.append(s.gather(-1, best))
            kept_outputs.append(o.gather(-1, best))
        kept_scores, kept_outputs = torch.stack(kept_scores), torch.stack(kept_outputs)
        log_sum = torch.logsumexp(kept_scores, -1)
        weights = torch.exp(kept_scores - torch.where(log_sum.isinf(), 0.0, log_sum)[..., None])
        return AttentionState(log_sum, (weights * kept_outputs).sum(-1), kept_scores, kept_outputs)

    def token_scores(self, hidden: torch.Tensor, cells: Cells | None, labels: torch.Tensor | None = None):
        """Attention scores and outputs of every token, (S, L) each: for explanations and inattention's state."""
        queries = self.label_queries if labels is None else self.label_queries[labels]
        outputs = self.label_outputs if labels is None else self.label_outputs[labels]
        scores = hidden @ queries.T
        if cells is not None:
            where, label, value = cells
            if labels is not None:
                column = torch.full((len(self.label_bias),), -1, device=hidden.device)
                column[labels] = torch.arange(len(labels), device=hidden.device)
                inside = column[label] >= 0
                where, label, value = where[inside], column[label[inside]], value[inside]
            scores = scores.index_put((where, label), self.planted_gain * value.to(scores.dtype), accumulate=True)
        return scores, hidden @ outputs.T

    def finish(self, state: AttentionState, teacher_scores=None, linear_scores=None) -> torch.Tensor:
        """Logits (B, L) of documents that have been read to the end."""
        return state.value + self.offset(teacher_scores, linear_scores)

    def offset(self, teacher_scores=None, linear_scores=None) -> torch.Tensor:
        """What is added to attention's part of the logits, (L,) or (B, L)."""
        added = self.label_bias
        if teacher_scores is not None:
            added = added + self.teacher_gain * teacher_scores
        return added if linear_scores is None else added + self.linear_gain * linear_scores


def merge(a: AttentionState, b: AttentionState) -> AttentionState:
    """The state after two segments, differentiable; a segment without tokens changes nothing."""
    return AttentionState(*kernels.merge(a.log_sum_exp, a.value, b.log_sum_exp, b.value))
