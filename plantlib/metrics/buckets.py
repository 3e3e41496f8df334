"""Labels by how many TRAINING documents they have: zero, few, medium, head (METHOD.md section 5).

A data set may state bounds of its own, as MIMIC-IV-few does (few is 1 to 7, head is 8 and more,
nothing between): the manifest of its corpus carries them as `bucket_edges`, and every metric,
record and table of it then uses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Edges = tuple[int, int, int]
EDGES: Edges = (0, 5, 50)
NAMES = ("zero", "few", "medium", "head")


def checked(edges: Any) -> Edges:
    """Three whole numbers that grow; the last two may be equal, then no label is medium. ValueError
    for others.
    """
    found = tuple(edges) if isinstance(edges, (list, tuple)) else ()
    if (
        len(found) != 3
        or not all(isinstance(x, (int, np.integer)) for x in found)
        or not found[0] < found[1] <= found[2]
    ):
        raise ValueError(
            f"bucket edges {edges} given, wanted three growing counts such as (0, 5, 50)"
        )
    return found


def frequency_buckets(train_counts: np.ndarray, edges: Edges = EDGES) -> dict[str, np.ndarray]:
    """(L,) bool masks by TRAINING count n: zero n <= edges[0], few <= edges[1], medium <= edges[2],
    head above.
    """
    which = np.searchsorted(checked(edges), np.asarray(train_counts), side="left")
    return {name: which == i for i, name in enumerate(NAMES)}


def edges_of(manifest: Mapping[str, Any]) -> Edges:
    """The bounds of a corpus by its manifest, else EDGES."""
    return checked(manifest["bucket_edges"]) if "bucket_edges" in manifest else EDGES


def in_words(edges: Edges) -> str:
    """For the reader of a table: "few, medium, head: labels with 1 to 5, 6 to 50, more training
    documents".
    """
    low, few, medium = edges
    if few == medium:
        return f"few, head: labels with {low + 1} to {few}, more training documents"
    return (
        f"few, medium, head: labels with {low + 1} to {few}, {few + 1} to {medium}, more training"
        " documents"
    )
