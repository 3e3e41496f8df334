"""Planted label attention fused in Triton (docs/method.md, "Planted attention").

The functions have the signatures of `label_attention_torch`, and memory is bounded as there. This
file launches the kernels of `label_attention_tiles.py` and sorts the planted cells by tile. With
inattention the scores of as many labels as fit WORKSPACE are written first, and each row's K-th
highest is found by its bits. The backward pass computes the scores again and writes their gradients
for as many labels as fit; library products finish it, so there are no atomics and two runs give
equal bits. README.md in this folder says where these kernels have run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton

from plantlib.kernels import label_attention_torch, machine
from plantlib.kernels.label_attention_tiles import (
    GROUP,
    _backward_kernel,
    _forward_kernel,
    _score_kernel,
    _select_kernel,
)
from plantlib.kernels.label_attention_torch import Gradients, Problem, Rows

# bytes of scores or of their gradients at a time, with inattention and in the backward pass
WORKSPACE = 2**27
MAX_DIM = 8192
CELLS = 16  # planted cells per product
SELECTED = 256  # scores of a row per step of the selection


class Blocks(NamedTuple):
    """Columns, tokens and hidden units of a tile, and the compiler's options for it."""

    columns: int
    tokens: int
    hidden: int
    warps: int = 4
    stages: int = 3


def blocks_for(dtype: torch.dtype, dim: int) -> Blocks:
    """Tile sizes; one for all kernels, so that all compute the same scores to the bit.

    In half precision 64 x 256 and 128 x 128 are the fastest and equal within the spread of
    results/bench/tiles.csv. The float32 size was not timed; it spills no registers.
    """
    half = dtype != torch.float32
    hidden = max(16, min(64 if half else 32, triton.next_power_of_2(dim)))
    # unless PyTorch allows TF32, float32 products run on the ordinary units: smaller tiles
    return Blocks(64, 256, hidden, 8, 3) if half else Blocks(64, 64, hidden, 8, 3)


