"""LabelDecoder: planted label attention, inattention and the exact streaming state; METHOD.md
section 4.

    A[b,:,l]    = softmax over real tokens of ( <H[b,t], Q[l]> + gamma G[ids[b,t], l] + rho
    L2R[ids[b,t], l] )
    logit[b,l]  = sum_t A[b,t,l] <H[b,t], W[l]> + beta[l] + delta z[b,l] + lambda u[b,l]
z is the teacher's score of a document over tokens, u the linear score over words; both are options
of a start. The three summands of the score share one softmax (`contexts="mixed"`), or have one each
over the same H and W and the three contexts are summed (`"sum"`, as first published). Without an
L2R table there is no rho. Every start uses this module with the same parameters and shapes; only
the values they begin from differ (`l2r.plant`). It knows nothing of backbones and files. No tensor
of size (B, L, D) or (B, T, L) is ever built; see `kernels`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import nn

from plantlib import kernels
from plantlib.kernels import Cells
from plantlib.kernels.attention_bce import left_out, sparse_bce
from plantlib.kernels.reference import keep_top_k

CONTEXTS = ("mixed", "sum")
STATEFUL = ("exact", "v1")


class Scored(NamedTuple):
    """Whose L2R score a position takes: ids (S, n) of tokens and their weights (S, n), which sum to
    one.
    """

    ids: torch.Tensor
    weights: torch.Tensor


class Packed(NamedTuple):
    """B documents without padding: hidden_states (S, D), token_ids (S,), offsets (B+1); scored
    None: the tokens read.
    """

    hidden_states: torch.Tensor
    token_ids: torch.Tensor
    offsets: torch.Tensor
    scored: Scored | None = None


class Branch(NamedTuple):
    """One softmax: queries (L, D), planted cells with their gain, and inattention's K."""

    queries: torch.Tensor
    cells: Cells | None
    gain: torch.Tensor | None
    keep: int | None


class AttentionState(NamedTuple):
    """What a document leaves behind when a segment has been read, (B, L) each: O(L) memory for any
    length.

    `log_sum_exp` = m + ln s and `value` = o / s of the online softmax triple (running max m, sum s,
    value o). With inattention, the best K scores and outputs so far, (B, L, K), are carried
    instead. Three contexts stand side by side, (B, 3 L). `stateful="v1"` carries the logits but for
    their bias, (B, L), as `value`.
    """

    log_sum_exp: torch.Tensor
    value: torch.Tensor
    kept_scores: torch.Tensor | None = None
    kept_outputs: torch.Tensor | None = None
    # (2,) sum and number of the language model's losses of a model that streams with one; no part
    # of attention
    lm_loss: torch.Tensor | None = None


def check_decoder(contexts: str, stateful: str, keep, num_l2r_cells: int) -> None:
    """ValueError for options of a decoder that are unknown or contradict one another."""
    for name, value, known in (("contexts", contexts, CONTEXTS), ("stateful", stateful, STATEFUL)):
        if value not in known:
            raise ValueError(f"{name}={value!r} is not known; use one of {', '.join(known)}")
    if contexts == "sum" and not num_l2r_cells:
        raise ValueError(
            "contexts='sum' has a context of L2R scores and there is no L2R table; plant one, or"
            " use 'mixed'"
        )
    several = isinstance(keep, (list, tuple))
    if several and (contexts != "sum" or len(keep) != 3):
        raise ValueError(
            f"keep={list(keep)}: give three numbers with contexts='sum', a K a context, and else"
            " one or None"
        )
    if any(k is not None and k < 1 for k in (keep if several else [keep])):
        raise ValueError(
            f"keep={keep}: inattention keeps at least 1 token; use None to attend to all"
        )


def l2r_cells(table, packed: Packed) -> Cells | None:
    """L2R cells of packed tokens, or of the tokens that stand for them, weighted: the expected
    score where they are several.

    table: a `decoder.PlantedTable`.
    """
    if packed.scored is None:
        return table.cells(packed.token_ids)
    ids, weights = packed.scored
    cells = table.cells(ids.flatten())
    if cells is None:
        return None
    return Cells(
        cells.positions // ids.shape[1],
        cells.labels,
        cells.values * weights.flatten()[cells.positions],
    )


