"""Statistics under METHOD section 5: order statistics of score blocks, tests over documents and
seeds.

`order_keys`, `largest`, `decode_keys` give an exact, tie-safe top-k, `AucHistogram` the rank-sum
AUC of a stream, `paired_bootstrap` compares two systems. Blocks are numpy arrays or torch tensors;
what is a hit is said in `metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

# The key of a -inf score lies below this number, that of any other score above: its top half is
# -2139095041.
UNSCORED = -2139095040 << 32


def to_numpy(block: Any) -> np.ndarray:
    """An array as it is; a tensor of any device as numpy, floats of any width as float32."""
    if isinstance(block, np.ndarray):
        return block
    return (block.float() if block.is_floating_point() else block).detach().cpu().numpy()


def unwrap(block: Any) -> Any:
    """A CPU tensor as numpy, whose int64 partition is some forty times faster than torch.topk;
    others as they are.
    """
    return to_numpy(block) if getattr(block, "is_cpu", False) else block


def refuse_nan(block: Any) -> None:
    """ValueError if a score is nan."""
    # x != x holds for nan alone, in numpy and in torch
    if bad := int((block != block).sum()):
        raise ValueError(
            f"got {bad} scores that are nan, wanted numbers: use -inf for a label that was not"
            " scored"
        )


def order_keys(block: Any) -> Any:
    """(b, L) scores, compared as float32 -> (b, L) distinct int64 keys ordered by (score, smaller
    label id first).
    """
    refuse_nan(block)
    n_labels = block.shape[1]
    # adding zero turns -0.0 into 0.0, which has another bit pattern
    if isinstance(block, np.ndarray):
        bits = (block.astype(np.float32, copy=False) + np.float32(0)).view(np.int32)
        return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64) << 32) | np.arange(n_labels)[
            ::-1
        ]
    import torch

    bits = (block.detach().float() + 0.0).view(torch.int32)
    ids = torch.arange(n_labels - 1, -1, -1, device=block.device)
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32) | ids


def largest(keys: Any, k: int) -> np.ndarray:
    """(b, n) keys -> (b, k) numpy keys, largest first, padded with "not scored" where n < k."""
    n = keys.shape[1]
    if isinstance(keys, np.ndarray):
        best = np.sort(np.partition(keys, n - k, axis=1)[:, n - k :] if k < n else keys, axis=1)[
            :, ::-1
        ]
    else:
        best = to_numpy(keys.topk(min(k, n), dim=1).values)
    return np.pad(best, ((0, 0), (0, max(0, k - n))), constant_values=UNSCORED - 1)


def decode_keys(keys: np.ndarray, n_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys of any shape -> label ids (int32, -1 where not scored) and scores (float32)."""
    bits = (keys >> 32).astype(np.int32)
    scores = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32)
    unused = keys < UNSCORED
    ids = np.where(unused, -1, n_labels - 1 - (keys & 0xFFFFFFFF)).astype(np.int32)
    return ids, np.where(unused, np.float32(-np.inf), scores)


