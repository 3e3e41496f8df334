"""Shared by every room: the error for bad data, the names of the splits, an order by hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

SPLITS = ("train", "dev", "test", "unlabelled")
FORMAT = 1


class DataError(ValueError):
    """Input that cannot be used; the message says what was got, what was wanted and the fix."""


def hash_order(keys: Sequence[str], seed: int, salt: str) -> np.ndarray:
    """A permutation of range(len(keys)), int64, by SHA-256 of seed, salt and key.

    No random generator is involved, so the order is the same on every machine.
    """
    digests = [
        hashlib.sha256(f"{seed}|{salt}|{key}".encode("utf-8", "surrogatepass")).digest()
        for key in keys
    ]
    return np.array(sorted(range(len(keys)), key=digests.__getitem__), dtype=np.int64)
