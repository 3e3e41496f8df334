"""Fused planted label attention in Triton: two tensor-core products a tile, online softmax, O(B L) output.

Realises METHOD.md section 4 on a GPU with the signature and memory law of `label_attention_torch`. A program owns a block of
columns of one document and walks its tokens; scores never leave the registers. Planted cells are sorted by tile and scattered
into it by a product of two one-hot matrices, which costs no dense gather, adds up duplicates and holds for a gain of any
sign. Inattention takes one more walk that keeps the K best (score, position) keys of a row. The backward pass builds scores
again and writes their gradients for as many labels as fit WORKSPACE; library products finish it, so there are no atomics
and two runs give equal bits. README.md beside this file says where these kernels have run.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from plantlib.kernels import machine
from plantlib.kernels.label_attention_torch import Gradients, Problem, Rows

WORKSPACE = 2**26  # bytes of score and output gradients alive at once in the backward pass
MAX_KEEP, MAX_DIM = 128, 8192  # inattention sorts 2 K keys a row in registers
CELLS = 16  # planted cells scattered by one product


class Blocks(NamedTuple):
    """Columns, tokens and hidden units of a tile, and how the compiler is to schedule it."""

    columns: int
    tokens: int
    hidden: int
    warps: int = 4
    stages: int = 3


def blocks_for(dtype: torch.dtype, dim: int, keep: int | None = None, narrow: bool = False) -> Blocks:
    """Tile sizes; `narrow` (planted cells, backward) leaves registers for a third (columns, tokens) matrix.

    With inattention both kernels of a pass and both passes use one size, so that all build the same scores to the bit.
    """
    half = dtype != torch.float32
    hidden = max(16, min(64 if half else 32, triton.next_power_of_2(dim)))
    if keep is not None:
        return Blocks(32, max(64, triton.next_power_of_2(keep)), hidden, warps=4, stages=2)
    # float32 products are exact here, not TF32, and run on the ordinary units: smaller tiles
    return Blocks(128, 64 if narrow else 128, hidden, 8, 3) if half else Blocks(64, 32 if narrow else 64, hidden, 4, 3)


@triton.jit
def _tile(
    hidden,  # (S, D)
    queries,  # (L, D)
    outputs,  # (L, D)
    rows,  # (BL,) label ids
    tokens,  # (BT,) packed positions
    end,
    D,
    BL: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, READ: tl.constexpr,
):  # fmt: skip
    """Scores and outputs (BL, BT) of a tile, without planted cells."""
    scores = tl.zeros((BL, BT), tl.float32)
    reads = tl.zeros((BL, BT), tl.float32)
    for d0 in range(0, D, BD):
        d = d0 + tl.arange(0, BD)
        h = tl.load(hidden + tokens.to(tl.int64)[None, :] * D + d[:, None],
                    mask=(tokens[None, :] < end) & (d[:, None] < D), other=0.0)  # fmt: skip
        at = rows.to(tl.int64)[:, None] * D + d[None, :]
        q = tl.load(queries + at, mask=d[None, :] < D, other=0.0)
        if UPCAST:  # bfloat16 products are wrong in the interpreter
            h = h.to(tl.float32)
            q = q.to(tl.float32)
        scores = tl.dot(q, h, scores, input_precision=PRECISION)
        if READ:
            w = tl.load(outputs + at, mask=d[None, :] < D, other=0.0)
            if UPCAST:
                w = w.to(tl.float32)
            reads = tl.dot(w, h, reads, input_precision=PRECISION)
    return scores, reads


@triton.jit
def _planted(cell_rows, cell_tokens, cell_values, bounds, tile, BL: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr):
    """Sum of the planted cells of a tile, (BL, BT), before the gain."""
    total = tl.zeros((BL, BT), tl.float32)
    first = tl.load(bounds + tile)
    last = tl.load(bounds + tile + 1)
    for c0 in range(first, last, BC):
        c = c0 + tl.arange(0, BC)
        row = tl.load(cell_rows + c, mask=c < last, other=-1)
        token = tl.load(cell_tokens + c, mask=c < last, other=-1)
        value = tl.load(cell_values + c, mask=c < last, other=0.0)
        left = (tl.arange(0, BL)[:, None] == row[None, :]).to(tl.float32)
        right = tl.where(tl.arange(0, BT)[None, :] == token[:, None], value[:, None], 0.0)
        total = tl.dot(left, right, total, input_precision="ieee")
    return total


@triton.jit
def _keys(scores, places, inside):
    """int64 keys in the order of scores, the earlier token first where they are equal; outside tokens come last."""
    # 0.0 and -0.0 are equal scores with different bits
    bits = tl.where(scores == 0.0, 0.0, scores).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = (ordered.to(tl.int64) << 32) + (0x7FFFFFFF - places).to(tl.int64)[None, :]
    return tl.where(inside[None, :], keys, -0x7FFFFFFFFFFFFFFF)


@triton.jit
def _threshold_kernel(
    hidden, queries, outputs, labels, offsets, cell_rows, cell_tokens, cell_values, bounds, gain,
    threshold,  # out (B, C) int64: the key of the K-th best token
    columns, D, tiles, keep,
    CANDIDATES: tl.constexpr, PLANTED: tl.constexpr, KEEP: tl.constexpr,
    BL: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, BC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    block, b = tl.program_id(0), tl.program_id(1)
    column = block * BL + tl.arange(0, BL)
    rows = tl.minimum(column, columns - 1)
    if CANDIDATES:
        rows = tl.load(labels + b * columns + rows)
    begin, end = tl.load(offsets + b), tl.load(offsets + b + 1)
    best = tl.full((BL, KEEP), -0x7FFFFFFFFFFFFFFF, tl.int64)
    for t0 in range(0, end - begin, BT):
        places = (t0 + tl.arange(0, BT)).to(tl.int32)
        scores, _ = _tile(hidden, queries, outputs, rows, begin + places, end, D, BL, BT, BD, PRECISION, UPCAST, False)
        if PLANTED:
            tile = (b * tl.num_programs(0) + block) * tiles + t0 // BT
            scores += tl.load(gain) * _planted(cell_rows, cell_tokens, cell_values, bounds, tile, BL, BT, BC)
        found = tl.topk(_keys(scores, places, begin + places < end), KEEP)
        best = tl.topk(tl.reshape(tl.join(best, found), (BL, 2 * KEEP)), KEEP)
    # keys are distinct but for those of no token, so the K-th best is the smallest of the first K
    last = tl.min(tl.where(tl.arange(0, KEEP)[None, :] < keep, best, 0x7FFFFFFFFFFFFFFF), 1)
    tl.store(threshold + b * columns + column, last, mask=column < columns)


@triton.jit
def _forward_kernel(
    hidden, queries, outputs, labels, offsets, cell_rows, cell_tokens, cell_values, bounds, gain, threshold,
    value, top, total,  # out (B, C) float32 each
    columns, D, tiles,
    CANDIDATES: tl.constexpr, PLANTED: tl.constexpr, KEPT: tl.constexpr,
    BL: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, BC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    block, b = tl.program_id(0), tl.program_id(1)
    column = block * BL + tl.arange(0, BL)
    rows = tl.minimum(column, columns - 1)
    if CANDIDATES:
        rows = tl.load(labels + b * columns + rows)
    begin, end = tl.load(offsets + b), tl.load(offsets + b + 1)
    out = b.to(tl.int64) * columns + column
    m = tl.full((BL,), float("-inf"), tl.float32)
    s = tl.zeros((BL,), tl.float32)
    o = tl.zeros((BL,), tl.float32)
    for t0 in range(0, end - begin, BT):
        places = (t0 + tl.arange(0, BT)).to(tl.int32)
        inside = begin + places < end
        scores, reads = _tile(hidden, queries, outputs, rows, begin + places, end, D, BL, BT, BD, PRECISION, UPCAST, True)
        if PLANTED:
            tile = (b * tl.num_programs(0) + block) * tiles + t0 // BT
            scores += tl.load(gain) * _planted(cell_rows, cell_tokens, cell_values, bounds, tile, BL, BT, BC)
        kept = inside[None, :] & (scores == scores)
        if KEPT:
            kept = kept & (_keys(scores, places, inside) >= tl.load(threshold + out, mask=column < columns)[:, None])
        # a score that is not a number stays one, so that broken input shows
        scores = tl.where(kept | (scores != scores) & inside[None, :], scores, float("-inf"))
        higher = tl.maximum(m, tl.max(scores, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        e = tl.exp(scores - safe[:, None])
        shrink = tl.exp(m - safe)
        s = s * shrink + tl.sum(e, 1)
        o = o * shrink + tl.sum(e * reads, 1)
        m = higher
    tl.store(value + out, o / tl.where(s == 0.0, 1.0, s), mask=column < columns)
    tl.store(top + out, m, mask=column < columns)
    tl.store(total + out, s, mask=column < columns)


@triton.jit
def _backward_kernel(
    hidden, queries, outputs, labels, offsets, cell_rows, cell_tokens, cell_values, bounds, gain, threshold,
    top, value, scale, shift,  # (B, C): largest score, value, g / s, g_lse / s
    d_scores, d_reads,  # out (columns of the part, S)
    d_gain,  # out (B, blocks, tiles): this tile's part of the gain's gradient
    columns, D, tiles, blocks, S, block0, b0, token0,
    CANDIDATES: tl.constexpr, PLANTED: tl.constexpr, KEPT: tl.constexpr,
    BL: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, BC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    block, b, t = block0 + tl.program_id(0), b0 + tl.program_id(1), tl.program_id(2)
    column = block * BL + tl.arange(0, BL)
    ok = column < columns
    rows = tl.minimum(column, columns - 1)
    if CANDIDATES:
        rows = tl.load(labels + b * columns + rows)
    begin, end = tl.load(offsets + b), tl.load(offsets + b + 1)
    places = (t * BT + tl.arange(0, BT)).to(tl.int32)
    inside = begin + places < end
    if t * BT < end - begin:
        scores, reads = _tile(hidden, queries, outputs, rows, begin + places, end, D, BL, BT, BD, PRECISION, UPCAST, True)
        tile = (b * blocks + block) * tiles + t
        planted = tl.zeros((BL, BT), tl.float32)
        if PLANTED:
            planted = _planted(cell_rows, cell_tokens, cell_values, bounds, tile, BL, BT, BC)
            scores += tl.load(gain) * planted
        at = b.to(tl.int64) * columns + column
        kept = inside[None, :]
        if KEPT:
            kept = kept & (_keys(scores, places, inside) >= tl.load(threshold + at, mask=ok, other=0)[:, None])
        m = tl.load(top + at, mask=ok, other=0.0)
        g = tl.load(scale + at, mask=ok, other=0.0)
        e = tl.where(kept, tl.exp(scores - tl.where(m == float("-inf"), 0.0, m)[:, None]), 0.0)
        centred = reads - tl.load(value + at, mask=ok, other=0.0)[:, None]
        ds = e * (g[:, None] * centred + tl.load(shift + at, mask=ok, other=0.0)[:, None])
        to = (column - block0 * BL).to(tl.int64)[:, None] * S + (begin - token0 + places)[None, :]
        tl.store(d_scores + to, ds.to(d_scores.dtype.element_ty), mask=ok[:, None] & inside[None, :])
        tl.store(d_reads + to, (e * g[:, None]).to(d_reads.dtype.element_ty), mask=ok[:, None] & inside[None, :])
        if PLANTED:
            tl.store(d_gain + tile, tl.sum(tl.sum(tl.where(ok[:, None], ds * planted, 0.0), 1), 0))


class _Launch:
    """Arguments common to the kernels of one call: blocks, cells sorted by tile, pointers that may be absent."""

    def __init__(self, p: Problem, narrow: bool = False):
        _check(p)
        self.batch, self.columns = p.shape
        self.size = p.hidden.shape[1]
        self.at = blocks_for(p.hidden.dtype, self.size, p.keep, narrow or p.cells is not None)
        lengths = p.offsets.diff().tolist()
        self.tiles = max(triton.cdiv(max(lengths, default=0), self.at.tokens), 1)
        self.blocks = triton.cdiv(self.columns, self.at.columns)
        self.hidden, self.queries, self.outputs = (x.contiguous() for x in (p.hidden, p.queries, p.outputs))
        self.offsets = p.offsets.to(torch.int32)
        self.labels = self.offsets if p.candidates is None else p.candidates.contiguous()
        none = p.hidden.new_zeros(1, dtype=torch.float32)
        self.cells = (self.offsets, self.offsets, none, self.offsets, none)
        if p.cells is not None:
            self.cells = (*self._by_tile(p), p.gain.detach().to(torch.float32).reshape(1))
        exact = p.hidden.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
        self.options = dict(
            CANDIDATES=p.candidates is not None, PLANTED=p.cells is not None, BL=self.at.columns, BT=self.at.tokens,
            BD=self.at.hidden, BC=CELLS, PRECISION="ieee" if exact else "tf32",
            UPCAST=machine.interpreted() and p.hidden.dtype == torch.bfloat16,
            num_warps=self.at.warps, num_stages=self.at.stages,
        )  # fmt: skip

    def _by_tile(self, p: Problem):
        """Rows, tokens (places in their tile), values of the cells in the order of tiles; bounds (tiles of all + 1)."""
        positions, columns, values = p.cells
        document = torch.searchsorted(p.offsets, positions, right=True) - 1
        place = positions - p.offsets[document]
        key = (document * self.blocks + columns // self.at.columns) * self.tiles + place // self.at.tokens
        key, order = key.sort(stable=True)
        edges = torch.arange(self.batch * self.blocks * self.tiles + 1, device=key.device)
        bounds = torch.searchsorted(key, edges).to(torch.int32)
        rows, tokens = (columns % self.at.columns)[order].int(), (place % self.at.tokens)[order].int()
        return rows, tokens, values[order].to(torch.float32), bounds

    def arguments(self):
        return (self.hidden, self.queries, self.outputs, self.labels, self.offsets, *self.cells)


def _check(p: Problem) -> None:
    if p.hidden.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"the Triton kernel reads float32, float16 and bfloat16, not {p.hidden.dtype}; use impl='torch'")
    if p.keep is not None and p.keep > MAX_KEEP:
        raise ValueError(f"keep={p.keep}: the Triton kernel keeps at most {MAX_KEEP} tokens; use impl='torch'")
    if p.hidden.shape[1] > MAX_DIM:
        raise ValueError(f"D={p.hidden.shape[1]}: the Triton kernel reads at most {MAX_DIM} hidden units; use impl='torch'")


def forward(p: Problem) -> Rows:
    """Rows (B, C) as `label_attention_torch.forward` gives them; with inattention the thresholds as well."""
    launch = _Launch(p)
    value, top, total = (torch.empty(p.shape, dtype=torch.float32, device=p.hidden.device) for _ in range(3))
    threshold, grid = None, (launch.blocks, launch.batch)
    if value.numel() == 0:
        return Rows(value, top, total)
    if p.keep is not None:
        threshold = torch.empty(p.shape, dtype=torch.int64, device=p.hidden.device)
        width = max(triton.next_power_of_2(p.keep), 2)
        _threshold_kernel[grid](*launch.arguments(), threshold, launch.columns, launch.size, launch.tiles, p.keep,
                                KEEP=width, **launch.options)  # fmt: skip
    _forward_kernel[grid](*launch.arguments(), value if threshold is None else threshold, value, top, total,
                          launch.columns, launch.size, launch.tiles, KEPT=threshold is not None, **launch.options)  # fmt: skip
    return Rows(value, top, total, threshold)


def backward(p: Problem, rows: Rows, grad_value, grad_log_sum, wants_hidden: bool = True) -> Gradients:
    """Gradients as `label_attention_torch.backward` gives them, by parts of columns that fit WORKSPACE."""
    launch = _Launch(p, narrow=True)
    scale = 1.0 / rows.total.masked_fill(rows.total == 0, 1.0)
    g = (grad_value.float() * scale).contiguous()
    shift = (grad_log_sum.float() * scale).contiguous()
    d_hidden = torch.zeros_like(launch.hidden, dtype=torch.float32) if wants_hidden else None
    d_queries, d_outputs = (torch.zeros_like(x, dtype=torch.float32) for x in (launch.queries, launch.outputs))
    d_gain = torch.zeros(launch.batch * launch.blocks * launch.tiles, device=p.hidden.device)
    threshold = rows.top if rows.threshold is None else rows.threshold
    for first, last, begin, end, low, high in _parts(p, launch):
        d_scores, d_reads = (launch.hidden.new_empty(high - low, end - begin) for _ in range(2))
        grid = (triton.cdiv(high - low, launch.at.columns), last - first, launch.tiles)
        _backward_kernel[grid](
            *launch.arguments(), threshold, rows.top, rows.value, g, shift, d_scores, d_reads, d_gain, launch.columns,
            launch.size, launch.tiles, launch.blocks, end - begin, low // launch.at.columns, first, begin,
            KEPT=rows.threshold is not None, **launch.options,
        )  # fmt: skip
        h = launch.hidden[begin:end]
        labels = slice(low, high) if p.candidates is None else p.candidates[first, low:high]
        for total, left in ((d_queries, d_scores), (d_outputs, d_reads)):
            if p.candidates is None:
                total[labels] += left @ h
            else:
                total.index_add_(0, labels, (left @ h).float())
        if d_hidden is not None:
            d_hidden[begin:end] += d_scores.T @ launch.queries[labels]
            d_hidden[begin:end] += d_reads.T @ launch.outputs[labels]
    return Gradients(d_hidden, d_queries, d_outputs, d_gain.sum(dtype=torch.float64) if p.cells is not None else None)


def _parts(p: Problem, launch: _Launch):
    """(first, last document, begin, end token, low, high column): all documents at once, or one with its candidates."""
    edges = p.offsets.tolist()
    groups = [(0, launch.batch)] if p.candidates is None else [(b, b + 1) for b in range(launch.batch)]
    for first, last in groups:
        tokens = edges[last] - edges[first]
        if tokens:
            fit = WORKSPACE // (2 * tokens * launch.hidden.element_size() * launch.at.columns)
            step = max(fit, 1) * launch.at.columns
            for low in range(0, launch.columns, step):
                yield first, last, edges[first], edges[last], low, min(low + step, launch.columns)


def ahead_of_time_specs() -> list[tuple]:
    """(name, kernel, signature, constants, warps, stages) of what a call launches, for `compile.py`."""
    floats = dict.fromkeys("cell_values gain value top total scale shift d_gain".split(), "*fp32")
    integers = dict.fromkeys("offsets cell_rows cell_tokens bounds".split(), "*i32") | {"labels": "*i64", "threshold": "*i64"}
    launches = ((_forward_kernel, None, False), (_forward_kernel, None, True), (_backward_kernel, None, True),
                (_threshold_kernel, 32, True), (_forward_kernel, 32, True))  # fmt: skip
    found = []
    for dtype, short in ((torch.bfloat16, "bf16"), (torch.float16, "fp16"), (torch.float32, "fp32")):
        types = dict.fromkeys("hidden queries outputs d_scores d_reads".split(), f"*{short}") | floats | integers
        for kernel, keep, planted in launches:
            at = blocks_for(dtype, 4096, keep, planted)
            constants = dict(CANDIDATES=planted, PLANTED=planted, KEPT=keep is not None, KEEP=keep, BL=at.columns, BT=at.tokens,
                             BD=at.hidden, BC=CELLS, PRECISION="ieee" if short == "fp32" else "tf32", UPCAST=False)  # fmt: skip
            constants = {k: v for k, v in constants.items() if k in kernel.arg_names}
            signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in kernel.arg_names}
            name = f"{kernel.fn.__name__.strip('_')}[{short}{', planted' * planted}{', keep' * bool(keep)}]"
            found.append((name, kernel, signature, constants, at.warps, at.stages))
    return found
