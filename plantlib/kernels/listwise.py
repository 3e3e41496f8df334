"""approxNDCG and LambdaRank in Triton (docs/method.md, "Learning to rank").

They compute what `reference.approx_ndcg_rows` and `lambdarank_rows` define. A program owns a block
of items of one row and reads the others tile by tile. Rows arrive sorted by gain with the numbers
of real and of positive items, so masks are lengths, and blocks without gain stop at the positives.
Each output place has one writer and there are no atomics, so runs give equal bits. Arithmetic is
float32 for any input. PyTorch does sorting, ranks, discounts and the ideal DCG.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from plantlib.kernels.listwise_torch import RowLosses, rank_slopes, sort_by_gain

ITEMS = 16  # items per program
OTHERS = 128  # items that it reads together
WARPS = 4
STAGES = 2


@triton.jit
def _sigmoid(x, e):
    """Sigmoid of x for e = exp(-|x|), which cannot overflow."""
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def _softplus(x, e):
    """log(1 + exp(x)) for e = exp(-|x|)."""
    # log1p(e) = 2 atanh(e / (2 + e)), by a series that is exact in float32 for e <= 1
    z = e / (2.0 + e)
    q = z * z
    series = 1.0 / 13 + q * (1.0 / 15)
    series = 1.0 / 9 + q * (1.0 / 11 + q * series)
    series = 1.0 / 5 + q * (1.0 / 7 + q * series)
    series = 1.0 + q * (1.0 / 3 + q * series)
    return tl.maximum(x, 0.0) + 2.0 * z * series


@triton.jit
def _ranks_kernel(
    scores,  # (R, T) by falling gain
    real,  # (R,)
    positives,  # (R,)
    ranks,  # (R, T) out; meaningful for positive items
    T,
    alpha,
    BI: tl.constexpr,
    BJ: tl.constexpr,
):
    """Smooth ranks of positive items: 1/2 + sum_j sigmoid(alpha (s_j - s_i))."""
    row, first = tl.program_id(0), tl.program_id(1) * BI
    base = row.to(tl.int64) * T
    items = first + tl.arange(0, BI)
    length = tl.load(real + row)
    item_score = tl.load(scores + base + items, mask=items < length, other=0.0)
    ahead = tl.zeros((BI, BJ), tl.float32)
    for start in range(0, tl.where(first < tl.load(positives + row), length, 0), BJ):
        others = start + tl.arange(0, BJ)
        other_score = tl.load(scores + base + others, mask=others < length, other=float("-inf"))
        x = alpha * (other_score[None, :] - item_score[:, None])
        ahead += _sigmoid(x, tl.exp(-tl.abs(x)))
    tl.store(ranks + base + items, 0.5 + tl.sum(ahead, 1), mask=items < T)


@triton.jit
def _rank_gradient_kernel(
    scores,  # (R, T) by falling gain
    slopes,  # (R, T) d loss / d rank, zero without gain
    real,  # (R,)
    positives,  # (R,)
    gradient,  # (R, T) out
    T,
    alpha,
    BI: tl.constexpr,
    BJ: tl.constexpr,
):
    """alpha sum_j sigmoid'(alpha (s_j - s_i)) (slope_j - slope_i): the slope of sigmoid is even."""
    row, first = tl.program_id(0), tl.program_id(1) * BI
    base = row.to(tl.int64) * T
    items = first + tl.arange(0, BI)
    length, bound = tl.load(real + row), tl.load(positives + row)
    # a block without gain is moved by the positive items alone
    bound = tl.where(first < bound, length, bound)
    item_score = tl.load(scores + base + items, mask=items < length, other=0.0)
    item_slope = tl.load(slopes + base + items, mask=items < length, other=0.0)
    total = tl.zeros((BI, BJ), tl.float32)
    for start in range(0, tl.where(first < length, bound, 0), BJ):
        others = start + tl.arange(0, BJ)
        other_score = tl.load(scores + base + others, mask=others < length, other=float("-inf"))
        slope = tl.load(slopes + base + others, mask=others < length, other=0.0)
        x = alpha * (other_score[None, :] - item_score[:, None])
        e = tl.exp(-tl.abs(x))
        total += e / ((1.0 + e) * (1.0 + e)) * (slope[None, :] - item_slope[:, None])
    tl.store(
        gradient + base + items,
        tl.where(items < length, alpha * tl.sum(total, 1), 0.0),
        mask=items < T,
    )


