"""Counts documents that occur twice: exact repeats, and near repeats by word-trigram Jaccard.

It tells how many dev and test documents also occur in train (docs/method.md, "Data and label
spaces"). Trigrams become 32-bit hashes; MinHash bands propose candidates, and every candidate is
compared in full. Nothing is removed, and repeats inside one split are not counted.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from plantlib.utils.progress import tqdm

WORD = re.compile(r"[^\W_]+")

# Odd 64-bit constants that spread a trigram's three word codes (the last one mixes the sum).
MIX = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xFF51AFD7ED558CCD)


class _WordCodes(dict):
    """word -> 64-bit code, the same in every process; computed once per word."""

    def __missing__(self, word: str) -> int:
        data = word.encode("utf-8", "surrogatepass")
        self[word] = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
        return self[word]


def shingles(words: list[str], codes: dict[str, int]) -> np.ndarray:
    """Sorted unique uint32 hashes of the word trigrams; shorter texts are padded to one."""
    if not words:
        return np.empty(0, dtype=np.uint32)
    words = words + [""] * (3 - len(words))
    code = np.fromiter(map(codes.__getitem__, words), dtype=np.uint64, count=len(words))
    a, b, c, last = (np.uint64(m) for m in MIX)
    mixed = code[:-2] * a + code[1:-1] * b + code[2:] * c
    mixed = (mixed ^ (mixed >> np.uint64(29))) * last
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """|A and B| / |A or B| of two 1-d arrays of unique values."""
    both = np.intersect1d(one, other, assume_unique=True).size
    return both / max(one.size + other.size - both, 1)


class Index:
    """Training documents; `find` says whether a text repeats one of them.

    With 6 MinHash bands of 4 rows a pair at Jaccard 0.9 is missed with probability
    (1 - 0.9^4)^6 = 0.002.

    Args:
        threshold: Jaccard from which two texts are near.
        bands, rows: of the MinHash.
    """

    def __init__(self, threshold: float = 0.9, bands: int = 6, rows: int = 4) -> None:
        self.threshold, self.bands = threshold, bands
        self.codes = _WordCodes()
        self.exact: set[bytes] = set()
        self.documents: list[np.ndarray] = []
        self.buckets: dict[bytes, list[int]] = defaultdict(list)
        seeds = [
            hashlib.blake2b(f"permutation {i}".encode(), digest_size=8).digest()
            for i in range(bands * rows)
        ]
        # (bands * rows, 1) odd multipliers: the high half of each product is a random order of the
        # shingles
        self.multipliers = (np.frombuffer(b"".join(seeds), dtype="<u8") | np.uint64(1))[:, None]

    def _read(self, text: str) -> tuple[bytes, np.ndarray]:
        """Key of the whole text, empty for a text without words, and its trigram hashes."""
        words = WORD.findall(text.casefold())
        data = " ".join(words).encode("utf-8", "surrogatepass")
        key = hashlib.blake2b(data, digest_size=16).digest() if words else b""
        return key, shingles(words, self.codes)

    def _keys(self, hashes: np.ndarray) -> list[bytes]:
        """One key per band: the least hashes in the orders of its rows."""
        products = (hashes.astype(np.uint64) * self.multipliers) >> np.uint64(32)
        least = products.min(axis=1).astype("<u4")
        return [bytes([i]) + band.tobytes() for i, band in enumerate(least.reshape(self.bands, -1))]

    def add(self, text: str) -> None:
        """Remember one training document."""
        key, hashes = self._read(text)
        if not key:
            return
        self.exact.add(key)
        for band in self._keys(hashes):
            self.buckets[band].append(len(self.documents))
        self.documents.append(hashes)

    def find(self, text: str) -> str | None:
        """'exact' or 'near' if the text repeats a document, else None."""
        key, hashes = self._read(text)
        if not key:
            return None
        if key in self.exact:
            return "exact"
        votes = Counter(i for band in self._keys(hashes) for i in self.buckets.get(band, ()))
        near = any(self._alike(hashes, self.documents[i]) for i, _ in votes.most_common())
        return "near" if near else None

    def _alike(self, one: np.ndarray, other: np.ndarray) -> bool:
        # Jaccard cannot exceed the ratio of the sizes: most candidates end here
        if min(one.size, other.size) < self.threshold * max(one.size, other.size):
            return False
        return jaccard(one, other) >= self.threshold


def count_repeats(
    train: Sequence[str], others: dict[str, Sequence[str]], threshold: float = 0.9
) -> dict[str, dict[str, int]]:
    """How many texts of each split of `others` also occur in `train`.

    Args:
        train: training texts.
        others: split -> texts.
        threshold: Jaccard from which two texts are near.

    Returns:
        split -> {"documents", "exact", "near"}.
    """
    index, counts = Index(threshold), {}
    total = len(train) + sum(map(len, others.values()))
    with tqdm(total=total, desc="near duplicates", unit="doc", delay=5, leave=False) as bar:
        for text in train:
            index.add(text)
            bar.update()
        for split, texts in others.items():
            kinds: Counter = Counter()
            for text in texts:
                kinds[index.find(text)] += 1
                bar.update()
            counts[split] = {
                "documents": len(texts),
                "exact": kinds["exact"],
                "near": kinds["near"],
            }
    return counts
