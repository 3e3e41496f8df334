"""Tokenise once: ragged token ids of whole documents, counts, and the word vocabulary of the linear
peers.

The first arrow of the data flow. Documents keep their natural length; special tokens are never part
of the ids, so they are neither counted by MIG nor attended to. Windows of a long document are made
where the backbone needs them (`features.py`, `model.py`), not here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

from plantlib.utils.io import atomic_path
from plantlib.utils.progress import tqdm


@dataclass(frozen=True, eq=False)
class Ragged:
    """Token ids of N documents: `flat` (S,) int32 and `offsets` (N+1,) int64; document i is
    flat[offsets[i]:offsets[i+1]].
    """

    flat: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        # a negative index counts from the end, one outside is an IndexError
        i = range(len(self))[i]
        return self.flat[self.offsets[i] : self.offsets[i + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens a document."""
        return np.diff(self.offsets)

    @classmethod
    def from_lists(cls, documents) -> Ragged:
        lengths = np.fromiter((len(d) for d in documents), np.int64, len(documents))
        flat = (
            np.concatenate([np.asarray(d, np.int32) for d in documents])
            if len(documents)
            else np.zeros(0, np.int32)
        )
        return cls(flat.astype(np.int32), np.concatenate([[0], np.cumsum(lengths)]))

    def select(self, rows: np.ndarray) -> Ragged:
        """The documents `rows`, in that order."""
        return Ragged.from_lists([self[i] for i in rows])

    def counts(self, vocabulary: int) -> sparse.csr_matrix:
        """(N, vocabulary) int32 counts of token ids."""
        rows = np.repeat(np.arange(len(self)), self.lengths)
        ones = np.ones(len(self.flat), np.int32)
        return sparse.coo_matrix((ones, (rows, self.flat)), shape=(len(self), vocabulary)).tocsr()


def tokenise(
    texts: list[str],
    tokenizer,
    max_tokens: int | None = None,
    progress: bool = True,
    batch: int = 256,
) -> Ragged:
    """Token ids of every text without special tokens, cut after `max_tokens`.

    tokenizer: any Hugging Face tokenizer. max_tokens None reads the whole document.
    """
    documents: list[list[int]] = []
    steps = range(0, len(texts), batch)
    for begin in tqdm(
        steps, desc="tokenise", unit="batch", disable=not progress or len(texts) < 5000
    ):
        encoded = tokenizer(
            texts[begin : begin + batch],
            add_special_tokens=False,
            return_attention_mask=False,
            truncation=max_tokens is not None,
            max_length=max_tokens,
            verbose=False,
        )
        documents.extend(encoded["input_ids"])
    return Ragged.from_lists(documents)


def cached_tokens(path: str | Path, make: Callable[[], Ragged]) -> Ragged:
    """The token ids at `path` (safetensors), made and written there when they are missing; the name
    must say of what.
    """
    from safetensors.numpy import load_file, save_file

    path = Path(path)
    if path.exists():
        found = load_file(path)
        return Ragged(found["flat"], found["offsets"])
    tokens = make()
    with atomic_path(path) as temporary:
        save_file({"flat": tokens.flat, "offsets": tokens.offsets}, temporary)
    return tokens


@dataclass(frozen=True, eq=False)
class Words:
    """Word vocabulary of the training rows and the (N, V) counts of all documents over it."""

    names: list[str]
    counts: sparse.csr_matrix


WORD = r"(?u)\b\w\w+\b"


def word_analyser(pattern: str = WORD):
    """text -> its lower-cased words, as `words` counts them."""
    from sklearn.feature_extraction.text import CountVectorizer

    return CountVectorizer(token_pattern=pattern).build_analyzer()


def words(
    texts: list[str], train_rows: np.ndarray, min_documents: int = 2, pattern: str = WORD
) -> Words:
    """Lower-cased word unigrams; the vocabulary comes from the training rows, nothing is learnt
    from others.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(min_df=min_documents, token_pattern=pattern, dtype=np.int32)
    try:
        vectorizer.fit([texts[i] for i in train_rows])
    except ValueError as error:
        raise ValueError(
            f"no word stands in at least {min_documents} of {len(train_rows)} training documents; "
            "lower min_documents or add text"
        ) from error
    return Words(list(vectorizer.get_feature_names_out()), vectorizer.transform(texts).tocsr())


def smooth_idf(counts: sparse.csr_matrix) -> np.ndarray:
    """(V,) float64 ln((1 + n) / (1 + n_t)) + 1 of counts (n, V), as `tfidf` weighs words
    (scikit-learn's smooth idf).
    """
    present = np.bincount(counts.indices, minlength=counts.shape[1])
    return np.log((1 + counts.shape[0]) / (1 + present)) + 1


def tfidf(counts: sparse.csr_matrix, train_rows: np.ndarray) -> sparse.csr_matrix:
    """Sublinear tf-idf of (N, V) counts with the idf of the training rows, rows of unit length."""
    from sklearn.feature_extraction.text import TfidfTransformer

    transformer = TfidfTransformer(sublinear_tf=True).fit(counts[train_rows])
    return transformer.transform(counts).tocsr()
