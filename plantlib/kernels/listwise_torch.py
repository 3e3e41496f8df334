"""approxNDCG and LambdaRank without (R, T, T): blocks of pairs in one workspace, gradients in
closed form.

Realises the losses of METHOD.md section 3 as `reference.approx_ndcg_rows` and `lambdarank_rows`
define them. Items are sorted by gain, so that only the P items of positive gain stand on the "i"
side: a smooth rank matters to DCG where there is gain, and a pair needs a better item. Time is O(R
P T), memory O(R T) plus WORKSPACES tiles. Loss and gradient come out of the same walk; the backward
pass is one multiplication. Second derivatives are refused.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from plantlib.kernels.reference import rank_discounts

TILE = 2**18  # pairs looked at together: smaller ones cost more in calls than they save in cache
HEIGHT = 64  # items of a row in a tile: low tiles let LambdaRank leave out half of the pairs
WORKSPACES = 3


class Lists(NamedTuple):
    """Rows whose items stand by falling gain, masked items last."""

    order: torch.Tensor  # (R, T) where each item came from
    scores: torch.Tensor  # (R, T)
    gain: torch.Tensor  # (R, T)
    discount: torch.Tensor | None  # (R, T) of the current ranks; None where the loss smooths them
    real: torch.Tensor  # (R,) items that are not masked
    positives: torch.Tensor  # (R,) items of positive gain

    def rows(self, index) -> Lists:
        return Lists(*(None if x is None else x[index] for x in self))


def sort_by_gain(scores, gain, mask, wants_ranks: bool) -> Lists:
    """Lists of (R, T) scores, gains and mask."""
    order = gain.masked_fill(~mask, -1.0).argsort(dim=-1, descending=True, stable=True)
    discount = rank_discounts(scores, mask).gather(-1, order) if wants_ranks else None
    return Lists(
        order,
        scores.gather(-1, order),
        gain.gather(-1, order),
        discount,
        mask.sum(-1),
        (gain > 0).sum(-1),
    )


def rank_slopes(gain, ranks, ideal) -> torch.Tensor:
    """d(1 - DCG / ideal) / d rank of each item, zero without gain: gain, ranks (R, P), ideal (R,)
    -> (R, P).
    """
    log_rank = torch.log1p(ranks)
    return gain * math.log(2) / ((1.0 + ranks) * log_rank.square() * ideal[:, None])


class RowLosses(torch.autograd.Function):
    """(R,) losses of `compute`, which returns (loss, gradient) together; the gradient waits for the
    backward pass.
    """

    @staticmethod
    def forward(ctx, scores, gain, mask, ideal, sharpness, compute):
        loss, gradient = compute(scores, gain, mask, ideal, sharpness, ctx.needs_input_grad[0])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        # the saved gradient has no graph; autograd would take it for a constant and be silently
        # wrong
        if torch.is_grad_enabled():
            raise RuntimeError(
                "create_graph=True wants second derivatives of a listwise loss; use"
                " impl='reference' for them"
            )
        (gradient,) = ctx.saved_tensors
        return grad_loss[:, None] * gradient, None, None, None, None, None


def approx_ndcg_rows(scores, gain, mask, ideal, alpha: float) -> torch.Tensor:
    """As `reference.approx_ndcg_rows`: (R, T) x 3, (R,) -> (R,)."""
    return RowLosses.apply(scores, gain, mask, ideal, alpha, _approx_ndcg)


def lambdarank_rows(scores, gain, mask, ideal, sigma: float) -> torch.Tensor:
    """As `reference.lambdarank_rows`: (R, T) x 3, (R,) -> (R,)."""
    return RowLosses.apply(scores, gain, mask, ideal, sigma, _lambdarank)


def _approx_ndcg(scores, gain, mask, ideal, alpha, wants_gradient):
    loss, gradient = _walk(
        scores, gain, mask, ideal, alpha, wants_gradient, _approx_ndcg_tile, wants_ranks=False
    )
    return 1.0 - loss, gradient


def _lambdarank(scores, gain, mask, ideal, sigma, wants_gradient):
    return _walk(
        scores, gain, mask, ideal, sigma, wants_gradient, _lambdarank_tile, wants_ranks=True
    )


def _walk(scores, gain, mask, ideal, sharpness, wants_gradient, tile, wants_ranks):
    """Sum of `tile` over all tiles: loss (R,) and gradient (R, T) in the order of `scores`, or
    None.
    """
    num_rows, columns = scores.shape
    loss = scores.new_zeros(num_rows)
    gradient = torch.zeros_like(scores) if wants_gradient else None
    kind = {"dtype": scores.dtype, "device": scores.device}
    spaces = [
        torch.empty(max(TILE, columns), **kind) for _ in range(WORKSPACES if wants_ranks else 1)
    ]
    # sorting, too, is done for few rows at a time, which bounds its indices and copies
    step = max(TILE // max(columns, 1), 1)
    for first in range(0, num_rows, step):
        chosen = slice(first, first + step)
        lists = sort_by_gain(scores[chosen], gain[chosen], mask[chosen], wants_ranks)
        # rows of like P together, so that a tile of several rows is full
        by_positives = lists.positives.argsort(descending=True, stable=True)
        lists = lists.rows(by_positives)
        places = by_positives + first
        found, slopes = _chunk(lists, ideal[places], sharpness, wants_gradient, tile, spaces)
        loss[places] = found
        if wants_gradient:
            gradient[places] = torch.zeros_like(slopes).scatter_(-1, lists.order, slopes)
    return loss, gradient


def _chunk(lists: Lists, ideal, sharpness, wants_gradient, tile, spaces):
    """Loss (r,) and gradient (r, T), or None, of sorted lists."""
    loss = torch.zeros_like(ideal)
    gradient = torch.zeros_like(lists.scores) if wants_gradient else None
    places = torch.arange(lists.scores.shape[1], device=ideal.device)
    # a masked item is behind everything as a "j"; as an "i" it stays finite and has no gain
    behind = lists.scores.masked_fill(places >= lists.real[:, None], float("-inf"))
    for rows, items, columns in _tiles(lists.positives.tolist(), lists.real.tolist()):
        part = Lists(
            *(x if x is None or x.dim() == 1 else x[:, :columns] for x in lists.rows(rows))
        )
        loss[rows] += tile(
            part,
            behind[rows, :columns],
            items,
            ideal[rows],
            sharpness,
            spaces,
            gradient[rows] if wants_gradient else None,
        )
    return loss, gradient


def _tiles(positives: list[int], real: list[int]):
    """(rows, items of positive gain, columns) of tiles of at most TILE pairs, or one item's;
    positives must fall.
    """
    first = 0
    while first < len(positives) and positives[first]:
        # the columns of later rows may be more: bounded by the longest that is left
        longest = max(real[first:])
        height = max(min(positives[first], HEIGHT, TILE // longest), 1)
        rows = slice(first, min(first + max(TILE // (height * longest), 1), len(positives)))
        for begin in range(0, positives[first], height):
            yield rows, slice(begin, min(begin + height, positives[first])), max(real[rows])
        first = rows.stop


def _shaped(spaces, rows: int, items: int, columns: int):
    """Each workspace's beginning as a tile (r, i, j)."""
    return [x[: rows * items * columns].view(rows, items, columns) for x in spaces]


