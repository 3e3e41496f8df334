"""Planted label attention in PyTorch, in blocks of labels (docs/method.md, "Planted attention").

The implementation without a GPU, and on a GPU without Triton. Packed tokens are read in chunks of
whole documents and labels in blocks, so scores and outputs live in one small workspace and no
padding is multiplied. Planted cells are added to the block that holds them. The backward pass
computes scores and outputs again, except the weights of the first labels that fit a fixed memory.
It needs two numbers per document and label: the row's largest score and its sum of exponentials,
which together lose less to rounding than their log-sum-exp. Autograd and state are in
`attention.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch


class Sizes(NamedTuple):
    """How much is read at once."""

    block: int  # labels per block
    chunk: int  # tokens per chunk
    cells: int  # scores of a block; a long document narrows it
    weights: (
        int  # weights that the forward pass leaves to the backward pass, for any number of labels
    )


# on a CPU a block must repay the packing of its product and be small beside the inputs; on a GPU it
# must take longer than a launch
SIZES = {"cpu": Sizes(1024, 512, 2**21, 2**22), "cuda": Sizes(4096, 4096, 2**24, 0)}


def sizes_of(tensor: torch.Tensor) -> Sizes:
    return SIZES["cuda" if tensor.is_cuda else "cpu"]


class Problem(NamedTuple):
    """What an implementation reads.

    A column is a label, or with candidates a place in the document's list.
    """

    hidden: torch.Tensor  # (S, D)
    offsets: torch.Tensor  # (B + 1,) int64
    queries: torch.Tensor  # (L, D)
    outputs: torch.Tensor  # (L, D)
    # positions, ascending columns, values, (M,) each
    cells: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    gain: torch.Tensor | None = None  # scalar
    keep: int | None = None  # tokens kept by inattention
    candidates: torch.Tensor | None = None  # (B, C) label ids

    @property
    def shape(self) -> tuple[int, int]:
        """(B, L) or (B, C)."""
        columns = self.queries.shape[0] if self.candidates is None else self.candidates.shape[1]
        return len(self.offsets) - 1, columns


class Rows(NamedTuple):
    """Results of the forward pass, and what else `backward` reads."""

    value: torch.Tensor  # (B, columns)
    top: torch.Tensor  # (B, columns) largest score
    total: torch.Tensor  # (B, columns) sum of exp(score - top)
    threshold: torch.Tensor | None = None  # of the Triton kernels with inattention
    context: torch.Tensor | None = None  # (L, D), see `forward`
    # (first columns, S) exp(score - top), 0 where inattention leaves a token out
    weights: torch.Tensor | None = None


class Gradients(NamedTuple):
    """Gradients of a `Problem`; those that were not requested are None, and gain without cells."""

    hidden: torch.Tensor | None
    queries: torch.Tensor
    outputs: torch.Tensor
    gain: torch.Tensor | None
    values: torch.Tensor | None = None


class Tile(NamedTuple):
    """A block of columns [low, high) over a chunk: documents [first, last), tokens [begin, end)."""

    low: int
    high: int
    first: int
    last: int
    begin: int
    end: int
    stacked: torch.Tensor  # (2 (high - low), D), queries above outputs
    labels: torch.Tensor | slice  # label ids of the columns


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums: float32 at least."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def keep_highest(scores: torch.Tensor, keep: int | None) -> None:
    """Set all but the `keep` highest of each row (block, T) to minus infinity, in place.

    The earlier place wins a tie.
    """
    if keep is None or scores.shape[1] <= keep:
        return
    threshold = scores.topk(keep, dim=1, sorted=False).values.amin(1, keepdim=True)
    below = scores < threshold
    # counting positions costs as much as the selection, and ties are rare; a GPU would have to wait
    # for the answer
    if scores.is_cuda or below.sum() != len(scores) * (scores.shape[1] - keep):
        tied = scores == threshold
        room = keep - (scores > threshold).sum(1, keepdim=True)
        below |= tied & (tied.cumsum(1) > room)
    scores.masked_fill_(below, float("-inf"))


def chunks(offsets: list[int], size: int) -> list[tuple[int, int]]:
    """Documents [first, last) of every chunk: at most `size` tokens, or a single document."""
    spans, first = [], 0
    for b in range(1, len(offsets)):
        if b == len(offsets) - 1 or offsets[b + 1] - offsets[first] > size:
            spans.append((first, b))
            first = b
    return spans


def block_of(p: Problem, edges: list[int]) -> int:
    """How many columns are read at once; `edges` are the offsets."""
    sizes = sizes_of(p.hidden)
    longest = max((b - a for a, b in pairwise(edges)), default=0)
    return min(sizes.block, max(16, sizes.cells // max(longest, 1)))


def fitting(p: Problem) -> int:
    """How many first columns, in whole blocks, leave their weights to the backward pass."""
    fit, columns = sizes_of(p.hidden).weights // max(len(p.hidden), 1), p.shape[1]
    # tested first, because a GPU, which keeps none, would have to wait for the offsets
    if not fit or fit >= columns:
        return min(fit, columns)
    return fit - fit % block_of(p, p.offsets.tolist())


def tiles(p: Problem) -> Iterator[Tile]:
    """Every tile with tokens; queries and outputs of a block are stacked once for all chunks."""
    edges, columns, kind = p.offsets.tolist(), p.shape[1], accumulator(p.hidden.dtype)
    block = block_of(p, edges)
    # with candidates the labels of the columns differ between documents
    if p.candidates is None:
        groups = [chunks(edges, sizes_of(p.hidden).chunk)]
    else:
        groups = [[(b, b + 1)] for b in range(len(edges) - 1)]
    for group in groups:
        for low in range(0, columns, block):
            high = min(low + block, columns)
            labels = slice(low, high)
            if p.candidates is not None:
                labels = p.candidates[group[0][0], labels]
            stacked = torch.cat([p.queries[labels], p.outputs[labels]]).to(kind)
            for first, last in group:
                if edges[last] > edges[first]:
                    yield Tile(low, high, first, last, edges[first], edges[last], stacked, labels)


class Workspace:
    """Scores and outputs of a tile, (2, block, chunk), in memory that all tiles share."""

    def __init__(self, p: Problem, kind: torch.dtype | None = None):
        self.problem, self.kind = p, kind or accumulator(p.hidden.dtype)
        self.memory = torch.empty(0, dtype=self.kind, device=p.hidden.device)

    # computed only where they are needed, because a GPU has to be waited for
    @cached_property
    def edges(self) -> list[int]:
        return self.problem.offsets.tolist()

    @cached_property
    def bounds(self) -> list[int] | None:
        """Where the cells of each column begin, and where those of the last one end."""
        if self.problem.cells is None:
            return None
        starts = torch.arange(self.problem.shape[1] + 1, device=self.problem.offsets.device)
        return torch.searchsorted(self.problem.cells[1], starts).tolist()

    def take(self, rows: int, tokens: int) -> torch.Tensor:
        if self.memory.numel() < rows * tokens:
            self.memory = torch.empty(rows * tokens, dtype=self.kind, device=self.memory.device)
        return self.memory[: rows * tokens].view(rows, tokens)

    def hidden(self, tile: Tile) -> torch.Tensor:
        return self.problem.hidden[tile.begin : tile.end].to(self.kind)

    def cells(self, tile: Tile):
        """The planted cells inside a tile, or None.

        Returns:
            Their index into the (block, chunk) scores, their values, their places in all cells.
        """
        if self.bounds is None or self.bounds[tile.low] == self.bounds[tile.high]:
            return None
        first, last = self.bounds[tile.low], self.bounds[tile.high]
        positions, columns, values = (x[first:last] for x in self.problem.cells)
        inside = ((positions >= tile.begin) & (positions < tile.end)).nonzero().squeeze(1)
        index = (columns[inside] - tile.low) * (tile.end - tile.begin)
        index = index + positions[inside] - tile.begin
        return index, values[inside].to(self.kind), inside + first

    def read(self, tile: Tile, known: torch.Tensor | None = None):
        """Compute a tile.

        known: (block, chunk) weights that take the place of the scores, or None.

        Returns:
            Hidden states (chunk, D), planted scores and outputs (block, chunk) in shared memory,
            and the planted cells.
        """
        h, size, cells = self.hidden(tile), tile.high - tile.low, self.cells(tile)
        both = self.take(2 * size, len(h))
        if known is None:
            torch.mm(tile.stacked, h.T, out=both)
            self.plant(both[:size], cells)
        else:
            both[:size].copy_(known)  # a copy, since a second backward pass may need them
            torch.mm(tile.stacked[size:], h.T, out=both[size:])
        return h, both[:size], both[size:], cells

    def spans(self, tile: Tile) -> Iterator[tuple[int, slice]]:
        """Each document of a tile that has tokens, and where they are in the chunk."""
        for b in range(tile.first, tile.last):
            if self.edges[b + 1] > self.edges[b]:
                yield b, slice(self.edges[b] - tile.begin, self.edges[b + 1] - tile.begin)

    def plant(self, scores: torch.Tensor, cells) -> None:
        if cells is not None:
            scores.view(-1).index_add_(0, cells[0], self.problem.gain.to(self.kind) * cells[1])


def forward(p: Problem, keep_context: bool = False, keep_weights: bool = False) -> Rows:
    """Results of every document and column.

    Args:
        p: what to read.
        keep_context: for a single document and all labels, return sum_t exp(score - top) H_t
            (L, D) as well. Up to a factor per label it is the gradient of the outputs, so
            `backward` saves one product of eight.
        keep_weights: return the weights of as many first columns as `Sizes.weights` allows. Callers
            request one of the two: together they take too much memory.

    Returns:
        Rows; a document without tokens has value 0, top minus infinity, total 0.
    """
    space, kind = Workspace(p), accumulator(p.hidden.dtype)
    value, total = (p.hidden.new_zeros(p.shape, dtype=kind) for _ in range(2))
    top = p.hidden.new_full(p.shape, float("-inf"), dtype=kind)
    context = p.outputs.new_empty(p.outputs.shape, dtype=kind) if keep_context else None
    saved = p.hidden.new_empty((fitting(p) if keep_weights else 0, len(p.hidden)), dtype=kind)
    for tile in tiles(p):
        # scores and outputs; with a context the outputs follow from it
        h, size = space.hidden(tile), tile.high - tile.low
        both = space.take(2 * size, len(h))
        needed = both if context is None else both[:size]
        scores = torch.mm(tile.stacked[: len(needed)], h.T, out=needed)[:size]
        read = both[size:]
        space.plant(scores, space.cells(tile))
        # softmax of each document
        columns = slice(tile.low, tile.high)
        for b, span in space.spans(tile):
            weights = scores[:, span]
            keep_highest(weights, p.keep)
            highest = torch.amax(weights, 1, out=top[b, columns])
            sums = torch.sum(exp_(weights, highest), 1, out=total[b, columns])
            if tile.high <= len(saved):
                saved[columns, tile.begin : tile.end][:, span] = weights
            if context is None:
                read_sum = read[:, span].mul_(weights).sum(1)
            else:
                weighted = torch.mm(weights, h, out=context[columns])
                read_sum = weighted.mul(tile.stacked[size:]).sum(1)
            torch.div(read_sum, safe(sums), out=value[b, columns])
    return Rows(value, top, total, context=context, weights=saved if len(saved) else None)


def backward(
    p: Problem,
    rows: Rows,
    grad_value,
    grad_log_sum,
    wants_hidden: bool = True,
    wants_values: bool = False,
) -> Gradients:
    """Gradients by recomputation.

    With weights p, upstream g and outputs v of a tile, dv = g p and ds = p (g (v - value) + g_lse).

    Args:
        p: what the forward pass read.
        rows: its results. The memory of a context becomes the gradient of the outputs.
        grad_value, grad_log_sum: (B, columns) upstream gradients g and g_lse.
        wants_hidden, wants_values: whether hidden states and cell values get a gradient.
    """
    space, kind = Workspace(p), accumulator(p.hidden.dtype)
    scale = 1.0 / safe(rows.total)
    g = grad_value.to(kind) * scale
    shift = grad_log_sum.to(kind) * scale - g * rows.value
    d_hidden = torch.zeros_like(p.hidden, dtype=kind) if wants_hidden else None
    d_queries = torch.zeros_like(p.queries, dtype=kind)
    if rows.context is None:
        d_outputs = torch.zeros_like(p.outputs, dtype=kind)
    else:
        d_outputs = rows.context.mul_(g.T)
    d_gain = zero_gain(p)
    d_values = torch.zeros_like(p.cells[2]) if wants_values else None
    for tile in tiles(p):
        # scores or saved weights, and outputs
        columns, size = slice(tile.low, tile.high), tile.high - tile.low
        has_weights = rows.weights is not None and tile.high <= len(rows.weights)
        weights = rows.weights[columns, tile.begin : tile.end] if has_weights else None
        h, scores, read, cells = space.read(tile, weights)
        # turn scores into dv and outputs into ds, document by document
        for b, span in space.spans(tile):
            weights, reads = scores[:, span], read[:, span]
            if not has_weights:
                keep_highest(weights, p.keep)
                exp_(weights, rows.top[b, columns])
            upstream = g[b, columns, None]
            torch.addcmul(shift[b, columns, None], reads, upstream, out=reads).mul_(weights)  # ds
            weights.mul_(upstream)  # dv
        # products with hidden states, queries and outputs
        _add(d_queries, tile.labels, read, h)
        if rows.context is None:
            _add(d_outputs, tile.labels, scores, h)
        if d_hidden is not None:
            part = d_hidden[tile.begin : tile.end]
            part.addmm_(read.T, tile.stacked[:size]).addmm_(scores.T, tile.stacked[size:])
        if cells is not None:
            d_gain += grade_cells(p, read, cells, d_values)
    return Gradients(d_hidden, d_queries, d_outputs, d_gain, d_values)


def zero_gain(p: Problem) -> torch.Tensor | None:
    """The beginning of the sum that is the gradient of the gain; None without cells."""
    if p.cells is None:
        return None
    return torch.zeros((), dtype=torch.float64, device=p.hidden.device)


def grade_cells(p: Problem, ds: torch.Tensor, cells, d_values: torch.Tensor | None) -> torch.Tensor:
    """Gradients of the planted cells of a tile.

    Args:
        p: what the forward pass read.
        ds: (block, chunk) gradients of the scores.
        cells: as `Workspace.cells` gives them.
        d_values: (M,) gradient of the cell values to fill in, or None.

    Returns:
        The tile's part of the gradient of the gain.
    """
    of_cells = ds.reshape(-1)[cells[0]]
    of_cells = of_cells.to(accumulator(of_cells.dtype))
    if d_values is not None:
        d_values[cells[2]] = (p.gain.to(of_cells.dtype) * of_cells).to(d_values.dtype)
    return (of_cells * cells[1]).sum(dtype=torch.float64)


def exp_(scores: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    """exp(scores - top) of (block, T) and (block,), in place; 0 in a row of minus infinity."""
    return scores.sub_(top.masked_fill(top == float("-inf"), 0.0)[:, None]).exp_()


def safe(sums: torch.Tensor) -> torch.Tensor:
    """Denominators: 1 where the sum is 0."""
    return sums.masked_fill(sums == 0, 1.0)


def _add(total: torch.Tensor, labels: torch.Tensor | slice, left, right) -> None:
    """total[labels] += left @ right."""
    if isinstance(labels, slice):
        total[labels].addmm_(left, right)
    else:
        total.index_add_(0, labels, left @ right)