class _Launch:
    """Arguments that the kernels of one call share; `by_tile` if a kernel has a grid of tiles."""

    def __init__(self, p: Problem, by_tile: bool = False):
        _check(p)
        # sizes and tensors
        self.batch, self.columns = p.shape
        self.size = p.hidden.shape[1]
        self.at = blocks_for(p.hidden.dtype, self.size)
        self.blocks = triton.cdiv(self.columns, self.at.columns)
        self.hidden, self.queries, self.outputs = (
            x.contiguous() for x in (p.hidden, p.queries, p.outputs)
        )
        self.offsets = p.offsets.contiguous()
        self.labels = self.offsets if p.candidates is None else p.candidates.contiguous()
        self.cells = (self.offsets,) * 5  # any pointers: without cells none is read
        # computed only where it is needed, because the GPU has to be waited for
        self.tiles = self._tiles(p) if by_tile or p.cells is not None or p.keep is not None else 1
        if p.cells is not None:
            self.cells = (*self._by_tile(p), p.gain.detach().to(torch.float32).reshape(1))
        # compile-time options
        exact = p.hidden.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
        self.options = dict(
            CANDIDATES=p.candidates is not None,
            PLANTED=p.cells is not None,
            BL=self.at.columns,
            BT=self.at.tokens,
            BD=self.at.hidden,
            BC=CELLS,
            PRODUCT="ieee" if exact else "tf32",
            UPCAST=machine.interpreted() and p.hidden.dtype == torch.bfloat16,
            GROUP=GROUP,
            EVEN=self.size % self.at.hidden == 0,
            num_warps=self.at.warps,
            num_stages=self.at.stages,
        )

    def _tiles(self, p: Problem) -> int:
        """Tiles of tokens in the longest document, at least 1."""
        return max(triton.cdiv(int(p.offsets.diff().max()) if self.batch else 0, self.at.tokens), 1)

    def _by_tile(self, p: Problem):
        """The cells in the order of tiles.

        Returns:
            Rows and tokens within the tile, values, and bounds: where the cells of each tile begin.
        """
        positions, columns, values = p.cells
        document = torch.searchsorted(p.offsets, positions, right=True) - 1
        place = positions - p.offsets[document]
        block = document * self.blocks + columns // self.at.columns
        key, order = (block * self.tiles + place // self.at.tokens).sort(stable=True)
        edges = torch.arange(self.batch * self.blocks * self.tiles + 1, device=key.device)
        bounds = torch.searchsorted(key, edges).to(torch.int32)
        rows = (columns % self.at.columns)[order].int()
        tokens = (place % self.at.tokens)[order].int()
        return rows, tokens, values[order].to(torch.float32), bounds

    def arguments(self):
        return (self.hidden, self.queries, self.outputs, self.labels, self.offsets, *self.cells)

    def sizes(self, documents: int | None = None):
        documents = self.batch if documents is None else documents
        return self.columns, self.size, self.tiles, documents, self.blocks

    def selection(self, threshold: torch.Tensor | None):
        """Pointers to edges and last places; any pointer where all tokens are kept."""
        return (self.offsets, self.offsets) if threshold is None else tuple(threshold)

    def part(self, part: _Part):
        """Grid and sizes of a kernel that reads a part by (columns, document) and tile."""
        documents, blocks = part.last - part.first, triton.cdiv(part.columns, self.at.columns)
        begins = (part.low // self.at.columns, blocks, part.first, part.begin)
        return (blocks * documents, self.tiles), (*self.sizes(documents), part.tokens, *begins)


def _check(p: Problem) -> None:
    if p.hidden.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(
            f"the Triton kernel reads float32, float16 and bfloat16, not {p.hidden.dtype}; use"
            " impl='torch'"
        )
    if p.hidden.shape[1] > MAX_DIM:
        raise ValueError(
            f"D={p.hidden.shape[1]}: the Triton kernel reads at most {MAX_DIM} hidden units; use"
            " impl='torch'"
        )


def forward(p: Problem) -> Rows:
    """Rows as `label_attention_torch.forward` gives them; with inattention also thresholds."""
    launch = _Launch(p)
    kind = {"dtype": torch.float32, "device": p.hidden.device}
    value, top, total = (torch.empty(p.shape, **kind) for _ in range(3))
    if value.numel() == 0:
        return Rows(value, top, total)
    # Triton launches on the current GPU, which need not be the one that holds the tensors
    with torch.cuda.device_of(p.hidden):
        threshold = None if p.keep is None else _thresholds(p, launch)
        inputs = (*launch.arguments(), *launch.selection(threshold))
        options = launch.options | {"KEPT": threshold is not None}
        grid = (launch.blocks * launch.batch,)
        _forward_kernel[grid](*inputs, value, top, total, *launch.sizes(), **options)
    return Rows(value, top, total, threshold)


def _thresholds(p: Problem, launch: _Launch) -> torch.Tensor:
    """(2, B, C) int32: the K-th highest score by its bits, the last place of a kept equal one."""
    thresholds = torch.full((2, *p.shape), -(2**31), dtype=torch.int32, device=p.hidden.device)
    space = label_attention_torch.Workspace(p, torch.float32)
    for part in _parts(p, launch, 4):
        scores = space.take(part.columns, part.tokens)
        grid, sizes = launch.part(part)
        _score_kernel[grid](*launch.arguments(), scores, *sizes, **launch.options)
        rows = (part.columns, part.last - part.first)
        sizes = (launch.columns, part.tokens, part.low, part.first, part.begin, p.keep)
        inputs = (scores, launch.offsets)
        _select_kernel[rows](*inputs, *thresholds, *sizes, BT=SELECTED, num_warps=1)
    return thresholds


def backward(
    p: Problem,
    rows: Rows,
    grad_value,
    grad_log_sum,
    wants_hidden: bool = True,
    wants_values: bool = False,
) -> Gradients:
    """Gradients as `label_attention_torch.backward` gives them, in parts that fit WORKSPACE."""
    launch = _Launch(p, by_tile=True)
    # upstream gradients divided by the sums of exponentials
    scale = 1.0 / rows.total.masked_fill(rows.total == 0, 1.0)
    g = (grad_value.float() * scale).contiguous()
    shift = (grad_log_sum.float() * scale).contiguous()
    d_hidden = torch.zeros_like(launch.hidden, dtype=torch.float32) if wants_hidden else None
    # without candidates one part writes all of a label's gradient, else each document adds to it
    whole = p.candidates is None
    kind = p.queries.dtype if whole else torch.float32
    heads = (launch.queries, launch.outputs)
    d_queries, d_outputs = (torch.zeros_like(x, dtype=kind) for x in heads)
    d_gain = torch.zeros(launch.batch * launch.blocks * launch.tiles, device=p.hidden.device)
    d_values = torch.zeros_like(p.cells[2]) if wants_values else None
    space = label_attention_torch.Workspace(p, launch.hidden.dtype)
    for part in _parts(p, launch, 2 * launch.hidden.element_size()):
        # gradients of scores and outputs
        d_scores, d_reads = space.take(2 * part.columns, part.tokens).split(part.columns)
        grid, sizes = launch.part(part)
        inputs = (
            *launch.arguments(),
            *launch.selection(rows.threshold),
            rows.top,
            rows.value,
            g,
            shift,
        )
        options = launch.options | {"KEPT": rows.threshold is not None}
        with torch.cuda.device_of(p.hidden):
            _backward_kernel[grid](*inputs, d_scores, d_reads, d_gain, *sizes, **options)
        # products with hidden states, queries and outputs
        if d_values is not None and (cells := space.cells(part)) is not None:
            label_attention_torch.grade_cells(p, d_scores, cells, d_values)
        h, labels = launch.hidden[part.begin : part.end], slice(part.low, part.high)
        labels = labels if whole else p.candidates[part.first, labels]
        for total, left in ((d_queries, d_scores), (d_outputs, d_reads)):
            if whole:
                torch.mm(left, h, out=total[labels])
            else:
                total.index_add_(0, labels, (left @ h).float())
        if d_hidden is not None:
            d_hidden[part.begin : part.end] += d_scores.T @ launch.queries[labels]
            d_hidden[part.begin : part.end] += d_reads.T @ launch.outputs[labels]
    d_gain = d_gain.sum(dtype=torch.float64) if p.cells is not None else None
    return Gradients(d_hidden, d_queries, d_outputs, d_gain, d_values)


class _Part(NamedTuple):
    """What one launch reads: documents [first, last), tokens [begin, end), columns [low, high)."""

    first: int
    last: int
    begin: int
    end: int
    low: int
    high: int

    @property
    def columns(self) -> int:
        return self.high - self.low

    @property
    def tokens(self) -> int:
        return self.end - self.begin


def _parts(p: Problem, launch: _Launch, cell_bytes: int) -> Iterator[_Part]:
    """Parts of all documents or, with candidates, of one document each.

    A part has as many columns as fit WORKSPACE at `cell_bytes` per column and token.
    """
    edges = p.offsets.tolist()
    groups = [(b, b + 1) for b in range(launch.batch)]
    if p.candidates is None:
        groups = [(0, launch.batch)]
    for first, last in groups:
        tokens = edges[last] - edges[first]
        if tokens:
            fit = WORKSPACE // (tokens * cell_bytes * launch.at.columns)
            step = max(fit, 1) * launch.at.columns
            for low in range(0, launch.columns, step):
                high = min(low + step, launch.columns)
                yield _Part(first, last, edges[first], edges[last], low, high)


def ahead_of_time_specs() -> list[tuple]:
    """(name, kernel, signature, constants, warps, stages) of all launches, for `compile.py`."""
    floats = "cell_values planted_gain value top total scale shift d_gain scores out_scores"
    types = dict.fromkeys(floats.split(), "*fp32")
    types |= dict.fromkeys("cell_rows cell_tokens bounds edge last".split(), "*i32")
    types |= dict.fromkeys(("labels", "offsets"), "*i64")
    # (kernel, inattention, planted cells and candidates)
    launches = (
        (_forward_kernel, False, False),
        (_forward_kernel, False, True),
        (_backward_kernel, False, False),
        (_backward_kernel, False, True),
        (_score_kernel, True, True),
        (_forward_kernel, True, True),
    )
    specs = []
    for dtype, short in (
        (torch.bfloat16, "bf16"),
        (torch.float16, "fp16"),
        (torch.float32, "fp32"),
    ):
        types |= dict.fromkeys("hidden queries outputs d_scores d_reads".split(), f"*{short}")
        at = blocks_for(dtype, 4096)
        sizes = dict(BL=at.columns, BT=at.tokens, BD=at.hidden, BC=CELLS, GROUP=GROUP)
        product = "ieee" if short == "fp32" else "tf32"
        for kernel, keep, planted in launches:
            switches = dict(CANDIDATES=planted, PLANTED=planted, KEPT=keep, EVEN=True, UPCAST=False)
            constants = sizes | switches | {"PRODUCT": product}
            constants = {k: v for k, v in constants.items() if k in kernel.arg_names}
            kinds = types | dict.fromkeys(constants, "constexpr")
            signature = {n: kinds.get(n, "i32") for n in kernel.arg_names}
            options = f"{short}{', planted' * planted}{', keep' * keep}"
            name = f"{kernel.fn.__name__.strip('_')}[{options}]"
            specs.append((name, kernel, signature, constants, at.warps, at.stages))
    kinds = types | {"BT": "constexpr"}
    signature = {n: kinds.get(n, "i32") for n in _select_kernel.arg_names}
    return [*specs, ("select_kernel", _select_kernel, signature, {"BT": SELECTED}, 1, 1)]
