"""approxNDCG and LambdaRank in PyTorch by blocks of pairs (docs/method.md, "Learning to rank").

They compute what `reference.approx_ndcg_rows` and `lambdarank_rows` define, without (R, T, T).
Items are sorted by gain, so only the P items of positive gain are an "i": a smooth rank matters to
DCG where there is gain, and a pair needs a better item. Time is O(R P T), memory O(R T) plus
WORKSPACES tiles. Loss and gradient are computed together, in closed form, and the backward pass is
one multiplication. Second derivatives are refused.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from plantlib.kernels.reference import rank_discounts

TILE = 2**18  # pairs per tile: smaller tiles cost more in calls than they save in cache
HEIGHT = 64  # items of a row in a tile: low tiles let LambdaRank leave out half of the pairs
WORKSPACES = 3


class Lists(NamedTuple):
    """Rows with their items by falling gain, masked items last."""

    order: torch.Tensor  # (R, T) former place of each item
    scores: torch.Tensor  # (R, T)
    gain: torch.Tensor  # (R, T)
    discount: torch.Tensor | None  # (R, T) of the ranks by score; None where the loss smooths them
    real: torch.Tensor  # (R,) number of items that are not masked
    positives: torch.Tensor  # (R,) number of items of positive gain

    def rows(self, index) -> Lists:
        """Some of the rows."""
        return Lists(*(None if x is None else x[index] for x in self))


def sort_by_gain(scores, gain, mask, wants_ranks: bool) -> Lists:
    """Lists of scores, gain and mask (R, T), with discounts if `wants_ranks`."""
    order = gain.masked_fill(~mask, -1.0).argsort(dim=-1, descending=True, stable=True)
    discount = rank_discounts(scores, mask).gather(-1, order) if wants_ranks else None
    counts = (mask.sum(-1), (gain > 0).sum(-1))
    return Lists(order, scores.gather(-1, order), gain.gather(-1, order), discount, *counts)


def rank_slopes(gain, ranks, ideal) -> torch.Tensor:
    """(R, P) d(1 - DCG / ideal) / d rank of gain and ranks (R, P), ideal (R,); 0 without gain."""
    log_rank = torch.log1p(ranks)
    return gain * math.log(2) / ((1.0 + ranks) * log_rank.square() * ideal[:, None])


class RowLosses(torch.autograd.Function):
    """(R,) losses of `compute`, which returns loss and gradient together."""

    @staticmethod
    def forward(ctx, scores, gain, mask, ideal, sharpness, compute):
        loss, gradient = compute(scores, gain, mask, ideal, sharpness, ctx.needs_input_grad[0])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        # the saved gradient has no graph: a second derivative would silently be wrong
        if torch.is_grad_enabled():
            raise RuntimeError(
                "create_graph=True wants second derivatives of a listwise loss; use"
                " impl='reference' for them"
            )
        (gradient,) = ctx.saved_tensors
        return grad_loss[:, None] * gradient, None, None, None, None, None


def approx_ndcg_rows(scores, gain, mask, ideal, alpha: float) -> torch.Tensor:
    """(R,) losses; arguments as `reference.approx_ndcg_rows`."""
    return RowLosses.apply(scores, gain, mask, ideal, alpha, _approx_ndcg)


def lambdarank_rows(scores, gain, mask, ideal, sigma: float) -> torch.Tensor:
    """(R,) losses; arguments as `reference.lambdarank_rows`."""
    return RowLosses.apply(scores, gain, mask, ideal, sigma, _lambdarank)


def _approx_ndcg(scores, gain, mask, ideal, alpha, wants_gradient):
    tile = _approx_ndcg_tile
    dcg, gradient = _walk(scores, gain, mask, ideal, alpha, wants_gradient, tile, False)
    return 1.0 - dcg, gradient


def _lambdarank(scores, gain, mask, ideal, sigma, wants_gradient):
    return _walk(scores, gain, mask, ideal, sigma, wants_gradient, _lambdarank_tile, True)


def _walk(scores, gain, mask, ideal, sharpness, wants_gradient, tile, wants_ranks: bool):
    """The sum of `tile` over all tiles: loss (R,), and gradient (R, T) as `scores` or None."""
    num_rows, columns = scores.shape
    loss = scores.new_zeros(num_rows)
    gradient = torch.zeros_like(scores) if wants_gradient else None
    kind = {"dtype": scores.dtype, "device": scores.device}
    count = WORKSPACES if wants_ranks else 1
    spaces = [torch.empty(max(TILE, columns), **kind) for _ in range(count)]
    # sorting few rows at a time bounds its indices and copies
    step = max(TILE // max(columns, 1), 1)
    for first in range(0, num_rows, step):
        rows = slice(first, first + step)
        lists = sort_by_gain(scores[rows], gain[rows], mask[rows], wants_ranks)
        # rows of similar P together, so that a tile of several rows is full
        by_positives = lists.positives.argsort(descending=True, stable=True)
        lists = lists.rows(by_positives)
        places = by_positives + first
        losses, slopes = _chunk(lists, ideal[places], sharpness, wants_gradient, tile, spaces)
        loss[places] = losses
        if wants_gradient:
            gradient[places] = torch.zeros_like(slopes).scatter_(-1, lists.order, slopes)
    return loss, gradient


def _chunk(lists: Lists, ideal, sharpness, wants_gradient, tile, spaces):
    """Loss (r,) and gradient (r, T), or None, of sorted lists."""
    loss = torch.zeros_like(ideal)
    gradient = torch.zeros_like(lists.scores) if wants_gradient else None
    places = torch.arange(lists.scores.shape[1], device=ideal.device)
    # as a "j" a masked item is behind everything; as an "i" it is finite and has no gain
    behind = lists.scores.masked_fill(places >= lists.real[:, None], float("-inf"))
    for rows, items, columns in _tiles(lists.positives.tolist(), lists.real.tolist()):
        part = lists.rows(rows)
        part = Lists(*(x if x is None or x.dim() == 1 else x[:, :columns] for x in part))
        part_gradient = gradient[rows] if wants_gradient else None
        others = behind[rows, :columns]
        loss[rows] += tile(part, others, items, ideal[rows], sharpness, spaces, part_gradient)
    return loss, gradient


def _tiles(positives: list[int], real: list[int]):
    """(rows, items of positive gain, columns) of tiles of at most TILE pairs, or of one item.

    The rows come by falling `positives`.
    """
    first = 0
    while first < len(positives) and positives[first]:
        # later rows may have more columns
        longest = max(real[first:])
        height = max(min(positives[first], HEIGHT, TILE // longest), 1)
        rows = slice(first, min(first + max(TILE // (height * longest), 1), len(positives)))
        for begin in range(0, positives[first], height):
            yield rows, slice(begin, min(begin + height, positives[first])), max(real[rows])
        first = rows.stop


def _shaped(spaces, rows: int, items: int, columns: int):
    """The beginning of each workspace as a tile (r, i, j)."""
    return [x[: rows * items * columns].view(rows, items, columns) for x in spaces]


def _approx_ndcg_tile(lists: Lists, behind, items: slice, ideal, alpha, spaces, gradient):
    """DCG / ideal (r,) of some items; adds their part to the gradient (r, T)."""
    scores, gain = lists.scores[:, items], lists.gain[:, items]  # (r, i)
    (ahead,) = _shaped(spaces, *scores.shape, behind.shape[1])
    torch.sub(behind[:, None, :], scores[:, :, None], out=ahead)
    ahead.mul_(alpha).sigmoid_()
    ranks = 0.5 + ahead.sum(-1)
    if gradient is not None:
        # the slope of the sigmoid is even: what item i loses by moving, the items j gain
        rank_slope = (alpha * rank_slopes(gain, ranks, ideal))[:, :, None]
        slopes = ahead.addcmul_(ahead, ahead, value=-1).mul_(rank_slope)
        gradient[:, : behind.shape[1]] += slopes.sum(1)
        gradient[:, items] -= slopes.sum(2)
    return (gain / torch.log2(1.0 + ranks)).sum(-1) / ideal


def _lambdarank_tile(lists: Lists, behind, items: slice, ideal, sigma, spaces, gradient):
    """Loss (r,) of pairs whose better item is in `items`; adds lambdas to the gradient (r, T)."""
    # items before the first of the tile have at least its gain, so they are never the worse one
    worse = slice(items.start, behind.shape[1])
    shape = (len(ideal), items.stop - items.start, worse.stop - worse.start)
    weight, exponent, other = _shaped(spaces, *shape)
    torch.sub(lists.gain[:, items, None], lists.gain[:, None, worse], out=weight).clamp_(min=0)
    torch.sub(lists.discount[:, items, None], lists.discount[:, None, worse], out=other).abs_()
    weight.mul_(other)
    torch.sub(behind[:, None, worse], lists.scores[:, items, None], out=exponent).mul_(sigma)
    torch.logaddexp(exponent, exponent.new_zeros(()), out=other)
    loss = other.mul_(weight).sum((1, 2)) / ideal
    if gradient is not None:
        pulls = exponent.sigmoid_().mul_(weight)
        gradient[:, worse] += pulls.sum(1) * (sigma / ideal)[:, None]
        gradient[:, items] -= pulls.sum(2) * (sigma / ideal)[:, None]
    return loss
