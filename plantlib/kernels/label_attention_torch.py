"""Planted label attention in PyTorch on any device: blocks of labels, memory of one block,
gradients by recomputation.

Realises METHOD.md section 4 where there is no GPU, and the fallback where there is no Triton.
Packed tokens are read in chunks of whole documents and labels in blocks, so scores and outputs live
in one small workspace and no padding is multiplied; the backward pass builds them again, but for
the weights of the first labels that fit a fixed memory. Planted cells are added to the block where
they fall. Saved for the backward pass are two numbers a (document, label): the row's largest score
and its sum of exponentials, which together lose less to rounding than their log-sum-exp. It knows
nothing of autograd and state: `attention.py` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch


class Sizes(NamedTuple):
    """How much is read at once: labels a block, tokens a chunk, scores of a block (a long document
    narrows it).

    kept: how many weights the forward pass leaves to the backward pass, whatever the number of
    labels.
    """

    block: int
    chunk: int
    cells: int
    kept: int


# on a CPU a block is worth the packing of its product and small beside the inputs; on a GPU it
# outlasts a launch
SIZES = {"cpu": Sizes(1024, 512, 2**21, 2**22), "cuda": Sizes(4096, 4096, 2**24, 0)}


def sizes_of(tensor: torch.Tensor) -> Sizes:
    return SIZES["cuda" if tensor.is_cuda else "cpu"]


class Problem(NamedTuple):
    """What an implementation reads.

    hidden (S, D), offsets (B+1) int64, queries and outputs (L, D), cells (positions, columns,
    values) with columns ascending or None, gain scalar, keep K or None, candidates (B, C) label ids
    or None for all labels. A column is a label, or with candidates the place in its document's
    list.
    """

    hidden: torch.Tensor
    offsets: torch.Tensor
    queries: torch.Tensor
    outputs: torch.Tensor
    cells: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    gain: torch.Tensor | None = None
    keep: int | None = None
    candidates: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(B, L) or (B, C)."""
        columns = self.queries.shape[0] if self.candidates is None else self.candidates.shape[1]
        return len(self.offsets) - 1, columns


class Rows(NamedTuple):
    """Results a (document, column): value, largest score, sum of exp(score - largest); what else
    `backward` wants.

    kept (columns, S): exp(score - largest) of the first columns, 0 where inattention leaves a token
    out.
    """

    value: torch.Tensor
    top: torch.Tensor
    total: torch.Tensor
    threshold: torch.Tensor | None = None
    context: torch.Tensor | None = None
    kept: torch.Tensor | None = None


class Gradients(NamedTuple):
    """Of hidden (None unless wanted), queries, outputs, the gain (None without cells), cells'
    values (None unless wanted).
    """

    hidden: torch.Tensor | None
    queries: torch.Tensor
    outputs: torch.Tensor
    gain: torch.Tensor | None
    values: torch.Tensor | None = None


class Tile(NamedTuple):
    """A block of columns met by a chunk of documents: labels [low, high), tokens [begin, end),
    stacked Q and W.
    """

    low: int
    high: int
    first: int
    last: int
    begin: int
    end: int
    stacked: torch.Tensor  # (2 (high - low), D)
    labels: torch.Tensor | slice


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Sums are kept in float32 at least."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def keep_highest(scores: torch.Tensor, keep: int | None) -> None:
    """Set all but the `keep` highest of each row (block, T) to minus infinity, in place; ties by
    position.
    """
    if keep is None or scores.shape[1] <= keep:
        return
    threshold = scores.topk(keep, dim=1, sorted=False).values.amin(1, keepdim=True)
    below = scores < threshold
    # counting positions costs as much as the selection, and ties are rare; a GPU would wait for the
    # answer
    if scores.is_cuda or below.sum() != len(scores) * (scores.shape[1] - keep):
        tied = scores == threshold
        room = keep - (scores > threshold).sum(1, keepdim=True)
        below |= tied & (tied.cumsum(1) > room)
    scores.masked_fill_(below, float("-inf"))


def chunks(offsets: list[int], size: int) -> list[tuple[int, int]]:
    """(first, last) documents of every chunk: neighbours of at most `size` tokens together, at
    least one document.
    """
    found, first = [], 0
    for b in range(1, len(offsets)):
        if b == len(offsets) - 1 or offsets[b + 1] - offsets[first] > size:
            found.append((first, b))
            first = b
    return found


