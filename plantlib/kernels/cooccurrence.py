"""The K best tokens of each label by mutual information, in two Triton passes over bitmaps.

Realises docs/method.md, "Mutual information gain", to the bit of `mig.association_blocks` and
`mig.top_tokens`, and stores no (V, L) table. Counts are exact integers, logarithms come from the
one float64 table, and float64 operations run in the CPU's order, without a product that a compiler
could contract. A program owns a block of labels: `_threshold_kernel` streams scores through a short
list per label and finds the K-th highest, `_emit_kernel` computes the scores again and writes those
that are kept. Each place has one writer and there are no atomics, so runs give equal bits. Keeping
all associations of a label (top_k=None) is left to the CPU path.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from scipy import sparse

from plantlib.kernels import machine
from plantlib.kernels.counts import (
    VARIANTS,
    check_request,
    column_counts,
    entropy,
    n_log_n,
    presence,
)

MAX_TOP_K = 512  # the list of candidates of a label passes through registers
MAX_DOCUMENTS = 2**24  # above, float32 sums of ones are not exact
LABELS = 32  # labels per program
TOKENS = 64  # tokens per tile
WORDS = 4  # words of 32 documents per product
ENTRIES = 2**22  # matrix entries turned into bits at once
WARPS = 8
STAGES = 2
NO_SPECIALIZATION = ["N", "V", "L", "W", "K"]  # a size of 1 would become a constant without a type
TINY = tl.constexpr(float(np.finfo(float).tiny))


@triton.jit
def _unpack(words, BW: tl.constexpr, B: tl.constexpr):
    """(BW, B) words -> (BW 32, B) ones and zeros in float16."""
    # the bit times the pattern of 1.0 is cheaper than a conversion
    bits = (words[:, None, :] >> tl.arange(0, 32)[None, :, None]) & 1
    return tl.reshape((bits * 0x3C00).to(tl.int16), (BW * 32, B)).to(tl.float16, bitcast=True)


@triton.jit
def _counts(
    x_bits, y_bits, tokens, labels, V, L, W, BT: tl.constexpr, BL: tl.constexpr, BW: tl.constexpr
):
    """(BL, BT) int32 documents with label and token, exact."""
    both = tl.zeros((BL, BT), tl.float32)
    for first in range(0, W, BW):
        word = first + tl.arange(0, BW)
        at = word.to(tl.int64)[:, None]
        x = tl.load(
            x_bits + at * V + tokens[None, :],
            mask=(word < W)[:, None] & (tokens < V)[None, :],
            other=0,
        )
        y = tl.load(
            y_bits + at * L + labels[None, :],
            mask=(word < W)[:, None] & (labels < L)[None, :],
            other=0,
        )
        both = tl.dot(tl.trans(_unpack(y, BW, BL)), _unpack(x, BW, BT), both)
    return both.to(tl.int32)


@triton.jit
def _keys(
    x_bits,  # (W, V) int32
    y_bits,  # (W, L) int32
    n_t,
    h_t,  # (V,) int32 documents, float64 entropy
    n_l,
    h_l,  # (L,)
    f,  # (N + 1,) float64, f(n) = n ln n
    tokens,
    labels,
    N,
    V,
    L,
    W,
    VARIANT: tl.constexpr,
    BT: tl.constexpr,
    BL: tl.constexpr,
    BW: tl.constexpr,
):
    """(BL, BT) int64 bits of the scores, which sort alike; -1 without positive association.

    The operations are those of `counts.information` and `counts.normalise`.
    """
    both = _counts(x_bits, y_bits, tokens, labels, V, L, W, BT, BL, BW)
    is_token, is_label = tokens < V, labels < L
    t = tl.load(n_t + tokens, mask=is_token, other=0)
    c = tl.load(n_l + labels, mask=is_label, other=0)
    positive = both.to(tl.int64) * N > t.to(tl.int64)[None, :] * c.to(tl.int64)[:, None]
    t_margin = tl.load(f + t) + tl.load(f + N - t)
    c_one, c_rest = tl.load(f + c), tl.load(f + N - c)
    t, c = t[None, :], c[:, None]
    cells = tl.load(f + both, mask=positive, other=0.0) + tl.load(
        f + (t - both), mask=positive, other=0.0
    )
    cells = cells + tl.load(f + (c - both), mask=positive, other=0.0)
    cells = cells + tl.load(f + (N - t - c + both), mask=positive, other=0.0)
    margins = t_margin[None, :] + c_one[:, None] + c_rest[:, None]
    score = (cells - margins + tl.load(f + N)) / tl.cast(N, tl.float64)
    # a comparison rather than a maximum, which may leave the sign of a zero to the hardware
    score = tl.where(score > 0, score, tl.zeros((BL, BT), tl.float64))
    tiny = tl.full((BL, BT), TINY, tl.float64)
    label_entropy = tl.load(h_l + labels, mask=is_label, other=0.0)[:, None]
    if VARIANT == "jaccard":
        token_entropy = tl.load(h_t + tokens, mask=is_token, other=0.0)[None, :]
        score = score / tl.maximum(token_entropy + label_entropy - score, tiny)
    elif VARIANT == "label_entropy":
        score = score / tl.maximum(tl.zeros((BL, BT), tl.float64) + label_entropy, tiny)
    return tl.where(positive, score.to(tl.int64, bitcast=True), -1)


@triton.jit
def _kth(keys, K):
    """The K-th highest of keys (CAP,), found bit by bit; 0, the lowest score, if too few."""
    edge = tl.full((), 0, tl.int64)
    one = tl.full((), 1, tl.int64)
    for step in range(63):
        trial = edge | (one << (62 - step))
        edge = tl.where(tl.sum((keys >= trial).to(tl.int32), 0) >= K, trial, edge)
    return edge


@triton.jit
def _shorten(row, label, thresholds, filled, K, CAP: tl.constexpr):
    """Cut a label's candidates to the K best and raise its threshold; how many are above it."""
    places = tl.arange(0, CAP)
    keys = tl.load(row + places, mask=places < tl.load(filled + label), other=-1)
    edge = _kth(keys, K)
    higher = keys > edge
    above = tl.sum(higher.to(tl.int32), 0)
    tie = (keys == edge).to(tl.int32)
    keep = (higher | ((tie > 0) & (tl.cumsum(tie, 0) <= K - above))).to(tl.int32)
    # no thread may write before all have read
    tl.debug_barrier()
    tl.store(row + tl.cumsum(keep, 0) - 1, keys, mask=keep > 0)
    tl.store(thresholds + label, edge)
    tl.store(filled + label, tl.sum(keep, 0))
    return above


