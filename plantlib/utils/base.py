"""What every room of the library needs: the error for bad data, the names of the splits, an order
by hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

SPLITS = ("train", "dev", "test", "unlabelled")
FORMAT = 1


class DataError(ValueError):
    """Input that cannot be used; the message says what was got, what was wanted and the fix."""


def hash_order(keys: Sequence[str], seed: int, salt: str) -> np.ndarray:
    """One seeded permutation of range(len(keys)), by SHA-256 of seed, salt and key: no random
    generator involved.
    """
    digests = [
        hashlib.sha256(f"{seed}|{salt}|{key}".encode("utf-8", "surrogatepass")).digest()
        for key in keys
    ]
    return np.array(sorted(range(len(keys)), key=digests.__getitem__), dtype=np.int64)
