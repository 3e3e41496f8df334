"""Planted label attention and binary cross-entropy in one pass (docs/method.md, "Training").

A backward pass by recomputation multiplies H by all queries and outputs a second time, because only
the loss knows the gradient of a logit. With binary cross-entropy that gradient is known as soon as
a document's block of labels has been read, so the gradients are computed while the tile is there:
six products instead of eight, or four instead of six with frozen hidden states, and one exponential
per score instead of two. The gradients are held until the backward pass. PyTorch on any device;
other implementations compose `attend` with the loss.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from plantlib.kernels import label_attention_torch
from plantlib.kernels.label_attention_torch import Problem

ABSENT = -1e4  # softplus and sigmoid of it are exactly 0, in half precision too


def sparse_bce(logits: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy, summed over labels and averaged over documents.

    Args:
        logits: (B, L).
        rows, columns: (P,) the positive cells.
    """
    # -ln(1 - sigma(x)) = softplus(x) in every cell; a positive one has softplus(-x) =
    # softplus(x) - x
    return (functional.softplus(logits).sum() - logits[rows, columns].sum()) / max(len(logits), 1)


def left_out(logits: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    """Lower the logits of some labels so far that their loss and gradient are 0.

    Args:
        logits: (..., L), or what is added to them.
        labels: (U,) label ids, or None.
    """
    return logits if labels is None else logits.index_fill(-1, labels.to(logits.device), ABSENT)


def positives(shape: tuple[int, int], rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(B, L) bool mask of the cells rows, columns (P,)."""
    mask = torch.zeros(shape, dtype=torch.bool, device=rows.device)
    mask[rows, columns] = True
    return mask


class AttentionBCE(torch.autograd.Function):
    """Loss and logits (B, L); the loss carries gradients, the logits none.

    cells: positions, columns and values, or three times None. rows, labels: positive cells (P,).
    """

    @staticmethod
    def forward(ctx, hidden, offsets, queries, outputs, gain, added, keep, rows, labels, *cells):
        planted = None if cells[0] is None else cells
        problem = Problem(hidden, offsets, queries, outputs, planted, gain, keep)
        wants_hidden, wants_values = ctx.needs_input_grad[0], ctx.needs_input_grad[11]
        with torch.autocast(hidden.device.type, enabled=False):
            positive = positives(problem.shape, rows, labels)
            logits, gradients = read_and_grade(problem, added, positive, wants_hidden, wants_values)
            loss = sparse_bce(logits, rows, labels)
            d_added = grade(logits, positive, len(logits))
        pairs = zip(gradients[:3], (hidden, queries, outputs), strict=True)
        heads = [None if g is None else g.to(x.dtype) for g, x in pairs]
        ctx.gradients = [*heads, gradients.gain, d_added, gradients.values]
        ctx.mark_non_differentiable(logits)
        ctx.gain_dtype = None if gain is None else gain.dtype
        ctx.added_dtype = added.dtype
        return loss, logits

    @staticmethod
    def backward(ctx, upstream, _):
        if ctx.gradients is None:
            raise RuntimeError(
                "this loss has handed its gradients out; call attend_bce again for a second"
                " backward pass"
            )
        # in place: a second copy of the gradients would double the memory
        scaled = [None if g is None else g.mul_(upstream) for g in ctx.gradients]
        d_hidden, d_queries, d_outputs, d_gain, d_added, d_values = scaled
        ctx.gradients = None
        d_gain = None if d_gain is None else d_gain.to(ctx.gain_dtype)
        d_added = d_added.to(ctx.added_dtype)
        return d_hidden, None, d_queries, d_outputs, d_gain, d_added, *(None,) * 5, d_values


def grade(logits: torch.Tensor, positive: torch.Tensor, batch: int) -> torch.Tensor:
    """d loss / d logits = (sigma(logit) - 1[positive]) / batch, for tensors of any shape."""
    return (logits.sigmoid() - positive.to(logits.dtype)) / max(batch, 1)


def read_and_grade(
    p: Problem, added, positive, wants_hidden: bool, wants_values: bool = False
) -> tuple[torch.Tensor, label_attention_torch.Gradients]:
    """Read all tiles once and compute logits and gradients on the way.

    Args:
        p: the documents, labels and planted cells.
        added: (B, L), added to the value.
        positive: (B, L) bool, positive cells.
        wants_hidden, wants_values: whether hidden states and cell values get a gradient.

    Returns:
        The logits (B, L) and the gradients of the loss.
    """
    space = label_attention_torch.Workspace(p)
    kind = label_attention_torch.accumulator(p.hidden.dtype)
    logits = added.detach().to(kind).clone()
    d_hidden = torch.zeros_like(p.hidden, dtype=kind) if wants_hidden else None
    d_queries, d_outputs = (torch.zeros_like(x, dtype=kind) for x in (p.queries, p.outputs))
    d_gain = label_attention_torch.zero_gain(p)
    d_values = torch.zeros_like(p.cells[2]) if wants_values else None
    for tile in label_attention_torch.tiles(p):
        # finish the logits of each document and turn scores into dv, outputs into ds
        h, scores, read, cells = space.read(tile)
        size, columns = tile.high - tile.low, slice(tile.low, tile.high)
        for b, span in space.spans(tile):
            logit, target = logits[b, columns], positive[b, columns]
            _grade_document(scores[:, span], read[:, span], p.keep, logit, target, len(logits))
        # products with hidden states, queries and outputs
        d_queries[columns].addmm_(read, h)
        d_outputs[columns].addmm_(scores, h)
        if d_hidden is not None:
            part = d_hidden[tile.begin : tile.end]
            part.addmm_(read.T, tile.stacked[:size]).addmm_(scores.T, tile.stacked[size:])
        if cells is not None:
            d_gain += label_attention_torch.grade_cells(p, read, cells, d_values)
    return logits, label_attention_torch.Gradients(d_hidden, d_queries, d_outputs, d_gain, d_values)


def _grade_document(scores, reads, keep, logits, positive, batch: int) -> None:
    """Finish a document's logits (block,); turn scores and outputs (block, T) into dv and ds.

    All in place.
    """
    label_attention_torch.keep_highest(scores, keep)
    label_attention_torch.exp_(scores, scores.amax(1))
    total = label_attention_torch.safe(scores.sum(1))
    value = (scores * reads).sum(1).div_(total)
    logits += value
    g = (grade(logits, positive, batch) / total)[:, None]
    torch.addcmul(-g * value[:, None], reads, g, out=reads).mul_(scores)
    scores.mul_(g)