def block_of(p: Problem, edges: list[int]) -> int:
    """How many columns are read at once."""
    sizes, longest = sizes_of(p.hidden), max((b - a for a, b in pairwise(edges)), default=0)
    return min(sizes.block, max(16, sizes.cells // max(longest, 1)))


def fitting(p: Problem) -> int:
    """How many columns, in whole blocks, the weights left to the backward pass are of."""
    fit, columns = sizes_of(p.hidden).kept // max(len(p.hidden), 1), p.shape[1]
    # asked first: on a GPU, where nothing is kept, the offsets are waited for
    if not fit or fit >= columns:
        return min(fit, columns)
    return fit - fit % block_of(p, p.offsets.tolist())


def tiles(p: Problem) -> Iterator[Tile]:
    """Every tile with tokens in it; queries and outputs of a block are stacked once for all its
    chunks.
    """
    edges, columns, kind = p.offsets.tolist(), p.shape[1], accumulator(p.hidden.dtype)
    sizes, block = sizes_of(p.hidden), block_of(p, edges)
    groups = (
        [chunks(edges, sizes.chunk)]
        if p.candidates is None
        else [[(b, b + 1)] for b in range(len(edges) - 1)]
    )
    for group in groups:
        for low in range(0, columns, block):
            high = min(low + block, columns)
            labels = (
                slice(low, high) if p.candidates is None else p.candidates[group[0][0], low:high]
            )
            stacked = torch.cat([p.queries[labels], p.outputs[labels]]).to(kind)
            for first, last in group:
                if edges[last] > edges[first]:
                    yield Tile(low, high, first, last, edges[first], edges[last], stacked, labels)


class Workspace:
    """Scores and outputs of a tile, (2, block, chunk), in memory that all tiles share."""

    def __init__(self, p: Problem, kind: torch.dtype | None = None):
        self.problem, self.kind = p, kind or accumulator(p.hidden.dtype)
        self.memory = torch.empty(0, dtype=self.kind, device=p.hidden.device)

    # asked for where they are needed alone: on a GPU the answer waits
    @cached_property
    def edges(self) -> list[int]:
        return self.problem.offsets.tolist()

    @cached_property
    def bounds(self) -> list[int] | None:
        """Where each column's cells begin, and where the last one's end."""
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
        """(index into the (block, chunk) scores, G, place among all cells) of the planted cells
        inside a tile, or None.
        """
        if self.bounds is None or self.bounds[tile.low] == self.bounds[tile.high]:
            return None
        positions, columns, values = (
            x[self.bounds[tile.low] : self.bounds[tile.high]] for x in self.problem.cells
        )
        inside = ((positions >= tile.begin) & (positions < tile.end)).nonzero().squeeze(1)
        index = (
            (columns[inside] - tile.low) * (tile.end - tile.begin) + positions[inside] - tile.begin
        )
        return index, values[inside].to(self.kind), inside + self.bounds[tile.low]

    def read(self, tile: Tile, known: torch.Tensor | None = None):
        """Hidden states (chunk, D), planted scores and outputs (block, chunk) in shared memory, and
        the planted cells.

        known (block, chunk): weights that stand for the scores.
        """
        h, size, cells = self.hidden(tile), tile.high - tile.low, self.cells(tile)
        both = self.take(2 * size, len(h))
        if known is None:
            torch.mm(tile.stacked, h.T, out=both)
            self.plant(both[:size], cells)
        else:
            both[:size].copy_(known)  # a copy, since what is kept may be asked for twice
            torch.mm(tile.stacked[size:], h.T, out=both[size:])
        return h, both[:size], both[size:], cells

    def spans(self, tile: Tile) -> Iterator[tuple[int, slice]]:
        for b in range(tile.first, tile.last):
            if self.edges[b + 1] > self.edges[b]:
                yield b, slice(self.edges[b] - tile.begin, self.edges[b + 1] - tile.begin)

    def plant(self, scores: torch.Tensor, cells) -> None:
        if cells is not None:
            scores.view(-1).index_add_(0, cells[0], self.problem.gain.to(self.kind) * cells[1])


def forward(p: Problem, keep_context: bool = False, keep_weights: bool = False) -> Rows:
    """Rows of every (document, column); documents without tokens have value 0, top minus infinity,
    total 0.

    keep_context, for a single document and all labels: sum_t exp(score - top) H_t, (L, D), comes
    with the rows. Up to a factor a label it is the gradient of the outputs; `backward` turns it
    into that and saves one product in eight. keep_weights: those of the first columns come with the
    rows, as many as `Sizes.kept` allows. The two together would be more memory than a long
    document's scores are worth.
    """
    space, kind = Workspace(p), accumulator(p.hidden.dtype)
    value, total = (p.hidden.new_zeros(p.shape, dtype=kind) for _ in range(2))
    top = p.hidden.new_full(p.shape, float("-inf"), dtype=kind)
    context = p.outputs.new_empty(p.outputs.shape, dtype=kind) if keep_context else None
    kept = p.hidden.new_empty((fitting(p) if keep_weights else 0, len(p.hidden)), dtype=kind)
    for tile in tiles(p):
        h, size = space.hidden(tile), tile.high - tile.low
        both = space.take(2 * size, len(h))
        needed = both if context is None else both[:size]
        scores, read = torch.mm(tile.stacked[: len(needed)], h.T, out=needed)[:size], both[size:]
        space.plant(scores, space.cells(tile))
        columns = slice(tile.low, tile.high)
        for b, span in space.spans(tile):
            weights = scores[:, span]
            keep_highest(weights, p.keep)
            highest = torch.amax(weights, 1, out=top[b, columns])
            sums = torch.sum(exp_(weights, highest), 1, out=total[b, columns])
            if tile.high <= len(kept):
                kept[columns, tile.begin : tile.end][:, span] = weights
            if context is None:
                found = read[:, span].mul_(weights).sum(1)
            else:
                found = torch.mm(weights, h, out=context[columns]).mul(tile.stacked[size:]).sum(1)
            torch.div(found, safe(sums), out=value[b, columns])
    return Rows(value, top, total, context=context, kept=kept if len(kept) else None)


def backward(
    p: Problem,
    rows: Rows,
    grad_value,
    grad_log_sum,
    wants_hidden: bool = True,
    wants_values: bool = False,
) -> Gradients:
    """Gradients given those of value and log_sum_exp; p = e / s, dv = g p, ds = p (g (v - value) +
    g_lse).

    A context among `rows` is used up: its memory becomes the gradient of the outputs.
    """
    space, kind = Workspace(p), accumulator(p.hidden.dtype)
    scale = 1.0 / safe(rows.total)
    g = grad_value.to(kind) * scale
    shift = grad_log_sum.to(kind) * scale - g * rows.value
    d_hidden = torch.zeros_like(p.hidden, dtype=kind) if wants_hidden else None
    d_queries = torch.zeros_like(p.queries, dtype=kind)
    d_outputs = (
        torch.zeros_like(p.outputs, dtype=kind) if rows.context is None else rows.context.mul_(g.T)
    )
    d_gain = (
        None if p.cells is None else torch.zeros((), dtype=torch.float64, device=p.hidden.device)
    )
    d_values = torch.zeros_like(p.cells[2]) if wants_values else None
    for tile in tiles(p):
        columns, size = slice(tile.low, tile.high), tile.high - tile.low
        is_kept = rows.kept is not None and tile.high <= len(rows.kept)
        h, scores, read, cells = space.read(
            tile, rows.kept[columns, tile.begin : tile.end] if is_kept else None
        )
        for b, span in space.spans(tile):
            weights, reads = scores[:, span], read[:, span]
            if not is_kept:
                keep_highest(weights, p.keep)
                exp_(weights, rows.top[b, columns])
            upstream = g[b, columns, None]
            torch.addcmul(shift[b, columns, None], reads, upstream, out=reads).mul_(weights)  # ds
            weights.mul_(upstream)  # dv
        # scores now hold dv and outputs hold ds
        _add(d_queries, tile.labels, read, h)
        if rows.context is None:
            _add(d_outputs, tile.labels, scores, h)
        if d_hidden is not None:
            part = d_hidden[tile.begin : tile.end]
            part.addmm_(read.T, tile.stacked[:size]).addmm_(scores.T, tile.stacked[size:])
        if cells is not None:
            d_gain += grade_cells(p, read, cells, d_values)
    return Gradients(d_hidden, d_queries, d_outputs, d_gain, d_values)


def grade_cells(p: Problem, ds: torch.Tensor, cells, d_values: torch.Tensor | None) -> torch.Tensor:
    """The gain's gradient from a tile's ds (block, chunk); fills in the gradient of the cells'
    values where it is wanted.
    """
    own = ds.reshape(-1)[cells[0]]
    own = own.to(accumulator(own.dtype))
    if d_values is not None:
        d_values[cells[2]] = (p.gain.to(own.dtype) * own).to(d_values.dtype)
    return (own * cells[1]).sum(dtype=torch.float64)


def exp_(scores: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    """exp(scores - top) in place; a row of nothing but minus infinity becomes zeros."""
    return scores.sub_(top.masked_fill(top == float("-inf"), 0.0)[:, None]).exp_()


def safe(sums: torch.Tensor) -> torch.Tensor:
    return sums.masked_fill(sums == 0, 1.0)


def _add(
    total: torch.Tensor, labels: torch.Tensor | slice, left: torch.Tensor, right: torch.Tensor
) -> None:
    """total[labels] += left @ right."""
    if isinstance(labels, slice):
        total[labels].addmm_(left, right)
    else:
        total.index_add_(0, labels, left @ right)
