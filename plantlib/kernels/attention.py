"""Planted label attention as one differentiable function (docs/method.md, "Planted attention").

`label_attention_torch` and `label_attention` (Triton) compute rows and gradients. What they share
is here: checks, autograd, the order of planted cells, candidate lists, the label bias, autocast,
and the state carried between the segments of a long document ("Long documents"). Nothing here is
larger than (B, L).
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch

from plantlib.kernels import label_attention_torch, machine, reference
from plantlib.kernels.attention_bce import AttentionBCE, sparse_bce
from plantlib.kernels.label_attention_torch import Problem


class Cells(NamedTuple):
    """Planted (token position, label) cells of a packed batch, sorted by label."""

    positions: torch.Tensor  # (M,) int64, index into the packed tokens
    labels: torch.Tensor  # (M,) int64, ascending
    values: torch.Tensor  # (M,) float, finite: G, before the gain


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

    Gradients reach all floating-point arguments, the values of the cells included, and are the same
    bits in every run.

    Args:
        hidden_states: (S, D) of the real tokens of B documents, one document after another.
        offsets: (B + 1,) int64, where each document begins.
        label_queries, label_outputs: (L, D).
        cells: planted `Cells` over (S, L), or None.
        gain: scalar tensor, the factor of the cells.
        keep: tokens attended to per document and label (inattention); None for all.
        label_bias: (L,), added to the value, which then is a logit.
        candidates: (B, C) int64, distinct label ids of each document, -1 for none. Results are
            (B, C), and a place without a candidate holds 0 and minus infinity.
        state: (log_sum_exp, value) of the tokens read before, in the shape of the results, which
            then are those of all tokens at once.
        impl: "auto", "triton", "torch" or "reference".

    Returns:
        value (B, L) and log_sum_exp (B, L), float32 at least. A document without tokens has value
        0 and log_sum_exp minus infinity.

    Raises:
        ValueError: arguments do not fit each other, or `impl` cannot run here.
    """
    _check(offsets, label_queries, label_outputs, cells, gain, keep, candidates, state)
    backend = machine.implementation(impl, hidden_states)
    if backend == "reference":
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
    # one dtype: the widest of the three, or that of autocast on a GPU
    kind = _common_dtype(hidden_states, label_queries, label_outputs)
    device = hidden_states.device.type
    if backend == "triton":
        if torch.is_autocast_enabled(device):
            kind = torch.get_autocast_dtype(device)
        if kind == torch.float64 and impl == "auto":
            backend = "torch"
    hidden, queries, outputs = (x.to(kind) for x in (hidden_states, label_queries, label_outputs))
    # labels and cells as columns of the results
    clean, absent = candidates, None
    if candidates is not None:
        absent = candidates < 0
        clean = candidates.clamp(min=0)
        if cells is not None:
            cells = _cells_of_candidates(cells, offsets, candidates, len(label_queries))
    keep = None if keep is not None and keep >= len(hidden_states) else keep
    cells, gain = _or_none(cells, gain)
    tensors = [x for x in (hidden, queries, outputs, cells[2], gain) if x is not None]
    grades = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    value, log_sum = _LabelAttention.apply(
        hidden, offsets, queries, outputs, gain, clean, keep, backend, grades, *cells
    )
    # places without a candidate, earlier tokens, bias
    if absent is not None:
        value, log_sum = value.masked_fill(absent, 0.0), log_sum.masked_fill(absent, float("-inf"))
    if state is not None:
        log_sum, value = merge(*state, log_sum, value)
    if label_bias is not None:
        bias = label_bias if clean is None else label_bias[clean].masked_fill(absent, 0.0)
        value = value + bias
    return value, log_sum


def merge(log_sum_a, value_a, log_sum_b, value_b) -> tuple[torch.Tensor, torch.Tensor]:
    """Results of two segments read one after the other (docs/method.md, "Long documents").

    All arguments are (B, L); a segment without tokens (minus infinity) changes nothing.

    Returns:
        (log_sum_exp, value) of both together, differentiable.
    """
    top = torch.maximum(log_sum_a, log_sum_b)
    safe = torch.where(top.isinf(), 0.0, top)
    share_a, share_b = torch.exp(log_sum_a - safe), torch.exp(log_sum_b - safe)
    total = share_a + share_b
    whole = torch.where(total > 0, total, 1.0)
    log_sum = torch.where(total > 0, safe + torch.log(whole), float("-inf"))
    return log_sum, (share_a * value_a + share_b * value_b) / whole


def _common_dtype(*tensors: torch.Tensor) -> torch.dtype:
    return reduce(torch.promote_types, [x.dtype for x in tensors])


def _or_none(cells, gain) -> tuple[tuple, torch.Tensor | None]:
    """Cells and gain; without any cell three times None, and None."""
    return (tuple(cells), gain) if cells is not None and len(cells[0]) else ((None,) * 3, None)


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
        repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
        if repeated.any() or (ordered >= len(queries)).any():
            raise ValueError(
                f"the candidates of a document must be distinct label ids below {len(queries)};"
                " pad with -1"
            )


