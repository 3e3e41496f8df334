"""The specification of every kernel, in plain PyTorch a reader can check against METHOD.md section 4.

Nothing here is fast or small: each function materialises what the kernels avoid. The tests hold every other
implementation to these lines. Packed layout: the real tokens of B documents stand one after another, without padding;
`offsets` (B+1) says where each document begins.
"""

import torch


def keep_top_k(scores: torch.Tensor, k: int | None) -> torch.Tensor:
    """Inattention: the k highest of the last dimension keep their score, the others become minus infinity.

    Ties are resolved by position, the earlier token wins. `None` keeps all. scores: (..., T) -> (..., T).
    """
    if k is None or scores.shape[-1] <= k:
        return scores
    order = torch.argsort(scores, dim=-1, descending=True, stable=True)
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order[..., :k], True)
    return scores.masked_fill(~kept, float("-inf"))


def planted_scores(cells, num_tokens: int, num_labels: int, dtype: torch.dtype) -> torch.Tensor:
    """Dense (S, L) sum of the planted cells (position, label, value); what the kernels never build."""
    dense = torch.zeros(num_tokens, num_labels, dtype=dtype, device=cells.values.device)
    return dense.index_put((cells.positions.long(), cells.labels.long()), cells.values.to(dtype), accumulate=True)


def label_attention(hidden_states, offsets, label_queries, label_outputs, cells=None, gain=None, keep=None):
    """Planted label attention of packed documents.

    hidden_states (S, D), offsets (B+1), label_queries (L, D), label_outputs (L, D)
    -> value (B, L) = sum_t softmax_t(<H_t, Q_l> + gain * planted[t, l]) <H_t, W_l>, log_sum_exp (B, L).
    A document without tokens has value 0 and log_sum_exp minus infinity.
    """
    scores = hidden_states @ label_queries.T  # (S, L)
    if cells is not None:
        scores = scores + gain * planted_scores(cells, *scores.shape, scores.dtype)
    outputs = hidden_states @ label_outputs.T  # (S, L)
    values, log_sums = [], []
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        kept = keep_top_k(scores[begin:end].T, keep)  # (L, T)
        weights = torch.softmax(kept, dim=-1) if end > begin else kept
        values.append((weights * outputs[begin:end].T).sum(-1))
        log_sums.append(torch.logsumexp(kept, dim=-1))
    return torch.stack(values), torch.stack(log_sums)