@triton.jit(do_not_specialize=NO_SPECIALIZATION)
def _threshold_kernel(
    x_bits,
    y_bits,
    n_t,
    h_t,
    n_l,
    h_l,
    f,  # as in _keys
    # (L,) int64 out: key of the K-th highest score with multiplicity, 0 where there are fewer
    thresholds,
    above,  # (L,) int32 out: tokens strictly above it
    candidates,  # (L, CAP) int64 scratch: keys above the threshold so far
    filled,  # (L,) int32 scratch: how many
    N,
    V,
    L,
    W,
    K,
    VARIANT: tl.constexpr,
    BT: tl.constexpr,
    BL: tl.constexpr,
    BW: tl.constexpr,
    CAP: tl.constexpr,
):
    """The edge between kept and dropped tokens of a block of labels."""
    begin = tl.program_id(0) * BL
    labels = begin + tl.arange(0, BL)
    end = tl.minimum(begin + BL, L)
    is_label = labels < L
    rows = labels.to(tl.int64)[:, None] * CAP
    tl.store(thresholds + labels, tl.zeros((BL,), tl.int64), mask=is_label)
    tl.store(filled + labels, tl.zeros((BL,), tl.int32), mask=is_label)
    # the scratch is written and read by different threads of the program, hence the barriers
    tl.debug_barrier()
    for first in range(0, V, BT):
        tokens = first + tl.arange(0, BT)
        keys = _keys(
            x_bits, y_bits, n_t, h_t, n_l, h_l, f, tokens, labels, N, V, L, W, VARIANT, BT, BL, BW
        )
        edge = tl.load(thresholds + labels, mask=is_label, other=0)
        fresh = (keys > edge[:, None]).to(tl.int32)
        added = tl.sum(fresh, 1)
        if tl.sum(added, 0) > 0:
            before = tl.load(filled + labels, mask=is_label, other=0)
            place = rows + before[:, None] + tl.cumsum(fresh, 1) - 1
            tl.store(candidates + place, keys, mask=fresh > 0)
            tl.debug_barrier()
            tl.store(filled + labels, before + added, mask=is_label)
            tl.debug_barrier()
            for label in range(begin, end):
                # the next tile must fit
                if tl.load(filled + label) > CAP - BT:
                    row = candidates + tl.cast(label, tl.int64) * CAP
                    _shorten(row, label, thresholds, filled, K, CAP)
            tl.debug_barrier()
    for label in range(begin, end):
        row = candidates + tl.cast(label, tl.int64) * CAP
        higher = _shorten(row, label, thresholds, filled, K, CAP)
        tl.store(above + label, higher)


