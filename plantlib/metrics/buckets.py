"""Frequency buckets of labels: zero, few, medium, head (docs/method.md, "Metrics").

The buckets divide labels by how many TRAINING documents they have. A data set may define other
bounds, as MIMIC-IV-few does (few is 1 to 7, head is 8 and more, nothing between). The manifest of
its corpus holds them as `bucket_edges`, and every metric, record and table of that corpus uses
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Edges = tuple[int, int, int]
EDGES: Edges = (0, 5, 50)
NAMES = ("zero", "few", "medium", "head")


def checked(edges: Any) -> Edges:
    """The bounds as a tuple of three growing integers; with equal last two no label is medium.

    Raises:
        ValueError: `edges` is anything else.
    """
    bounds = tuple(edges) if isinstance(edges, (list, tuple)) else ()
    if (
        len(bounds) != 3
        or not all(isinstance(x, (int, np.integer)) for x in bounds)
        or not bounds[0] < bounds[1] <= bounds[2]
    ):
        raise ValueError(
            f"bucket edges {edges} given, wanted three growing counts such as (0, 5, 50)"
        )
    return bounds


def frequency_buckets(train_counts: np.ndarray, edges: Edges = EDGES) -> dict[str, np.ndarray]:
    """Which labels lie in which bucket.

    Args:
        train_counts: (L,) training documents per label.
        edges: highest counts of zero, few and medium.

    Returns:
        name -> (L,) bool mask, for zero, few, medium and head.
    """
    which = np.searchsorted(checked(edges), np.asarray(train_counts), side="left")
    return {name: which == i for i, name in enumerate(NAMES)}


def few_of_eurlex(train_counts: np.ndarray, masks: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Labels with 1 to 50 training documents, where few and medium together are just these.

    The paper on EURLEX57K (Chalkidis et al. 2019) divides labels by these numbers.

    Args:
        train_counts: (L,) training documents per label.
        masks: as `frequency_buckets` returns them.

    Returns:
        (L,) bool; None for a data set with bounds of its own.
    """
    counts = np.asarray(train_counts)
    mask = (counts > 0) & (counts <= 50)
    return mask if np.array_equal(mask, masks["few"] | masks["medium"]) else None


def edges_of(manifest: Mapping[str, Any]) -> Edges:
    """The bounds in a corpus's manifest, else EDGES."""
    return checked(manifest["bucket_edges"]) if "bucket_edges" in manifest else EDGES


def in_words(edges: Edges) -> str:
    """A legend for a table, e.g. "few, head: labels with 1 to 7, more training documents"."""
    low, few, medium = edges
    if few == medium:
        return f"few, head: labels with {low + 1} to {few}, more training documents"
    ranges = f"{low + 1} to {few}, {few + 1} to {medium}"
    return f"few, medium, head: labels with {ranges}, more training documents"
