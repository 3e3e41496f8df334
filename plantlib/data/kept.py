"""The training and dev documents of a model, as far as learning on from corrections needs them.

A model's folder holds them in one file beside its weights: how often each word stands in a
document, token ids of a language model's tokenizer, and labels. Counts and token ids say what a
text says, so the file goes where the text may go and nowhere else: it is never pushed to a hub, a
credentialed model stays in the data folder, and the file may be removed, after which the model
predicts as before and learns no more.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from plantlib.data.tokens import Ragged, Words, word_analyser
from plantlib.utils.tensors import check_tensors, save_tensors

FILE = "documents.safetensors"
SPLITS = ("train", "dev")


@dataclass(frozen=True, eq=False)
class Kept:
    """n documents of train and dev.

    keys: n digests of the texts. split: (n,) of "train" and "dev". labels: (n, L) csr of ones.
    names: all words, sorted. words: ids of the distinct words of each document, in the order in
    which they first occur. counts: (S,) how often each stands in its document.
    tokens: ids of the language model's tokenizer, None where the words are the tokens.
    about: the start, the seed, the options and the record of the run.
    """

    keys: list[str]
    split: np.ndarray
    labels: sparse.csr_matrix
    names: list[str]
    words: Ragged
    counts: np.ndarray
    tokens: Ragged | None
    about: dict[str, Any]

    @classmethod
    def of(
        cls,
        texts: Sequence[str],
        split: Sequence[str],
        labels: sparse.csr_matrix,
        tokens: Ragged | None,
        about: dict[str, Any],
    ) -> Kept:
        """From n texts; other arguments as the attributes."""
        analyse = word_analyser()
        counted = [Counter(analyse(text)) for text in texts]
        names = sorted(set(chain.from_iterable(counted)))
        place = {name: i for i, name in enumerate(names)}
        words = Ragged.from_lists([[place[word] for word in words] for words in counted])
        counts = np.fromiter(chain.from_iterable(c.values() for c in counted), np.int32)
        keys = [key_of(text) for text in texts]
        return cls(keys, np.asarray(split), labels.tocsr(), names, words, counts, tokens, about)

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of a split."""
        return np.flatnonzero(self.split == split)

    def joined(self, other: Kept) -> Kept:
        """These documents, corrected and followed by those of `other`.

        A document of `other` whose text is here gives it its labels, and another one becomes a
        training document. Of several with one text the last one counts.

        other: its labels (m, L') have L' >= L columns, the first L of them those of this one.
        """
        last = {key: len(self.keys) + j for j, key in enumerate(other.keys)}
        known = set(self.keys)
        new = [key for key in last if key not in known]
        corrected = [last.get(key, i) for i, key in enumerate(self.keys)]
        order = np.array([*corrected, *(last[key] for key in new)], int)
        # both over one list of words and one list of labels
        names = sorted({*self.names, *other.names})
        ids = [np.searchsorted(names, part.names).astype(np.int32) for part in (self, other)]
        words = _after(self.words, other.words, *ids)
        counts = Ragged(np.concatenate([self.counts, other.counts]), words.offsets)
        tokens = None
        if self.tokens is not None and other.tokens is not None:
            tokens = _after(self.tokens, other.tokens).select(order)
        wide = sparse.csr_matrix(
            (self.labels.data, self.labels.indices, self.labels.indptr),
            shape=(len(self.keys), other.labels.shape[1]),
        )
        return Kept(
            [*self.keys, *new],
            np.append(self.split, np.repeat("train", len(new))),
            sparse.vstack([wide, other.labels], format="csr")[order],
            names,
            words.select(order),
            counts.select(order).flat,
            tokens,
            self.about,
        )

    def known_words(self, min_documents: int) -> Words:
        """The words of at least `min_documents` training documents, and their counts (n, V), as
        `tokens.words` takes them from the texts."""
        shape = (len(self.keys), len(self.names))
        counts = sparse.csr_matrix((self.counts, self.words.flat, self.words.offsets), shape=shape)
        train = counts[self.rows("train")]
        kept = np.flatnonzero(np.bincount(train.indices, minlength=shape[1]) >= min_documents)
        counts = counts[:, kept].astype(np.int32)
        counts.sort_indices()
        return Words([self.names[i] for i in kept], counts)

    def as_tokens(self, names: Sequence[str], most: int | None) -> Ragged:
        """The first `most` distinct words of each document among `names`, by their place there."""
        place = {name: i for i, name in enumerate(names)}
        by_id = np.array([place.get(name, -1) for name in self.names], np.int32)
        ids = [by_id[document] for document in self.words]
        return Ragged.from_lists([document[document >= 0][:most] for document in ids])

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file."""
        arrays = {
            "keys": _bytes(self.keys),
            "names": _bytes(self.names),
            "split": np.array([SPLITS.index(name) for name in self.split], np.uint8),
            "labels.indptr": self.labels.indptr.astype(np.int64),
            "labels.indices": self.labels.indices.astype(np.int32),
            "words.flat": self.words.flat,
            "words.offsets": self.words.offsets,
            "counts": self.counts.astype(np.min_scalar_type(int(self.counts.max(initial=0)))),
        }
        if self.tokens is not None:
            arrays |= {"tokens.flat": self.tokens.flat, "tokens.offsets": self.tokens.offsets}
        about = {"about": json.dumps(self.about), "labels": str(self.labels.shape[1])}
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        return save_tensors(path, arrays, about)

    @classmethod
    def load(cls, path: str | Path) -> Kept:
        """Read what `save` wrote; Damaged for a file that changed since."""
        from safetensors import safe_open

        with safe_open(check_tensors(path), "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        indices, indptr = arrays["labels.indices"], arrays["labels.indptr"]
        ones = np.ones(len(indices), np.int32)
        shape = (len(indptr) - 1, int(metadata["labels"]))
        tokens = None
        if "tokens.flat" in arrays:
            tokens = Ragged(arrays["tokens.flat"], arrays["tokens.offsets"])
        return cls(
            _lines(arrays["keys"]),
            np.array(SPLITS)[arrays["split"]],
            sparse.csr_matrix((ones, indices, indptr), shape=shape),
            _lines(arrays["names"]),
            Ragged(arrays["words.flat"], arrays["words.offsets"]),
            arrays["counts"].astype(np.int32),
            tokens,
            json.loads(metadata["about"]),
        )


def key_of(text: str) -> str:
    """16 hex digits of a text, the same whatever blanks stand between its words."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]


def _after(first: Ragged, second: Ragged, *ids: np.ndarray) -> Ragged:
    """The documents of two, one after the other.

    ids: for each of them, the new id of every old one; none leaves them.
    """
    flat = [first.flat, second.flat]
    if ids:
        flat = [new[part] for new, part in zip(ids, flat, strict=True)]
    offsets = np.concatenate([first.offsets, first.offsets[-1] + second.offsets[1:]])
    return Ragged(np.concatenate(flat).astype(np.int32), offsets)


def _bytes(names: Sequence[str]) -> np.ndarray:
    return np.frombuffer("\n".join(names).encode(), np.uint8)


def _lines(array: np.ndarray) -> list[str]:
    text = array.tobytes().decode()
    return text.split("\n") if text else []
