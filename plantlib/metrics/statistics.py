"""Order statistics of score blocks and tests over documents and seeds.

Realises docs/method.md, "Metrics" and "Choosing on dev, reading test once". `order_keys`, `largest`
and `decode_keys` give an exact top-k with a fixed order of ties, `AucHistogram` the rank-sum AUC of
a stream, `paired_bootstrap` compares two systems. Blocks are numpy arrays or torch tensors. The
metrics themselves are in `documents`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

# The key of a -inf score lies below this number, that of any other score above: its top half is
# -2139095041.
UNSCORED = -2139095040 << 32


def to_numpy(block: Any) -> np.ndarray:
    """An array unchanged; a tensor of any device as numpy, floats of any width as float32."""
    if isinstance(block, np.ndarray):
        return block
    return (block.float() if block.is_floating_point() else block).detach().cpu().numpy()


def unwrap(block: Any) -> Any:
    """A CPU tensor as numpy, other blocks unchanged.

    numpy's partition of int64 is about forty times faster than torch.topk.
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
    """Turn scores into distinct integers that sort by score and, among equals, smaller label first.

    Args:
        block: (b, L) scores, compared as float32.

    Returns:
        (b, L) int64 keys, numpy or torch as `block`; a larger key is a better place.
    """
    refuse_nan(block)
    n_labels = block.shape[1]
    # adding zero turns -0.0 into 0.0, which has another bit pattern
    if isinstance(block, np.ndarray):
        bits = (block.astype(np.float32, copy=False) + np.float32(0)).view(np.int32)
        ids = np.arange(n_labels)[::-1]
        return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64) << 32) | ids
    import torch

    bits = (block.detach().float() + 0.0).view(torch.int32)
    ids = torch.arange(n_labels - 1, -1, -1, device=block.device)
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32) | ids


def largest(keys: Any, k: int) -> np.ndarray:
    """(b, n) keys -> the k largest of each row (b, k), largest first, "not scored" where n < k."""
    n = keys.shape[1]
    if isinstance(keys, np.ndarray):
        best = np.partition(keys, n - k, axis=1)[:, n - k :] if k < n else keys
        best = np.sort(best, axis=1)[:, ::-1]
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
    """Micro and macro AUC of a stream of (b, L) blocks, from one histogram per label.

    Memory is (L, bins) int32. The bin edges are score quantiles of the first block, half of them
    within its top 5 %. A pair inside one bin counts one half, so the AUC is exact up to half the
    share of such pairs, which is reported; it is exact if each bin holds one value.
    """

    def __init__(self, n_labels: int, bins: int) -> None:
        self.counts = np.zeros((n_labels, bins), np.int32)
        self.edges = np.empty(0, np.float32)

    def add(self, block: Any) -> np.ndarray:
        """Count a block of scores (b, L) on the CPU; returns the bin of each, (b, L)."""
        scores = to_numpy(block).astype(np.float32, copy=False)
        if not self.edges.size:
            self._choose_edges(scores[np.isfinite(scores)])
        bins = np.searchsorted(self.edges, scores, side="right")
        # numpy's fast path, twenty times faster, needs a flat index and a summand of the same type
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
        """AUC of everything that was added.

        Args:
            labels: (nnz,) label of each gold cell.
            bins: (nnz,) bin of its score.

        Returns:
            micro_auc, macro_auc (over labels with both classes) and a bound on the error of each.
        """
        # histograms of the gold cells exist for one block of labels at a time
        order = np.argsort(labels, kind="stable")
        labels, bins = labels[order], bins[order]
        parts = []
        for begin in range(0, len(self.counts), 256):
            counts = self.counts[begin : begin + 256]
            of_block = slice(*np.searchsorted(labels, [begin, begin + len(counts)]))
            gold = np.zeros_like(counts)
            np.add.at(gold, (labels[of_block] - begin, bins[of_block]), 1)
            parts.append(_rank_sum(counts, gold))
        macro, macro_error = (np.concatenate(x) for x in zip(*parts, strict=True))
        gold_bins = np.bincount(bins, minlength=self.counts.shape[1])
        micro, micro_error = _rank_sum(self.counts.sum(0)[None], gold_bins[None])
        values = {
            "micro_auc": micro,
            "micro_auc_error": micro_error,
            "macro_auc": macro,
            "macro_auc_error": macro_error,
        }
        return {name: mean_sd(value)[0] for name, value in values.items()}


def _rank_sum(counts: np.ndarray, gold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, bins) counts of all cells and of gold ones -> (n,) AUC and error bound.

    Both are nan where a class is missing.
    """
    gold, other = gold.astype(np.float64), (counts - gold).astype(np.float64)
    pairs = gold.sum(1) * other.sum(1)
    pairs[pairs == 0] = np.nan
    tied = (gold * other).sum(1) / 2
    return ((gold * (other.cumsum(1) - other)).sum(1) + tied) / pairs, tied / pairs


def mean_sd(values: Iterable[float | None]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1) of the values that are neither None nor nan.

    The mean of no value and the deviation of fewer than two are nan.
    """
    array = np.array([np.nan if v is None else v for v in values], np.float64)
    array = array[~np.isnan(array)]
    mean = float(array.mean()) if array.size else np.nan
    return mean, float(array.std(ddof=1)) if array.size > 1 else np.nan


