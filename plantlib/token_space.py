"""Vectors of tokens from the documents they stand in: the E of the static L2R model.

A token's training documents, in the directions of the document space that carry most of the shown grades, or of the text
alone. Sparse factors and a randomised range finder throughout. Not here: what is learnt on them (`static_l2r.py`).
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from scipy import sparse

from plantlib import mig


def embed(
    counts, grades: sparse.csr_matrix, shown: np.ndarray, *, space: str = "grades", dim: int = 400, seed: int = 0
) -> torch.Tensor:
    """E (V, d) = A'U of all tokens: A (n, V) presence / sqrt(n_t), U (n, d) orthonormal, d `dim` or what there is.

    U spans the left singular vectors of A itself (space "text"), or of A G' over the `shown` tokens alone, each label's grades
    at length one ("grades"). A product of the two sparse factors, by a randomised range finder: (n, L) is never made.
    """
    present = mig.presence(counts).astype(np.float32)
    a = (present @ sparse.diags((1 / np.sqrt(np.maximum(mig.column_counts(present), 1))).astype(np.float32))).tocsr()
    factors = [a]
    if space == "grades":
        own = grades[:, shown].astype(np.float32)
        length = np.sqrt(np.asarray(own.multiply(own).sum(1)).ravel()).clip(min=1e-12)
        factors = [a[:, shown].tocsr(), (sparse.diags((1 / length).astype(np.float32)) @ own).T.tocsr()]
    rank = max(min(dim, a.shape[0] - 1, factors[-1].shape[1]), 1)
    found = (a.T @ directions(factors, rank, seed)).astype(np.float32)
    return torch.from_numpy(found / max(float(np.sqrt(np.square(found).sum(1).mean())), 1e-12))


def directions(factors: list[sparse.csr_matrix], rank: int, seed: int, powers: int = 1) -> np.ndarray:
    """(n, rank) orthonormal, about the leading left singular vectors of the product of sparse factors (Halko et al. 2011)."""
    forward = lambda m: functools.reduce(lambda right, left: left @ right, factors[::-1], m)  # noqa: E731
    back = lambda m: functools.reduce(lambda right, left: left.T @ right, factors, m)  # noqa: E731
    draw = np.random.default_rng(seed).standard_normal((factors[-1].shape[1], rank + 10)).astype(np.float32)
    basis = np.linalg.qr(forward(draw))[0]
    for _ in range(powers):
        basis = np.linalg.qr(forward(np.linalg.qr(back(basis))[0]))[0]
    left = np.linalg.svd(np.linalg.qr(back(basis), mode="r"))[2]
    return basis @ left[:rank].T


def frequency(counts: sparse.csr_matrix) -> torch.Tensor:
    """(V,) standardised logarithm of document frequency: the feature that b_t is a multiple of, known without labels."""
    value = np.log1p(mig.column_counts(mig.presence(counts)))
    return torch.from_numpy(((value - value.mean()) / max(value.std(), 1e-12)).astype(np.float32))