@triton.jit
def _lambda_kernel(
    scores,  # (R, T) by falling gain
    gain,  # (R, T)
    discount,  # (R, T)
    real,  # (R,)
    positives,  # (R,)
    loss,  # (R, T) out: pairs in which the item is the better one
    gradient,  # (R, T) out, if GRADIENT
    T,
    sigma,
    BI: tl.constexpr,
    BJ: tl.constexpr,
    GRADIENT: tl.constexpr,
):
    """Pair losses and lambdas before the division by the ideal DCG."""
    row, first = tl.program_id(0), tl.program_id(1) * BI
    base = row.to(tl.int64) * T
    items = first + tl.arange(0, BI)
    length, bound = tl.load(real + row), tl.load(positives + row)
    # items without gain lose to positive items and beat none
    bound = tl.where(first < bound, length, bound if GRADIENT else 0)
    item_score = tl.load(scores + base + items, mask=items < length, other=0.0)
    item_gain = tl.load(gain + base + items, mask=items < length, other=0.0)
    item_discount = tl.load(discount + base + items, mask=items < length, other=0.0)
    losses = tl.zeros((BI, BJ), tl.float32)
    pulls = tl.zeros((BI, BJ), tl.float32)
    for start in range(0, tl.where(first < length, bound, 0), BJ):
        others = start + tl.arange(0, BJ)
        real_other = others < length
        other_score = tl.load(scores + base + others, mask=real_other, other=0.0)
        other_gain = tl.load(gain + base + others, mask=real_other, other=0.0)
        other_discount = tl.load(discount + base + others, mask=real_other, other=0.0)
        better = other_gain[None, :] - item_gain[:, None]
        apart = other_discount[None, :] - item_discount[:, None]
        real_pair = real_other[None, :] & (items < length)[:, None]
        weight = tl.where(real_pair, tl.abs(better * apart), 0.0)
        ahead = other_score[None, :] - item_score[:, None]
        # sigma (worse - better score), whichever of the two is this program's
        x = sigma * tl.where(better > 0, -ahead, ahead)
        e = tl.exp(-tl.abs(x))
        losses += tl.where(better < 0, weight * _softplus(x, e), 0.0)
        if GRADIENT:
            pulls += tl.where(better > 0, weight, -weight) * _sigmoid(x, e)
    tl.store(loss + base + items, tl.sum(losses, 1), mask=items < T)
    if GRADIENT:
        tl.store(gradient + base + items, sigma * tl.sum(pulls, 1), mask=items < T)


def approx_ndcg_rows(scores, gain, mask, ideal, alpha: float) -> torch.Tensor:
    """(R,) losses; arguments as `reference.approx_ndcg_rows`."""
    return RowLosses.apply(scores, gain, mask, ideal, alpha, _approx_ndcg)


def lambdarank_rows(scores, gain, mask, ideal, sigma: float) -> torch.Tensor:
    """(R,) losses; arguments as `reference.lambdarank_rows`."""
    return RowLosses.apply(scores, gain, mask, ideal, sigma, _lambdarank)


def _approx_ndcg(scores, gain, mask, ideal, alpha, wants_gradient):
    lists, counts, grid = _sorted(scores, gain, mask, wants_ranks=False)
    ranks = torch.empty_like(lists.scores)
    size = (scores.shape[1], float(alpha), ITEMS, OTHERS)
    _launch(_ranks_kernel, grid, lists.scores, *counts, ranks, *size)
    ideal = ideal.float()
    loss = 1.0 - (lists.gain / torch.log2(1.0 + ranks)).sum(-1) / ideal
    if not wants_gradient:
        return loss.to(scores.dtype), None
    gradient = torch.empty_like(ranks)
    slopes = rank_slopes(lists.gain, ranks, ideal)
    _launch(_rank_gradient_kernel, grid, lists.scores, slopes, *counts, gradient, *size)
    return loss.to(scores.dtype), _in_order_of(scores, lists.order, gradient)


def _lambdarank(scores, gain, mask, ideal, sigma, wants_gradient):
    lists, counts, grid = _sorted(scores, gain, mask, wants_ranks=True)
    loss = torch.empty_like(lists.scores)
    # without a gradient nothing is written through the pointer
    gradient = torch.empty_like(loss) if wants_gradient else loss
    inputs = (lists.scores, lists.gain, lists.discount, *counts)
    size = (scores.shape[1], float(sigma), ITEMS, OTHERS, wants_gradient)
    _launch(_lambda_kernel, grid, *inputs, loss, gradient, *size)
    ideal = ideal.float()
    loss = (loss.sum(-1) / ideal).to(scores.dtype)
    if not wants_gradient:
        return loss, None
    return loss, _in_order_of(scores, lists.order, gradient / ideal[:, None])


def _sorted(scores, gain, mask, wants_ranks: bool):
    """Lists in float32, their counts in int32, and a grid of (rows, blocks of items)."""
    lists = sort_by_gain(scores.float(), gain.float(), mask, wants_ranks)
    counts = (lists.real.to(torch.int32), lists.positives.to(torch.int32))
    return lists, counts, (scores.shape[0], triton.cdiv(scores.shape[1], ITEMS))


def _launch(kernel, grid, *arguments) -> None:
    if 0 in grid:
        return
    # Triton launches on the current GPU, which need not be the one that holds the scores
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, num_warps=WARPS, num_stages=STAGES)


def _in_order_of(scores, order, by_gain) -> torch.Tensor:
    """(R, T) by falling gain -> the order and dtype of `scores`."""
    return torch.empty_like(by_gain).scatter_(-1, order, by_gain).to(scores.dtype)


def ahead_of_time_specs() -> list[tuple]:
    """(name, kernel, signature, constants, warps, stages) of all kernels, for `compile.py`."""
    others = {"real": "*i32", "positives": "*i32", "T": "i32", "alpha": "fp32", "sigma": "fp32"}
    blocks = {"BI": ITEMS, "BJ": OTHERS}
    specs = []
    for name, kernel, constants in (
        ("listwise_ranks", _ranks_kernel, blocks),
        ("listwise_rank_gradient", _rank_gradient_kernel, blocks),
        ("listwise_lambda_loss", _lambda_kernel, blocks | {"GRADIENT": False}),
        ("listwise_lambda", _lambda_kernel, blocks | {"GRADIENT": True}),
    ):
        kinds = others | dict.fromkeys(constants, "constexpr")
        signature = {argument: kinds.get(argument, "*fp32") for argument in kernel.arg_names}
        specs.append((name, kernel, signature, constants, WARPS, STAGES))
    return specs