def _approx_ndcg_tile(lists: Lists, behind, items: slice, ideal, alpha, spaces, gradient):
    """DCG / ideal (r,) of some items; adds their part to the gradient (r, T)."""
    scores, gain = lists.scores[:, items], lists.gain[:, items]  # (r, i)
    (ahead,) = _shaped(spaces, *scores.shape, behind.shape[1])
    torch.sub(behind[:, None, :], scores[:, :, None], out=ahead)
    ahead.mul_(alpha).sigmoid_()
    ranks = 0.5 + ahead.sum(-1)
    if gradient is not None:
        # the slope of sigmoid is even: what item i loses by moving is what the items j gain
        slopes = ahead.addcmul_(ahead, ahead, value=-1).mul_(
            (alpha * rank_slopes(gain, ranks, ideal))[:, :, None]
        )
        gradient[:, : behind.shape[1]] += slopes.sum(1)
        gradient[:, items] -= slopes.sum(2)
    return (gain / torch.log2(1.0 + ranks)).sum(-1) / ideal


def _lambdarank_tile(lists: Lists, behind, items: slice, ideal, sigma, spaces, gradient):
    """Loss (r,) of the pairs whose better item is among `items`; adds their lambdas to the gradient
    (r, T).
    """
    # items before the tile's first have at least its gain, and are no one's worse item here
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
