"""The Triton kernels of label attention, which `label_attention.py` launches.

A program owns a block of columns (labels, or places of candidate lists) of one document and walks
its tokens in tiles: two tensor-core products per tile and a running softmax. Scores leave the
registers only for the selection of inattention and in the backward pass. Token positions beyond the
document are moved to its last token, so loads need no mask of tokens, and the scores there are
masked once.

BL columns, BT tokens, BD hidden units and BC planted cells per step. PRODUCT says how float32
products are computed ("ieee" or "tf32"); UPCAST is for the interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl

GROUP = 8  # neighbouring documents: their programs run together and share rows of Q, W and H


@triton.jit
def _place(batch, blocks, GROUP: tl.constexpr):
    """(block of columns, document) of this program."""
    program = tl.program_id(0)
    span = GROUP * blocks
    first = program // span * GROUP
    size = tl.minimum(batch - first, GROUP)
    return program % span // size, first + program % span % size


@triton.jit
def _rows(labels, column, b, columns, CANDIDATES: tl.constexpr):
    """Label ids (BL,) of columns; beyond the last column, its label."""
    rows = tl.minimum(column, columns - 1)
    if CANDIDATES:
        rows = tl.load(labels + b * columns + rows)
    return rows


@triton.jit
def _span(offsets, b):
    """First and last + 1 packed position of a document, int32."""
    return tl.load(offsets + b).to(tl.int32), tl.load(offsets + b + 1).to(tl.int32)


@triton.jit
def _add_product(a, b, total, PRODUCT: tl.constexpr):
    """total + a b."""
    if PRODUCT == "ieee":
        # the product is summed by itself, since one chain of D additions would lose three times the
        # digits; fma, because the compiler would fold a plain sum into the product
        return tl.fma(tl.dot(a, b, input_precision=PRODUCT), 1.0, total)
    return tl.dot(a, b, total, input_precision=PRODUCT)


@triton.jit
def _tile(
    hidden,  # (S, D)
    queries,  # (L, D)
    outputs,  # (L, D)
    rows,  # (BL,) label ids
    tokens,  # (BT,) packed positions
    end,
    D,
    BL: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
    EVEN: tl.constexpr,
    PRODUCT: tl.constexpr,
    UPCAST: tl.constexpr,
    READ: tl.constexpr,
):
    """Scores and, if READ, outputs (BL, BT) of a tile, without planted cells.

    EVEN: D is a multiple of BD.
    """
    scores = tl.zeros((BL, BT), tl.float32)
    reads = tl.zeros((BL, BT), tl.float32)
    units = tl.arange(0, BD)
    of_tokens = hidden + tl.minimum(tokens, end - 1).to(tl.int64)[None, :] * D + units[:, None]
    at = rows.to(tl.int64)[:, None] * D + units[None, :]
    for d0 in range(0, D, BD):
        if EVEN:
            h = tl.load(of_tokens + d0)
            q = tl.load(queries + at + d0)
        else:
            h = tl.load(of_tokens + d0, mask=units[:, None] < D - d0, other=0.0)
            q = tl.load(queries + at + d0, mask=units[None, :] < D - d0, other=0.0)
        if UPCAST:  # bfloat16 products are wrong in the interpreter
            h = h.to(tl.float32)
            q = q.to(tl.float32)
        scores = _add_product(q, h, scores, PRODUCT)
        if READ:
            if EVEN:
                w = tl.load(outputs + at + d0)
            else:
                w = tl.load(outputs + at + d0, mask=units[None, :] < D - d0, other=0.0)
            if UPCAST:
                w = w.to(tl.float32)
            reads = _add_product(w, h, reads, PRODUCT)
    return scores, reads


@triton.jit
def _high_bits(x):
    """x with the 10 bits of mantissa that TF32 keeps."""
    return (x.to(tl.int32, bitcast=True) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def _plant(
    total,
    cell_rows,
    cell_tokens,
    cell_values,
    bounds,
    tile,
    gain,
    BL: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """total (BL, BT) plus gain times the planted cells of a tile.

    The cells are scattered by a product of two one-hot matrices. With TF32 a value goes in three
    parts of ten bits, so the result is exact.
    """
    first = tl.load(bounds + tile)
    last = tl.load(bounds + tile + 1)
    for c0 in range(first, last, BC):
        c = c0 + tl.arange(0, BC)
        row = tl.load(cell_rows + c, mask=c < last, other=-1)
        token = tl.load(cell_tokens + c, mask=c < last, other=-1)
        value = gain * tl.load(cell_values + c, mask=c < last, other=0.0)
        left = (tl.arange(0, BL)[:, None] == row[None, :]).to(tl.float32)
        here = tl.arange(0, BT)[None, :] == token[:, None]
        if PRODUCT == "ieee":
            total = tl.dot(
                left, tl.where(here, value[:, None], 0.0), total, input_precision=PRODUCT
            )
        else:
            for _part in tl.static_range(3):
                high = _high_bits(value)
                total = tl.dot(
                    left, tl.where(here, high[:, None], 0.0), total, input_precision=PRODUCT
                )
                value -= high
    return total


@triton.jit
def _ordered(scores):
    """int32 in the order of float32 scores."""
    # 0.0 and -0.0 are equal scores with different bits
    bits = tl.where(scores == 0.0, 0.0, scores).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _kept(scores, places, edge, last, is_column):
    """Whether inattention keeps a score (BL, BT).

    It does above the row's edge (BL,), and on the edge up to the place `last` (BL,).
    """
    order, edges = _ordered(scores), tl.load(edge, mask=is_column, other=0)[:, None]
    last_place = tl.load(last, mask=is_column, other=0)[:, None]
    return (order > edges) | ((order == edges) & (places[None, :] <= last_place))


@triton.jit
def _score_kernel(
    hidden,
    queries,
    outputs,
    labels,
    offsets,
    cell_rows,
    cell_tokens,
    cell_values,
    bounds,
    planted_gain,
    out_scores,  # (columns of the part, S) float32 out, planted cells included
    columns,
    D,
    tiles,
    batch,
    blocks,
    S,
    block0,
    blocks_here,
    b0,
    token0,
    CANDIDATES: tl.constexpr,
    PLANTED: tl.constexpr,
    BL: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
    BC: tl.constexpr,
    EVEN: tl.constexpr,
    PRODUCT: tl.constexpr,
    UPCAST: tl.constexpr,
    GROUP: tl.constexpr,
):
    block, b = _place(batch, blocks_here, GROUP)
    block, b, t = block0 + block, b0 + b, tl.program_id(1)
    column = block * BL + tl.arange(0, BL)
    rows = _rows(labels, column, b, columns, CANDIDATES)
    begin, end = _span(offsets, b)
    places = (t * BT + tl.arange(0, BT)).to(tl.int32)
    if t * BT < end - begin:
        tokens = begin + places
        scores, _ = _tile(
            hidden, queries, outputs, rows, tokens, end, D, BL, BT, BD, EVEN, PRODUCT, UPCAST, False
        )
        if PLANTED:
            tile = (b * blocks + block) * tiles + t
            gain = tl.load(planted_gain)
            scores = _plant(
                scores, cell_rows, cell_tokens, cell_values, bounds, tile, gain, BL, BT, BC, PRODUCT
            )
        to = (column - block0 * BL).to(tl.int64)[:, None] * S + (begin - token0 + places)[None, :]
        mask = (column < columns)[:, None] & (tokens < end)[None, :]
        tl.store(out_scores + to, scores, mask=mask)


@triton.jit
def _count(row, length, edge, BT: tl.constexpr, WHICH: tl.constexpr):
    """How many of the first `length` scores of a row lie above, on or at least on an edge.

    The edge is in the order of `_ordered`; WHICH is "above", "equal" or "at least".
    """
    count = tl.zeros((BT,), tl.int32)
    for t0 in range(0, length, BT):
        places = t0 + tl.arange(0, BT)
        inside = places < length
        order = _ordered(tl.load(row + places, mask=inside, other=0.0))
        if WHICH == "above":
            counted = order > edge
        elif WHICH == "equal":
            counted = order == edge
        else:
            counted = order >= edge
        count += (inside & counted).to(tl.int32)
    return tl.sum(count, 0)


@triton.jit
def _select_kernel(
    scores,  # (columns of the part, S)
    offsets,
    edge,  # out (B, C) int32: the K-th highest score in the order of `_ordered`
    last,  # out (B, C) int32: the last place at which a score on the edge is kept
    columns,
    S,
    low,
    b0,
    token0,
    keep,
    BT: tl.constexpr,
):
    """The K-th best score of a row, found bit by bit, then the place of the last kept tie.

    The row is read once per bit and never sorted.
    """
    column, b = tl.program_id(0), b0 + tl.program_id(1)
    begin, end = _span(offsets, b)
    row = scores + column.to(tl.int64) * S + (begin - token0)
    length = end - begin
    kth = tl.full((), -0x80000000, tl.int32)
    for step in range(32):
        # the highest bit is the sign
        trial = tl.where(step == 0, 0, kth | (tl.full((), 1, tl.int32) << (31 - step)))
        kth = tl.where(_count(row, length, trial, BT, "at least") >= keep, trial, kth)
    room = keep - _count(row, length, kth, BT, "above")
    # the largest place before which there are fewer ties than room for them
    place = tl.full((), 0, tl.int32)
    for step in range(31):
        trial = place | (tl.full((), 1, tl.int32) << (30 - step))
        if trial < length:
            place = tl.where(_count(row, trial, kth, BT, "equal") < room, trial, place)
    at = b.to(tl.int64) * columns + low + column
    tl.store(edge + at, kth)
    tl.store(last + at, place)


@triton.jit
def _forward_kernel(
    hidden,
    queries,
    outputs,
    labels,
    offsets,
    cell_rows,
    cell_tokens,
    cell_values,
    bounds,
    planted_gain,
    edge,
    last,  # (B, C): which scores are kept, if KEPT
    value,
    top,
    total,  # out (B, C) float32 each
    columns,
    D,
    tiles,
    batch,
    blocks,
    CANDIDATES: tl.constexpr,
    PLANTED: tl.constexpr,
    KEPT: tl.constexpr,
    BL: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
    BC: tl.constexpr,
    EVEN: tl.constexpr,
    PRODUCT: tl.constexpr,
    UPCAST: tl.constexpr,
    GROUP: tl.constexpr,
):
    # this program's columns and document
    block, b = _place(batch, blocks, GROUP)
    column = block * BL + tl.arange(0, BL)
    rows = _rows(labels, column, b, columns, CANDIDATES)
    begin, end = _span(offsets, b)
    out = b.to(tl.int64) * columns + column
    # running maximum, sum of exponentials and weighted outputs
    m = tl.full((BL,), float("-inf"), tl.float32)
    s = tl.zeros((BL,), tl.float32)
    o = tl.zeros((BL,), tl.float32)
    for t0 in range(0, end - begin, BT):
        places = (t0 + tl.arange(0, BT)).to(tl.int32)
        tokens = begin + places
        inside = tokens < end
        scores, reads = _tile(
            hidden, queries, outputs, rows, tokens, end, D, BL, BT, BD, EVEN, PRODUCT, UPCAST, True
        )
        if PLANTED:
            tile = (b * blocks + block) * tiles + t0 // BT
            gain = tl.load(planted_gain)
            scores = _plant(
                scores, cell_rows, cell_tokens, cell_values, bounds, tile, gain, BL, BT, BC, PRODUCT
            )
        # mask, then the step of the running softmax
        attended = inside[None, :] & (scores == scores)
        if KEPT:
            attended = attended & _kept(scores, places, edge + out, last + out, column < columns)
        # NaN scores stay, so that broken input shows
        scores = tl.where(attended | (scores != scores) & inside[None, :], scores, float("-inf"))
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
    hidden,
    queries,
    outputs,
    labels,
    offsets,
    cell_rows,
    cell_tokens,
    cell_values,
    bounds,
    planted_gain,
    edge,
    last,  # (B, C): which scores are kept, if KEPT
    top,
    value,
    scale,
    shift,  # (B, C): largest score, value, g / s, g_lse / s
    d_scores,
    d_reads,  # out (columns of the part, S)
    d_gain,  # out (B, blocks, tiles): part of the gain's gradient
    columns,
    D,
    tiles,
    batch,
    blocks,
    S,
    block0,
    blocks_here,
    b0,
    token0,
    CANDIDATES: tl.constexpr,
    PLANTED: tl.constexpr,
    KEPT: tl.constexpr,
    BL: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
    BC: tl.constexpr,
    EVEN: tl.constexpr,
    PRODUCT: tl.constexpr,
    UPCAST: tl.constexpr,
    GROUP: tl.constexpr,
):
    # this program's columns, document and tile of tokens
    block, b = _place(batch, blocks_here, GROUP)
    block, b, t = block0 + block, b0 + b, tl.program_id(1)
    column = block * BL + tl.arange(0, BL)
    is_column = column < columns
    rows = _rows(labels, column, b, columns, CANDIDATES)
    begin, end = _span(offsets, b)
    places = (t * BT + tl.arange(0, BT)).to(tl.int32)
    tokens = begin + places
    inside = tokens < end
    if t * BT < end - begin:
        # scores and outputs again
        scores, reads = _tile(
            hidden, queries, outputs, rows, tokens, end, D, BL, BT, BD, EVEN, PRODUCT, UPCAST, True
        )
        tile = (b * blocks + block) * tiles + t
        if PLANTED:
            gain = tl.load(planted_gain)
            scores = _plant(
                scores, cell_rows, cell_tokens, cell_values, bounds, tile, gain, BL, BT, BC, PRODUCT
            )
        # weights e, gradients of scores and outputs
        at = b.to(tl.int64) * columns + column
        attended = inside[None, :]
        if KEPT:
            attended = attended & _kept(scores, places, edge + at, last + at, is_column)
        m = tl.load(top + at, mask=is_column, other=0.0)
        g = tl.load(scale + at, mask=is_column, other=0.0)
        e = tl.where(attended, tl.exp(scores - tl.where(m == float("-inf"), 0.0, m)[:, None]), 0.0)
        centred = reads - tl.load(value + at, mask=is_column, other=0.0)[:, None]
        ds = e * (g[:, None] * centred + tl.load(shift + at, mask=is_column, other=0.0)[:, None])
        to = (column - block0 * BL).to(tl.int64)[:, None] * S + (begin - token0 + places)[None, :]
        mask = is_column[:, None] & inside[None, :]
        tl.store(d_scores + to, ds.to(d_scores.dtype.element_ty), mask=mask)
        tl.store(d_reads + to, (e * g[:, None]).to(d_reads.dtype.element_ty), mask=mask)
        if PLANTED:
            # built again rather than stored, because scores and outputs fill the registers
            planted = tl.zeros((BL, BT), tl.float32)
            planted = _plant(
                planted, cell_rows, cell_tokens, cell_values, bounds, tile, 1.0, BL, BT, BC, PRODUCT
            )
            tl.store(
                d_gain + tile, tl.sum(tl.sum(tl.where(is_column[:, None], ds * planted, 0.0), 1), 0)
            )