@triton.jit(do_not_specialize=NO_SPECIALIZATION)
def _emit_kernel(
    x_bits,
    y_bits,
    n_t,
    h_t,
    n_l,
    h_l,
    f,  # as in _keys
    thresholds,  # (L,) int64
    above,  # (L,) int32
    columns,  # (L, K) int32 out: token ids, rising
    scores,  # (L, K) int64 out: bits of the float64 scores
    counts,  # (L,) int32 out: filled places
    N,
    V,
    L,
    W,
    K,
    VARIANT: tl.constexpr,
    BT: tl.constexpr,
    BL: tl.constexpr,
    BW: tl.constexpr,
):
    """Tokens above the edge and the first ones on it, by rising id."""
    labels = tl.program_id(0) * BL + tl.arange(0, BL)
    is_label = labels < L
    edge = tl.load(thresholds + labels, mask=is_label, other=0)[:, None]
    room = (K - tl.load(above + labels, mask=is_label, other=0))[:, None]
    row = labels.to(tl.int64)[:, None] * K
    ties = tl.zeros((BL,), tl.int32)
    written = tl.zeros((BL,), tl.int32)
    for first in range(0, V, BT):
        tokens = first + tl.arange(0, BT)
        keys = _keys(
            x_bits, y_bits, n_t, h_t, n_l, h_l, f, tokens, labels, N, V, L, W, VARIANT, BT, BL, BW
        )
        tie = (keys == edge).to(tl.int32)
        early = ties[:, None] + tl.cumsum(tie, 1) <= room
        keep = (keys > edge) | ((tie > 0) & early)
        place = row + written[:, None] + tl.cumsum(keep.to(tl.int32), 1) - 1
        tl.store(columns + place, tl.zeros((BL, BT), tl.int32) + tokens[None, :], mask=keep)
        tl.store(scores + place, keys, mask=keep)
        ties += tl.sum(tie, 1)
        written += tl.sum(keep.to(tl.int32), 1)
    tl.store(counts + labels, written, mask=is_label)


def top_associations(
    x: sparse.csr_matrix, y: sparse.csr_matrix, *, variant: str, top_k: int, device=None
) -> sparse.csr_matrix:
    """Scores of the best tokens of each label, as `mig.top_tokens` gives them, bit by bit.

    The device holds N (V + L) / 8 bytes of bitmaps and at most max(4 top_k, 256) candidates per
    label.

    Args:
        x: (N, V) token counts of training rows, N at most 2^24.
        y: (N, L) their labels.
        variant: as in `mig.association_blocks`.
        top_k: tokens per label, 1 to 512.
        device: a GPU, the current one if None; the CPU only where Triton interprets.

    Returns:
        (L, V) csr float64 with sorted columns.

    Raises:
        ValueError: for a request that the kernels cannot serve.
    """
    check_request(x, y, variant)
    check_limits(x.shape[0], top_k)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    machine.implementation("triton", torch.empty(0, device=device))
    x, y = presence(x), presence(y)
    shape = (y.shape[1], x.shape[1])
    if 0 in shape:
        return sparse.csr_matrix(shape, dtype=np.float64)
    return _rows(*_launch(x, y, variant, top_k, device), shape)


def check_limits(documents: int, top_k: int | None) -> None:
    """ValueError if the kernels cannot count so many documents or keep so many tokens."""
    if top_k is None or not 1 <= top_k <= MAX_TOP_K:
        raise ValueError(
            f"top_k={top_k}: the Triton kernels keep 1 to {MAX_TOP_K} tokens per label; use"
            " impl='torch'"
        )
    if documents > MAX_DOCUMENTS:
        raise ValueError(
            f"{documents:,} documents: counts are exact up to {MAX_DOCUMENTS:,} in the Triton"
            " kernels; use impl='torch'"
        )


def capacity(top_k: int) -> int:
    """Candidates per label before they are cut to `top_k`: a power of two with room for tiles."""
    return max(2 * triton.next_power_of_2(top_k), 4 * TOKENS)