def scaled_sum(*parts: tuple[Cells | None, torch.Tensor]) -> Cells | None:
    """Cells of values times gains of several tables together, sorted by label; differentiable in
    the gains.
    """
    parts = [(cells, gain) for cells, gain in parts if cells is not None]
    if not parts:
        return None
    positions, labels = (
        torch.cat([getattr(cells, name) for cells, _ in parts]) for name in ("positions", "labels")
    )
    values = torch.cat([gain * cells.values for cells, gain in parts])
    labels, order = labels.sort(stable=True)
    return Cells(positions[order], labels, values[order])


def branch_scores(branch: Branch, outputs, hidden, labels: torch.Tensor | None = None):
    """Attention scores and outputs of every token, (S, L) each: for explanations and inattention's
    state.
    """
    num_labels = len(outputs)
    queries = branch.queries if labels is None else branch.queries[labels]
    outputs = outputs if labels is None else outputs[labels]
    scores = hidden @ queries.T
    if branch.cells is not None:
        where, label, value = branch.cells
        if labels is not None:
            column = torch.full((num_labels,), -1, device=hidden.device)
            column[labels] = torch.arange(len(labels), device=hidden.device)
            inside = column[label] >= 0
            where, label, value = where[inside], column[label[inside]], value[inside]
        scores = scores.index_put(
            (where, label), branch.gain * value.to(scores.dtype), accumulate=True
        )
    return scores, hidden @ outputs.T


def joined(states: list[AttentionState]) -> AttentionState:
    """The states of several contexts side by side; kept tokens are filled up to the longest list."""
    if len(states) == 1:
        return states[0]
    parts = [torch.cat([getattr(s, name) for s in states], 1) for name in ("log_sum_exp", "value")]
    if all(s.kept_scores is None for s in states):
        return AttentionState(*parts)
    shape, widest = (
        states[0].log_sum_exp.shape,
        max(s.kept_scores.shape[2] for s in states if s.kept_scores is not None),
    )
    for name, fill in (("kept_scores", float("-inf")), ("kept_outputs", 0.0)):
        kept = [
            parts[0].new_zeros(*shape, 0) if getattr(s, name) is None else getattr(s, name)
            for s in states
        ]
        parts.append(
            torch.cat([nn.functional.pad(k, (0, widest - k.shape[2]), value=fill) for k in kept], 1)
        )
    return AttentionState(*parts)


def parted(state: AttentionState, keeps: list[int | None]) -> list[AttentionState]:
    """The states of the contexts that `joined` put together."""
    if len(keeps) == 1:
        return [state]
    chunks = [
        [None] * len(keeps) if part is None else part.chunk(len(keeps), 1) for part in state[:4]
    ]
    return [
        AttentionState(
            log_sum,
            value,
            *((None, None) if keep is None or s is None else (s[..., :keep], o[..., :keep])),
        )
        for (log_sum, value, s, o), keep in zip(zip(*chunks, strict=True), keeps, strict=True)
    ]


def pack(hidden_states: torch.Tensor, token_ids: torch.Tensor, mask: torch.Tensor) -> Packed:
    """Drop padding and special tokens: hidden_states (B, T, D), token_ids (B, T), mask (B, T) true
    on real tokens.
    """
    mask = mask.bool()
    offsets = torch.cat([mask.new_zeros(1, dtype=torch.long), mask.sum(1).cumsum(0)])
    return Packed(hidden_states[mask], token_ids[mask], offsets)


