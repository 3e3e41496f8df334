"""LabelDecoder: planted label attention, inattention and streaming; docs/method.md, "Planted
attention" and "The decoder".

    A[b,:,l]   = softmax over real tokens of
                 <H[b,t], Q[l]> + gamma G[ids[b,t], l] + rho L2R[ids[b,t], l]
    logit[b,l] = sum_t A[b,t,l] <H[b,t], W[l]> + beta[l] + delta z[b,l] + lambda u[b,l]

z is the teacher's score of a document over tokens, u the linear score over words; a run has them
where its start plants them. The summands of the score share one softmax (`contexts="mixed"`), or
have one each over the same H and W whose contexts are summed ("sum", as first published). Without
an L2R table there is no rho. All starts use this module with the same parameters and shapes; only
the values they begin from differ (`planting.starts`). It knows nothing of backbones and files. No
tensor of size (B, L, D) or (B, T, L) is ever built; see `kernels`.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import nn

from plantlib import kernels
from plantlib.kernels import Cells
from plantlib.kernels.attention_bce import left_out, sparse_bce
from plantlib.kernels.reference import keep_top_k
from plantlib.planting.contexts import (
    AttentionState,
    Branch,
    Packed,
    Scored,
    branch_scores,
    joined,
    l2r_cells,
    parted,
    scaled_sum,
    together,
)

__all__ = [
    "AttentionState",
    "LabelDecoder",
    "Packed",
    "PlantedTable",
    "Scored",
    "check_decoder",
    "merge",
    "pack",
]

CONTEXTS = ("mixed", "sum")
STATEFUL = ("exact", "v1")
L2R_FROM = ("read", "likely", "expected")  # the token whose L2R score a position takes


def check_decoder(
    contexts: str, stateful: str, keep: int | list | tuple | None, num_l2r_cells: int
) -> None:
    """Raise ValueError for options of a decoder that are unknown or contradict one another.

    Args:
        contexts: one of CONTEXTS.
        stateful: one of STATEFUL.
        keep: inattention's K, one number per context, or None.
        num_l2r_cells: cells of the L2R table; "sum" needs some.
    """
    for name, value, known in (("contexts", contexts, CONTEXTS), ("stateful", stateful, STATEFUL)):
        if value not in known:
            raise ValueError(f"{name}={value!r} is not known; use one of {', '.join(known)}")
    if contexts == "sum" and not num_l2r_cells:
        raise ValueError(
            "contexts='sum' has a context of L2R scores and there is no L2R table; plant one, or"
            " use 'mixed'"
        )
    several = isinstance(keep, (list, tuple))
    ks = list(keep) if isinstance(keep, (list, tuple)) else [keep]
    if several and (contexts != "sum" or len(ks) != 3):
        raise ValueError(
            f"keep={ks}: give three numbers with contexts='sum', one K per context, and"
            " otherwise one number or None"
        )
    if any(k is not None and k < 1 for k in ks):
        raise ValueError(
            f"keep={keep}: inattention keeps at least 1 token; use None to attend to all"
        )


def pack(hidden_states: torch.Tensor, token_ids: torch.Tensor, mask: torch.Tensor) -> Packed:
    """Drop padding and special tokens.

    Args:
        hidden_states: (B, T, D).
        token_ids: (B, T).
        mask: (B, T), true on real tokens.
    """
    mask = mask.bool()
    offsets = torch.cat([mask.new_zeros(1, dtype=torch.long), mask.sum(1).cumsum(0)])
    return Packed(hidden_states[mask], token_ids[mask], offsets)


class PlantedTable(nn.Module):
    """A table over tokens and labels, such as the teacher's relevance G, as lists of (label, value)
    per token, so that the cells of a document are found by its token ids.

    Buffers that are saved with the model and never trained: planted_indptr (V+1), planted_labels
    (M,), planted_values (M,).
    """

    planted_indptr: torch.Tensor
    planted_labels: torch.Tensor
    planted_values: torch.Tensor

    def __init__(self, num_tokens: int, num_cells: int) -> None:
        super().__init__()
        self.register_buffer("planted_indptr", torch.zeros(num_tokens + 1, dtype=torch.long))
        self.register_buffer("planted_labels", torch.zeros(num_cells, dtype=torch.int32))
        self.register_buffer("planted_values", torch.zeros(num_cells))

    def load_relevance(self, relevance: sparse.csr_matrix) -> None:
        """Fill the table from G, csr (L, V); ValueError where V or the number of cells differs."""
        by_token = relevance.T.tocsr()
        by_token.sort_indices()
        num_tokens, num_cells = len(self.planted_indptr) - 1, len(self.planted_labels)
        if by_token.shape[0] != num_tokens or by_token.nnz != num_cells:
            raise ValueError(
                f"the table holds {num_tokens} tokens and {num_cells} cells, the teacher"
                f" {by_token.shape[0]} and {by_token.nnz}; build the model from this teacher's"
                " sizes"
            )
        self.planted_indptr.copy_(torch.from_numpy(by_token.indptr.astype(np.int64)))
        self.planted_labels.copy_(torch.from_numpy(by_token.indices.astype(np.int32)))
        self.planted_values.copy_(torch.from_numpy(by_token.data.astype(np.float32)))

    def cells(self, token_ids: torch.Tensor) -> Cells | None:
        """Planted cells of packed tokens (S,), sorted by label; None where there are none."""
        device = token_ids.device
        first = self.planted_indptr[token_ids]
        count = self.planted_indptr[token_ids + 1] - first
        total = int(count.sum())
        if total == 0:
            return None
        # the list of each token, one after the other
        positions = torch.repeat_interleave(torch.arange(len(token_ids), device=device), count)
        begin_of_list = torch.repeat_interleave(count.cumsum(0) - count, count)
        within = torch.arange(total, device=device) - begin_of_list
        index = first[positions] + within
        labels, order = self.planted_labels[index].long().sort(stable=True)
        return Cells(positions[order], labels, self.planted_values[index][order])


class LabelDecoder(nn.Module):
    """One query, one output vector and one bias per label over the tokens of a document.

    num_labels: L.
    hidden_size: D.
    num_tokens, num_cells: V and M of the planted table.
    keep: inattention's K, or three of them for the learned, the lookup and the L2R context.
    impl: of the kernels.
    num_l2r_cells: cells of the table of static L2R scores; with 0 there is no such term.
    contexts: "mixed" for one softmax, "sum" for three.
    stateful: "exact" streams to the attention over the whole document. "v1" adds the sigmoid of the
    logits after the previous segment, detached, to those of the current one, so that the last
    segment decides and alone is trained.

    Example:
        >>> import torch
        >>> from plantlib import LabelDecoder
        >>> from plantlib.planting.decoder import Packed
        >>> decoder = LabelDecoder(num_labels=3, hidden_size=4)
        >>> token_ids, offsets = torch.zeros(5, dtype=torch.long), torch.tensor([0, 2, 5])
        >>> decoder(Packed(torch.ones(5, 4), token_ids, offsets)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        num_labels: int,
        hidden_size: int,
        num_tokens: int = 1,
        num_cells: int = 0,
        keep: int | list | tuple | None = None,
        impl: str = "auto",
        num_l2r_cells: int = 0,
        contexts: str = "mixed",
        stateful: str = "exact",
    ):
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
        """How many softmaxes there are."""
        return 3 if self.contexts == "sum" else 1

    @property
    def keeps(self) -> list[int | None]:
        """Inattention's K of every softmax."""
        if isinstance(self.keep, (list, tuple)):
            return list(self.keep)
        return [self.keep] * self.num_contexts

    def branches(self, packed: Packed) -> list[Branch]:
        """The softmaxes over a packed batch: one, or those of the learned, the lookup and the L2R
        context.
        """
        lookup = together(self.planted.cells(packed.token_ids), packed.cells)
        keeps = self.keeps
        if self.l2r is None:
            return [Branch(self.label_queries, lookup, self.planted_gain, keeps[0])]
        l2r = l2r_cells(self.l2r, packed)
        if self.contexts == "mixed":
            cells = scaled_sum((lookup, self.planted_gain), (l2r, self.l2r_gain))
            return [Branch(self.label_queries, cells, torch.ones_like(self.l2r_gain), keeps[0])]
        # a context of planted scores alone has no query
        nothing = torch.zeros_like(self.label_queries)
        planted = (
            (self.label_queries, None, None),
            (nothing, lookup, self.planted_gain),
            (nothing, l2r, self.l2r_gain),
        )
        return [Branch(*parts, keep) for parts, keep in zip(planted, keeps, strict=True)]

    def forward(
        self,
        packed: Packed,
        teacher_scores: torch.Tensor | None = None,
        linear_scores: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits (B, L) of packed documents.

        teacher_scores, linear_scores: z and u, (B, L) each; None where none is planted.
        """
        return self.finish(self.read(packed), teacher_scores, linear_scores)

    def loss(
        self,
        packed: Packed,
        rows: torch.Tensor,
        columns: torch.Tensor,
        teacher_scores: torch.Tensor | None = None,
        linear_scores: torch.Tensor | None = None,
        still: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss and the logits in one pass: the numbers of `forward` and a loss after it, with
        three quarters of the products.

        Args:
            packed: B documents.
            rows, columns: (P,) each, the positive cells of (B, L).
            teacher_scores, linear_scores: (B, L) each, or None.
            still: (U,) labels that the loss leaves out.

        Returns:
            Binary cross-entropy summed over labels, mean over B, and logits (B, L) without a graph.
        """
        if self.contexts == "sum":
            logits = left_out(self(packed, teacher_scores, linear_scores), still)
            return sparse_bce(logits, rows, columns), logits.detach()
        hidden = packed.hidden_states.to(self.label_queries.dtype)
        added = left_out(self.offset(teacher_scores, linear_scores), still).expand(
            len(packed.offsets) - 1, -1
        )
        (branch,) = self.branches(packed)
        return kernels.attend_bce(
            hidden,
            packed.offsets,
            branch.queries,
            self.label_outputs,
            rows,
            columns,
            branch.cells,
            branch.gain,
            branch.keep,
            added=added,
            impl=self.impl,
        )

    def read(self, packed: Packed, state: AttentionState | None = None) -> AttentionState:
        """Read one segment of B documents after `state`, that of the segments before, None at the
        beginning.

        Segment by segment gives the state of all segments at once, except with stateful="v1".
        """
        hidden = packed.hidden_states.to(self.label_queries.dtype)
        branches = self.branches(packed)
        if self.stateful == "v1":
            segment = joined([self._read_branch(b, hidden, packed, None) for b in branches])
            before = self.start_state(len(packed.offsets) - 1) if state is None else state
            return self._run_on(segment, packed, before)
        states = [None] * len(branches) if state is None else parted(state, self.keeps)
        return joined(
            [self._read_branch(b, hidden, packed, s) for b, s in zip(branches, states, strict=True)]
        )

    def _read_branch(
        self, branch: Branch, hidden: torch.Tensor, packed: Packed, state: AttentionState | None
    ) -> AttentionState:
        """One softmax over a segment, merged with `state`."""
        if branch.keep is not None and state is not None:
            if state.kept_scores is None:
                raise ValueError(
                    "with inattention the first segment is read after start_state(batch), not after"
                    " nothing"
                )
            return self._read_kept(branch, hidden, packed, state)
        value, log_sum = kernels.attend(
            hidden,
            packed.offsets,
            branch.queries,
            self.label_outputs,
            branch.cells,
            branch.gain,
            branch.keep,
            impl=self.impl,
        )
        segment = AttentionState(log_sum, value)
        return segment if state is None else merge(state, segment)

    def _run_on(
        self, segment: AttentionState, packed: Packed, state: AttentionState
    ) -> AttentionState:
        """The published running state: this segment's logits plus the sigmoid of those before it,
        detached.
        """
        before = torch.sigmoid(state.value + self.label_bias)
        before = before.masked_fill(state.log_sum_exp.isinf(), 0.0).detach()
        # a document without tokens in this segment has ended: its state stays
        goes_on = (packed.offsets.diff() > 0)[:, None].to(before.device)
        value = torch.where(goes_on, self._summed(segment.value) + before, state.value)
        log_sum = segment.log_sum_exp[:, : len(self.label_bias)]
        log_sum = torch.where(goes_on, log_sum, state.log_sum_exp)
        return AttentionState(log_sum.detach(), value)

    def _summed(self, value: torch.Tensor) -> torch.Tensor:
        """(B, L) of the contexts' values (B, L) or (B, 3 L)."""
        if self.contexts == "mixed":
            return value
        return (value.view(len(value), 3, -1) * self.context_gain[:, None]).sum(1)

    def read_distinct(
        self, hidden: torch.Tensor, token_ids: torch.Tensor, documents: sparse.csr_matrix
    ) -> torch.Tensor:
        """Attention's part (B, L) of the logits where a token has one hidden state everywhere.

        It equals `read` of whole documents, without gradients, for `mixed` contexts that attend to
        all tokens and have no L2R table.

        Args:
            hidden: (U, D) states of distinct tokens.
            token_ids: (U,).
            documents: (B, U) csr float32, how often a document holds a token.
        """
        cells = self.planted.cells(token_ids)
        queries, outputs = self.label_queries, self.label_outputs
        return kernels.attend_distinct(
            hidden, documents, queries, outputs, cells, self.planted_gain
        )

    @property
    def reads_distinct(self) -> bool:
        """Whether `read_distinct` holds for this decoder."""
        plain = self.contexts == "mixed" and self.stateful == "exact"
        return plain and self.l2r is None and not any(self.keeps)

    def start_state(self, batch: int) -> AttentionState:
        """The state before the first token; needed to stream with inattention."""
        contexts = 1 if self.stateful == "v1" else self.num_contexts
        shape = (batch, len(self.label_bias) * contexts)
        empty = self.label_bias.new_full(shape, float("-inf"))
        if self.stateful == "v1" or not any(self.keeps):
            return AttentionState(empty, torch.zeros_like(empty))
        none = self.label_bias.new_zeros((*shape, 0))
        return AttentionState(empty, torch.zeros_like(empty), none, none)

    def _read_kept(
        self, branch: Branch, hidden: torch.Tensor, packed: Packed, state: AttentionState
    ) -> AttentionState:
        """Inattention over a segment: the K best tokens of the state and the segment together."""
        scores, outputs = branch_scores(branch, self.label_outputs, hidden)
        keep = branch.keep
        assert keep is not None and state.kept_scores is not None
        assert state.kept_outputs is not None
        best_scores = []
        best_outputs = []
        for b in range(len(packed.offsets) - 1):
            part = slice(int(packed.offsets[b]), int(packed.offsets[b + 1]))
            s = torch.cat([state.kept_scores[b], scores[part].T], -1)  # (L, K + T)
            o = torch.cat([state.kept_outputs[b], outputs[part].T], -1)
            if s.shape[-1] < keep:
                s = nn.functional.pad(s, (0, keep - s.shape[-1]), value=float("-inf"))
                o = nn.functional.pad(o, (0, keep - o.shape[-1]))
            # a stable sort keeps the earlier token where scores are equal, as the kernel does
            best = torch.argsort(s, dim=-1, descending=True, stable=True)[:, :keep]
            best_scores.append(s.gather(-1, best))
            best_outputs.append(o.gather(-1, best))
        kept_scores = torch.stack(best_scores)
        kept_outputs = torch.stack(best_outputs)
        log_sum = torch.logsumexp(kept_scores, -1)
        weights = torch.exp(kept_scores - torch.where(log_sum.isinf(), 0.0, log_sum)[..., None])
        return AttentionState(log_sum, (weights * kept_outputs).sum(-1), kept_scores, kept_outputs)

    def token_scores(
        self, hidden: torch.Tensor, cells: Cells | None, labels: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of learned and lookup attention and outputs of every token, (S, L) each.

        hidden: (S, D). cells: of the planted table. labels: (U,) ids to compute; all when None.
        """
        branch = Branch(self.label_queries, cells, self.planted_gain, None)
        return branch_scores(branch, self.label_outputs, hidden, labels)

    def bias_of(self, labels: torch.Tensor) -> torch.Tensor:
        """(U,) biases of some labels (U,)."""
        return self.label_bias[labels]

    def attention(
        self, packed: Packed, label: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attention, planted score and output of every token of one document for one label, (T,)
        each.

        Attention is the sum over contexts of gain times softmax: the logit is sum_t attention_t
        output_t plus `offset`.
        """
        hidden = packed.hidden_states.to(self.label_queries.dtype)
        column = torch.tensor([label]).to(hidden.device)
        gains = self.context_gain if self.contexts == "sum" else self.label_bias.new_ones(1)
        attention = torch.zeros(len(hidden)).to(hidden)
        planted = torch.zeros_like(attention)
        for branch, gain in zip(self.branches(packed), gains, strict=True):
            scores, outputs = branch_scores(branch, self.label_outputs, hidden, column)
            planted += scores[:, 0] - hidden @ branch.queries[label]
            attention += gain * torch.softmax(keep_top_k(scores[:, 0], branch.keep), 0)
        return attention, planted, outputs[:, 0]

    def finish(
        self,
        state: AttentionState,
        teacher_scores: torch.Tensor | None = None,
        linear_scores: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits (B, L) of documents that have been read to the end."""
        value = state.value if self.stateful == "v1" else self._summed(state.value)
        return value + self.offset(teacher_scores, linear_scores)

    def offset(
        self, teacher_scores: torch.Tensor | None = None, linear_scores: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What is added to attention's part of the logits, (L,) or (B, L)."""
        added: torch.Tensor = self.label_bias
        if teacher_scores is not None:
            added = added + self.teacher_gain * teacher_scores
        return added if linear_scores is None else added + self.linear_gain * linear_scores


def merge(a: AttentionState, b: AttentionState) -> AttentionState:
    """The state after two segments, differentiable; a segment without tokens changes nothing."""
    return AttentionState(*kernels.merge(a.log_sum_exp, a.value, b.log_sum_exp, b.value))
