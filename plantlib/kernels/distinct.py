"""Planted label attention where a hidden state depends on its token alone: static word vectors.

Score and output of a token and a label are then the same in every document, so they are computed
once for the U distinct tokens of a batch. With X (B, U), which documents hold which tokens, the
sums over tokens of all documents are one sparse product,

    [value * total, total] = X [exp(S) * O, exp(S)],   S = H Q' + gamma G,   O = H W',

a block of labels at a time. PyTorch's `embedding_bag` multiplies, several times faster than SciPy.
For prediction and evaluation on processors; no gradient is carried.
"""

from __future__ import annotations

import torch
from scipy import sparse
from torch.nn import functional

from plantlib.kernels.attention import Cells

BLOCK = 128  # labels whose scores of all distinct tokens are held at once
# Scores so far below a label's best one count as this far: exp of it is still no denormal number,
# and no token weighs in a document beside one that is 60 better.
LOWEST = -80.0
TINY = 1e-38  # divides the sums of a document without tokens


def attend_distinct(
    hidden: torch.Tensor,
    documents: sparse.csr_matrix,
    queries: torch.Tensor,
    outputs: torch.Tensor,
    cells: Cells | None,
    gain: torch.Tensor,
) -> torch.Tensor:
    """Attention's part of the logits, (B, L); 0 for a document without tokens.

    Args:
        hidden: (U, D) states of distinct tokens.
        documents: (B, U) csr, how often a document holds a token, of the type of `hidden`.
        queries: (L, D).
        outputs: (L, D).
        cells: planted cells of the U tokens, sorted by label, or None.
        gain: scalar gamma.
    """
    labels = len(queries)
    value = hidden.new_zeros((documents.shape[0], labels))
    if not len(hidden):
        return value
    places, ends = (torch.from_numpy(part) for part in (documents.indices, documents.indptr))
    how_often = torch.from_numpy(documents.data)
    for low in range(0, labels, BLOCK):
        high = min(low + BLOCK, labels)
        both = hidden @ torch.cat([outputs[low:high], queries[low:high]]).T
        weighted, scores = both.chunk(2, 1)
        if cells is not None:
            bounds = torch.tensor([low, high], device=cells.labels.device)
            begin, end = torch.searchsorted(cells.labels, bounds).tolist()
            here = (cells.positions[begin:end], cells.labels[begin:end] - low)
            scores.index_put_(here, gain * cells.values[begin:end], accumulate=True)
        weights = scores.sub_(scores.amax(0)).clamp_(min=LOWEST).exp_()
        weighted.mul_(weights)
        summed = functional.embedding_bag(
            places, both, ends, mode="sum", per_sample_weights=how_often, include_last_offset=True
        )
        read, total = summed.chunk(2, 1)
        value[:, low:high] = read / total.clamp_(min=TINY)
    return value
