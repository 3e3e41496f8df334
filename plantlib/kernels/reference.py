"""The specification of the kernels in plain PyTorch, to read beside docs/method.md.

It realises "Planted attention", "The decoder" (inattention) and the losses of "Learning to rank".
Nothing here is fast or small: each function builds what the kernels avoid, and the tests compare
every other implementation with it. S is the number of real tokens of B documents, one after
another without padding; `offsets` (B+1) says where each document begins.
"""

from __future__ import annotations

import torch


def keep_top_k(scores: torch.Tensor, k: int | None) -> torch.Tensor:
    """Inattention: all but the k highest of scores (..., T) become minus infinity.

    The earlier token wins a tie. k None keeps all.
    """
    if k is None or scores.shape[-1] <= k:
        return scores
    order = torch.argsort(scores, dim=-1, descending=True, stable=True)
    attended = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order[..., :k], True)
    return scores.masked_fill(~attended, float("-inf"))


def planted_scores(cells, num_tokens: int, num_labels: int, dtype: torch.dtype) -> torch.Tensor:
    """Dense (S, L) sum of the planted cells (position, label, value); kernels never build it."""
    dense = torch.zeros(num_tokens, num_labels, dtype=dtype, device=cells.values.device)
    return dense.index_put(
        (cells.positions.long(), cells.labels.long()), cells.values.to(dtype), accumulate=True
    )


def label_attention(
    hidden_states,
    offsets,
    label_queries,
    label_outputs,
    cells=None,
    gain=None,
    keep=None,
    *,
    label_bias=None,
    candidates=None,
    state=None,
):
    """Planted label attention of packed documents.

    value[b, l] = sum_t softmax_t(<H_t, Q_l> + gain * planted[t, l]) <H_t, W_l>. Arguments and
    results as `attention.planted_attention`.
    """
    # scores and outputs of every token and label
    scores = hidden_states @ label_queries.T  # (S, L)
    if cells is not None:
        scores = scores + gain * planted_scores(cells, *scores.shape, scores.dtype)
    outputs = hidden_states @ label_outputs.T  # (S, L)
    # softmax over the tokens of each document
    values, log_sums = [], []
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        attended = keep_top_k(scores[begin:end].T, keep)  # (L, T)
        weights = torch.softmax(attended, dim=-1) if end > begin else attended
        values.append((weights * outputs[begin:end].T).sum(-1))
        log_sums.append(torch.logsumexp(attended, dim=-1))
    value, log_sum = torch.stack(values), torch.stack(log_sums)
    # candidates, earlier tokens, bias
    if candidates is not None:
        absent = candidates < 0
        value = value.gather(1, candidates.clamp(min=0)).masked_fill(absent, 0.0)
        log_sum = log_sum.gather(1, candidates.clamp(min=0)).masked_fill(absent, float("-inf"))
    if state is not None:
        # two parts of a document are weighted by their sums of exponentials
        both = torch.stack([state[0], log_sum])
        total = torch.logsumexp(both, 0)
        share = torch.exp(both - torch.where(total.isinf(), 0.0, total))
        value, log_sum = (share * torch.stack([state[1], value])).sum(0), total
    if label_bias is None:
        return value, log_sum
    if candidates is not None:
        label_bias = label_bias[candidates.clamp(min=0)].masked_fill(candidates < 0, 0.0)
    return value + label_bias, log_sum


def approx_ndcg_rows(scores, gain, mask, ideal, alpha: float) -> torch.Tensor:
    """1 - approxNDCG of each row, with rank_i = 1 + sum_{j != i} sigmoid(alpha (s_j - s_i)).

    Args:
        scores, gain: (R, T), 0 in masked places.
        mask: (R, T) bool, real items.
        ideal: (R,) best DCG, above 0.
        alpha: sharpness of the smooth rank.

    Returns:
        (R,) losses.
    """
    difference = scores[:, None, :] - scores[:, :, None]  # (R, T, T): s_j - s_i
    ahead = torch.sigmoid(alpha * difference) * mask[:, None, :]
    # the item itself contributes sigmoid(0) = 1/2, so that 1 + sum - 1/2
    ranks = 0.5 + ahead.sum(-1)
    return 1.0 - (gain / torch.log2(1.0 + ranks)).sum(-1) / ideal


def rank_discounts(scores, mask) -> torch.Tensor:
    """(R, T) 1 / log2(1 + rank) by score, ties by position; constants to autograd."""
    order = (
        scores.detach()
        .masked_fill(~mask, float("-inf"))
        .argsort(dim=-1, descending=True, stable=True)
    )
    places = torch.arange(1, scores.shape[1] + 1, device=scores.device).expand_as(order)
    ranks = torch.zeros_like(order).scatter_(-1, order, places)
    return 1.0 / torch.log2(1.0 + ranks.to(scores.dtype))


def lambdarank_rows(scores, gain, mask, ideal, sigma: float) -> torch.Tensor:
    """LambdaRank of each row: the sum of |delta nDCG| log(1 + exp(-sigma (s_i - s_j))).

    The sum runs over pairs with gain_i > gain_j. Arguments and result as `approx_ndcg_rows`.
    """
    discount = rank_discounts(scores, mask)
    better = (gain[:, :, None] > gain[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    weight = (gain[:, :, None] - gain[:, None, :]).abs() * (
        discount[:, :, None] - discount[:, None, :]
    ).abs()
    # softplus by logaddexp: torch's softplus is the identity above 20, which float64 sees
    pair = torch.logaddexp(-sigma * (scores[:, :, None] - scores[:, None, :]), scores.new_zeros(()))
    return torch.where(better, weight * pair, 0.0).sum((1, 2)) / ideal
