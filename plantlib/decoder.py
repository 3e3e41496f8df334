"""LabelDecoder: planted label attention, inattention and the exact streaming state; METHOD.md section 4.

    A[b,:,l]    = softmax over real tokens of ( <H[b,t], Q[l]> + gamma G[ids[b,t], l] + rho L2R[ids[b,t], l] )
    logit[b,l]  = sum_t A[b,t,l] <H[b,t], W[l]> + beta[l] + delta z[b,l] + lambda u[b,l]
z is the teacher's score of a document over tokens, u the linear score over words; both are options of a start.
The three summands of the score share one softmax (`contexts="mixed"`), or have one each over the same H and W and the three
contexts are summed (`"sum"`, as first published). Without an L2R table there is no rho.
Every start uses this module with the same parameters and shapes; only the values they begin from differ (`l2r.plant`).
It knows nothing of backbones and files. No tensor of size (B, L, D) or (B, T, L) is ever built; see `kernels`.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import nn

from plantlib import contexts, kernels
from plantlib.contexts import AttentionState, Branch, Packed, branch_scores, check_decoder, joined, parted, scaled_sum
from plantlib.kernels import Cells
from plantlib.kernels.attention_bce import left_out, sparse_bce
from plantlib.kernels.reference import keep_top_k


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

    num_labels L, hidden_size D, num_tokens V and num_cells M size the planted table, num_l2r_cells that of the static L2R
    scores (none: no such term). keep is inattention's K, or three of them for the learned, lookup and L2R context.
    stateful: "exact" streams to the attention over the whole document; "v1" adds the sigmoid of the logits after the
    previous segment, detached, to those of the current one, so that the last segment decides and alone is trained.
    """

    def __init__(
        self, num_labels: int, hidden_size: int, num_tokens: int = 1, num_cells: int = 0,
        keep: int | list | tuple | None = None, impl: str = "auto", num_l2r_cells: int = 0, contexts: str = "mixed",
        stateful: str = "exact",
    ):  # fmt: skip
        super().__init__()
        check_decoder(contexts, stateful, keep, num_l2r_cells)
        self.label_queries = nn.Parameter(torch.zeros(num_labels, hidden_size))
        self.label_outputs = nn.Parameter(torch.zeros(num_labels, hidden_size))
        self.label_bias = nn.Parameter(torch.zeros(num_labels))
        self.planted_gain = nn.Parameter(torch.zeros(()))
        self.teacher_gain = nn.Parameter(torch.zeros(()))
        self.linear_gain = nn.Parameter(torch.zeros(()))
        self.planted = PlantedTable(num_tokens, num_cells)
        self.keep, self.impl, self.contexts, self.stateful = keep, impl, contexts, stateful
        self.l2r = PlantedTable(num_tokens, num_l2r_cells) if num_l2r_cells else None
        if self.l2r is not None:
            self.l2r_gain = nn.Parameter(torch.zeros(()))
        if contexts == "sum":
            self.context_gain = nn.Parameter(torch.tensor([1.0, 0.0, 0.0]))

    @property
    def num_contexts(self) -> int:
        return 3 if self.contexts == "sum" else 1

    @property
    def keeps(self) -> list[int | None]:
        """Inattention's K of every softmax."""
        return list(self.keep) if isinstance(self.keep, (list, tuple)) else [self.keep] * self.num_contexts

    def branches(self, packed: Packed) -> list[Branch]:
        """The softmaxes over a packed batch: one, or those of the learned, the lookup and the L2R context."""
        lookup, keeps = self.planted.cells(packed.token_ids), self.keeps
        if self.l2r is None:
            return [Branch(self.label_queries, lookup, self.planted_gain, keeps[0])]
        l2r = contexts.l2r_cells(self.l2r, packed)
        if self.contexts == "mixed":
            cells = scaled_sum((lookup, self.planted_gain), (l2r, self.l2r_gain))
            return [Branch(self.label_queries, cells, torch.ones_like(self.l2r_gain), keeps[0])]
        # a context of planted scores alone has no query
        nothing = torch.zeros_like(self.label_queries)
        planted = ((self.label_queries, None, None), (nothing, lookup, self.planted_gain), (nothing, l2r, self.l2r_gain))
        return [Branch(*parts, keep) for parts, keep in zip(planted, keeps, strict=True)]

    def forward(self, packed: Packed, teacher_scores=None, linear_scores=None) -> torch.Tensor:
        """Logits (B, L) of packed documents; teacher_scores z and linear_scores u (B, L), or None where none is planted."""
        return self.finish(self.read(packed), teacher_scores, linear_scores)

    def loss(self, packed: Packed, rows, columns, teacher_scores=None, linear_scores=None, still=None):
        """(binary cross-entropy summed over labels, mean over B; logits (B, L) without a graph).

        rows, columns (P,): the positive cells of (B, L). The same numbers as `forward` and the loss after it, at
        three quarters of the products where gradients are wanted. still (U,): labels that the loss leaves out.
        """
        if self.contexts == "sum":
            logits = left_out(self(packed, teacher_scores, linear_scores), still)
            return sparse_bce(logits, rows, columns), logits.detach()
        hidden = packed.hidden_states.to(self.label_queries.dtype)
        added = left_out(self.offset(teacher_scores, linear_scores), still).expand(len(packed.offsets) - 1, -1)
        (branch,) = self.branches(packed)
        return kernels.attend_bce(
            hidden, packed.offsets, branch.queries, self.label_outputs, rows, columns, branch.cells, branch.gain,
            branch.keep, added=added, impl=self.impl,
        )  # fmt: skip

    def read(self, packed: Packed, state: AttentionState | None = None) -> AttentionState:
        """Read one segment of B documents after `state`; equal to reading all segments at once, but for stateful="v1"."""
        hidden, branches = packed.hidden_states.to(self.label_queries.dtype), self.branches(packed)
        if self.stateful == "v1":
            found = joined([self._read_branch(b, hidden, packed, None) for b in branches])
            return self._run_on(found, packed, self.start_state(len(packed.offsets) - 1) if state is None else state)
        states = [None] * len(branches) if state is None else parted(state, self.keeps)
        return joined([self._read_branch(b, hidden, packed, s) for b, s in zip(branches, states, strict=True)])

    def _read_branch(self, branch: Branch, hidden, packed: Packed, state: AttentionState | None) -> AttentionState:
        if branch.keep is not None and state is not None:
            if state.kept_scores is None:
                raise ValueError("with inattention the first segment is read after start_state(batch), not after nothing")
            return self._read_kept(branch, hidden, packed, state)
        value, log_sum = kernels.attend(
            hidden, packed.offsets, branch.queries, self.label_outputs, branch.cells, branch.gain, branch.keep,
            impl=self.impl,
        )  # fmt: skip
        return AttentionState(log_sum, value) if state is None else merge(state, AttentionState(log_sum, value))

    def _run_on(self, found: AttentionState, packed: Packed, state: AttentionState) -> AttentionState:
        """The published running state: this segment's logits plus the sigmoid of those before it, detached."""
        before = torch.sigmoid(state.value + self.label_bias).masked_fill(state.log_sum_exp.isinf(), 0.0).detach()
        read = (packed.offsets.diff() > 0)[:, None].to(before.device)
        # of a document that has been read to its end nothing changes
        value = torch.where(read, self._summed(found.value) + before, state.value)
        log_sum = torch.where(read, found.log_sum_exp[:, : len(self.label_bias)], state.log_sum_exp)
        return AttentionState(log_sum.detach(), value)

    def _summed(self, value: torch.Tensor) -> torch.Tensor:
        """(B, L) of the contexts' values (B, L) or (B, 3 L)."""
        if self.contexts == "mixed":
            return value
        return (value.view(len(value), 3, -1) * self.context_gain[:, None]).sum(1)

    def start_state(self, batch: int) -> AttentionState:
        """The state before the first token; needed to stream with inattention."""
        contexts = 1 if self.stateful == "v1" else self.num_contexts
        shape = (batch, len(self.label_bias) * contexts)
        empty = self.label_bias.new_full(shape, float("-inf"))
        if self.stateful == "v1" or not any(self.keeps):
            return AttentionState(empty, torch.zeros_like(empty))
        none = self.label_bias.new_zeros((*shape, 0))
        return AttentionState(empty, torch.zeros_like(empty), none, none)

    def _read_kept(self, branch: Branch, hidden, packed: Packed, state: AttentionState) -> AttentionState:
        (scores, outputs), keep = branch_scores(branch, self.label_outputs, hidden), branch.keep
        kept_scores, kept_outputs = [], []
        for b in range(len(packed.offsets) - 1):
            part = slice(int(packed.offsets[b]), int(packed.offsets[b + 1]))
            s = torch.cat([state.kept_scores[b], scores[part].T], -1)  # (L, K + T)
            o = torch.cat([state.kept_outputs[b], outputs[part].T], -1)
            if s.shape[-1] < keep:
                s = nn.functional.pad(s, (0, keep - s.shape[-1]), value=float("-inf"))
                o = nn.functional.pad(o, (0, keep - o.shape[-1]))
            # a stable sort keeps the earlier token where scores are equal, as the kernel does
            best = torch.argsort(s, dim=-1, descending=True, stable=True)[:, :keep]
            kept_scores.append(s.gather(-1, best))
            kept_outputs.append(o.gather(-1, best))
        kept_scores, kept_outputs = torch.stack(kept_scores), torch.stack(kept_outputs)
        log_sum = torch.logsumexp(kept_scores, -1)
        weights = torch.exp(kept_scores - torch.where(log_sum.isinf(), 0.0, log_sum)[..., None])
        return AttentionState(log_sum, (weights * kept_outputs).sum(-1), kept_scores, kept_outputs)

    def token_scores(self, hidden: torch.Tensor, cells: Cells | None, labels: torch.Tensor | None = None):
        """Scores of learned and lookup attention and outputs of every token, (S, L) each, with `cells` of the planted table."""
        branch = Branch(self.label_queries, cells, self.planted_gain, None)
        return branch_scores(branch, self.label_outputs, hidden, labels)

    def attention(self, packed: Packed, label: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(attention, planted score, output) of every token of one document for one label, (T,) each.

        Attention is the sum over contexts of gain times softmax: the logit is sum_t attention_t output_t, and what is added.
        """
        hidden, column = packed.hidden_states.to(self.label_queries.dtype), torch.tensor([label])
        gains = self.context_gain if self.contexts == "sum" else self.label_bias.new_ones(1)
        attention, planted = torch.zeros(len(hidden)).to(hidden), torch.zeros(len(hidden)).to(hidden)
        for branch, gain in zip(self.branches(packed), gains, strict=True):
            scores, outputs = branch_scores(branch, self.label_outputs, hidden, column.to(hidden.device))
            planted += scores[:, 0] - hidden @ branch.queries[label]
            attention += gain * torch.softmax(keep_top_k(scores[:, 0], branch.keep), 0)
        return attention, planted, outputs[:, 0]

    def finish(self, state: AttentionState, teacher_scores=None, linear_scores=None) -> torch.Tensor:
        """Logits (B, L) of documents that have been read to the end."""
        value = state.value if self.stateful == "v1" else self._summed(state.value)
        return value + self.offset(teacher_scores, linear_scores)

    def offset(self, teacher_scores=None, linear_scores=None) -> torch.Tensor:
        """What is added to attention's part of the logits, (L,) or (B, L)."""
        added = self.label_bias
        if teacher_scores is not None:
            added = added + self.teacher_gain * teacher_scores
        return added if linear_scores is None else added + self.linear_gain * linear_scores


def merge(a: AttentionState, b: AttentionState) -> AttentionState:
    """The state after two segments, differentiable; a segment without tokens changes nothing."""
    return AttentionState(*kernels.merge(a.log_sum_exp, a.value, b.log_sum_exp, b.value))
