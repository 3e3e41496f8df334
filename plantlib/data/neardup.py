"""Documents that stand twice: exact repeats after normalisation, and near repeats by word-trigram
Jaccard.

Serves METHOD 5 (document-level evaluation without leaks): how many dev and test documents also
stand in train. Trigrams become 32-bit hashes with numpy; MinHash bands propose candidates, and
every candidate is compared in full. It counts; it never removes a document, and it says nothing
about documents repeated inside one split.
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
    """word -> 64-bit code, computed once a word and independent of the process."""

    def __missing__(self, word: str) -> int:
        code = int.from_bytes(
            hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
        )
        self[word] = code
        return code


def shingles(words: list[str], codes: dict[str, int]) -> np.ndarray:
    """Sorted unique uint32 hashes of the word trigrams; shorter texts are padded to one trigram."""
    if not words:
        return np.empty(0, dtype=np.uint32)
    words = words + [""] * (3 - len(words))
    code = np.fromiter(map(codes.__getitem__, words), dtype=np.uint64, count=len(words))
    a, b, c, last = (np.uint64(m) for m in MIX)
    mixed = code[:-2] * a + code[1:-1] * b + code[2:] * c
    mixed = (mixed ^ (mixed >> np.uint64(29))) * last
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """|A and B| / |A or B| of two arrays of unique values."""
    both = np.intersect1d(one, other, assume_unique=True).size
    return both / max(one.size + other.size - both, 1)


class Index:
    """Training documents, to be asked whether a text repeats one of them.

    MinHash with 6 bands of 4: a pair at Jaccard .9 is missed with probability (1 - .9**4)**6 =
    .002.
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
        # (bands * rows, 1) odd multipliers: the high half of the product is one random order of the
        # shingles each
        self.multipliers = (np.frombuffer(b"".join(seeds), dtype="<u8") | np.uint64(1))[:, None]

    def _read(self, text: str) -> tuple[bytes, np.ndarray]:
        words = WORD.findall(text.casefold())
        key = hashlib.blake2b(
            " ".join(words).encode("utf-8", "surrogatepass"), digest_size=16
        ).digest()
        return key if words else b"", shingles(words, self.codes)

    def _keys(self, hashes: np.ndarray) -> list[bytes]:
        least = (
            ((hashes.astype(np.uint64) * self.multipliers) >> np.uint64(32))
            .min(axis=1)
            .astype("<u4")
        )
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
        """'exact', 'near' or None."""
        key, hashes = self._read(text)
        if not key:
            return None
        if key in self.exact:
            return "exact"
        votes = Counter(i for band in self._keys(hashes) for i in self.buckets.get(band, ()))
        return (
            "near"
            if any(self._alike(hashes, self.documents[i]) for i, _ in votes.most_common())
            else None
        )

    def _alike(self, one: np.ndarray, other: np.ndarray) -> bool:
        # Jaccard cannot exceed the ratio of the sizes: most candidates end here.
        if min(one.size, other.size) < self.threshold * max(one.size, other.size):
            return False
        return jaccard(one, other) >= self.threshold


def count_repeats(
    train: Sequence[str], others: dict[str, Sequence[str]], threshold: float = 0.9
) -> dict[str, dict[str, int]]:
    """{split: {"documents", "exact", "near"}} of the texts in `others` that also stand in `train`."""

    index, counts = Index(threshold), {}
    total = len(train) + sum(map(len, others.values()))
    with tqdm(total=total, desc="near duplicates", unit="doc", delay=5, leave=False) as bar:
        for text in train:
            index.add(text)
            bar.update()
        for split, texts in others.items():
            found: Counter = Counter()
            for text in texts:
                found[index.find(text)] += 1
                bar.update()
            counts[split] = {
                "documents": len(texts),
                "exact": found["exact"],
                "near": found["near"],
            }
    return counts