def paired_bootstrap(a: Any, b: Any, samples: int = 5000, seed: int = 0) -> dict[str, float | int]:
    """Percentile bootstrap of mean(a - b) that draws seeds and test documents again together.

    A resample draws the documents, the same for both systems, and the seeds: row i of both systems
    together where they have as many rows, else each system's own. A system of one row, such as a
    peer without a seed, has only its documents drawn.

    Args:
        a, b: (N,) values per document, None or nan where undefined, or (seeds, N) matrices.
        samples: resamples.
        seed: of the resampling.

    Returns:
        mean_difference; low and high, the 95 % interval; p_value, two-sided: twice the smaller
        share of resamples at or beyond 0, never below 2 / (samples + 1); n documents used and
        dropped documents, whose value is undefined in some row.

    Raises:
        ValueError: a and b have different numbers of documents.
    """
    first, second = (np.atleast_2d(np.array(x, np.float64)) for x in (a, b))
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"{first.shape[1]} and {second.shape[1]} documents paired: pass the same split twice"
        )
    defined = ~(np.isnan(first).any(0) | np.isnan(second).any(0))
    n = int(defined.sum())
    result = {"mean_difference": np.nan, "low": np.nan, "high": np.nan, "p_value": np.nan}
    if n:
        first, second = first[:, defined], second[:, defined]
        # rows whose seeds are drawn together
        groups = [first - second] if len(first) == len(second) else [first, -second]
        means = _resampled_means(groups, samples, np.random.default_rng(seed))
        # interval and p value
        low, high = np.quantile(means, (0.025, 0.975))
        tail = 2 * (min((means <= 0).sum(), (means >= 0).sum()) + 1) / (samples + 1)
        result = {
            "mean_difference": first.mean() - second.mean(),
            "low": low,
            "high": high,
            "p_value": min(1.0, tail),
        }
    return {name: float(x) for name, x in result.items()} | {"n": n, "dropped": defined.size - n}


def bootstrap_ratio(a: Any, b: Any, samples: int = 5000, seed: int = 0) -> dict[str, float]:
    """Percentile bootstrap of mean(a) / mean(b), draws as in `paired_bootstrap`.

    Args:
        a, b: (seeds, N) differences per document, None or nan where undefined. The interval means
            little unless mean(b) can be told from zero.
        samples: resamples.
        seed: of the resampling.

    Returns:
        ratio; low and high, the 95 % interval.

    Raises:
        ValueError: a and b are not of one shape.
    """
    first, second = (np.atleast_2d(np.array(x, np.float64)) for x in (a, b))
    if first.shape != second.shape:
        raise ValueError(
            f"a is {first.shape}, b {second.shape}: pass the same seeds and documents twice"
        )
    defined = ~(np.isnan(first).any(0) | np.isnan(second).any(0))
    first, second = first[:, defined], second[:, defined]
    # the same generator draws the same seeds and documents for both
    means = [_resampled_means([x], samples, np.random.default_rng(seed)) for x in (first, second)]
    low, high = np.quantile(means[0] / means[1], (0.025, 0.975))
    return {"ratio": float(first.mean() / second.mean()), "low": float(low), "high": float(high)}


def _resampled_means(
    groups: list[np.ndarray], samples: int, rng: np.random.Generator
) -> np.ndarray:
    """(samples,) means over drawn seeds and documents, summed over the groups.

    groups: (seeds, N) values each; a resample draws N documents for all groups together and the
    seeds of each group.
    """
    groups = [_widened(values) for values in groups]
    n = groups[0].shape[1]
    step = max(1, 2**21 // n)  # at most so many drawn values at a time
    means = []
    for begin in range(0, samples, step):
        size = min(step, samples - begin)
        documents = rng.integers(0, n, (size, n))
        total = np.zeros(size)
        for values in groups:
            seeds = len(values)
            weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size) / seeds
            for row, weight in zip(values, weights.T, strict=True):
                total += weight * row[documents].mean(1)
        means.append(total)
    return np.concatenate(means)


def _widened(values: np.ndarray) -> np.ndarray:
    """(S, N) values with the deviations of the S seeds' means made larger by sqrt(S / (S - 1)).

    S seeds drawn again from S vary by (S - 1) / S of what fresh seeds would vary (Davison and
    Hinkley, Bootstrap Methods and their Application, 1997, section 3.8).
    """
    seeds = len(values)
    if seeds == 1:
        return values
    deviations = values.mean(1, keepdims=True) - values.mean()
    return values + (np.sqrt(seeds / (seeds - 1)) - 1) * deviations