def _cells_of_candidates(cells: Cells, offsets, candidates, num_labels: int) -> Cells:
    """The cells whose label is a candidate of their document, with its place as their label."""
    # (document, label) as one number; absent candidates get an id that no cell has
    document = torch.searchsorted(offsets, cells.positions, right=True) - 1
    ids = torch.where(candidates < 0, num_labels, candidates)
    keys = (ids + (num_labels + 1) * torch.arange(len(ids), device=ids.device)[:, None]).ravel()
    cell_keys = cells.labels + (num_labels + 1) * document
    # cells among the sorted candidates
    ordered, order = keys.sort()
    at = torch.searchsorted(ordered, cell_keys).clamp(max=max(len(ordered) - 1, 0))
    if len(ordered):
        listed = ordered[at] == cell_keys
    else:
        listed = torch.zeros_like(cell_keys, dtype=torch.bool)
    width = candidates.shape[1]
    columns = order[at[listed]] % width if width else at[listed]
    columns, by_column = columns.sort(stable=True)
    return Cells(cells.positions[listed][by_column], columns, cells.values[listed][by_column])


def _backend(name: str):
    if name == "triton":
        from plantlib.kernels import label_attention

        return label_attention
    return label_attention_torch


def _problem(keep, hidden, offsets, queries, outputs, gain, candidates, *cells) -> Problem:
    planted = None if cells[0] is None else cells
    return Problem(hidden, offsets, queries, outputs, planted, gain, keep, candidates)


class _LabelAttention(torch.autograd.Function):
    """Value and log_sum_exp (B, C); the backward pass recomputes, to the same bits in every run.

    cells: positions, columns and values, or three times None. grades: whether a gradient follows.
    """

    @staticmethod
    def forward(
        ctx, hidden, offsets, queries, outputs, gain, candidates, keep, backend, grades, *cells
    ):
        inputs = (hidden, offsets, queries, outputs, gain, candidates, *cells)
        problem = _problem(keep, *inputs)
        # one document of more than two widths: (L, D) is small beside the scores, which are not
        # stored, and becomes the gradient of the outputs
        single = candidates is None and len(offsets) == 2 and len(hidden) >= 2 * hidden.shape[1]
        wants_context = grades and single and ctx.needs_input_grad[3]
        options = (wants_context, grades and not wants_context) if backend == "torch" else ()
        with torch.autocast(hidden.device.type, enabled=False):
            rows = _backend(backend).forward(problem, *options)
        ctx.save_for_backward(
            *inputs, rows.value, rows.top, rows.total, rows.threshold, rows.weights
        )
        ctx.keep, ctx.backend, ctx.context = keep, backend, rows.context
        return rows.value, rows.top + rows.total.log()

    @staticmethod
    def backward(ctx, grad_value, grad_log_sum):
        *inputs, value, top, total, threshold, weights = ctx.saved_tensors
        problem = _problem(ctx.keep, *inputs)
        rows = label_attention_torch.Rows(value, top, total, threshold, ctx.context, weights)
        # the context becomes a gradient, so a second backward pass has to do without it
        ctx.context = None
        wants_hidden, wants_values = ctx.needs_input_grad[0], ctx.needs_input_grad[11]
        with torch.autocast(problem.hidden.device.type, enabled=False):
            gradients = _backend(ctx.backend).backward(
                problem, rows, grad_value, grad_log_sum, wants_hidden, wants_values
            )
        d_hidden = gradients.hidden
        return (
            None if d_hidden is None else d_hidden.to(problem.hidden.dtype),
            None,
            gradients.queries.to(problem.queries.dtype),
            gradients.outputs.to(problem.outputs.dtype),
            None if problem.gain is None else gradients.gain.to(problem.gain.dtype),
            *(None,) * 6,
            gradients.values,
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
    """Binary cross-entropy of planted attention (docs/method.md, "Training").

    Gradients reach what they reach in `planted_attention`, and `added`.

    Args:
        hidden_states, offsets, label_queries, label_outputs, cells, gain, keep, impl: as
            `planted_attention`.
        rows, columns: (P,) the positive cells of (B, L).
        added: (B, L), added to the value: the label bias and other terms of the logit.

    Returns:
        The loss, summed over labels and averaged over documents, and the logits (B, L), which
        carry no gradient.
    """
    if machine.implementation(impl, hidden_states) == "torch" and torch.is_grad_enabled():
        _check(offsets, label_queries, label_outputs, cells, gain, keep, None, None)
        kind = _common_dtype(hidden_states, label_queries, label_outputs)
        hidden, *heads = (x.to(kind) for x in (hidden_states, label_queries, label_outputs))
        cells, gain = _or_none(cells, gain)
        return AttentionBCE.apply(hidden, offsets, *heads, gain, added, keep, rows, columns, *cells)
    value, _ = planted_attention(
        hidden_states, offsets, label_queries, label_outputs, cells, gain, keep, impl=impl
    )
    logits = value + added
    return sparse_bce(logits, rows, columns), logits.detach()