class PlantedTable(nn.Module):
    """The teacher's relevance G as token -> (label, value) lists, so that the cells of a document
    are found by its ids.

    Buffers, saved with the model: indptr (V+1), labels (M,), values (M,). Replaceable, never
    trained.
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
        if by_token.shape[0] + 1 != len(self.planted_indptr) or by_token.nnz != len(
            self.planted_labels
        ):
            raise ValueError(
                f"the table holds {len(self.planted_indptr) - 1} tokens and"
                f" {len(self.planted_labels)} cells, the teacher {by_token.shape[0]} and"
                f" {by_token.nnz}; build the model from this teacher's sizes"
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
        positions = torch.repeat_interleave(
            torch.arange(len(token_ids), device=token_ids.device), count
        )
        within = torch.arange(total, device=token_ids.device) - torch.repeat_interleave(
            count.cumsum(0) - count, count
        )
        index = first[positions] + within
        labels, order = self.planted_labels[index].long().sort(stable=True)
        return Cells(positions[order], labels, self.planted_values[index][order])


class LabelDecoder(nn.Module):
    """One query, one output vector and one bias a label over the tokens of a document.

    num_labels L, hidden_size D, num_tokens V and num_cells M size the planted table, num_l2r_cells
    that of the static L2R scores (none: no such term). keep is inattention's K, or three of them
    for the learned, lookup and L2R context. stateful: "exact" streams to the attention over the
    whole document; "v1" adds the sigmoid of the logits after the previous segment, detached, to
    those of the current one, so that the last segment decides and alone is trained.
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
        return 3 if self.contexts == "sum" else 1

    @property
    def keeps(self) -> list[int | None]:
        """Inattention's K of every softmax."""
        return (
            list(self.keep)
            if isinstance(self.keep, (list, tuple))
            else [self.keep] * self.num_contexts
        )

    def branches(self, packed: Packed) -> list[Branch]:
        """The softmaxes over a packed batch: one, or those of the learned, the lookup and the L2R
        context.
        """
        lookup, keeps = self.planted.cells(packed.token_ids), self.keeps
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

    def forward(self, packed: Packed, teacher_scores=None, linear_scores=None) -> torch.Tensor:
        """Logits (B, L) of packed documents; teacher_scores z and linear_scores u (B, L), or None
        where none is planted.
        """
        return self.finish(self.read(packed), teacher_scores, linear_scores)

    def loss(
        self, packed: Packed, rows, columns, teacher_scores=None, linear_scores=None, still=None
    ):
        """(binary cross-entropy summed over labels, mean over B; logits (B, L) without a graph).

        rows, columns (P,): the positive cells of (B, L). The same numbers as `forward` and the loss
        after it, at three quarters of the products where gradients are wanted. still (U,): labels
        that the loss leaves out.
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
        """Read one segment of B documents after `state`; equal to reading all segments at once, but
        for stateful="v1".
        """
        hidden, branches = packed.hidden_states.to(self.label_queries.dtype), self.branches(packed)
        if self.stateful == "v1":
            found = joined([self._read_branch(b, hidden, packed, None) for b in branches])
            return self._run_on(
                found, packed, self.start_state(len(packed.offsets) - 1) if state is None else state
            )
        states = [None] * len(branches) if state is None else parted(state, self.keeps)
        return joined(
            [self._read_branch(b, hidden, packed, s) for b, s in zip(branches, states, strict=True)]
        )

    def _read_branch(
        self, branch: Branch, hidden, packed: Packed, state: AttentionState | None
    ) -> AttentionState:
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
        return (
            AttentionState(log_sum, value)
            if state is None
            else merge(state, AttentionState(log_sum, value))
        )

    def _run_on(
        self, found: AttentionState, packed: Packed, state: AttentionState
    ) -> AttentionState:
        """The published running state: this segment's logits plus the sigmoid of those before it,
        detached.
        """
        before = (
            torch.sigmoid(state.value + self.label_bias)
            .masked_fill(state.log_sum_exp.isinf(), 0.0)
            .detach()
        )
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

    def _read_kept(
        self, branch: Branch, hidden, packed: Packed, state: AttentionState
    ) -> AttentionState:
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

    def token_scores(
        self, hidden: torch.Tensor, cells: Cells | None, labels: torch.Tensor | None = None
    ):
        """Scores of learned and lookup attention and outputs of every token, (S, L) each, with
        `cells` of the planted table.
        """
        branch = Branch(self.label_queries, cells, self.planted_gain, None)
        return branch_scores(branch, self.label_outputs, hidden, labels)

    def attention(
        self, packed: Packed, label: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(attention, planted score, output) of every token of one document for one label, (T,)
        each.

        Attention is the sum over contexts of gain times softmax: the logit is sum_t attention_t
        output_t, and what is added.
        """
        hidden, column = packed.hidden_states.to(self.label_queries.dtype), torch.tensor([label])
        gains = self.context_gain if self.contexts == "sum" else self.label_bias.new_ones(1)
        attention, planted = (
            torch.zeros(len(hidden)).to(hidden),
            torch.zeros(len(hidden)).to(hidden),
        )
        for branch, gain in zip(self.branches(packed), gains, strict=True):
            scores, outputs = branch_scores(
                branch, self.label_outputs, hidden, column.to(hidden.device)
            )
            planted += scores[:, 0] - hidden @ branch.queries[label]
            attention += gain * torch.softmax(keep_top_k(scores[:, 0], branch.keep), 0)
        return attention, planted, outputs[:, 0]

    def finish(
        self, state: AttentionState, teacher_scores=None, linear_scores=None
    ) -> torch.Tensor:
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


L2R_FROM = ("read", "likely", "expected")
