"""Listwise ranking losses over rows of scores: `approx_ndcg`, `lambdarank`, `listnet`;
docs/method.md, "Learning to rank".

All take scores (R, T), relevance (R, T) >= 0 and an optional mask (R, T), true where an item is
real, and return the mean over the rows that have a relevant item. Rows without one give zero loss
and finite gradients. The ideal DCG comes from the sorted relevance, and every quotient is taken row
by row. The pairs of the first two are walked in `kernels/`. The losses know neither labels nor
documents nor how lists are made (`planting.l2r`).
"""

from __future__ import annotations

from importlib import import_module

import torch

from plantlib.kernels.machine import implementation

GAINS = ("linear", "exponential")
MAX_EXPONENT = 30.0  # 2^30 still leaves float32 sums exact enough; published grades reach 101

# the modules of the pairwise losses by implementation, imported when first used: triton may not be
# installed
KERNELS = {
    "reference": "plantlib.kernels.reference",
    "torch": "plantlib.kernels.listwise_torch",
    "triton": "plantlib.kernels.listwise",
}


@torch.compiler.disable
def approx_ndcg(
    scores,
    relevance,
    mask=None,
    *,
    alpha: float = 10.0,
    gains: str = "linear",
    k: int | None = None,
    impl: str = "auto",
):
    """1 - approxNDCG (Qin, Liu, Li 2010) with smooth ranks rank_i = 1 + sum_j sigmoid(alpha (s_j -
    s_i)).

    Args:
        scores: (R, T); half precision is computed in float32.
        relevance: (R, T), 0 or more.
        mask: (R, T) bool, true where an item is real; all when None.
        alpha: steepness of the sigmoid.
        gains: "linear" takes the relevance as gain, "exponential" 2^relevance - 1.
        k: cut of the ideal DCG alone, since a smooth rank has no cut.
        impl: "auto", "triton", "torch" or "reference".

    Returns:
        Scalar, in [0, 1] with k=None.

    Raises:
        ValueError: shapes differ, or an option is not known.
    """
    return _by_pairs("approx_ndcg_rows", scores, relevance, mask, gains, k, impl, alpha=alpha)


@torch.compiler.disable
def lambdarank(
    scores,
    relevance,
    mask=None,
    *,
    sigma: float = 0.5,
    gains: str = "linear",
    k: int | None = None,
    impl: str = "auto",
):
    """LambdaRank (Burges 2010) as a loss whose gradient is the lambda: |delta NDCG| weighs each
    pair's log-loss.

    The weights come from the current ranks and are constants to autograd.

    Args:
        scores, relevance, mask, gains, impl: as in `approx_ndcg`.
        sigma: steepness of the pairs' log-loss.
        k: cut of the ideal DCG (`v1` uses 15).

    Returns:
        Scalar, 0 or more.
    """
    return _by_pairs("lambdarank_rows", scores, relevance, mask, gains, k, impl, sigma=sigma)


def listnet(scores, relevance, mask=None, *, gains: str = "linear"):
    """ListNet (Cao et al. 2007): cross-entropy of the softmax over scores against gains normalised
    to one.

    The entropy of the target is subtracted, so that the minimum is zero. Arguments as in
    `approx_ndcg`; a scalar.
    """
    scores, gain, mask = _prepare(scores, relevance, mask, gains)
    target = gain / _safe(gain.sum(-1))[:, None]
    log_p = torch.log_softmax(scores.masked_fill(~mask, -1e30), -1)
    cross_entropy = -(target * log_p.masked_fill(~mask, 0.0)).sum(-1)
    entropy = -torch.special.xlogy(target, target).sum(-1)
    return _mean_over_taught(cross_entropy - entropy, gain)


LOSSES = {"approx_ndcg": approx_ndcg, "lambdarank": lambdarank, "listnet": listnet}


def ideal_dcg(gain: torch.Tensor, k: int | None = None) -> torch.Tensor:
    """(R,) DCG of the gains (R, T) in their best order, cut after k."""
    best = gain.sort(-1, descending=True).values[:, :k]
    positions = torch.arange(2, best.shape[1] + 2, device=gain.device, dtype=gain.dtype)
    return (best / torch.log2(positions)).sum(-1)


def ndcg(
    scores, relevance, mask=None, *, k: int | None = 25, gains: str = "linear"
) -> torch.Tensor:
    """(R,) exact nDCG@k of each row, nan where a row has no relevant item; arguments as in
    `approx_ndcg`.
    """
    scores, gain, mask = _prepare(scores, relevance, mask, gains)
    order = scores.masked_fill(~mask, float("-inf")).argsort(dim=-1, descending=True, stable=True)
    ranked = gain.gather(-1, order)[:, :k]
    positions = torch.arange(2, ranked.shape[1] + 2, device=gain.device, dtype=gain.dtype)
    ideal = ideal_dcg(gain, k)
    value = (ranked / torch.log2(positions)).sum(-1) / _safe(ideal)
    return torch.where(ideal > 0, value, float("nan"))


def _by_pairs(
    op: str, scores, relevance, mask, gains: str, k: int | None, impl: str, **sharpness: float
):
    """Mean row loss of the function `op` of an implementation, outside autocast; sharpness: alpha
    or sigma.
    """
    ((name, value),) = sharpness.items()
    if not value > 0:
        raise ValueError(f"{name}={value} must be above 0: the losses push better items up")
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    with torch.autocast(scores.device.type, enabled=False):
        scores, gain, mask = _prepare(scores, relevance, mask, gains)
        row_losses = getattr(import_module(KERNELS[implementation(impl, scores)]), op)
        losses = row_losses(scores, gain, mask, _safe(ideal_dcg(gain, k)), value)
        return _mean_over_taught(losses, gain)


def _prepare(scores, relevance, mask, gains: str):
    """Checked scores, gains and mask, (R, T) each.

    Masked places hold score 0 and gain 0: an infinite score there would make gradients nan.
    """
    if gains not in GAINS:
        raise ValueError(f"gains={gains!r} is not known; use one of {', '.join(GAINS)}")
    if scores.dim() != 2 or scores.shape != relevance.shape:
        raise ValueError(
            f"scores {tuple(scores.shape)} and relevance {tuple(relevance.shape)} must be one (R,"
            " T) shape"
        )
    if mask is not None and mask.shape != scores.shape:
        raise ValueError(
            f"mask {tuple(mask.shape)} must have the shape of scores {tuple(scores.shape)}"
        )
    mask = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.bool()
    relevance = relevance.to(scores.dtype).masked_fill(~mask, 0.0)
    if gains == "exponential":
        if relevance.numel() and relevance.max() > MAX_EXPONENT:
            raise ValueError(
                f"exponential gains of relevance up to {float(relevance.max()):g} overflow; "
                f"scale it to at most {MAX_EXPONENT:g} or use gains='linear'"
            )
        relevance = torch.exp2(relevance) - 1.0
    return scores.masked_fill(~mask, 0.0), relevance, mask


def _safe(x: torch.Tensor) -> torch.Tensor:
    """`x` with 1 where it is 0 or less, to divide by."""
    return torch.where(x > 0, x, torch.ones_like(x))


def _mean_over_taught(loss: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """Mean over rows with a relevant item; without any an exact zero that autograd can use."""
    taught = (gain > 0).any(-1)
    return torch.where(taught, loss, torch.zeros_like(loss)).sum() / taught.sum().clamp(min=1)