def bitmap(present: sparse.csr_matrix, device) -> torch.Tensor:
    """Pack presence (N, C) without duplicates into bits.

    Returns:
        (ceil(N / 32), C) int32: bit r % 32 of word (r // 32, c) is row r, column c. Neighbouring
        columns lie side by side in memory, as a program loads them.
    """
    size = (present.shape[0] + 31) // 32 * present.shape[1]
    words = torch.zeros(size, dtype=torch.int32, device=device)
    indptr = torch.from_numpy(present.indptr.astype(np.int64)).to(device)
    for begin in range(0, present.nnz, ENTRIES):
        end = min(begin + ENTRIES, present.nnz)
        column = torch.from_numpy(present.indices[begin:end].astype(np.int64)).to(device)
        row = torch.searchsorted(indptr, torch.arange(begin, end, device=device), right=True) - 1
        bit = torch.bitwise_left_shift(torch.ones_like(row), row % 32).to(torch.int32)
        # distinct bits add up to their union; accumulation sorts, so it is the same in every run
        words.index_put_((row // 32 * present.shape[1] + column,), bit, accumulate=True)
    return words.view(-1, present.shape[1])


def _launch(x, y, variant: str, top_k: int, device) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(L, K) token ids, (L, K) scores and (L,) counts of both kernels, on the host."""
    (n, vocabulary), labels = x.shape, y.shape[1]
    inputs = (bitmap(x, device), bitmap(y, device), *_marginals(x, y, device))
    sizes = (n, vocabulary, labels, (n + 31) // 32, top_k, variant, TOKENS, LABELS, WORDS)

    def empty(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    edges = (empty(labels, dtype=torch.int64), empty(labels))
    scratch = (empty(labels, capacity(top_k), dtype=torch.int64), empty(labels))
    out = (empty(labels, top_k), empty(labels, top_k, dtype=torch.int64), empty(labels))
    grid, options = (triton.cdiv(labels, LABELS),), {"num_warps": WARPS, "num_stages": STAGES}
    # Triton launches on the current GPU, which need not be `device`
    with torch.cuda.device_of(inputs[0]):
        _threshold_kernel[grid](*inputs, *edges, *scratch, *sizes, capacity(top_k), **options)
        _emit_kernel[grid](*inputs, *edges, *out, *sizes, **options)
    columns, scores, counts = (tensor.cpu().numpy() for tensor in out)
    return columns, scores.view(np.float64), counts


def _marginals(x, y, device) -> tuple[torch.Tensor, ...]:
    """n_t, H(t), n_l, H(l) and the table n ln n, computed as the CPU path computes them."""
    n, table = x.shape[0], n_log_n(x.shape[0])
    counts = [column_counts(x), column_counts(y)]
    arrays = [a for c in counts for a in (c.astype(np.int32), entropy(c, n, table))] + [table]
    return tuple(torch.from_numpy(a).to(device) for a in arrays)


def _rows(columns, scores, counts, shape) -> sparse.csr_matrix:
    """csr of the filled places."""
    filled = np.arange(columns.shape[1])[None, :] < counts[:, None]
    indptr = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    return sparse.csr_matrix((scores[filled], columns[filled], indptr), shape=shape)


def ahead_of_time_specs() -> list[tuple]:
    """(name, kernel, signature, constants, warps, stages) of all kernels, for `compile.py`."""
    inputs = dict.fromkeys(["x_bits", "y_bits"], "*i32")
    inputs |= {"n_t": "*i32", "h_t": "*fp64", "n_l": "*i32", "h_l": "*fp64", "f": "*fp64"}
    inputs |= {"thresholds": "*i64", "above": "*i32"}
    scratch = {"candidates": "*i64", "filled": "*i32"}
    out = {"columns": "*i32", "scores": "*i64", "counts": "*i32"}
    sizes = dict.fromkeys(NO_SPECIALIZATION, "i32")
    blocks = {"BT": TOKENS, "BL": LABELS, "BW": WORDS}
    specs = []

    def add(name: str, kernel, arguments: dict, constants: dict) -> None:
        signature = arguments | dict.fromkeys(constants, "constexpr")
        specs.append((f"cooccurrence_{name}", kernel, signature, constants, WARPS, STAGES))

    for top_k in (64, MAX_TOP_K):
        constants = {"VARIANT": "jaccard"} | blocks | {"CAP": capacity(top_k)}
        add(f"threshold_{top_k}", _threshold_kernel, inputs | scratch | sizes, constants)
    for variant in VARIANTS[1:]:
        add(f"emit_{variant}", _emit_kernel, inputs | out | sizes, {"VARIANT": variant} | blocks)
    return specs
