"""Planted label attention in blocks of labels: O(B L) output, memory of one block, gradients by recomputation.

Realises METHOD.md section 4 on any torch device. Packed tokens are read in chunks of whole documents and labels in blocks,
so scores and outputs are small (block, chunk) matrices that stay in the cache and no padding is multiplied; they are built
again in the backward pass. Planted cells are added to the block where they fall: a dense (B, T, L) gather never exists.
Saved for the backward pass: two scalars a (document, label), log_sum_exp and value.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

BLOCK = 256  # labels a block
CHUNK = 512  # tokens a chunk, at least one document: the (256, 512) float32 scores are half a MiB


class Cells(NamedTuple):
    """Planted (token position, label) cells of a packed batch, sorted by label. `values` are G, before the gain."""

    positions: torch.Tensor  # (M,) int64, index into the packed tokens
    labels: torch.Tensor  # (M,) int64, ascending
    values: torch.Tensor  # (M,) float


def label_attention(hidden_states, offsets, label_queries, label_outputs, cells=None, gain=None, keep=None):
    """Value (B, L) and log_sum_exp (B, L) of packed documents; see `kernels.reference.label_attention`.

    hidden_states (S, D), offsets (B+1) int64, label_queries (L, D), label_outputs (L, D), cells over (S, L),
    gain a scalar tensor, keep the number of tokens attended to a (document, label) or None for all.
    """
    if cells is not None and gain is None:
        raise ValueError(
            "planted cells were given without a gain; pass gain=torch.tensor(1.0) to plant them as they are"
        )
    if keep is not None and keep < 1:
        raise ValueError(f"keep={keep}: inattention keeps at least 1 token; use None to attend to all")
    positions, labels, values = cells if cells is not None else (None, None, None)
    return _LabelAttention.apply(
        hidden_states, offsets, label_queries, label_outputs, positions, labels, values, gain, keep
    )


def _kept(scores: torch.Tensor, keep: int | None) -> None:
    """Set all but the `keep` highest of each row (block, T) to minus infinity, in place; ties by position."""
    if keep is None or scores.shape[1] <= keep:
        return
    threshold = scores.topk(keep, dim=1).values[:, -1:]
    above = scores > threshold
    tied = scores == threshold
    room = keep - above.sum(1, keepdim=True)
    scores.masked_fill_(~(above | (tied & (tied.cumsum(1) <= room))), float("-inf"))


def _chunks(offsets: torch.Tensor) -> list[tuple[int, int]]:
    """(first, last) documents of every chunk: neighbours of at most CHUNK tokens together, at least one document."""
    edges, chunks, first = offsets.tolist(), [], 0
    for b in range(1, len(edges)):
        if b == len(edges) - 1 or edges[b + 1] - edges[first] > CHUNK:
            chunks.append((first, b))
            first = b
    return chunks


def _chunk_cells(cells, begin: int, end: int, num_labels: int):
    """The cells of tokens [begin, end), positions counted from begin, with the bounds of every block of labels."""
    if cells is None:
        return None, None
    positions, labels, values = cells
    inside = (positions >= begin) & (positions < end)
    positions, labels, values = positions[inside] - begin, labels[inside], values[inside]
    starts = torch.arange(0, num_labels + BLOCK, BLOCK, device=labels.device).clamp(max=num_labels)
    return (positions, labels, values), torch.searchsorted(labels, starts).tolist()


def _block_scores(hidden, queries, cells, bounds, gain, block: int) -> torch.Tensor:
    """Scores (labels of the block, chunk), planted cells included."""
    scores = queries @ hidden.T
    if cells is not None and bounds[block + 1] > bounds[block]:
        positions, labels, values = (x[bounds[block] : bounds[block + 1]] for x in cells)
        index = (labels - block * BLOCK) * hidden.shape[0] + positions
        scores.view(-1).index_add_(0, index, (gain * values).to(scores.dtype))
    return scores


class _LabelAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, offsets, queries, outputs, positions, labels, values, gain, keep):
        cells = None if positions is None else (positions, labels, values)
        edges, num_labels = offsets.tolist(), queries.shape[0]
        value = hidden.new_zeros(len(edges) - 1, num_labels)
        log_sum = hidden.new_full((len(edges) - 1, num_labels), float("-inf"))
        for first, last in _chunks(offsets):
            start = edges[first]
            h = hidden[start : edges[last]]
            near, bounds = _chunk_cells(cells, start, edges[last], num_labels)
            for block, low in enumerate(range(0, num_labels, BLOCK)):
                part = slice(low, low + BLOCK)
                scores = _block_scores(h, queries[part], near, bounds, gain, block)
                read = outputs[part] @ h.T  # (block, chunk)
                for b in range(first, last):
                    span = slice(edges[b] - start, edges[b + 1] - start)
                    if edges[b + 1] > edges[b]:
                        _read_document(scores[:, span], read[:, span], keep, value[b, part], log_sum[b, part])
        ctx.save_for_backward(hidden, offsets, queries, outputs, positions, labels, values, gain, value, log_sum)
        ctx.keep = keep
        return value, log_sum

    @staticmethod
    def backward(ctx, grad_value, grad_log_sum):
        hidden, offsets, queries, outputs, positions, labels, values, gain, value, log_sum = ctx.saved_tensors
        cells = None if positions is None else (positions, labels, values)
        edges, num_labels = offsets.tolist(), queries.shape[0]
        needs_hidden, needs_gain = ctx.needs_input_grad[0], gain is not None and ctx.needs_input_grad[7]
        d_hidden = torch.zeros_like(hidden) if needs_hidden else None
        d_queries, d_outputs = torch.zeros_like(queries), torch.zeros_like(outputs)
        d_gain = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for first, last in _chunks(offsets):
            start = edges[first]
            h = hidden[start : edges[last]]
            near, bounds = _chunk_cells(cells, start, edges[last], num_labels)
            for block, low in enumerate(range(0, num_labels, BLOCK)):
                part = slice(low, low + BLOCK)
                ds = _block_scores(h, queries[part], near, bounds, gain, block)
                dv = outputs[part] @ h.T
                for b in range(first, last):
                    span = slice(edges[b] - start, edges[b + 1] - start)
                    if edges[b + 1] > edges[b]:
                        _document_gradients(
                            ds[:, span], dv[:, span], ctx.keep, value[b, part, None], log_sum[b, part, None],
                            grad_value[b, part, None], grad_log_sum[b, part, None],
                        )  # fmt: skip
                d_queries[part].addmm_(ds, h)
                d_outputs[part].addmm_(dv, h)
                if needs_hidden:
                    d_hidden[start : edges[last]].addmm_(ds.T, queries[part]).addmm_(dv.T, outputs[part])
                if needs_gain and near is not None:
                    at, label, planted = (x[bounds[block] : bounds[block + 1]] for x in near)
                    d_gain += (ds[label - low, at] * planted).sum(dtype=torch.float64)
        return (
            d_hidden,
            None,
            d_queries,
            d_outputs,
            None,
            None,
            None,
            d_gain.to(gain.dtype) if needs_gain else None,
            None,
        )


def _read_document(scores, read, keep, value, log_sum) -> None:
    """Write value (block,) and log_sum (block,) of one document's scores and outputs (block, T); scores are used up."""
    _kept(scores, keep)
    top = scores.amax(1)
    weights = scores.sub_(top[:, None]).exp_()
    total = weights.sum(1)
    torch.add(top, total.log(), out=log_sum)
    torch.div(weights.mul_(read).sum(1), total, out=value)


def _document_gradients(scores, read, keep, value, log_sum, grad_value, grad_log_sum) -> None:
    """Turn a document's scores and outputs (block, T) into their gradients, in place.

    p = exp(s - lse); dv = g p; ds = p (g (v - value) + g_lse).
    """
    _kept(scores, keep)
    weights = scores.sub_(log_sum).exp_()
    # the rounding of lse is common to all tokens of a row: dividing by the sum takes it out again
    weights.div_(weights.sum(1, keepdim=True))
    centred = (read - value).mul_(grad_value).add_(grad_log_sum)
    torch.mul(weights, grad_value, out=read)
    scores.mul_(centred)