class AucHistogram:
    """Micro and macro AUC of a stream of (b, L) blocks from one histogram a label, (L, bins) int32
    in all.

    The bin edges are score quantiles of the first block, half of them within its top 5 %. Pairs
    inside one bin count one half, so the AUC is exact up to half their share, which is reported;
    exact if each bin holds one value.
    """

    def __init__(self, n_labels: int, bins: int) -> None:
        self.counts = np.zeros((n_labels, bins), np.int32)
        self.edges = np.empty(0, np.float32)

    def add(self, block: Any) -> np.ndarray:
        """Counts a block, on the CPU whatever its device; returns the (b, L) bin of each score."""
        scores = to_numpy(block).astype(np.float32, copy=False)
        if not self.edges.size:
            self._choose_edges(scores[np.isfinite(scores)])
        bins = np.searchsorted(self.edges, scores, side="right")
        # numpy's fast path, twenty times faster, asks for a flat index and a summand of the very
        # same type
        flat = (bins + np.arange(len(self.counts)) * self.counts.shape[1]).ravel()
        np.add.at(self.counts.ravel(), flat, np.int32(1))
        return bins

    def _choose_edges(self, values: np.ndarray) -> None:
        if values.size > 2**20:
            values = np.random.default_rng(0).choice(values, 2**20)
        values = np.sort(np.append(values, np.float32(0)))
        parts = (values, values[int(0.95 * values.size) :])
        picks = [
            p[np.linspace(0, p.size - 1, self.counts.shape[1] // 2 - 1).astype(int)] for p in parts
        ]
        self.edges = np.unique(np.concatenate(picks))

    def result(self, labels: np.ndarray, bins: np.ndarray) -> dict[str, float]:
        """labels, bins: (nnz,) of the gold cells -> micro_auc, macro_auc (labels with both classes)
        and *_error.
        """
        gold = np.zeros_like(self.counts)
        np.add.at(gold, (labels, bins), 1)
        parts = [(self.counts[i : i + 256], gold[i : i + 256]) for i in range(0, len(gold), 256)]
        macro, macro_error = (
            np.concatenate(x) for x in zip(*(_rank_sum(*part) for part in parts), strict=True)
        )
        micro, micro_error = _rank_sum(self.counts.sum(0)[None], gold.sum(0)[None])
        named = {
            "micro_auc": micro,
            "micro_auc_error": micro_error,
            "macro_auc": macro,
            "macro_auc_error": macro_error,
        }
        return {name: mean_sd(value)[0] for name, value in named.items()}


def _rank_sum(counts: np.ndarray, gold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, bins) counts of all and of gold cells -> (n,) AUC and error bound, nan where a class is
    missing.
    """
    gold, other = gold.astype(np.float64), (counts - gold).astype(np.float64)
    pairs = gold.sum(1) * other.sum(1)
    pairs[pairs == 0] = np.nan
    tied = (gold * other).sum(1) / 2
    return ((gold * (other.cumsum(1) - other)).sum(1) + tied) / pairs, tied / pairs


def mean_sd(values: Iterable[float | None]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1) of the defined values; nan where there are none,
    or one for the sd.
    """
    array = np.array([np.nan if v is None else v for v in values], np.float64)
    array = array[~np.isnan(array)]
    return (
        float(array.mean()) if array.size else np.nan,
        float(array.std(ddof=1)) if array.size > 1 else np.nan,
    )


def paired_bootstrap(a: Any, b: Any, samples: int = 10000, seed: int = 0) -> dict[str, float | int]:
    """Percentile bootstrap of mean(a - b) over documents, the same documents drawn for both
    systems.

    a, b: (N,) values a document, None or nan where undefined, or (seeds, N) matrices, averaged over
    seeds first (the number of seeds may differ). Returns mean_difference, low and high (95 %),
    p_value (two-sided: twice the smaller share of resamples at or beyond 0, never below 2 /
    (samples + 1)), n pairs used and dropped pairs. ValueError on unequal lengths. Seeds are
    averaged, not resampled: the interval is about documents.
    """
    first, second = (np.atleast_2d(np.array(x, np.float64)).mean(0) for x in (a, b))
    if first.shape != second.shape:
        raise ValueError(
            f"{first.size} and {second.size} documents paired: pass the same split twice"
        )
    difference = (first - second)[~np.isnan(first - second)]
    n = difference.size
    result = {"mean_difference": np.nan, "low": np.nan, "high": np.nan, "p_value": np.nan}
    if n:
        rng, step = np.random.default_rng(seed), max(1, 2**21 // n)
        sizes = [min(step, samples - i) for i in range(0, samples, step)]
        means = np.concatenate(
            [difference[rng.integers(0, n, (size, n))].mean(1) for size in sizes]
        )
        low, high = np.quantile(means, (0.025, 0.975))
        tail = 2 * (min((means <= 0).sum(), (means >= 0).sum()) + 1) / (samples + 1)
        result = {
            "mean_difference": difference.mean(),
            "low": low,
            "high": high,
            "p_value": min(1.0, tail),
        }
    return {name: float(x) for name, x in result.items()} | {"n": n, "dropped": first.size - n}
