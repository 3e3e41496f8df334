"""Planted label attention as one differentiable function: checks, autograd and streaming state
around an implementation.

Realises METHOD.md section 4. `label_attention_torch` and `label_attention` (Triton) compute rows
and gradients; what is common to both stands here: the order of planted cells, candidate lists, the
label bias, the state carried between the segments of a long document, autocast. Nothing here is
larger than (B, L).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from plantlib.kernels import label_attention_torch, machine, reference
from plantlib.kernels.attention_bce import AttentionBCE, sparse_bce
from plantlib.kernels.label_attention_torch import Problem


class Cells(NamedTuple):
    """Planted (token position, label) cells of a packed batch, sorted by label. `values` are G,
    before the gain.
    """

    positions: torch.Tensor  # (M,) int64, index into the packed tokens
    labels: torch.Tensor  # (M,) int64, ascending
    values: torch.Tensor  # (M,) float, finite


@torch.compiler.disable
def planted_attention(
    hidden_states,
    offsets,
    label_queries,
    label_outputs,
    cells=None,
    gain=None,
    keep=None,
    *,
    label_bias=None,
    candidates=None,
    state=None,
    impl="auto",
):
    """Planted label attention of packed documents by blocks or by a fused kernel.

    hidden_states (S, D), offsets (B+1) int64, label_queries (L, D), label_outputs (L, D), cells
    over (S, L), gain a scalar tensor, keep the number of tokens attended to a (document, label) or
    None for all -> value (B, L), log_sum_exp (B, L), float32 at least. label_bias (L,) is added to
    the value: logits. candidates (B, C) int64, distinct label ids a document, -1 for none: results
    are (B, C), and a place without a candidate holds 0 and minus infinity. state: (log_sum_exp,
    value) of the same shape left by the tokens read before; the results then are those of all
    tokens at once. Gradients reach hidden_states, label_queries, label_outputs, gain, label_bias
    and state, twice the same bits; and the cells' values where they want one, as several gains
    need.
    """
    _check(offsets, label_queries, label_outputs, cells, gain, keep, candidates, state)
    chosen = machine.implementation(impl, hidden_states)
    if chosen == "reference":
        return reference.label_attention(
            hidden_states,
            offsets,
            label_queries,
            label_outputs,
            cells,
            gain,
            keep,
            label_bias=label_bias,
            candidates=candidates,
            state=state,
        )
    kind = torch.promote_types(
        hidden_states.dtype, torch.promote_types(label_queries.dtype, label_outputs.dtype)
    )
    device = hidden_states.device.type
    if chosen == "triton":
        if torch.is_autocast_enabled(device):
            kind = torch.get_autocast_dtype(device)
        if kind == torch.float64 and impl == "auto":
            chosen = "torch"
    given = tuple(x.to(kind) for x in (hidden_states, label_queries, label_outputs))
    clean, absent = candidates, None
    if candidates is not None:
        absent = candidates < 0
        clean = candidates.clamp(min=0)
        cells = (
            None
            if cells is None
            else _cells_of_candidates(cells, offsets, candidates, len(label_queries))
        )
    keep = None if keep is not None and keep >= len(hidden_states) else keep
    positions, columns, values = (
        cells if cells is not None and len(cells[0]) else (None, None, None)
    )
    gain = None if positions is None else gain
    differentiable = [x for x in (*given, values, gain) if x is not None and x.requires_grad]
    value, log_sum = _LabelAttention.apply(
        given[0],
        offsets,
        given[1],
        given[2],
        positions,
        columns,
        values,
        gain,
        keep,
        clean,
        chosen,
        torch.is_grad_enabled() and bool(differentiable),
    )
    if absent is not None:
        value, log_sum = value.masked_fill(absent, 0.0), log_sum.masked_fill(absent, float("-inf"))
    if state is not None:
        log_sum, value = merge(*state, log_sum, value)
    if label_bias is not None:
        bias = label_bias if clean is None else label_bias[clean].masked_fill(absent, 0.0)
        value = value + bias
    return value, log_sum


def merge(log_sum_a, value_a, log_sum_b, value_b) -> tuple[torch.Tensor, torch.Tensor]:
    """(log_sum_exp, value) after two segments, (B, L) each, differentiable; a segment without
    tokens changes nothing.
    """
    top = torch.maximum(log_sum_a, log_sum_b)
    safe = torch.where(top.isinf(), 0.0, top)
    share_a, share_b = torch.exp(log_sum_a - safe), torch.exp(log_sum_b - safe)
    total = share_a + share_b
    whole = torch.where(total > 0, total, 1.0)
    log_sum = torch.where(total > 0, safe + torch.log(whole), float("-inf"))
    return log_sum, (share_a * value_a + share_b * value_b) / whole


def _check(offsets, queries, outputs, cells, gain, keep, candidates, state) -> None:
    if cells is not None and gain is None:
        raise ValueError(
            "planted cells were given without a gain; pass gain=torch.tensor(1.0) to plant them as"
            " they are"
        )
    if keep is not None and keep < 1:
        raise ValueError(
            f"keep={keep}: inattention keeps at least 1 token; use None to attend to all"
        )
    if keep is not None and state is not None:
        raise ValueError(
            "keep with a state is not exact: the best K tokens of earlier segments are needed; use"
            " LabelDecoder.read"
        )
    if queries.shape != outputs.shape:
        raise ValueError(
            f"label_queries {tuple(queries.shape)} and label_outputs {tuple(outputs.shape)} must be"
            " one (L, D)"
        )
    if candidates is not None:
        if candidates.dim() != 2 or len(candidates) != len(offsets) - 1:
            raise ValueError(
                f"candidates {tuple(candidates.shape)} must be (B, C) with B={len(offsets) - 1}"
                " documents"
            )
        ordered = candidates.sort(1).values
        if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any() or (
            ordered >= len(queries)
        ).any():
            raise ValueError(
                f"candidates must be distinct label ids below {len(queries)} a document; pad"
                " with -1"
            )


def _cells_of_candidates(cells: Cells, offsets, candidates, num_labels: int) -> Cells:
    """The cells whose label is a candidate of their document, with its place in the list for a
    label.
    """
    document = torch.searchsorted(offsets, cells.positions, right=True) - 1
    width = candidates.shape[1]
    # ids of absent candidates lie above all labels, where no cell looks for them
    ids = torch.where(candidates < 0, num_labels, candidates)
    keys = (ids + (num_labels + 1) * torch.arange(len(ids), device=ids.device)[:, None]).ravel()
    ordered, order = keys.sort()
    wanted = cells.labels + (num_labels + 1) * document
    at = torch.searchsorted(ordered, wanted).clamp(max=max(len(ordered) - 1, 0))
    found = ordered[at] == wanted if len(ordered) else torch.zeros_like(wanted, dtype=torch.bool)
    columns = order[at[found]] % width if width else at[found]
    columns, by_column = columns.sort(stable=True)
    return Cells(cells.positions[found][by_column], columns, cells.values[found][by_column])


def _backend(name: str):
    if name == "triton":
        from plantlib.kernels import label_attention as fused

        return fused
    return label_attention_torch


class _LabelAttention(torch.autograd.Function):
    """Rows forward, gradients by recomputation backward; the same bits in every run."""

    @staticmethod
    def forward(
        ctx,
        hidden,
        offsets,
        queries,
        outputs,
        positions,
        columns,
        values,
        gain,
        keep,
        candidates,
        name,
        grades,
    ):
        cells = None if positions is None else (positions, columns, values)
        problem = Problem(hidden, offsets, queries, outputs, cells, gain, keep, candidates)
        # one document longer than two widths: (L, D) is then small beside the scores that are never
        # kept, and is needed
        # as the gradient of the outputs in any case
        single = candidates is None and len(offsets) == 2 and len(hidden) >= 2 * hidden.shape[1]
        wants_context = grades and single and ctx.needs_input_grad[3]
        with torch.autocast(hidden.device.type, enabled=False):
            options = (wants_context, grades and not wants_context) if name == "torch" else ()
            rows = _backend(name).forward(problem, *options)
        ctx.save_for_backward(
            hidden,
            offsets,
            queries,
            outputs,
            positions,
            columns,
            values,
            gain,
            candidates,
            rows.value,
            rows.top,
            rows.total,
            rows.threshold,
            rows.kept,
        )
        ctx.keep, ctx.backend, ctx.context = keep, name, rows.context
        return rows.value, rows.top + rows.total.log()

    @staticmethod
    def backward(ctx, grad_value, grad_log_sum):
        (
            hidden,
            offsets,
            queries,
            outputs,
            positions,
            columns,
            values,
            gain,
            candidates,
            *saved,
            kept,
        ) = ctx.saved_tensors
        cells = None if positions is None else (positions, columns, values)
        problem = Problem(hidden, offsets, queries, outputs, cells, gain, ctx.keep, candidates)
        # the context becomes a gradient, so a second backward pass through this node has to do
        # without
        rows, ctx.context = label_attention_torch.Rows(*saved, context=ctx.context, kept=kept), None
        with torch.autocast(hidden.device.type, enabled=False):
            wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[6])
            found = _backend(ctx.backend).backward(problem, rows, grad_value, grad_log_sum, *wanted)
        d_hidden = None if found.hidden is None else found.hidden.to(hidden.dtype)
        d_gain = None if gain is None else found.gain.to(gain.dtype)
        return (
            d_hidden,
            None,
            found.queries.to(queries.dtype),
            found.outputs.to(outputs.dtype),
            None,
            None,
            found.values,
            d_gain,
            None,
            None,
            None,
            None,
        )


@torch.compiler.disable
def planted_attention_bce(
    hidden_states,
    offsets,
    label_queries,
    label_outputs,
    rows,
    columns,
    cells=None,
    gain=None,
    keep=None,
    *,
    added,
    impl="auto",
):
    """(loss, logits (B, L)) of planted attention plus `added` (B, L) under binary cross-entropy.

    rows, columns (P,): the positive cells of (B, L). Gradients as `planted_attention`, and to
    `added` (the label bias and whatever else stands in the logit). The loss alone carries
    gradients; logits are for looking at.
    """
    if machine.implementation(impl, hidden_states) == "torch" and torch.is_grad_enabled():
        _check(offsets, label_queries, label_outputs, cells, gain, keep, None, None)
        kind = torch.promote_types(
            hidden_states.dtype, torch.promote_types(label_queries.dtype, label_outputs.dtype)
        )
        given = tuple(x.to(kind) for x in (hidden_states, label_queries, label_outputs))
        planted = cells if cells is not None and len(cells[0]) else (None, None, None)
        gain = None if planted[0] is None else gain
        return AttentionBCE.apply(
            given[0], offsets, *given[1:], *planted, gain, keep, added, rows, columns
        )
    value, _ = planted_attention(
        hidden_states, offsets, label_queries, label_outputs, cells, gain, keep, impl=impl
    )
    logits = value + added
    return sparse_bce(logits, rows, columns), logits.detach()
