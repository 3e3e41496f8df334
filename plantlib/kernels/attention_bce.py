"""Planted label attention and binary cross-entropy in one pass over the tokens, forward and
backward together.

A backward pass by recomputation multiplies H by all queries and outputs a second time, because only
the loss knows the gradient of a logit. Where the loss is binary cross-entropy that gradient is
known as soon as a document's block of labels has been read, so gradients are taken from the tile
while it is there: six products instead of eight, four instead of six where hidden states are
frozen, one exponential a score instead of two. Held until the backward pass are the gradients
themselves. PyTorch on any device; other implementations compose `attend` with the loss.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from plantlib.kernels import label_attention_torch
from plantlib.kernels.label_attention_torch import Problem

ABSENT = -1e4  # softplus and sigmoid of it are exactly 0, in half precision too


def sparse_bce(logits: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of logits (B, L), positive in the cells (rows, columns) (P,): summed
    over labels, mean over B.
    """
    # -ln(1 - sigma(x)) = softplus(x) everywhere; a positive cell wants softplus(-x) = softplus(x) -
    # x instead
    return (functional.softplus(logits).sum() - logits[rows, columns].sum()) / max(len(logits), 1)


def left_out(logits: torch.Tensor, still: torch.Tensor | None) -> torch.Tensor:
    """logits (..., L), or what is added to them, with the labels `still` (U,) so low that loss and
    gradient are 0 there.
    """
    return logits if still is None else logits.index_fill(-1, still.to(logits.device), ABSENT)


def positives(shape: tuple[int, int], rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(B, L) bool, a byte a cell."""
    found = torch.zeros(shape, dtype=torch.bool, device=rows.device)
    found[rows, columns] = True
    return found


class AttentionBCE(torch.autograd.Function):
    """(loss, logits (B, L)); gradients reach hidden, queries, outputs, cell values, gain and
    `added`; logits carry none.
    """

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
        added,
        rows,
        labels,
    ):
        cells = None if positions is None else (positions, columns, values)
        problem = Problem(hidden, offsets, queries, outputs, cells, gain, keep)
        with torch.autocast(hidden.device.type, enabled=False):
            positive = positives(problem.shape, rows, labels)
            logits, found = read_and_grade(
                problem, added, positive, ctx.needs_input_grad[0], ctx.needs_input_grad[6]
            )
            loss, d_added = sparse_bce(logits, rows, labels), grade(logits, positive, len(logits))
        kinds = [x.dtype for x in (hidden, queries, outputs)]
        gradients = [
            None if g is None else g.to(kind) for g, kind in zip(found[:3], kinds, strict=True)
        ]
        ctx.gradients = [*gradients, found.gain, d_added, found.values]
        ctx.mark_non_differentiable(logits)
        ctx.gain_dtype, ctx.added_dtype = None if gain is None else gain.dtype, added.dtype
        return loss, logits

    @staticmethod
    def backward(ctx, upstream, _):
        if ctx.gradients is None:
            raise RuntimeError(
                "this loss has handed its gradients out; call attend_bce again for a second"
                " backward pass"
            )
        # in place: a second copy of what is as large as the parameters would be all the memory that
        # is used
        scaled = [None if g is None else g.mul_(upstream) for g in ctx.gradients]
        d_hidden, d_queries, d_outputs, d_gain, d_added, d_values = scaled
        ctx.gradients = None
        d_gain = None if d_gain is None else d_gain.to(ctx.gain_dtype)
        d_added = d_added.to(ctx.added_dtype)
        return (
            d_hidden,
            None,
            d_queries,
            d_outputs,
            None,
            None,
            d_values,
            d_gain,
            None,
            d_added,
            None,
            None,
        )


def grade(logits: torch.Tensor, positive: torch.Tensor, batch: int) -> torch.Tensor:
    """d loss / d logits of any shape: (sigma(logit) - 1[positive]) / B."""
    return (logits.sigmoid() - positive.to(logits.dtype)) / max(batch, 1)


def read_and_grade(
    p: Problem, added, positive, wants_hidden: bool, wants_values: bool = False
) -> tuple[torch.Tensor, label_attention_torch.Gradients]:
    """Logits (B, L) = value + added, and the gradients of the loss, tile by tile; arguments as
    `AttentionBCE`.
    """
    space, kind = (
        label_attention_torch.Workspace(p),
        label_attention_torch.accumulator(p.hidden.dtype),
    )
    logits = added.detach().to(kind).clone()
    d_hidden = torch.zeros_like(p.hidden, dtype=kind) if wants_hidden else None
    d_queries, d_outputs = (torch.zeros_like(x, dtype=kind) for x in (p.queries, p.outputs))
    d_gain = (
        None if p.cells is None else torch.zeros((), dtype=torch.float64, device=p.hidden.device)
    )
    d_values = torch.zeros_like(p.cells[2]) if wants_values else None
    for tile in label_attention_torch.tiles(p):
        (h, scores, read, cells), size = space.read(tile), tile.high - tile.low
        columns = slice(tile.low, tile.high)
        for b, span in space.spans(tile):
            _grade_document(
                scores[:, span],
                read[:, span],
                p.keep,
                logits[b, columns],
                positive[b, columns],
                len(logits),
            )
        # scores now hold dv and outputs hold ds
        d_queries[columns].addmm_(read, h)
        d_outputs[columns].addmm_(scores, h)
        if d_hidden is not None:
            d_hidden[tile.begin : tile.end].addmm_(read.T, tile.stacked[:size]).addmm_(
                scores.T, tile.stacked[size:]
            )
        if cells is not None:
            d_gain += label_attention_torch.grade_cells(p, read, cells, d_values)
    return logits, label_attention_torch.Gradients(d_hidden, d_queries, d_outputs, d_gain, d_values)


def _grade_document(scores, reads, keep, logits, positive, batch: int) -> None:
    """Finish a document's logits (block,) and turn its scores and outputs (block, T) into dv and
    ds, in place.
    """
    label_attention_torch.keep_highest(scores, keep)
    label_attention_torch.exp_(scores, scores.amax(1))
    total = label_attention_torch.safe(scores.sum(1))
    value = (scores * reads).sum(1).div_(total)
    logits += value
    g = (grade(logits, positive, batch) / total)[:, None]
    torch.addcmul(-g * value[:, None], reads, g, out=reads).mul_(scores)
    scores.mul_(g)
